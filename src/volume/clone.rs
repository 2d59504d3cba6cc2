//! Making a clone: its snapshot, the depth of its chain, the link seen from both sides.
//!
//! Crash points: whatever a kill leaves here hangs on the link in the record, or holds nothing,
//! until the flatten begins; so the image's id is in the record before that. See `delete` for how a
//! leftover is told from another client's image.

use super::catalogue::{Link, Stored, Volume};
use super::create::{CreateVolume, describe};
use super::golden::may_not_clone;
use super::journal::Suspect;
use super::modify::not_inherited;
use super::snapshot::find;
use super::{Error, FlattenTarget, Result, Volumes};
use crate::metrics::metrics;
use crate::rbd::{
    CloneFormat, Errno, Features, Image, ImageKey, ImageOptions, OpenMode, Snapshot, SnapshotSpec,
    Tolerate,
};

/// A source that was looked at and can be cloned.
pub(super) struct Parent {
    /// The volumes it is among.
    pub(super) home: Volumes,
    /// Its image, open read-only, as it was when it was looked at.
    pub(super) image: Box<dyn Image>,
    /// The image's id.
    pub(super) image_id: String,
    /// Bytes a clone has at least.
    pub(super) size: u64,
    /// How many snapshots it has, of all kinds.
    pub(super) snapshots: usize,
    /// The link the clone is to have.
    pub(super) link: Link,
    /// The snapshot to clone when it exists already; a clone of a head gets one cut.
    pub(super) snapshot: Option<Snapshot>,
    /// A childless snapshot that has the name of the one to cut: an older point in time, left by an
    /// earlier client.
    pub(super) stale: Option<Snapshot>,
    /// Whether it is a golden image, of which nothing may be changed.
    pub(super) is_golden: bool,
}

impl Volumes {
    /// Makes the image of a volume as a clone, at most as deep as the policy allows. Returns the
    /// record as it is to be written when all is well; `stored` is what is written now.
    pub(super) fn clone_volume(
        &self,
        request: &CreateVolume,
        stored: &mut Stored<Volume>,
        parent: &Parent,
    ) -> Result<Volume> {
        let (depth, flatten) = self.shorten(request, parent)?;
        let snapshot = self.snapshot_to_clone(request, parent)?;
        // The source may have grown since it was looked at.
        let size = stored.record.size.max(snapshot.size);
        if !request.sizes.allow(size) {
            return Err(Error::Conflict(format!(
                "the source grew to {size} bytes while it was cloned"
            )));
        }
        self.activity.begin(format!("cloning to {}", self.spec(&request.image)));
        let spec = SnapshotSpec {
            pool: parent.link.pool.clone(),
            namespace: parent.link.namespace.clone(),
            image: parent.image.name()?,
            snapshot: snapshot.name.clone(),
        };
        let options = ImageOptions {
            order: None,
            stripe_unit: None,
            stripe_count: None,
            ..request.options.clone()
        };
        match self.pool.clone_image(&spec, &request.image, &options) {
            Ok(()) => {}
            Err(error) if error.errno == Errno::EEXIST => {
                return Err(self.name_is_taken(&request.image, stored)?);
            }
            Err(error) if source_changed(&error, request) => {
                self.refuse_if_at_quota()?;
                return Err(Error::Conflict(format!(
                    "the source changed while it was cloned: {error}"
                )));
            }
            Err(error) if parent.is_golden && error.errno == Errno::EPERM => {
                let image = format!("{}@{}", parent.home.spec(&spec.image), spec.snapshot);
                return Err(may_not_clone(image, &spec.pool, &spec.namespace, error));
            }
            Err(error) => return Err(error.into()),
        }
        let grows = size > snapshot.size;
        let not_inherited = not_inherited(&*parent.image, &request.settings)?;
        let changes =
            grows || flatten.is_some() || request.has_metadata() || !not_inherited.is_empty();
        let image = if changes {
            self.pool.open_image(ImageKey::Name(&request.image), OpenMode::ReadWrite)?
        } else {
            self.pool.open_image(ImageKey::Name(&request.image), OpenMode::ReadOnly)?
        };
        let id = image.id()?;
        verify_link(&*image, &id, parent, &snapshot)?;
        if grows {
            image.resize(size, false).map_err(|error| match error.errno {
                Errno::EINVAL => self.cannot_have(&request.image, size, &error),
                _ => error.into(),
            })?;
        }
        if let Some(why) = flatten {
            let known = Volume { image_id: Some(id.clone()), ..stored.record.clone() };
            *stored = self.catalogue.replace(&request.image, stored, known)?;
            self.flatten(&*image, &self.spec(&request.image), &why)?;
        }
        for key in &not_inherited {
            image.metadata_remove(key)?;
        }
        if request.has_metadata() {
            describe(&*image, request)?;
        }
        metrics().clone_made(depth);
        Ok(Volume { image_id: Some(id), size, ..stored.record.clone() })
    }

