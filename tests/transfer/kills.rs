//! Transfers that fail or are killed: what is left goes with the next run, and nothing half has the
//! name that was asked for.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use cinderblock::rbd::model::{Fault, Model, Session};
use cinderblock::rbd::{Errno, ImageKey, OpenMode, Pool};
use cinderblock::transfer::{Error, Result};

use crate::common::{OwnLab, POOL};
use crate::disk::{
    Disks, MIB, assert_same, export_file, images, import_file, read, snapshots, solid,
};
use crate::program::configuration;

const SIZE: u64 = 9 * MIB + 777;

fn model() -> Model {
    let model = Model::new();
    model.create_pool(POOL);
    model
}

fn pool(session: &Session) -> Arc<dyn Pool> {
    session.cluster().pool(POOL, "").unwrap()
}

/// Runs `work` once for each place where a run of it can die, and once for each call that can fail,
/// on a new model that `prepare` has prepared; then `check`.
fn at_every_point(
    prepare: &dyn Fn(&Arc<dyn Pool>),
    work: &dyn Fn(&Arc<dyn Pool>) -> Result<()>,
    check: &dyn Fn(&Model, Result<()>, &str),
) {
    let clean = model();
    prepare(&pool(&clean.connect()));
    let session = clean.connect();
    work(&pool(&session)).unwrap();
    let mut faults = session.crash_points();
    // The first call is the one for the pool.
    faults.extend((2..=session.calls()).map(|call| (call, Fault::Fail(Errno::EIO))));
    assert!(faults.len() > 20, "{faults:?}");
    for (call, fault) in faults {
        let model = model();
        prepare(&pool(&model.connect()));
        let session = model.connect();
        session.inject(call, fault);
        let outcome = work(&pool(&session));
        let calls: Vec<_> = session.log().iter().map(ToString::to_string).collect();
        check(&model, outcome, &format!("{fault:?} at call {call}\n{}", calls.join("\n")));
    }
}

#[test]
fn an_import_that_dies_or_fails_leaves_nothing_half() {
    let disks = Disks::new();
    let bytes = solid(SIZE);
    let path = disks.sparse("disk", &bytes);
    let work = |pool: &Arc<dyn Pool>| import_file(pool, &path, "image").map(drop);
    at_every_point(&|_| {}, &work, &|model, outcome, point| {
        let next = pool(&model.connect());
        let is_there = next.open_image(ImageKey::Name("image"), OpenMode::ReadOnly).is_ok();
        assert!(is_there || outcome.is_err(), "{point}");
        if is_there {
            assert_same(&read(&*next, "image"), &bytes, point);
        }
        match work(&next) {
            Ok(()) => assert!(!is_there, "replaced: {point}"),
            // It was whole, and is said to be there.
            Err(Error::Refused(why)) => {
                assert!(why.contains("the image rbd/image exists"), "{point}");
            }
            Err(error) => panic!("{error}: {point}"),
        }
        assert_same(&read(&*next, "image"), &bytes, point);
        assert_eq!(images(&*next), ["image"], "{point}");
        next.remove_image("image").unwrap();
        assert!(model.graph().is_empty(), "{:#?} after {point}", model.graph());
    });
}

#[test]
fn an_export_that_dies_or_fails_leaves_nothing_half() {
    let disks = Disks::new();
    let bytes = solid(SIZE);
    let path = disks.sparse("disk", &bytes);
    let back = disks.path("back");
    let prepare = |pool: &Arc<dyn Pool>| drop(import_file(pool, &path, "image").unwrap());
    let work = |pool: &Arc<dyn Pool>| {
        let _ = std::fs::remove_file(&back);
        export_file(pool, "image", &back).map(drop)
    };
    at_every_point(&prepare, &work, &|model, outcome, point| {
        assert!(back.exists() || outcome.is_err(), "{point}");
        if back.exists() {
            assert_same(&std::fs::read(&back).unwrap(), &bytes, point);
        }
        assert!(disks.names().len() <= 2, "{:?} after {point}", disks.names());
        let next = pool(&model.connect());
        work(&next).unwrap_or_else(|error| panic!("{error}: {point}"));
        assert_same(&std::fs::read(&back).unwrap(), &bytes, point);
        assert_eq!(images(&*next), ["image"], "{point}");
        assert!(snapshots(&*next, "image").is_empty(), "{point}");
    });
}

