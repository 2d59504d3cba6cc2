//! CreateSnapshot and DeleteSnapshot.
//!
//! A snapshot is addressed by the id of its image, which survives the rename of a silent parent,
//! and its RBD name. Its record says `creating` before it is cut and `deleting` before it goes. A
//! retry that finds a cut one under `creating` cuts anew: what was never handed out may be an older
//! point in time than the caller means.

use super::catalogue::{self, State, Stored};
use super::journal::Suspect;
use super::names;
use super::{Error, Made, Result, Volumes, now};
use crate::rbd::{Errno, Image, ImageKey, OpenMode, Snapshot, SnapshotKind, Tolerate};

/// A request for a snapshot.
#[derive(Debug, Clone)]
pub struct CreateSnapshot {
    /// The CSI name.
    pub name: String,
    /// The RBD name, made of it by [`names::rbd_name`].
    pub snapshot: String,
    /// The source's volume id.
    pub volume_id: String,
    /// The source's image name.
    pub image: String,
    /// Snapshots the image may have ([`super::Policy::max_snapshots`]).
    pub max_snapshots: usize,
}

impl Volumes {
    /// Cuts the snapshot, or finds it as an earlier request cut it, and returns its record.
    ///
    /// [`Error::AlreadyExists`] when the name is taken by a snapshot of another volume,
    /// [`Error::NotFound`] when the volume does not exist, [`Error::Exhausted`] when the image has
    /// as many snapshots as it may.
    pub fn create_snapshot(&self, request: &CreateSnapshot) -> Result<Made<catalogue::Snapshot>> {
        let found = self.catalogue.snapshot(&request.snapshot)?;
        if let Some(stored) = &found {
            match stored.record.state {
                State::Ready
                    if stored.record.source_volume == request.volume_id
                        && self.is_of_this_volume(&request.image, &stored.record)? =>
                {
                    return Ok(Made::Existing(stored.record.clone()));
                }
                State::Ready => {
                    return Err(Error::AlreadyExists(format!(
                        "a snapshot named {} exists, but of the volume {} with the image {}: use another name, or delete that \
                         snapshot",
                        request.name, stored.record.source_volume, stored.record.image_id
                    )));
                }
                // Never handed out, or on its way out: gone with it, and a fresh start.
                State::Creating | State::Deleting | State::Restoring | State::Returning => {
                    self.delete_recorded_snapshot(&request.snapshot, stored)?;
                    return self.create_snapshot(request);
                }
            }
        }
        let gone = || Error::NotFound(format!("the volume {} does not exist", request.volume_id));
        let volume = self.ready(&request.image)?.ok_or_else(gone)?;
        let image = match self.pool.open_image(ImageKey::Name(&request.image), OpenMode::ReadWrite)
        {
            Ok(image) => image,
            Err(error) if error.errno == Errno::ENOENT => return Err(gone()),
            Err(error) => return Err(error.into()),
        };
        self.refuse_unchangeable(&*image)?;
        let id = image.id()?;
        let snapshots = image.snapshots()?;
        self.refuse_foreign_snapshot(&*image, &snapshots, &request.image, &request.snapshot)?;
        if snapshots.len() >= request.max_snapshots {
            self.make_room(&id, &self.spec(&request.image), request.max_snapshots)?;
        }
        let stored = self.catalogue.insert_snapshot(
            &request.snapshot,
            catalogue::Snapshot {
                state: State::Creating,
                name: request.name.clone(),
                source_volume: request.volume_id.clone(),
                image_id: id,
                snapshot_id: 0,
                size: 0,
                created: now(),
                clone_format: volume.record.clone_format,
                attempt: uuid::Uuid::new_v4().simple().to_string(),
                group: None,
                adopted: None,
            },
        )?;
        match self.cut(&*image, request, &stored) {
            Ok(record) => Ok(Made::Created(record)),
            Err(error) if !error.is_final() => Err(error.after_a_change()),
            // The record is gone, and the snapshot is not ours.
            Err(error @ Error::AlreadyExists(_)) => Err(error),
            Err(error) => match self.delete_recorded_snapshot(&request.snapshot, &stored) {
                Ok(()) => Err(error.after_an_undo()),
                Err(undoing) => {
                    tracing::warn!(snapshot = request.snapshot, %error, "a failed snapshot is not undone yet");
                    Err(undoing.after_a_change())
                }
            },
        }
    }

