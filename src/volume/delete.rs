//! DeleteVolume.
//!
//! Crash points: the record says `deleting` before anything is destroyed and goes last, so a retry finds it and goes on.
//! Links are in the journal before they are cut. A volume whose snapshots are still needed becomes a silent parent: it is
//! renamed, and the record's removal and the note of the silent parent are one atomic change.

use super::catalogue::{DeleteWithSnapshots, Silent, State, Stored, Volume};
use super::journal::Suspect;
use super::names;
use super::{Error, Result, Volumes, now};
use crate::rbd::{Errno, Image, ImageKey, OpenMode, Snapshot, SnapshotKind, Tolerate};

impl Volumes {
    /// Deletes the volume whose image is named `image`; fine when it is gone.
    ///
    /// [`Error::FailedPrecondition`], and nothing changed, when it is attached, when it may not be deleted with its
    /// snapshots, or when an image of that name exists which the catalogue does not know.
    pub fn delete(&self, image: &str) -> Result<()> {
        let Some(stored) = self.catalogue.volume(image)? else {
            return self.delete_unknown(image);
        };
        match self.pool.open_image(ImageKey::Name(image), OpenMode::ReadOnly) {
            Ok(opened) => {
                let snapshots = opened.snapshots()?;
                self.refuse_if_in_use(image, &stored.record, &*opened, &snapshots)?;
                let stored = self.mark_deleting(image, &stored, Some(opened.id()?))?;
                self.delete_opened(image, &stored, opened, &snapshots)
            }
            // What a killed create, remove or rename left, or nothing: finish it by name.
            Err(error) if error.errno == Errno::ENOENT => {
                let stored = self.mark_deleting(image, &stored, None)?;
                self.delete_unopened(image, &stored)
            }
            Err(error) => return Err(error.into()),
        }
        .map_err(Error::after_a_change)?;
        self.collect_leftovers();
        Ok(())
    }

    fn delete_unknown(&self, image: &str) -> Result<()> {
        if self.pool.image_id(image)?.is_some() {
            return Err(Error::FailedPrecondition(format!(
                "the image {} exists, but the catalogue of instance {} does not know it: it was made by somebody else and \
                 is not deleted",
                self.spec(image),
                self.instance
            )));
        }
        self.pool.remove_image(image).tolerate(Errno::ENOENT)?;
        self.collect_leftovers();
        Ok(())
    }

    fn refuse_if_in_use(
        &self,
        image: &str,
        record: &Volume,
        opened: &dyn Image,
        snapshots: &[Snapshot],
    ) -> Result<()> {
        let spec = self.spec(image);
        if let Some(publication) = record.published.first() {
            return Err(Error::FailedPrecondition(format!(
                "{spec} is published to node {}: unpublish it first",
                publication.node
            )));
        }
        let watchers = opened.watchers()?;
        if !watchers.is_empty() {
            let addresses: Vec<_> = watchers.iter().map(|watcher| watcher.address.as_str()).collect();
            return Err(Error::FailedPrecondition(format!(
                "{spec} is open at {}: detach it there; a client that died lets go after 30 seconds",
                addresses.join(", ")
            )));
        }
        let kept = snapshots.iter().find(|snapshot| is_a_users(snapshot));
        match kept {
            Some(snapshot) if record.delete_with_snapshots == DeleteWithSnapshots::Refuse => {
                Err(Error::FailedPrecondition(format!(
                    "{spec} still has the snapshot {}: delete its snapshots first, or use deleteWithSnapshots=retain",
                    snapshot.name
                )))
            }
            _ => Ok(()),
        }
    }

    /// From here on the volume is being destroyed. `id` is kept so that a retry finds the image under its silent name.
    fn mark_deleting(
        &self,
        image: &str,
        stored: &Stored<Volume>,
        id: Option<String>,
    ) -> Result<Stored<Volume>> {
        let image_id = id.or_else(|| stored.record.image_id.clone());
        self.catalogue.replace(
            image,
            stored,
            Volume { state: State::Deleting, image_id, ..stored.record.clone() },
        )
    }