#[test]
fn two_imports_to_one_name_do_not_meet() {
    let disks = Disks::new();
    let bytes = solid(SIZE);
    let path = disks.sparse("disk", &bytes);
    let model = model();
    let session = model.connect();
    let (other, second) = (pool(&model.connect()), path.clone());
    let (sender, said) = std::sync::mpsc::channel();
    session.on_call(move |call| {
        // While the first one writes. It says who has the image open, and goes on waiting.
        if call.method == "flush" {
            let job = Arc::new(cinderblock::transfer::Job::default());
            let watched = Arc::clone(&job);
            let canceller = std::thread::spawn(move || {
                while !watched.step().starts_with("waiting for 192.0.2.") {
                    std::thread::yield_now();
                }
                watched.cancel();
            });
            let wanted = cinderblock::transfer::Wanted::default();
            let outcome = crate::disk::import_with(&other, &second, "image", wanted, &job);
            canceller.join().unwrap();
            sender.send(outcome.unwrap_err().to_string()).unwrap();
        }
    });
    import_file(&pool(&session), &path, "image").unwrap();
    assert_eq!(said.recv().unwrap(), "stopped");
    let left = pool(&model.connect());
    assert_same(&read(&*left, "image"), &bytes, "the first one's");
    assert_eq!(images(&*left), ["image"]);
}

/// Runs the program, with a kill after that many changes.
fn killed(lab: &OwnLab, at: usize, arguments: &[&str], config: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cinderblock"))
        .args(["image"])
        .args(arguments)
        .arg("--config")
        .arg(config)
        .env("CINDERBLOCK_KILL_AT", format!("change:{at}"))
        .env("CEPH_CONF", &lab.ceph_conf)
        .output()
        .unwrap()
}

#[test]
fn what_sigkill_leaves_on_ceph_goes_with_the_next_run_or_gc() {
    let lab = OwnLab::up();
    // A watch outlives its client by that many seconds: 30, unless said otherwise.
    lab.run("ceph", &["config", "set", "osd", "osd_client_watch_timeout", "2"]);
    let disks = Disks::new();
    let bytes = solid(SIZE);
    let path = disks.sparse("disk", &bytes).display().to_string();
    let config = configuration(&disks, &lab);
    let pool = lab.connect().pool(POOL, "").unwrap();
    let is_killed = |output: &Output| {
        use std::os::unix::process::ExitStatusExt;
        output.status.signal() == Some(9)
    };
    let run = |arguments: &[&str]| {
        let output = killed(&lab, usize::MAX, arguments, &config);
        assert!(output.status.success(), "{output:?}");
    };

    let mut at = 1;
    let import = ["import", &path, "rbd/image"];
    loop {
        let output = killed(&lab, at, &import, &config);
        let whole = pool.open_image(ImageKey::Name("image"), OpenMode::ReadOnly).is_ok();
        assert_eq!(whole, whole && read(&*pool, "image") == bytes, "half, killed at {at}");
        if !is_killed(&output) {
            assert!(output.status.success(), "{output:?}");
            break;
        }
        if at % 3 == 0 && !whole {
            let gc = || {
                let mut gc = Command::new(env!("CARGO_BIN_EXE_cinderblock"));
                gc.args(["gc", "--apply", "--pool", POOL, "--config"]).arg(&config);
                let output = gc.output().unwrap();
                assert!(output.status.success(), "{output:?}");
            };
            crate::common::wait_until("gc has cleared up", || {
                gc();
                let left = images(&*pool);
                if left.is_empty() { Ok(()) } else { Err(left) }
            });
        }
        let again = killed(&lab, usize::MAX, &import, &config);
        assert!(again.status.success() || whole, "killed at {at}: {again:?}");
        assert_same(&read(&*pool, "image"), &bytes, &format!("killed at {at}"));
        assert_eq!(images(&*pool), ["image"], "killed at {at}");
        // The killed one's watch may be on it still.
        crate::common::wait_until("it is removed", || {
            let output = killed(&lab, usize::MAX, &["rm", "rbd/image"], &config);
            if output.status.success() { Ok(()) } else { Err(output) }
        });
        assert!(images(&*pool).is_empty());
        at += 1;
    }
    assert!(at > 8, "killed at {at} points only");

    let back = disks.path("back");
    let target = back.display().to_string();
    let export = ["export", "rbd/image", &target];
    at = 1;
    loop {
        let output = killed(&lab, at, &export, &config);
        if back.exists() {
            assert_same(&std::fs::read(&back).unwrap(), &bytes, &format!("killed at {at}"));
            std::fs::remove_file(&back).unwrap();
        }
        if !is_killed(&output) {
            assert!(output.status.success(), "{output:?}");
            break;
        }
        run(&export);
        assert_same(&std::fs::read(&back).unwrap(), &bytes, &format!("killed at {at}"));
        std::fs::remove_file(&back).unwrap();
        assert_eq!(images(&*pool), ["image"], "killed at {at}");
        assert!(snapshots(&*pool, "image").is_empty(), "killed at {at}");
        at += 1;
    }
    assert!(at > 5, "killed at {at} points only");
    let names = disks.names();
    assert_eq!(names, ["config.yaml", "disk"], "files");
}
