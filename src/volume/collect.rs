//! Collecting what lost its reason to exist: snapshots made for a clone that is gone, silent
//! parents that nothing needs.
//!
//! The rule is *record before drop, collect after*. A suspect stays in the journal until it is
//! settled, so a kill between any two calls here leaves it to the sweeper. An operation settles
//! what it wrote itself, after its answer; the sweeper (`sweep`) finds everything else. Two
//! processes may settle one suspect at the same time: every step takes "already gone" for success,
//! librbd refuses to remove what still has a child, and a removal is done under a lease.

use super::catalogue::{Silent, State};
use super::delete::is_large;
use super::journal::{Child, Entry, Suspect};
use super::names;
use super::{Error, Result, Volumes, now};
use crate::rbd::{
    Errno, Image, ImageKey, OpenMode, Parent, Snapshot, SnapshotId, SnapshotKind, Tolerate,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// What became of a suspect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It has a reason to exist that does not depend on the drop that made it suspect.
    Kept,
    /// It is gone. Its image may be unneeded too.
    Gone,
    /// The link that is to be dropped still stands, or something has it open just now. Or it hangs
    /// on a creation, which may let go of it before it is finished: a clone is flattened while its
    /// record says `creating`.
    Busy,
}

/// Suspects about one image, or about one snapshot of it.
type Group<K> = BTreeMap<K, Vec<Entry>>;

impl Volumes {
    /// Writes down, each where it lives and where the operation began, what is about to lose a
    /// child or has lost its last snapshot.
    pub(super) fn suspect(&self, suspects: &[Suspect]) -> Result<()> {
        let mut places: BTreeMap<_, Vec<Entry>> = BTreeMap::new();
        for suspect in suspects {
            let is_flattened = suspect.child.as_ref().is_some_and(|child| child.flattened);
            // Nothing foreign is collected.
            if !suspect.is_foreign || is_flattened {
                places.entry(suspect.home()).or_default().push(Entry::new(suspect.clone()));
            }
        }
        for ((pool, namespace), entries) in places {
            // A pool that is gone has no suspects any more.
            let Some(home) = self.elsewhere(pool, namespace)? else { continue };
            if !self.origin.is_of(pool, namespace) {
                self.origin.add(&entries)?;
            }
            home.journal.add(&entries)?;
            self.suspected.lock().unwrap_or_else(PoisonError::into_inner).extend(entries);
        }
        Ok(())
    }

    /// Forgets an entry that is settled and lives here.
    fn forget(&self, entry: &Entry) -> Result<()> {
        self.journal.forget(entry)?;
        let (pool, namespace) = entry.suspect.home();
        if self.origin.is_of(pool, namespace) { Ok(()) } else { self.origin.forget(entry) }
    }

