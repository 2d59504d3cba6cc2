//! The driver never adopts, overwrites or deletes what another client made; and what is refused
//! changes nothing.

use std::time::Duration;

use cinderblock::rbd::model::Fault;
use cinderblock::rbd::{ImageOptions, OmapUpdate};
use cinderblock::volume::catalogue::{self, Cursor};
use cinderblock::volume::{Error, Process, Sizes};

use crate::lab::{BLOCK, Controller, Lab, RBD};
use crate::rest::Exempt;

const AAA: &[&str] = &["A", "A", "A"];

/// Another client makes an image without the driver, and uses it.
fn make_foreign(lab: &Lab, name: &str) {
    lab.pool(RBD).create_image(name, 3 * BLOCK, &ImageOptions::default()).unwrap();
    lab.write(RBD, name, 1, "foreign");
}

fn assert_foreign(lab: &Lab, name: &str) {
    lab.assert_holds(RBD, name, &["", "foreign", ""]);
}

fn exempt(name: &str) -> Exempt {
    Exempt {
        images: [name.to_owned()].into(),
        snapshots: [name.to_owned()].into(),
        ..Exempt::default()
    }
}

#[test]
fn a_foreign_image_is_neither_adopted_nor_deleted() {
    let lab = Lab::new();
    lab.create("A");
    let s = lab.snapshot("A", "s");
    make_foreign(&lab, "F");
    for wish in [
        lab.wish("F"),
        lab.wish("F").of("A"),
        lab.wish("F").of_snapshot(&s),
        lab.wish("F").of("A").depth(0),
    ] {
        let error = lab.refused(|controller| controller.create(&wish));
        assert!(matches!(error, Error::AlreadyExists(_)), "{error:?}");
    }
    let error = lab.refused(|controller| controller.delete(RBD, "F"));
    assert!(matches!(error, Error::FailedPrecondition(_)), "{error:?}");
    let error = lab.refused(|controller| controller.grow(RBD, "F", 9));
    assert!(matches!(error, Error::NotFound(_)), "{error:?}");
    let error = lab.refused(|controller| controller.snapshot(RBD, "F", "t", 450));
    assert!(matches!(error, Error::NotFound(_)), "{error:?}");
    let error = lab.refused(|controller| controller.create(&lab.wish("B").of("F")));
    assert!(matches!(error, Error::NotFound(_)), "{error:?}");
    assert_foreign(&lab, "F");
}

#[test]
fn a_name_taken_after_a_kill_is_somebody_elses() {
    for clone in [false, true] {
        for retry in [true, false] {
            let lab = Lab::new();
            lab.create("A");
            let wish = if clone { lab.wish("F").of("A") } else { lab.wish("F") };
            let victim = Controller::new(&lab.model);
            victim.session.on_call({
                let session = victim.session.clone();
                move |call| {
                    if matches!(call.method, "create_image" | "clone_image") {
                        session.crash();
                    }
                }
            });
            victim.create(&wish).unwrap_err();
            make_foreign(&lab, "F");
            for _ in 0..2 {
                let next = Controller::new(&lab.model);
                let error = if retry {
                    next.create(&wish).unwrap_err()
                } else {
                    next.delete(RBD, "F").unwrap_err()
                };
                let expected = matches!(
                    error,
                    Error::Conflict(_) | Error::AlreadyExists(_) | Error::FailedPrecondition(_)
                );
                assert!(expected, "{error:?}");
                assert_foreign(&lab, "F");
            }
            Controller::new(&lab.model).recover().unwrap();
            assert_foreign(&lab, "F");
            lab.assert_at_rest_but(&exempt("F"));
            assert_eq!(
                lab.picture(),
                "A ; F",
                "what the killed creation left on the source is gone"
            );
        }
    }
}

#[test]
fn a_name_taken_between_the_look_and_the_create_is_somebody_elses() {
    for clone in [false, true] {
        for kill in [false, true] {
            let lab = Lab::new();
            lab.create("A");
            let wish = if clone { lab.wish("F").of("A") } else { lab.wish("F") };
            let victim = Controller::new(&lab.model);
            let pool = lab.pool(RBD);
            let session = victim.session.clone();
            let mut made = false;
            victim.session.on_call(move |call| {
                if matches!(call.method, "create_image" | "clone_image") {
                    pool.create_image("F", 3 * BLOCK, &ImageOptions::default()).unwrap();
                    made = true;
                } else if made && kill {
                    session.crash();
                }
            });
            let error = victim.create(&wish).unwrap_err();
            assert_eq!(kill, !matches!(error, Error::AlreadyExists(_)), "{error:?}");
            lab.write(RBD, "F", 1, "foreign");
            let next = Controller::new(&lab.model);
            next.delete(RBD, "F").unwrap_err();
            next.recover().unwrap();
            assert_foreign(&lab, "F");
            assert_eq!(lab.picture(), "A ; F");
            lab.assert_at_rest_but(&exempt("F"));
        }
    }
}

