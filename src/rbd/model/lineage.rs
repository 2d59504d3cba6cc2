//! Links between clones and their parents: how they are registered, counted and cut.
//!
//! The parent's side of a link (format 1: the children index of the clone's namespace; format 2:
//! the snapshot in the parent's header) and the clone's side (its header) are written in separate
//! steps, so either can outlive the other when the process dies.

use super::session::Call;
use super::state::{Header, ImageRef, Link, Outcome, ParentRef, Protection, State};
use crate::rbd::{Child, Errno, Features, SnapshotId, SnapshotKind};

/// The bit librbd itself sets while an image takes part in format 2 cloning or holds parked
/// snapshots.
pub(super) const OPERATIONS: Features = Features(256);

impl Header {
    /// The feature bits, with the one that librbd keeps itself.
    pub(super) fn all_features(&self) -> Features {
        let child = self.clone_child
            && (self.link.is_some()
                || self.snapshots.values().any(|snapshot| snapshot.link.is_some()));
        let parent = self.snapshots.values().any(|snapshot| {
            !snapshot.children.is_empty() || matches!(snapshot.kind, SnapshotKind::Trash { .. })
        });
        if child || parent { self.features.union(OPERATIONS) } else { self.features }
    }

    /// The user snapshot called `name`.
    pub(super) fn user_snapshot(&self, name: &str) -> Outcome<SnapshotId> {
        self.snapshots
            .iter()
            .find(|(_, snapshot)| snapshot.kind == SnapshotKind::User && snapshot.name == name)
            .map(|(id, _)| *id)
            .ok_or(Errno::ENOENT)
    }

    /// Whether the head or a snapshot other than `without` still links to `parent`.
    fn links_to(&self, parent: &ParentRef, without: Option<SnapshotId>) -> bool {
        let head = self.link.as_ref().is_some_and(|link| link.parent == *parent);
        head || self.snapshots.iter().any(|(id, snapshot)| {
            Some(*id) != without
                && snapshot.link.as_ref().is_some_and(|link| link.parent == *parent)
        })
    }
}

impl State {
    /// Every clone registered at the snapshot `of` of `image`, format 1 first, by image.
    pub(super) fn registered(&self, image: &ImageRef, of: SnapshotId) -> Vec<ImageRef> {
        let parent = ParentRef { image: image.clone(), snapshot: of };
        let mut children: Vec<ImageRef> = self
            .spaces
            .iter()
            .filter_map(|(place, space)| Some((place, space.children.get(&parent)?)))
            .flat_map(|(place, ids)| ids.iter().map(|id| ImageRef::new(place, id)))
            .collect();
        if let Ok(snapshot) = self.parent_snapshot(&parent) {
            children.extend(snapshot.children.iter().cloned());
        }
        children.sort();
        children.dedup();
        children
    }

    /// The clones of the snapshots `of`.
    pub(super) fn children(
        &self,
        image: &ImageRef,
        of: impl IntoIterator<Item = SnapshotId>,
    ) -> Outcome<Vec<Child>> {
        let mut children = Vec::new();
        for id in of {
            // librbd asks an image that is gone nothing when it had no snapshot.
            self.header(image)?;
            children.extend(self.registered(image, id).iter().map(|child| self.child(child)));
        }
        Ok(children)
    }

    fn child(&self, image: &ImageRef) -> Child {
        // librbd does not count a removal in progress as being in the trash here.
        let removing = self.trash_item(image).is_some_and(|item| item.removing);
        let (name, in_trash) = self.image_name(image).unwrap_or_default();
        Child {
            pool: image.place.pool.to_string(),
            namespace: image.place.namespace.to_string(),
            image_id: image.id.to_string(),
            image: name,
            in_trash: in_trash && !removing,
        }
    }

    /// Whether a snapshot has clones of format 1, in any pool.
    pub(super) fn has_format1_children(&self, parent: &ParentRef) -> bool {
        self.spaces
            .values()
            .any(|space| space.children.get(parent).is_some_and(|ids| !ids.is_empty()))
    }
}

