//! Snapshots: cut, protected, renamed, removed, and parked while clones in format 2 need them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use cinderblock::rbd::{
    CloneFormat, Errno, ImageKey, ImageOptions, OpenMode, SnapshotKind, SnapshotSpec,
};

use crate::tools::{
    MIB, Place, clone, create, created, errno, flatten, format, layout, open, remove_all, snapshot,
    snapshot_id, snapshot_names, spec,
};

pub(crate) fn snapshots_are_listed_oldest_first(place: &Place) {
    let image = created(&place.pool, "image");
    image.create_snapshot("zebra").unwrap();
    image.resize(2 * MIB, false).unwrap();
    image.create_snapshot("ape").unwrap();
    assert_eq!(errno(image.create_snapshot("ape")), Errno::EEXIST);
    let snapshots = image.snapshots().unwrap();
    assert_eq!(snapshot_names(&*image), ["zebra", "ape"]);
    assert_eq!((snapshots[0].size, snapshots[1].size), (MIB, 2 * MIB));
    assert!(snapshots[0].id < snapshots[1].id);
    assert!(snapshots[0].created <= snapshots[1].created);
    assert!(
        snapshots.iter().all(|snapshot| snapshot.kind == SnapshotKind::User && !snapshot.protected)
    );
    assert_eq!(open(&place.other, "image").snapshots().unwrap(), snapshots);
    image.remove_snapshot("zebra").unwrap();
    assert_eq!(snapshot_names(&*image), ["ape"]);
    image.remove_snapshot_by_id(snapshots[1].id).unwrap();
    assert_eq!(snapshot_names(&*image), [""; 0]);
    drop(image);
    remove_all(&place.pool, &["image"]);
}

pub(crate) fn an_image_can_have_many_snapshots(place: &Place) {
    let image = created(&place.pool, "image");
    let names: Vec<String> = (0..70).map(|number| format!("s{number:02}")).collect();
    for name in &names {
        image.create_snapshot(name).unwrap();
    }
    assert_eq!(snapshot_names(&*image), names);
    for name in &names {
        image.remove_snapshot(name).unwrap();
    }
    drop(image);
    remove_all(&place.pool, &["image"]);
}

pub(crate) fn an_image_and_its_clones_are_found_while_snapshots_go(place: &Place) {
    let image = created(&place.pool, "parent");
    image.create_snapshot("kept").unwrap();
    clone(&place.pool, "parent", "kept", "clone");
    let names: Vec<String> = (0..70).map(|number| format!("s{number:02}")).collect();
    for name in &names {
        image.create_snapshot(name).unwrap();
    }
    let ids: Vec<_> = names.iter().map(|name| snapshot_id(&*image, name)).collect();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers = ["parent", "clone", "parent", "clone"].map(|name| {
            let done = &done;
            scope.spawn(move || {
                let mut opened = 0;
                while !done.load(Ordering::SeqCst) {
                    let found = place.other.open_image(ImageKey::Name(name), OpenMode::ReadOnly);
                    found.map(drop).map_err(|error| format!("after {opened}: {error}"))?;
                    opened += 1;
                }
                Ok::<_, String>(())
            })
        });
        let removals: Vec<_> =
            ids.iter().map(|id| scope.spawn(|| image.remove_snapshot_by_id(*id))).collect();
        let removed: Vec<_> = removals.into_iter().map(|removal| removal.join().unwrap()).collect();
        done.store(true, Ordering::SeqCst);
        for reader in readers {
            reader.join().unwrap().unwrap();
        }
        for outcome in removed {
            outcome.unwrap();
        }
    });
    assert_eq!(snapshot_names(&*image), ["kept"]);
    remove_all(&place.pool, &["clone"]);
    image.remove_snapshot("kept").unwrap();
    drop(image);
    remove_all(&place.pool, &["parent"]);
}

pub(crate) fn missing_snapshots_are_not_found(place: &Place) {
    let image = created(&place.pool, "image");
    assert_eq!(errno(image.remove_snapshot("s")), Errno::ENOENT);
    assert_eq!(errno(image.remove_snapshot_by_id(1_000_000)), Errno::ENOENT);
    assert_eq!(errno(image.protect_snapshot("s")), Errno::ENOENT);
    assert_eq!(errno(image.unprotect_snapshot("s")), Errno::ENOENT);
    assert_eq!(errno(image.rename_snapshot("s", "t")), Errno::ENOENT);
    assert_eq!(errno(image.parent(Some(1_000_000))), Errno::ENOENT);
    assert_eq!(errno(image.children(Some(1_000_000))), Errno::ENOENT);
    drop(image);
    remove_all(&place.pool, &["image"]);
}

pub(crate) fn snapshots_are_renamed(place: &Place) {
    let image = created(&place.pool, "image");
    image.create_snapshot("a").unwrap();
    image.create_snapshot("b").unwrap();
    let id = snapshot_id(&*image, "a");
    assert_eq!(errno(image.rename_snapshot("a", "b")), Errno::EEXIST);
    image.rename_snapshot("a", "c").unwrap();
    assert_eq!(snapshot_id(&*image, "c"), id);
    image.remove_snapshot("b").unwrap();
    image.remove_snapshot("c").unwrap();
    drop(image);
    remove_all(&place.pool, &["image"]);
}

pub(crate) fn protection_goes_on_once_and_off_once(place: &Place) {
    let image = created(&place.pool, "image");
    image.create_snapshot("s").unwrap();
    assert_eq!(errno(image.unprotect_snapshot("s")), Errno::EINVAL);
    image.protect_snapshot("s").unwrap();
    assert!(snapshot(&*image, "s").protected);
    assert_eq!(errno(image.protect_snapshot("s")), Errno::EBUSY);
    assert_eq!(errno(image.remove_snapshot("s")), Errno::EBUSY);
    image.unprotect_snapshot("s").unwrap();
    assert!(!snapshot(&*image, "s").protected);
    image.remove_snapshot("s").unwrap();
    drop(image);
    remove_all(&place.pool, &["image"]);
}