    fn delete_opened(
        &self,
        image: &str,
        stored: &Stored<Volume>,
        opened: Box<dyn Image>,
        snapshots: &[Snapshot],
    ) -> Result<()> {
        let id = opened.id()?;
        let mut suspects = Self::links(&*opened, &id, &[])?;
        if suspects.is_empty() {
            suspects.extend(self.planned_link(&stored.record, &id)?);
        }
        let mut left = 0;
        for snapshot in snapshots {
            if self.goes_with_the_volume(&*opened, &id, snapshot)? {
                let writable = self.pool.open_image(ImageKey::Id(&id), OpenMode::ReadWrite)?;
                self.drop_snapshot(&*writable, &id, snapshot)?;
            } else {
                left += 1;
            }
        }
        drop(opened);
        if left == 0 {
            self.journal.add(&suspects)?;
            match self.pool.remove_image(image).tolerate(Errno::ENOENT) {
                Ok(()) => return self.catalogue.remove(image, stored),
                // A snapshot came meanwhile.
                Err(error) if error.errno == Errno::ENOTEMPTY => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.journal.add(&[self.as_suspect(image, &id)])?;
        match self.pool.rename_image(image, &names::silent(image)) {
            // An earlier volume of this name is silent still.
            Err(error) if error.errno == Errno::EEXIST => {
                self.pool.rename_image(image, &names::silent_with_id(image, &id))?;
            }
            other => other?,
        }
        self.note_silent(image, stored, &id)
    }

    /// No image has the volume's name, or only remains of one. The rest of a silencing is still to be done when the image
    /// lives under its silent name.
    fn delete_unopened(&self, image: &str, stored: &Stored<Volume>) -> Result<()> {
        if let Some(id) = &stored.record.image_id {
            match self.pool.open_image(ImageKey::Id(id), OpenMode::ReadOnly) {
                Ok(opened) if opened.name()?.ends_with(names::SILENT_SUFFIX) => {
                    self.journal.add(&[self.as_suspect(image, id)])?;
                    return self.note_silent(image, stored, id);
                }
                // In the trash on its way out, links still standing.
                Ok(opened) => self.journal.add(&Self::links(&*opened, id, &[])?)?,
                Err(error) if error.errno == Errno::ENOENT => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.journal.add(self.planned_link(&stored.record, "")?.as_slice())?;
        self.pool.remove_image(image).tolerate(Errno::ENOENT)?;
        self.catalogue.remove(image, stored)
    }

    fn note_silent(&self, image: &str, stored: &Stored<Volume>, id: &str) -> Result<()> {
        self.catalogue.silence(image, stored, id, Silent { volume: stored.record.id.clone(), deleted: now() })
    }

    /// The image `id` itself as a suspect: it may turn out to be a silent parent nobody needs.
    pub(super) fn as_suspect(&self, image: &str, id: &str) -> Suspect {
        Suspect {
            pool: self.pool.name().to_string(),
            namespace: self.pool.namespace().to_string(),
            image_id: id.to_string(),
            image: image.to_string(),
            snapshot: None,
            child: String::new(),
        }
    }

    /// The snapshot an unfinished creation planned to clone, if it stands: nothing else remembers it.
    pub(super) fn planned_link(&self, record: &Volume, child: &str) -> Result<Option<Suspect>> {
        let Some(link) = &record.link else {
            return Ok(None);
        };
        let Some(home) = self.elsewhere(&link.pool, &link.namespace)? else {
            return Ok(None);
        };
        let parent = match home.pool.open_image(ImageKey::Id(&link.image_id), OpenMode::ReadOnly) {
            Ok(parent) => parent,
            Err(error) if error.errno == Errno::ENOENT => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let planned = parent
            .snapshots()?
            .into_iter()
            .find(|snapshot| snapshot.kind == SnapshotKind::User && snapshot.name == link.snapshot);
        Ok(match planned {
            Some(snapshot) => Some(Suspect {
                snapshot: Some(snapshot.id),
                child: child.to_string(),
                ..home.as_suspect(&parent.name()?, &link.image_id)
            }),
            None => None,
        })
    }

    /// Whether a snapshot goes when its volume does: nobody asked for it, and it has no clone.
    fn goes_with_the_volume(&self, image: &dyn Image, id: &str, snapshot: &Snapshot) -> Result<bool> {
        let ours = match &snapshot.kind {
            SnapshotKind::User => {
                names::is_backup_snapshot(&snapshot.name) || names::is_collectable_snapshot(&snapshot.name)
            }
            SnapshotKind::Trash { .. } => true,
            SnapshotKind::Group | SnapshotKind::Mirror => false,
        };
        Ok(ours
            && image.children(Some(snapshot.id))?.is_empty()
            && !self.is_needed_by_a_creation(id, &snapshot.name)?)
    }
}

/// Whether a person, or this driver on a person's behalf, made the snapshot, so that it is kept.
fn is_a_users(snapshot: &Snapshot) -> bool {
    snapshot.kind == SnapshotKind::User
        && !names::is_collectable_snapshot(&snapshot.name)
        && !names::is_backup_snapshot(&snapshot.name)
}
