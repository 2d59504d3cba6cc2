//! The bytes of an image: read, written, discarded, compared.

use std::ops::ControlFlow;
use std::thread;

use cinderblock::rbd::{Diff, Errno, Extent, Image};

use crate::tools::{
    MIB, OBJECT, Place, clone, created, diff, errno, everything, open, read, read_at, remove_all,
    snapshot_id,
};

const END: u64 = MIB;

fn extent(object: u64, length: u64, exists: bool) -> Extent {
    Extent { offset: object * OBJECT, length, exists }
}

pub(crate) fn what_was_written_is_read(place: &Place) {
    let image = created(&place.pool, "image");
    let seen = open(&place.other, "image");
    assert_eq!(read(&*image, 0, 4), [0; 4]);
    // Across the border of two objects.
    image.write_at(OBJECT - 2, b"abcd").unwrap();
    assert_eq!(read(&*image, OBJECT - 4, 8), *b"\0\0abcd\0\0");
    image.flush().unwrap();
    assert_eq!(read(&*seen, OBJECT - 2, 4), *b"abcd");
    drop((image, seen));
    remove_all(&place.pool, &["image"]);
}

pub(crate) fn reads_end_with_the_image(place: &Place) {
    let image = created(&place.pool, "image");
    assert_eq!(read(&*image, END - 3, 8).len(), 3);
    assert_eq!(read(&*image, END, 8).len(), 0);
    assert_eq!(read(&*image, END + 1, 8).len(), 0);
    assert_eq!(read(&*image, u64::MAX, 8).len(), 0);
    assert_eq!(read(&*image, 0, 0).len(), 0);
    drop(image);
    remove_all(&place.pool, &["image"]);
}

pub(crate) fn writes_beyond_the_end_write_nothing(place: &Place) {
    let image = created(&place.pool, "image");
    for offset in [END - 2, END, END + 7, u64::MAX] {
        assert_eq!(errno(image.write_at(offset, b"abc")), Errno::EINVAL);
        assert_eq!(errno(image.discard(offset, 3)), Errno::EINVAL);
    }
    assert_eq!(read(&*image, END - 2, 2), [0; 2]);
    assert_eq!(image.info().unwrap().size, END);
    drop(image);
    remove_all(&place.pool, &["image"]);
}

pub(crate) fn discarded_bytes_read_as_zeros(place: &Place) {
    let image = created(&place.pool, "image");
    image.write_at(0, &vec![7; 3 * usize::try_from(OBJECT).unwrap()]).unwrap();
    // A part of an object, and more than one.
    image.discard(10, 5).unwrap();
    assert_eq!(read(&*image, 9, 7), [7, 0, 0, 0, 0, 0, 7]);
    image.discard(OBJECT - 1, OBJECT + 2).unwrap();
    assert_eq!(read(&*image, OBJECT - 2, 3), [7, 0, 0]);
    assert_eq!(read(&*image, 2 * OBJECT - 1, 3), [0, 0, 7]);
    image.discard(0, END).unwrap();
    assert_eq!(diff(&*image, &everything()), []);
    drop(image);
    remove_all(&place.pool, &["image"]);
}

pub(crate) fn clones_read_their_parents_and_keep_their_own_writes(place: &Place) {
    let pool = &place.pool;
    let parent = created(pool, "parent");
    parent.write_at(0, b"parent").unwrap();
    parent.create_snapshot("s").unwrap();
    parent.write_at(0, b"later!").unwrap();
    clone(pool, "parent", "s", "child");
    let child = open(pool, "child");
    assert_eq!(read(&*child, 0, 6), *b"parent");
    child.write_at(3, b"ty!").unwrap();
    assert_eq!(read(&*child, 0, 6), *b"party!");
    child.discard(0, 3).unwrap();
    assert_eq!(read(&*child, 0, 6), *b"\0\0\0ty!");
    child.resize(2 * MIB, false).unwrap();
    assert_eq!(read(&*child, MIB, 4), [0; 4]);
    assert_eq!(read(&*parent, 0, 6), *b"later!");
    let s = snapshot_id(&*parent, "s");
    assert_eq!(read_at(&*parent, Some(s), 0, 6), *b"parent");
    drop(child);
    remove_all(pool, &["child"]);
    parent.remove_snapshot("s").unwrap();
    drop(parent);
    remove_all(pool, &["parent"]);
}

