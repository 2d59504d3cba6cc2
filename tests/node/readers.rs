//! Readers of a snapshot of a mounted volume: what was fsynced before it was cut is in the log of
//! its filesystem, which one node replays before any of them reads.

use std::fs::{self, File};
use std::thread;

use cinderblock::node::{Access, AccessMode, Error};
use cinderblock::rbd::{ImageKey, OpenMode};

use crate::kills::Driver;
use crate::lab::{Volume, ext4, pattern, pool, rados, rbd, run, variable, wait_until, write, xfs};
use crate::steps::{Rpc, ask, insist, stride};

/// Attaching, before a log is found, is what `steps` is about.
const FIRST_STEP: u32 = 15;
/// As many steps staging a reader has at least.
const LEAST_STEPS: u32 = 20;

/// The object in which nodes say that they replay a log.
const REPLAYS: &str = "cinderblock.replays";

/// A filesystem with a log to be replayed.
struct Snapshot {
    source: Volume,
    spec: String,
}

impl Snapshot {
    /// Of a volume that is mounted, right after a file was made durable.
    fn cut(access: &Access) -> Snapshot {
        let source = Volume::new(320, access.clone());
        source.stage().unwrap();
        fs::create_dir(source.path("staging/folder")).unwrap();
        write(&source.path("staging/folder/data"), &pattern(7, 3 << 20));
        File::open(source.path("staging/folder")).unwrap().sync_all().unwrap();
        let spec = format!("{}@snapshot", source.image);
        assert!(rbd(&["snap", "create", "--no-progress", &spec]).0);
        source.unstage().unwrap();
        Snapshot { source, spec }
    }

    /// A volume made from it, for readers.
    fn clone_for_readers(&self) -> Volume {
        let clone = self.reader();
        let format = ["--rbd-default-clone-format", "2"];
        let image = clone.image.to_string();
        let (done, text) = rbd(&["clone", format[0], format[1], &self.spec, &image]);
        assert!(done, "{text}");
        clone
    }

    fn reader(&self) -> Volume {
        let mut reader = Volume::of_image(self.source.capability.access.clone());
        reader.created_empty = false;
        reader.capability.mode = AccessMode::MultiNodeReaderOnly;
        reader
    }

    /// Another node's view of the volume of `reader`.
    fn elsewhere(&self, reader: &Volume) -> Volume {
        let mut other = self.reader();
        other.image = reader.image.clone();
        other
    }

    fn end(self) {
        assert!(rbd(&["snap", "rm", "--no-progress", &self.spec]).0);
        self.source.finish();
    }
}

