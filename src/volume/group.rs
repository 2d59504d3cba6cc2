//! CreateVolumeGroupSnapshot and DeleteVolumeGroupSnapshot: snapshots of several volumes at one
//! moment.
//!
//! Every member is a user snapshot like any other, so volumes are restored from it as usual; a
//! group snapshot of librbd's own cannot be cloned. All are cut at one moment
//! ([`Pool::create_snapshots`](crate::rbd::Pool::create_snapshots)), so no member holds a write
//! that was made after one that another member lacks.
//!
//! Crash points. The group's record says `creating`, with the names of all members, before a
//! member's record is written, and those come before anything is cut. `ready`, with the members'
//! snapshot ids, is one write after the last cut, and what makes it a group snapshot: before it a
//! retry begins anew, after it a retry or a start makes the members' records `ready`, and until
//! then no member is seen. `deleting` comes before the first member goes, and the record last.

use super::catalogue::{self, Group, Member, State, Stored};
use super::snapshot::find;
use super::{Error, Result, Volumes, now};
use crate::rbd::{Errno, Features, ImageKey, NewSnapshot, OpenMode, Tolerate};
use std::collections::BTreeSet;

/// A request for a group snapshot.
#[derive(Debug, Clone)]
pub struct CreateGroup {
    /// The CSI name.
    pub name: String,
    /// The record's key, made of it by [`super::names::rbd_name`].
    pub group: String,
    /// The volumes, each once.
    pub sources: Vec<GroupSource>,
    /// Snapshots an image may have ([`super::Policy::max_snapshots`]).
    pub max_snapshots: usize,
}

/// One volume of a group, and what its snapshot is to be called.
#[derive(Debug, Clone)]
pub struct GroupSource {
    /// Its volume id.
    pub volume_id: String,
    /// Its image name.
    pub image: String,
    /// The RBD name of its snapshot, like no other in the pool and namespace.
    pub snapshot: String,
}

/// A source that was looked at, and the record its snapshot will have.
struct Source {
    record: catalogue::Snapshot,
    snapshot: String,
}

impl Volumes {
    /// Cuts the snapshots, or finds them as an earlier request cut them, and returns the group's
    /// record.
    ///
    /// [`Error::AlreadyExists`] when the name is taken by a group of other volumes,
    /// [`Error::NotFound`] when a volume does not exist, [`Error::FailedPrecondition`] when the
    /// writers of one cannot be held off, [`Error::Exhausted`] when an image has as many snapshots
    /// as it may.
    pub fn create_group(&self, request: &CreateGroup) -> Result<Group> {
        if let Some(stored) = self.catalogue.group(&request.group)? {
            if stored.record.state == State::Ready {
                return self.existing_group(request, stored.record);
            }
            // Never handed out, or on its way out: gone with it, and a fresh start.
            self.delete_recorded_group(&request.group, &stored)?;
        }
        let sources: Vec<_> = request
            .sources
            .iter()
            .map(|source| self.source(request, source))
            .collect::<Result<_>>()?;
        let members = sources.iter().map(|source| Member {
            snapshot: source.snapshot.clone(),
            source_volume: source.record.source_volume.clone(),
            image_id: source.record.image_id.clone(),
            snapshot_id: 0,
            size: 0,
        });
        let record = Group {
            state: State::Creating,
            name: request.name.clone(),
            members: members.collect(),
            created: now(),
            attempt: uuid::Uuid::new_v4().simple().to_string(),
        };
        let stored = self.catalogue.insert_group(&request.group, record)?;
        let made = self.cut_group(request, &sources, &stored);
        match made {
            Ok(record) => {
                self.finish_group(&request.group, &record).map_err(Error::after_a_change)?;
                Ok(record)
            }
            Err(error) if !error.is_final() => Err(error.after_a_change()),
            Err(error) => match self.delete_recorded_group(&request.group, &stored) {
                Ok(()) => Err(error.after_an_undo()),
                Err(undoing) => {
                    tracing::warn!(group = request.group, %error, "a failed group snapshot is not undone yet");
                    Err(undoing.after_a_change())
                }
            },
        }
    }

    /// A ready group, if it is what the request asks for.
    fn existing_group(&self, request: &CreateGroup, record: Group) -> Result<Group> {
        let wanted: BTreeSet<_> =
            request.sources.iter().map(|source| source.volume_id.as_str()).collect();
        let found: BTreeSet<_> =
            record.members.iter().map(|member| member.source_volume.as_str()).collect();
        if record.name != request.name || wanted != found {
            let found: Vec<_> = found.into_iter().collect();
            return Err(Error::AlreadyExists(format!(
                "a group snapshot named {} exists, but of {}: use another name, or delete that group snapshot",
                record.name,
                found.join(", ")
            )));
        }
        self.finish_group(&request.group, &record).map_err(Error::after_a_change)?;
        Ok(record)
    }

