//! What a transfer promises, on a real Ceph and on the model.

use std::ops::ControlFlow;
use std::sync::Arc;

use cinderblock::rbd::{Diff, ImageKey, ImageOptions, OpenMode, Pool, SnapshotSpec};
use cinderblock::transfer::{Algorithm, Checksum, Error, Job, Wanted};
use sha2::{Digest, Sha256};

use crate::disk::{
    Disks, MIB, SIZES, allocated, assert_same, disk, export_file, export_with, images, import_file,
    import_with, read, snapshots,
};

pub(crate) fn disks_come_back_byte_by_byte(pool: &Arc<dyn Pool>) {
    let disks = Disks::new();
    for (seed, size) in (1..).zip(SIZES) {
        let bytes = disk(seed, size);
        let path = disks.sparse("disk", &bytes);
        let imported = import_file(pool, &path, "image").unwrap();
        assert_eq!(imported.size, size);
        let expected = format!("blake3:{}", blake3::hash(&bytes));
        assert_eq!(imported.checksum.as_deref(), Some(&*expected), "{size}");
        assert_same(&read(&**pool, "image"), &bytes, &format!("{size} imported"));

        let back = disks.path("back");
        let exported =
            export_with(pool, "image", &back, Wanted::Made(Algorithm::Sha256), &Job::default());
        let exported = exported.unwrap();
        assert_eq!(exported.size, size);
        let digest: [u8; 32] = Sha256::digest(&bytes).into();
        let expected = Checksum { algorithm: Algorithm::Sha256, bytes: digest };
        assert_eq!(exported.checksum, Some(expected.to_string()), "{size}");
        assert_same(&std::fs::read(&back).unwrap(), &bytes, &format!("{size} exported"));
        std::fs::remove_file(&back).unwrap();
        assert_eq!(images(&**pool), ["image"]);
        assert!(snapshots(&**pool, "image").is_empty());
        pool.remove_image("image").unwrap();
    }
    assert_eq!(disks.names(), ["disk"]);
}

pub(crate) fn only_data_is_stored(pool: &Arc<dyn Pool>) {
    let disks = Disks::new();
    let mut bytes = vec![0; usize::try_from(64 * MIB).unwrap()];
    // A byte in one object, and zeros that are written as data in another.
    bytes[usize::try_from(20 * MIB).unwrap()] = 1;
    let path = disks.sparse("disk", &bytes);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let zeros = vec![0; usize::try_from(4 * MIB).unwrap()];
    std::os::unix::fs::FileExt::write_all_at(&file, &zeros, 40 * MIB).unwrap();
    import_file(pool, &path, "image").unwrap();
    let image = pool.open_image(ImageKey::Name("image"), OpenMode::ReadOnly).unwrap();
    let mut extents = Vec::new();
    let whole = Diff {
        at: None,
        since: None,
        offset: 0,
        length: u64::MAX,
        include_parent: true,
        whole_object: true,
    };
    let visit = &mut |extent: cinderblock::rbd::Extent| {
        extents.push(extent.offset);
        ControlFlow::Continue(())
    };
    image.diff(&whole, visit).unwrap();
    assert_eq!(extents, [20 * MIB]);
    drop(image);
    let back = disks.path("back");
    export_file(pool, "image", &back).unwrap();
    assert_same(&std::fs::read(&back).unwrap(), &bytes, "exported");
    assert!(allocated(&back) < MIB, "{} bytes for one", allocated(&back));
    pool.remove_image("image").unwrap();
}

pub(crate) fn a_clone_is_exported_with_what_its_parents_hold(pool: &Arc<dyn Pool>) {
    let disks = Disks::new();
    let mut bytes = disk(42, 33 * MIB + 512);
    import_file(pool, &disks.sparse("disk", &bytes), "parent").unwrap();
    let open = |name| pool.open_image(ImageKey::Name(name), OpenMode::ReadWrite).unwrap();
    open("parent").create_snapshot("golden").unwrap();
    let golden = bytes.clone();
    // What the parent's head does later is not the clone's affair.
    open("parent").write_at(0, &[9; 512]).unwrap();
    let spec = SnapshotSpec {
        pool: pool.name().to_owned(),
        namespace: pool.namespace().to_owned(),
        image: "parent".to_owned(),
        snapshot: "golden".to_owned(),
    };
    pool.clone_image(&spec, "child", &ImageOptions::default()).unwrap();
    let child = open("child");
    let mut change = |offset: u64, data: &[u8]| {
        child.write_at(offset, data).unwrap();
        let at = usize::try_from(offset).unwrap();
        bytes[at..at + data.len()].copy_from_slice(data);
    };
    change(3, b"the child's own");
    change(8 * MIB - 2, b"over an object's end");
    change(33 * MIB + 500, b"the tail....");
    for (offset, length) in [(12 * MIB, 4 * MIB), (17 * MIB + 5, 1000), (20 * MIB, 9 * MIB)] {
        child.discard(offset, length).unwrap();
        let at = usize::try_from(offset).unwrap();
        bytes[at..at + usize::try_from(length).unwrap()].fill(0);
    }
    drop(child);
    for (what, expected) in [("child", &bytes), ("parent@golden", &golden)] {
        let back = disks.path("back");
        export_file(pool, what, &back).unwrap();
        assert_same(&std::fs::read(&back).unwrap(), expected, what);
        std::fs::remove_file(&back).unwrap();
    }
    assert_eq!(images(&**pool), ["child", "parent"]);
    assert!(snapshots(&**pool, "child").is_empty());
    pool.remove_image("child").unwrap();
    open("parent").remove_snapshot("golden").unwrap();
    pool.remove_image("parent").unwrap();
}

