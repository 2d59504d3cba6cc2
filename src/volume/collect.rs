//! Collecting what lost its reason to exist: snapshots made for a clone that is gone, silent parents nobody needs.
//!
//! The rule is *record before drop, collect after*. A suspect stays in the journal until it is settled, so a kill between
//! any two calls here leaves it to the next collect. Two collectors may work at once: every step takes "already gone"
//! for success, and librbd itself refuses to remove what still has a child.

use super::catalogue::{State, Volume};
use super::journal::{Child, Suspect};
use super::names;
use super::{Error, Result, Volumes};
use crate::rbd::{Errno, Image, ImageKey, OpenMode, Parent, Snapshot, SnapshotId, SnapshotKind, Tolerate};
use std::collections::BTreeSet;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// For how long an operation waits for an image that somebody has open.
const IN_USE: Duration = Duration::from_secs(1);
/// How long before an operation that waits for another controller looks again.
const PAUSE: Duration = Duration::from_millis(50);

/// The suspects of one operation.
#[derive(Debug, Default)]
pub(super) struct Suspected {
    /// The pools and namespaces in whose journals it wrote some, or an earlier attempt may have.
    places: BTreeSet<(String, String)>,
    /// Ids of the images that must not be left to another operation: it wrote suspects about them, or has just set them free.
    own: BTreeSet<String>,
    /// The image that it removes, whose lease it holds.
    destroyed: Option<String>,
}

/// What became of a suspect.
enum Verdict {
    /// It is gone, or has a reason to exist that does not depend on the drop that made it suspect.
    Settled,
    /// The link that is to be dropped still stands, or something holds it just now. Or it hangs on a creation, which may let
    /// go of it before it is finished: a clone is flattened while its record says `creating`.
    Busy,
    /// It is to go, and somebody has it open just now.
    InUse,
}

impl Volumes {
    /// Writes down, each where it lives, what is about to lose a child or has lost its last snapshot.
    pub(super) fn suspect(&self, suspects: &[Suspect]) -> Result<()> {
        for place in places(suspects) {
            // A pool that is gone has no suspects any more.
            let Some(home) = self.elsewhere(&place.0, &place.1)? else { continue };
            let here: Vec<_> = suspects.iter().filter(|suspect| is_at(suspect, &place)).cloned().collect();
            home.journal.add(&here)?;
            let mut suspected = self.suspected();
            suspected.own.extend(here.into_iter().map(|suspect| suspect.image_id));
            suspected.places.insert(place);
        }
        Ok(())
    }

    /// Settles every suspect that can be settled, parents of collected parents included: those in the journal here, and where
    /// this operation wrote some, or comes to write some. What is busy stays in its journal. Fails only when a journal
    /// cannot be read.
    ///
    /// Several operations of this process that collect at once do not open one image at the same time, for they would keep
    /// taking its lock from each other. They wait for each other where the image is their own, and leave it to that one otherwise.
    pub fn collect(&self) -> Result<()> {
        let here = (self.pool.name().to_string(), self.pool.namespace().to_string());
        loop {
            let mut places = self.suspected().places.clone();
            places.insert(here.clone());
            let mut settled_some = false;
            for (pool, namespace) in places {
                let Some(home) = self.elsewhere(&pool, &namespace)? else { continue };
                for entry in home.journal.entries()? {
                    self.activity.tidies_up();
                    let what = format!("suspects of {}", entry.suspect.image_id);
                    let turn = match self.process.turns.try_take(&what) {
                        None if !self.suspected().own.contains(&entry.suspect.image_id) => continue,
                        None => {
                            let turn = self.process.turns.take(&what, self.process.patience);
                            if !home.journal.holds(&entry)? {
                                continue;
                            }
                            turn
                        }
                        turn => turn,
                    };
                    match home.settle_in_turn(&entry.suspect) {
                        Ok(Verdict::Settled) => {
                            home.journal.forget(&entry)?;
                            settled_some = true;
                        }
                        Ok(Verdict::Busy | Verdict::InUse) => {}
                        Err(error) => {
                            tracing::warn!(suspect = ?entry.suspect, %error, "a suspect stays in the journal");
                        }
                    }
                    drop(turn);
                }
            }
            if !settled_some {
                return Ok(());
            }
        }
    }

