//! Volumes made of restore points.
//!
//! The newest restore point is applied first, and each older one where none that is newer has said
//! anything, so no byte is written twice. Then the whole chain is read again and compared with what
//! the image has now, and what no restore point has data for with zeros. Crash points are in
//! [`crate::volume::Restoring`].

use std::ops::ControlFlow;

use serde::Serialize;

use super::read;
use super::series::Point;
use super::store::Store;
use super::verify::find;
use crate::node::CONTENT_KEY;
use crate::rbd::{Diff, Extent, Features, Image, ImageOptions};
use crate::transfer::{Error, Job, Result};
use crate::volume::{DeleteWithSnapshots, RestoreVolume, Restoring, Volumes, image_spec};

/// Bytes that are compared at once.
const PIECE: u64 = 4 << 20;
/// Bytes whose extents are asked for at once.
const WINDOW: u64 = 64 << 30;

/// Feature bits that a new image can be given.
const FEATURES: u64 = Features::DEFAULT.0;

/// What says that an image holds something that is never to be formatted.
const BLOCK: &str = "block";

/// What to restore, and where to.
#[derive(Debug, Clone)]
pub struct Restore {
    /// The restore point: SERIES/ID, or SERIES for its newest.
    pub point: String,
    /// The image's name.
    pub image: String,
    /// The volume id it is handed out under.
    pub id: String,
    /// Bytes it has at least, if more than the restore point.
    pub size: Option<u64>,
    /// Whether a volume that is there may be overwritten.
    pub overwrite: bool,
    /// Pool for the data objects of a new image; that of the image when `None`.
    pub data_pool: Option<String>,
}

/// What was restored.
#[derive(Debug, Clone, Serialize)]
pub struct Restored {
    /// The restore point, as SERIES/ID.
    pub point: String,
    /// The volume's id.
    pub volume: String,
    /// The image's spec.
    pub image: String,
    /// Its size in bytes.
    pub size: u64,
    /// What its metadata says of its content.
    pub content: String,
    /// The context that nodes need: `volumeAttributes` of a PersistentVolume.
    pub context: std::collections::BTreeMap<String, String>,
}

/// Makes a volume of a restore point. [`Error::Refused`] when its chain is broken, or the volume
/// cannot be had, and nothing was changed.
///
/// After any other error a new volume is gone, and one that was to be overwritten is not handed out
/// until the restore was run again.
pub fn restore(volumes: &Volumes, store: &Store, request: &Restore, job: &Job) -> Result<Restored> {
    job.begin("looking at the restore point", 0);
    let (series, index) = find(store, &request.point)?;
    let point = &series.points[index];
    let chain = series.chain(point)?;
    for link in &chain {
        refuse_missing(store, link)?;
    }
    let manifest = &point.manifest;
    let size = request.size.unwrap_or(manifest.size);
    if size < manifest.size {
        return Err(Error::Refused(format!(
            "{} has {} bytes, and does not fit into {size}",
            point.name(),
            manifest.size
        )));
    }
    crate::transfer::check_name(&request.image)?;
    let layout = &manifest.layout;
    let striped = layout.stripe_count > 1;
    let known = manifest.volume.as_ref();
    let mut context = known.map(|volume| volume.context.clone()).unwrap_or_default();
    context.insert("imageName".to_owned(), request.image.clone());
    let begin = RestoreVolume {
        image: request.image.clone(),
        id: request.id.clone(),
        size,
        options: ImageOptions {
            features: Some(Features(layout.features & FEATURES)),
            order: Some(layout.order),
            stripe_unit: striped.then_some(layout.stripe_unit),
            stripe_count: striped.then_some(layout.stripe_count),
            data_pool: request.data_pool.clone(),
            ..ImageOptions::default()
        },
        overwrite: request.overwrite,
        context,
        clone_format: known.map_or(2, |volume| volume.clone_format),
        delete_with_snapshots: known
            .map_or(DeleteWithSnapshots::default(), |volume| volume.delete_with_snapshots),
    };
    let pool = volumes.pool();
    let spec = image_spec(pool.name(), pool.namespace(), &request.image);
    job.begin(format!("making {spec}"), 0);
    let restoring = volumes.begin_restore(&begin)?;
    match fill(&restoring, store, &chain, &spec, job) {
        Ok(mark) => {
            let record = restoring.finish()?;
            Ok(Restored {
                point: point.name(),
                volume: record.id,
                image: spec,
                size: record.size,
                content: mark,
                context: record.context,
            })
        }
        Err(error) => {
            job.begin(format!("removing {spec}"), 0);
            // The first error tells more, and the next run clears up as well.
            let _ = restoring.abandon();
            Err(error)
        }
    }
}

