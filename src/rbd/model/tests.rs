//! What the model promises, behaviour by behaviour.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use super::{Fault, Model, Session};
use crate::rbd::{
    CloneFormat, Errno, Guard, Image, ImageKey, ImageOptions, OmapUpdate, OpenMode, Pool,
    SnapshotKind, SnapshotSpec,
};

const MIB: u64 = 1 << 20;

/// A cluster with the pool `rbd`, one session, and the pool seen from it.
fn start() -> (Model, Session, Arc<dyn Pool>) {
    let model = Model::new();
    model.create_pool("rbd");
    let session = model.connect();
    let pool = session.cluster().pool("rbd", "").unwrap();
    (model, session, pool)
}

fn create(pool: &Arc<dyn Pool>, name: &str) {
    pool.create_image(name, MIB, &ImageOptions::default()).unwrap();
}

fn open(pool: &Arc<dyn Pool>, name: &str) -> Box<dyn Image> {
    pool.open_image(ImageKey::Name(name), OpenMode::ReadWrite).unwrap()
}

fn spec(image: &str, snapshot: &str) -> SnapshotSpec {
    SnapshotSpec {
        pool: "rbd".to_owned(),
        namespace: String::new(),
        image: image.to_owned(),
        snapshot: snapshot.to_owned(),
    }
}

fn format(clone_format: CloneFormat) -> ImageOptions {
    ImageOptions { clone_format, ..ImageOptions::default() }
}

fn errno<T>(answer: crate::rbd::Result<T>) -> Errno {
    answer.err().expect("the call must fail").errno
}

#[test]
fn a_parked_snapshot_goes_with_its_last_child() {
    let (model, _, pool) = start();
    create(&pool, "a");
    open(&pool, "a").create_snapshot("s").unwrap();
    pool.clone_image(&spec("a", "s"), "b", &format(CloneFormat::V2)).unwrap();
    open(&pool, "a").remove_snapshot("s").unwrap();
    assert_eq!(errno(open(&pool, "a").remove_snapshot("s")), Errno::ENOENT);
    let parked = open(&pool, "a").snapshots().unwrap();
    assert_eq!(parked[0].kind, SnapshotKind::Trash { original_name: "s".to_owned() });
    assert_eq!(errno(open(&pool, "a").remove_snapshot_by_id(parked[0].id)), Errno::EBUSY);
    assert_eq!(errno(pool.remove_image("a")), Errno::ENOTEMPTY);
    pool.remove_image("b").unwrap();
    assert_eq!(open(&pool, "a").snapshots().unwrap(), vec![]);
    pool.remove_image("a").unwrap();
    assert!(model.graph().is_empty(), "{}", model.graph());
}

#[test]
fn format_1_needs_protection_and_keeps_it() {
    let (model, _, pool) = start();
    create(&pool, "a");
    let a = open(&pool, "a");
    a.create_snapshot("s").unwrap();
    assert_eq!(
        errno(pool.clone_image(&spec("a", "s"), "b", &format(CloneFormat::V1))),
        Errno::EINVAL
    );
    a.protect_snapshot("s").unwrap();
    assert_eq!(errno(a.protect_snapshot("s")), Errno::EBUSY);
    pool.clone_image(&spec("a", "s"), "b", &format(CloneFormat::V1)).unwrap();
    assert_eq!(errno(a.remove_snapshot("s")), Errno::EBUSY);
    pool.trash_move("b", 0).unwrap();
    assert_eq!(errno(a.unprotect_snapshot("s")), Errno::EBUSY, "a child in the trash counts");
    let child = &a.children(None).unwrap()[0];
    assert!(child.in_trash && child.image == "b");
    pool.trash_remove(&child.image_id, false).unwrap();
    a.unprotect_snapshot("s").unwrap();
    assert_eq!(errno(a.unprotect_snapshot("s")), Errno::EINVAL);
    a.remove_snapshot("s").unwrap();
    drop(a);
    pool.remove_image("a").unwrap();
    assert!(model.graph().is_empty(), "{}", model.graph());
}