    /// Refuses to make more in a pool at its quota, where librbd's clone says that there is no
    /// source.
    fn refuse_if_at_quota(&self) -> Result<()> {
        match self.pool.stats() {
            Ok(stats) if stats.quota.is_some_and(|quota| stats.stored >= quota) => {
                Err(Error::Exhausted(format!(
                    "the pool {} holds {} bytes, more than its quota allows: delete volumes, or raise the quota",
                    self.pool.name(),
                    stats.stored
                )))
            }
            _ => Ok(()),
        }
    }

    /// Makes the chain short enough for one more clone, by flattening the source if the policy has
    /// it so. Answers how many ancestors the clone is to have, and why it must be flattened
    /// instead, or anyhow, if it must. A depth of 0 is a full copy: a clone that is flattened.
    fn shorten(&self, request: &CreateVolume, parent: &Parent) -> Result<(u32, Option<String>)> {
        let policy = &request.policy;
        if policy.max_clone_depth == 0 {
            return Ok((0, Some("maxCloneDepth is 0 and every clone a full copy".to_string())));
        }
        if parent.snapshot.is_some() && !parent.is_golden && policy.flatten_on_restore {
            return Ok((0, Some("flattenOnRestore is on".to_string())));
        }
        let at = parent.snapshot.as_ref().map(|snapshot| snapshot.id);
        let depth = self.depth(&*parent.image, at)?;
        if depth < policy.max_clone_depth {
            return Ok((depth + 1, None));
        }
        let why = format!(
            "its chain of clones is as long as maxCloneDepth ({}) allows",
            policy.max_clone_depth
        );
        if parent.is_golden {
            return Ok((0, Some(why)));
        }
        // A snapshot keeps its own link, which only a deep flatten cuts.
        let helps = at.is_none() || parent.image.info()?.features.contains(Features::DEEP_FLATTEN);
        let wanted = match policy.flatten_target {
            FlattenTarget::Clone => false,
            FlattenTarget::Source => true,
            FlattenTarget::Auto => !parent.is_attached()?,
        };
        if !(helps && wanted && parent.image.hold()?.is_none()) {
            return Ok((0, Some(why)));
        }
        let source = parent.open(OpenMode::ReadWrite)?;
        parent.home.flatten(&*source, &parent.home.spec(&source.name()?), &why)?;
        drop(source);
        let source = parent.open(OpenMode::ReadOnly)?;
        let depth = self.depth(&*source, at)?;
        let short = depth < policy.max_clone_depth;
        Ok(if short { (depth + 1, None) } else { (0, Some(why)) })
    }

