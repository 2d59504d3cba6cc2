//! What images remember of having been formatted, on a real Ceph: what a first staging leaves in
//! their metadata, what a later one makes of it, and what clones inherit.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use cinderblock::node::{Access, Error};

use crate::lab::{MIB, Volume, ext4, key, pattern, rbd, run, variable, write, xfs};

const KEY: &str = "cinderblock.content";

fn mark(volume: &Volume) -> String {
    rbd(&["image-meta", "get", &volume.image.to_string(), KEY]).1.trim().to_owned()
}

fn set_mark(volume: &Volume, mark: &str) {
    let (done, text) = rbd(&["image-meta", "set", &volume.image.to_string(), KEY, mark]);
    assert!(done, "{text}");
}

/// The refusal of a staging that left nothing on the node.
fn refused(volume: &Volume) -> String {
    let error = volume.stage().unwrap_err();
    volume.assert_nothing_on_the_node();
    let Error::FailedPrecondition(text) = error else { panic!("{error}") };
    text
}

#[test]
fn a_formatted_volume_is_marked_and_never_formatted_again() {
    for access in [ext4(), xfs()] {
        let volume = Volume::new(320, access.clone());
        volume.stage().unwrap();
        let device = volume.device();
        let device = format!("/dev/{device}");
        let uuid = run("blkid", &["-p", "-s", "UUID", "-o", "value", &device]);
        let name = if access == ext4() { "ext4" } else { "xfs" };
        assert_eq!(mark(&volume), format!("{name},{}", uuid.trim()));
        volume.unstage().unwrap();

        // Whatever hides the filesystem later, the mark speaks for it.
        let size = (320 * MIB).to_string();
        assert!(
            rbd(&[
                "resize",
                "--no-progress",
                "--allow-shrink",
                "--size",
                "0",
                &volume.image.to_string()
            ])
            .0
        );
        assert!(
            rbd(&[
                "resize",
                "--no-progress",
                "--size",
                &format!("{size}B"),
                &volume.image.to_string()
            ])
            .0
        );
        let text = refused(&volume);
        assert!(text.contains(KEY) && text.contains(uuid.trim()), "{text}");
        volume.finish();
    }
}

#[test]
fn an_mkfs_that_never_began_or_did_not_end_is_done_again() {
    let intent = "0f6b2f5c-6d52-4c0c-9a63-5f5f2d3c1f10";
    for (access, begun) in [(ext4(), false), (ext4(), true), (xfs(), false), (xfs(), true)] {
        let mut volume = Volume::new(320, access.clone());
        let name = if access == ext4() { "ext4" } else { "xfs" };
        if begun {
            // The filesystem without what mkfs writes last.
            volume.capability.access = Access::Block;
            volume.stage().unwrap();
            let device = format!("/dev/{}", volume.device());
            if name == "ext4" {
                run("mkfs.ext4", &["-q", &format!("-U{intent}"), &device]);
                let file = OpenOptions::new().write(true).open(&device).unwrap();
                file.write_all_at(&[0; 1024], 1024).unwrap();
                file.sync_all().unwrap();
            } else {
                run("mkfs.xfs", &["-q", &format!("-muuid={intent}"), &device]);
                // The superblock has a checksum.
                run("xfs_db", &["-x", "-c", "sb 0", "-c", "write inprogress 1", &device]);
            }
            volume.unstage().unwrap();
            volume.capability.access = access.clone();
        }
        set_mark(&volume, &format!("mkfs {name},{intent}"));
        volume.stage().unwrap();
        assert_eq!(mark(&volume), format!("{name},{intent}"));
        write(&volume.path("staging/data"), b"x");
        volume.unstage().unwrap();
        volume.finish();
    }
}

