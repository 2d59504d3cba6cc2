//! Making a clone.
//!
//! librbd makes the empty child first, then writes the link into it, then registers it with the
//! parent. Killed in between, the child opens with the right size and reads as zeros, or reads as
//! the parent although the parent's snapshot can be removed under it.

use super::create::{self, Layout};
use super::session::Call;
use super::state::{ImageRef, Link, Outcome, ParentRef, Place, Protection, State};
use crate::rbd::{CloneFormat, Errno, Features, ImageOptions, SnapshotSpec};

/// Finds the parent's snapshot by name, with its size, and checks that it may be cloned into
/// `child`.
fn find_parent(
    state: &mut State,
    spec: &SnapshotSpec,
    child: &Place,
    format: CloneFormat,
) -> Outcome<(ParentRef, u64)> {
    if !state.pools.contains_key(&spec.pool) {
        return Err(Errno::ENOENT);
    }
    let place = Place::new(&spec.pool, &spec.namespace);
    let id = state.space(&place).id_objects.get(&spec.image).ok_or(Errno::ENOENT)?.clone();
    if format == CloneFormat::V1 && place.namespace != child.namespace {
        return Err(Errno::EXDEV);
    }
    let image = ImageRef { place, id: id.into() };
    let header = state.opened(&image)?;
    let snapshot = header.user_snapshot(&spec.snapshot)?;
    if !header.features.contains(Features::LAYERING) {
        return Err(Errno::ENOSYS);
    }
    let state = &header.snapshots[&snapshot];
    if format == CloneFormat::V1 && state.protection != Protection::Protected {
        return Err(Errno::EINVAL);
    }
    Ok((ParentRef { image, snapshot }, state.size))
}

/// Clones the snapshot `spec` as `name` into `place`.
pub(super) fn clone(
    call: &mut Call<'_>,
    spec: &SnapshotSpec,
    place: &Place,
    name: &str,
    options: &ImageOptions,
) -> Outcome<()> {
    let mut state = call.state();
    let (parent, size) = find_parent(&mut state, spec, place, options.clone_format)?;
    let header = state.header(&parent.image)?;
    if !options.features.unwrap_or(header.features).contains(Features::LAYERING) {
        return Err(Errno::ENOSYS);
    }
    let layout = Layout::new(options, create::inherited(header.features), header.order)?;
    let metadata = header.metadata.clone();
    drop(state);

    let child = create::create(call, place, name, size, &layout)?;
    if size == 0 {
        // librbd only learns now that a link cannot be empty.
        create::take_back(call, &child, name)?;
        return Err(Errno::EINVAL);
    }
    let mut state = call.state();
    call.watch(&mut state, &child);
    state.header_mut(&child)?.link = Some(Link { parent: parent.clone(), overlap: size });
    drop(state);
    call.step()?;
    match options.clone_format {
        CloneFormat::V1 => {
            let mut state = call.state();
            state.space(place).children.entry(parent).or_default().insert(child.id.to_string());
        }
        CloneFormat::V2 => {
            call.state().header_mut(&child)?.clone_child = true;
            call.step()?;
            let mut state = call.state();
            let snapshots = &mut state.header_mut(&parent.image)?.snapshots;
            snapshots
                .get_mut(&parent.snapshot)
                .ok_or(Errno::ENOENT)?
                .children
                .insert(child.clone());
        }
    }
    call.step()?;
    if metadata.is_empty() {
        return Ok(());
    }
    call.state().header_mut(&child)?.metadata = metadata;
    call.step()
}