    /// The snapshot to clone, ready for that: the one asked for, or one newly cut.
    fn snapshot_to_clone(&self, request: &CreateVolume, parent: &Parent) -> Result<Snapshot> {
        let protect = request.options.clone_format == CloneFormat::V1;
        if let Some(snapshot) = &parent.snapshot {
            if protect && !snapshot.protected && !parent.is_golden {
                let source = parent.open(OpenMode::ReadWrite)?;
                source.protect_snapshot(&snapshot.name).tolerate(Errno::EBUSY)?;
            }
            return Ok(snapshot.clone());
        }
        if parent.snapshots >= request.policy.max_snapshots {
            let spec = parent.home.spec(&parent.image.name()?);
            parent.home.make_room(&parent.image_id, &spec, request.policy.max_snapshots)?;
        }
        let source = parent.open(OpenMode::ReadWrite)?;
        let name = &parent.link.snapshot;
        if let Some(stale) = &parent.stale {
            if !parent.home.clones(&*source, &parent.image_id, stale.id)?.is_empty() {
                return Err(Error::Conflict(format!(
                    "another client cloned {}@{name} just now",
                    parent.image_id
                )));
            }
            let stale_link = Suspect {
                snapshot: Some(stale.id),
                ..parent.home.as_suspect(&source.name()?, &parent.image_id)
            };
            self.suspect(&[stale_link])?;
            parent.home.drop_snapshot(&*source, &parent.image_id, stale)?;
        }
        self.activity.begin(format!("taking a snapshot for {}", self.spec(&request.image)));
        source.create_snapshot(name)?;
        if protect {
            refuse_if_blind(&*source, parent, name)?;
            source.protect_snapshot(name).tolerate(Errno::EBUSY)?;
        }
        find(&source.snapshots()?, name).cloned().ok_or_else(|| {
            Error::Conflict(format!(
                "another client removed the snapshot {}@{name}",
                parent.image_id
            ))
        })
    }
}

/// Takes the snapshot just cut away again when the user may not see its clones: once it is
/// protected, only one who may can take the protection off.
fn refuse_if_blind(source: &dyn Image, parent: &Parent, name: &str) -> Result<()> {
    let Some(cut) = find(&source.snapshots()?, name).cloned() else { return Ok(()) };
    let Err(blind) = parent.home.clones(source, &parent.image_id, cut.id) else { return Ok(()) };
    parent.home.drop_snapshot(source, &parent.image_id, &cut)?;
    Err(blind)
}

impl Parent {
    fn open(&self, mode: OpenMode) -> Result<Box<dyn Image>> {
        self.home.pool.open_image(ImageKey::Id(&self.image_id), mode).map_err(|error| {
            match error.errno {
                Errno::ENOENT => Error::Conflict(format!("the source is gone: {error}")),
                _ => error.into(),
            }
        })
    }

    fn is_attached(&self) -> Result<bool> {
        let record = self.home.catalogue.volume(&self.image.name()?)?;
        let published = record.is_some_and(|stored| !stored.record.published.is_empty());
        Ok(published || !self.home.strangers(&self.image.watchers()?)?.is_empty())
    }
}

/// Whether a clone failed because its source, or the snapshot of it, went or was renamed meanwhile.
/// The retry looks again.
fn source_changed(error: &crate::rbd::Error, request: &CreateVolume) -> bool {
    let unprotected =
        error.errno == Errno::EINVAL && request.options.clone_format == CloneFormat::V1;
    error.errno == Errno::ENOENT || unprotected
}

/// Both ends of a new link must be there: a clone without it reads as zeros, a parent without it
/// can be removed. librbd lists the clone at the parent before its call returns, and a look at that
/// list takes the longer the more clones there are. A golden image may have thousands, so its list
/// is not looked at.
fn verify_link(image: &dyn Image, id: &str, parent: &Parent, snapshot: &Snapshot) -> Result<()> {
    let upwards = image
        .parent(None)?
        .is_some_and(|link| link.image_id == parent.image_id && link.snapshot_id == snapshot.id);
    let is_listed = || -> Result<bool> {
        let clones = parent.home.clones(&*parent.image, &parent.image_id, snapshot.id)?;
        Ok(clones.iter().any(|child| child.image_id == id))
    };
    if upwards && (parent.is_golden || is_listed()?) {
        return Ok(());
    }
    let name = image.name()?;
    Err(Error::Conflict(format!("{name} is not linked to {}@{}", parent.image_id, snapshot.name)))
}
