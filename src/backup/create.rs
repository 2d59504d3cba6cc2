//! Making restore points.
//!
//! Crash points, in this order:
//!
//! 1. The snapshot is cut. Killed here, it has neither draft nor manifest, and the next run removes
//!    it.
//! 2. The draft is written, then the objects. Killed here, the next run uploads what is missing.
//! 3. The manifest is written, unless there is one. From here on the restore point is there.
//! 4. The draft goes, and so do older snapshots of this target. Killed here, the next run does it.
//!
//! So an image has at most two snapshots for one target: the one that the next increment is based
//! on, and the one that is being read.
//!
//! Meanwhile a lease keeps the volume from being deleted, and other backups from it
//! ([`Volumes::hold_for_backup`]).

use jiff::Timestamp;
use serde::Serialize;

use super::manifest::{
    DRAFT, Draft, Kubernetes, Layout, MANIFEST, Manifest, Parent, Source, Volume,
};
use super::series::{self, Point, Series};
use super::store::Store;
use super::upload::Plan;
use crate::node::CONTENT_KEY;
use crate::rbd::{Errno, Image, ImageKey, OpenMode, Pool, Snapshot, SnapshotKind, Tolerate};
use crate::transfer::{Error, Job, Result, Which};
use crate::volume::{BackupHold, Volumes, image_spec, names};

/// What to back up, and how.
#[derive(Debug, Clone)]
pub struct Create {
    /// The image.
    pub image: Which,
    /// The name of its snapshot to back up. Without one, one is cut.
    pub snapshot: Option<String>,
    /// Whether a full restore point is made although an increment could be.
    pub full: bool,
    /// How many increments a full restore point may have before a new full one is made.
    pub increments: usize,
    /// What Kubernetes knows of the volume, if it was asked.
    pub kubernetes: Option<Kubernetes>,
}

/// What a backup has made.
#[derive(Debug, Clone, Serialize)]
pub struct Created {
    /// The restore point, as SERIES/ID.
    pub point: String,
    /// The image's spec.
    pub image: String,
    /// The snapshot that was read.
    pub snapshot: String,
    /// The image's size in bytes.
    pub size: u64,
    /// The restore point that it is an increment to; a full one has none.
    pub parent: Option<String>,
    /// Bytes that its objects take.
    pub stored: u64,
    /// Whether an earlier run had made it: the snapshot had been backed up.
    pub existing: bool,
    /// The restore point of a run that was killed, which was finished first.
    pub finished: Option<String>,
}

/// Makes a restore point. [`Error::Refused`] when there is no such image or snapshot, or another
/// backup of it is at work, and nothing was changed.
///
/// After any other error the next run goes on with what this one has uploaded.
pub fn create(volumes: &Volumes, store: &Store, request: &Create, job: &Job) -> Result<Created> {
    job.begin("looking at the image", 0);
    let opened = open(&**volumes.pool(), &request.image)?;
    let name = opened.name()?;
    let spec = image_spec(volumes.pool().name(), volumes.pool().namespace(), &name);
    if let Some(snapshot) = &request.snapshot {
        find(&*opened, &spec, snapshot)?;
    }
    let hold = volumes.hold_for_backup(&name)?;
    // Snapshots of a read-only image are those there were when it was opened.
    let image = volumes.pool().open_image(ImageKey::Id(&opened.id()?), OpenMode::ReadOnly)?;
    drop(opened);
    let mut run = Run { volumes, store, request, job, hold, spec, target: String::new() };
    run.target = series::target_id(store, true)?.unwrap_or_default();
    let source = run.source(&*image)?;
    let series = series::series_of(store, &source)?;
    let finished = run.clear_up(&*image, &source, &series)?;
    drop(image);
    run.make(&source, &series, finished)
}

/// One backup of one image.
struct Run<'a> {
    volumes: &'a Volumes,
    store: &'a Store,
    request: &'a Create,
    job: &'a Job,
    hold: BackupHold,
    spec: String,
    /// The target's id.
    target: String,
}

