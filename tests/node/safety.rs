//! What must never happen: data formatted over, a directory of the node posing as a volume, a key
//! that leaks.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use cinderblock::node::{Access, Error};

use crate::lab::{MIB, StopOnDrop, Volume, ext4, key, pattern, run, wait_until, write, xfs};

/// Writes to the raw image at `offset`.
fn put(volume: &mut Volume, offset: u64, data: &[u8]) {
    with_raw_device(volume, |device| {
        let device = OpenOptions::new().write(true).open(device).unwrap();
        device.write_all_at(data, offset).unwrap();
        device.sync_all().unwrap();
    });
}

/// Reads from the raw image.
fn get(volume: &mut Volume, offset: u64, length: usize) -> Vec<u8> {
    let capability = volume.capability.clone();
    volume.capability.access = Access::Block;
    volume.stage().unwrap();
    volume.publish("raw", true).unwrap();
    let mut data = vec![0; length];
    OpenOptions::new()
        .read(true)
        .open(volume.path("raw"))
        .unwrap()
        .read_exact_at(&mut data, offset)
        .unwrap();
    volume.unpublish("raw").unwrap();
    volume.unstage().unwrap();
    volume.capability = capability;
    data
}

#[test]
fn data_without_a_filesystem_is_not_formatted_over() {
    for offset in [0, 5 * 4096, 100 * MIB - 4096] {
        let mut volume = Volume::new(100, ext4());
        let data = pattern(5, 4096);
        put(&mut volume, offset, &data);
        let error = volume.stage().unwrap_err();
        assert!(matches!(error, Error::FailedPrecondition(_)), "{error}");
        volume.assert_nothing_on_the_node();
        assert!(get(&mut volume, offset, 4096) == data);
        assert!(get(&mut volume, MIB, 4096) == [0; 4096], "something was written");
        volume.finish();
    }
}

#[test]
fn a_volume_that_came_from_elsewhere_is_not_formatted() {
    let mut volume = Volume::new(64, ext4());
    volume.created_empty = false;
    assert!(matches!(volume.stage(), Err(Error::FailedPrecondition(_))));
    volume.assert_nothing_on_the_node();
    assert!(get(&mut volume, 0, 1 << 20) == vec![0; 1 << 20]);
    volume.finish();
}

#[test]
fn another_filesystem_is_neither_mounted_nor_formatted() {
    let mut volume = Volume::new(320, xfs());
    volume.stage().unwrap();
    write(&volume.path("staging/data"), b"on xfs");
    volume.unstage().unwrap();
    volume.capability.access = ext4();
    assert!(matches!(volume.stage(), Err(Error::FailedPrecondition(_))));
    volume.assert_nothing_on_the_node();
    volume.capability.access = Access::Mount { fs_type: None, flags: vec![] };
    volume.stage().unwrap();
    assert_eq!(fs::read(volume.path("staging/data")).unwrap(), b"on xfs");
    volume.unstage().unwrap();
    volume.finish();
}

/// Hands the raw device of the volume to `change`.
pub(crate) fn with_raw_device(volume: &mut Volume, change: impl FnOnce(&str)) {
    let capability = volume.capability.clone();
    volume.capability.access = Access::Block;
    volume.stage().unwrap();
    volume.publish("raw", false).unwrap();
    change(volume.path("raw").to_str().unwrap());
    volume.unpublish("raw").unwrap();
    volume.unstage().unwrap();
    volume.capability = capability;
}

#[test]
fn a_damaged_ext4_is_not_repaired_by_itself() {
    let mut volume = Volume::new(64, ext4());
    volume.stage().unwrap();
    write(&volume.path("staging/data"), b"x");
    volume.unstage().unwrap();
    // The kernel has noticed errors, and the root directory is no directory: the preening fsck
    // gives up on that.
    with_raw_device(&mut volume, |device| {
        run("debugfs", &["-w", "-R", "set_super_value state 2", device]);
        run("debugfs", &["-w", "-R", "set_inode_field <2> mode 0100644", device]);
    });
    let error = volume.stage().unwrap_err();
    assert!(
        matches!(&error, Error::FailedPrecondition(text) if text.contains("e2fsck")),
        "{error}"
    );
    volume.assert_nothing_on_the_node();
    with_raw_device(&mut volume, |device| {
        let root = run("debugfs", &["-R", "stat <2>", device]);
        assert!(root.contains("Type: regular"), "{root}");
    });
    volume.finish();
}