    /// Whether a snapshot is of the volume that has the image name `image` today. An earlier volume
    /// may have had the same name, and so the same id. Of a volume that is gone, every snapshot is.
    fn is_of_this_volume(&self, image: &str, record: &catalogue::Snapshot) -> Result<bool> {
        let Some(volume) = self.catalogue.volume(image)? else { return Ok(true) };
        let known = match volume.record.image_id {
            Some(id) => Some(id),
            None => self.pool.image_id(image)?,
        };
        // `rbd migration` gives the image of a volume a new id, which its record does not have.
        Ok(known.is_none_or(|id| id == record.image_id)
            || self.pool.image_id(image)?.is_some_and(|id| id == record.image_id))
    }

    /// Refuses a name that one of the image's `snapshots` has which no record knows.
    /// [`Error::Conflict`] when another controller has just cut it or is about to have removed it:
    /// it had a record before, or has one by now.
    pub(super) fn refuse_foreign_snapshot(
        &self,
        image: &dyn Image,
        snapshots: &[Snapshot],
        name: &str,
        snapshot: &str,
    ) -> Result<()> {
        let Some(found) = find(snapshots, snapshot) else { return Ok(()) };
        // A record goes after its snapshot, so a snapshot that outlives the look had none.
        if self.catalogue.snapshot(snapshot)?.is_none() {
            // One that is open for long may not have heard of the latest changes.
            let again = self.pool.open_image(ImageKey::Id(&image.id()?), OpenMode::ReadOnly)?;
            if find(&again.snapshots()?, snapshot).is_some_and(|still| still.id == found.id) {
                return Err(self.foreign_snapshot(name, snapshot));
            }
        }
        Err(Error::Conflict(format!(
            "another controller is at work on {}@{snapshot}",
            self.spec(name)
        )))
    }

    fn foreign_snapshot(&self, image: &str, snapshot: &str) -> Error {
        Error::AlreadyExists(format!(
            "{}@{snapshot} exists, but the catalogue of instance {} does not know it: another tool made it, and it is left \
             alone; use another snapshotNamePrefix, or remove it",
            self.spec(image),
            self.instance
        ))
    }

    fn cut(
        &self,
        image: &dyn Image,
        request: &CreateSnapshot,
        stored: &Stored<catalogue::Snapshot>,
    ) -> Result<catalogue::Snapshot> {
        let name = &request.snapshot;
        self.activity.begin(format!("taking the snapshot {name}"));
        match image.create_snapshot(name) {
            // Another client took the name since it was looked at.
            Err(error) if error.errno == Errno::EEXIST => {
                self.catalogue.remove(name, stored)?;
                return Err(self.foreign_snapshot(&request.image, &request.snapshot));
            }
            other => other?,
        }
        if stored.record.clone_format == 1 {
            image.protect_snapshot(name).tolerate(Errno::EBUSY)?;
        }
        let snapshots = image.snapshots()?;
        let cut = find(&snapshots, name).ok_or_else(|| {
            Error::Conflict(format!("another client removed the snapshot {name} just now"))
        })?;
        let record = catalogue::Snapshot {
            state: State::Ready,
            snapshot_id: cut.id,
            size: cut.size,
            created: jiff::Timestamp::try_from(cut.created)
                .map_or_else(|_| now(), jiff::Timestamp::as_second),
            ..stored.record.clone()
        };
        Ok(self.catalogue.replace(name, stored, record)?.record)
    }

    /// Deletes the snapshot `snapshot` of the image `image_id`; fine when it is gone.
    ///
    /// [`Error::Invalid`] when it is a member of a group snapshot, which go together.
    pub fn delete_snapshot(&self, image_id: &str, snapshot: &str) -> Result<()> {
        match self.catalogue.snapshot(snapshot)? {
            Some(stored) if stored.record.image_id == image_id => {
                if let Some(group) = &stored.record.group {
                    return Err(Error::Invalid(format!(
                        "the snapshot {snapshot} is a member of the group snapshot {group} and goes with it: delete that one"
                    )));
                }
                self.delete_recorded_snapshot(snapshot, &stored)
            }
            _ => Ok(()),
        }
    }

    /// Deletes the snapshot that `stored` is about; [`Error::Conflict`] when that is not its record
    /// any more.
    pub(super) fn delete_recorded_snapshot(
        &self,
        name: &str,
        stored: &Stored<catalogue::Snapshot>,
    ) -> Result<()> {
        let image = self.image_of(name, &stored.record, OpenMode::ReadWrite)?;
        if let Some(image) = &image {
            self.refuse_unchangeable(&**image)?;
        }
        let deleting = catalogue::Snapshot { state: State::Deleting, ..stored.record.clone() };
        let stored = self.catalogue.replace(name, stored, deleting)?;
        self.remove_recorded_snapshot(name, &stored, image).map_err(Error::after_a_change)
    }

