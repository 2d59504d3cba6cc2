//! What keeps every client from changing or removing an image until a person does something about
//! it.
//!
//! Looked at before anything is recorded: librbd waits for such a lock for ever, and refuses the
//! rest only when the record says already that the volume is on its way out.

use super::catalogue::{State, Stored, Volume};
use super::{Error, Result, Volumes, names};
use crate::rbd::{Errno, Features, Hold, Image, ImageKey, OpenMode, Watcher};

impl Volumes {
    /// The record of a volume that was handed out and has its image; else [`Error::NotFound`], with
    /// what became of the image, if that can be told.
    pub fn handed_out(&self, image: &str) -> Result<Stored<Volume>> {
        let stored = self.ready(image)?.ok_or_else(|| {
            Error::NotFound(format!("the volume {} does not exist", self.spec(image)))
        })?;
        self.require_image(image, &stored.record)?;
        Ok(stored)
    }

    /// Requires that the image of a static volume is there, and is no volume of this driver:
    /// [`Error::NotFound`], [`Error::FailedPrecondition`]. Nothing is recorded of it.
    pub fn require_static(&self, image: &str) -> Result<()> {
        let spec = self.spec(image);
        if let Some(stored) = self.catalogue.volume(image)? {
            return Err(Error::FailedPrecondition(format!(
                "{spec} is a volume of this driver, and no static one: use its id {} without staticVolume",
                stored.record.id
            )));
        }
        match self.pool.image_id(image)? {
            Some(_) => Ok(()),
            None => Err(Error::NotFound(format!("there is no image {spec}"))),
        }
    }

    /// The record of a volume that was handed out, if there is one. [`Error::FailedPrecondition`]
    /// for one that is being restored.
    pub(super) fn ready(&self, image: &str) -> Result<Option<Stored<Volume>>> {
        let Some(stored) = self.catalogue.volume(image)? else { return Ok(None) };
        self.refuse_if_restoring(image, &stored.record)?;
        let stored = self.returned(image, stored)?;
        Ok(Some(stored).filter(|stored| stored.record.state == State::Ready))
    }

    /// [`Error::FailedPrecondition`] for a volume that is being restored.
    pub(super) fn refuse_if_restoring(&self, image: &str, record: &Volume) -> Result<()> {
        if record.state != State::Restoring {
            return Ok(());
        }
        Err(Error::FailedPrecondition(format!(
            "the volume {} is being restored from a backup, and cannot be used until all of it is there. If the restore was \
             killed, run the same cinderblock backup restore again, or delete the volume",
            self.spec(image)
        )))
    }

    /// Refuses a volume whose record is there and whose image is not: [`Error::NotFound`] with what
    /// became of the image, if that can be told. [`Error::Conflict`] when the record has changed
    /// since it was read: another controller deletes the volume.
    pub(super) fn require_image(&self, image: &str, record: &Volume) -> Result<()> {
        if self.pool.image_id(image)?.is_some() {
            return Ok(());
        }
        if self.catalogue.volume(image)?.is_none_or(|stored| stored.record != *record) {
            return Err(Error::Conflict(format!(
                "another controller is at work on {}",
                self.spec(image)
            )));
        }
        let whereabouts = self.whereabouts(image, record)?;
        Err(Error::NotFound(format!(
            "the volume {} has no image any more: {}",
            self.spec(image),
            whereabouts.as_deref().unwrap_or("another tool removed it; delete the volume")
        )))
    }

    /// The addresses of those watchers that are not connections of this process.
    pub(super) fn strangers(&self, watchers: &[Watcher]) -> Result<Vec<String>> {
        let cluster = self.cluster();
        let mut strangers = Vec::new();
        for watcher in watchers {
            if !cluster.is_own(&watcher.address)? {
                strangers.push(watcher.address.clone());
            }
        }
        Ok(strangers)
    }

    /// Where the image is that has lost its volume's name `image`, and how to give it back. `None`
    /// when it is gone or going.
    pub(super) fn whereabouts(&self, image: &str, record: &Volume) -> Result<Option<String>> {
        let in_trash = match &record.image_id {
            Some(id) => self.pool.trash_get(id)?,
            // A record of an earlier version of the driver. Reads the whole trash.
            None => self.pool.trash_list()?.into_iter().find(|entry| entry.name == image),
        };
        if let Some(entry) = in_trash {
            let id = self.spec(&entry.id);
            if entry.migrating {
                return Ok(Some(
                    "`rbd migration` moves its data to an image elsewhere; have it back with: rbd migration abort, and the spec of \
                     that image"
                        .to_string(),
                ));
            }
            return Ok((!entry.removing).then(|| {
                format!(
                    "another tool moved it to the trash; give it back with: rbd trash restore --image {image} {id}"
                )
            }));
        }
        let Some(id) = &record.image_id else { return Ok(None) };
        let name = match self.pool.open_image(ImageKey::Id(id), OpenMode::ReadOnly) {
            Ok(opened) => opened.name()?,
            Err(error) if error.errno == Errno::ENOENT => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let moved = name != image && !name.ends_with(names::SILENT_SUFFIX);
        Ok(moved.then(|| {
            let (from, to) = (self.spec(&name), self.spec(image));
            format!("another tool renamed it; give it its name back with: rbd rename {from} {to}")
        }))
    }

    /// Refuses an image here that no client can change: [`Error::FailedPrecondition`] with what to
    /// do, [`Error::Conflict`] while this process flattens it.
    pub(super) fn refuse_unchangeable(&self, image: &dyn Image) -> Result<()> {
        self.refuse_while_flattened(&image.id()?)?;
        let Some(hold) = image.hold()? else { return Ok(()) };
        let spec = self.spec(&image.name()?);
        Err(Error::FailedPrecondition(match hold {
            Hold::Lock { id, client, address } => format!(
                "{spec} has the lock {id:?} of {client} at {address}, which `rbd lock add` or another tool made, and nothing can be \
                 changed until it is gone: have that client let go, or run: rbd lock remove {spec} {id:?} {client}"
            ),
            Hold::Mirrored => format!(
                "{spec} is mirrored and not primary here, so nothing can be changed: use it where it is primary, or run: rbd mirror \
                 image promote {spec}"
            ),
        }))
    }

    /// Refuses an image here that no client can remove: [`Error::FailedPrecondition`] with what to
    /// do.
    pub(super) fn refuse_unremovable(&self, image: &dyn Image) -> Result<()> {
        self.refuse_unchangeable(image)?;
        if image.info()?.features.contains(Features::MIGRATING) {
            let spec = self.spec(&image.name()?);
            return Err(Error::FailedPrecondition(format!(
                "{spec} is being migrated, and Ceph removes no such image; when nothing uses it, finish that with: rbd migration \
                 execute {spec}, then rbd migration commit {spec} (or give it up with: rbd migration abort {spec})"
            )));
        }
        let Some(group) = image.group()? else { return Ok(()) };
        let spec = self.spec(&image.name()?);
        Err(Error::FailedPrecondition(format!(
            "{spec} belongs to the group {group}, and librbd removes no image that does; run: rbd group image remove {group} {spec}"
        )))
    }
}
