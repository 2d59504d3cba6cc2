//! Golden images: images that volumes are cloned from, by their location in a StorageClass.
//!
//! An image is one when its metadata says so ([`KEY`]): those that were imported, and those whose
//! snapshot was cut here. No volume is one. Each step may be done twice, so a run that was killed
//! is finished by the same run again.

use serde::{Deserialize, Serialize};

use super::error::failed;
use super::{Error, Job, Result};
use crate::rbd::{Child, Errno, Image, ImageKey, OpenMode, Snapshot, SnapshotKind, Tolerate};
use crate::volume::{ImageLocation, Volumes, image_spec, names, temporary};

/// The key of an image's metadata that makes it one.
const KEY: &str = "cinderblock.image";

/// How many clones a message names.
const NAMED: usize = 5;

/// Where an image came from.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Origin {
    /// The source of its import, if it was imported.
    pub source: Option<String>,
    /// The format of the source.
    pub format: Option<String>,
    /// The checksum of the source, if one was made.
    pub checksum: Option<String>,
    /// Since when it is one, in seconds since 1970.
    pub since: i64,
    /// The image's id. Clones and copies inherit metadata, and are no such images for that.
    pub image_id: String,
}

impl Origin {
    pub(super) fn write(mut self, image: &dyn Image) -> Result<()> {
        self.image_id = image.id()?;
        let text = serde_json::to_string(&self).map_err(failed("the image's origin"))?;
        Ok(image.metadata_set(KEY, &text)?)
    }

    fn read(image: &dyn Image) -> Result<Option<Origin>> {
        let Some(text) = image.metadata_get(KEY)? else { return Ok(None) };
        let id = image.id()?;
        let origin = serde_json::from_str(&text).ok();
        Ok(origin.filter(|origin: &Origin| origin.image_id == id))
    }
}

/// A golden image.
#[derive(Debug, Clone, Serialize)]
pub struct GoldenImage {
    /// Its spec.
    pub image: String,
    /// Its size in bytes.
    pub size: u64,
    /// Where it came from.
    #[serde(flatten)]
    pub origin: Origin,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<GoldenSnapshot>,
}

/// A snapshot of a golden image.
#[derive(Debug, Clone, Serialize)]
pub struct GoldenSnapshot {
    /// Its name.
    pub name: String,
    /// What a StorageClass's `sourceImage` calls it.
    pub location: String,
    /// Whether it is protected.
    pub protected: bool,
    /// How many clones it has.
    pub clones: usize,
}

/// Cuts the snapshot `snapshot` of an image and protects it, so that volumes can be cloned from it
/// in either format. Fine when that was done before. Returns its location.
pub fn snapshot(volumes: &Volumes, name: &str, snapshot: &str) -> Result<String> {
    check_snapshot_name(snapshot)?;
    let spec = spec(volumes, name);
    let image = open(volumes, name)?.ok_or_else(|| absent(&spec))?;
    let found = image.snapshots()?.into_iter().find(|found| found.name == snapshot);
    if found.is_none() {
        image.create_snapshot(snapshot).tolerate(Errno::EEXIST)?;
    }
    if found.is_none_or(|found| !found.protected) {
        // It may have been protected by another client since.
        image.protect_snapshot(snapshot).tolerate(Errno::EBUSY)?;
    }
    if Origin::read(&*image)?.is_none() {
        let since = jiff::Timestamp::now().as_second();
        Origin { since, ..Origin::default() }.write(&*image)?;
    }
    location(volumes, name, snapshot)
}

/// The golden images of a pool, by name. Every image of it is looked at that is no volume.
pub fn list(volumes: &Volumes, job: &Job) -> Result<Vec<GoldenImage>> {
    let pool = volumes.pool();
    let mut entries = pool.list_images()?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    job.begin("looking at images", entries.len() as u64);
    let mut found = Vec::new();
    for entry in entries {
        job.check()?;
        job.advance(1);
        if is_the_drivers(volumes, &entry.name)? {
            continue;
        }
        let image = match pool.open_image(ImageKey::Id(&entry.id), OpenMode::ReadOnly) {
            Ok(image) => image,
            // Gone meanwhile, or half gone.
            Err(error) if error.errno == Errno::ENOENT => continue,
            Err(error) => return Err(error.into()),
        };
        if let Some(origin) = Origin::read(&*image)? {
            found.push(look_at(volumes, &entry.name, &*image, origin)?);
        }
    }
    Ok(found)
}

fn look_at(
    volumes: &Volumes,
    name: &str,
    image: &dyn Image,
    origin: Origin,
) -> Result<GoldenImage> {
    let mut snapshots = Vec::new();
    for Snapshot { id, name: snapshot, kind, protected, .. } in image.snapshots()? {
        if kind == SnapshotKind::User && !temporary::is_export_snapshot(&snapshot) {
            let location = location(volumes, name, &snapshot)?;
            let clones = image.children(Some(id))?.len();
            snapshots.push(GoldenSnapshot { name: snapshot, location, protected, clones });
        }
    }
    Ok(GoldenImage { image: spec(volumes, name), size: image.info()?.size, origin, snapshots })
}

