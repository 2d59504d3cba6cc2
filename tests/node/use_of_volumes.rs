//! Volumes in everyday use: data comes back, read-only is read-only, arguments that contradict each
//! other are refused.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use cinderblock::node::attach::Mounter;
use cinderblock::node::{Access, AccessMode, Capability, Error, FsType, Usage};

use crate::lab::{MIB, Volume, ext4, mounter, pattern, run, write, xfs};

fn filesystem_data_comes_back(access: Access, mib: u64) {
    let volume = Volume::new(mib, access);
    let data = pattern(1, 3 * 1024 * 1024);
    volume.stage().unwrap();
    volume.publish("target", false).unwrap();
    write(&volume.path("target/data"), &data);
    volume.unpublish("target").unwrap();
    assert!(!volume.path("target").exists());
    volume.unstage().unwrap();
    volume.assert_nothing_on_the_node();
    assert!(volume.staging().is_dir(), "the staging directory is the orchestrator's");

    volume.stage().unwrap();
    volume.publish("target", false).unwrap();
    assert!(fs::read(volume.path("target/data")).unwrap() == data);
    volume.unpublish("target").unwrap();
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn data_on_ext4_comes_back() {
    filesystem_data_comes_back(ext4(), 64);
}

#[test]
fn data_on_xfs_comes_back() {
    filesystem_data_comes_back(xfs(), 320);
}

#[test]
fn data_on_a_block_volume_comes_back() {
    let volume = Volume::new(16, Access::Block);
    let data = pattern(2, 1024 * 1024);
    volume.stage().unwrap();
    volume.publish("target", false).unwrap();
    assert!(volume.path("target").metadata().unwrap().file_type().is_block_device());
    // Not made durable by the pod: an orderly end does that.
    fs::OpenOptions::new()
        .write(true)
        .open(volume.path("target"))
        .unwrap()
        .write_all(&data)
        .unwrap();
    volume.unpublish("target").unwrap();
    assert!(!volume.path("target").exists());
    volume.unstage().unwrap();
    volume.assert_nothing_on_the_node();

    volume.stage().unwrap();
    volume.publish("other", false).unwrap();
    let mut back = vec![0; data.len()];
    File::open(volume.path("other")).unwrap().read_exact(&mut back).unwrap();
    assert!(back == data);
    volume.unpublish("other").unwrap();
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn an_image_in_a_namespace_is_found() {
    let mut volume = Volume::of_image(ext4());
    volume.image.namespace = "tests".into();
    let image = volume.image.to_string();
    run("rbd", &["--id", &crate::lab::variable("LAB_USER"), "create", "--size", "32M", &image]);
    volume.stage().unwrap();
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn a_read_only_target_cannot_be_written_through() {
    let volume = Volume::new(64, ext4());
    volume.stage().unwrap();
    volume.publish("writer", false).unwrap();
    volume.publish("reader", true).unwrap();
    write(&volume.path("writer/data"), b"seen by both");
    assert_eq!(fs::read(volume.path("reader/data")).unwrap(), b"seen by both");
    let refused = File::create(volume.path("reader/more")).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnlyFilesystem);
    volume.unpublish("reader").unwrap();
    volume.unpublish("writer").unwrap();
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn a_read_only_block_volume_cannot_be_written_to() {
    let volume = Volume::new(16, Access::Block);
    let write_a_block = || {
        let mut file = fs::OpenOptions::new().write(true).open(volume.path("target"))?;
        file.write_all(&[7; 4096])?;
        file.sync_all()
    };
    volume.stage().unwrap();
    volume.publish("target", true).unwrap();
    assert!(write_a_block().is_err());
    // One device cannot be read-only for one pod and writable for another.
    assert!(matches!(volume.publish("second", false), Err(Error::FailedPrecondition(_))));
    assert!(!volume.path("second").exists());
    volume.publish("second", true).unwrap();
    volume.unpublish("second").unwrap();
    volume.unpublish("target").unwrap();
    volume.publish("target", false).unwrap();
    write_a_block().unwrap();
    volume.unpublish("target").unwrap();
    volume.publish("target", true).unwrap();
    volume.unpublish("target").unwrap();
    let device = volume.device();
    let device = format!("/dev/{device}");
    volume.unstage().unwrap();
    if mounter() == Mounter::Fuse {
        // The next user of that loop device finds it as it was.
        assert_eq!(run("blockdev", &["--getro", &device]).trim(), "0");
    }
    volume.finish();
}

#[test]
fn a_volume_of_readers_alone_is_attached_read_only() {
    let mut volume = Volume::new(64, ext4());
    let reader = Capability { access: ext4(), mode: AccessMode::MultiNodeReaderOnly };
    let writer = std::mem::replace(&mut volume.capability, reader.clone());
    // There is nothing to read, and no node may write it.
    assert!(matches!(volume.stage(), Err(Error::FailedPrecondition(_))));
    volume.assert_nothing_on_the_node();

    volume.capability = writer;
    volume.stage().unwrap();
    write(&volume.path("staging/data"), b"for readers");
    volume.unstage().unwrap();

    volume.capability = reader;
    volume.stage().unwrap();
    volume.publish("target", false).unwrap();
    assert_eq!(fs::read(volume.path("target/data")).unwrap(), b"for readers");
    assert_eq!(
        File::create(volume.path("target/more")).unwrap_err().kind(),
        ErrorKind::ReadOnlyFilesystem
    );
    let device = volume.device();
    assert_eq!(run("blockdev", &["--getro", &format!("/dev/{device}")]).trim(), "1");
    volume.unpublish("target").unwrap();
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn every_operation_may_be_repeated() {
    for (access, mib) in [(ext4(), 64), (Access::Block, 16)] {
        let volume = Volume::new(mib, access);
        for _ in 0..10 {
            volume.stage().unwrap();
        }
        volume.assert_attached_once();
        for _ in 0..10 {
            volume.publish("target", false).unwrap();
        }
        let bound = volume.mounts().iter().filter(|line| line.contains("/target ")).count();
        assert_eq!(bound, 1);
        for _ in 0..10 {
            assert_eq!(volume.expand("target", mib).unwrap(), mib * MIB);
        }
        for _ in 0..10 {
            volume.unpublish("target").unwrap();
        }
        for _ in 0..10 {
            volume.unstage().unwrap();
        }
        volume.finish();
    }
}

#[test]
fn staging_in_another_way_is_refused() {
    let mut volume = Volume::new(64, ext4());
    volume.stage().unwrap();
    let original = volume.capability.clone();
    let flags = vec!["noatime".to_owned()];
    for access in [xfs(), Access::Block, Access::Mount { fs_type: None, flags }] {
        volume.capability = Capability { access, ..original.clone() };
        assert!(matches!(volume.stage(), Err(Error::AlreadyExists(_))));
    }
    volume.capability = original;
    volume.stage().unwrap();
    assert!(volume.mounts().iter().any(|line| line.contains("/staging ")));
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn second_targets_follow_the_access_mode() {
    let volume = Volume::new(64, ext4());
    let with_mode = |mode| Capability { access: ext4(), mode };
    let single = with_mode(AccessMode::SingleNodeSingleWriter);
    let multi = with_mode(AccessMode::SingleNodeMultiWriter);
    volume.stage().unwrap();

    volume.publish_as("a", false, multi.clone()).unwrap();
    volume.publish_as("b", false, multi.clone()).unwrap();
    assert!(matches!(volume.publish_as("a", true, multi.clone()), Err(Error::AlreadyExists(_))));
    assert!(matches!(volume.publish_as("a", false, single.clone()), Err(Error::AlreadyExists(_))));
    assert!(matches!(
        volume.publish_as("c", false, single.clone()),
        Err(Error::FailedPrecondition(_))
    ));
    volume.unpublish("a").unwrap();
    volume.unpublish("b").unwrap();

    volume.publish_as("c", false, single.clone()).unwrap();
    volume.publish_as("c", false, single).unwrap();
    assert!(matches!(volume.publish_as("a", false, multi), Err(Error::FailedPrecondition(_))));
    assert!(!volume.path("a").exists());
    volume.unpublish("c").unwrap();
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn usage_is_measured_where_the_volume_is() {
    let volume = Volume::new(64, ext4());
    volume.stage().unwrap();
    volume.publish("target", false).unwrap();
    let stats = |path| volume.node.stats(&volume.id(), &volume.path(path));
    let measured = || match stats("target").unwrap() {
        Usage::Filesystem { total, used, available, inodes } => (total, used, available, inodes),
        Usage::Block { .. } => panic!("a filesystem measured as a device"),
    };
    // How many inodes are in use from the beginning depends on the mkfs.
    let (_, _, _, before) = measured();
    write(&volume.path("target/data"), &pattern(3, 4 << 20));
    let (total, used, available, inodes) = measured();
    assert!((50 * MIB..64 * MIB).contains(&total), "{total}");
    assert!((4 * MIB..10 * MIB).contains(&used), "{used}");
    assert!(available <= total - used);
    assert_eq!(inodes.used, before.used + 1);
    assert_eq!(inodes.total - inodes.used, inodes.available);
    assert_eq!(stats("staging").unwrap(), stats("target").unwrap());
    assert!(matches!(stats("elsewhere"), Err(Error::NotFound(_))));
    assert!(matches!(
        volume.node.stats(&volume.id(), "some/path".as_ref()),
        Err(Error::NotFound(_))
    ));
    assert!(matches!(
        volume.node.stats("lab/rbd/other", &volume.path("target")),
        Err(Error::NotFound(_))
    ));
    volume.unpublish("target").unwrap();
    assert!(matches!(stats("target"), Err(Error::NotFound(_))));
    volume.unstage().unwrap();
    volume.finish();

    let volume = Volume::new(16, Access::Block);
    volume.stage().unwrap();
    volume.publish("target", false).unwrap();
    let stats = |path| volume.node.stats(&volume.id(), &volume.path(path));
    assert_eq!(stats("target").unwrap(), Usage::Block { total: 16 * MIB });
    assert!(matches!(stats("state"), Err(Error::NotFound(_))));
    volume.unpublish("target").unwrap();
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn mkfs_and_mount_options_take_effect() {
    let flags = vec!["noatime".to_owned()];
    let mut volume = Volume::new(64, Access::Mount { fs_type: None, flags });
    volume.mkfs_options = Some("-N 64 -L blocks".into());
    volume.stage().unwrap();
    let device = volume.device();
    let header = run("dumpe2fs", &["-h", &format!("/dev/{device}")]);
    assert!(header.contains("Filesystem volume name:   blocks\n"), "{header}");
    assert!(header.contains("Inode count:              64\n"), "{header}");
    let mounts = volume.mounts();
    let staged = mounts.iter().find(|line| line.contains("/staging ")).unwrap();
    assert!(staged.contains("nosuid,nodev,noatime"), "{staged}");
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn trimmed_space_goes_back_to_the_pool() {
    let volume = Volume::new(128, ext4());
    volume.stage().unwrap();
    let used = || {
        let (_, text) = crate::lab::rbd(&["du", "--format", "json", &volume.image.to_string()]);
        let report: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        report["images"][0]["used_size"].as_u64().unwrap()
    };
    write(&volume.path("staging/data"), &pattern(4, 64 << 20));
    let full = used();
    fs::remove_file(volume.path("staging/data")).unwrap();
    run("sync", &["-f", volume.staging().to_str().unwrap()]);
    run("fstrim", &[volume.staging().to_str().unwrap()]);
    let trimmed = used();
    assert!(trimmed + 16 * MIB < full, "{full} bytes before, {trimmed} after");
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn a_context_that_does_not_reach_the_kernel_is_refused() {
    assert!(!Path::new("/sys/fs/selinux").exists(), "this machine enforces SELinux");
    let mut volume = Volume::new(64, ext4());
    let context = "context=\"system_u:object_r:container_file_t:s0:c1,c2\"";
    volume.capability.access =
        Access::Mount { fs_type: Some(FsType::Ext4), flags: vec![context.to_owned()] };
    let error = volume.stage().unwrap_err();
    assert!(
        matches!(&error, Error::FailedPrecondition(text) if text.contains("node.selinux")),
        "{error}"
    );
    volume.assert_nothing_on_the_node();
    volume.finish();
}
