//! Drivers that restart, daemons that die, work that was interrupted.

use std::fs;
use std::io::Write;
use std::time::Instant;

use cinderblock::node::attach::Mounter;
use cinderblock::node::{Access, Error, Illness};

use crate::lab::{
    MIB, SOON, Volume, ext4, mounter, pattern, rbd, run, variable, wait_until, write, xfs,
};

#[test]
fn a_restarted_driver_goes_on() {
    let mut volume = Volume::new(320, xfs());
    volume.stage().unwrap();
    let daemons = volume.daemons();
    volume.restart();
    volume.stage().unwrap();
    volume.publish("target", false).unwrap();
    let data = pattern(6, 1 << 20);
    write(&volume.path("target/data"), &data);
    volume.restart();
    volume.publish("target", false).unwrap();
    volume.grow_image(512);
    assert_eq!(volume.expand("target", 512).unwrap(), 512 * MIB);
    assert_eq!(volume.daemons(), daemons, "the daemon outlives the driver");
    volume.restart();
    assert!(fs::read(volume.path("target/data")).unwrap() == data);
    volume.unpublish("target").unwrap();
    volume.restart();
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn a_volume_whose_daemon_died_is_unstaged_and_staged_again() {
    for access in [ext4(), Access::Block] {
        let volume = Volume::new(64, access.clone());
        volume.stage().unwrap();
        volume.publish("target", false).unwrap();
        if access != Access::Block {
            write(&volume.path("target/data"), b"before");
        }
        assert_eq!(volume.illness("target"), None);
        volume.end_daemon("KILL");
        assert!(matches!(volume.illness("target"), Some(Illness::DeviceGone(_))));
        // While a pod has it, the driver cannot bring it back, and nothing pretends to work.
        assert!(matches!(volume.stage(), Err(Error::FailedPrecondition(_))));
        assert!(matches!(volume.publish("other", false), Err(Error::FailedPrecondition(_))));
        assert!(matches!(volume.expand("target", 64), Err(Error::Unavailable(_))));
        volume.unpublish("target").unwrap();
        volume.unstage().unwrap();
        volume.assert_nothing_on_the_node();

        volume.stage().unwrap();
        if access != Access::Block {
            assert_eq!(fs::read(volume.path("staging/data")).unwrap(), b"before");
        }
        // A daemon that ended in good order takes its mount along, and with it the name of what the
        // device stands on.
        volume.publish("target", false).unwrap();
        volume.end_daemon("TERM");
        assert!(matches!(volume.publish("other", false), Err(Error::FailedPrecondition(_))));
        volume.unpublish("target").unwrap();
        volume.unstage().unwrap();
        volume.assert_nothing_on_the_node();
        volume.stage().unwrap();
        // With no pod on it, staging alone is enough.
        volume.end_daemon("KILL");
        volume.stage().unwrap();
        volume.publish("target", false).unwrap();
        volume.unpublish("target").unwrap();
        volume.unstage().unwrap();
        volume.finish();
    }
}

#[test]
fn pods_end_although_the_state_directory_was_lost() {
    for access in [ext4(), xfs(), Access::Block] {
        let size = if access == xfs() { 320 } else { 64 };
        let mut volume = Volume::new(size, access.clone());
        volume.stage().unwrap();
        volume.publish("target", false).unwrap();
        lose(&volume, |_| true);
        volume.restart();
        assert!(volume.unstage().is_err(), "it was unstaged under a pod");
        volume.unpublish("target").unwrap();
        volume.unstage().unwrap();
        volume.assert_nothing_on_the_node();
        volume.stage().unwrap();
        volume.unstage().unwrap();
        volume.finish();
    }
}

#[test]
fn a_mounted_volume_whose_record_was_lost_is_staged_as_it_is() {
    let mut volume = Volume::new(64, ext4());
    volume.stage().unwrap();
    volume.publish("target", false).unwrap();
    let data = pattern(11, 1 << 20);
    write(&volume.path("target/data"), &data);
    lose(&volume, |name| name == "record.json");
    volume.restart();
    volume.stage().unwrap();
    volume.assert_attached_once();
    volume.publish("other", false).unwrap();
    assert!(fs::read(volume.path("other/data")).unwrap() == data);
    for target in ["other", "target"] {
        volume.unpublish(target).unwrap();
    }
    volume.unstage().unwrap();
    volume.finish();
}

/// Removes files of that name from the volume's part of the state directory. A file that is a mount
/// point stays.
fn lose(volume: &Volume, is_lost: impl Fn(&str) -> bool) {
    for folder in fs::read_dir(volume.path("state")).unwrap() {
        for file in fs::read_dir(folder.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            if is_lost(path.file_name().unwrap().to_str().unwrap()) {
                let _busy = fs::remove_file(path);
            }
        }
    }
}

#[test]
fn a_filesystem_that_has_become_read_only_is_told_as_ill_and_one_mounted_so_is_not() {
    let volume = Volume::new(64, ext4());
    volume.stage().unwrap();
    volume.publish("target", false).unwrap();
    volume.publish("reader", true).unwrap();
    assert_eq!((volume.illness("target"), volume.illness("reader")), (None, None));
    // As the kernel does after an error.
    run("mount", &["-o", "remount,ro", volume.staging().to_str().unwrap()]);
    for name in ["staging", "target"] {
        assert!(matches!(volume.illness(name), Some(Illness::ReadOnly(_))), "{name}");
    }
    volume.unpublish("reader").unwrap();
    volume.unpublish("target").unwrap();
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn a_filesystem_that_gave_up_is_told_as_ill() {
    let volume = Volume::new(64, ext4());
    volume.stage().unwrap();
    volume.publish("target", false).unwrap();
    let error = format!("/sys/fs/ext4/{}/trigger_fs_error", volume.device());
    fs::write(error, "as a test asks").unwrap();
    assert!(
        fs::write(volume.path("target/data"), b"x").is_err(),
        "a filesystem with an error was written to"
    );
    let illnesses = volume.illnesses("target");
    assert!(matches!(illnesses[..], [Illness::ReadOnly(_)]), "{illnesses:?}");
    assert!(matches!(volume.publish("other", false), Err(Error::FailedPrecondition(_))));
    volume.unpublish("target").unwrap();
    volume.unstage().unwrap();
    volume.stage().unwrap();
    assert_eq!(volume.illnesses("staging"), []);
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn an_attach_that_stopped_half_way_is_taken_up() {
    let mut volume = Volume::new(64, Access::Block);
    volume.stage().unwrap();
    let lose_loop_device = |volume: &Volume| {
        for device in volume.loop_devices() {
            run("losetup", &["--detach", &format!("/dev/{device}")]);
        }
    };
    // Stopped before the loop device was there.
    lose_loop_device(&volume);
    volume.restart();
    volume.stage().unwrap();
    // After a reboot there is the record and nothing else.
    lose_loop_device(&volume);
    volume.end_daemon("KILL");
    let export = volume.mounts().iter().find(|line| line.contains(" - fuse ")).unwrap().clone();
    run("umount", &[export.split(' ').nth(4).unwrap()]);
    volume.restart();
    volume.stage().unwrap();
    volume.assert_attached_once();
    // Stopped before the filesystem was mounted: everything half-done goes.
    lose_loop_device(&volume);
    volume.restart();
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn a_publish_that_stopped_half_way_is_taken_up() {
    let mut volume = Volume::new(64, ext4());
    volume.stage().unwrap();
    volume.publish("target", true).unwrap();
    // Stopped between the bind and making it read-only.
    run("mount", &["-o", "remount,bind,rw", volume.path("target").to_str().unwrap()]);
    volume.restart();
    volume.publish("target", true).unwrap();
    assert!(fs::File::create(volume.path("target/file")).is_err());
    // Stopped before the bind; the pod is another one now and may write.
    run("umount", &[volume.path("target").to_str().unwrap()]);
    volume.restart();
    volume.publish("target", false).unwrap();
    write(&volume.path("target/file"), b"x");
    // Stopped between unmounting and removing the directory.
    run("umount", &[volume.path("target").to_str().unwrap()]);
    volume.unpublish("target").unwrap();
    assert!(!volume.path("target").exists());
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn an_interrupted_growth_is_taken_up() {
    let volume = Volume::new(16, Access::Block);
    volume.stage().unwrap();
    let state = fs::read_dir(volume.path("state")).unwrap().next().unwrap().unwrap().path();
    // A second opening of the image, as a growth leaves it that stopped half-way.
    let mut stream = std::os::unix::net::UnixStream::connect(state.join("qmp")).unwrap();
    let options = serde_json::json!({
        "driver": "rbd", "node-name": "image-7", "pool": volume.image.pool, "image": volume.image.name,
        "conf": state.join("ceph.conf"), "user": volume.image.user, "key-secret": "key",
    });
    let lines = [
        serde_json::json!({"execute": "qmp_capabilities"}),
        serde_json::json!({"execute": "blockdev-add", "arguments": options}),
    ];
    let mut answers = std::io::BufRead::lines(std::io::BufReader::new(stream.try_clone().unwrap()));
    answers.next().unwrap().unwrap();
    for line in lines {
        stream.write_all(format!("{line}\n").as_bytes()).unwrap();
        let answer = answers.next().unwrap().unwrap();
        assert!(answer.contains("return"), "{answer}");
    }
    drop((answers, stream));
    volume.grow_image(32);
    assert_eq!(volume.expand("staging", 32).unwrap(), 32 * MIB);
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn a_fenced_node_is_told_as_ill_and_lets_go() {
    for access in [ext4(), xfs(), Access::Block] {
        let volume = Volume::new(320, access.clone());
        volume.stage().unwrap();
        volume.publish("target", false).unwrap();
        if access == Access::Block {
            // What was never written, krbd reads without asking Ceph.
            write(&volume.path("target"), &pattern(1, 8192));
        } else {
            write(&volume.path("target/kept"), b"before");
        }
        assert_eq!(volume.illness("target"), None);
        volume.end_watches();
        let file = if access == Access::Block {
            volume.path("target")
        } else {
            volume.path("target/late")
        };
        let late = fs::OpenOptions::new()
            .write(true)
            .create(access != Access::Block)
            .truncate(false)
            .open(file);
        let written =
            late.and_then(|mut file| file.write_all(&[7; 8192]).and_then(|()| file.sync_all()));
        assert!(written.is_err(), "a fenced node wrote");
        // A client hears that it has no watch any more when it says next that it is there.
        let is_told = |illness: &Illness| matches!(illness, Illness::Blocklisted(text) if text.contains(&volume.image.to_string()));
        let deadline = Instant::now() + SOON;
        loop {
            let illnesses = volume.illnesses("target");
            if illnesses.iter().any(is_told) {
                break;
            }
            assert!(Instant::now() < deadline, "{access:?}: {illnesses:?}");
        }
        assert!(
            matches!(volume.publish("other", false), Err(Error::FailedPrecondition(_))),
            "{access:?}"
        );
        let began = Instant::now();
        let _answers_in_time = volume.node.stats(&volume.id(), &volume.path("target"));
        assert!(began.elapsed() < SOON);
        volume.unpublish("target").unwrap();
        volume.unstage().unwrap();
        volume.assert_nothing_on_the_node();
        volume.stage().unwrap();
        if access != Access::Block {
            assert_eq!(fs::read(volume.path("staging/kept")).unwrap(), b"before");
        }
        assert_eq!(volume.illness("staging"), None);
        volume.unstage().unwrap();
        volume.finish();
    }
}

#[test]
fn a_watch_that_does_not_come_back_is_told() {
    let volume = Volume::new(64, Access::Block);
    volume.stage().unwrap();
    assert_eq!(volume.illnesses("staging"), []);
    // Without its header an image cannot be watched, and what is read of it comes from other
    // objects.
    let header = Header::of(&volume);
    header.take_away();
    wait_until(
        "the loss of the watch to be told",
        || matches!(&volume.illnesses("staging")[..], [Illness::WatchLost(text)] if text.contains(&volume.image.to_string())),
    );
    header.put_back();
    // Its librbd waits for ever to flush an image that it does not watch.
    if mounter() == Mounter::RbdNbd {
        volume.end_nbd_server();
    }
    volume.unstage().unwrap();
    volume.stage().unwrap();
    assert_eq!(volume.illnesses("staging"), []);
    volume.unstage().unwrap();
    volume.finish();
}

/// The object that says what an image is, and on which its watches are.
struct Header(String);

impl Header {
    const KEPT: &str = "kept-header";

    fn of(volume: &Volume) -> Self {
        let (_, text) = rbd(&["info", "--format", "json", &volume.image.to_string()]);
        let info: serde_json::Value = serde_json::from_str(&text).unwrap();
        Self(format!("rbd_header.{}", info["id"].as_str().unwrap()))
    }

    fn take_away(&self) {
        rados(&["cp", &self.0, Self::KEPT]);
        rados(&["rm", &self.0]);
    }

    fn put_back(&self) {
        rados(&["cp", Self::KEPT, &self.0]);
        rados(&["rm", Self::KEPT]);
    }
}

/// Runs `rados` on the pool rbd.
fn rados(arguments: &[&str]) {
    run("rados", &[&["--id", &variable("LAB_USER"), "--pool", "rbd"], arguments].concat());
}

#[test]
fn a_device_that_does_not_answer_holds_nobody_up() {
    let volume = Volume::new(64, ext4());
    volume.stage().unwrap();
    let frozen = Frozen::new(volume.daemons()[0]);
    for _ in 0..3 {
        let began = Instant::now();
        let illness = volume.illness("staging");
        assert!(matches!(illness, Some(Illness::NotAnswering(_))), "{illness:?}");
        let _whatever_is_known = volume.node.stats(&volume.id(), &volume.staging());
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    }
    drop(frozen);
    wait_until("the device to answer", || volume.illness("staging").is_none());
    volume.unstage().unwrap();
    volume.finish();
}

/// A stopped process, which goes on when this is dropped.
struct Frozen(u32);

impl Frozen {
    fn new(process: u32) -> Self {
        run("kill", &["-s", "STOP", &process.to_string()]);
        Self(process)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        run("kill", &["-s", "CONT", &self.0.to_string()]);
    }
}