pub(crate) fn snapshots_keep_bytes_and_size(place: &Place) {
    let image = created(&place.pool, "image");
    image.write_at(0, b"one").unwrap();
    image.create_snapshot("s").unwrap();
    image.resize(2 * MIB, false).unwrap();
    image.write_at(0, b"two").unwrap();
    image.create_snapshot("t").unwrap();
    image.write_at(0, b"now").unwrap();
    let (s, t) = (snapshot_id(&*image, "s"), snapshot_id(&*image, "t"));
    for _ in 0..2 {
        assert_eq!(read_at(&*image, Some(s), 0, 3), *b"one");
        assert_eq!(read_at(&*image, Some(t), 0, 3), *b"two");
        assert_eq!(read(&*image, 0, 3), *b"now");
    }
    assert_eq!(read_at(&*image, Some(s), MIB - 1, 2).len(), 1);
    assert_eq!(read_at(&*image, Some(t), MIB - 1, 2).len(), 2);
    assert_eq!(errno(image.read_at(Some(t + 1000), 0, &mut [0])), Errno::ENOENT);
    image.remove_snapshot("s").unwrap();
    image.remove_snapshot("t").unwrap();
    drop(image);
    remove_all(&place.pool, &["image"]);
}

pub(crate) fn one_handle_serves_several_threads(place: &Place) {
    let image = created(&place.pool, "image");
    image.write_at(0, &[1; 512]).unwrap();
    image.create_snapshot("s").unwrap();
    let s = snapshot_id(&*image, "s");
    thread::scope(|scope| {
        scope.spawn(|| (2..30).for_each(|byte| image.write_at(0, &[byte; 512]).unwrap()));
        scope.spawn(|| {
            (0..20).for_each(|_| assert_eq!(read_at(&*image, Some(s), 0, 512), [1; 512]));
        });
        scope.spawn(|| (0..5).for_each(|_| assert_eq!(image.parent(Some(s)).unwrap(), None)));
        scope.spawn(|| (0..5).for_each(|_| assert_eq!(image.snapshots().unwrap().len(), 1)));
    });
    assert_eq!(read(&*image, 0, 512), [29; 512]);
    image.remove_snapshot("s").unwrap();
    drop(image);
    remove_all(&place.pool, &["image"]);
}

pub(crate) fn differences_are_found(place: &Place) {
    let image = created(&place.pool, "image");
    image.write_at(0, b"first").unwrap();
    image.create_snapshot("s").unwrap();
    image.write_at(3 * OBJECT, b"second").unwrap();
    image.create_snapshot("t").unwrap();
    image.discard(0, OBJECT).unwrap();
    let (s, t) = (snapshot_id(&*image, "s"), snapshot_id(&*image, "t"));
    let query = |at, since| diff(&*image, &Diff { at, since, ..everything() });
    assert_eq!(query(None, None), [extent(3, 6, true)]);
    assert_eq!(query(Some(s), None), [extent(0, 5, true)]);
    assert_eq!(query(Some(t), None), [extent(0, 5, true), extent(3, 6, true)]);
    assert_eq!(query(Some(t), Some(s)), [extent(3, 6, true)]);
    assert_eq!(query(None, Some(t)), [extent(0, 5, false)]);
    let whole = diff(&*image, &Diff { at: Some(t), whole_object: true, ..everything() });
    assert_eq!(whole, [extent(0, OBJECT, true), extent(3, OBJECT, true)]);
    for name in ["s", "t"] {
        image.remove_snapshot(name).unwrap();
    }
    drop(image);
    remove_all(&place.pool, &["image"]);
}

pub(crate) fn differences_stay_in_their_range(place: &Place) {
    let image = created(&place.pool, "image");
    image.write_at(0, &vec![1; usize::try_from(MIB).unwrap()]).unwrap();
    let range = |offset, length| diff(&*image, &Diff { offset, length, ..everything() });
    assert_eq!(range(OBJECT, OBJECT), [extent(1, OBJECT, true)]);
    assert_eq!(range(15 * OBJECT, u64::MAX), [extent(15, OBJECT, true)]);
    assert_eq!(range(MIB, 1), []);
    assert_eq!(range(u64::MAX, u64::MAX), []);
    drop(image);
    remove_all(&place.pool, &["image"]);
}

