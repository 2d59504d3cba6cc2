//! Short forms the behaviours are written in.

use std::ops::ControlFlow;
use std::sync::Arc;

use cinderblock::rbd::{
    CloneFormat, Diff, Errno, Extent, Features, Image, ImageKey, ImageOptions, OpenMode, Pool,
    Result, Snapshot, SnapshotId, SnapshotKind, SnapshotSpec,
};

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;

/// Objects of the images made here, small so that images have several.
pub(crate) const OBJECT: u64 = 64 * KIB;

/// Where a behaviour is tried.
pub(crate) struct Place {
    /// An empty namespace.
    pub(crate) pool: Arc<dyn Pool>,
    /// The same namespace over another connection.
    pub(crate) other: Arc<dyn Pool>,
    /// A second empty namespace, over the connection of `pool`.
    pub(crate) elsewhere: Arc<dyn Pool>,
}

pub(crate) fn layout() -> ImageOptions {
    ImageOptions { features: Some(Features::DEFAULT), order: Some(16), ..ImageOptions::default() }
}

/// The layout without deep-flatten.
pub(crate) fn shallow() -> ImageOptions {
    let features = Features(Features::DEFAULT.0 & !Features::DEEP_FLATTEN.0);
    ImageOptions { features: Some(features), ..layout() }
}

/// An image of 1 MiB.
pub(crate) fn create(pool: &Arc<dyn Pool>, name: &str) {
    pool.create_image(name, MIB, &layout()).unwrap();
}

/// An image of 1 MiB, opened for writing.
pub(crate) fn created(pool: &Arc<dyn Pool>, name: &str) -> Box<dyn Image> {
    create(pool, name);
    open(pool, name)
}

pub(crate) fn open(pool: &Arc<dyn Pool>, name: &str) -> Box<dyn Image> {
    pool.open_image(ImageKey::Name(name), OpenMode::ReadWrite).unwrap()
}

pub(crate) fn open_read_only(pool: &Arc<dyn Pool>, name: &str) -> Box<dyn Image> {
    pool.open_image(ImageKey::Name(name), OpenMode::ReadOnly).unwrap()
}

pub(crate) fn spec(pool: &Arc<dyn Pool>, image: &str, snapshot: &str) -> SnapshotSpec {
    SnapshotSpec {
        pool: pool.name().to_owned(),
        namespace: pool.namespace().to_owned(),
        image: image.to_owned(),
        snapshot: snapshot.to_owned(),
    }
}

/// Clones `image@snapshot` in format 2, with the parent's layout.
pub(crate) fn clone(pool: &Arc<dyn Pool>, image: &str, snapshot: &str, name: &str) {
    pool.clone_image(&spec(pool, image, snapshot), name, &ImageOptions::default()).unwrap();
}

pub(crate) fn format(clone_format: CloneFormat) -> ImageOptions {
    ImageOptions { clone_format, ..ImageOptions::default() }
}

/// The id of the user snapshot `name`.
pub(crate) fn snapshot_id(image: &dyn Image, name: &str) -> SnapshotId {
    snapshot(image, name).id
}

pub(crate) fn snapshot(image: &dyn Image, name: &str) -> Snapshot {
    let snapshots = image.snapshots().unwrap();
    let found = snapshots
        .iter()
        .find(|snapshot| snapshot.kind == SnapshotKind::User && snapshot.name == name);
    found.unwrap_or_else(|| panic!("no snapshot {name} in {snapshots:?}")).clone()
}

pub(crate) fn snapshot_names(image: &dyn Image) -> Vec<String> {
    image.snapshots().unwrap().into_iter().map(|snapshot| snapshot.name).collect()
}

pub(crate) fn image_names(pool: &Arc<dyn Pool>) -> Vec<String> {
    let mut names: Vec<String> =
        pool.list_images().unwrap().into_iter().map(|image| image.name).collect();
    names.sort();
    names
}

pub(crate) fn remove_all(pool: &Arc<dyn Pool>, names: &[&str]) {
    for name in names {
        pool.remove_image(name).unwrap();
    }
}

pub(crate) fn flatten(image: &dyn Image) {
    image.flatten(&mut |_, _| ControlFlow::Continue(())).unwrap();
}

/// `length` bytes at `offset` of the head.
pub(crate) fn read(image: &dyn Image, offset: u64, length: usize) -> Vec<u8> {
    read_at(image, None, offset, length)
}

pub(crate) fn read_at(
    image: &dyn Image,
    at: Option<SnapshotId>,
    offset: u64,
    length: usize,
) -> Vec<u8> {
    let mut buffer = vec![0xee; length];
    let count = image.read_at(at, offset, &mut buffer).unwrap();
    buffer.truncate(count);
    buffer
}

/// All of the head, or of what lies between two snapshots; `whole_object` off, parents left out.
pub(crate) fn everything() -> Diff {
    Diff {
        at: None,
        since: None,
        offset: 0,
        length: u64::MAX,
        include_parent: false,
        whole_object: false,
    }
}

/// The extents of `query`, neighbours joined: where one ends and the next begins is not promised.
pub(crate) fn diff(image: &dyn Image, query: &Diff) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    image
        .diff(query, &mut |extent| {
            match extents.last_mut() {
                Some(last)
                    if last.offset + last.length == extent.offset
                        && last.exists == extent.exists =>
                {
                    last.length += extent.length;
                }
                _ => extents.push(extent),
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    extents
}

/// The errno of what must fail.
#[track_caller]
pub(crate) fn errno<T>(answer: Result<T>) -> Errno {
    match answer {
        Ok(_) => panic!("the call must fail"),
        Err(error) => error.errno,
    }
}
