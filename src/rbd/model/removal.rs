//! How images go away: the trash, removals, and what is left of interrupted ones.
//!
//! librbd removes an image by name by moving it to the trash first (entry, id object, directory),
//! marked as being removed, and removing it from there (link, header, entry). So a removal that was
//! killed early shows the image in the directory and in the trash, a later one only in the trash,
//! and both are finished by removing the name again. The one exception is librbd's own: killed
//! between the directory and the mark that the move is over, the entry is refused with `EUCLEAN`
//! for ever (see the test `an_unfinished_move_cannot_be_removed`).

use std::time::Duration;

use super::data::Content;
use super::lineage::{remove_snapshot, unregister};
use super::session::Call;
use super::state::{ImageRef, Outcome, Place, SnapshotState, TrashItem, TrashState};
use crate::rbd::{Errno, Hold, Progress, SnapshotKind};

/// What librbd sees to before it removes an image: `EBUSY` when a client keeps its lock,
/// `ENOTEMPTY` when it has snapshots, `EBUSY` when a client watches it. Parked snapshots without
/// children are swept away here, also when another one with children refuses the removal. The
/// remains of an image can always go.
fn prepare(call: &mut Call<'_>, image: &ImageRef) -> Outcome<()> {
    let state = call.state();
    let Ok(header) = state.opened(image) else { return Ok(()) };
    match header.hold {
        Some(Hold::Lock { .. }) => return Err(Errno::ETIMEDOUT),
        Some(Hold::Mirrored) => return Err(Errno::EROFS),
        None if header.group.is_some() => return Err(Errno::EMLINK),
        None => {}
    }
    if header.watches.iter().any(|watch| watch.keeps_lock) {
        return Err(Errno::EBUSY);
    }
    let parked = |snapshot: &SnapshotState| matches!(snapshot.kind, SnapshotKind::Trash { .. });
    if !header.snapshots.values().all(parked) {
        return Err(Errno::ENOTEMPTY);
    }
    if !header.watches.is_empty() {
        return Err(Errno::EBUSY);
    }
    let parked: Vec<_> = header.snapshots.keys().copied().collect();
    drop(state);
    for snapshot in parked {
        match remove_snapshot(call, image, snapshot) {
            Err(Errno::EBUSY) => return Err(Errno::ENOTEMPTY),
            other => other?,
        }
    }
    Ok(())
}

/// Removes the image in the directory under `name`, or finishes an interrupted removal of that
/// name.
pub(super) fn remove(
    call: &mut Call<'_>,
    place: &Place,
    name: &str,
    progress: Progress<'_>,
) -> Outcome<()> {
    let mut state = call.state();
    let space = state.space(place);
    let Some(id) = space.names.get(name).cloned() else {
        let interrupted = space.trash.iter().find(|(_, item)| item.removing && item.name == name);
        let id = interrupted.map(|(id, _)| id.clone());
        drop(state);
        return match id {
            Some(id) => remove_from_trash(call, place, &id, true, progress),
            None => remove_unlisted(call, place, name, progress),
        };
    };
    if state.pools.get(&*place.pool).is_some_and(|pool| pool.keeps_removed) {
        drop(state);
        return move_to_trash(call, place, name, &id, false, Duration::from_hours(1));
    }
    drop(state);
    prepare(call, &ImageRef::new(place, &id))?;
    move_to_trash(call, place, name, &id, true, Duration::ZERO)?;
    remove_from_trash(call, place, &id, true, progress)
}

/// What librbd does about a name that is neither in the directory nor being removed: it removes the
/// image that an id object of that name leads to, then fails with `ENOENT` because the directory
/// does not have it. An interrupted rename leaves such an object under the old name: removing that
/// destroys the renamed image.
fn remove_unlisted(
    call: &mut Call<'_>,
    place: &Place,
    name: &str,
    progress: Progress<'_>,
) -> Outcome<()> {
    let id = call.state().space(place).id_objects.get(name).cloned().ok_or(Errno::ENOENT)?;
    let image = ImageRef::new(place, &id);
    prepare(call, &image)?;
    remove_image(call, &image, progress)?;
    call.state().space(place).id_objects.remove(name);
    call.step()?;
    Err(Errno::ENOENT)
}

/// Removes header and data of an image and takes it off its parent's list. Fine when it has no
/// header any more.
fn remove_image(call: &mut Call<'_>, image: &ImageRef, progress: Progress<'_>) -> Outcome<()> {
    let Ok(total) =
        call.state().header(image).map(|header| header.content.objects().count() as u64)
    else {
        return Ok(());
    };
    if (0..total).any(|done| progress(done, total).is_break()) {
        return Err(Errno::ECANCELED);
    }
    let mut state = call.state();
    let header = state.header_mut(image)?;
    let parent = header.link.as_ref().map(|link| link.parent.clone());
    let stored = header.content.objects().next().is_some();
    header.content = Content::default();
    call.watch(&mut state, image);
    drop(state);
    if stored {
        call.step()?;
    }
    if let Some(parent) = parent {
        unregister(call, image, &parent)?;
    }
    call.state().space(&image.place).headers.remove(&*image.id);
    call.step()
}