#[test]
fn a_clone_reads_its_parent_until_written() {
    let (_, _, pool) = start();
    create(&pool, "a");
    let a = open(&pool, "a");
    a.write_at(5000, b"parent").unwrap();
    a.create_snapshot("s").unwrap();
    a.write_at(5000, b"later!").unwrap();
    pool.clone_image(&spec("a", "s"), "b", &format(CloneFormat::V2)).unwrap();
    let b = open(&pool, "b");
    let read = |image: &dyn Image, offset| {
        let mut buffer = [0; 6];
        assert_eq!(image.read_at(None, offset, &mut buffer).unwrap(), 6);
        buffer
    };
    assert_eq!(&read(&*b, 5000), b"parent");
    b.write_at(5002, b"RR").unwrap();
    assert_eq!(&read(&*b, 5000), b"paRRnt");
    b.flatten(&mut |_, _| ControlFlow::Continue(())).unwrap();
    assert_eq!(errno(b.flatten(&mut |_, _| ControlFlow::Continue(()))), Errno::EINVAL);
    assert_eq!(b.parent(None).unwrap(), None);
    assert_eq!(&read(&*b, 5000), b"paRRnt");
    assert_eq!(a.children(None).unwrap(), vec![]);
}

#[test]
fn a_crash_leaves_exactly_what_was_written() {
    let (model, session, pool) = start();
    create(&pool, "a");
    session.inject(session.calls() + 1, Fault::CrashInside(1));
    assert_eq!(errno(pool.create_image("b", MIB, &ImageOptions::default())), Errno::ESHUTDOWN);
    assert_eq!(errno(pool.list_images()), Errno::ESHUTDOWN, "a dead session stays dead");

    let pool = model.connect().cluster().pool("rbd", "").unwrap();
    assert_eq!(errno(pool.open_image(ImageKey::Name("b"), OpenMode::ReadOnly)), Errno::ENOENT);
    assert_eq!(errno(pool.create_image("b", MIB, &ImageOptions::default())), Errno::EEXIST);
    pool.remove_image("b").unwrap();
    create(&pool, "b");
}

#[test]
fn hooks_may_use_other_sessions() {
    let (model, session, pool) = start();
    let other = model.connect().cluster().pool("rbd", "").unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (log, hook_model) = (Arc::clone(&seen), model.clone());
    session.on_call(move |call| {
        log.lock().unwrap().push((call.method, hook_model.graph().images().count()));
        let _taken = other.create_image("a", MIB, &ImageOptions::default());
    });
    assert_eq!(errno(pool.create_image("a", MIB, &ImageOptions::default())), Errno::EEXIST);
    pool.remove_image("a").unwrap();
    assert_eq!(*seen.lock().unwrap(), [("create_image", 0), ("remove_image", 1)]);
}

#[test]
fn a_client_that_keeps_the_lock_keeps_others_from_writing_and_from_nothing_else() {
    let (model, session, pool) = start();
    create(&pool, "a");
    let open =
        |pool: &Arc<dyn Pool>| pool.open_image(ImageKey::Name("a"), OpenMode::ReadWrite).unwrap();
    let owner = open(&pool);
    let others = model.connect().cluster().pool("rbd", "").unwrap();
    let other = open(&others);
    other.write_at(0, b"1").unwrap();
    model.keep_locks(&session);
    owner.write_at(0, b"2").unwrap();
    assert_eq!(errno(other.write_at(0, b"3")), Errno::EROFS);
    assert_eq!(errno(other.discard(0, 4096)), Errno::EROFS);
    other.create_snapshot("s").unwrap();
    other.resize(2 * MIB, false).unwrap();
    assert_eq!(errno(others.remove_image("a")), Errno::EBUSY);
    drop(owner);
    other.write_at(0, b"4").unwrap();
}

#[test]
fn a_guard_that_does_not_hold_writes_nothing() {
    let (_, _, pool) = start();
    let set = |value: &[u8], guard| OmapUpdate {
        guards: vec![guard],
        set: vec![("k".to_owned(), value.to_vec())],
        remove: vec![],
    };
    let absent = Guard::Absent("k".to_owned());
    pool.omap_update("o", &set(b"1", absent.clone())).unwrap();
    assert_eq!(errno(pool.omap_update("o", &set(b"2", absent))), Errno::ECANCELED);
    pool.omap_update("o", &set(b"2", Guard::Equals("k".to_owned(), b"1".to_vec()))).unwrap();
    assert_eq!(pool.omap_get("o", &["k", "absent"]).unwrap()["k"], b"2");
    assert!(pool.omap_get("none", &["k"]).unwrap().is_empty());
}