    /// Has this operation collect here and where the source of `record` is: an earlier attempt may have been killed before it
    /// collected what it had set free.
    pub(super) fn take_up(&self, record: &Volume) {
        let places = &mut self.suspected().places;
        places.insert((self.pool.name().to_string(), self.pool.namespace().to_string()));
        if let Some(link) = &record.link {
            places.insert((link.pool.clone(), link.namespace.clone()));
        }
    }

    /// Has this operation settle what others suspect of the image `id`: until now they found it busy.
    pub(super) fn now_free(&self, id: &str) {
        self.suspected().own.insert(id.to_string());
    }

    /// [`Volumes::collect`] after an operation whose own object is already as it should be: a failure is logged, and what
    /// is left stays in the journal for the next collect.
    pub(super) fn collect_leftovers(&self) {
        if let Err(error) = self.collect() {
            tracing::warn!(pool = self.pool.name(), %error, "collecting is left to the next operation");
        }
    }

    /// [`Volumes::collect_leftovers`], if this operation wrote any suspect.
    pub(super) fn collect_own_leftovers(&self) {
        if !self.suspected().places.is_empty() {
            self.collect_leftovers();
        }
    }

    fn suspected(&self) -> MutexGuard<'_, Suspected> {
        self.suspected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a DeleteVolume that is not this operation has the image `id` to remove.
    fn is_destroyed_by_another(&self, record: &Volume, id: &str) -> bool {
        record.state == State::Deleting
            && record.image_id.as_deref() == Some(id)
            && self.suspected().destroyed.as_deref() != Some(id)
    }

    /// Has this operation finish the removal of the image `id` itself.
    pub(super) fn destroys(&self, id: &str) {
        self.suspected().destroyed = Some(id.to_string());
    }