pub(crate) fn differences_count_the_parent_when_asked(place: &Place) {
    let pool = &place.pool;
    let parent = created(pool, "parent");
    parent.write_at(0, &[1; 4096]).unwrap();
    parent.create_snapshot("s").unwrap();
    clone(pool, "parent", "s", "child");
    let child = open(pool, "child");
    child.write_at(2 * OBJECT, b"child").unwrap();
    assert_eq!(diff(&*child, &everything()), [extent(2, 5, true)]);
    child.create_snapshot("k").unwrap();
    let k = snapshot_id(&*child, "k");
    for at in [None, Some(k)] {
        let query = Diff { at, include_parent: true, ..everything() };
        assert_eq!(diff(&*child, &query), [extent(0, 4096, true), extent(2, 5, true)], "{at:?}");
        let whole = Diff { whole_object: true, ..query };
        assert_eq!(
            diff(&*child, &whole),
            [extent(0, OBJECT, true), extent(2, OBJECT, true)],
            "{at:?}"
        );
    }
    child.remove_snapshot("k").unwrap();
    drop(child);
    remove_all(pool, &["child"]);
    parent.remove_snapshot("s").unwrap();
    drop(parent);
    remove_all(pool, &["parent"]);
}

/// How a clone loses what it shares with its parent; takes half of an object's bytes.
type Loss = fn(&dyn Image, u64);

/// What a clone shared with its parent when the older snapshot was cut, and has lost since.
pub(crate) fn differences_tell_what_a_clone_has_lost(place: &Place) {
    let pool = &place.pool;
    let parent = created(pool, "parent");
    let whole = usize::try_from(END).unwrap();
    parent.write_at(0, &vec![1; whole]).unwrap();
    parent.create_snapshot("s").unwrap();
    let half = OBJECT / 2;
    let losses: [(&str, Loss); 6] = [
        ("shrunk to an object and grown", |child, _| {
            child.resize(3 * OBJECT, true).unwrap();
            child.resize(END, false).unwrap();
        }),
        ("shrunk into an object and grown", |child, half| {
            child.resize(3 * OBJECT + half, true).unwrap();
            child.resize(END, false).unwrap();
        }),
        ("shrunk to nothing and grown", |child, _| {
            child.resize(0, true).unwrap();
            child.resize(END, false).unwrap();
        }),
        ("an object discarded", |child, _| child.discard(2 * OBJECT, OBJECT).unwrap()),
        ("half an object discarded, up to its end", |child, half| {
            child.discard(2 * OBJECT + half, half).unwrap();
        }),
        ("half an object discarded", |child, half| child.discard(2 * OBJECT, half).unwrap()),
    ];
    for (what, lose) in losses {
        for written in [false, true] {
            clone(pool, "parent", "s", "child");
            let child = open(pool, "child");
            if written {
                child.write_at(3 * OBJECT, &[2; 100]).unwrap();
            }
            child.create_snapshot("older").unwrap();
            lose(&*child, half);
            child.create_snapshot("newer").unwrap();
            let [older, newer] = ["older", "newer"].map(|name| snapshot_id(&*child, name));
            let now = read_at(&*child, Some(newer), 0, whole);
            for whole_object in [false, true] {
                let mut bytes = read_at(&*child, Some(older), 0, whole);
                let query =
                    Diff { at: Some(newer), since: Some(older), whole_object, ..everything() };
                for extent in diff(&*child, &query) {
                    let start = usize::try_from(extent.offset).unwrap();
                    let end = start + usize::try_from(extent.length).unwrap();
                    bytes[start..end].copy_from_slice(&now[start..end]);
                }
                assert!(bytes == now, "{what}, written {written}, whole objects {whole_object}");
            }
            for name in ["older", "newer"] {
                child.remove_snapshot(name).unwrap();
            }
            drop(child);
            remove_all(pool, &["child"]);
        }
    }
    parent.remove_snapshot("s").unwrap();
    drop(parent);
    remove_all(pool, &["parent"]);
}

pub(crate) fn a_walk_over_differences_can_be_stopped(place: &Place) {
    let image = created(&place.pool, "image");
    for object in [0, 2, 4, 6] {
        image.write_at(object * OBJECT, &[1]).unwrap();
    }
    let mut seen = 0;
    let stopped = image.diff(&everything(), &mut |_| {
        seen += 1;
        if seen < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    assert_eq!((errno(stopped), seen), (Errno::ECANCELED, 3));
    let missing = Diff { since: Some(1_000_000), ..everything() };
    assert_eq!(errno(image.diff(&missing, &mut |_| ControlFlow::Continue(()))), Errno::ENOENT);
    drop(image);
    remove_all(&place.pool, &["image"]);
}
