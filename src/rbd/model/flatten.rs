//! Flattening. What it writes between two reports of progress is one step.

use std::collections::BTreeSet;

use super::lineage;
use super::session::Call;
use super::state::{ImageRef, Outcome, State};
use crate::rbd::{Errno, Features, Progress, SnapshotId};

/// Copies what the head shares into the image, then cuts the link; with deep-flatten what the
/// snapshots share too. `EINVAL` when there is no link.
pub(super) fn flatten(
    call: &mut Call<'_>,
    image: &ImageRef,
    progress: Progress<'_>,
) -> Outcome<()> {
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
fn copy_up(
    state: &mut State,
    image: &ImageRef,
    at: Option<SnapshotId>,
    number: u64,
) -> Outcome<bool> {
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
