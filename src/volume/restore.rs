//! Filling a volume from a backup: what is recorded, and the image to write to.
//!
//! Crash points: the record says `restoring`, with its lease, before the image is made or its bytes
//! change, and `ready` again when the caller has compared them. A kill in between leaves a volume
//! that nothing but another restore or a deletion touches. The next restore takes over its lease,
//! which fences the killed one, and fills the image from the beginning.

use super::catalogue::{State, Stored, Volume};
use super::{DeleteWithSnapshots, Error, Result, Volumes, now};
use crate::rbd::{Errno, Image, ImageKey, ImageOptions, OpenMode};
use std::collections::BTreeMap;

/// Bytes that are discarded at once.
const STEP: u64 = 1 << 30;

/// A volume that is to be filled.
#[derive(Debug, Clone)]
pub struct RestoreVolume {
    /// Name of its image.
    pub image: String,
    /// The volume id it is handed out under, if it is new.
    pub id: String,
    /// Bytes that it has at least. One that is larger stays as large.
    pub size: u64,
    /// Layout of a new image.
    pub options: ImageOptions,
    /// Whether a volume that is there may be overwritten.
    pub overwrite: bool,
    /// Context a node needs, if it is new.
    pub context: BTreeMap<String, String>,
    /// The format its clones are made in, if it is new.
    pub clone_format: u8,
    /// What DeleteVolume does when it still has snapshots, if it is new.
    pub delete_with_snapshots: DeleteWithSnapshots,
}

/// A volume that is being filled.
#[derive(Debug)]
pub struct Restoring {
    volumes: Volumes,
    name: String,
    stored: Stored<Volume>,
    image: Box<dyn Image>,
    size: u64,
    is_new: bool,
}

impl Volumes {
    /// Makes the volume, or begins to overwrite it. Its image is all zeros then.
    ///
    /// [`Error::AlreadyExists`] when it is there and may not be overwritten, [`Error::InUse`] when
    /// it is published or a client has it open, [`Error::Conflict`] when another restore or a
    /// backup is at work on it; nothing was changed then.
    pub fn begin_restore(&self, request: &RestoreVolume) -> Result<Restoring> {
        let name = &request.image;
        let spec = self.spec(name);
        let stored = match self.catalogue.volume(name)? {
            None => None,
            Some(stored) => match stored.record.state {
                State::Ready if request.overwrite => Some(self.begin_overwriting(name, &stored)?),
                State::Ready => {
                    return Err(Error::AlreadyExists(format!(
                        "the volume {spec} exists, and is not overwritten: choose another name, or give --overwrite"
                    )));
                }
                State::Restoring => Some(self.catalogue.claim(name, &stored)?),
                State::Creating | State::Deleting | State::Returning => {
                    return Err(Error::Conflict(format!(
                        "{spec} is being made, deleted, or brought back from the trash"
                    )));
                }
            },
        };
        let Some(stored) = stored else { return self.make_restored(request) };
        let opened = match self.pool.open_image(ImageKey::Name(name), OpenMode::ReadWrite) {
            Ok(opened) if stored.record.image_id.as_ref() == Some(&opened.id()?) => opened,
            // Killed before the image was known, or another tool has removed it since.
            Ok(opened) => {
                drop(opened);
                return self.make_anew(request, stored);
            }
            Err(error) if error.errno == Errno::ENOENT => return self.make_anew(request, stored),
            Err(error) => return Err(error.into()),
        };
        let strangers = self.strangers(&opened.watchers()?)?;
        if !strangers.is_empty() {
            drop(opened);
            // Nothing has been written, unless by a restore that was killed.
            return Err(Error::InUse(format!(
                "{spec} was opened at {} just now: detach it there, and run the restore again",
                strangers.join(", ")
            )));
        }
        let mut size = opened.info()?.size;
        self.activity.begin(format!("clearing {spec}"));
        let mut offset = 0;
        while offset < size {
            opened.discard(offset, STEP.min(size - offset))?;
            offset += STEP;
        }
        if size < request.size {
            opened.resize(request.size, false)?;
            size = request.size;
        }
        let volumes = self.clone();
        Ok(Restoring { volumes, name: name.clone(), stored, image: opened, size, is_new: false })
    }

    /// Removes a volume whose restore was begun and not finished. [`Error::Conflict`] while the
    /// restore is at work, [`Error::FailedPrecondition`] when the volume is none that is being
    /// restored; nothing was changed then.
    pub fn give_up_restore(&self, image: &str) -> Result<()> {
        match self.catalogue.volume(image)? {
            Some(stored) if stored.record.state == State::Restoring => self.delete(image).map(drop),
            Some(_) => Err(Error::FailedPrecondition(format!(
                "{} is not being restored, and stays",
                self.spec(image)
            ))),
            None => Ok(()),
        }
    }