    /// Looks at a volume: it must be handed out, have an exclusive lock, and have room for a
    /// snapshot of this name.
    fn source(&self, request: &CreateGroup, source: &GroupSource) -> Result<Source> {
        let gone = || Error::NotFound(format!("the volume {} does not exist", source.volume_id));
        let volume = self.ready(&source.image)?.ok_or_else(gone)?;
        let image = match self.pool.open_image(ImageKey::Name(&source.image), OpenMode::ReadOnly) {
            Ok(image) => image,
            Err(error) if error.errno == Errno::ENOENT => return Err(gone()),
            Err(error) => return Err(error.into()),
        };
        let spec = self.spec(&source.image);
        self.refuse_unchangeable(&*image)?;
        if !image.info()?.features.contains(Features::EXCLUSIVE_LOCK) {
            return Err(Error::FailedPrecondition(format!(
                "the writers of {spec} cannot be held off, because it lacks the feature exclusive-lock: run `rbd feature enable \
                 {spec} exclusive-lock`, or leave it out of the group"
            )));
        }
        let image_id = image.id()?;
        let snapshots = image.snapshots()?;
        self.refuse_foreign_snapshot(&*image, &snapshots, &source.image, &source.snapshot)?;
        if snapshots.len() >= request.max_snapshots {
            self.make_room(&image_id, &spec, request.max_snapshots)?;
        }
        let record = catalogue::Snapshot {
            state: State::Creating,
            name: request.name.clone(),
            source_volume: source.volume_id.clone(),
            image_id,
            snapshot_id: 0,
            size: 0,
            created: now(),
            clone_format: volume.record.clone_format,
            attempt: uuid::Uuid::new_v4().simple().to_string(),
            group: Some(request.group.clone()),
            adopted: None,
        };
        Ok(Source { record, snapshot: source.snapshot.clone() })
    }

    /// Writes the members' records, cuts them all, and makes the group ready.
    fn cut_group(
        &self,
        request: &CreateGroup,
        sources: &[Source],
        stored: &Stored<Group>,
    ) -> Result<Group> {
        for source in sources {
            self.catalogue.insert_snapshot(&source.snapshot, source.record.clone())?;
        }
        self.activity.begin(format!("cutting {} snapshots at one moment", sources.len()));
        let new = sources.iter().map(|source| NewSnapshot {
            image_id: source.record.image_id.clone(),
            name: source.snapshot.clone(),
        });
        let mut announce = |address: &str| stored.add_client(address);
        self.pool.create_snapshots(&new.collect::<Vec<_>>(), &mut announce).map_err(|error| match error.errno {
            Errno::ECANCELED => self.catalogue.conflict(&request.group, &request.group),
            Errno::EROFS => Error::FailedPrecondition(format!(
                "the writers of all volumes cannot be held off: one is mapped exclusively (rbd map --exclusive), where no other client \
                 may write; map it without that, or leave it out of the group ({error})"
            )),
            Errno::EBUSY => Error::Conflict(format!(
                "the writers of all {} volumes could not be held off at one time, at last not those of one: {error}",
                sources.len()
            )),
            _ => error.into(),
        })?;
        let mut record = Group { state: State::Ready, ..stored.record.clone() };
        for (source, member) in sources.iter().zip(&mut record.members) {
            let name = &source.snapshot;
            let protect = source.record.clone_format == 1;
            let mode = if protect { OpenMode::ReadWrite } else { OpenMode::ReadOnly };
            let image = self.pool.open_image(ImageKey::Id(&member.image_id), mode)?;
            if protect {
                image.protect_snapshot(name).tolerate(Errno::EBUSY)?;
            }
            let snapshots = image.snapshots()?;
            let cut = find(&snapshots, name).ok_or_else(|| {
                Error::Conflict(format!("another client removed the snapshot {name} just now"))
            })?;
            (member.snapshot_id, member.size) = (cut.id, cut.size);
            let created = jiff::Timestamp::try_from(cut.created);
            record.created = created.map_or_else(|_| now(), jiff::Timestamp::as_second);
        }
        Ok(self.catalogue.replace(&request.group, stored, record)?.record)
    }

    /// Makes the records of a ready group's members ready, which a killed request left undone.
    pub(super) fn finish_group(&self, group: &str, record: &Group) -> Result<()> {
        for member in &record.members {
            let Some(stored) = self.catalogue.snapshot(&member.snapshot)? else {
                return Err(Error::Conflict(format!(
                    "another client removed a member of the group snapshot {group}"
                )));
            };
            if stored.record.state == State::Creating {
                let ready = catalogue::Snapshot {
                    state: State::Ready,
                    snapshot_id: member.snapshot_id,
                    size: member.size,
                    created: record.created,
                    ..stored.record.clone()
                };
                self.catalogue.replace(&member.snapshot, &stored, ready)?;
            }
        }
        Ok(())
    }

    /// Deletes the group snapshot and all its members; fine when it is gone.
    pub fn delete_group(&self, group: &str) -> Result<()> {
        match self.catalogue.group(group)? {
            Some(stored) => self.delete_recorded_group(group, &stored),
            None => Ok(()),
        }
    }

    /// Deletes the group snapshot that `stored` is about; [`Error::Conflict`] when that is not its
    /// record any more.
    pub(super) fn delete_recorded_group(&self, group: &str, stored: &Stored<Group>) -> Result<()> {
        let deleting = Group { state: State::Deleting, ..stored.record.clone() };
        let stored = self.catalogue.replace(group, stored, deleting)?;
        self.delete_members(group, &stored).map_err(Error::after_a_change)
    }

    fn delete_members(&self, group: &str, stored: &Stored<Group>) -> Result<()> {
        for member in &stored.record.members {
            // One without a record is gone, or was never begun.
            if let Some(snapshot) = self.catalogue.snapshot(&member.snapshot)?
                && snapshot.record.group.as_deref() == Some(group)
            {
                self.activity.begin(format!("deleting the snapshot {}", member.snapshot));
                self.delete_recorded_snapshot(&member.snapshot, &snapshot)?;
            }
        }
        self.catalogue.remove(group, stored)
    }
}