#[test]
fn a_raw_device_is_marked_before_anybody_writes_to_it() {
    let mut volume = Volume::new(64, Access::Block);
    volume.stage().unwrap();
    assert_eq!(mark(&volume), "block");
    // Where no telling place is.
    let device = OpenOptions::new().write(true).open(format!("/dev/{}", volume.device())).unwrap();
    device.write_all_at(&pattern(4, 4096), 20 * MIB).unwrap();
    device.sync_all().unwrap();
    drop(device);
    volume.unstage().unwrap();
    volume.capability.access = ext4();
    assert!(refused(&volume).contains("block"));
    volume.capability.access = Access::Block;
    volume.stage().unwrap();
    let mut back = vec![0; 4096];
    let device = fs::File::open(format!("/dev/{}", volume.device())).unwrap();
    device.read_exact_at(&mut back, 20 * MIB).unwrap();
    assert!(back == pattern(4, 4096));
    drop(device);
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn a_clone_has_the_mark_of_its_source_and_is_never_formatted() {
    let source = Volume::new(64, ext4());
    let snapshot = format!("{}@snapshot", source.image);
    let clone_of_it = || {
        let mut clone = Volume::of_image(ext4());
        clone.created_empty = false;
        let format = ["--rbd-default-clone-format", "2"];
        let (done, text) =
            rbd(&["clone", format[0], format[1], &snapshot, &clone.image.to_string()]);
        assert!(done, "{text}");
        clone
    };
    // Of a volume that no node mounted yet.
    assert!(rbd(&["snap", "create", "--no-progress", &snapshot]).0);
    let clone = clone_of_it();
    let text = refused(&clone);
    assert!(text.contains("created empty") && text.contains("made from"), "{text}");
    clone.finish();
    assert!(rbd(&["snap", "rm", "--no-progress", &snapshot]).0);

    source.stage().unwrap();
    write(&source.path("staging/data"), b"from the source");
    source.unstage().unwrap();
    assert!(rbd(&["snap", "create", "--no-progress", &snapshot]).0);
    let clone = clone_of_it();
    assert_eq!(mark(&clone), mark(&source));
    clone.stage().unwrap();
    assert_eq!(fs::read(clone.path("staging/data")).unwrap(), b"from the source");
    clone.unstage().unwrap();
    clone.finish();
    assert!(rbd(&["snap", "rm", "--no-progress", &snapshot]).0);
    source.finish();
}

#[test]
fn options_that_a_filesystem_does_not_know_are_refused_before_it_is_made() {
    for (name, mut access) in [("ext4", ext4()), ("xfs", xfs())] {
        let Access::Mount { flags, .. } = &mut access else { panic!("{access:?}") };
        flags.extend(["noatime".to_owned(), "no_such_option=1".to_owned()]);
        let volume = Volume::new(320, access);
        let error = volume.stage().unwrap_err();
        assert!(
            matches!(&error, Error::InvalidArgument(text) if text.contains(name) && text.contains("no_such_option")),
            "{error}"
        );
        volume.assert_nothing_on_the_node();
        let (has_mark, _) = rbd(&["image-meta", "get", &volume.image.to_string(), KEY]);
        assert!(!has_mark);
        volume.finish();
    }
}

#[test]
fn what_a_pod_writes_into_a_file_is_not_taken_for_contents_of_the_device() {
    for (access, mib) in [(ext4(), 128), (xfs(), 320)] {
        let volume = Volume::new(mib, access.clone());
        volume.stage().unwrap();
        // ZFS begins each of its labels with such blocks, at both ends of a device.
        let mut block = [0; 1024];
        block[..8].copy_from_slice(&0x00ba_b10c_u64.to_le_bytes());
        let chunk = block.repeat(1024);
        let mut file = fs::File::create(volume.path("staging/full")).unwrap();
        let mut written = 0;
        while std::io::Write::write_all(&mut file, &chunk).is_ok() {
            written += chunk.len();
        }
        file.sync_all().unwrap();
        drop(file);
        volume.unstage().unwrap();
        let length = |of: &Volume| fs::metadata(of.path("staging/full")).unwrap().len();
        volume.stage().unwrap();
        assert!(length(&volume) >= written as u64);
        volume.unstage().unwrap();

        let snapshot = format!("{}@snapshot", volume.image);
        assert!(rbd(&["snap", "create", "--no-progress", &snapshot]).0);
        let mut clone = Volume::of_image(access);
        clone.created_empty = false;
        let format = ["--rbd-default-clone-format", "2"];
        assert!(rbd(&["clone", format[0], format[1], &snapshot, &clone.image.to_string()]).0);
        clone.stage().unwrap();
        assert!(length(&clone) >= written as u64);
        clone.unstage().unwrap();
        // What blkid says without the mark depends on where the file's blocks lie. When that is
        // not certain, no program that removes anything is named.
        let (done, text) = rbd(&["image-meta", "remove", &clone.image.to_string(), KEY]);
        assert!(done, "{text}");
        match clone.stage() {
            Ok(()) => clone.unstage().unwrap(),
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains(KEY) && !text.contains("wipefs"), "{text}");
            }
        }
        clone.finish();
        assert!(rbd(&["snap", "rm", "--no-progress", &snapshot]).0);
        volume.finish();
    }
}

#[test]
fn a_user_who_may_not_mark_the_image_does_not_get_it_formatted() {
    let mut volume = Volume::new(64, ext4());
    let user = volume.image.name.clone();
    let ceph =
        |arguments: &[&str]| run("ceph", &[&["--id", &variable("LAB_USER")], arguments].concat());
    // Enough to attach and write, and nothing more.
    let caps = ["mon", "profile rbd", "osd", "profile rbd-read-only pool=rbd"];
    ceph(&[&["auth", "add", &format!("client.{user}")], &caps[..]].concat());
    let text = ceph(&["auth", "get-key", &format!("client.{user}")]);
    let before = volume.image.user.replace(user.clone());
    let error = volume.stage_with_key(text.trim()).unwrap_err();
    volume.assert_nothing_on_the_node();
    let line = format!("ceph auth caps client.{user} mon 'profile rbd' osd 'profile rbd pool=rbd'");
    assert!(matches!(&error, Error::FailedPrecondition(text) if text.contains(&line)), "{error}");
    ceph(&["auth", "rm", &format!("client.{user}")]);
    volume.image.user = before;
    assert!(mark(&volume).contains("No such file"), "{}", mark(&volume));
    volume.stage_with_key(&key()).unwrap();
    volume.unstage().unwrap();
    volume.finish();
}