    /// What this operation wrote into journals and has not settled, to be given to
    /// [`Volumes::settle`] once.
    pub fn take_suspects(&self) -> Vec<Entry> {
        std::mem::take(&mut *self.suspected.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Settles what this operation wrote into journals.
    pub fn settle_own(&self) {
        self.settle(self.take_suspects());
    }

    /// Settles suspects, wherever they live, and what becomes suspect by that: parents of collected
    /// parents. Returns those that are busy or could not be settled, which stay in their journals;
    /// errors are logged.
    pub fn settle(&self, entries: Vec<Entry>) -> Vec<Entry> {
        let mut todo = entries;
        let mut left = Vec::new();
        while !todo.is_empty() {
            left.extend(self.settle_some(todo));
            todo = self.take_suspects();
        }
        left
    }

    /// Settles suspects, wherever they live. What becomes suspect by that is the caller's to take.
    /// Returns those that are busy or could not be settled.
    pub fn settle_some(&self, entries: Vec<Entry>) -> Vec<Entry> {
        let mut images = Group::new();
        let (foreign, own): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|entry| entry.suspect.is_foreign);
        for entry in own {
            images.entry(entry.image()).or_default().push(entry);
        }
        let images: Vec<_> = images.into_iter().collect();
        let threads = (self.process.at_once / images.len().max(1)).max(1);
        let unsettled = Mutex::new(Vec::new());
        in_parallel(&foreign, self.process.at_once, |entry| {
            let settled = self.settle_foreign(entry).unwrap_or_else(|error| {
                tracing::warn!(image = entry.suspect.image, %error, "a flatten stays in the journal");
                false
            });
            if !settled {
                unsettled.lock().unwrap_or_else(PoisonError::into_inner).push(entry.clone());
            }
        });
        in_parallel(&images, self.process.at_once, |((pool, namespace, id), entries)| {
            let settled = match self.elsewhere(pool, namespace) {
                // A pool that is gone has no suspects any more.
                Ok(None) => {
                    entries.iter().try_for_each(|entry| self.origin.forget(entry)).map(|()| vec![])
                }
                Ok(Some(home)) => home.settle_image(id, entries, threads),
                Err(error) => Err(error),
            };
            let left = settled.unwrap_or_else(|error| {
                tracing::warn!(pool, namespace, id, %error, "suspects stay in the journal");
                entries.clone()
            });
            unsettled.lock().unwrap_or_else(PoisonError::into_inner).extend(left);
        });
        unsettled.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finishes the flatten of a clone of a foreign image, and says whether it is finished. Of the
    /// image itself nothing is changed.
    fn settle_foreign(&self, entry: &Entry) -> Result<bool> {
        let Suspect { pool, namespace, image_id, snapshot, child, .. } = &entry.suspect;
        let (child_pool, child_namespace) = entry.suspect.home();
        let Some(home) = self.elsewhere(child_pool, child_namespace)? else {
            return self.origin.forget(entry).map(|()| true);
        };
        if let (Some(snapshot), Some(child)) = (snapshot, child) {
            let children = match self.elsewhere(pool, namespace)? {
                Some(place) => {
                    match place.pool.open_image(ImageKey::Id(image_id), OpenMode::ReadOnly) {
                        Ok(image) => place.clones(&*image, image_id, *snapshot)?,
                        Err(error) if error.errno == Errno::ENOENT => Vec::new(),
                        Err(error) => return Err(error.into()),
                    }
                }
                None => Vec::new(),
            };
            if children.iter().any(|listed| listed.image_id == child.image_id) {
                return Ok(false);
            }
            home.finish_flatten(image_id, *snapshot, &entry.suspect)?;
        }
        home.forget(entry).map(|()| true)
    }

    /// Settles suspects about the image `id`, which is here: its snapshots first, so many at once,
    /// then itself. Returns those that are busy.
    fn settle_image(&self, id: &str, entries: &[Entry], threads: usize) -> Result<Vec<Entry>> {
        // The image's own deletion waits for this, and the other way round.
        let Some(_guard) = self.process.images.lock(&self.image_key(id), self.process.patience)
        else {
            return Ok(entries.to_vec());
        };
        let mut suspects: Group<Option<SnapshotId>> = Group::new();
        for entry in entries {
            suspects.entry(entry.suspect.snapshot).or_default().push(entry.clone());
        }
        let mode = if suspects.keys().any(Option::is_some) {
            OpenMode::ReadWrite
        } else {
            OpenMode::ReadOnly
        };
        let Some(image) = self.open_unless_migrated(id, mode)? else {
            // The names it may have come from the entries.
            for entry in entries {
                self.finish_removal(&entry.suspect)?;
                self.forget(entry)?;
            }
            return Ok(Vec::new());
        };
        let snapshots = image.snapshots()?;
        let verdicts = Mutex::new(Vec::new());
        let suspects: Vec<_> = suspects.into_iter().collect();
        in_parallel(&suspects, threads, |(snapshot, entries)| {
            let found = snapshots.iter().find(|found| Some(found.id) == *snapshot);
            let settled = match found {
                None => Ok(all(Verdict::Gone, entries)),
                Some(found) => self.settle_snapshot(&*image, id, found, entries),
            };
            let settled = settled.unwrap_or_else(|error| {
                tracing::warn!(id, ?snapshot, %error, "a suspect stays in the journal");
                all(Verdict::Busy, entries)
            });
            verdicts.lock().unwrap_or_else(PoisonError::into_inner).extend(settled);
        });
        let verdicts = verdicts.into_inner().unwrap_or_else(PoisonError::into_inner);
        let gone = verdicts.iter().any(|(verdict, _)| *verdict == Verdict::Gone);
        let image_is_busy = gone && self.remove_if_silent(image, id)? == Verdict::Busy;
        let mut busy = Vec::new();
        for (verdict, entry) in verdicts {
            if verdict == Verdict::Busy || verdict == Verdict::Gone && image_is_busy {
                busy.push(entry.clone());
            } else {
                self.forget(entry)?;
            }
        }
        Ok(busy)
    }

    /// Settles suspects about one snapshot, which stands.
    fn settle_snapshot<'a>(
        &self,
        image: &dyn Image,
        id: &str,
        snapshot: &Snapshot,
        entries: &'a [Entry],
    ) -> Result<Vec<(Verdict, &'a Entry)>> {
        let children = match image.children(Some(snapshot.id)) {
            Err(error)
                if error.errno == Errno::EPERM
                    && self.is_surely_childless(image, snapshot, entries)? =>
            {
                Vec::new()
            }
            children => children?,
        };
        let links = |child: &Child| children.iter().any(|listed| listed.image_id == child.image_id);
        let (linked, unlinked): (Vec<_>, Vec<_>) =
            entries.iter().partition(|entry| entry.suspect.child.as_ref().is_some_and(links));
        for entry in &unlinked {
            self.finish_flatten(id, snapshot.id, &entry.suspect)?;
        }
        let verdict = if !is_collectable(snapshot) {
            Verdict::Kept
        } else if !children.is_empty() {
            // A clone of ours comes back here when it goes. Other tools' clones go without a word.
            if self.is_any_ours(&children)? { Verdict::Kept } else { Verdict::Busy }
        } else {
            self.refuse_unchangeable(image)?;
            if self.is_needed_by_a_creation(id, &snapshot.name)? {
                Verdict::Busy
            } else {
                match self.drop_snapshot(image, id, snapshot) {
                    Err(error) if error.is(Errno::EBUSY) => Verdict::Busy,
                    other => other.map(|()| Verdict::Gone)?,
                }
            }
        };
        Ok([all(Verdict::Busy, linked), all(verdict, unlinked)].concat())
    }

    /// The key of the image `id` here, in all of this process.
    pub(super) fn image_key(&self, id: &str) -> String {
        format!("{} {} {id}", self.pool.name(), self.pool.namespace())
    }

    /// Whether a snapshot that was cut for a clone has none, although the user may not ask for its
    /// clones (that takes a look at the object `rbd_children` of every pool): each clone that
    /// `entries` name is gone. Should another tool have cloned it, librbd keeps it for that clone.
    fn is_surely_childless(
        &self,
        image: &dyn Image,
        snapshot: &Snapshot,
        entries: &[Entry],
    ) -> Result<bool> {
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
        for child in entries.iter().filter_map(|entry| entry.suspect.child.as_ref()) {
            let Some(home) = self.elsewhere(&child.pool, &child.namespace)? else { continue };
            match home.pool.open_image(ImageKey::Id(&child.image_id), OpenMode::ReadOnly) {
                Ok(_) => return Ok(false),
                Err(error) if error.errno == Errno::ENOENT => {}
                Err(error) => return Err(error.into()),
            }
            if home.pool.trash_get(&child.image_id)?.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Finishes the flattens that were killed between the two ends of a link to this snapshot,
    /// which lists no clone any more although such a child cannot be opened without it.
    fn finish_flattens(&self, id: &str, snapshot: SnapshotId) -> Result<()> {
        for entry in self.journal.entries_of(id, snapshot)? {
            self.finish_flatten(id, snapshot, &entry.suspect)?;
        }
        Ok(())
    }

    /// Finishes the flatten that a suspect is about, if it is: one that was killed between the two
    /// ends of the link, or after that, before the object map was rebuilt.
    fn finish_flatten(&self, id: &str, snapshot: SnapshotId, suspect: &Suspect) -> Result<()> {
        let Some(child) = suspect.child.as_ref().filter(|child| child.flattened) else {
            return Ok(());
        };
        let Some(home) = self.elsewhere(&child.pool, &child.namespace)? else { return Ok(()) };
        let image = match home.pool.open_image(ImageKey::Id(&child.image_id), OpenMode::ReadWrite) {
            Ok(image) => image,
            Err(error) if error.errno == Errno::ENOENT => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let still = image.parent(None)?;
        if still
            .as_ref()
            .is_none_or(|parent| parent.image_id == id && parent.snapshot_id == snapshot)
        {
            if still.is_some() {
                self.activity.begin_heavy();
            }
            self.activity.begin(format!("finishing the flatten of {}", home.spec(&image.name()?)));
            home.flatten_noted(&*image)?;
        }
        Ok(())
    }

    /// Whether a CreateVolume here that is not finished plans to clone this snapshot, or has just
    /// cut it. One in another pool is not seen: if its snapshot goes before it is cloned, it fails,
    /// and its retry finds the source or does not.
    pub(super) fn is_needed_by_a_creation(&self, image_id: &str, snapshot: &str) -> Result<bool> {
        Ok(self.creation_that_needs(image_id, snapshot)?.is_some())
    }

    /// The image name of the volume that [`Volumes::is_needed_by_a_creation`] finds.
    pub(super) fn creation_that_needs(
        &self,
        image_id: &str,
        snapshot: &str,
    ) -> Result<Option<String>> {
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

    /// Removes one snapshot of `image`, which is here, protected or not. What the snapshot links to
    /// is in the journal first. `EBUSY` when it has clones of format 1. The caller collects.
    pub(super) fn drop_snapshot(
        &self,
        image: &dyn Image,
        id: &str,
        snapshot: &Snapshot,
    ) -> Result<()> {
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
            self.suspect(&[self.link_suspect(parent, id)?])?;
        }
        if snapshot.protected {
            image
                .unprotect_snapshot(&snapshot.name)
                .tolerate(Errno::EINVAL)
                .tolerate(Errno::ENOENT)?;
        }
        Ok(image.remove_snapshot_by_id(snapshot.id).tolerate(Errno::ENOENT)?)
    }

    /// Removes the image `id`, whose name is or was `name`; fine when it is gone. librbd may be set
    /// up for the pool to move an image to the trash in place of removing it
    /// (`rbd_move_to_trash_on_remove`): then it is removed from there. Errors as
    /// [`crate::rbd::Pool::remove_image`], with the image under its name.
    pub(super) fn remove_for_good(&self, name: &str, id: &str) -> crate::rbd::Result<()> {
        self.remove_image(name).tolerate(Errno::ENOENT)?;
        if self.pool.trash_get(id)?.is_none_or(|entry| entry.removing) {
            return Ok(());
        }
        let removed =
            match self.pool.trash_remove_with_progress(id, true, &mut self.activity.progress()) {
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

    /// [`Volumes::remove_for_good`] of a silent parent. One that was adopted from the trash never
    /// comes back from there.
    fn remove_silent(&self, name: &str, id: &str, silent: &Silent) -> crate::rbd::Result<()> {
        let is_in_trash = silent.image.is_some()
            && self.pool.trash_get(id)?.is_some_and(|entry| !entry.removing && !entry.migrating);
        if !is_in_trash {
            return self.remove_for_good(name, id);
        }
        let progress = &mut self.activity.progress();
        self.pool.trash_remove_with_progress(id, true, progress).tolerate(Errno::ENOENT)
    }

    /// Whether this driver knows any of these clones, so that it looks at their snapshot again when
    /// the clone goes.
    pub(super) fn is_any_ours(&self, clones: &[crate::rbd::Child]) -> Result<bool> {
        for clone in clones {
            let Some(home) = self.elsewhere(&clone.pool, &clone.namespace)? else { continue };
            if home.is_ours(&clone.image, &clone.image_id)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether this driver made the image `id` here, which is named `name`.
    pub(super) fn is_ours(&self, name: &str, id: &str) -> Result<bool> {
        let (volume, silent) = self.catalogue.volume_and_silent(name, id)?;
        if let Some(stored) = volume {
            match &stored.record.image_id {
                Some(known) if known != id && !self.is_replaced_or_gone(known)? => {}
                _ => return Ok(true),
            }
        }
        if !name.ends_with(names::SILENT_SUFFIX) {
            return Ok(silent.is_some_and(|silent| silent.record.image.as_deref() == Some(name)));
        }
        Ok(self.silent_parent(name, id)?.is_some())
    }

    /// Whether any of these snapshots of the silent parent `id` is one whose removal has this
    /// driver look at the image again: one that users see, or one cut for clones, about which the
    /// journal has an entry when its clones are not ours.
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
        stored.map_or(Ok(false), |stored| self.is_recorded_on(&stored.record, id))
    }

    /// What a snapshot links to. None also when that is gone: an earlier attempt to drop the
    /// snapshot has let go of it, with the link in the journal.
    pub(super) fn parent_of(image: &dyn Image, snapshot: &Snapshot) -> Result<Option<Parent>> {
        match image.parent(Some(snapshot.id)) {
            Err(error) if error.errno == Errno::ENOENT => Ok(None),
            other => Ok(other?),
        }
    }

    /// Removes the image if it is a silent parent of ours without a snapshot.
    fn remove_if_silent(&self, image: Box<dyn Image>, id: &str) -> Result<Verdict> {
        let name = image.name()?;
        let Some((volume, silent)) = self.silent_parent(&name, id)? else {
            let volume = names::before_silence(&name, id);
            // Renamed, but its DeleteVolume has not come to its last write: that one, or its retry,
            // settles it. Any other image of such a name is foreign.
            return Ok(match self.catalogue.volume(volume)? {
                Some(stored)
                    if matches!(stored.record.state, State::Deleting | State::Returning) =>
                {
                    Verdict::Busy
                }
                _ => Verdict::Kept,
            });
        };
        if let Some(trash) = &silent.record.trash {
            // One that is being purged is a suspect until its note says that it is.
            return Ok(if trash.until <= now() { Verdict::Busy } else { Verdict::Kept });
        }
        let mut snapshots = image.snapshots()?;
        // librbd removes those of a mirror along with the image.
        snapshots.retain(|snapshot| snapshot.kind != SnapshotKind::Mirror);
        if !snapshots.is_empty() {
            // The entry stays when nothing this driver does would bring it back here: other tools'
            // snapshots go without a word.
            let comes_back = self.is_any_expected(id, &snapshots)?;
            return Ok(if comes_back { Verdict::Kept } else { Verdict::Busy });
        }
        self.refuse_unremovable(&*image)?;
        self.suspect(&self.links(&*image, id, &[])?)?;
        if is_large(&*image)? {
            self.activity.begin_heavy();
        }
        drop(image);
        // librbd does not stand two removals of one image at once.
        let silent = self.catalogue.claim(&volume, &silent)?;
        match self.remove_silent(&name, id, &silent.record) {
            Ok(()) => {}
            Err(error) if error.errno == Errno::EBUSY => return Ok(Verdict::Busy),
            // A clone was made meanwhile.
            Err(error) if error.errno == Errno::ENOTEMPTY => return Ok(Verdict::Busy),
            Err(error) => return Err(error.into()),
        }
        self.catalogue.remove(&volume, &silent)?;
        Ok(Verdict::Gone)
    }

    /// The suspect's image does not open: it is gone, or migrated, or a removal of it was
    /// interrupted. Finishes the removal, of silent parents by the names they may have; a volume's
    /// own is its DeleteVolume's to finish.
    fn finish_removal(&self, suspect: &Suspect) -> Result<()> {
        let id = suspect.image_id.as_str();
        let volume = names::before_silence(&suspect.image, id);
        let silent = self.catalogue.silent(volume, id)?;
        if self.is_followed(suspect, volume, silent.as_ref().map(|silent| &silent.record))? {
            return Ok(());
        }
        // librbd does not stand two removals of one image at once: the operation that is at it
        // holds a lease.
        let silent = silent.map(|silent| self.catalogue.claim(volume, &silent)).transpose()?;
        // What lies in the trash otherwise was moved there by another client, or by librbd in place
        // of a removal of ours.
        let in_trash = self.pool.trash_get(id)?;
        if silent.is_some() && in_trash.as_ref().is_some_and(|entry| entry.migrating) {
            let spec = self.spec(&suspect.image);
            return Err(Error::Conflict(format!("`rbd migration` moves {spec}")));
        }
        if in_trash.is_some_and(|entry| entry.removing || silent.is_some()) {
            let _claimed = match self.catalogue.volume(volume)? {
                Some(stored)
                    if stored.record.state == State::Deleting
                        && stored.record.image_id.as_deref() == Some(id) =>
                {
                    Some(self.catalogue.claim(volume, &stored)?)
                }
                _ => None,
            };
            self.activity.begin(format!("removing {}", self.spec(&suspect.image)));
            let progress = &mut self.activity.progress();
            self.pool.trash_remove_with_progress(id, true, progress).tolerate(Errno::ENOENT)?;
        }
        let Some(silent) = silent else {
            return Ok(());
        };
        let names = match &silent.record.image {
            Some(name) => vec![name.clone()],
            None => vec![names::silent(volume), names::silent_with_id(volume, id)],
        };
        for name in names {
            if self.pool.image_id(&name)?.is_none_or(|found| found == id) {
                self.remove_silent(&name, id, &silent.record)?;
            }
        }
        self.catalogue.remove(volume, &silent)?;
        Ok(())
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

/// All of `entries`, with this verdict.
fn all<'a>(
    verdict: Verdict,
    entries: impl IntoIterator<Item = &'a Entry>,
) -> Vec<(Verdict, &'a Entry)> {
    entries.into_iter().map(|entry| (verdict, entry)).collect()
}

/// Does `act` to each of `items`, to so many at a time.
fn in_parallel<'a, T: Sync>(items: &'a [T], at_once: usize, act: impl Fn(&'a T) + Sync) {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            act(item);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..at_once.min(items.len()) {
            scope.spawn(work);
        }
        work();
    });
}
