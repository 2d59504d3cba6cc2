//! What only a real cluster has: interrupted work of other clients, groups, quotas.

use std::thread;

use cinderblock::rbd::{
    Cluster, Errno, ImageKey, ImageOptions, OmapUpdate, OpenMode, SnapshotKind,
};
use serde_json::json;

use crate::common::{Lab, Namespace, POOL, wait_until};
use crate::connections::command;
use crate::tools::{
    MIB, OBJECT, clone, create, created, errno, flatten, image_names, layout, open, read,
    remove_all,
};

#[test]
fn a_full_pool_refuses_and_lets_removals_through() {
    struct OwnPool<'a>(&'a dyn Cluster, String);
    impl Drop for OwnPool<'_> {
        fn drop(&mut self) {
            let delete = json!({
                "prefix": "osd pool delete", "pool": self.1, "pool2": self.1, "yes_i_really_really_mean_it": true,
            });
            let deleted = self.0.monitor_command(&delete.to_string());
            assert!(deleted.is_ok() || thread::panicking(), "{deleted:?}");
        }
    }
    let cluster = Lab::from_environment().connect();
    let own = OwnPool(&*cluster, format!("test-full-{}", std::process::id()));
    command(&*cluster, &json!({"prefix": "osd pool create", "pool": own.1, "pg_num": 8}));
    command(
        &*cluster,
        &json!({"prefix": "osd pool application enable", "pool": own.1, "app": "rbd"}),
    );
    let pool = cluster.pool(&own.1, "").unwrap();
    // The figures come from the manager, some seconds after a pool was made.
    let stats = wait_until("the pool has figures", || pool.stats());
    assert_eq!(stats.quota, None);
    create(&pool, "image");
    create(&pool, "trashed");
    let image = pool.open_image(ImageKey::Name("image"), OpenMode::ReadWrite).unwrap();
    image.write_at(0, &[1; 8192]).unwrap();
    command(
        &*cluster,
        &json!({"prefix": "osd pool set-quota", "pool": own.1, "field": "max_bytes", "val": "4096"}),
    );
    assert_eq!(pool.stats().unwrap().quota, Some(4096));
    let refused = wait_until("the pool is full", || {
        if let Err(error) = pool.create_image("one too many", MIB, &ImageOptions::default()) {
            return Ok(error);
        }
        remove_all(&pool, &["one too many"]);
        Err("it takes another image")
    });
    assert_eq!(refused.errno, Errno::EDQUOT);
    assert!(pool.stats().unwrap().stored > 4096);
    drop(image);
    remove_all(&pool, &["image"]);
    let id = pool.image_id("trashed").unwrap().unwrap();
    pool.trash_move("trashed", 0).unwrap();
    pool.trash_remove(&id, false).unwrap();
    assert_eq!(image_names(&pool), ["one too many"; 0]);
}

#[test]
fn interrupted_renames_are_finished() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let pool = namespace.pool(&*lab.connect());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("object");
    let copy = |from: &str, to: &str| {
        for (operation, object) in [("get", from), ("put", to)] {
            let place = ["--pool", POOL, "--namespace", &namespace.name];
            lab.run("rados", &[&place[..], &[operation, object, file.to_str().unwrap()]].concat());
        }
    };
    create(&pool, "from");
    let id = pool.image_id("from").unwrap();
    let is_renamed = || {
        assert_eq!(
            (pool.image_id("from").unwrap(), pool.image_id("to").unwrap()),
            (None, id.clone())
        );
        assert_eq!(image_names(&pool), ["to"]);
    };
    // Killed before the directory was written.
    copy("rbd_id.from", "rbd_id.to");
    pool.rename_image("from", "to").unwrap();
    is_renamed();
    // Killed after.
    copy("rbd_id.to", "rbd_id.from");
    pool.rename_image("from", "to").unwrap();
    is_renamed();
    assert_eq!(errno(pool.rename_image("from", "to")), Errno::ENOENT);
    remove_all(&pool, &["to"]);
    namespace.assert_empty();
}