impl Run<'_> {
    /// The image, with no snapshot yet.
    fn source(&self, image: &dyn Image) -> Result<Source> {
        let pool = self.volumes.pool();
        Ok(Source {
            fsid: pool.cluster().fsid()?,
            pool: pool.name().to_owned(),
            namespace: pool.namespace().to_owned(),
            image: image.name()?,
            image_id: image.id()?,
            snapshot: String::new(),
            snapshot_id: 0,
            cut: 0,
        })
    }

    /// Finishes what a killed run has begun, and removes what cannot be finished and what is not
    /// needed any more. Returns the restore point that was finished.
    fn clear_up(&self, image: &dyn Image, source: &Source, series: &str) -> Result<Option<String>> {
        let mut finished = None;
        let before = Series::read(self.store, series)?;
        for id in &before.noted {
            self.store.remove(&format!("{series}/{id}/{DRAFT}"))?;
        }
        for (id, draft, objects) in before.drafts {
            let folder = format!("{series}/{id}");
            if let Some(draft) = draft {
                let found = image.snapshots()?.into_iter().find(|snapshot| {
                    snapshot.id == draft.snapshot_id && snapshot.name == draft.snapshot
                });
                let before = Series::read(self.store, series)?;
                let parent = draft.parent.as_deref();
                let base = parent.and_then(|parent| before.point(parent));
                let snapshots = image.snapshots()?;
                let is_usable = |base: &Point| snapshots.iter().any(|found| is_of(base, found));
                let based = parent.is_none() || base.is_some_and(is_usable);
                if let Some(snapshot) = found.filter(|_| based) {
                    let made = self.fill(image, source, series, &id, &snapshot, base, Some(&draft));
                    if let Some(manifest) = made? {
                        finished = Some(format!("{series}/{}", manifest.id));
                        self.store.tidy(&folder);
                        continue;
                    }
                }
            }
            // Its note goes last, so what is left is known as that.
            for object in objects.iter().filter(|object| !object.key.ends_with(DRAFT)) {
                self.store.remove(&object.key)?;
            }
            self.store.remove(&format!("{folder}/{DRAFT}"))?;
            self.store.tidy(&folder);
        }
        self.drop_snapshots(&source.image_id, &Series::read(self.store, series)?)?;
        Ok(finished)
    }

    /// Removes the snapshots that were cut for this target, but for the one that the next increment
    /// can be based on.
    fn drop_snapshots(&self, image_id: &str, series: &Series) -> Result<()> {
        let image = self.volumes.pool().open_image(ImageKey::Id(image_id), OpenMode::ReadOnly)?;
        let snapshots = image.snapshots()?;
        let is_base = |snapshot: &Snapshot| {
            series.points.iter().any(|point| is_of(point, snapshot))
                && series::snapshot_point(&self.target, &snapshot.name).is_some()
        };
        let keep = snapshots.iter().filter(|snapshot| is_base(snapshot)).map(|one| one.id).max();
        let mine = |snapshot: &&Snapshot| {
            snapshot.kind == SnapshotKind::User
                && series::snapshot_point(&self.target, &snapshot.name).is_some()
                && Some(snapshot.id) != keep
        };
        let unneeded: Vec<_> = snapshots.iter().filter(mine).collect();
        if unneeded.is_empty() {
            return Ok(());
        }
        self.job.begin(format!("removing earlier snapshots of {}", self.spec), 0);
        drop(image);
        let image = self.volumes.pool().open_image(ImageKey::Id(image_id), OpenMode::ReadWrite)?;
        for snapshot in unneeded {
            image.remove_snapshot(&snapshot.name).tolerate(Errno::ENOENT)?;
        }
        Ok(())
    }

    /// Makes the restore point that was asked for.
    fn make(&self, source: &Source, name: &str, finished: Option<String>) -> Result<Created> {
        let series = Series::read(self.store, name)?;
        let image_id = &source.image_id;
        let pool = self.volumes.pool();
        let id = series::id_after(series.newest_id(), Timestamp::now());
        let cut = if let Some(snapshot) = &self.request.snapshot {
            snapshot.clone()
        } else {
            self.job.begin(format!("cutting a snapshot of {}", self.spec), 0);
            let snapshot = series::snapshot_name(&self.target, &id);
            let image = pool.open_image(ImageKey::Id(image_id), OpenMode::ReadWrite)?;
            image.create_snapshot(&snapshot)?;
            snapshot
        };
        let image = pool.open_image(ImageKey::Id(image_id), OpenMode::ReadOnly)?;
        let snapshot = find(&*image, &self.spec, &cut)?;
        if let Some(point) = series.points.iter().find(|point| is_of(point, &snapshot)) {
            return Ok(self.created(name, &point.manifest, true, finished));
        }
        let base = if self.request.full { None } else { self.base(&*image, &series, &snapshot)? };
        let made = self.fill(&*image, source, name, &id, &snapshot, base, None)?;
        let manifest = made.ok_or_else(|| {
            Error::Refused(format!(
                "another run has made {name}/{id} in {} meanwhile",
                self.store.name()
            ))
        })?;
        drop(image);
        self.drop_snapshots(image_id, &Series::read(self.store, name)?)?;
        self.store.tidy(&format!("{name}/{id}"));
        Ok(self.created(name, &manifest, false, finished))
    }

    /// The restore point that an increment to `snapshot` can be based on: the newest whose snapshot
    /// is there still and is older, and whose chain is whole and not too long.
    fn base<'s>(
        &self,
        image: &dyn Image,
        series: &'s Series,
        snapshot: &Snapshot,
    ) -> Result<Option<&'s Point>> {
        let snapshots = image.snapshots()?;
        let usable = |point: &&Point| {
            point.manifest.source.snapshot_id < snapshot.id
                && snapshots.iter().any(|found| is_of(point, found))
        };
        let newest = series
            .points
            .iter()
            .filter(usable)
            .max_by_key(|point| point.manifest.source.snapshot_id);
        let Some(newest) = newest else { return Ok(None) };
        let Ok(chain) = series.chain(newest) else { return Ok(None) };
        Ok((chain.len() <= self.request.increments).then_some(newest))
    }

    /// Uploads what differs in the snapshot from that of `base`, and makes the restore point.
    /// `None` when `draft` is of another plan, or when there is a manifest already.
    #[expect(clippy::too_many_arguments, reason = "all that one restore point is")]
    fn fill(
        &self,
        image: &dyn Image,
        source: &Source,
        series: &str,
        id: &str,
        snapshot: &Snapshot,
        base: Option<&Point>,
        draft: Option<&Draft>,
    ) -> Result<Option<Manifest>> {
        let since = base.map(|point| {
            let source = &point.manifest.source;
            (source.snapshot_id, source.snapshot.as_str())
        });
        self.job.begin(format!("comparing snapshots of {}", self.spec), 0);
        let to = (snapshot.id, snapshot.name.as_str());
        let plan = Plan::make(image, to, snapshot.size, since, self.job)?;
        let cut = snapshot.created.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let source = Source {
            snapshot: snapshot.name.clone(),
            snapshot_id: snapshot.id,
            cut: i64::try_from(cut.as_secs()).unwrap_or(i64::MAX),
            ..source.clone()
        };
        let folder = format!("{series}/{id}");
        let parent = base.map(|point| point.manifest.id.clone());
        let new = Draft::new(&source, parent, plan.digest());
        match draft {
            Some(draft) if *draft != new => return Ok(None),
            Some(_) => {}
            None => self.store.put(&format!("{folder}/{DRAFT}"), new.bytes())?,
        }
        let there = match draft {
            Some(_) => self.store.list(&folder)?,
            None => Vec::new(),
        };
        self.job.begin(format!("backing up {}", self.spec), plan.bytes());
        let chunks = plan.upload(self.store, &folder, &there, self.job)?;
        let info = image.info()?;
        let layout = Layout {
            order: info.order,
            features: info.features.0,
            stripe_unit: info.stripe_unit,
            stripe_count: info.stripe_count,
        };
        let link = base
            .map(|point| Parent { id: point.manifest.id.clone(), blake3: point.digest.clone() });
        let manifest = Manifest::new(
            id.to_owned(),
            link,
            source.clone(),
            snapshot.size,
            since.map(|(_, name)| name.to_owned()),
            chunks,
            layout,
            // Read after the snapshot was cut: what is in the snapshot was marked before.
            image.metadata_get(CONTENT_KEY)?,
            self.volume(&source)?,
            self.request.kubernetes.clone(),
        );
        self.job.check()?;
        // Another run that has taken this one's place has fenced it.
        self.hold.renew()?;
        if let Some(base) = base
            && self.store.get(&format!("{series}/{}/{MANIFEST}", base.manifest.id))?.is_none()
        {
            return Err(Error::Failed(format!(
                "{} was removed while an increment to it was made: run the backup again",
                base.name()
            )));
        }
        if !self.store.put_new(&format!("{folder}/{MANIFEST}"), manifest.bytes())? {
            return Ok(None);
        }
        self.store.remove(&format!("{folder}/{DRAFT}"))?;
        Ok(Some(manifest))
    }

    /// What the catalogue knows of the volume, also when it is a silent parent.
    fn volume(&self, source: &Source) -> Result<Option<Volume>> {
        let name = names::before_silence(&source.image, &source.image_id);
        let Some(stored) = self.volumes.catalogue().volume(name)? else { return Ok(None) };
        let record = stored.record;
        let is_it = record.image_id.as_ref().is_none_or(|id| *id == source.image_id);
        Ok(is_it.then_some(Volume {
            id: record.id,
            name: record.name,
            context: record.context,
            clone_format: record.clone_format,
            delete_with_snapshots: record.delete_with_snapshots,
        }))
    }

    fn created(
        &self,
        series: &str,
        manifest: &Manifest,
        existing: bool,
        finished: Option<String>,
    ) -> Created {
        Created {
            point: format!("{series}/{}", manifest.id),
            image: self.spec.clone(),
            snapshot: manifest.source.snapshot.clone(),
            size: manifest.size,
            parent: manifest.parent.as_ref().map(|parent| format!("{series}/{}", parent.id)),
            stored: manifest.stored(),
            existing,
            finished,
        }
    }
}

/// Whether the restore point is of this snapshot.
fn is_of(point: &Point, snapshot: &Snapshot) -> bool {
    let source = &point.manifest.source;
    snapshot.kind == SnapshotKind::User
        && (snapshot.id, &snapshot.name) == (source.snapshot_id, &source.snapshot)
}

fn open(pool: &dyn Pool, which: &Which) -> Result<Box<dyn Image>> {
    let (key, name) = match which {
        Which::Name(name) => (ImageKey::Name(name), name),
        Which::Id(id) => (ImageKey::Id(id), id),
    };
    pool.open_image(key, OpenMode::ReadOnly).map_err(|error| match error.errno {
        Errno::ENOENT => {
            let spec = image_spec(pool.name(), pool.namespace(), name);
            Error::Refused(format!("there is no image {spec}"))
        }
        _ => error.into(),
    })
}

fn find(image: &dyn Image, spec: &str, name: &str) -> Result<Snapshot> {
    let wanted = |snapshot: &Snapshot| snapshot.kind == SnapshotKind::User && snapshot.name == name;
    image.snapshots()?.into_iter().find(wanted).ok_or_else(|| {
        Error::Refused(format!(
            "there is no snapshot {spec}@{name}: rbd snap ls lists those there are"
        ))
    })
}