/// Takes `child` off its parent's list. The last format 2 child of a parked snapshot takes the
/// snapshot along.
pub(super) fn unregister(call: &mut Call<'_>, child: &ImageRef, parent: &ParentRef) -> Outcome<()> {
    let mut state = call.state();
    let format2 = state.header(child).is_ok_and(|header| header.clone_child);
    if !format2 {
        let children = &mut state.space(&child.place).children;
        if let Some(ids) = children.get_mut(parent) {
            ids.remove(&*child.id);
            if ids.is_empty() {
                children.remove(parent);
            }
        }
        return call.step();
    }
    let Ok(header) = state.header_mut(&parent.image) else { return Ok(()) };
    let Some(snapshot) = header.snapshots.get_mut(&parent.snapshot) else { return Ok(()) };
    snapshot.children.remove(child);
    let parked =
        matches!(snapshot.kind, SnapshotKind::Trash { .. }) && snapshot.children.is_empty();
    drop(state);
    call.step()?;
    if parked { remove_snapshot(call, &parent.image, parent.snapshot) } else { Ok(()) }
}

/// Removes the snapshot `id` of any namespace. A user snapshot moves to the trash namespace first,
/// and stays there while it has children; one that is there already is `EBUSY` then.
///
/// When it is the last to hold the link to the image's parent, it is taken off the parent's list,
/// although it may stay: librbd then lets go of a parent that clones of this snapshot still read
/// through (see the test `a_parked_snapshot_lets_its_parent_go`).
pub(super) fn remove_snapshot(
    call: &mut Call<'_>,
    image: &ImageRef,
    id: SnapshotId,
) -> Outcome<()> {
    let mut state = call.state();
    let snapshot = state.header_mut(image)?.snapshots.get_mut(&id).ok_or(Errno::ENOENT)?;
    if snapshot.protection != Protection::Unprotected {
        return Err(Errno::EBUSY);
    }
    let was_user = snapshot.kind == SnapshotKind::User;
    if was_user {
        let name = format!("00000000-0000-4000-8000-{id:012x}");
        let original_name = std::mem::replace(&mut snapshot.name, name);
        snapshot.kind = SnapshotKind::Trash { original_name };
        call.step()?;
    }
    let header = state.header(image)?;
    let snapshot = header.snapshots.get(&id).ok_or(Errno::ENOENT)?;
    let has_children = !snapshot.children.is_empty();
    let parent = snapshot.link.as_ref().map(|link| link.parent.clone());
    let last_link = parent.filter(|parent| !header.links_to(parent, Some(id)));
    drop(state);
    if let Some(parent) = last_link {
        unregister(call, image, &parent)?;
    }
    if has_children {
        return if was_user { Ok(()) } else { Err(Errno::EBUSY) };
    }
    call.state().header_mut(image)?.snapshots.remove(&id);
    call.step()
}

/// Cuts the link of the head, and with deep-flatten those of the snapshots. The parent's side goes
/// first, unless snapshots still hold the link. A link with nothing left to read through is only
/// taken off the parent's list.
pub(super) fn cut_head(call: &mut Call<'_>, image: &ImageRef) -> Outcome<()> {
    let state = call.state();
    let header = state.header(image)?;
    let Some(Link { parent, overlap }) = header.link.clone() else { return Ok(()) };
    let deep = header.features.contains(Features::DEEP_FLATTEN);
    let held = !header.snapshots.is_empty();
    drop(state);
    if deep || !held {
        unregister(call, image, &parent)?;
    }
    if overlap == 0 {
        return Ok(());
    }
    let mut state = call.state();
    let header = state.header_mut(image)?;
    header.link = None;
    if deep {
        header.snapshots.values_mut().for_each(|snapshot| snapshot.link = None);
    }
    call.step()
}