#[test]
fn an_interrupted_removal_is_told_from_the_trash() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let pool = namespace.pool(&*lab.connect());
    create(&pool, "image");
    let id = pool.image_id("image").unwrap().unwrap();
    pool.trash_move("image", 3600).unwrap();
    // A removal is an entry whose source is 3, the byte behind version, compatible version and
    // length.
    let key = format!("id_{id}");
    let mut entry = pool.omap_get("rbd_trash", &[&key]).unwrap().remove(&key).unwrap();
    assert_eq!(entry[6], 0);
    entry[6] = 3;
    pool.omap_update("rbd_trash", &OmapUpdate { set: vec![(key, entry)], ..OmapUpdate::default() })
        .unwrap();
    assert!(pool.trash_get(&id).unwrap().unwrap().removing);
    assert_eq!(pool.trash_list().unwrap(), []);
    assert_eq!(image_names(&pool), ["image"]);
    pool.remove_image("image").unwrap();
    assert_eq!(pool.trash_get(&id).unwrap(), None);
    namespace.assert_empty();
}

#[test]
fn snapshots_of_groups_are_told_from_users() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let pool = namespace.pool(&*lab.connect());
    let image = created(&pool, "image");
    let (group, member) =
        (format!("{POOL}/{}/group", namespace.name), format!("{POOL}/{}/image", namespace.name));
    let snapshot = format!("{group}@snapshot");
    lab.run("rbd", &["group", "create", &group]);
    lab.run("rbd", &["group", "image", "add", &group, &member]);
    lab.run("rbd", &["group", "snap", "create", &snapshot]);
    image.create_snapshot("by a user").unwrap();
    let kinds: Vec<SnapshotKind> =
        image.snapshots().unwrap().into_iter().map(|found| found.kind).collect();
    assert_eq!(kinds, [SnapshotKind::Group, SnapshotKind::User]);
    image.remove_snapshot("by a user").unwrap();
    drop(image);
    assert_eq!(errno(pool.remove_image("image")), Errno::ENOTEMPTY);
    lab.run("rbd", &["group", "snap", "rm", &snapshot]);
    lab.run("rbd", &["group", "rm", &group]);
    remove_all(&pool, &["image"]);
    pool.remove_object("rbd_group_directory").unwrap();
    namespace.assert_empty();
}

#[test]
fn names_with_a_nul_are_refused() {
    let pool = Lab::from_environment().connect().pool(POOL, "").unwrap();
    assert_eq!(errno(pool.create_image("a\0b", MIB, &layout())), Errno::EINVAL);
    assert_eq!(errno(pool.open_image(ImageKey::Name("a\0b"), OpenMode::ReadOnly)), Errno::EINVAL);
    assert_eq!(errno(pool.cluster().pool("a\0b", "")), Errno::EINVAL);
}

/// What a write to a clone leaves that was killed after it had marked the object in the object map.
#[test]
fn a_flatten_takes_from_the_parent_what_the_object_map_wrongly_says_the_clone_has() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let pool = namespace.pool(&*lab.connect());
    let image = created(&pool, "image");
    image.write_at(OBJECT, &[7]).unwrap();
    image.create_snapshot("s").unwrap();
    clone(&pool, "image", "s", "clone");
    let child = open(&pool, "clone");
    child.write_at(OBJECT, &[8]).unwrap();
    pool.remove_object(&format!("rbd_data.{}.{:016x}", child.id().unwrap(), 1)).unwrap();
    drop(child);
    let child = open(&pool, "clone");
    assert_eq!(read(&*child, OBJECT, 1), [7], "before");
    flatten(&*child);
    assert_eq!(child.parent(None).unwrap(), None);
    assert_eq!(read(&*child, OBJECT, 1), [7], "after");
    drop(child);
    lab.run("rbd", &["object-map", "check", &format!("{POOL}/{}/clone", namespace.name)]);
    image.remove_snapshot("s").unwrap();
    drop(image);
    remove_all(&pool, &["image", "clone"]);
    namespace.assert_empty();
}