pub(crate) fn format_1_clones_need_protection(place: &Place) {
    let pool = &place.pool;
    let image = created(pool, "image");
    image.create_snapshot("s").unwrap();
    let clone = || pool.clone_image(&spec(pool, "image", "s"), "clone", &format(CloneFormat::V1));
    assert_eq!(errno(clone()), Errno::EINVAL);
    image.protect_snapshot("s").unwrap();
    clone().unwrap();
    assert_eq!(errno(image.unprotect_snapshot("s")), Errno::EBUSY);
    assert_eq!(errno(image.remove_snapshot("s")), Errno::EBUSY);
    assert!(snapshot(&*image, "s").protected);
    remove_all(pool, &["clone"]);
    image.unprotect_snapshot("s").unwrap();
    image.remove_snapshot("s").unwrap();
    drop(image);
    remove_all(pool, &["image"]);
}

pub(crate) fn flattening_a_format_1_clone_lets_its_snapshot_go(place: &Place) {
    let pool = &place.pool;
    let image = created(pool, "image");
    image.create_snapshot("s").unwrap();
    image.protect_snapshot("s").unwrap();
    pool.clone_image(&spec(pool, "image", "s"), "clone", &format(CloneFormat::V1)).unwrap();
    flatten(&*open(pool, "clone"));
    image.unprotect_snapshot("s").unwrap();
    image.remove_snapshot("s").unwrap();
    drop(image);
    remove_all(pool, &["image", "clone"]);
}

pub(crate) fn a_snapshot_with_format_2_clones_is_parked_until_the_last_goes(place: &Place) {
    let pool = &place.pool;
    let image = created(pool, "image");
    image.create_snapshot("s").unwrap();
    clone(pool, "image", "s", "a");
    clone(pool, "image", "s", "b");
    let id = snapshot_id(&*image, "s");
    image.remove_snapshot("s").unwrap();
    let parked = image.snapshots().unwrap();
    assert_eq!(parked.len(), 1);
    assert_eq!(parked[0].id, id);
    assert_eq!(parked[0].kind, SnapshotKind::Trash { original_name: "s".to_owned() });
    // It keeps the link, frees the name, and is out of reach by name.
    assert_eq!(open(pool, "a").parent(None).unwrap().unwrap().snapshot_id, id);
    assert_eq!(errno(image.remove_snapshot("s")), Errno::ENOENT);
    assert_eq!(errno(pool.clone_image(&spec(pool, "image", "s"), "c", &layout())), Errno::ENOENT);
    image.create_snapshot("s").unwrap();
    image.remove_snapshot("s").unwrap();
    assert_eq!(errno(image.remove_snapshot_by_id(id)), Errno::EBUSY);
    remove_all(pool, &["a"]);
    assert_eq!(image.snapshots().unwrap().len(), 1);
    drop(image);
    assert_eq!(errno(pool.remove_image("image")), Errno::ENOTEMPTY);
    remove_all(pool, &["b"]);
    assert_eq!(open(pool, "image").snapshots().unwrap(), []);
    remove_all(pool, &["image"]);
}

pub(crate) fn a_parked_snapshot_goes_when_its_last_clone_is_flattened(place: &Place) {
    let pool = &place.pool;
    let image = created(pool, "image");
    image.create_snapshot("s").unwrap();
    clone(pool, "image", "s", "clone");
    image.remove_snapshot("s").unwrap();
    assert_eq!(image.snapshots().unwrap().len(), 1);
    flatten(&*open(pool, "clone"));
    assert_eq!(image.snapshots().unwrap(), []);
    drop(image);
    remove_all(pool, &["image", "clone"]);
}

pub(crate) fn clones_are_refused_without_a_source_or_a_name(place: &Place) {
    let pool = &place.pool;
    let image = created(pool, "image");
    image.create_snapshot("s").unwrap();
    create(pool, "taken");
    let clone = |image, snapshot, name| {
        pool.clone_image(&spec(pool, image, snapshot), name, &ImageOptions::default())
    };
    assert_eq!(errno(clone("image", "t", "clone")), Errno::ENOENT);
    assert_eq!(errno(clone("none", "s", "clone")), Errno::ENOENT);
    assert_eq!(errno(clone("image", "s", "taken")), Errno::EEXIST);
    let elsewhere = SnapshotSpec { pool: "no-such-pool".to_owned(), ..spec(pool, "image", "s") };
    assert_eq!(
        errno(pool.clone_image(&elsewhere, "clone", &ImageOptions::default())),
        Errno::ENOENT
    );
    assert_eq!(pool.image_id("clone").unwrap(), None);
    image.remove_snapshot("s").unwrap();
    drop(image);
    remove_all(pool, &["image", "taken"]);
}

pub(crate) fn clones_take_their_layout_from_options_or_the_parent(place: &Place) {
    let pool = &place.pool;
    let image = created(pool, "image");
    image.create_snapshot("s").unwrap();
    clone(pool, "image", "s", "same");
    let other = ImageOptions { order: Some(20), ..layout() };
    pool.clone_image(&spec(pool, "image", "s"), "other", &other).unwrap();
    let info = |name| open(pool, name).info().unwrap();
    assert_eq!(info("same"), image.info().unwrap());
    assert_eq!((info("other").order, info("other").size), (20, MIB));
    remove_all(pool, &["same", "other"]);
    image.remove_snapshot("s").unwrap();
    drop(image);
    remove_all(pool, &["image"]);
}
