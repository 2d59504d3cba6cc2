//! The volumes of one pool and namespace, one by one, as people ask for them: whose each is, how
//! much of it is used, where it is attached, and how far it is in its life.
//!
//! A listing reads the catalogue and opens the image of each volume read-only, so it is for people
//! and `cinderblock list`, never on the way of an RPC. What it cannot read is an error: a volume is
//! never missing silently.

use super::catalogue::{self, State, Stored};
use super::survey::{Known, SurveyedImage};
use super::{Error, Result, Volumes};
use crate::rbd::{Diff, Errno, Features, Image, ImageInfo, ImageKey, OpenMode, Watcher};
use serde::Serialize;
use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::thread;

/// Images that are looked at at the same time.
const AT_ONCE: usize = 8;

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Overview {
    /// The volume id.
    pub id: String,
    /// Name of its image.
    pub image: String,
    /// The CSI name, which is the PersistentVolume's on Kubernetes.
    pub name: String,
    /// The claim it was made for, as `namespace/name`. `None` when the request did not say.
    pub claim: Option<String>,
    /// Bytes.
    pub size: u64,
    /// Bytes of the objects that it has for itself, snapshots and parents apart. `None` when only
    /// a look at each object would tell (no fast-diff), or there is no image.
    pub used: Option<u64>,
    /// Ids of the nodes it is published to.
    pub nodes: Vec<String>,
    /// How many snapshots users see.
    pub snapshots: usize,
    /// How many ancestors it has. `None` when there is no image.
    pub depth: Option<u32>,
    /// How far it is.
    pub state: VolumeState,
    /// When its record was first written.
    pub created: jiff::Timestamp,
}

/// How far a volume is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// Being made.
    Creating,
    /// Handed out.
    Ready,
    /// Being destroyed.
    Deleting,
    /// Being filled from a backup.
    Restoring,
    /// Being brought back from the trash.
    Returning,
    /// Handed out, and its image is not there.
    ImageMissing,
}

/// All there is to say about one volume.
#[derive(Debug, Clone, Serialize)]
pub struct Details {
    /// What a listing shows.
    #[serde(flatten)]
    pub overview: Overview,
    /// The id of the volume or snapshot, or the location of the golden image, that it was made
    /// from.
    pub source: Option<String>,
    /// How nodes attach it.
    pub mounter: Option<String>,
    /// What is in the pool of it: parent, snapshots, clones. `None` when there is no image.
    pub lineage: Option<SurveyedImage>,
    /// The addresses of the clients that have the image open.
    pub open_at: Vec<String>,
}

impl Volumes {
    /// Every volume of the catalogue, by its image's name.
    pub fn overview(&self) -> Result<Vec<Overview>> {
        let known = self.known()?;
        let volumes: Vec<_> = known.volumes.iter().collect();
        let look = |(name, stored): &(&String, &Stored<catalogue::Volume>)| {
            let image = self.open_if_there(name)?;
            let looked = self.overview_of(name, &stored.record, image.as_deref(), &known, false);
            match &looked {
                Ok(overview) if overview.state != VolumeState::ImageMissing => {}
                Err(Error::Rbd(error)) if error.errno != Errno::ENOENT => {}
                // Deleted since the catalogue was read?
                _ if self.catalogue.volume(name)?.is_none_or(|now| now.bytes != stored.bytes) => {
                    return Ok(None);
                }
                _ => {}
            }
            looked.map(Some)
        };
        thread::scope(|scope| {
            let workers: Vec<_> = volumes
                .chunks(volumes.len().div_ceil(AT_ONCE).max(1))
                .map(|some| scope.spawn(|| some.iter().map(look).collect::<Result<Vec<_>>>()))
                .collect();
            let mut all = Vec::with_capacity(volumes.len());
            for worker in workers {
                let some = worker.join().unwrap_or_else(|panic| resume_unwind(panic))?;
                all.extend(some.into_iter().flatten());
            }
            Ok(all)
        })
    }

