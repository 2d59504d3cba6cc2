//! A RADOS namespace in the notation of the lineage:
//! `A.deleted [snap-s1*, B.clone_snap] ; B <- A.deleted@B.clone_snap`.
//!
//! Images in the order of their names, snapshots in the order they were cut; `*` is protected,
//! `(s)` is parked in librbd's own trash namespace, `!` marks an image in the trash. A snapshot's
//! own link is written when it differs from the head's. Names are as `rbd` prints them without the
//! `csi-` that each must begin with; what is not at home has its place before it.

use std::collections::BTreeMap;
use std::sync::Arc;

use cinderblock::rbd::{Image, ImageKey, OpenMode, Parent, Pool, Snapshot, SnapshotKind};

/// A place, and what to call it: "" is home.
pub(crate) type Place<'a> = (&'a str, &'a Arc<dyn Pool>);

/// Everything in `places`.
pub(crate) fn picture(places: &[Place<'_>]) -> String {
    let mut images: Vec<String> =
        places.iter().flat_map(|place| of_place(*place, places)).collect();
    images.sort();
    images.join(" ; ")
}

fn of_place(place: Place<'_>, places: &[Place<'_>]) -> Vec<String> {
    let (label, pool) = place;
    let listed: BTreeMap<_, _> =
        pool.list_images().unwrap().into_iter().map(|entry| (entry.id, entry.name)).collect();
    let trashed = pool.trash_list().unwrap().into_iter().map(|entry| (entry.id, entry.name + "!"));
    listed
        .into_iter()
        .chain(trashed)
        .map(|(id, name)| {
            let image = pool.open_image(ImageKey::Id(&id), OpenMode::ReadOnly).unwrap();
            format!("{label}{}{}", short(&name), described(&*image, places))
        })
        .collect()
}

fn described(image: &dyn Image, places: &[Place<'_>]) -> String {
    let head = image.parent(None).unwrap();
    let snapshots: Vec<String> = image
        .snapshots()
        .unwrap()
        .iter()
        .map(|snapshot| {
            let own = image.parent(Some(snapshot.id)).unwrap();
            let link = match &own {
                own if *own == head => String::new(),
                None => " <- nothing".to_owned(),
                Some(own) => link(own, places),
            };
            let protected = if snapshot.protected { "*" } else { "" };
            format!("{}{protected}{link}", snapshot_name(snapshot))
        })
        .collect();
    let snapshots =
        if snapshots.is_empty() { String::new() } else { format!(" [{}]", snapshots.join(", ")) };
    snapshots + &head.map(|head| link(&head, places)).unwrap_or_default()
}

/// ` <- image@snapshot`, by the names that librbd says the parent has.
fn link(parent: &Parent, places: &[Place<'_>]) -> String {
    let place = places.iter().find(|(_, pool)| pool.namespace() == parent.namespace);
    let (label, pool) = place.unwrap_or_else(|| panic!("a parent in another place: {parent:?}"));
    let image = pool.open_image(ImageKey::Id(&parent.image_id), OpenMode::ReadOnly).unwrap();
    let snapshots = image.snapshots().unwrap();
    let snapshot = snapshots.iter().find(|snapshot| snapshot.id == parent.snapshot_id).unwrap();
    assert_eq!(parent.snapshot, snapshot.name);
    format!(" <- {label}{}@{}", short(&parent.image), snapshot_name(snapshot))
}

fn snapshot_name(snapshot: &Snapshot) -> String {
    match &snapshot.kind {
        SnapshotKind::Trash { original_name } => format!("({})", short(original_name)),
        _ => short(&snapshot.name).to_owned(),
    }
}

fn short(name: &str) -> &str {
    name.strip_prefix("csi-").unwrap_or_else(|| panic!("{name} does not begin with csi-"))
}