fn assert_whole(reader: &Volume) {
    let data = fs::read(reader.path("staging/folder/data")).unwrap();
    assert!(data == pattern(7, 3 << 20), "{} bytes", data.len());
    let written = fs::write(reader.path("staging/more"), b"x");
    assert_eq!(written.unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}

fn image_id(volume: &Volume) -> String {
    let (_, info) = rbd(&["info", "--format", "json", &volume.image.to_string()]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    info["id"].as_str().unwrap().to_owned()
}

/// The entry about the volume's image, if there is one.
fn entry(volume: &Volume) -> bool {
    let keys = rados(&["listomapkeys", REPLAYS]).unwrap_or_default();
    keys.lines().any(|key| key == image_id(volume))
}

/// Stages the reader: its log is replayed, and nothing is left of that.
fn assert_replayed(reader: &Volume) {
    reader.stage().unwrap();
    assert_whole(reader);
    assert!(!entry(reader));
}

fn set_entry(volume: &Volume, clients: &[&str]) {
    let entry = serde_json::json!({"version": 1, "token": "another", "clients": clients});
    rados(&["setomapval", REPLAYS, &image_id(volume), &entry.to_string()]).unwrap();
}

#[test]
fn a_reader_sees_what_was_fsynced_before_the_snapshot() {
    for access in [ext4(), xfs()] {
        let snapshot = Snapshot::cut(&access);
        let reader = snapshot.clone_for_readers();
        assert_replayed(&reader);
        reader.unstage().unwrap();
        reader.finish();
        snapshot.end();
    }
}

#[test]
fn of_readers_on_many_nodes_one_replays() {
    for access in [ext4(), xfs()] {
        let snapshot = Snapshot::cut(&access);
        let reader = snapshot.clone_for_readers();
        let nodes: Vec<_> = (0..3).map(|_| snapshot.elsewhere(&reader)).collect();
        thread::scope(|scope| {
            for node in &nodes {
                scope.spawn(|| {
                    wait_until("the log is replayed", || match node.stage() {
                        Ok(()) => true,
                        Err(Error::Busy(_)) => false,
                        Err(error) => panic!("{error}"),
                    });
                    assert_whole(node);
                });
            }
        });
        assert!(!entry(&reader));
        // A later one has nothing to replay.
        let later = snapshot.elsewhere(&reader);
        later.stage().unwrap();
        assert_whole(&later);
        later.unstage().unwrap();
        later.assert_nothing_on_the_node();
        for node in &nodes {
            node.unstage().unwrap();
            node.assert_nothing_on_the_node();
        }
        let mut raw = snapshot.elsewhere(&reader);
        raw.capability.access = Access::Block;
        raw.stage().unwrap();
        let device = format!("/dev/{}", raw.device());
        if access == xfs() {
            run("xfs_repair", &["-n", &device]);
        } else {
            run("e2fsck", &["-f", "-n", &device]);
        }
        raw.unstage().unwrap();
        reader.finish();
        snapshot.end();
    }
}

#[test]
fn a_log_is_not_replayed_while_another_client_writes() {
    let snapshot = Snapshot::cut(&ext4());
    let reader = snapshot.clone_for_readers();
    let pool = pool();
    let open = pool.open_image(ImageKey::Name(&reader.image.name), OpenMode::ReadWrite).unwrap();
    let before = open.info().unwrap();
    let error = reader.stage().unwrap_err();
    assert!(matches!(&error, Error::Busy(text) if text.contains("open for writing")), "{error}");
    reader.assert_nothing_on_the_node();
    assert!(!entry(&reader));
    // That client replays it, as far as its entry says.
    let watching = reader.watchers();
    set_entry(&reader, &[&watching[0]]);
    let error = reader.stage().unwrap_err();
    assert!(matches!(&error, Error::Busy(text) if text.contains(&watching[0])), "{error}");
    reader.assert_nothing_on_the_node();
    assert_eq!(open.info().unwrap(), before);
    drop(open);
    // It is gone, so it is fenced, and the log replayed.
    assert_replayed(&reader);
    let listed = run("ceph", &["--id", &variable("LAB_USER"), "osd", "blocklist", "ls"]);
    assert!(listed.contains(&watching[0]), "{} is not in {listed}", watching[0]);
    reader.unstage().unwrap();
    reader.finish();
    snapshot.end();
}

#[test]
fn a_replay_that_was_begun_and_never_named_its_client_is_taken_over() {
    let snapshot = Snapshot::cut(&xfs());
    let reader = snapshot.clone_for_readers();
    set_entry(&reader, &[]);
    assert_replayed(&reader);
    reader.unstage().unwrap();
    reader.finish();
    snapshot.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_replayed_whole_by_a_driver_that_follows_one_that_died_at_it() {
    let snapshot = Snapshot::cut(&ext4());
    // Each takes seconds.
    let stride = stride(8);
    let mut step = FIRST_STEP;
    loop {
        let reader = snapshot.clone_for_readers();
        let what = format!("step {step} of staging a reader");
        let mut driver = Driver::start_to_die(&reader, step).await;
        let died = ask(Rpc::Stage, &mut driver, &reader).await.is_err();
        if died {
            driver.wait();
        }
        driver.kill();
        let mut driver = Driver::start(&reader).await;
        // An orchestrator may have changed its mind.
        if step.is_multiple_of(2) {
            insist(Rpc::Unstage, &mut driver, &reader, &what).await;
            reader.assert_nothing_on_the_node();
        }
        insist(Rpc::Stage, &mut driver, &reader, &what).await;
        assert_whole(&reader);
        assert!(!entry(&reader), "{what}");
        insist(Rpc::Unstage, &mut driver, &reader, &what).await;
        driver.kill();
        reader.finish_after_kills();
        if !died {
            break;
        }
        step += stride;
    }
    assert!(step > LEAST_STEPS, "staging a reader has fewer than {step} steps");
    snapshot.end();
}
