//! Images as entries of a pool: made, opened, listed, renamed, resized, removed.

use std::time::{Duration, Instant};

use cinderblock::rbd::{Errno, Features, ImageEntry, ImageKey, ImageOptions, OpenMode};

use crate::tools::{
    KIB, MIB, Place, clone, create, created, errno, image_names, layout, open, open_read_only,
    remove_all, snapshot_id, spec,
};

pub(crate) fn a_new_image_is_what_was_asked_for(place: &Place) {
    let pool = &place.pool;
    pool.create_image("image", 3 * MIB, &layout()).unwrap();
    let image = open(pool, "image");
    let info = image.info().unwrap();
    assert_eq!((info.size, info.order, info.features), (3 * MIB, 16, Features::DEFAULT));
    assert_eq!((info.stripe_unit, info.stripe_count), (64 * KIB, 1));
    assert_eq!(image.name().unwrap(), "image");
    let id = image.id().unwrap();
    assert_eq!(pool.image_id("image").unwrap(), Some(id.clone()));
    assert_eq!(pool.list_images().unwrap(), [ImageEntry { name: "image".into(), id: id.clone() }]);
    let same = pool.open_image(ImageKey::Id(&id), OpenMode::ReadOnly).unwrap();
    assert_eq!((same.name().unwrap(), same.id().unwrap()), ("image".into(), id));
    drop((image, same));
    remove_all(pool, &["image"]);
}

pub(crate) fn layouts_are_taken_as_given(place: &Place) {
    let striped = ImageOptions {
        features: Some(Features::LAYERING.union(Features::STRIPING)),
        order: Some(20),
        stripe_unit: Some(64 * KIB),
        stripe_count: Some(4),
        ..ImageOptions::default()
    };
    place.pool.create_image("striped", MIB, &striped).unwrap();
    let info = open(&place.pool, "striped").info().unwrap();
    assert_eq!((info.order, info.stripe_unit, info.stripe_count), (20, 64 * KIB, 4));
    assert!(info.features.contains(Features::STRIPING));
    remove_all(&place.pool, &["striped"]);
}

pub(crate) fn impossible_layouts_are_refused(place: &Place) {
    let refused = |options: ImageOptions| errno(place.pool.create_image("image", MIB, &options));
    assert_eq!(refused(ImageOptions { order: Some(11), ..layout() }), Errno::EDOM);
    assert_eq!(refused(ImageOptions { order: Some(26), ..layout() }), Errno::EDOM);
    assert_eq!(refused(ImageOptions { stripe_count: Some(4), ..layout() }), Errno::EINVAL);
    assert_eq!(
        refused(ImageOptions { features: Some(Features::OBJECT_MAP), ..layout() }),
        Errno::EINVAL
    );
    assert_eq!(
        refused(ImageOptions { data_pool: Some("no-such-pool".into()), ..layout() }),
        Errno::ENOENT
    );
    assert_eq!(image_names(&place.pool), [""; 0]);
}

pub(crate) fn a_name_is_taken_once(place: &Place) {
    let pool = &place.pool;
    create(pool, "image");
    let id = pool.image_id("image").unwrap();
    assert_eq!(errno(pool.create_image("image", MIB, &layout())), Errno::EEXIST);
    assert_eq!(pool.image_id("image").unwrap(), id);
    // Namespaces have names of their own.
    create(&place.elsewhere, "image");
    remove_all(pool, &["image"]);
    assert_eq!(image_names(&place.elsewhere), ["image"]);
    remove_all(&place.elsewhere, &["image"]);
}

pub(crate) fn what_is_missing_is_not_found(place: &Place) {
    let pool = &place.pool;
    assert_eq!(errno(pool.cluster().pool("no-such-pool", "")), Errno::ENOENT);
    assert_eq!(image_names(pool), [""; 0]);
    assert_eq!(pool.image_id("image").unwrap(), None);
    for mode in [OpenMode::ReadOnly, OpenMode::ReadWrite] {
        assert_eq!(errno(pool.open_image(ImageKey::Name("image"), mode)), Errno::ENOENT);
        assert_eq!(errno(pool.open_image(ImageKey::Id("123abc"), mode)), Errno::ENOENT);
    }
    assert_eq!(errno(pool.remove_image("image")), Errno::ENOENT);
    assert_eq!(errno(pool.rename_image("image", "other")), Errno::ENOENT);
    assert_eq!(
        errno(pool.clone_image(&spec(pool, "image", "s"), "c", &ImageOptions::default())),
        Errno::ENOENT
    );
}

pub(crate) fn errors_name_call_and_object(place: &Place) {
    let error = place.pool.remove_image("image").unwrap_err();
    let object = format!("{}/{}/image", place.pool.name(), place.pool.namespace());
    assert_eq!(error.object, object);
    assert!(!error.call.is_empty());
    assert!(error.to_string().contains("ENOENT"), "{error}");
}