/// [`Error::Refused`] when an object of the restore point is missing or has another size.
fn refuse_missing(store: &Store, point: &Point) -> Result<()> {
    let listed = store.list(&point.name())?;
    for chunk in &point.manifest.chunks {
        let key = format!("{}/{}", point.name(), chunk.object);
        let found = listed.iter().find(|object| object.key == key);
        if found.is_none_or(|object| object.size != chunk.size) {
            let what = if found.is_some() { "has another size" } else { "is missing" };
            return Err(Error::Refused(format!(
                "{} cannot be restored: {} {what}",
                point.name(),
                store.shown(&key)
            )));
        }
    }
    Ok(())
}

/// Fills the image, compares it, and marks it. Returns the mark.
fn fill(
    restoring: &Restoring,
    store: &Store,
    chain: &[&Point],
    spec: &str,
    job: &Job,
) -> Result<String> {
    let image = restoring.image();
    let stored: u64 = chain.iter().map(|point| point.manifest.stored()).sum();
    job.begin(format!("restoring {spec}"), stored);
    read::layers(store, chain, job, |offset, data| Ok(image.write_at(offset, data)?))?;
    image.flush()?;
    job.begin(format!("comparing {spec}"), stored);
    compare(image, restoring.size(), store, chain, spec, job)?;
    let content = match chain[0].manifest.content.as_deref() {
        // A filesystem that was never mounted holds nothing, and must not be made anew here.
        Some(content) if !content.starts_with("mkfs ") => content,
        _ => BLOCK,
    };
    image.metadata_set(CONTENT_KEY, content)?;
    image.flush()?;
    job.check()?;
    Ok(content.to_owned())
}

/// Compares all of the image with what the chain says.
fn compare(
    image: &dyn Image,
    size: u64,
    store: &Store,
    chain: &[&Point],
    spec: &str,
    job: &Job,
) -> Result<()> {
    let differs = |offset: u64| {
        Error::Failed(format!(
            "{spec} does not have the bytes at {offset} that were written to it just now"
        ))
    };
    let data = read::layers(store, chain, job, |offset, expected| {
        let mut found = vec![0; expected.len()];
        let count = image.read_at(None, offset, &mut found)?;
        if count == found.len() && found == expected { Ok(()) } else { Err(differs(offset)) }
    })?;
    let whole_object = image.info()?.features.contains(Features::FAST_DIFF);
    let mut offset = 0;
    while offset < size {
        let end = (offset + WINDOW).min(size);
        let query = Diff {
            at: None,
            since: None,
            offset,
            length: end - offset,
            include_parent: true,
            whole_object,
        };
        let mut extents = Vec::new();
        image.diff(&query, &mut |Extent { offset: start, length, .. }| {
            extents.push(start.max(offset)..(start + length).min(end));
            ControlFlow::Continue(())
        })?;
        for range in extents.into_iter().flat_map(|extent| data.missing(extent)) {
            job.check()?;
            let mut at = range.start;
            while at < range.end {
                let length = PIECE.min(range.end - at);
                let mut found = vec![1; usize::try_from(length).unwrap_or(0)];
                let count = image.read_at(None, at, &mut found)?;
                if count != found.len() || found.iter().any(|byte| *byte != 0) {
                    return Err(differs(at));
                }
                at += length;
            }
        }
        offset = end;
    }
    Ok(())
}