    /// Settles a suspect that lives here. Waits for another controller that has it open or is removing it, if it is this
    /// operation's own: nobody else might come back to it.
    fn settle_in_turn(&self, suspect: &Suspect) -> Result<Verdict> {
        let begun = Instant::now();
        loop {
            let verdict = self.settle(suspect);
            let patience = match verdict {
                Err(Error::Conflict(_)) => self.process.patience,
                // A client that died has it open for half a minute.
                Ok(Verdict::InUse) => self.process.patience.min(IN_USE),
                _ => return verdict,
            };
            if begun.elapsed() >= patience || !self.suspected().own.contains(&suspect.image_id) {
                return verdict;
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Settles a suspect that lives here.
    fn settle(&self, suspect: &Suspect) -> Result<Verdict> {
        let id = suspect.image_id.as_str();
        let mode = if suspect.snapshot.is_some() { OpenMode::ReadWrite } else { OpenMode::ReadOnly };
        let image = match self.pool.open_image(ImageKey::Id(id), mode) {
            Ok(image) => image,
            Err(error) if error.errno == Errno::ENOENT => return self.finish_removal(suspect),
            Err(error) => return Err(error.into()),
        };
        let snapshots = image.snapshots()?;
        if let Some(snapshot) = snapshots.iter().find(|snapshot| Some(snapshot.id) == suspect.snapshot) {
            let children = match image.children(Some(snapshot.id)) {
                Err(error)
                    if error.errno == Errno::EPERM
                        && self.is_surely_childless(&*image, suspect, snapshot)? =>
                {
                    Vec::new()
                }
                children => children?,
            };
            let links = |child: &Child| children.iter().any(|listed| listed.image_id == child.image_id);
            if suspect.child.as_ref().is_some_and(links) {
                return Ok(Verdict::Busy);
            }
            if suspect.child.as_ref().is_some_and(|child| child.flattened) {
                self.finish_flattens(id, snapshot.id)?;
            }
            if !is_collectable(snapshot) {
                return Ok(Verdict::Settled);
            }
            if !children.is_empty() {
                // A clone of ours comes back here when it goes. Other tools' clones go without a word.
                return Ok(if self.is_any_ours(&children)? { Verdict::Settled } else { Verdict::Busy });
            }
            self.refuse_unchangeable(&*image)?;
            if self.is_needed_by_a_creation(id, &snapshot.name)? {
                return Ok(Verdict::Busy);
            }
            match self.drop_snapshot(&*image, id, snapshot) {
                Err(error) if error.is(Errno::EBUSY) => return Ok(Verdict::Busy),
                other => other?,
            }
        }
        self.remove_if_silent(image, id)
    }

    /// Whether a snapshot that was cut for a clone has none, although the user may not ask for its clones (that takes a look at the
    /// object `rbd_children` of every pool): the clone it was cut for is gone. Should another tool have cloned it, librbd keeps it for
    /// that clone.
    fn is_surely_childless(&self, image: &dyn Image, suspect: &Suspect, snapshot: &Snapshot) -> Result<bool> {
        if snapshot.kind != SnapshotKind::User
            || snapshot.protected
            || !snapshot.name.ends_with(names::CLONE_SNAPSHOT_SUFFIX)
        {
            return Ok(false);
        }
        // The last link to a parent would be cut with the snapshot.
        let parent = Self::parent_of(image, snapshot)?;
        if parent.is_some() && image.parent(None)? != parent {
            return Ok(false);
        }
        let Some(child) = &suspect.child else { return Ok(true) };
        let Some(home) = self.elsewhere(&child.pool, &child.namespace)? else { return Ok(true) };
        match home.pool.open_image(ImageKey::Id(&child.image_id), OpenMode::ReadOnly) {
            Ok(_) => Ok(false),
            Err(error) if error.errno == Errno::ENOENT => Ok(home.pool.trash_get(&child.image_id)?.is_none()),
            Err(error) => Err(error.into()),
        }
    }

    /// Finishes the flattens that were killed between the two ends of a link to this snapshot, which lists no clone any more
    /// although such a child cannot be opened without it.
    fn finish_flattens(&self, id: &str, snapshot: SnapshotId) -> Result<()> {
        for entry in self.journal.entries_of(id, snapshot)? {
            let Some(child) = entry.suspect.child.filter(|child| child.flattened) else { continue };
            let Some(home) = self.elsewhere(&child.pool, &child.namespace)? else { continue };
            let image = match home.pool.open_image(ImageKey::Id(&child.image_id), OpenMode::ReadWrite) {
                Ok(image) => image,
                Err(error) if error.errno == Errno::ENOENT => continue,
                Err(error) => return Err(error.into()),
            };
            let still = image.parent(None)?;
            if still.is_some_and(|parent| parent.image_id == id && parent.snapshot_id == snapshot) {
                home.flatten_noted(&*image)?;
            }
        }
        Ok(())
    }

    /// Whether a CreateVolume here that is not finished plans to clone this snapshot, or has just cut it. One in another pool
    /// is not seen: if its snapshot goes before it is cloned, it fails, and its retry finds the source or does not.
    pub(super) fn is_needed_by_a_creation(&self, image_id: &str, snapshot: &str) -> Result<bool> {
        Ok(self.creation_that_needs(image_id, snapshot)?.is_some())
    }

    /// The image name of the volume that [`Volumes::is_needed_by_a_creation`] finds.
    pub(super) fn creation_that_needs(&self, image_id: &str, snapshot: &str) -> Result<Option<String>> {
        let Some(child) = snapshot.strip_suffix(names::CLONE_SNAPSHOT_SUFFIX) else {
            return Ok(None);
        };
        // `<child>.<n>.clone_snap` is also the plain name for a child `<child>.<n>`: ask for both.
        let numbered = child
            .rsplit_once('.')
            .filter(|(_, number)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
            .map(|(child, _)| child);
        for child in [Some(child), numbered].into_iter().flatten() {
            if self.is_creating_from(child, image_id, snapshot)? {
                return Ok(Some(child.to_string()));
            }
        }
        Ok(None)
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

    /// Removes one snapshot of `image`, which is here, protected or not. What the snapshot links to is in the journal first.
    /// `EBUSY` when it has clones of format 1. The caller collects.
    pub(super) fn drop_snapshot(&self, image: &dyn Image, id: &str, snapshot: &Snapshot) -> Result<()> {
        self.drop_linked(image, id, snapshot, Self::parent_of(image, snapshot)?)
    }

    /// [`Volumes::drop_snapshot`] of one that links to `parent`.
    pub(super) fn drop_linked(
        &self,
        image: &dyn Image,
        id: &str,
        snapshot: &Snapshot,
        parent: Option<Parent>,
    ) -> Result<()> {
        self.finish_flattens(id, snapshot.id)?;
        // A link the head has too stands on, and is in the journal before the head lets go of it.
        if let Some(parent) = parent
            && image.parent(None)?.as_ref() != Some(&parent)
        {
            self.suspect(&[Suspect::link(parent, self.child(id))])?;
        }
        if snapshot.protected {
            image.unprotect_snapshot(&snapshot.name).tolerate(Errno::EINVAL).tolerate(Errno::ENOENT)?;
        }
        Ok(image.remove_snapshot_by_id(snapshot.id).tolerate(Errno::ENOENT)?)
    }

    /// Removes the image `id`, whose name is or was `name`; fine when it is gone. librbd may be set up for the pool to move an
    /// image to the trash in place of removing it (`rbd_move_to_trash_on_remove`): then it is removed from there. Errors as
    /// [`crate::rbd::Pool::remove_image`], with the image under its name.
    pub(super) fn remove_for_good(&self, name: &str, id: &str) -> crate::rbd::Result<()> {
        self.remove_image(name).tolerate(Errno::ENOENT)?;
        if self.pool.trash_get(id)?.is_none_or(|entry| entry.removing) {
            return Ok(());
        }
        let removed = match self.pool.trash_remove_with_progress(id, true, &mut self.activity.progress()) {
            // The move was interrupted, and is finished by its name.
            Err(error) if error.errno == Errno::EUCLEAN => {
                self.pool.trash_move(name, 0)?;
                self.pool.trash_remove_with_progress(id, true, &mut self.activity.progress())
            }
            other => other,
        };
        match removed.tolerate(Errno::ENOENT) {
            Err(error) if matches!(error.errno, Errno::ENOTEMPTY | Errno::EBUSY) => {
                self.pool.trash_restore(id, name)?;
                Err(error)
            }
            other => other,
        }
    }

    /// Whether this driver knows any of these clones, so that it looks at their snapshot again when the clone goes.
    pub(super) fn is_any_ours(&self, clones: &[crate::rbd::Child]) -> Result<bool> {
        for clone in clones {
            let Some(home) = self.elsewhere(&clone.pool, &clone.namespace)? else { continue };
            let volume = home.catalogue.volume(&clone.image)?;
            let id = &clone.image_id;
            let is_it = |record: &Volume| record.image_id.as_ref().is_none_or(|known| known == id);
            if volume.is_some_and(|stored| is_it(&stored.record))
                || home.catalogue.silent(names::before_silence(&clone.image, id), id)?.is_some()
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether any of these snapshots of the silent parent `id` is one whose removal has this driver look at the image again: one
    /// that users see, or one cut for clones, about which the journal has an entry when its clones are not ours.
    pub(super) fn is_any_expected(&self, id: &str, snapshots: &[Snapshot]) -> Result<bool> {
        for snapshot in snapshots {
            if is_collectable(snapshot) || self.is_listed(id, snapshot)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the catalogue has a record of this snapshot of the image `id`.
    pub(super) fn is_listed(&self, id: &str, snapshot: &Snapshot) -> Result<bool> {
        if snapshot.kind != SnapshotKind::User {
            return Ok(false);
        }
        let stored = self.catalogue.snapshot(&snapshot.name)?;
        Ok(stored.is_some_and(|stored| stored.record.image_id == id))
    }

    /// What a snapshot links to. None also when that is gone: an earlier attempt to drop the snapshot has let go of it, with the
    /// link in the journal.
    pub(super) fn parent_of(image: &dyn Image, snapshot: &Snapshot) -> Result<Option<Parent>> {
        match image.parent(Some(snapshot.id)) {
            Err(error) if error.errno == Errno::ENOENT => Ok(None),
            other => Ok(other?),
        }
    }

    /// Removes the image if it is a silent parent of ours without a snapshot.
    fn remove_if_silent(&self, image: Box<dyn Image>, id: &str) -> Result<Verdict> {
        let name = image.name()?;
        if !name.ends_with(names::SILENT_SUFFIX) {
            return Ok(Verdict::Settled);
        }
        let volume = names::before_silence(&name, id);
        let Some(silent) = self.catalogue.silent(volume, id)? else {
            // Renamed, but its DeleteVolume has not come to its last write: that one, or its retry, settles it.
            // Any other image of such a name is foreign.
            return Ok(match self.catalogue.volume(volume)? {
                Some(stored) if stored.record.state == State::Deleting => Verdict::Busy,
                _ => Verdict::Settled,
            });
        };
        let mut snapshots = image.snapshots()?;
        // librbd removes those of a mirror along with the image.
        snapshots.retain(|snapshot| snapshot.kind != SnapshotKind::Mirror);
        if !snapshots.is_empty() {
            // The entry stays when nothing this driver does would bring it back here: other tools' snapshots go without a word.
            let comes_back = self.is_any_expected(id, &snapshots)?;
            return Ok(if comes_back { Verdict::Settled } else { Verdict::Busy });
        }
        self.refuse_unremovable(&*image)?;
        self.suspect(&self.links(&*image, id, &[])?)?;
        drop(image);
        // librbd does not stand two removals of one image at once.
        let silent = self.catalogue.claim(volume, &silent)?;
        match self.remove_for_good(&name, id) {
            Ok(()) => {}
            Err(error) if error.errno == Errno::EBUSY => return Ok(Verdict::InUse),
            // A clone was made meanwhile.
            Err(error) if error.errno == Errno::ENOTEMPTY => return Ok(Verdict::Busy),
            Err(error) => return Err(error.into()),
        }
        self.catalogue.remove(volume, &silent)?;
        Ok(Verdict::Settled)
    }

    /// The suspect's image does not open: it is gone, or a removal of it was interrupted. Finishes the removal, of silent
    /// parents by the names they may have; a volume's own is its DeleteVolume's to finish.
    fn finish_removal(&self, suspect: &Suspect) -> Result<Verdict> {
        let id = suspect.image_id.as_str();
        let volume = names::before_silence(&suspect.image, id);
        let silent = self.catalogue.silent(volume, id)?;
        // librbd does not stand two removals of one image at once: whoever is at it holds a lease.
        let silent = silent.map(|silent| self.catalogue.claim(volume, &silent)).transpose()?;
        // What lies in the trash otherwise was moved there by somebody, or by librbd in place of a removal of ours.
        if self.pool.trash_get(id)?.is_some_and(|entry| entry.removing || silent.is_some()) {
            let _claimed = match self.catalogue.volume(volume)? {
                Some(stored) if self.is_destroyed_by_another(&stored.record, id) => {
                    Some(self.catalogue.claim(volume, &stored)?)
                }
                _ => None,
            };
            self.activity.begin(format!("removing {}", self.spec(&suspect.image)));
            let progress = &mut self.activity.progress();
            self.pool.trash_remove_with_progress(id, true, progress).tolerate(Errno::ENOENT)?;
        }
        let Some(silent) = silent else {
            return Ok(Verdict::Settled);
        };
        for name in [names::silent(volume), names::silent_with_id(volume, id)] {
            if self.pool.image_id(&name)?.is_none_or(|found| found == id) {
                self.remove_for_good(&name, id)?;
            }
        }
        self.catalogue.remove(volume, &silent)?;
        Ok(Verdict::Settled)
    }
}

/// Whether the driver made this snapshot for its clones alone.
pub(super) fn is_collectable(snapshot: &Snapshot) -> bool {
    match snapshot.kind {
        SnapshotKind::User => names::is_collectable_snapshot(&snapshot.name),
        SnapshotKind::Trash { .. } => true,
        SnapshotKind::Group | SnapshotKind::Mirror | SnapshotKind::Unknown => false,
    }
}

/// The pools and namespaces the suspects live in.
fn places(suspects: &[Suspect]) -> BTreeSet<(String, String)> {
    suspects.iter().map(|suspect| (suspect.pool.clone(), suspect.namespace.clone())).collect()
}

fn is_at(suspect: &Suspect, (pool, namespace): &(String, String)) -> bool {
    suspect.pool == *pool && suspect.namespace == *namespace
}