    /// Marks a volume that no node and no client has.
    fn begin_overwriting(&self, name: &str, stored: &Stored<Volume>) -> Result<Stored<Volume>> {
        let spec = self.spec(name);
        if let Some(publication) = stored.record.published.first() {
            return Err(Error::InUse(format!(
                "{spec} is published to node {}: unpublish it before it is overwritten",
                publication.node
            )));
        }
        self.require_image(name, &stored.record)?;
        let opened = self.pool.open_image(ImageKey::Name(name), OpenMode::ReadOnly)?;
        let id = opened.id()?;
        if stored.record.image_id.as_ref().is_some_and(|known| *known != id) {
            return Err(Error::FailedPrecondition(format!(
                "the image {spec} is not the volume's: another tool made it"
            )));
        }
        let watchers = opened.watchers()?;
        if let Some(watcher) = watchers.first() {
            return Err(Error::InUse(format!(
                "{spec} is open at {}: detach it there; a client that died lets go after 30 seconds",
                watcher.address
            )));
        }
        self.refuse_unchangeable(&*opened)?;
        drop(opened);
        // Nodes it was taken from may write to it still.
        self.left_behind(name, &[], true)?;
        self.refuse_if_backed_up(name)?;
        let record =
            Volume { state: State::Restoring, image_id: Some(id), ..stored.record.clone() };
        self.catalogue.replace_unless_backed_up(name, stored, record)
    }

    /// Removes what is left of the image of a restore that was killed, and begins again.
    fn make_anew(&self, request: &RestoreVolume, stored: Stored<Volume>) -> Result<Restoring> {
        let cleared = self.destroy(&request.image, &stored);
        drop(stored);
        self.settle_own();
        cleared?;
        self.make_restored(request)
    }

    fn make_restored(&self, request: &RestoreVolume) -> Result<Restoring> {
        let name = &request.image;
        if let Some(data_pool) = &request.options.data_pool
            && self.elsewhere(data_pool, "")?.is_none()
        {
            return Err(Error::Invalid(format!("the data pool {data_pool} does not exist")));
        }
        // Before the record is written: a retry that finds the record takes the image to be its
        // own.
        if self.is_foreign(name)? {
            return Err(Error::AlreadyExists(format!(
                "the image {} exists, and is no volume of instance {}: choose another name",
                self.spec(name),
                self.instance
            )));
        }
        let record = Volume {
            state: State::Restoring,
            id: request.id.clone(),
            name: name.clone(),
            size: request.size,
            created: now(),
            image_id: None,
            source: None,
            link: None,
            digest: "restored from a backup".to_owned(),
            attempt: uuid::Uuid::new_v4().simple().to_string(),
            delete_with_snapshots: request.delete_with_snapshots,
            clone_format: request.clone_format,
            context: request.context.clone(),
            published: Vec::new(),
            claim: None,
            trash_retention: None,
            adopted: None,
        };
        let stored = self.catalogue.insert_volume(name, record)?;
        let made = self.pool.create_image(name, request.size, &request.options).and_then(|()| {
            let image = self.pool.open_image(ImageKey::Name(name), OpenMode::ReadWrite)?;
            let id = image.id()?;
            Ok((image, id))
        });
        let (image, id) = match made {
            Ok(made) => made,
            Err(error) => {
                let undone = self.destroy(name, &stored);
                self.settle_own();
                undone?;
                return Err(error.into());
            }
        };
        let record = Volume { image_id: Some(id), ..stored.record.clone() };
        let stored = self.catalogue.replace(name, &stored, record)?;
        let (volumes, size) = (self.clone(), request.size);
        Ok(Restoring { volumes, name: name.clone(), stored, image, size, is_new: true })
    }
}

impl Restoring {
    /// The image.
    pub fn image(&self) -> &dyn Image {
        &*self.image
    }

    /// Its bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Hands the volume out.
    pub fn finish(self) -> Result<Volume> {
        let Restoring { volumes, name, stored, image, size, .. } = self;
        drop(image);
        let record = Volume { state: State::Ready, size, ..stored.record.clone() };
        Ok(volumes.catalogue.replace(&name, &stored, record)?.record)
    }

    /// Removes the volume if it was made for this. One that was being overwritten stays as it is,
    /// and is not handed out.
    pub fn abandon(self) -> Result<()> {
        let Restoring { volumes, name, stored, image, is_new, .. } = self;
        drop(image);
        if !is_new {
            return Ok(());
        }
        let undone = volumes.destroy(&name, &stored).map(drop);
        drop(stored);
        volumes.settle_own();
        undone
    }
}
