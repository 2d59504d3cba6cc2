//! What `rbd migration` does to the images of volumes and to silent parents.
//!
//! A migration makes a new image, of the same name and with the same snapshots, each with a new id.
//! It has three steps, and hours may pass between them: `prepare` puts the old image into the
//! trash, has the clones link to the new one, and the new one read through to the old one;
//! `execute` copies; `commit` removes the old one. Records and journal entries keep the old ids.
//! From `prepare` on, the new image is what a record or an entry is about.
//!
//! One kind of image is not followed: a silent parent that was adopted under a name of its own. It
//! is another tool's once it was migrated, and nothing collects it.

use super::catalogue::{self, Cursor, Silent, State, Stored};
use super::collect::is_collectable;
use super::journal::Suspect;
use super::{Result, Volumes, names};
use crate::rbd::{Errno, Features, Image, ImageKey, OpenMode};
use std::collections::BTreeMap;

impl Volumes {
    /// Opens the image `id`. `None` when it is gone, or a migration has put another in its place.
    pub(super) fn open_unless_migrated(
        &self,
        id: &str,
        mode: OpenMode,
    ) -> Result<Option<Box<dyn Image>>> {
        let image = match self.pool.open_image(ImageKey::Id(id), mode) {
            Ok(image) => image,
            Err(error) if error.errno == Errno::ENOENT => return Ok(None),
            // An image under migration opens for reading alone.
            Err(error) if error.errno == Errno::EROFS && self.is_migrating(id)? => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let replaced =
            image.info()?.features.contains(Features::MIGRATING) && self.is_migrating(id)?;
        Ok((!replaced).then_some(image))
    }

    /// Whether a migration reads the image `id`, and has put another in its place.
    fn is_migrating(&self, id: &str) -> Result<bool> {
        Ok(self.pool.trash_get(id)?.is_some_and(|entry| entry.migrating))
    }

    /// Whether no image has this id, in the trash either, or a migration has put another in its
    /// place.
    pub(super) fn is_replaced_or_gone(&self, id: &str) -> Result<bool> {
        Ok(self.open_unless_migrated(id, OpenMode::ReadOnly)?.is_none()
            && self.pool.trash_get(id)?.is_none_or(|entry| entry.migrating))
    }

    /// Whether a snapshot's record is about a snapshot of the image `id`: the recorded image, or
    /// the one in its place.
    pub(super) fn is_recorded_on(&self, record: &catalogue::Snapshot, id: &str) -> Result<bool> {
        Ok(record.image_id == id || self.is_replaced_or_gone(&record.image_id)?)
    }

    /// The record of the silent parent `name` with the id `id`, and the name that its volume's
    /// image had. `None` when the image is no silent parent of this driver.
    pub(super) fn silent_parent(
        &self,
        name: &str,
        id: &str,
    ) -> Result<Option<(String, Stored<Silent>)>> {
        let volume = names::before_silence(name, id);
        let silent = self.catalogue.silent(volume, id)?;
        if !name.ends_with(names::SILENT_SUFFIX) {
            let adopted = silent.filter(|silent| silent.record.image.as_deref() == Some(name));
            return Ok(adopted.map(|silent| (volume.to_string(), silent)));
        }
        if let Some(silent) = silent {
            return Ok(Some((volume.to_string(), silent)));
        }
        // A volume that is on its way to its note, or back: another's note is not about it.
        let stored = self.catalogue.volume(volume)?;
        if stored.is_some_and(|stored| stored.record.image_id.as_deref() == Some(id)) {
            return Ok(None);
        }
        let all = self.catalogue.list(&Cursor::default(), 0)?.0.into_iter().collect();
        self.migrated_silent_parent(name, &all)
    }

    /// [`Volumes::silent_parent`] of an image whose id has no record: among `all` that the
    /// catalogue knows by their ids, the one in whose place it is.
    pub(super) fn migrated_silent_parent(
        &self,
        name: &str,
        all: &BTreeMap<String, Stored<Silent>>,
    ) -> Result<Option<(String, Stored<Silent>)>> {
        if !name.ends_with(names::SILENT_SUFFIX) {
            return Ok(None);
        }
        for (old_id, silent) in all {
            // Volume ids end in the image's name.
            let volume = silent.record.volume.rsplit('/').next().unwrap_or_default();
            if names::before_silence(name, old_id) == volume && self.is_replaced_or_gone(old_id)? {
                return Ok(Some((volume.to_string(), silent.clone())));
            }
        }
        Ok(None)
    }

    /// Whether the image of a suspect, which was of `volume` and does not open, was migrated. Then
    /// the image in its place is suspect, with all of its snapshots that are made for clones:
    /// theirs have new ids.
    pub(super) fn is_followed(
        &self,
        suspect: &Suspect,
        volume: &str,
        was_silent: Option<&Silent>,
    ) -> Result<bool> {
        let old = &suspect.image_id;
        let names = if was_silent.is_some_and(|silent| silent.image.is_some()) {
            Vec::new()
        } else if was_silent.is_some() {
            vec![names::silent(volume), names::silent_with_id(volume, old)]
        } else {
            let stored = self.catalogue.volume(volume)?;
            let is_its = stored.is_some_and(|stored| {
                stored.record.state == State::Ready && stored.record.image_id.as_ref() == Some(old)
            });
            if is_its { vec![volume.to_string()] } else { Vec::new() }
        };
        for name in names {
            let Some(new) = self.pool.image_id(&name)?.filter(|new| new != old) else { continue };
            if was_silent.is_some() {
                // One with a note of its own is a later volume's.
                let noted = self.catalogue.silent(names::before_silence(&name, &new), &new)?;
                if noted.is_some() || self.silent_parent(&name, &new)?.is_none() {
                    continue;
                }
            }
            let image = self.pool.open_image(ImageKey::Id(&new), OpenMode::ReadOnly)?;
            let snapshots = image.snapshots()?;
            let ids = snapshots.iter().filter(|it| is_collectable(it)).map(|it| Some(it.id));
            let suspects: Vec<_> = ids
                .chain([None])
                .map(|snapshot| Suspect { snapshot, ..self.as_suspect(&name, &new) })
                .collect();
            self.suspect(&suspects)?;
            return Ok(true);
        }
        Ok(false)
    }
}