pub(crate) fn an_export_is_of_one_moment(pool: &Arc<dyn Pool>) {
    let disks = Disks::new();
    let size = 64 * MIB;
    pool.create_image("image", size, &ImageOptions::default()).unwrap();
    let image = pool.open_image(ImageKey::Name("image"), OpenMode::ReadWrite).unwrap();
    // A writer that counts up, in the first and the last bytes. No moment has a higher number first
    // than one less.
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut count = 1_u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                image.write_at(size - 8, &count.to_le_bytes()).unwrap();
                image.write_at(0, &count.to_le_bytes()).unwrap();
                count += 1;
            }
        });
        for _ in 0..5 {
            let back = disks.path("back");
            export_file(pool, "image", &back).unwrap();
            let bytes = std::fs::read(&back).unwrap();
            let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
            let (first, last) = (number(0), number(bytes.len() - 8));
            assert!(last == first || last == first + 1, "{first}, {last}");
            std::fs::remove_file(&back).unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    drop(image);
    pool.remove_image("image").unwrap();
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, Error>) -> String {
    match outcome {
        Err(Error::Refused(why)) => why,
        other => panic!("not refused: {other:?}"),
    }
}

pub(crate) fn what_is_there_is_not_replaced(pool: &Arc<dyn Pool>) {
    let disks = Disks::new();
    let path = disks.sparse("disk", &disk(1, MIB));
    import_file(pool, &path, "image").unwrap();
    let other = disks.sparse("other", &disk(2, MIB));
    assert!(refused(import_file(pool, &other, "image")).contains("exists, and is not replaced"));
    assert!(refused(export_file(pool, "image", &other)).contains("exists, and is not replaced"));
    assert_same(&read(&**pool, "image"), &disk(1, MIB), "the image");
    assert_same(&std::fs::read(&other).unwrap(), &disk(2, MIB), "the file");
    let link = disks.path("link");
    std::os::unix::fs::symlink("nowhere", &link).unwrap();
    refused(export_file(pool, "image", &link));
    assert_eq!(disks.names(), ["disk", "link", "other"]);
    assert_eq!(images(&**pool), ["image"]);
    assert!(snapshots(&**pool, "image").is_empty());
    pool.remove_image("image").unwrap();
}

pub(crate) fn what_is_not_there_is_refused(pool: &Arc<dyn Pool>) {
    let disks = Disks::new();
    let back = disks.path("back");
    assert!(refused(export_file(pool, "image", &back)).contains("there is no image"));
    let path = disks.sparse("disk", &disk(1, MIB));
    import_file(pool, &path, "image").unwrap();
    assert!(refused(export_file(pool, "image@s", &back)).contains("there is no snapshot"));
    for name in ["", "-a", "a b", "a@b", "a.deleted", "a.importing", "a.exporting", &"n".repeat(90)]
    {
        refused(import_file(pool, &path, name));
    }
    assert!(import_file(pool, &disks.path("nowhere"), "a").is_err());
    refused(import_file(pool, disks.folder.path(), "a"));
    assert!(refused(import_file(pool, &disks.sparse("disk", &[]), "a")).contains("is empty"));
    assert_eq!((disks.names(), images(&**pool)), (vec!["disk".into()], vec!["image".into()]));
    pool.remove_image("image").unwrap();
}

pub(crate) fn a_wrong_checksum_leaves_nothing(pool: &Arc<dyn Pool>) {
    let disks = Disks::new();
    let bytes = disk(5, 9 * MIB + 1);
    let path = disks.sparse("disk", &bytes);
    let right = Checksum { algorithm: Algorithm::Blake3, bytes: *blake3::hash(&bytes).as_bytes() };
    let wrong = Checksum { bytes: [7; 32], ..right };
    let job = Job::default();
    let outcome = import_with(pool, &path, "image", Wanted::Equal(wrong), &job);
    let said = outcome.unwrap_err().to_string();
    assert!(said.contains(&right.to_string()) && said.contains(&wrong.to_string()), "{said}");
    assert!(images(&**pool).is_empty());
    import_with(pool, &path, "image", Wanted::Equal(right), &job).unwrap();
    let back = disks.path("back");
    let outcome = export_with(pool, "image", &back, Wanted::Equal(wrong), &job);
    assert!(matches!(outcome, Err(Error::Checksum { .. })), "{outcome:?}");
    assert_eq!(disks.names(), ["disk"]);
    export_with(pool, "image", &back, Wanted::Equal(right), &job).unwrap();
    assert!(snapshots(&**pool, "image").is_empty());
    pool.remove_image("image").unwrap();
}

pub(crate) fn a_cancelled_transfer_leaves_nothing(pool: &Arc<dyn Pool>) {
    let disks = Disks::new();
    let path = disks.sparse("disk", &disk(6, 33 * MIB));
    // Cancelled as soon as anything was moved.
    let cancelled = |work: &(dyn Fn(&Job) -> Result<(), Error> + Sync)| {
        let job = Job::default();
        std::thread::scope(|scope| {
            let working = scope.spawn(|| work(&job));
            while job.progress().0 == 0 && !working.is_finished() {
                std::thread::yield_now();
            }
            job.cancel();
            let outcome = working.join().unwrap();
            assert!(matches!(outcome, Err(Error::Cancelled)), "{outcome:?}");
        });
    };
    let wanted = Wanted::default();
    cancelled(&|job| import_with(pool, &path, "image", wanted, job).map(drop));
    assert!(images(&**pool).is_empty());
    import_file(pool, &path, "image").unwrap();
    cancelled(&|job| export_with(pool, "image", &disks.path("back"), wanted, job).map(drop));
    assert_eq!((disks.names(), images(&**pool)), (vec!["disk".into()], vec!["image".into()]));
    assert!(snapshots(&**pool, "image").is_empty());
    pool.remove_image("image").unwrap();
}
