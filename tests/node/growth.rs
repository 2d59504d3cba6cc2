//! Volumes grow: with I/O going on, when staged, on block devices, and only where that is possible.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use cinderblock::node::attach::Mounter;
use cinderblock::node::{Access, AccessMode, Error, Expand, Usage};
use cinderblock::rbd::Key;

use crate::lab::{
    MIB, StopOnDrop, Volume, ceph, ext4, key, mounter, pattern, rbd, run, variable, write, xfs,
};
use crate::safety::with_raw_device;

/// Whether this process may grow a mounted ext4.
fn has_cap_sys_resource() -> bool {
    procfs::process::Process::myself().unwrap().status().unwrap().capeff & (1 << 24) != 0
}

fn total(volume: &Volume, path: &str) -> u64 {
    match volume.node.stats(&volume.id(), &volume.path(path)).unwrap() {
        Usage::Filesystem { total, .. } | Usage::Block { total } => total,
    }
}

/// Runs `work` while a thread writes to the first 8 MiB of `path`, reads each block back past the
/// page cache, and checks at the end that all of it is there. Returns what `work` returned.
pub(crate) fn under_io<T>(path: &Path, work: impl FnOnce() -> T) -> T {
    const BLOCK: usize = 64 * 1024;
    const BLOCKS: usize = 128;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)
                .unwrap();
            let mut rounds = 0_u8;
            // At least two rounds, and all blocks of the last.
            while rounds < 2 || !stop.load(Ordering::Relaxed) {
                rounds = rounds.wrapping_add(1).max(2);
                for number in 0..BLOCKS {
                    let offset = (number * BLOCK) as u64;
                    file.write_all_at(
                        &pattern(rounds ^ u8::try_from(number).unwrap(), BLOCK),
                        offset,
                    )
                    .unwrap();
                }
                file.sync_all().unwrap();
            }
            nix::fcntl::posix_fadvise(
                &file,
                0,
                0,
                nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED,
            )
            .unwrap();
            for number in 0..BLOCKS {
                let mut back = vec![0; BLOCK];
                file.read_exact_at(&mut back, (number * BLOCK) as u64).unwrap();
                let same = back == pattern(rounds ^ u8::try_from(number).unwrap(), BLOCK);
                assert!(same, "block {number} of round {rounds} did not survive");
            }
        });
        let result = {
            let _stop = StopOnDrop(&stop);
            work()
        };
        writer.join().unwrap();
        result
    })
}