/// Moves the image `name`, or finishes an interrupted move of that name, with its removal deferred
/// by `delay`.
pub(super) fn trash(
    call: &mut Call<'_>,
    place: &Place,
    name: &str,
    delay: Duration,
) -> Outcome<()> {
    let mut state = call.state();
    let space = state.space(place);
    let interrupted =
        |item: &TrashItem| !item.removing && item.state == TrashState::Moving && item.name == name;
    let id = space
        .names
        .get(name)
        .or_else(|| space.trash.iter().find(|(_, item)| interrupted(item)).map(|(id, _)| id))
        .cloned()
        .ok_or(Errno::ENOENT)?;
    drop(state);
    move_to_trash(call, place, name, &id, false, delay)
}

fn move_to_trash(
    call: &mut Call<'_>,
    place: &Place,
    name: &str,
    id: &str,
    removing: bool,
    delay: Duration,
) -> Outcome<()> {
    let mut state = call.state();
    let deferred_until = state.now + delay;
    let item =
        TrashItem { name: name.to_owned(), removing, state: TrashState::Moving, deferred_until };
    // An entry that an interrupted call left stays as it is.
    state.space(place).trash.entry(id.to_owned()).or_insert(item);
    drop(state);
    call.step()?;
    call.state().space(place).id_objects.remove(name);
    call.step()?;
    let mut state = call.state();
    let space = state.space(place);
    space.names.remove(name);
    space.ids.remove(id);
    drop(state);
    call.step()?;
    set_state(call, place, id, TrashState::Moving, TrashState::Normal)
}

/// `ESTALE` when the entry is in another state than `from`.
fn set_state(
    call: &mut Call<'_>,
    place: &Place,
    id: &str,
    from: TrashState,
    to: TrashState,
) -> Outcome<()> {
    let mut state = call.state();
    let item = state.space(place).trash.get_mut(id).ok_or(Errno::ENOENT)?;
    if item.state != from && item.state != to {
        return Err(Errno::ESTALE);
    }
    item.state = to;
    call.step()
}

/// Takes the image `id` out of the trash as `name`. In a full pool it fails, and the entry can then
/// only be restored.
pub(super) fn restore(call: &mut Call<'_>, place: &Place, id: &str, name: &str) -> Outcome<()> {
    let mut state = call.state();
    let item = state.space(place).trash.get(id).ok_or(Errno::ENOENT)?;
    if item.removing {
        return Err(Errno::EINVAL);
    }
    if !matches!(item.state, TrashState::Normal | TrashState::Restoring) {
        return Err(Errno::EBUSY);
    }
    drop(state);
    set_state(call, place, id, TrashState::Normal, TrashState::Restoring)?;
    let taken = call.state().space(place).id_objects.get(name).cloned();
    match taken {
        Some(taken) if taken != id => {
            set_state(call, place, id, TrashState::Restoring, TrashState::Normal)?;
            return Err(Errno::EEXIST);
        }
        Some(_) => {}
        None => {
            call.state().check_full(&place.pool)?;
            call.state().space(place).id_objects.insert(name.to_owned(), id.to_owned());
            call.step()?;
        }
    }
    let mut state = call.state();
    let space = state.space(place);
    if !space.names.contains_key(name) && !space.ids.contains_key(id) {
        space.names.insert(name.to_owned(), id.to_owned());
        space.ids.insert(id.to_owned(), name.to_owned());
    }
    drop(state);
    call.step()?;
    call.state().space(place).trash.remove(id);
    call.step()
}

/// Puts an image whose move was interrupted after it left the directory there again, so that librbd
/// moves it anew.
fn relist(call: &mut Call<'_>, place: &Place, name: &str, id: &str) -> Outcome<()> {
    let mut state = call.state();
    let space = state.space(place);
    if space.names.contains_key(name) {
        return Err(Errno::EUCLEAN);
    }
    space.names.insert(name.to_owned(), id.to_owned());
    space.ids.insert(id.to_owned(), name.to_owned());
    drop(state);
    call.step()
}

/// Removes the image `id` from the trash; `force` although its removal is deferred.
pub(super) fn remove_from_trash(
    call: &mut Call<'_>,
    place: &Place,
    id: &str,
    force: bool,
    progress: Progress<'_>,
) -> Outcome<()> {
    let mut state = call.state();
    let now = state.now;
    let item = state.space(place).trash.get(id).ok_or(Errno::ENOENT)?;
    if item.deferred_until > now && !force {
        return Err(Errno::EPERM);
    }
    match item.state {
        TrashState::Moving if item.removing => {
            let name = item.name.clone();
            drop(state);
            relist(call, place, &name, id)?;
            move_to_trash(call, place, &name, id, true, Duration::ZERO)?;
            return remove_from_trash(call, place, id, force, progress);
        }
        TrashState::Moving => return Err(Errno::EUCLEAN),
        TrashState::Restoring => return Err(Errno::EBUSY),
        TrashState::Normal | TrashState::Removing => {}
    }
    drop(state);
    set_state(call, place, id, TrashState::Normal, TrashState::Removing)?;
    let image = ImageRef::new(place, id);
    match prepare(call, &image).and_then(|()| remove_image(call, &image, progress)) {
        Ok(()) => {}
        // The process died.
        Err(Errno::ESHUTDOWN) => return Err(Errno::ESHUTDOWN),
        Err(errno) => {
            set_state(call, place, id, TrashState::Removing, TrashState::Normal)?;
            return Err(errno);
        }
    }
    call.state().space(place).trash.remove(id);
    call.step()
}
