//! Runs that die: what was there stays whole, and the next run goes on.

use std::sync::Arc;

use cinderblock::backup::{Store, list, restore, verify};
use cinderblock::rbd::Errno;
use cinderblock::rbd::model::{Fault, Model};
use cinderblock::transfer::{Error, Job};
use cinderblock::volume::State;
use object_store::memory::InMemory;

use crate::field::{
    Folder, MIB, Mortal, assert_same, back_up, backup_snapshots, bring_back, model, pool, read,
    store, to, try_back_up, try_bring_back, volume, volumes, volumes_of, write,
};

const SIZE: u64 = 3 * MIB + 777;

/// All restore points are whole, and the last `count` of them are these.
fn assert_points(model: &Model, store: &Store, expected: &[&[u8]], what: &str) {
    let verified = verify(store, None, &Job::default()).unwrap();
    assert!(verified.iter().all(|point| point.wrong.is_none()), "{verified:?} {what}");
    let points = list(store, None).unwrap();
    assert!(points.len() >= expected.len(), "{points:?} {what}");
    for (point, expected) in points.iter().rev().zip(expected.iter().rev()) {
        let volumes = volumes(model);
        bring_back(&volumes, store, &point.point, "back");
        assert_same(&read(&volumes, "back"), expected, what);
        volumes.delete("back").unwrap();
    }
}

/// A volume with one restore point, changed since. Returns what it held, and what it holds.
fn prepared(model: &Model, store: &Store) -> (Vec<u8>, Vec<u8>) {
    let volumes = volumes(model);
    volume(&volumes, "vm", SIZE);
    write(&volumes, "vm", 4096, &vec![1; 900_000]);
    let before = read(&volumes, "vm");
    back_up(&volumes, store, "vm");
    write(&volumes, "vm", 2 * MIB, &vec![2; 300_000]);
    let after = read(&volumes, "vm");
    (before, after)
}

#[test]
fn a_backup_that_dies_or_fails_at_any_call_to_ceph_is_gone_on_with() {
    let clean = model();
    let target = store(Arc::new(InMemory::new()));
    prepared(&clean, &target);
    let session = clean.connect();
    back_up(&volumes_of(pool(&session)), &target, "vm");
    let mut faults = session.crash_points();
    faults.extend((2..=session.calls()).map(|call| (call, Fault::Fail(Errno::EIO))));
    assert!(faults.len() > 30, "{faults:?}");
    for (call, fault) in faults {
        let (model, target) = (model(), store(Arc::new(InMemory::new())));
        let (before, after) = prepared(&model, &target);
        let session = model.connect();
        session.inject(call, fault);
        let died = try_back_up(&volumes_of(pool(&session)), &target, "vm");
        let what = format!("{fault:?} at call {call}: {died:?}");
        assert_points(&model, &target, &[], &what);
        let whole = list(&target, None).unwrap();
        assert!(whole.len() == 2 || died.is_err(), "{what}");
        let next = volumes(&model);
        back_up(&next, &target, "vm");
        // With that of the run that died, finished by it or by the next one.
        let all: [&[u8]; 3] = [&before, &after, &after];
        let count = list(&target, None).unwrap().len();
        assert_points(&model, &target, &all[..count], &what);
        assert_eq!(backup_snapshots(&next, "vm").len(), 1, "{what}");
        next.delete("vm").unwrap();
        next.settle(next.journal().entries().unwrap());
        assert!(next.pool().list_images().unwrap().is_empty(), "{} {what}", model.graph());
    }
}

#[test]
fn a_backup_that_dies_at_any_change_of_the_target_is_gone_on_with() {
    // Three objects.
    let size = 70 * MIB;
    let mut at = 0;
    loop {
        let (model, memory) = (model(), Arc::new(InMemory::new()));
        let writer = volumes(&model);
        volume(&writer, "vm", size);
        for mebibyte in 0..70 {
            write(&writer, "vm", mebibyte * MIB + 5, &[7, u8::try_from(mebibyte).unwrap()]);
        }
        let expected = read(&writer, "vm");
        let mortal = Mortal::new(&memory, at);
        let died = try_back_up(&writer, &store(mortal.clone()), "vm");
        if mortal.changes() <= at {
            died.unwrap();
            break;
        }
        let what = format!("killed at change {at}");
        // The target's id, the draft, the objects, the manifest, and the draft's removal.
        assert!(died.is_err(), "{what}");
        let target = store(memory.clone());
        let is_there = !list(&target, None).unwrap().is_empty();
        assert_eq!(is_there, at >= 6, "{what}");
        let before = list_objects(&memory);
        let reader = Mortal::new(&memory, usize::MAX);
        let next = back_up(&volumes(&model), &store(reader.clone()), "vm");
        assert_eq!(next.finished.is_some(), (2..6).contains(&at), "{what}: {next:?}");
        if at == 5 {
            // All objects were there, and none was written again: the manifest, and the draft goes.
            // Then an increment of nothing: its draft, object and manifest, and its draft goes.
            assert_eq!(reader.changes(), 6, "{before:?}");
        }
        assert_points(&model, &target, &[&expected], &what);
        assert_eq!(backup_snapshots(&volumes(&model), "vm").len(), 1, "{what}");
        let left = list_objects(&memory);
        assert!(!left.iter().any(|key| key.ends_with("draft.json")), "{left:?} {what}");
        at += 1;
    }
    assert_eq!(at, 7, "the changes of a backup of three objects");
}