#[test]
fn a_clone_somebody_made_of_another_image_is_not_a_leftover() {
    let lab = Lab::new();
    lab.create("A");
    lab.create("X");
    let victim = Controller::new(&lab.model);
    victim.session.inject(5, Fault::CrashBefore);
    victim.create(&lab.wish("F").of("A")).unwrap_err();
    lab.open(RBD, "X").create_snapshot("by hand").unwrap();
    let spec = cinderblock::rbd::SnapshotSpec {
        pool: "rbd".to_owned(),
        namespace: String::new(),
        image: "X".to_owned(),
        snapshot: "by hand".to_owned(),
    };
    lab.pool(RBD).clone_image(&spec, "F", &ImageOptions::default()).unwrap();
    Controller::new(&lab.model).create(&lab.wish("F").of("A")).unwrap_err();
    assert_eq!(lab.picture(), "A ; F <- X@by hand ; X [by hand]");
}

#[test]
fn a_foreign_image_with_a_silent_name_is_not_collected() {
    let lab = Lab::new();
    lab.create("A");
    make_foreign(&lab, "A.deleted");
    lab.clone("A", "B");
    let id = lab.graph().pools[&("rbd".to_owned(), String::new())].names["A"].clone();
    lab.delete("A");
    assert_eq!(
        lab.picture(),
        format!("A.{id}.deleted [B.clone_snap] ; A.deleted ; B <- A.{id}.deleted@B.clone_snap")
    );
    lab.delete("B");
    lab.controller.recover().unwrap();
    assert_eq!(lab.picture(), "A.deleted");
    assert_foreign(&lab, "A.deleted");
}

#[test]
fn a_foreign_snapshot_is_neither_adopted_nor_deleted() {
    let lab = Lab::new();
    lab.create("A");
    lab.open(RBD, "A").create_snapshot("f").unwrap();
    let error = lab.refused(|controller| controller.snapshot(RBD, "A", "f", 450));
    assert!(matches!(error, Error::AlreadyExists(_)), "{error:?}");
    lab.delete("A");
    assert_eq!(lab.picture(), "A.deleted [f]", "the volume goes, somebody's snapshot stays");
    lab.assert_at_rest_but(&exempt("f"));
    let image_id = lab.graph().images().next().unwrap().2.to_owned();
    lab.delete_snapshot(&crate::lab::Cut { home: RBD, image_id, name: "f".to_owned() });
    assert_eq!(lab.picture(), "A.deleted [f]");
}

#[test]
fn a_snapshot_name_taken_between_the_look_and_the_cut_is_somebody_elses() {
    let lab = Lab::new();
    lab.create("A");
    let victim = Controller::new(&lab.model);
    let image = lab.open(RBD, "A");
    victim.session.on_call(move |call| {
        if call.method == "create_snapshot" {
            image.create_snapshot("f").unwrap();
        }
    });
    let error = victim.snapshot(RBD, "A", "f", 450).unwrap_err();
    assert!(matches!(error, Error::AlreadyExists(_)), "{error:?}");
    drop(victim);
    assert_eq!(lab.picture(), "A [f]");
}

#[test]
fn two_instances_in_one_pool_leave_each_other_alone() {
    let lab = Lab::new();
    lab.create("A");
    let pool = lab.controller.session.cluster().pool("rbd", "").unwrap();
    let other = cinderblock::volume::Volumes::new(
        pool,
        "other",
        Process::default(),
        std::sync::Arc::default(),
    );
    let before = lab.graph();
    let error = other.create(&lab.wish("A").request()).unwrap_err();
    assert!(matches!(error, Error::AlreadyExists(_)), "{error:?}");
    let error = other.delete("A").unwrap_err();
    assert!(matches!(error, Error::FailedPrecondition(_)), "{error:?}");
    other.settle(other.sweep(Duration::ZERO).unwrap());
    assert_eq!(lab.graph(), before);
    lab.assert_holds(RBD, "A", AAA);
}