#[test]
fn what_can_be_mended_without_a_loss_is_mended() {
    let mut volume = Volume::new(64, ext4());
    volume.stage().unwrap();
    write(&volume.path("staging/data"), b"x");
    volume.unstage().unwrap();
    // As after an unclean end: an inode in use is not marked so, and the filesystem says that it is
    // not clean.
    let mut ended_with = None;
    with_raw_device(&mut volume, |device| {
        run("debugfs", &["-w", "-R", "set_super_value state 0", device]);
        run("debugfs", &["-w", "-R", "freei <12>", device]);
        let looked = std::process::Command::new("e2fsck").args(["-n", device]).output().unwrap();
        ended_with = looked.status.code();
    });
    assert_eq!(ended_with, Some(4), "it is not damaged");
    volume.stage().unwrap();
    assert_eq!(fs::read(volume.path("staging/data")).unwrap(), b"x");
    volume.unstage().unwrap();
    with_raw_device(&mut volume, |device| {
        run("e2fsck", &["-f", "-n", device]);
    });
    volume.finish();
}

#[test]
fn a_damaged_xfs_is_not_repaired_by_itself() {
    let mut volume = Volume::new(320, xfs());
    volume.stage().unwrap();
    volume.unstage().unwrap();
    with_raw_device(&mut volume, |device| {
        run(
            "xfs_db",
            &["-x", "-c", "sb 0", "-c", "addr rootino", "-c", "write core.format 7", device],
        );
    });
    let error = volume.stage().unwrap_err();
    assert!(
        matches!(&error, Error::FailedPrecondition(text)
            if text.contains("damaged") && text.contains("the kernel said: XFS (")),
        "{error}"
    );
    volume.assert_nothing_on_the_node();
    with_raw_device(&mut volume, |device| {
        let root = run(
            "xfs_db",
            &["-r", "-c", "sb 0", "-c", "addr rootino", "-c", "print core.format", device],
        );
        assert!(root.contains('7'), "{root}");
    });
    volume.finish();
}