/// Removes a golden image with its snapshots. [`Error::Refused`] when it has clones, is open
/// elsewhere, or is none; nothing is changed then.
pub fn remove(volumes: &Volumes, name: &str, job: &Job) -> Result<()> {
    let (spec, pool) = (spec(volumes, name), volumes.pool());
    job.begin(format!("removing {spec}"), 0);
    let Some(image) = open(volumes, name)? else {
        // The remains of a removal that was interrupted, perhaps.
        return match pool.remove_image(name) {
            Err(error) if error.errno == Errno::ENOENT => Err(absent(&spec)),
            other => Ok(other?),
        };
    };
    if Origin::read(&*image)?.is_none() {
        return Err(Error::Refused(format!(
            "{spec} was not imported here, and has no snapshot that was cut here: `rbd rm` removes it"
        )));
    }
    if let Some(watcher) = image.watchers()?.first() {
        let client = &watcher.address;
        return Err(Error::Refused(format!("{spec} is in use: the client {client} has it open")));
    }
    let snapshots = image.snapshots()?;
    let mut clones = Vec::new();
    for snapshot in &snapshots {
        clones.extend(image.children(Some(snapshot.id))?);
    }
    refuse_clones(&spec, &clones)?;
    let others = |snapshot: &&Snapshot| {
        !matches!(snapshot.kind, SnapshotKind::User | SnapshotKind::Trash { .. })
    };
    if let Some(snapshot) = snapshots.iter().find(others) {
        let name = &snapshot.name;
        return Err(Error::Refused(format!("{spec}@{name} belongs to a group or a mirror")));
    }
    for snapshot in snapshots {
        drop_snapshot(&*image, &spec, &snapshot)?;
    }
    drop(image);
    let total = 100;
    job.begin(format!("removing {spec}"), total);
    pool.remove_image_with_progress(name, &mut |done, of| {
        job.set_done((done * total).checked_div(of).unwrap_or(0));
        std::ops::ControlFlow::Continue(())
    })?;
    Ok(())
}

/// Removes a snapshot that had no clone when it was looked at. Should it have one now, it stays.
fn drop_snapshot(image: &dyn Image, spec: &str, snapshot: &Snapshot) -> Result<()> {
    if snapshot.kind != SnapshotKind::User {
        return Ok(image.remove_snapshot_by_id(snapshot.id).tolerate(Errno::ENOENT)?);
    }
    let Snapshot { id, name, .. } = snapshot;
    if snapshot.protected {
        match image.unprotect_snapshot(name) {
            Err(error) if error.errno == Errno::EBUSY => {
                return refuse_clones(spec, &image.children(Some(*id))?);
            }
            other => other.tolerate(Errno::EINVAL)?,
        }
        let clones = image.children(Some(*id))?;
        if !clones.is_empty() {
            image.protect_snapshot(name).tolerate(Errno::EBUSY)?;
            return refuse_clones(spec, &clones);
        }
    }
    Ok(image.remove_snapshot(name).tolerate(Errno::ENOENT)?)
}

fn refuse_clones(spec: &str, clones: &[Child]) -> Result<()> {
    if clones.is_empty() {
        return Ok(());
    }
    let named: Vec<_> = clones
        .iter()
        .take(NAMED)
        .map(|clone| image_spec(&clone.pool, &clone.namespace, &clone.image))
        .collect();
    let more = clones.len() - named.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Err(Error::Refused(format!(
        "{spec} has clones, which read from it: {}{more}. Delete those first, or `rbd flatten` them",
        named.join(", ")
    )))
}

/// Opens an image that is not the driver's own, for changes; `None` when it is not there.
fn open(volumes: &Volumes, name: &str) -> Result<Option<Box<dyn Image>>> {
    let spec = spec(volumes, name);
    if is_the_drivers(volumes, name)? {
        return Err(Error::Refused(format!(
            "{spec} is a volume, or was one, or is in the making: it is deleted, and its snapshots are \
             cut, by Kubernetes; export it and import it to make a golden image of it"
        )));
    }
    match volumes.pool().open_image(ImageKey::Name(name), OpenMode::ReadWrite) {
        Ok(image) => Ok(Some(image)),
        Err(error) if error.errno == Errno::ENOENT => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether an image of this name is in the catalogue, or has a name that only the driver gives.
fn is_the_drivers(volumes: &Volumes, name: &str) -> Result<bool> {
    Ok(name.ends_with(names::SILENT_SUFFIX)
        || temporary::is_temporary(name)
        || volumes.catalogue().volume(name)?.is_some())
}

fn absent(spec: &str) -> Error {
    Error::Refused(format!("there is no image {spec}"))
}

fn check_snapshot_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
        return Err(Error::Refused(format!(
            "{name:?} is no name for a snapshot: 1 to 64 letters, digits, dots, dashes and underlines"
        )));
    }
    if names::is_collectable_snapshot(name) || name.starts_with(names::BACKUP_SNAPSHOT_PREFIX) {
        return Err(Error::Refused(format!("{name} is like names of the driver's own snapshots")));
    }
    Ok(())
}

fn spec(volumes: &Volumes, name: &str) -> String {
    let pool = volumes.pool();
    image_spec(pool.name(), pool.namespace(), name)
}

fn location(volumes: &Volumes, image: &str, snapshot: &str) -> Result<String> {
    let pool = volumes.pool();
    let fsid = pool.cluster().fsid()?;
    Ok(ImageLocation::write(&fsid, pool.name(), pool.namespace(), image, snapshot))
}
