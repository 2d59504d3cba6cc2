//! Everything in one pool and namespace at a glance: images, snapshots, how they hang together, and
//! leftovers.
//!
//! Reads the whole pool, so it is for people and `cinderblock tree` and `gc`, never on the way of
//! an RPC. What it shows can be out of date the moment it is shown; clearing a leftover therefore
//! looks again before it removes anything.

use super::catalogue::{self, Cursor, Record, State, Stored};
use super::overview::quickly_used;
use super::{Result, Volumes, names};
use crate::rbd::{Child, Errno, Image, ImageKey, OpenMode, Parent, SnapshotId, SnapshotKind};
use serde::Serialize;
use std::collections::BTreeMap;

/// A pool's lineage.
#[derive(Debug, Clone, Serialize)]
pub struct Survey {
    /// The pool.
    pub pool: String,
    /// The RADOS namespace, "" for the default one.
    pub namespace: String,
    /// All images, by name.
    pub images: Vec<SurveyedImage>,
}

/// One image.
#[derive(Debug, Clone, Serialize)]
pub struct SurveyedImage {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// What it is to the driver.
    pub kind: ImageKind,
    /// The claim that it was made for, as `namespace/name`, where the request said so.
    pub claim: Option<String>,
    /// Bytes; `None` when only remains are left of it.
    pub size: Option<u64>,
    /// Bytes of the objects that its head has for itself; `None` when only a look at each object
    /// would tell.
    pub used: Option<u64>,
    /// Its ancestors, silent ones and those of other pools included.
    pub depth: u32,
    /// What its head is a clone of.
    pub parent: Option<SurveyedLink>,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<SurveyedSnapshot>,
    /// For a silent parent: the snapshots it must stay for.
    pub kept_by: Vec<String>,
}

/// What an image is to the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageKind {
    /// A volume that was handed out.
    Volume,
    /// A volume whose creation is not finished.
    Creating,
    /// A volume whose deletion is not finished.
    Deleting,
    /// A deleted volume that stays for its snapshots.
    SilentParent,
    /// A deleted volume in the trash, which can be brought back.
    Parked,
    /// Made by another client.
    Foreign,
    /// What an interrupted creation or removal left.
    Remains,
}

/// A snapshot of an image.
#[derive(Debug, Clone, Serialize)]
pub struct SurveyedSnapshot {
    /// librbd's id.
    pub id: SnapshotId,
    /// Its name; for one in librbd's trash the name it had.
    pub name: String,
    /// What it is to the driver.
    pub kind: SnapshotUse,
    /// The group snapshot it is a member of, by the key of that one's record.
    pub group: Option<String>,
    /// Bytes of the image when it was cut.
    pub size: u64,
    /// Whether it is protected (format 1).
    pub protected: bool,
    /// What it is itself a clone of.
    pub parent: Option<SurveyedLink>,
    /// Image specs of its clones.
    pub children: Vec<String>,
}

/// What a snapshot is to the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotUse {
    /// A snapshot users see.
    Listed,
    /// Cut for a clone.
    Clone,
    /// A backup tool's.
    Backup,
    /// Deleted, and waiting for its last clone.
    Parked,
    /// A group's or a mirror's.
    Librbd,
    /// Made by another client.
    Foreign,
}

/// A link to a parent snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SurveyedLink {
    /// Image spec of the parent.
    pub image: String,
    /// Id of the parent.
    pub image_id: String,
    /// Id of the snapshot on it.
    pub snapshot_id: SnapshotId,
    /// Name of the snapshot on it.
    pub snapshot: String,
}

impl From<Parent> for SurveyedLink {
    fn from(parent: Parent) -> SurveyedLink {
        SurveyedLink {
            image: super::image_spec(&parent.pool, &parent.namespace, &parent.image),
            image_id: parent.image_id,
            snapshot_id: parent.snapshot_id,
            snapshot: parent.snapshot,
        }
    }
}

/// What the catalogue says of a pool.
pub(super) struct Known {
    pub(super) volumes: BTreeMap<String, Stored<catalogue::Volume>>,
    pub(super) snapshots: BTreeMap<String, Stored<catalogue::Snapshot>>,
    pub(super) silent: BTreeMap<String, Stored<catalogue::Silent>>,
}

impl Volumes {
    /// Looks at every image. An image that cannot be opened because only remains are left is shown
    /// as such; any other failure fails the survey, so that nothing is ever missing from it
    /// silently.
    pub fn survey(&self) -> Result<Survey> {
        let known = self.known()?;
        let mut images = Vec::new();
        for entry in self.pool.list_images()? {
            images.push(match self.pool.open_image(ImageKey::Id(&entry.id), OpenMode::ReadOnly) {
                Ok(image) => self.look_at(entry.name, entry.id, &*image, &known)?,
                Err(error) if error.errno == Errno::ENOENT => SurveyedImage {
                    name: entry.name,
                    id: entry.id,
                    kind: ImageKind::Remains,
                    claim: None,
                    size: None,
                    used: None,
                    depth: 0,
                    parent: None,
                    snapshots: Vec::new(),
                    kept_by: Vec::new(),
                },
                Err(error) => return Err(error.into()),
            });
        }
        images.sort_by(|a, b| a.name.cmp(&b.name));
        let (pool, namespace) = (self.pool.name().to_string(), self.pool.namespace().to_string());
        Ok(Survey { pool, namespace, images })
    }