    /// The volumes that go by `name`: their volume id, image spec, image, claim or CSI name.
    pub fn details(&self, name: &str) -> Result<Vec<Details>> {
        let known = self.known()?;
        let goes_by = |image: &str, record: &catalogue::Volume| {
            let spec = self.spec(image);
            [&record.id, &record.name, image, &spec].contains(&name)
                || record.claim.as_deref() == Some(name)
        };
        let found = known.volumes.iter().filter(|(image, stored)| goes_by(image, &stored.record));
        found.map(|(image, stored)| self.details_of(image, &stored.record, &known)).collect()
    }

    fn details_of(&self, name: &str, record: &catalogue::Volume, known: &Known) -> Result<Details> {
        let image = self.open_if_there(name)?;
        let overview = self.overview_of(name, record, image.as_deref(), known, true)?;
        let (mut lineage, mut open_at) = (None, Vec::new());
        if let Some(image) = &image {
            open_at =
                image.watchers()?.into_iter().map(|Watcher { address, .. }| address).collect();
            lineage = Some(self.look_at(name.to_owned(), image.id()?, &**image, known)?);
        }
        Ok(Details {
            overview,
            source: record.source.as_ref().map(ToString::to_string),
            mounter: record.context.get("mounter").cloned(),
            lineage,
            open_at,
        })
    }

    fn open_if_there(&self, name: &str) -> Result<Option<Box<dyn Image>>> {
        match self.pool.open_image(ImageKey::Name(name), OpenMode::ReadOnly) {
            Ok(image) => Ok(Some(image)),
            Err(error) if error.errno == Errno::ENOENT => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// `thorough` also counts the bytes of an image where that takes a look at each object.
    fn overview_of(
        &self,
        name: &str,
        record: &catalogue::Volume,
        image: Option<&dyn Image>,
        known: &Known,
        thorough: bool,
    ) -> Result<Overview> {
        let state = match (record.state, image) {
            (State::Creating, _) => VolumeState::Creating,
            (State::Deleting, _) => VolumeState::Deleting,
            (State::Restoring, _) => VolumeState::Restoring,
            (State::Returning, _) => VolumeState::Returning,
            (State::Ready, Some(_)) => VolumeState::Ready,
            (State::Ready, None) => VolumeState::ImageMissing,
        };
        let (mut size, mut used, mut depth) = (record.size, None, None);
        if let Some(image) = image {
            let info = image.info()?;
            size = info.size;
            depth = Some(self.depth(image, None)?);
            used = quickly_used(image, &info)?;
            if thorough && used.is_none() {
                used = Some(used_bytes(image, size)?);
            }
        }
        let is_its_own = |snapshot: &&Stored<catalogue::Snapshot>| {
            snapshot.record.state == State::Ready
                && Some(&snapshot.record.image_id) == record.image_id.as_ref()
        };
        Ok(Overview {
            id: record.id.clone(),
            image: name.to_owned(),
            name: record.name.clone(),
            claim: record.claim.clone(),
            size,
            used,
            nodes: record.published.iter().map(|published| published.node.clone()).collect(),
            snapshots: known.snapshots.values().filter(is_its_own).count(),
            depth,
            state,
            created: jiff::Timestamp::from_second(record.created).unwrap_or_default(),
        })
    }
}

/// [`used_bytes`], unless that takes a look at each object.
pub(super) fn quickly_used(image: &dyn Image, info: &ImageInfo) -> Result<Option<u64>> {
    let is_quick = info.features.contains(Features::FAST_DIFF);
    is_quick.then(|| used_bytes(image, info.size)).transpose()
}

/// Bytes of the objects that the head of an image has for itself.
fn used_bytes(image: &dyn Image, size: u64) -> Result<u64> {
    let whole = Diff {
        at: None,
        since: None,
        offset: 0,
        length: size,
        include_parent: false,
        whole_object: true,
    };
    let mut used = 0;
    image.diff(&whole, &mut |extent| {
        if extent.exists {
            used += extent.length;
        }
        ControlFlow::Continue(())
    })?;
    Ok(used)
}