#[test]
fn a_refused_request_changes_nothing() {
    let lab = Lab::new();
    lab.create("A");
    let s = lab.snapshot("A", "s");
    lab.make(&lab.wish("B").of("A"));
    let mut small = lab.wish("C").of("A");
    small.sizes = Sizes { required: BLOCK, limit: 0 };
    let mut limited = lab.wish("C").of_snapshot(&s);
    limited.sizes = Sizes { required: 0, limit: BLOCK };
    for wish in [small, limited] {
        let error = lab.refused(|controller| controller.create(&wish));
        assert!(matches!(error, Error::OutOfRange(_)), "{error:?}");
    }
    for wish in [
        lab.wish("B"),
        lab.wish("B").of_snapshot(&s),
        lab.wish("A").blocks(9),
        lab.wish("A").shallow_flatten(),
    ] {
        let error = lab.refused(|controller| controller.create(&wish));
        assert!(matches!(error, Error::AlreadyExists(_)), "{error:?}");
    }
    let gone = crate::lab::Cut { name: "gone".to_owned(), ..s.clone() };
    for wish in [lab.wish("C").of("gone"), lab.wish("C").of_snapshot(&gone)] {
        let error = lab.refused(|controller| controller.create(&wish));
        assert!(matches!(error, Error::NotFound(_)), "{error:?}");
    }
    let error = lab.refused(|controller| {
        controller.volumes(RBD)?.grow("A", Sizes { required: BLOCK, limit: 2 * BLOCK })
    });
    assert!(matches!(error, Error::OutOfRange(_)), "{error:?}");
    lab.controller.publish(RBD, "A", "n").unwrap();
    let error = lab.refused(|controller| controller.publish(RBD, "A", "m"));
    assert!(matches!(&error, Error::InUse(why) if why.contains("node n")), "{error:?}");
    let error = lab.refused(|controller| controller.delete(RBD, "A"));
    assert!(matches!(&error, Error::InUse(why) if why.contains("node n")), "{error:?}");
    lab.controller.unpublish(RBD, "A").unwrap();
    let held = lab.open(RBD, "A");
    let error = lab.refused(|controller| controller.delete(RBD, "A"));
    assert!(matches!(&error, Error::InUse(why) if why.contains("192.0.2.")), "{error:?}");
    drop(held);
    lab.assert_at_rest();
}

/// Records and journal entries of another version keep nothing from being done, and `gc` tells of
/// them.
#[test]
fn what_cannot_be_read_is_left_alone_and_told_and_blocks_nothing() {
    let lab = Lab::new();
    lab.create("A");
    lab.clone("A", "B");
    let victim = Controller::new(&lab.model);
    let session = victim.session.clone();
    victim.session.on_call(move |call| {
        if call.method == "remove_image" {
            session.crash();
        }
    });
    victim.delete(RBD, "B").unwrap_err();
    let newer = || br#"{"version":99}"#.to_vec();
    let write = |object: String, key: &str| {
        let update = OmapUpdate { set: vec![(key.to_owned(), newer())], ..OmapUpdate::default() };
        lab.pool(RBD).omap_update(&object, &update).unwrap();
    };
    for shard in 0..16 {
        write(format!("cinderblock.test.catalogue.{shard:02}"), &format!("volume/0{shard}"));
    }
    write("cinderblock.test.journal".to_owned(), "1@2#3");
    let next = Controller::new(&lab.model);
    next.recover().unwrap();
    assert_eq!(lab.picture(), "A", "what was half-done is finished");
    let volumes = next.volumes(RBD).unwrap();
    let listed = volumes.catalogue().list::<catalogue::Volume>(&Cursor::default(), 0).unwrap().0;
    assert_eq!(listed.len(), 1, "{listed:?}");
    let leftovers = volumes.leftovers(&volumes.survey().unwrap(), Duration::ZERO).unwrap();
    assert_eq!(leftovers.len(), 17, "{leftovers:?}");
    for leftover in leftovers {
        let error = volumes.clear(&leftover).unwrap_err();
        assert!(matches!(&error, Error::FailedPrecondition(_)), "{error}");
    }
}

/// A creation that no client asks for again is undone once it is old; one that an operation is at
/// work on is not.
#[test]
fn an_abandoned_creation_is_cleared_once_it_is_old() {
    let lab = Lab::new();
    lab.create("A");
    let victim = Controller::new(&lab.model);
    let session = victim.session.clone();
    victim.session.on_call(move |call| {
        if call.method == "resize" {
            session.crash();
        }
    });
    victim.create(&lab.wish("B").of("A").blocks(9)).unwrap_err();
    let before = lab.picture();
    assert_eq!(before, "A [B.clone_snap] ; B <- A@B.clone_snap");
    Controller::new(&lab.model).recover().unwrap();
    assert_eq!(lab.picture(), before, "it may be asked for again");
    Controller::patient(&lab.model, Duration::from_hours(1)).sweep(Duration::ZERO).unwrap();
    assert_eq!(lab.picture(), before, "its controller may be at work");
    Controller::new(&lab.model).sweep(Duration::ZERO).unwrap();
    assert_eq!(lab.picture(), "A");
    lab.assert_at_rest();
}
