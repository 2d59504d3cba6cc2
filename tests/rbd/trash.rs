//! The trash of a pool.

use std::ops::ControlFlow;
use std::sync::Arc;

use cinderblock::rbd::{Errno, ImageKey, OpenMode, Pool, TrashEntry};

use crate::tools::{MIB, OBJECT, Place, create, created, errno, image_names, open, remove_all};

const AN_HOUR: u64 = 3600;

pub(crate) fn an_image_goes_to_the_trash_and_comes_back(place: &Place) {
    let pool = &place.pool;
    let image = created(pool, "image");
    let id = image.id().unwrap();
    image.write_at(0, b"kept").unwrap();
    drop(image);
    assert_eq!(pool.trash_get(&id).unwrap(), None);
    pool.trash_move("image", AN_HOUR).unwrap();
    let entry =
        TrashEntry { id: id.clone(), name: "image".to_owned(), removing: false, migrating: false };
    assert_eq!(pool.trash_get(&id).unwrap(), Some(entry.clone()));
    assert_eq!(pool.trash_list().unwrap(), [entry]);
    assert_eq!((image_names(pool), pool.image_id("image").unwrap()), (vec![], None));
    assert_eq!(errno(pool.open_image(ImageKey::Name("image"), OpenMode::ReadOnly)), Errno::ENOENT);
    let trashed = pool.open_image(ImageKey::Id(&id), OpenMode::ReadOnly).unwrap();
    assert_eq!(trashed.name().unwrap(), "image");
    drop(trashed);
    pool.trash_restore(&id, "restored").unwrap();
    assert_eq!((pool.trash_get(&id).unwrap(), pool.trash_list().unwrap()), (None, vec![]));
    let restored = open(pool, "restored");
    let mut bytes = [0; 4];
    restored.read_at(None, 0, &mut bytes).unwrap();
    assert_eq!((restored.id().unwrap(), &bytes), (id, b"kept"));
    drop(restored);
    remove_all(pool, &["restored"]);
}

pub(crate) fn a_deferred_removal_needs_force(place: &Place) {
    let pool = &place.pool;
    create(pool, "image");
    let id = pool.image_id("image").unwrap().unwrap();
    pool.trash_move("image", AN_HOUR).unwrap();
    assert_eq!(errno(pool.trash_remove(&id, false)), Errno::EPERM);
    pool.trash_remove(&id, true).unwrap();
    assert_eq!(pool.trash_get(&id).unwrap(), None);
    create(pool, "image");
    let id = pool.image_id("image").unwrap().unwrap();
    pool.trash_move("image", 0).unwrap();
    pool.trash_remove(&id, false).unwrap();
    assert_eq!(pool.trash_list().unwrap(), []);
}

pub(crate) fn what_is_not_in_the_trash_is_not_found(place: &Place) {
    let pool = &place.pool;
    assert_eq!(pool.trash_get("123abc").unwrap(), None);
    assert_eq!(pool.trash_list().unwrap(), []);
    assert_eq!(errno(pool.trash_move("image", 0)), Errno::ENOENT);
    assert_eq!(errno(pool.trash_restore("123abc", "image")), Errno::ENOENT);
    assert_eq!(errno(pool.trash_remove("123abc", true)), Errno::ENOENT);
}

pub(crate) fn a_restore_does_not_replace(place: &Place) {
    let pool = &place.pool;
    create(pool, "image");
    let id = pool.image_id("image").unwrap().unwrap();
    pool.trash_move("image", 0).unwrap();
    create(pool, "image");
    assert_eq!(errno(pool.trash_restore(&id, "image")), Errno::EEXIST);
    assert!(pool.trash_get(&id).unwrap().is_some());
    pool.trash_remove(&id, false).unwrap();
    remove_all(pool, &["image"]);
}

pub(crate) fn the_trash_takes_open_images_but_keeps_them_until_they_are_closed(place: &Place) {
    let pool = &place.pool;
    let image = created(&place.other, "image");
    image.write_at(0, b"open").unwrap();
    let id = image.id().unwrap();
    pool.trash_move("image", 0).unwrap();
    assert_eq!(image.name().unwrap(), "image");
    assert_eq!(errno(pool.trash_remove(&id, true)), Errno::EBUSY);
    assert!(pool.trash_get(&id).unwrap().is_some());
    drop(image);
    pool.trash_remove(&id, true).unwrap();
}

pub(crate) fn the_trash_keeps_images_with_snapshots(place: &Place) {
    let pool = &place.pool;
    let image = created(pool, "image");
    image.create_snapshot("s").unwrap();
    let id = image.id().unwrap();
    drop(image);
    pool.trash_move("image", 0).unwrap();
    assert_eq!(errno(pool.trash_remove(&id, true)), Errno::ENOTEMPTY);
    pool.open_image(ImageKey::Id(&id), OpenMode::ReadWrite).unwrap().remove_snapshot("s").unwrap();
    pool.trash_remove(&id, true).unwrap();
}

pub(crate) fn the_trash_holds_many(place: &Place) {
    let pool = &place.pool;
    let names: Vec<String> = (0..70).map(|number| format!("image {number:02}")).collect();
    for name in &names {
        create(pool, name);
        pool.trash_move(name, 0).unwrap();
    }
    let entries = pool.trash_list().unwrap();
    let mut listed: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    listed.sort_unstable();
    assert_eq!(listed, names);
    for entry in &entries {
        pool.trash_remove(&entry.id, false).unwrap();
    }
}

/// Writes to some objects of a new image.
fn filled(pool: &Arc<dyn Pool>, name: &str) {
    let image = created(pool, name);
    for object in 0..image.info().unwrap().size / OBJECT {
        image.write_at(object * OBJECT, &[1]).unwrap();
    }
}

pub(crate) fn removals_tell_how_far_they_are(place: &Place) {
    let pool = &place.pool;
    let mut heard = Vec::new();
    let mut listen = |done, total| {
        heard.push((done, total));
        ControlFlow::Continue(())
    };
    filled(pool, "image");
    pool.remove_image_with_progress("image", &mut listen).unwrap();
    filled(pool, "image");
    let id = pool.image_id("image").unwrap().unwrap();
    pool.trash_move("image", 0).unwrap();
    pool.trash_remove_with_progress(&id, false, &mut listen).unwrap();
    // In no certain order: several are under way.
    heard.sort_unstable();
    let expected: Vec<_> = (0..MIB / OBJECT).flat_map(|done| [(done, MIB / OBJECT); 2]).collect();
    assert_eq!(heard, expected);
}

pub(crate) fn a_stopped_removal_is_finished_by_the_next(place: &Place) {
    let pool = &place.pool;
    filled(pool, "image");
    let id = pool.image_id("image").unwrap().unwrap();
    let stopped = pool.remove_image_with_progress("image", &mut |_, _| ControlFlow::Break(()));
    assert_eq!(errno(stopped), Errno::ECANCELED);
    assert!(pool.trash_get(&id).unwrap().unwrap().removing);
    pool.remove_image("image").unwrap();
    assert_eq!(pool.trash_get(&id).unwrap(), None);
}
