//! Snapshots of several images that are cut at one moment.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cinderblock::rbd::{Errno, Features, Image, ImageOptions, NewSnapshot};

use crate::tools::{
    MIB, Place, created, errno, layout, open, open_read_only, read_at, remove_all, snapshot_id,
    snapshot_names,
};

const NAMES: [&str; 3] = ["a", "b", "c"];

fn new(image: &dyn Image, name: &str) -> NewSnapshot {
    NewSnapshot { image_id: image.id().unwrap(), name: name.to_owned() }
}

pub(crate) fn images_are_cut_at_one_moment(place: &Place) {
    let images = NAMES.map(|name| created(&place.pool, name));
    let (round, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let cuts = ["s", "t", "u"];
    thread::scope(|scope| {
        // Another client, whose writes wait for a cut, and never fail.
        let writer = scope.spawn(|| {
            let images = NAMES.map(|name| open(&place.other, name));
            while !done.load(Ordering::SeqCst) {
                let next = round.load(Ordering::SeqCst) + 1;
                for image in &images {
                    image.write_at(0, &next.to_le_bytes()).unwrap();
                }
                round.store(next, Ordering::SeqCst);
            }
        });
        let outcome = cuts.into_iter().try_for_each(|cut| {
            let (seen, deadline) =
                (round.load(Ordering::SeqCst), Instant::now() + Duration::from_mins(5));
            while round.load(Ordering::SeqCst) < seen + 3 && !writer.is_finished() {
                assert!(Instant::now() < deadline, "the writer does not go on");
                thread::yield_now();
            }
            let all: Vec<_> = images.iter().map(|image| new(&**image, cut)).collect();
            // On a machine with much to do, half a minute can be too short to hold all writers off.
            loop {
                match place.pool.create_snapshots(&all, &mut |_| Ok(())) {
                    Err(error) if error.errno == Errno::EBUSY && Instant::now() < deadline => {}
                    other => break other,
                }
            }
        });
        done.store(true, Ordering::SeqCst);
        outcome.unwrap();
    });
    for cut in cuts {
        let numbers = NAMES.map(|name| {
            let image = open_read_only(&place.pool, name);
            let bytes = read_at(&*image, Some(snapshot_id(&*image, cut)), 0, 8);
            u64::from_le_bytes(bytes.try_into().unwrap())
        });
        let [first, second, third] = numbers;
        assert!(
            first >= second && second >= third && third + 1 >= first && third > 0,
            "{cut} holds {numbers:?}"
        );
    }
    for image in images {
        assert_eq!(snapshot_names(&*image), cuts);
        for cut in cuts {
            image.remove_snapshot(cut).unwrap();
        }
    }
    remove_all(&place.pool, &NAMES);
}

pub(crate) fn images_without_a_lock_or_a_free_name_are_not_cut_together(place: &Place) {
    let image = created(&place.pool, "image");
    let options = ImageOptions { features: Some(Features::LAYERING), ..layout() };
    place.pool.create_image("unlocked", MIB, &options).unwrap();
    let unlocked = open(&place.pool, "unlocked");
    let refused =
        place.pool.create_snapshots(&[new(&*image, "s"), new(&*unlocked, "s")], &mut |_| Ok(()));
    assert_eq!(errno(refused), Errno::EINVAL);
    let missing = NewSnapshot { image_id: "123456".to_owned(), name: "s".to_owned() };
    assert_eq!(
        errno(place.pool.create_snapshots(&[new(&*image, "s"), missing], &mut |_| Ok(()))),
        Errno::ENOENT
    );
    assert_eq!(snapshot_names(&*image), [""; 0]);
    image.create_snapshot("s").unwrap();
    assert_eq!(
        errno(place.pool.create_snapshots(&[new(&*image, "s")], &mut |_| Ok(()))),
        Errno::EEXIST
    );
    place.pool.create_snapshots(&[new(&*image, "t")], &mut |_| Ok(())).unwrap();
    assert_eq!(snapshot_names(&*open_read_only(&place.pool, "image")), ["s", "t"]);
    image.remove_snapshot("s").unwrap();
    image.remove_snapshot("t").unwrap();
    assert_eq!(snapshot_names(&*unlocked), [""; 0]);
    drop((image, unlocked));
    remove_all(&place.pool, &["image", "unlocked"]);
}