pub(crate) fn an_image_is_renamed_while_it_is_open(place: &Place) {
    let pool = &place.pool;
    let image = created(pool, "from");
    let read_only = open_read_only(pool, "from");
    let id = image.id().unwrap();
    place.other.rename_image("from", "to").unwrap();
    assert_eq!((image.name().unwrap(), image.id().unwrap()), ("to".into(), id.clone()));
    assert_eq!(read_only.name().unwrap(), "to");
    assert_eq!(image_names(pool), ["to"]);
    assert_eq!((pool.image_id("from").unwrap(), pool.image_id("to").unwrap()), (None, Some(id)));
    image.write_at(0, b"still open").unwrap();
    drop((image, read_only));
    remove_all(pool, &["to"]);
}

pub(crate) fn a_rename_does_not_replace(place: &Place) {
    let pool = &place.pool;
    create(pool, "a");
    create(pool, "b");
    let ids = (pool.image_id("a").unwrap(), pool.image_id("b").unwrap());
    assert_eq!(errno(pool.rename_image("a", "b")), Errno::EEXIST);
    assert_eq!(errno(pool.rename_image("a", "a")), Errno::EEXIST);
    assert_eq!((pool.image_id("a").unwrap(), pool.image_id("b").unwrap()), ids);
    remove_all(pool, &["a", "b"]);
}

pub(crate) fn images_grow_and_shrink_only_when_allowed(place: &Place) {
    let image = created(&place.pool, "image");
    let seen = open(&place.other, "image");
    image.resize(2 * MIB, false).unwrap();
    assert_eq!(image.info().unwrap().size, 2 * MIB);
    assert_eq!(seen.info().unwrap().size, 2 * MIB);
    image.write_at(2 * MIB - 5, b"hello").unwrap();
    assert_eq!(errno(image.resize(MIB, false)), Errno::EINVAL);
    assert_eq!(image.info().unwrap().size, 2 * MIB);
    image.resize(2 * MIB, false).unwrap();
    image.resize(MIB, true).unwrap();
    image.resize(2 * MIB, false).unwrap();
    // What was cut off stays gone.
    let mut end = [1; 5];
    image.read_at(None, 2 * MIB - 5, &mut end).unwrap();
    assert_eq!(end, [0; 5]);
    drop((image, seen));
    remove_all(&place.pool, &["image"]);
}

pub(crate) fn read_only_images_refuse_changes(place: &Place) {
    let writable = created(&place.pool, "image");
    writable.create_snapshot("s").unwrap();
    let image = open_read_only(&place.pool, "image");
    assert_eq!(errno(image.write_at(0, b"x")), Errno::EROFS);
    assert_eq!(errno(image.discard(0, 512)), Errno::EROFS);
    assert_eq!(errno(image.resize(2 * MIB, false)), Errno::EROFS);
    assert_eq!(errno(image.create_snapshot("t")), Errno::EROFS);
    assert_eq!(errno(image.remove_snapshot("s")), Errno::EROFS);
    assert_eq!(errno(image.rename_snapshot("s", "t")), Errno::EROFS);
    assert_eq!(errno(image.protect_snapshot("s")), Errno::EROFS);
    assert_eq!(errno(image.metadata_set("k", "v")), Errno::EROFS);
    assert_eq!(errno(image.metadata_remove("k")), Errno::EROFS);
    writable.remove_snapshot("s").unwrap();
    drop((writable, image));
    remove_all(&place.pool, &["image"]);
}

pub(crate) fn read_only_images_stay_as_they_were_opened(place: &Place) {
    let image = created(&place.pool, "image");
    let read_only = open_read_only(&place.pool, "image");
    image.resize(2 * MIB, false).unwrap();
    image.create_snapshot("s").unwrap();
    assert_eq!(read_only.info().unwrap().size, MIB);
    assert_eq!(read_only.snapshots().unwrap(), []);
    clone(&place.pool, "image", "s", "clone");
    assert_eq!(read_only.children(None).unwrap(), []);
    assert_eq!(read_only.children(Some(snapshot_id(&*image, "s"))).unwrap().len(), 1);
    place.pool.remove_image("clone").unwrap();
    assert_eq!(errno(read_only.remove_snapshot("s")), Errno::ENOENT);
    let now = open_read_only(&place.pool, "image");
    assert_eq!((now.info().unwrap().size, now.snapshots().unwrap().len()), (2 * MIB, 1));
    assert_eq!(errno(now.remove_snapshot("s")), Errno::EROFS);
    image.remove_snapshot("s").unwrap();
    drop((image, now));
    remove_all(&place.pool, &["image"]);
    assert_eq!(read_only.children(None).unwrap(), []);
}

