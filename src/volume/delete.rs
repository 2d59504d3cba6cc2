//! DeleteVolume, and the removal of what an unfinished creation left.
//!
//! A volume is refused before anything of it is changed. What is done then is in `deletion`.
//!
//! Another client may have taken an unfinished volume's name since its record was written. The
//! image there is the volume's own when its id is the recorded one; before that is known, when it
//! hangs on the planned parent, or holds nothing at all: no parent, no snapshot, no data. Any other
//! image is left alone.

use super::catalogue::{DeleteWithSnapshots, State, Stored, Volume};
use super::deletion::Deletion;
use super::journal::Suspect;
use super::names;
use super::{Error, Result, Volumes};
use crate::rbd::keyed_mutex::KeyGuard;
use crate::rbd::{self, Diff, Errno, Image, ImageKey, OpenMode, Snapshot, SnapshotKind};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Objects of an image whose removal counts as heavy work: 256 GiB of the default size.
const LARGE: u64 = 1 << 16;

/// What the data of a deleted volume stay for, until it is gone: the image is a silent parent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Retained {
    /// The image's id.
    pub image_id: String,
    /// The RBD names of the snapshots that a caller asked for.
    pub snapshots: Vec<String>,
    /// The specs of the snapshots that the catalogue does not know: other tools' own.
    pub by_others: Vec<String>,
    /// How many snapshots more there are, for clones.
    pub for_clones: usize,
}

/// For how long a deletion waits for another operation of this driver that has the image open.
const OWN_WATCH: Duration = Duration::from_secs(1);
/// How long before it looks again.
const PAUSE: Duration = Duration::from_millis(50);

/// An open image, its id, and the lock on it.
type LockedImage = (Box<dyn Image>, String, KeyGuard);

impl Volumes {
    /// Deletes the volume whose image is named `image`; fine when it is gone.
    ///
    /// Returns what its data stay for, if they do. Nothing is changed with [`Error::Conflict`]
    /// while it is backed up, [`Error::InUse`] when it is attached, [`Error::HasSnapshots`] when it
    /// may not be deleted with them, [`Error::FailedPrecondition`] when an image of that name
    /// exists which the catalogue does not know.
    pub fn delete(&self, image: &str) -> Result<Option<Retained>> {
        let (stored, is_backed_up) = self.catalogue.volume_and_backup(image)?;
        if is_backed_up {
            self.refuse_if_backed_up(image)?;
        }
        match stored.map(|stored| self.returned(image, stored)).transpose()? {
            Some(stored) if stored.record.state == State::Ready => {
                self.destroy(image, &stored).map_err(|error| match error {
                    // Its record is read before its image.
                    Error::Rbd(gone) if gone.errno == Errno::ENOENT => {
                        Error::Conflict(format!("another controller is deleting it: {gone}"))
                    }
                    other => other,
                })
            }
            Some(stored) => self.destroy(image, &stored).map_err(Error::after_a_change),
            None if self.is_foreign(image)? => Err(Error::FailedPrecondition(format!(
                "the image {} exists, but the catalogue of instance {} does not know it: another tool made it, \
                     and it is not deleted",
                self.spec(image),
                self.instance
            ))),
            None => Ok(None),
        }
    }

    /// Takes away all that a volume is, whatever its record says, and ends the record. What that
    /// sets free is suspect. Returns what its data stay for, if they do. [`Error::InUse`] or
    /// [`Error::HasSnapshots`] when it may not go, [`Error::FailedPrecondition`] when another
    /// client has its name, [`Error::Conflict`] when another operation is at work on it.
    pub(super) fn destroy(&self, image: &str, stored: &Stored<Volume>) -> Result<Option<Retained>> {
        // A ready one is claimed when it is marked: until then it may be refused, and nothing has
        // changed.
        let claimed;
        let stored = if stored.record.state == State::Ready {
            stored
        } else {
            claimed = self.catalogue.claim(image, stored)?;
            &claimed
        };
        let known = stored.record.image_id.as_deref();
        let Some((opened, id, _guard)) = self.open_locked(image, known)? else {
            self.refuse_if_published(image, &stored.record)?;
            if stored.record.state == State::Ready {
                self.refuse_if_moved(image, stored)?;
            }
            return Deletion::begin(self, image, stored, None)?
                .finish_by_id()
                .map_err(Error::after_a_change);
        };
        let snapshots = opened.snapshots()?;
        if !is_its_image(&stored.record, &*opened, &id, &snapshots)? {
            Deletion::of_unmade(self, image, stored).forget().map_err(Error::after_a_change)?;
            return Err(Error::FailedPrecondition(format!(
                "the image {} is not the one of the unfinished volume of this name: another tool made it, and it is not \
                 deleted",
                self.spec(image)
            )));
        }
        self.refuse_if_in_use(image, &stored.record, &*opened, &id, &snapshots)?;
        // What the user may not look at is known before the record changes.
        let snapshots = self.with_clones(&*opened, &id, snapshots)?;
        let begun_before = stored.record.state == State::Deleting;
        let deletion = Deletion::begin(self, image, stored, Some(&id))?;
        deletion.finish(opened, &id, &snapshots, begun_before).map_err(Error::after_a_change)
    }

