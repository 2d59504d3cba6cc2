//! Collecting what lost its reason to exist: snapshots made for a clone that is gone, silent parents nobody needs.
//!
//! The rule is *record before drop, collect after*. A suspect stays in the journal until it is settled, so a kill between
//! any two calls here leaves it to the next collect. Two collectors may work at once: every step takes "already gone"
//! for success, and librbd itself refuses to remove what still has a child.

use super::catalogue::{self, State};
use super::journal::Suspect;
use super::names;
use super::{Error, Result, Volumes};
use crate::rbd::{Errno, Image, ImageKey, OpenMode, Pool, Snapshot, SnapshotKind, Tolerate};

/// What became of a suspect.
enum Verdict {
    /// It is gone, or has a reason to exist that does not depend on the drop that made it suspect.
    Settled,
    /// The link that is to be dropped still stands, or something holds it just now.
    Busy,
}

impl Volumes {
    /// Settles every suspect in the journal that can be settled, parents of collected parents included. What is busy stays
    /// in the journal. Fails only when the journal itself cannot be read.
    pub fn collect(&self) -> Result<()> {
        loop {
            let mut settled_some = false;
            for entry in self.journal.entries()? {
                match self.settle(&entry.suspect) {
                    Ok(Verdict::Settled) => {
                        self.journal.forget(&entry)?;
                        settled_some = true;
                    }
                    Ok(Verdict::Busy) => {}
                    Err(error) => {
                        tracing::warn!(suspect = ?entry.suspect, %error, "a suspect stays in the journal");
                    }
                }
            }
            if !settled_some {
                return Ok(());
            }
        }
    }

    /// [`Volumes::collect`] after an operation whose own object is already as it should be: a failure is logged, and what
    /// is left stays in the journal for the next collect.
    pub(super) fn collect_leftovers(&self) {
        if self.journal.was_written()
            && let Err(error) = self.collect()
        {
            tracing::warn!(pool = self.pool.name(), %error, "collecting is left to the next operation");
        }
    }

    fn settle(&self, suspect: &Suspect) -> Result<Verdict> {
        let Some(home) = self.elsewhere(&suspect.pool, &suspect.namespace)? else {
            return Ok(Verdict::Settled);
        };
        let id = suspect.image_id.as_str();
        let image = match home.pool.open_image(ImageKey::Id(id), OpenMode::ReadOnly) {
            Ok(image) => image,
            Err(error) if error.errno == Errno::ENOENT => return home.finish_removal(suspect),
            Err(error) => return Err(error.into()),
        };
        let snapshots = image.snapshots()?;
        if let Some(snapshot) = snapshots.iter().find(|snapshot| Some(snapshot.id) == suspect.snapshot) {
            let children = image.children(Some(snapshot.id))?;
            if children.iter().any(|child| child.image_id == suspect.child) {
                return Ok(Verdict::Busy);
            }
            if !children.is_empty() || !home.may_drop(id, snapshot)? {
                return Ok(Verdict::Settled);
            }
            let writable = match home.pool.open_image(ImageKey::Id(id), OpenMode::ReadWrite) {
                Ok(writable) => writable,
                Err(error) if error.errno == Errno::ENOENT => return home.finish_removal(suspect),
                Err(error) => return Err(error.into()),
            };
            match self.drop_snapshot(&*writable, id, snapshot) {
                Err(error) if error.is(Errno::EBUSY) => return Ok(Verdict::Busy),
                other => other?,
            }
        }
        drop(image);
        self.remove_if_silent(&home, suspect)
    }

    /// Whether the driver made this childless snapshot for a purpose that is over.
    fn may_drop(&self, image_id: &str, snapshot: &Snapshot) -> Result<bool> {
        match snapshot.kind {
            SnapshotKind::User => Ok(names::is_collectable_snapshot(&snapshot.name)
                && !self.is_needed_by_a_creation(image_id, &snapshot.name)?),
            SnapshotKind::Trash { .. } => Ok(true),
            SnapshotKind::Group | SnapshotKind::Mirror => Ok(false),
        }
    }