#[test]
fn an_unmounted_staging_path_is_not_published() {
    let volume = Volume::new(64, ext4());
    assert!(matches!(volume.publish("target", false), Err(Error::FailedPrecondition(_))));
    volume.stage().unwrap();
    run("umount", &[volume.staging().to_str().unwrap()]);
    assert!(matches!(volume.publish("target", false), Err(Error::FailedPrecondition(_))));
    // Something else in its place is no better.
    run("mount", &["-t", "tmpfs", "none", volume.staging().to_str().unwrap()]);
    assert!(matches!(volume.publish("target", false), Err(Error::FailedPrecondition(_))));
    assert!(matches!(volume.unstage(), Err(Error::FailedPrecondition(_))));
    assert!(!volume.path("target").exists());
    run("umount", &[volume.staging().to_str().unwrap()]);
    volume.stage().unwrap();
    // As the kernel does after an error.
    run("mount", &["-o", "remount,ro", volume.staging().to_str().unwrap()]);
    let error = volume.publish("target", false).unwrap_err();
    assert!(
        matches!(&error, Error::FailedPrecondition(text) if text.contains("read-only")),
        "{error}"
    );
    run("mount", &["-o", "remount,rw", volume.staging().to_str().unwrap()]);
    volume.publish("target", false).unwrap();
    volume.unpublish("target").unwrap();
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn files_are_neither_hidden_nor_removed() {
    let volume = Volume::new(64, ext4());
    let planted = volume.path("staging/planted");
    fs::write(&planted, "x").unwrap();
    assert!(matches!(volume.stage(), Err(Error::FailedPrecondition(_))));
    volume.assert_nothing_on_the_node();
    fs::remove_file(&planted).unwrap();

    volume.stage().unwrap();
    fs::create_dir(volume.path("target")).unwrap();
    fs::write(volume.path("target/planted"), "x").unwrap();
    assert!(matches!(volume.publish("target", false), Err(Error::FailedPrecondition(_))));
    assert!(matches!(volume.unpublish("target"), Err(Error::FailedPrecondition(_))));
    assert_eq!(fs::read(volume.path("target/planted")).unwrap(), b"x");
    fs::remove_file(volume.path("target/planted")).unwrap();
    volume.unpublish("target").unwrap();
    assert!(!volume.path("target").exists());
    volume.unpublish("never published").unwrap();
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn a_volume_in_use_is_not_taken_away() {
    let volume = Volume::new(64, ext4());
    volume.stage().unwrap();
    volume.publish("target", false).unwrap();
    let error = volume.unstage().unwrap_err();
    assert!(
        matches!(&error, Error::FailedPrecondition(text) if text.contains("/target")),
        "{error}"
    );
    let open = fs::File::create(volume.path("target/open")).unwrap();
    let error = volume.unpublish("target").unwrap_err();
    let process = std::process::id().to_string();
    assert!(
        matches!(&error, Error::FailedPrecondition(text) if text.contains(&process)),
        "{error}"
    );
    drop(open);
    volume.unpublish("target").unwrap();
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn a_block_device_in_use_is_not_taken_away() {
    let volume = Volume::new(16, Access::Block);
    volume.stage().unwrap();
    let device = volume.device();
    let device = Path::new("/dev").join(device);
    let open = fs::File::open(&device).unwrap();
    let error = volume.unstage().unwrap_err();
    let process = std::process::id().to_string();
    assert!(
        matches!(&error, Error::FailedPrecondition(text) if text.contains(&process)),
        "{error}"
    );
    drop(open);
    volume.unstage().unwrap();
    volume.finish();
}

/// Every file below `folder`, FUSE mounts left out.
fn files_below(folder: &Path, found: &mut Vec<Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files_below(&entry.path(), found);
        } else if kind.is_file() && entry.file_name() != "export" {
            found.push(fs::read(entry.path()).unwrap());
        }
    }
}

#[test]
fn the_key_is_in_no_argument_environment_file_or_message() {
    let volume = Volume::new(64, ext4());
    let key = key();
    let holds_key = |bytes: &[u8]| bytes.windows(key.len()).any(|window| window == key.as_bytes());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Short-lived programs are seen too: this looks all the while.
        let watcher = scope.spawn(|| {
            let mut looked_at = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                for process in fs::read_dir("/proc").unwrap().flatten() {
                    for name in ["cmdline", "environ"] {
                        let bytes = fs::read(process.path().join(name)).unwrap_or_default();
                        assert!(!holds_key(&bytes), "{} {name}", process.path().display());
                        looked_at += 1;
                    }
                }
            }
            looked_at
        });
        {
            let _stop = StopOnDrop(&stop);
            volume.stage().unwrap();
            volume.publish("target", false).unwrap();
            volume.grow_image(128);
            let _depends_on_capabilities = volume.expand("target", 128);
            let mut files = Vec::new();
            files_below(&volume.path("state"), &mut files);
            assert!(!files.is_empty(), "a record, at least");
            assert!(files.iter().all(|file| !holds_key(file)));
            volume.unpublish("target").unwrap();
            volume.unstage().unwrap();
        }
        assert!(watcher.join().unwrap() > 1000);
    });
    volume.finish();
}

#[test]
fn a_refused_attach_says_why_and_leaves_nothing() {
    let mut volume = Volume::new(64, ext4());
    let wrong = "AQBdz2Jp5sv6EBAArWnGDbCpDGbnvpqAZoGpdw==";
    let error = volume.stage_with_key(wrong).unwrap_err();
    assert!(matches!(error, Error::Unauthenticated(_)), "{error}");
    assert!(!error.to_string().contains(wrong));
    volume.assert_nothing_on_the_node();
    // Base64, but not a key.
    assert!(matches!(
        volume.stage_with_key("AAAA"),
        Err(Error::FailedPrecondition(_) | Error::Unauthenticated(_))
    ));
    volume.assert_nothing_on_the_node();

    let name = std::mem::replace(&mut volume.image.name, "no-such-image".into());
    let error = volume.stage().unwrap_err();
    assert!(
        matches!(&error, Error::NotFound(text) if text.contains("rbd/no-such-image")),
        "{error}"
    );
    volume.assert_nothing_on_the_node();
    volume.image.name = name;

    let monitors = std::mem::replace(&mut volume.image.monitors, "127.0.0.1:1".into());
    let error = volume.stage().unwrap_err();
    assert!(matches!(&error, Error::Unavailable(text) if text.contains("127.0.0.1:1")), "{error}");
    volume.assert_nothing_on_the_node();
    volume.image.monitors = monitors;

    volume.stage().unwrap();
    volume.unstage().unwrap();
    wait_until("the daemon's end", || volume.daemons().is_empty());
    volume.finish();
}
