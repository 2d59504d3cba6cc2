//! Adoptions and releases that die or fail at every call, on the model.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cinderblock::rbd::model::{Fault, Model, Session};
use cinderblock::rbd::{Errno, ImageKey, OpenMode, Pool};
use cinderblock::volume::adopt::{Kind, Verdict};
use cinderblock::volume::catalogue::State;
use cinderblock::volume::{Activity, Leases, Process, Result, Volumes};

use crate::common::POOL;
use crate::fixtures::{CephCsi, Cinder, MARK_AT, ten_volumes};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    CephCsi,
    Cinder,
}

fn pool(session: &Session) -> Arc<dyn Pool> {
    session.cluster().pool(POOL, "").unwrap()
}

fn volumes(session: &Session) -> Volumes {
    // What a dead one had in hand is taken over at once.
    let process = Process { leases: Leases::new(Duration::ZERO), ..Process::default() };
    Volumes::new(pool(session), "default", process, Arc::new(Activity::default()))
}

/// A pool with ten volumes, and their images.
fn fixture(from: From) -> (Model, Vec<String>) {
    let model = Model::new();
    model.create_pool(POOL);
    let pool = pool(&model.connect());
    let fill = |image: &str, n: u32| {
        let opened = pool.open_image(ImageKey::Name(image), OpenMode::ReadWrite).unwrap();
        opened.write_at(0, format!("volume {n}").as_bytes()).unwrap();
        opened.write_at(MARK_AT, b"mark").unwrap();
    };
    let images = match from {
        From::CephCsi => ten_volumes(&CephCsi::new(pool.clone()), &fill),
        From::Cinder => Cinder { pool: pool.clone() }.ten_volumes(&fill),
    };
    (model, images)
}

fn adopt(from: From, volumes: &Volumes) -> Result<()> {
    let ids = |image: &str| Some(format!("lab/{POOL}/{image}"));
    let items = match from {
        From::CephCsi => volumes.plan_from_ceph_csi("default", &ids)?,
        From::Cinder => volumes.plan_from_cinder(&ids)?,
    };
    for item in &items {
        assert!(item.is_adoptable(), "{item:?}");
        volumes.adopt(item)?;
    }
    volumes.settle_own();
    Ok(())
}

fn release(volumes: &Volumes) -> Result<()> {
    for item in volumes.plan_release()? {
        assert_eq!(item.refused, None, "{item:?}");
        volumes.release(&item)?;
    }
    volumes.release_parents().map(drop)
}

/// Settles what a run that was killed has left, as a controller does.
fn sweep(volumes: &Volumes, point: &str) {
    let left = volumes.settle(volumes.sweep(Duration::from_hours(1)).unwrap());
    assert!(left.is_empty(), "{left:?}: {point}");
}

/// Checks that all was adopted and nothing is left to do.
fn assert_adopted(from: From, model: &Model, images: &[String], point: &str) {
    let session = model.connect();
    let volumes = volumes(&session);
    sweep(&volumes, point);
    for image in images {
        let stored = volumes.catalogue().volume(image).unwrap();
        let record = stored.unwrap_or_else(|| panic!("{image} is not adopted: {point}")).record;
        assert_eq!(record.state, State::Ready, "{image}: {point}");
    }
    let ids = |image: &str| Some(format!("lab/{POOL}/{image}"));
    let items = match from {
        From::CephCsi => volumes.plan_from_ceph_csi("default", &ids).unwrap(),
        From::Cinder => volumes.plan_from_cinder(&ids).unwrap(),
    };
    let count = |kind| items.iter().filter(|item| item.kind == kind).count();
    // Five images that only others need: three or two in the pool, the rest in the trash.
    let wanted = if from == From::CephCsi { (10, 2, 5) } else { (10, 3, 2) };
    assert_eq!(
        (count(Kind::Volume), count(Kind::Snapshot), count(Kind::Parent)),
        wanted,
        "{point}"
    );
    for item in items {
        assert_eq!(item.verdict, Verdict::Adopted, "{item:?}: {point}");
    }
}

/// Deletes everything that was adopted, in one order or the other, and checks that nothing is left.
fn delete_all(from: From, model: &Model, images: &[String], point: &str, snapshots_first: bool) {
    let session = model.connect();
    let volumes = volumes(&session);
    let settle = || {
        let left = volumes.settle(volumes.take_suspects());
        assert!(left.is_empty(), "{left:?}: {point}");
    };
    let snapshots: Vec<_> = volumes
        .plan_release()
        .unwrap()
        .into_iter()
        .filter(|item| item.kind == Kind::Snapshot)
        .map(|item| item.image)
        .collect();
    let delete_snapshots = || {
        for snapshot in &snapshots {
            let record = volumes.catalogue().snapshot(snapshot).unwrap().unwrap().record;
            volumes.delete_snapshot(&record.image_id, snapshot).unwrap();
            settle();
        }
    };
    if snapshots_first {
        delete_snapshots();
    }
    for image in images {
        volumes.delete(image).unwrap_or_else(|error| panic!("{image}: {error}: {point}"));
        settle();
    }
    if !snapshots_first {
        delete_snapshots();
    }
    sweep(&volumes, point);
    if from == From::CephCsi {
        CephCsi::new(pool(&session)).assert_journal_is_empty();
    }
    let graph = model.graph();
    assert!(graph.has_no_images(), "{point}:\n{graph}");
    for pool in graph.pools.values() {
        assert!(
            pool.trash.is_empty() && pool.objects.values().all(BTreeMap::is_empty),
            "{point}:\n{graph}"
        );
    }
}