    pub(super) fn known(&self) -> Result<Known> {
        fn all<R: Record>(catalogue: &catalogue::Catalogue) -> Result<BTreeMap<String, Stored<R>>> {
            Ok(catalogue.list(&Cursor::default(), 0)?.0.into_iter().collect())
        }
        Ok(Known {
            volumes: all(&self.catalogue)?,
            snapshots: all(&self.catalogue)?,
            silent: all(&self.catalogue)?,
        })
    }

    pub(super) fn look_at(
        &self,
        name: String,
        id: String,
        image: &dyn Image,
        known: &Known,
    ) -> Result<SurveyedImage> {
        // One that is being deleted or brought back may have its silent name.
        let under_silent_name = || {
            let volume = known.volumes.get(names::before_silence(&name, &id))?;
            (volume.record.image_id.as_ref() == Some(&id)).then_some(volume)
        };
        let volume = known.volumes.get(&name).or_else(under_silent_name);
        let kind = match volume.map(|stored| stored.record.state) {
            Some(State::Ready) => ImageKind::Volume,
            Some(State::Creating | State::Restoring | State::Returning) => ImageKind::Creating,
            Some(State::Deleting) => ImageKind::Deleting,
            None if known.silent.get(&id).is_some_and(|silent| silent.record.trash.is_some()) => {
                ImageKind::Parked
            }
            None if known.silent.contains_key(&id) => ImageKind::SilentParent,
            None if self.migrated_silent_parent(&name, &known.silent)?.is_some() => {
                ImageKind::SilentParent
            }
            None => ImageKind::Foreign,
        };
        let mut snapshots = Vec::new();
        for snapshot in image.snapshots()? {
            let children: Vec<Child> = match image.children(Some(snapshot.id)) {
                // The driver removed it since it was listed.
                Err(error) if error.errno == Errno::ENOENT && self.is_gone(&id, snapshot.id)? => {
                    continue;
                }
                children => children?,
            };
            let (name, kind) = match &snapshot.kind {
                SnapshotKind::Trash { original_name } => {
                    (original_name.clone(), SnapshotUse::Parked)
                }
                SnapshotKind::Group | SnapshotKind::Mirror | SnapshotKind::Unknown => {
                    (snapshot.name.clone(), SnapshotUse::Librbd)
                }
                SnapshotKind::User => {
                    (snapshot.name.clone(), self.used_for(&snapshot.name, &id, known)?)
                }
            };
            let recorded = known.snapshots.get(&name).filter(|_| kind == SnapshotUse::Listed);
            snapshots.push(SurveyedSnapshot {
                id: snapshot.id,
                group: recorded.and_then(|stored| stored.record.group.clone()),
                name,
                kind,
                size: snapshot.size,
                protected: snapshot.protected,
                parent: image.parent(Some(snapshot.id))?.map(SurveyedLink::from),
                children: children
                    .iter()
                    .map(|child| super::image_spec(&child.pool, &child.namespace, &child.image))
                    .collect(),
            });
        }
        let kept_by = match kind {
            ImageKind::SilentParent => {
                let for_clones = |kind| matches!(kind, SnapshotUse::Clone | SnapshotUse::Parked);
                let needed = |s: &&SurveyedSnapshot| !s.children.is_empty() || !for_clones(s.kind);
                snapshots.iter().filter(needed).map(|snapshot| snapshot.name.clone()).collect()
            }
            _ => Vec::new(),
        };
        let info = image.info()?;
        Ok(SurveyedImage {
            claim: known.volumes.get(&name).and_then(|stored| stored.record.claim.clone()),
            size: Some(info.size),
            used: quickly_used(image, &info)?,
            depth: self.depth(image, None)?,
            parent: image.parent(None)?.map(SurveyedLink::from),
            name,
            id,
            kind,
            snapshots,
            kept_by,
        })
    }

    fn used_for(&self, name: &str, image_id: &str, known: &Known) -> Result<SnapshotUse> {
        if let Some(stored) = known.snapshots.get(name)
            && self.is_recorded_on(&stored.record, image_id)?
        {
            return Ok(SnapshotUse::Listed);
        }
        Ok(if name.ends_with(names::CLONE_SNAPSHOT_SUFFIX) {
            SnapshotUse::Clone
        } else if name.ends_with(names::SILENT_SUFFIX) {
            SnapshotUse::Parked
        } else if names::is_backup_snapshot(name) {
            SnapshotUse::Backup
        } else {
            SnapshotUse::Foreign
        })
    }
}
