//! The long calls: flatten and copy. Each object they write is one step, and progress counts objects.

use std::collections::{BTreeMap, BTreeSet};

use super::create::{self, Layout};
use super::data::Object;
use super::lineage;
use super::session::Call;
use super::state::{ImageRef, Outcome, Place, State};
use crate::rbd::{Errno, Features, ImageOptions, Progress, SnapshotId};

/// The objects of a head or snapshot as they read through the parents, by number.
fn objects(call: &Call<'_>, image: &ImageRef, at: Option<SnapshotId>) -> Outcome<BTreeMap<u64, Object>> {
    let state = call.state();
    let version = state.version(image, at)?;
    let mut objects = BTreeMap::new();
    for number in version.used_objects()? {
        let object = match version.content.object(number) {
            Some(object) => Some(Object::clone(object)),
            None => version.copied_up(number)?,
        };
        objects.extend(object.map(|object| (number, object)));
    }
    Ok(objects)
}

/// Copies what the head shares into the image, then cuts the link; with deep-flatten what the snapshots share too.
/// `EINVAL` when there is no link.
pub(super) fn flatten(call: &mut Call<'_>, image: &ImageRef, progress: Progress<'_>) -> Outcome<()> {
    let state = call.state();
    let header = state.header(image)?;
    if header.link.is_none() {
        return Err(Errno::EINVAL);
    }
    let mut versions = vec![None];
    if header.features.contains(Features::DEEP_FLATTEN) {
        versions.extend(header.snapshots.keys().map(|id| Some(*id)));
    }
    let mut numbers = BTreeSet::new();
    for at in &versions {
        numbers.extend(state.version(image, *at)?.used_objects()?);
    }
    drop(state);
    let total = numbers.len() as u64;
    for (done, number) in (0..).zip(numbers) {
        if progress(done, total).is_break() {
            return Err(Errno::ECANCELED);
        }
        let mut state = call.state();
        let mut copied = false;
        for at in &versions {
            copied |= copy_up(&mut state, image, *at, number)?;
        }
        drop(state);
        if copied {
            call.step()?;
        }
    }
    lineage::cut_head(call, image)
}

/// Copies object `number` of one version up from the parents when it has none; whether it did.
fn copy_up(state: &mut State, image: &ImageRef, at: Option<SnapshotId>, number: u64) -> Outcome<bool> {
    let version = state.version(image, at)?;
    if version.content.object(number).is_some() {
        return Ok(false);
    }
    let Some(object) = version.copied_up(number)? else { return Ok(false) };
    state.check_full(&image.place.pool)?;
    let header = state.header_mut(image)?;
    let content = match at {
        None => &mut header.content,
        Some(id) => &mut header.snapshots.get_mut(&id).ok_or(Errno::ENOENT)?.content,
    };
    *content.object_mut(number) = object;
    Ok(true)
}

/// Copies the head, or the snapshot `at`, into the new image `name`.
pub(super) fn copy(
    call: &mut Call<'_>,
    image: &ImageRef,
    at: Option<SnapshotId>,
    place: &Place,
    name: &str,
    options: &ImageOptions,
    progress: Progress<'_>,
) -> Outcome<()> {
    let state = call.state();
    let header = state.header(image)?;
    let size = state.version(image, at)?.size;
    let (source_order, metadata) = (header.order, header.metadata.clone());
    let layout = Layout::new(options, create::inherited(header.features), source_order)?;
    drop(state);

    let target = create::create(call, place, name, size, &layout)?;
    let mut state = call.state();
    call.watch(&mut state, &target);
    if !metadata.is_empty() {
        state.header_mut(&target)?.metadata = metadata;
        call.step()?;
    }
    drop(state);
    let objects = objects(call, image, at)?;
    let total = objects.len() as u64;
    for (done, (number, object)) in (0..).zip(objects) {
        if progress(done, total).is_break() {
            return Err(Errno::ECANCELED);
        }
        let mut state = call.state();
        let header = state.header_mut(&target)?;
        let order = header.order;
        for (block, bytes) in object.blocks() {
            let at = (number << source_order) + block;
            header.content.object_mut(at >> order).write(at & ((1 << order) - 1), bytes);
        }
        drop(state);
        call.step()?;
    }
    Ok(())
}