/// Runs `work` once for each place where a run of it can die, and once for each call that can fail,
/// on a new model that `prepare` has prepared; then `check`.
fn at_every_point(
    from: From,
    prepare: &dyn Fn(&Volumes) -> Result<()>,
    work: &dyn Fn(&Volumes) -> Result<()>,
    check: &dyn Fn(&Model, &[String], &str),
) {
    let (model, images) = fixture(from);
    prepare(&volumes(&model.connect())).unwrap();
    let session = model.connect();
    work(&volumes(&session)).unwrap();
    check(&model, &images, "without a fault");
    let mut faults = session.crash_points();
    let died = faults.len();
    // The first call is the one for the pool.
    faults.extend((2..=session.calls()).step_by(7).map(|call| (call, Fault::Fail(Errno::EIO))));
    assert!(died > 10, "{faults:?}");
    for (call, fault) in faults {
        let (model, images) = fixture(from);
        prepare(&volumes(&model.connect())).unwrap();
        let session = model.connect();
        session.inject(call, fault);
        let outcome = work(&volumes(&session));
        let calls: Vec<_> = session.log().iter().map(ToString::to_string).collect();
        let last = calls.last().cloned().unwrap_or_default();
        let point = format!("{fault:?} at call {call}, {outcome:?}, after {last}");
        assert_owned(&model, &images, &point);
        // A dead process's leases run out.
        model.advance(Duration::from_mins(2));
        let next = model.connect();
        work(&volumes(&next)).unwrap_or_else(|error| panic!("{error}: {point}"));
        let then: Vec<_> = next.log().iter().map(ToString::to_string).collect();
        let point = format!("{point}\nThe next run:\n{}\n{}", then.join("\n"), model.graph());
        check(&model, &images, &point);
    }
}

/// Checks that each volume is whole in the catalogue, or in nobody's but its former driver's hands.
fn assert_owned(model: &Model, images: &[String], point: &str) {
    let session = model.connect();
    let pool = pool(&session);
    let csi = CephCsi::new(pool.clone()).journal();
    let volumes = volumes(&session);
    for image in images {
        assert!(pool.image_id(image).unwrap().is_some(), "{image} is gone: {point}");
        let record = volumes.catalogue().volume(image).unwrap();
        let is_ours = record.is_some_and(|stored| stored.record.state == State::Ready);
        let is_theirs = image.starts_with("volume-")
            || csi.values().any(|entries| {
                entries.get("csi.imagename") == Some(image) && entries.contains_key("csi.volname")
            });
        assert!(is_ours || is_theirs, "nobody has {image}: {point}");
    }
}

#[test]
fn an_adoption_from_ceph_csi_that_dies_or_fails_is_finished_by_the_next() {
    let from = From::CephCsi;
    at_every_point(from, &|_| Ok(()), &|volumes| adopt(from, volumes), &|model, images, point| {
        assert_adopted(from, model, images, point);
        delete_all(from, model, images, point, point.len() % 2 == 0);
    });
}

#[test]
fn an_adoption_from_cinder_that_dies_or_fails_is_finished_by_the_next() {
    let from = From::Cinder;
    at_every_point(from, &|_| Ok(()), &|volumes| adopt(from, volumes), &|model, images, point| {
        assert_adopted(from, model, images, point);
        delete_all(from, model, images, point, point.len() % 2 == 0);
    });
}

#[test]
fn a_release_that_dies_or_fails_is_finished_by_the_next() {
    for from in [From::CephCsi, From::Cinder] {
        let (model, _) = fixture(from);
        let before = model.graph();
        let prepare = |volumes: &Volumes| adopt(from, volumes);
        at_every_point(from, &prepare, &release, &|model, images, point| {
            let session = model.connect();
            let now = CephCsi::new(pool(&session)).journal();
            let (then, _) = fixture(from);
            let wanted = CephCsi::new(pool(&then.connect())).journal();
            assert_eq!(now, wanted, "{point}");
            if from == From::CephCsi {
                assert_same_images(model, &before, point);
            }
            // Nothing is ours, and it can be adopted again.
            assert!(volumes(&session).plan_release().unwrap().is_empty(), "{point}");
            adopt(from, &volumes(&session)).unwrap();
            assert_adopted(from, model, images, point);
        });
    }
}

/// Checks that the images, the trash and their snapshots are as they were.
fn assert_same_images(model: &Model, before: &cinderblock::rbd::model::Graph, point: &str) {
    let images = |graph: &cinderblock::rbd::model::Graph| {
        let images = graph.images().map(|(_, _, id, image)| (id.to_owned(), image.clone()));
        images.collect::<BTreeMap<_, _>>()
    };
    assert_eq!(images(&model.graph()), images(before), "{point}");
}