    /// Whether a CreateVolume that is not finished plans to clone this snapshot, or has just cut it.
    pub(super) fn is_needed_by_a_creation(&self, image_id: &str, snapshot: &str) -> Result<bool> {
        let Some(child) = snapshot.strip_suffix(names::CLONE_SNAPSHOT_SUFFIX) else {
            return Ok(false);
        };
        // `<child>.<n>.clone_snap` is also the plain name for a child `<child>.<n>`: ask for both.
        let numbered = child
            .rsplit_once('.')
            .filter(|(_, number)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
            .map(|(child, _)| child);
        for child in [Some(child), numbered].into_iter().flatten() {
            if self.is_creating_from(child, image_id, snapshot)? {
                return Ok(true);
            }
        }
        let Some(intent) = self.catalogue.intent(image_id, snapshot)? else {
            return Ok(false);
        };
        if let Some(home) = self.elsewhere(&intent.record.pool, &intent.record.namespace)?
            && home.is_creating_from(&intent.record.image, image_id, snapshot)?
        {
            return Ok(true);
        }
        self.catalogue.forget_intent(image_id, snapshot)?;
        Ok(false)
    }

    fn is_creating_from(&self, child: &str, image_id: &str, snapshot: &str) -> Result<bool> {
        Ok(self.catalogue.volume(child)?.is_some_and(|stored| {
            stored.record.state == State::Creating
                && stored
                    .record
                    .link
                    .is_some_and(|link| link.image_id == image_id && link.snapshot == snapshot)
        }))
    }

    /// Removes one snapshot of `image`, protected or not, by its kind. What the snapshot linked to is in the journal first.
    /// `EBUSY` when it has clones of format 1. The caller collects.
    pub(super) fn drop_snapshot(&self, image: &dyn Image, id: &str, snapshot: &Snapshot) -> Result<()> {
        if let Some(parent) = image.parent(Some(snapshot.id))? {
            self.journal.add(&[Suspect::link(parent, id)])?;
        }
        if snapshot.protected {
            image.unprotect_snapshot(&snapshot.name).tolerate(Errno::EINVAL)?;
        }
        match snapshot.kind {
            SnapshotKind::User => image.remove_snapshot(&snapshot.name).tolerate(Errno::ENOENT)?,
            SnapshotKind::Trash { .. } => image.remove_snapshot_by_id(snapshot.id).tolerate(Errno::ENOENT)?,
            // librbd's own: a group's or a mirror's. Never touched.
            SnapshotKind::Group | SnapshotKind::Mirror => {}
        }
        Ok(())
    }

    /// Removes the suspect if it is a silent parent of ours without a snapshot; `home` is where it lives.
    fn remove_if_silent(&self, home: &Volumes, suspect: &Suspect) -> Result<Verdict> {
        let id = suspect.image_id.as_str();
        let image = match home.pool.open_image(ImageKey::Id(id), OpenMode::ReadOnly) {
            Ok(image) => image,
            Err(error) if error.errno == Errno::ENOENT => return home.finish_removal(suspect),
            Err(error) => return Err(error.into()),
        };
        let name = image.name()?;
        if !name.ends_with(names::SILENT_SUFFIX) {
            return Ok(Verdict::Settled);
        }
        let volume = names::before_silence(&name, id);
        if home.catalogue.silent(volume, id)?.is_none() {
            // Renamed, but its DeleteVolume has not come to its last write: that one, or its retry, settles it.
            // Any other image of such a name is foreign.
            return Ok(match home.catalogue.volume(volume)? {
                Some(stored) if stored.record.state == State::Deleting => Verdict::Busy,
                _ => Verdict::Settled,
            });
        }
        if !image.snapshots()?.is_empty() {
            return Ok(Verdict::Settled);
        }
        self.journal.add(&Self::links(&*image, id, &[])?)?;
        drop(image);
        match home.pool.remove_image(&name) {
            Ok(()) => {}
            Err(error) if error.errno == Errno::ENOENT => {}
            Err(error) if matches!(error.errno, Errno::EBUSY | Errno::ENOTEMPTY) => return Ok(Verdict::Busy),
            Err(error) => return Err(error.into()),
        }
        home.catalogue.forget_silent(volume, id)?;
        Ok(Verdict::Settled)
    }

    /// The suspect's image does not open: it is gone, or a removal of it was interrupted. Finishes the removal, and takes
    /// care never to touch another image that has its name now.
    fn finish_removal(&self, suspect: &Suspect) -> Result<Verdict> {
        let id = suspect.image_id.as_str();
        let volume = names::before_silence(&suspect.image, id);
        if self.pool.trash_get(id)?.is_some_and(|entry| entry.removing) {
            self.pool.trash_remove(id, true).tolerate(Errno::ENOENT)?;
        }
        for name in [suspect.image.clone(), names::silent(volume), names::silent_with_id(volume, id)] {
            finish_removal_by_name(&*self.pool, &self.catalogue, &name, id)?;
        }
        self.catalogue.forget_silent(volume, id)?;
        Ok(Verdict::Settled)
    }
}

/// Removes what an interrupted removal left under `name`, if it is of the image `id` or of no image any more.
fn finish_removal_by_name(
    pool: &dyn Pool,
    catalogue: &catalogue::Catalogue,
    name: &str,
    id: &str,
) -> Result<()> {
    let ours = match pool.image_id(name)? {
        Some(found) => found == id,
        // A name whose record exists is being created or removed by its own RPC, which finishes it.
        None => catalogue.volume(name)?.is_none(),
    };
    if ours {
        pool.remove_image(name).tolerate(Errno::ENOENT).map_err(Error::from)?;
    }
    Ok(())
}