    /// The image that a recorded snapshot is on: the recorded one, else the one that an `rbd
    /// migration` has put in its place. `None` when neither is there.
    pub(super) fn image_of(
        &self,
        name: &str,
        record: &catalogue::Snapshot,
        mode: OpenMode,
    ) -> Result<Option<Box<dyn Image>>> {
        if let Some(image) = self.open_unless_migrated(&record.image_id, mode)? {
            return Ok(Some(image));
        }
        if record.snapshot_id == 0 {
            return Ok(None);
        }
        let is_it = |snapshots: &[Snapshot]| {
            snapshots.iter().any(|found| had_name(found, name) && found.size == record.size)
        };
        // Volume ids end in the image's name.
        let volume = record.source_volume.rsplit('/').next().unwrap_or_default();
        for image in [
            volume.to_string(),
            names::silent(volume),
            names::silent_with_id(volume, &record.image_id),
        ] {
            match self.pool.open_image(ImageKey::Name(&image), mode) {
                Ok(image) if is_it(&image.snapshots()?) => return Ok(Some(image)),
                Ok(_) => {}
                Err(error) if error.errno == Errno::ENOENT => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    fn remove_recorded_snapshot(
        &self,
        name: &str,
        stored: &Stored<catalogue::Snapshot>,
        image: Option<Box<dyn Image>>,
    ) -> Result<()> {
        if let Some(image) = image {
            let id = &image.id()?;
            let snapshots = image.snapshots()?;
            let migrated = *id != stored.record.image_id;
            let is_ours = |found: &&Snapshot| {
                if migrated {
                    had_name(found, name)
                } else {
                    is_recorded(&stored.record, name, found)
                }
            };
            let image_name = image.name()?;
            let image_as_suspect = self.as_suspect(&image_name, id);
            let mut suspects = Vec::new();
            for snapshot in snapshots.iter().filter(is_ours) {
                Self::take_name(&*image, name, snapshot)?;
                suspects.push(Suspect { snapshot: Some(snapshot.id), ..image_as_suspect.clone() });
            }
            let may_be_silent =
                image_name.ends_with(names::SILENT_SUFFIX) || stored.record.adopted.is_some();
            if suspects.is_empty() && may_be_silent {
                suspects.push(image_as_suspect);
            }
            self.suspect(&suspects)?;
        }
        self.catalogue.remove(name, stored)
    }

    /// Takes its name from a user snapshot, which costs no round of the monitors and leaves all
    /// that is cloned from it as it is. An earlier attempt may have done so, or librbd, which
    /// parks those with clones itself.
    fn take_name(image: &dyn Image, name: &str, snapshot: &Snapshot) -> Result<()> {
        // Another tool may have given it another name.
        let now = &snapshot.name;
        if snapshot.kind != SnapshotKind::User || names::is_collectable_snapshot(now) {
            return Ok(());
        }
        match image.rename_snapshot(now, &names::silent(name)) {
            Err(error) if error.errno == Errno::EEXIST => {
                let other_name = names::silent_with_id(name, &snapshot.id.to_string());
                Ok(image.rename_snapshot(now, &other_name)?)
            }
            other => Ok(other.tolerate(Errno::ENOENT)?),
        }
    }
}

/// Whether a snapshot is the one a record called `name` is about. A killed removal leaves it in
/// librbd's trash namespace; there one that was never handed out is known by the name it had, like
/// others of that name that are waiting for their clones.
fn is_recorded(record: &catalogue::Snapshot, name: &str, snapshot: &Snapshot) -> bool {
    if record.snapshot_id != 0 {
        return snapshot.id == record.snapshot_id;
    }
    match &snapshot.kind {
        SnapshotKind::Trash { original_name } => original_name == name,
        _ => had_name(snapshot, name),
    }
}

/// Whether a user snapshot is called `name`, or a removal has taken that name from it, of this or
/// of an earlier snapshot: both are to go.
fn had_name(snapshot: &Snapshot, name: &str) -> bool {
    let now = &snapshot.name;
    snapshot.kind == SnapshotKind::User
        && (now == name
            || *now == names::silent(name)
            || *now == names::silent_with_id(name, &snapshot.id.to_string()))
}

/// The user snapshot called `name`.
pub(super) fn find<'a>(snapshots: &'a [Snapshot], name: &str) -> Option<&'a Snapshot> {
    snapshots.iter().find(|snapshot| snapshot.kind == SnapshotKind::User && snapshot.name == name)
}