pub(crate) fn removal_waits_for_watchers(place: &Place) {
    let image = created(&place.other, "image");
    assert_eq!(errno(place.pool.remove_image("image")), Errno::EBUSY);
    image.write_at(0, b"unharmed").unwrap();
    drop(image);
    let _read_only = open_read_only(&place.other, "image");
    remove_all(&place.pool, &["image"]);
    assert_eq!(image_names(&place.pool), [""; 0]);
}

pub(crate) fn removal_waits_for_snapshots(place: &Place) {
    let image = created(&place.pool, "image");
    image.create_snapshot("s").unwrap();
    drop(image);
    assert_eq!(errno(place.pool.remove_image("image")), Errno::ENOTEMPTY);
    open(&place.pool, "image").remove_snapshot("s").unwrap();
    remove_all(&place.pool, &["image"]);
}

pub(crate) fn watchers_are_the_others(place: &Place) {
    let image = created(&place.pool, "image");
    assert_eq!(image.watchers().unwrap(), []);
    let read_only = open_read_only(&place.other, "image");
    assert_eq!(image.watchers().unwrap(), []);
    let second = open(&place.other, "image");
    let watchers = image.watchers().unwrap();
    assert_eq!(watchers.len(), 1, "{watchers:?}");
    assert_eq!(watchers[0].address, place.other.cluster().address().unwrap());
    // A read-only handle is no watcher, so it leaves none out; another handle of one's own has the
    // same watch.
    assert_eq!(read_only.watchers().unwrap().len(), 2);
    let third = open(&place.pool, "image");
    assert_eq!(image.watchers().unwrap().len(), 1);
    assert_eq!(read_only.watchers().unwrap().len(), 2);
    drop((read_only, second, third));
    assert_eq!(image.watchers().unwrap(), []);
    drop(image);
    remove_all(&place.pool, &["image"]);
}

pub(crate) fn a_blocklisted_client_writes_no_more(place: &Place) {
    let (keeper, lost) = (created(&place.pool, "image"), open(&place.other, "image"));
    lost.write_at(0, b"before").unwrap();
    let (cluster, address) = (place.pool.cluster(), place.other.cluster().address().unwrap());
    for malformed in ["", "nobody", "192.0.2.1", "192.0.2.1:0", "192.0.2.1/7"] {
        assert_eq!(
            cluster.blocklist(malformed, 60).unwrap_err().errno,
            Errno::EINVAL,
            "{malformed:?}"
        );
    }
    cluster.blocklist(&address, 60).unwrap();
    // The OSDs that the keeper asks know it now.
    let mut back = [0; 6];
    keeper.read_at(None, 0, &mut back).unwrap();
    assert_eq!(lost.write_at(0, b"after!").unwrap_err().errno, Errno::ESHUTDOWN);
    assert_eq!(
        place.other.create_image("other", MIB, &layout()).unwrap_err().errno,
        Errno::ESHUTDOWN
    );
    // It does not watch any more, and others go on.
    let deadline = Instant::now() + Duration::from_mins(5);
    while !keeper.watchers().unwrap().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", keeper.watchers());
        std::thread::sleep(Duration::from_millis(20));
    }
    keeper.read_at(None, 0, &mut back).unwrap();
    assert_eq!(&back, b"before");
    keeper.write_at(0, b"others").unwrap();
    // Again is fine.
    cluster.blocklist(&address, 60).unwrap();
    drop((keeper, lost));
    remove_all(&place.pool, &["image"]);
}

pub(crate) fn metadata_is_kept(place: &Place) {
    let image = created(&place.pool, "image");
    assert_eq!(image.metadata_get("key").unwrap(), None);
    assert_eq!(image.metadata_list().unwrap().len(), 0);
    image.metadata_set("key", "value").unwrap();
    image.metadata_set("key", "another").unwrap();
    image.metadata_set("empty", "").unwrap();
    assert_eq!(image.metadata_get("key").unwrap().as_deref(), Some("another"));
    assert_eq!(image.metadata_get("empty").unwrap().as_deref(), Some(""));
    image.metadata_remove("key").unwrap();
    image.metadata_remove("key").unwrap();
    assert_eq!(image.metadata_get("key").unwrap(), None);
    drop(image);
    remove_all(&place.pool, &["image"]);
}

pub(crate) fn metadata_has_no_small_limits(place: &Place) {
    let image = created(&place.pool, "image");
    let long = "x".repeat(50_000);
    image.metadata_set("long", &long).unwrap();
    for number in 0..150 {
        image.metadata_set(&format!("key {number:03}"), &number.to_string()).unwrap();
    }
    assert_eq!(image.metadata_get("long").unwrap().as_deref(), Some(long.as_str()));
    let all = image.metadata_list().unwrap();
    assert_eq!(all.len(), 151);
    assert_eq!((all["long"].as_str(), all["key 149"].as_str()), (long.as_str(), "149"));
    drop(image);
    remove_all(&place.pool, &["image"]);
}