    /// The snapshots that librbd does not remove by itself along with the image, as it does those
    /// of a mirror; and the clones of those that this driver would remove.
    fn with_clones(
        &self,
        opened: &dyn Image,
        id: &str,
        snapshots: Vec<Snapshot>,
    ) -> Result<Vec<(Snapshot, Vec<rbd::Child>)>> {
        let mut found = Vec::new();
        for snapshot in snapshots {
            let clones = match &snapshot.kind {
                SnapshotKind::Mirror => continue,
                _ if is_kept(&snapshot) => Vec::new(),
                _ => self.clones(opened, id, snapshot.id)?,
            };
            found.push((snapshot, clones));
        }
        Ok(found)
    }

    /// Opens the image of this name, with its id and the lock on it: what is suspect about it is
    /// settled before it is opened, or after the lock is released. `known` is the id that the
    /// record has. None when there is no such image.
    fn open_locked(&self, image: &str, known: Option<&str>) -> Result<Option<LockedImage>> {
        let open = || match self.pool.open_image(ImageKey::Name(image), OpenMode::ReadOnly) {
            Ok(opened) => Ok(Some(opened)),
            Err(error) if error.errno == Errno::ENOENT => Ok(None),
            Err(error) => Err(Error::from(error)),
        };
        let mut id = match known {
            Some(id) => id.to_string(),
            None => match open()? {
                Some(opened) => opened.id()?,
                None => return Ok(None),
            },
        };
        // Another image may have the name, or may get it meanwhile.
        for _ in 0..2 {
            let guard = self.process.images.lock(&self.image_key(&id), self.process.patience);
            let Some(opened) = open()? else { return Ok(None) };
            let found = opened.id()?;
            match guard {
                Some(guard) if found == id => return Ok(Some((opened, id, guard))),
                Some(_) => id = found,
                None => break,
            }
        }
        Err(Error::Conflict(format!(
            "snapshots of {} are being removed just now",
            self.spec(image)
        )))
    }

    fn refuse_if_published(&self, image: &str, record: &Volume) -> Result<()> {
        let Some(publication) = record.published.first() else { return Ok(()) };
        Err(Error::InUse(format!(
            "{} is published to node {}: unpublish it first",
            self.spec(image),
            publication.node
        )))
    }