fn list_objects(memory: &InMemory) -> Vec<String> {
    use futures_util::TryStreamExt;
    use object_store::ObjectStore;
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let all: Vec<_> = runtime.block_on(memory.list(None).try_collect()).unwrap();
    all.into_iter().map(|object: object_store::ObjectMeta| object.location.to_string()).collect()
}

#[test]
fn a_stopped_backup_leaves_what_the_next_one_needs() {
    let (model, folder) = (model(), Folder::new());
    let target = folder.store();
    let (before, after) = prepared(&model, &target);
    let job = Arc::new(Job::default());
    let session = model.connect();
    let stopper = Arc::clone(&job);
    session.on_call(move |call| {
        if call.method == "read_at" {
            stopper.cancel();
        }
    });
    let volumes = volumes_of(pool(&session));
    let ended = cinderblock::backup::create(&volumes, &target, &crate::field::whole("vm"), &job);
    assert!(matches!(ended, Err(Error::Cancelled)), "{ended:?}");
    let next = back_up(&crate::field::volumes(&model), &target, "vm");
    assert!(next.finished.is_some(), "{next:?}");
    assert_points(&model, &target, &[&before, &after, &after], "stopped");
    let files = folder.files();
    assert!(!files.iter().any(|file| file.contains("draft") || file.contains('#')), "{files:?}");
}

#[test]
fn a_restore_that_dies_or_fails_is_not_handed_out_and_goes_on() {
    for overwrite in [false, true] {
        let target = store(Arc::new(InMemory::new()));
        let prepare = |model: &Model| {
            let next = volumes(model);
            if overwrite {
                volume(&next, "back", SIZE / 2);
                write(&next, "back", 0, &vec![9; 200_000]);
            }
        };
        let clean = model();
        let (_, expected) = prepared(&clean, &target);
        back_up(&volumes(&clean), &target, "vm");
        let series = list(&target, None).unwrap()[0].point.split('/').next().unwrap().to_owned();
        let mut request = to(&series, "back");
        request.overwrite = overwrite;
        let clean = model();
        prepare(&clean);
        let session = clean.connect();
        restore(&volumes_of(pool(&session)), &target, &request, &Job::default()).unwrap();
        let mut faults = session.crash_points();
        faults.extend((2..=session.calls()).map(|call| (call, Fault::Fail(Errno::EIO))));
        assert!(faults.len() > 25, "{faults:?}");
        for (call, fault) in faults {
            let model = model();
            prepare(&model);
            let session = model.connect();
            session.inject(call, fault);
            let died = restore(&volumes_of(pool(&session)), &target, &request, &Job::default());
            let what = format!("overwrite {overwrite}, {fault:?} at call {call}: {died:?}");
            let next = volumes(&model);
            let record = next.catalogue().volume("back").unwrap().map(|stored| stored.record);
            if record.as_ref().is_some_and(|record| record.state == State::Ready) {
                let found = read(&next, "back");
                // As it was, or whole.
                let is_whole = found == expected;
                assert!(is_whole || overwrite && found.starts_with(&vec![9; 200_000]), "{what}");
            } else {
                assert!(next.handed_out("back").is_err(), "{what}");
                assert!(died.is_err(), "{what}");
            }
            let again = restore(&next, &target, &request, &Job::default());
            let exists = record.is_some_and(|record| record.state == State::Ready) && !overwrite;
            assert_eq!(again.is_ok(), !exists, "{again:?} {what}");
            assert_same(&read(&next, "back"), &expected, &what);
            assert!(next.handed_out("back").is_ok(), "{what}");
            next.delete("back").unwrap();
            next.settle(next.journal().entries().unwrap());
            assert!(next.pool().list_images().unwrap().is_empty(), "{} {what}", model.graph());
        }
    }
}

#[test]
fn two_restores_to_one_volume_do_not_meet() {
    let (model, target) = (model(), store(Arc::new(InMemory::new())));
    let (_, expected) = prepared(&model, &target);
    back_up(&volumes(&model), &target, "vm");
    let target = Arc::new(target);
    let series = list(&target, None).unwrap()[0].point.split('/').next().unwrap().to_owned();
    let session = model.connect();
    let (other, second, name) = (model.connect(), Arc::clone(&target), series.clone());
    let (sender, said) = std::sync::mpsc::channel();
    let mut asked = false;
    session.on_call(move |call| {
        if call.method == "write_at" && !std::mem::replace(&mut asked, true) {
            // One that waits for a silent lease to expire.
            let patient = cinderblock::volume::Volumes::new(
                pool(&other),
                "default",
                cinderblock::volume::Process::default(),
                Arc::default(),
            );
            let refused = try_bring_back(&patient, &second, &name, "back");
            sender.send(refused.unwrap_err().to_string()).unwrap();
        }
    });
    bring_back(&volumes_of(pool(&session)), &target, &series, "back");
    let said = said.recv().unwrap();
    assert!(said.contains("is at work on volume/back"), "{said}");
    assert_same(&read(&volumes(&model), "back"), &expected, "the first one's");
}
