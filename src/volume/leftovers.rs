//! What was left half-done and no caller came back for: found by `cinderblock gc`, and finished one
//! by one.
//!
//! Nothing is removed on the strength of the search alone: each leftover is looked at again, by id,
//! when it is cleared. Only what this driver made is ever touched, except by the explicit search
//! for the chains of `.deleted` images that Cinder leaves in its pools.

use super::catalogue::{State, Stored, Unreadable, Volume};
use super::journal::Suspect;
use super::names;
use super::survey::{ImageKind, SnapshotUse, Survey, SurveyedImage, SurveyedSnapshot};
use super::temporary;
use super::{Error, Result, Volumes, now};
use crate::rbd::{Errno, ImageKey, OpenMode, SnapshotId, Tolerate};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Something that can be finished or removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Leftover {
    /// A volume whose deletion was begun.
    UnfinishedDeletion {
        /// Its image's name.
        image: String,
    },
    /// A volume whose creation was begun long ago.
    UnfinishedCreation {
        /// Its image's name.
        image: String,
        /// How many seconds ago.
        age_seconds: i64,
    },
    /// A volume whose restore from a backup was begun, and which no client has open. Only whoever
    /// restores can tell whether that goes on or is given up.
    UnfinishedRestore {
        /// Its image's name.
        image: String,
        /// Its volume id.
        id: String,
    },
    /// A snapshot whose creation or deletion was begun.
    UnfinishedSnapshot {
        /// Id of its image.
        image_id: String,
        /// Its name.
        snapshot: String,
    },
    /// A group snapshot whose creation or deletion was begun.
    UnfinishedGroup {
        /// The key of its record.
        group: String,
        /// How many seconds ago it was begun.
        age_seconds: i64,
    },
    /// A snapshot made for a clone that is gone.
    ChildlessSnapshot {
        /// Name of its image.
        image: String,
        /// Id of its image.
        image_id: String,
        /// Its name.
        snapshot: String,
        /// librbd's id of it.
        snapshot_id: SnapshotId,
    },
    /// A silent parent without a snapshot.
    EmptySilentParent {
        /// Its name.
        image: String,
        /// Its id.
        image_id: String,
    },
    /// A silent parent that stays for nothing but what other tools made: it goes once that does.
    KeptByOthers {
        /// Its name.
        image: String,
        /// Its id.
        image_id: String,
        /// The specs of their snapshots and clones.
        by: Vec<String>,
    },
    /// Remains of an interrupted removal.
    Remains {
        /// The name it had.
        image: String,
        /// Its id.
        image_id: String,
    },
    /// An image of an import or export that was killed.
    UnfinishedTransfer {
        /// Its name.
        image: String,
    },
    /// A snapshot of an image that is no volume, cut for an export that was killed.
    ExportSnapshot {
        /// Name of its image.
        image: String,
        /// Id of its image.
        image_id: String,
        /// Its name.
        snapshot: String,
    },
    /// Entries of the journal, which the next operation would settle too.
    Journal {
        /// How many.
        entries: usize,
    },
    /// A record or journal entry that this version cannot read. It is left alone, and keeps nothing
    /// else from being done.
    Unreadable {
        /// The RADOS object that holds it.
        object: String,
        /// Its key there.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// An image of Cinder's that it marked deleted and that nothing depends on, with its childless
    /// snapshots.
    Foreign {
        /// Its name.
        image: String,
        /// Its id.
        image_id: String,
    },
}

impl Volumes {
    /// Finds what can be cleared. Creations count when they were begun longer than `patience` ago:
    /// younger ones may be in progress.
    pub fn leftovers(&self, survey: &Survey, patience: Duration) -> Result<Vec<Leftover>> {
        let unfinished = self.catalogue.unfinished()?;
        let is_old = |age_seconds: i64| {
            u64::try_from(age_seconds).is_ok_and(|age| age >= patience.as_secs())
        };
        let mut found = Vec::new();
        for (image, stored) in unfinished.volumes {
            let age_seconds = now() - stored.record.created;
            match stored.record.state {
                State::Deleting => found.push(Leftover::UnfinishedDeletion { image }),
                State::Creating if is_old(age_seconds) => {
                    found.push(Leftover::UnfinishedCreation { image, age_seconds });
                }
                State::Restoring if !self.is_open(&image)? => {
                    found.push(Leftover::UnfinishedRestore { image, id: stored.record.id.clone() });
                }
                State::Creating | State::Restoring | State::Returning | State::Ready => {}
            }
        }
        let mut groups: BTreeMap<_, _> = unfinished.groups.into_iter().collect();
        for (snapshot, stored) in unfinished.snapshots {
            match stored.record.group {
                None => {
                    let image_id = stored.record.image_id;
                    found.push(Leftover::UnfinishedSnapshot { image_id, snapshot });
                }
                Some(group) => {
                    if let Some(stored) = self.catalogue.group(&group)? {
                        groups.insert(group, stored);
                    }
                }
            }
        }
        for (group, stored) in groups {
            let age_seconds = now() - stored.record.created;
            if stored.record.state == State::Deleting || is_old(age_seconds) {
                found.push(Leftover::UnfinishedGroup { group, age_seconds });
            }
        }
        for Unreadable { object, key, why } in
            unfinished.unreadable.into_iter().chain(self.journal.unreadable()?)
        {
            found.push(Leftover::Unreadable { object, key, why });
        }
        for image in &survey.images {
            self.leftovers_of(image, &mut found)?;
        }
        // Entries that wait for other tools are told with the image they are about.
        let waits = |id: &str| {
            found.iter().any(
                |left| matches!(left, Leftover::KeptByOthers { image_id, .. } if image_id == id),
            )
        };
        let entries =
            self.journal.entries()?.iter().filter(|entry| !waits(&entry.suspect.image_id)).count();
        if entries > 0 {
            found.push(Leftover::Journal { entries });
        }
        Ok(found)
    }

    /// Whether a client has the image open for writing, as a restore that goes on has.
    fn is_open(&self, image: &str) -> Result<bool> {
        match self.pool.open_image(ImageKey::Name(image), OpenMode::ReadOnly) {
            Ok(opened) => Ok(!opened.watchers()?.is_empty()),
            Err(error) if error.errno == Errno::ENOENT => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn leftovers_of(&self, image: &SurveyedImage, found: &mut Vec<Leftover>) -> Result<()> {
        let (name, image_id) = (image.name.clone(), image.id.clone());
        match image.kind {
            ImageKind::Remains => found.push(Leftover::Remains { image: name, image_id }),
            ImageKind::SilentParent if image.snapshots.is_empty() => {
                found.push(Leftover::EmptySilentParent { image: name, image_id });
            }
            ImageKind::Volume | ImageKind::SilentParent | ImageKind::Parked => {
                if image.kind == ImageKind::SilentParent {
                    found.extend(self.kept_by_others(image)?);
                }
                for snapshot in image.snapshots.iter().filter(|snapshot| is_unneeded(snapshot)) {
                    if !self.is_needed_by_a_creation(&image_id, &snapshot.name)? {
                        found.push(Leftover::ChildlessSnapshot {
                            image: name.clone(),
                            image_id: image_id.clone(),
                            snapshot: snapshot.name.clone(),
                            snapshot_id: snapshot.id,
                        });
                    }
                }
            }
            ImageKind::Foreign if temporary::is_temporary(&name) => {
                // A transfer that goes on has it open.
                let live = match self.pool.open_image(ImageKey::Id(&image_id), OpenMode::ReadOnly) {
                    Ok(opened) => !opened.watchers()?.is_empty(),
                    Err(error) if error.errno == Errno::ENOENT => true,
                    Err(error) => return Err(error.into()),
                };
                if !live {
                    found.push(Leftover::UnfinishedTransfer { image: name });
                }
            }
            ImageKind::Foreign => {
                for SurveyedSnapshot { name: snapshot, children, .. } in &image.snapshots {
                    if temporary::is_export_snapshot(snapshot) && children.is_empty() {
                        let (image, image_id) = (name.clone(), image_id.clone());
                        let snapshot = snapshot.clone();
                        found.push(Leftover::ExportSnapshot { image, image_id, snapshot });
                    }
                }
            }
            ImageKind::Creating | ImageKind::Deleting => {}
        }
        Ok(())
    }

    /// A silent parent that stays for other tools' snapshots and clones alone.
    fn kept_by_others(&self, image: &SurveyedImage) -> Result<Option<Leftover>> {
        let opened = match self.pool.open_image(ImageKey::Id(&image.id), OpenMode::ReadOnly) {
            Ok(opened) => opened,
            Err(error) if error.errno == Errno::ENOENT => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut by = Vec::new();
        for snapshot in &image.snapshots {
            if snapshot.kind == SnapshotUse::Listed {
                return Ok(None);
            }
            if !matches!(snapshot.kind, SnapshotUse::Clone | SnapshotUse::Parked) {
                by.push(format!("{}@{}", self.spec(&image.name), snapshot.name));
            } else if self.is_any_ours(&self.clones(&*opened, &image.id, snapshot.id)?)? {
                return Ok(None);
            }
            by.extend(snapshot.children.iter().cloned());
        }
        let (image, image_id) = (image.name.clone(), image.id.clone());
        Ok((!by.is_empty()).then_some(Leftover::KeptByOthers { image, image_id, by }))
    }

    /// Finds the images that Cinder marked `.deleted`, that nothing depends on, and that hold
    /// nothing but childless snapshots Cinder made for clones. Parents in such a chain turn up once
    /// their children are cleared.
    pub fn foreign_leftovers(survey: &Survey) -> Vec<Leftover> {
        let unneeded = |image: &&SurveyedImage| {
            image.kind == ImageKind::Foreign
                && is_cinders_silent_name(&image.name)
                && image.snapshots.iter().all(|snapshot| {
                    snapshot.name.ends_with(names::CLONE_SNAPSHOT_SUFFIX)
                        && snapshot.children.is_empty()
                })
        };
        let leftover = |image: &SurveyedImage| Leftover::Foreign {
            image: image.name.clone(),
            image_id: image.id.clone(),
        };
        survey.images.iter().filter(unneeded).map(leftover).collect()
    }

    /// Finishes or removes one leftover. Fine when it is gone meanwhile, or has become needed.
    pub fn clear(&self, leftover: &Leftover) -> Result<()> {
        let cleared = self.clear_one(leftover);
        self.settle_own();
        cleared
    }

    fn clear_one(&self, leftover: &Leftover) -> Result<()> {
        match leftover {
            Leftover::UnfinishedDeletion { image } => {
                self.clear_volume(image, |record| record.state == State::Deleting)
            }
            Leftover::UnfinishedCreation { image, age_seconds } => self
                .clear_volume(image, |record| {
                    record.state == State::Creating && now() - record.created >= *age_seconds
                }),
            Leftover::UnfinishedRestore { image, id } => Err(Error::FailedPrecondition(format!(
                "run `cinderblock backup restore` to {id} again, or remove the volume with `cinderblock gc --apply --give-up {image}`"
            ))),
            Leftover::UnfinishedSnapshot { image_id, snapshot } => {
                match self.catalogue.snapshot(snapshot)? {
                    Some(stored)
                        if stored.record.state != State::Ready
                            && stored.record.image_id == *image_id =>
                    {
                        self.delete_recorded_snapshot(snapshot, &stored)
                    }
                    _ => Ok(()),
                }
            }
            Leftover::UnfinishedGroup { group, age_seconds } => {
                self.clear_group(group, *age_seconds)
            }
            Leftover::ChildlessSnapshot { image, image_id, snapshot_id, .. } => {
                let suspect =
                    Suspect { snapshot: Some(*snapshot_id), ..self.as_suspect(image, image_id) };
                self.collect_suspect(&suspect)
            }
            Leftover::EmptySilentParent { image, image_id }
            | Leftover::Remains { image, image_id } => {
                self.collect_suspect(&self.as_suspect(image, image_id))
            }
            Leftover::KeptByOthers { image, image_id, by } => {
                self.suspect(&[self.as_suspect(image, image_id)])?;
                self.settle_own();
                match self.pool.open_image(ImageKey::Id(image_id), OpenMode::ReadOnly) {
                    Ok(_) => Err(Error::FailedPrecondition(format!(
                        "it goes once these are removed (rbd snap rm, rbd rm): {}",
                        by.join(", ")
                    ))),
                    Err(error) if error.errno == Errno::ENOENT => Ok(()),
                    Err(error) => Err(error.into()),
                }
            }
            Leftover::UnfinishedTransfer { image } => {
                temporary::clear(&*self.pool, image).map(drop)
            }
            Leftover::ExportSnapshot { image_id, snapshot, .. } => {
                match self.pool.open_image(ImageKey::Id(image_id), OpenMode::ReadWrite) {
                    Ok(image) => temporary::drop_export_snapshot(&*image, snapshot),
                    Err(error) => Ok(Err(error).tolerate(Errno::ENOENT)?),
                }
            }
            Leftover::Journal { .. } => {
                self.settle(self.journal.entries()?);
                Ok(())
            }
            Leftover::Unreadable { object, key, why } => Err(Error::FailedPrecondition(format!(
                "{key} in the RADOS object {object} {why}: run the version of the driver that wrote it, or remove the key with `rados \
                 rmomapkey`"
            ))),
            Leftover::Foreign { image, image_id } => self.clear_foreign(image, image_id),
        }
    }

    /// Destroys an unfinished volume if its record is still such a one.
    fn clear_volume(&self, image: &str, is_still: impl Fn(&Volume) -> bool) -> Result<()> {
        match self.catalogue.volume(image)? {
            Some(stored) if is_still(&stored.record) => self.destroy(image, &stored).map(drop),
            _ => Ok(()),
        }
    }

    /// Finishes a group snapshot that was cut, and deletes one that was not for so long, or whose
    /// deletion was begun.
    fn clear_group(&self, group: &str, age_seconds: i64) -> Result<()> {
        let Some(stored) = self.catalogue.group(group)? else {
            return Ok(());
        };
        match stored.record.state {
            State::Ready => self.finish_group(group, &stored.record),
            State::Creating if now() - stored.record.created < age_seconds => Ok(()),
            State::Creating | State::Deleting | State::Restoring | State::Returning => {
                self.delete_recorded_group(group, &stored)
            }
        }
    }

    fn collect_suspect(&self, suspect: &Suspect) -> Result<()> {
        self.suspect(std::slice::from_ref(suspect))?;
        let left = self.settle(self.take_suspects());
        if left.iter().all(|entry| entry.suspect != *suspect) {
            return Ok(());
        }
        Err(Error::Conflict(format!(
            "an operation is at work on {}, or has it open",
            self.spec(&suspect.image)
        )))
    }

    /// Whether the catalogue knows the image `id`, which is named `name`.
    fn is_known(&self, name: &str, id: &str) -> Result<bool> {
        let volume = names::before_silence(name, id);
        let is_its = |stored: &Stored<Volume>| stored.record.image_id.as_deref() == Some(id);
        Ok(self.catalogue.volume(volume)?.as_ref().is_some_and(is_its)
            || self.catalogue.silent(volume, id)?.is_some())
    }

    fn clear_foreign(&self, name: &str, id: &str) -> Result<()> {
        let image = match self.pool.open_image(ImageKey::Id(id), OpenMode::ReadWrite) {
            Ok(image) => image,
            Err(error) if error.errno == Errno::ENOENT => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if image.name()? != name || !image.watchers()?.is_empty() || self.is_known(name, id)? {
            return Ok(());
        }
        for snapshot in image.snapshots()? {
            if !snapshot.name.ends_with(names::CLONE_SNAPSHOT_SUFFIX)
                || !self.clones(&*image, id, snapshot.id)?.is_empty()
            {
                return Ok(());
            }
            self.drop_snapshot(&*image, id, &snapshot)?;
        }
        drop(image);
        Ok(self.remove_image(name).tolerate(Errno::ENOENT)?)
    }
}

fn is_unneeded(snapshot: &SurveyedSnapshot) -> bool {
    snapshot.children.is_empty()
        && matches!(snapshot.kind, SnapshotUse::Clone | SnapshotUse::Parked)
}

/// `volume-<uuid>.deleted`, as Cinder names what it keeps silently.
fn is_cinders_silent_name(name: &str) -> bool {
    name.strip_prefix("volume-")
        .and_then(|rest| rest.strip_suffix(names::SILENT_SUFFIX))
        .is_some_and(|id| uuid::Uuid::try_parse(id).is_ok())
}