    /// Refuses an image that a client has open: [`Error::InUse`] for strangers, [`Error::Conflict`]
    /// for the driver itself, which closes it by itself.
    fn refuse_if_open(
        &self,
        spec: &str,
        opened: &dyn Image,
        id: &str,
        snapshots: &[Snapshot],
    ) -> Result<()> {
        let begun = Instant::now();
        loop {
            let watchers = opened.watchers()?;
            let strangers = self.strangers(&watchers)?;
            if watchers.is_empty() {
                return Ok(());
            }
            for snapshot in snapshots {
                if let Some(clone) = self.creation_that_needs(id, &snapshot.name)? {
                    return Err(Error::Conflict(format!(
                        "{spec} is open, because a CreateVolume makes {} from it",
                        self.spec(&clone)
                    )));
                }
            }
            if !strangers.is_empty() {
                return Err(Error::InUse(format!(
                    "{spec} is open at {}: detach it there; a client that died lets go after 30 seconds",
                    strangers.join(", ")
                )));
            }
            if begun.elapsed() >= self.process.patience.min(OWN_WATCH) {
                return Err(Error::Conflict(format!(
                    "{spec} is open in this driver itself, which is making a volume or a snapshot from it, or tidying up"
                )));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Refuses to forget a volume whose image lies in the trash, or has another name: an
    /// administrator moved it there, and may mean to bring it back.
    fn refuse_if_moved(&self, image: &str, stored: &Stored<Volume>) -> Result<()> {
        let Some(whereabouts) = self.whereabouts(image, &stored.record)? else { return Ok(()) };
        // Another controller that is deleting the volume moves its image, too: that one has the
        // lease.
        self.catalogue.claim(image, stored)?;
        Err(Error::FailedPrecondition(format!(
            "{} is not there under that name: {whereabouts}, or remove it there, and delete the volume again",
            self.spec(image)
        )))
    }

    fn refuse_if_in_use(
        &self,
        image: &str,
        record: &Volume,
        opened: &dyn Image,
        id: &str,
        snapshots: &[Snapshot],
    ) -> Result<()> {
        let spec = self.spec(image);
        self.refuse_if_published(image, record)?;
        self.refuse_while_flattened(id)?;
        self.refuse_if_open(&spec, opened, id, snapshots)?;
        self.refuse_unremovable(opened)?;
        let kept: Vec<_> = snapshots.iter().filter(|snapshot| is_kept(snapshot)).collect();
        if kept.is_empty() || record.delete_with_snapshots == DeleteWithSnapshots::Retain {
            return Ok(());
        }
        Err(Error::HasSnapshots {
            volume: spec,
            image_id: id.to_string(),
            snapshots: kept.into_iter().map(|snapshot| snapshot.name.clone()).collect(),
        })
    }

    /// The image `id` itself as a suspect: it may turn out to be a silent parent that no snapshot
    /// needs.
    pub(super) fn as_suspect(&self, image: &str, id: &str) -> Suspect {
        Suspect {
            pool: self.pool.name().to_string(),
            namespace: self.pool.namespace().to_string(),
            image_id: id.to_string(),
            image: image.to_string(),
            snapshot: None,
            child: None,
            is_foreign: false,
        }
    }
}

/// Whether the image under a volume's name is the volume's: see above.
fn is_its_image(
    record: &Volume,
    opened: &dyn Image,
    id: &str,
    snapshots: &[Snapshot],
) -> Result<bool> {
    if record.state == State::Ready {
        return Ok(true);
    }
    if let Some(known) = &record.image_id {
        return Ok(known == id);
    }
    match opened.parent(None)? {
        Some(parent) => {
            Ok(record.link.as_ref().is_some_and(|link| link.image_id == parent.image_id))
        }
        None => Ok(snapshots.is_empty() && holds_nothing(opened)?),
    }
}

/// Whether no byte was ever written to the image.
fn holds_nothing(image: &dyn Image) -> Result<bool> {
    let whole = Diff {
        at: None,
        since: None,
        offset: 0,
        length: image.info()?.size,
        include_parent: false,
        whole_object: true,
    };
    let mut empty = true;
    let walked = image.diff(&whole, &mut |_| {
        empty = false;
        ControlFlow::Break(())
    });
    match walked {
        Err(error) if empty => Err(error.into()),
        _ => Ok(empty),
    }
}

/// Whether the removal of the image may take long.
pub(super) fn is_large(image: &dyn Image) -> Result<bool> {
    let info = image.info()?;
    Ok(info.size >> info.order > LARGE)
}

/// Whether a snapshot outlives its volume: a person made it, or this driver on a person's behalf,
/// or librbd for a group or for what this driver does not know. Backups' and those cut for clones
/// go as soon as they have no clone, a mirror's with the image.
pub(super) fn is_kept(snapshot: &Snapshot) -> bool {
    match snapshot.kind {
        SnapshotKind::User => {
            !names::is_backup_snapshot(&snapshot.name)
                && !names::is_collectable_snapshot(&snapshot.name)
        }
        SnapshotKind::Group | SnapshotKind::Unknown => true,
        SnapshotKind::Trash { .. } | SnapshotKind::Mirror => false,
    }
}