#[test]
fn xfs_grows_under_io() {
    let volume = Volume::new(320, xfs());
    volume.stage().unwrap();
    volume.publish("target", false).unwrap();
    under_io(&volume.path("target/data"), || {
        for mib in [400, 512, 800] {
            volume.grow_image(mib);
            assert_eq!(volume.expand("target", mib).unwrap(), mib * MIB);
        }
    });
    assert!(total(&volume, "target") > 700 * MIB);
    volume.unpublish("target").unwrap();
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn a_block_volume_grows_under_io() {
    let volume = Volume::new(16, Access::Block);
    volume.stage().unwrap();
    volume.publish("target", false).unwrap();
    under_io(&volume.path("target"), || {
        for mib in [20, 33, 64] {
            volume.grow_image(mib);
            assert_eq!(volume.expand("target", mib).unwrap(), mib * MIB);
        }
    });
    assert_eq!(total(&volume, "target"), 64 * MIB);
    let end = pattern(9, 4096);
    let device = OpenOptions::new().read(true).write(true).open(volume.path("target")).unwrap();
    device.write_all_at(&end, 64 * MIB - 4096).unwrap();
    device.sync_all().unwrap();
    drop(device);
    volume.unpublish("target").unwrap();
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn ext4_grows_under_io_or_says_what_it_takes() {
    let volume = Volume::new(64, ext4());
    volume.stage().unwrap();
    volume.publish("target", false).unwrap();
    volume.grow_image(256);
    let outcome = under_io(&volume.path("target/data"), || volume.expand("target", 256));
    if has_cap_sys_resource() {
        assert_eq!(outcome.unwrap(), 256 * MIB);
        assert!(total(&volume, "target") > 200 * MIB);
    } else {
        let error = outcome.unwrap_err();
        assert!(
            matches!(&error, Error::FailedPrecondition(text) if text.contains("CAP_SYS_RESOURCE")),
            "{error}"
        );
    }
    let data = fs::read(volume.path("target/data")).unwrap();
    volume.unpublish("target").unwrap();
    volume.unstage().unwrap();
    volume.stage().unwrap();
    assert!(total(&volume, "staging") > 200 * MIB);
    assert!(fs::read(volume.path("staging/data")).unwrap() == data);
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn a_volume_made_from_a_smaller_snapshot_grows_when_staged() {
    for (access, from, to) in [(ext4(), 64, 256), (xfs(), 320, 640)] {
        let parent = Volume::new(from, access.clone());
        parent.stage().unwrap();
        write(&parent.path("staging/data"), b"from the snapshot");
        let snapshot = format!("{}@snapshot", parent.image);
        assert!(rbd(&["snap", "create", "--no-progress", &snapshot]).0);
        let mut clone = Volume::of_image(access);
        clone.created_empty = false;
        let (done, text) =
            rbd(&["clone", "--rbd-default-clone-format", "2", &snapshot, &clone.image.to_string()]);
        assert!(done, "{text}");
        clone.grow_image(to);

        // The parent stays mounted beside its clone: both have one UUID.
        clone.stage().unwrap();
        assert_eq!(fs::read(clone.path("staging/data")).unwrap(), b"from the snapshot");
        assert!(total(&clone, "staging") > to * MIB * 8 / 10, "{}", total(&clone, "staging"));
        clone.unstage().unwrap();
        clone.finish();
        parent.unstage().unwrap();
        assert!(rbd(&["snap", "rm", "--no-progress", &snapshot]).0);
        parent.finish();
    }
}

#[test]
fn an_ext4_that_cannot_grow_is_staged_as_it_is() {
    for options in [None, Some("-b 1024"), Some("-b 4096 -I 256 -O extent,64bit,flex_bg")] {
        let mut volume = Volume::new(100, ext4());
        volume.mkfs_options = options.map(str::to_owned);
        volume.stage().unwrap();
        write(&volume.path("staging/data"), b"from before");
        volume.unstage().unwrap();
        volume.grow_image(1100 << 10);
        // Once more, because the first attempt may leave something behind.
        for _ in 0..2 {
            volume.stage().unwrap();
            assert_eq!(fs::read(volume.path("staging/data")).unwrap(), b"from before");
            write(&volume.path("staging/more"), b"from after");
            volume.unstage().unwrap();
        }
        with_raw_device(&mut volume, |device| {
            run("e2fsck", &["-f", "-n", device]);
        });
        volume.finish();
    }
}

#[test]
fn growth_beyond_the_image_or_the_limit_is_refused() {
    let volume = Volume::new(16, Access::Block);
    assert!(matches!(volume.expand("target", 32), Err(Error::NotFound(_))));
    volume.stage().unwrap();
    let beyond = volume.expand("staging", 32);
    assert!(matches!(beyond, Err(Error::FailedPrecondition(_))), "{beyond:?}");
    assert_eq!(total(&volume, "staging"), 16 * MIB, "a device is never larger than its image");
    let expand = |required, limit| {
        let user = Some((variable("LAB_USER"), Key::new(&key())));
        volume.node.expand(
            &volume.id(),
            &volume.staging(),
            &Expand { required, limit, user, ..Expand::default() },
        )
    };
    assert!(matches!(expand(0, 8 * MIB), Err(Error::OutOfRange(_))));
    volume.grow_image(32);
    // Without a size it becomes what the image is.
    assert_eq!(expand(0, 0).unwrap(), 32 * MIB);
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn a_volume_grows_although_the_monitors_it_was_staged_with_are_gone() {
    let volume = Volume::new(16, Access::Block);
    volume.stage().unwrap();
    let folder = fs::read_dir(volume.path("state")).unwrap().next().unwrap().unwrap().path();
    let record = fs::read_to_string(folder.join("record.json")).unwrap();
    let replaced = record.replace(&variable("LAB_MONITORS"), "127.0.0.1:1");
    assert_ne!(replaced, record);
    fs::write(folder.join("record.json"), replaced).unwrap();
    volume.grow_image(32);
    let expand = Expand {
        user: Some((variable("LAB_USER"), Key::new(&key()))),
        monitors: variable("LAB_MONITORS"),
        ..Expand::default()
    };
    assert_eq!(volume.node.expand(&volume.id(), &volume.staging(), &expand).unwrap(), 32 * MIB);
    volume.unstage().unwrap();
    volume.finish();
}

/// Clients that are at work go on with the tickets they have.
#[test]
fn a_volume_whose_key_was_rotated_is_used_grown_and_unstaged() {
    let mut volume = Volume::new(16, Access::Block);
    let user = format!("rotated-{}", volume.image.name);
    let entity = format!("client.{user}");
    let new_key = || {
        _ = ceph(&["auth", "rm", &entity]);
        let caps = ["mon", "profile rbd", "osd", "profile rbd"];
        ceph(&[&["auth", "get-or-create-key", &entity][..], &caps[..]].concat()).unwrap()
    };
    volume.image.user = Some(user.clone());
    let old = new_key();
    volume.stage_with_key(&old).unwrap();
    volume.publish("target", false).unwrap();
    let new = new_key();
    assert_ne!(old, new);
    let target = volume.path("target");
    let open = || OpenOptions::new().read(true).write(true).open(&target).unwrap();
    let device = open();
    device.write_all_at(&pattern(7, 4096), 0).unwrap();
    device.sync_all().unwrap();
    drop(device);
    volume.grow_image(32);
    let expand = Expand { user: Some((user, Key::new(&new))), ..Expand::default() };
    assert_eq!(volume.node.expand(&volume.id(), &volume.staging(), &expand).unwrap(), 32 * MIB);
    // Kubelet asks again, with the secret of now.
    volume.stage_with_key(&new).unwrap();
    volume.unpublish("target").unwrap();
    volume.unstage().unwrap();
    let stale = volume.stage_with_key(&old);
    assert!(matches!(stale, Err(Error::Unauthenticated(_))), "{stale:?}");
    volume.stage_with_key(&new).unwrap();
    volume.publish("target", false).unwrap();
    let mut block = [0; 4096];
    open().read_exact_at(&mut block, 0).unwrap();
    assert_eq!(block, *pattern(7, 4096));
    volume.unpublish("target").unwrap();
    volume.unstage().unwrap();
    volume.finish();
    ceph(&["auth", "rm", &entity]).unwrap();
}

#[test]
fn a_reader_sees_the_new_size_of_a_device() {
    let mut volume = Volume::new(16, Access::Block);
    volume.capability.mode = AccessMode::MultiNodeReaderOnly;
    volume.stage().unwrap();
    volume.grow_image(32);
    if mounter() == Mounter::RbdNbd {
        // Its librbd does not hear of it.
        assert!(matches!(volume.expand("staging", 32), Err(Error::FailedPrecondition(_))));
        volume.unstage().unwrap();
        volume.stage().unwrap();
    }
    assert_eq!(volume.expand("staging", 32).unwrap(), 32 * MIB);
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn images_are_cut_and_grown_while_they_are_written_to() {
    let volume = Volume::new(64, Access::Block);
    volume.stage().unwrap();
    volume.publish("target", false).unwrap();
    let snapshot = |number: u32| format!("{}@s{number}", volume.image);
    under_io(&volume.path("target"), || {
        for number in 0..3 {
            let (done, text) = rbd(&["snap", "create", "--no-progress", &snapshot(number)]);
            assert!(done, "{text}");
            volume.grow_image(80 + u64::from(number));
            volume.expand("target", 80 + u64::from(number)).unwrap();
        }
    });
    for number in 0..3 {
        let (done, text) = rbd(&["snap", "rm", "--no-progress", &snapshot(number)]);
        assert!(done, "{text}");
    }
    volume.unpublish("target").unwrap();
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn a_full_filesystem_is_its_pods_affair() {
    let volume = Volume::new(64, ext4());
    volume.stage().unwrap();
    volume.publish("target", false).unwrap();
    let filled = fs::write(volume.path("target/everything"), pattern(3, 80 << 20));
    assert_eq!(filled.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    let Usage::Filesystem { total, available, .. } =
        volume.node.stats(&volume.id(), &volume.path("target")).unwrap()
    else {
        panic!("not a filesystem")
    };
    assert!(available < total / 20, "{available} of {total}");
    assert_eq!(volume.illness("target"), None);
    volume.publish("target", false).unwrap();
    volume.unpublish("target").unwrap();
    volume.unstage().unwrap();
    volume.stage().unwrap();
    fs::remove_file(volume.path("staging/everything")).unwrap();
    write(&volume.path("staging/data"), b"room again");
    volume.unstage().unwrap();
    volume.finish();
}
