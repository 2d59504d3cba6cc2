//! What other tools do to the driver's images: snapshots, clones, locks, groups, mirroring, and a
//! pool that keeps what is removed.

use std::time::Duration;

use cinderblock::rbd::{Hold, ImageOptions, SnapshotSpec};
use cinderblock::volume::leftovers::Leftover;
use cinderblock::volume::{DeleteWithSnapshots, Error};

use crate::lab::{Controller, Lab, RBD};
use crate::rest::Exempt;

const BOTH: [fn() -> Lab; 2] = [Lab::new, Lab::format_1];

/// `rbd snap rm`.
fn remove_snapshot(lab: &Lab, image: &str, snapshot: &str) {
    lab.open(RBD, image).remove_snapshot(snapshot).unwrap();
}

/// `rbd clone`, as another tool does it.
fn clone_outside(lab: &Lab, image: &str, snapshot: &str, name: &str) {
    let spec = SnapshotSpec {
        pool: "rbd".to_owned(),
        namespace: String::new(),
        image: image.to_owned(),
        snapshot: snapshot.to_owned(),
    };
    let options = ImageOptions { clone_format: lab.plain.format, ..ImageOptions::default() };
    lab.pool(RBD).clone_image(&spec, name, &options).unwrap();
}

fn exempt(name: &str) -> Exempt {
    Exempt {
        images: [name.to_owned()].into(),
        snapshots: [name.to_owned()].into(),
        ..Exempt::default()
    }
}

fn leftovers(lab: &Lab) -> Vec<Leftover> {
    let volumes = lab.controller.volumes(RBD).unwrap();
    volumes.leftovers(&volumes.survey().unwrap(), Duration::ZERO).unwrap()
}

/// Whether the silent parents left are told as kept by these alone.
fn assert_kept_by(lab: &Lab, specs: &[&str]) {
    let found = leftovers(lab);
    let [Leftover::KeptByOthers { by, .. }] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(by, specs);
    let error = lab.controller.volumes(RBD).unwrap().clear(&found[0]).unwrap_err();
    assert!(specs.iter().all(|spec| error.to_string().contains(spec)), "{error}");
}

#[test]
fn a_volume_kept_by_another_tools_snapshot_goes_with_it() {
    for lab in BOTH {
        let lab = lab();
        lab.create("A");
        lab.open(RBD, "A").create_snapshot("by hand").unwrap();
        let s = lab.snapshot("A", "s");
        lab.clone("A", "B");
        let retained = lab.controller.volumes(RBD).unwrap().delete("A").unwrap().unwrap();
        assert_eq!(
            (retained.by_others, retained.snapshots),
            (vec!["rbd/A.deleted@by hand".to_owned()], vec!["s".to_owned()])
        );
        assert_eq!(retained.for_clones, 1);
        // While anything of the driver's own needs it, it comes back to the image by itself.
        assert_eq!(leftovers(&lab), []);
        lab.assert_at_rest_but(&exempt("by hand"));
        lab.delete_snapshot(&s);
        lab.delete("B");
        assert_eq!(lab.picture(), "A.deleted [by hand]");
        assert_kept_by(&lab, &["rbd/A.deleted@by hand"]);
        lab.assert_at_rest_but(&exempt("by hand"));
        remove_snapshot(&lab, "A.deleted", "by hand");
        lab.controller.recover().unwrap();
        lab.assert_empty();
    }
}

#[test]
fn a_snapshot_another_tool_made_of_a_silent_parent_keeps_it_no_longer_than_it_lives() {
    let lab = Lab::new();
    lab.create("A");
    let s = lab.snapshot("A", "s");
    lab.delete("A");
    lab.open(RBD, "A.deleted").create_snapshot("by hand").unwrap();
    lab.delete_snapshot(&s);
    assert_kept_by(&lab, &["rbd/A.deleted@by hand"]);
    remove_snapshot(&lab, "A.deleted", "by hand");
    lab.controller.recover().unwrap();
    lab.assert_empty();
}

#[test]
fn a_volume_that_refuses_to_go_names_the_other_tools_snapshot() {
    let lab = Lab::new();
    let mut wish = lab.wish("A");
    wish.delete_with_snapshots = DeleteWithSnapshots::Refuse;
    lab.make(&wish);
    lab.open(RBD, "A").create_snapshot("by hand").unwrap();
    let error = lab.refused(|controller| controller.delete(RBD, "A"));
    assert!(
        matches!(&error, Error::HasSnapshots { .. }) && error.to_string().contains("by hand"),
        "{error:?}"
    );
}

#[test]
fn what_another_tools_clone_keeps_goes_after_it() {
    for lab in BOTH {
        for volume_first in [true, false] {
            let lab = lab();
            lab.create("A");
            let s = lab.snapshot("A", "s");
            clone_outside(&lab, "A", "s", "F");
            if volume_first {
                lab.delete("A");
                lab.delete_snapshot(&s);
            } else {
                lab.delete_snapshot(&s);
                lab.delete("A");
            }
            assert_kept_by(&lab, &["rbd/F"]);
            lab.pool(RBD).remove_image("F").unwrap();
            lab.controller.recover().unwrap();
            lab.assert_empty();
        }
    }
}

#[test]
fn another_tools_clone_of_a_clones_snapshot_is_waited_for() {
    for lab in BOTH {
        let lab = lab();
        lab.create("A");
        lab.clone("A", "B");
        clone_outside(&lab, "A", "B.clone_snap", "F");
        lab.delete("B");
        lab.delete("A");
        assert_kept_by(&lab, &["rbd/F"]);
        lab.pool(RBD).remove_image("F").unwrap();
        lab.controller.recover().unwrap();
        lab.assert_empty();
    }
}

#[test]
fn a_pool_that_keeps_what_is_removed_keeps_nothing_of_the_drivers() {
    for lab in BOTH {
        let lab = lab();
        lab.model.keep_removed("rbd");
        lab.create("A");
        lab.clone("A", "B");
        let s = lab.snapshot("B", "s");
        lab.delete("A");
        lab.delete("B");
        lab.assert_at_rest();
        lab.delete_snapshot(&s);
        lab.assert_empty();
    }
}

#[test]
fn a_removal_killed_in_a_pool_that_keeps_what_is_removed_is_finished() {
    let begin = || {
        let lab = Lab::new();
        lab.model.keep_removed("rbd");
        lab.create("A");
        lab.clone("A", "B");
        lab.delete("A");
        lab
    };
    let lab = begin();
    let plain = Controller::new(&lab.model);
    plain.delete(RBD, "B").unwrap();
    lab.assert_empty();
    for (call, fault) in plain.session.crash_points() {
        for retry in [true, false] {
            let lab = begin();
            let victim = Controller::new(&lab.model);
            victim.session.inject(call, fault);
            victim.delete(RBD, "B").ok();
            let next = Controller::new(&lab.model);
            if retry {
                next.delete(RBD, "B")
                    .unwrap_or_else(|error| panic!("{call} {fault:?}: {error}\n{}", lab.graph()));
            }
            next.recover().unwrap();
            if retry || lab.picture().is_empty() {
                lab.assert_empty();
            }
        }
    }
}

fn holds() -> [Hold; 2] {
    let lock = Hold::Lock {
        id: "backup".to_owned(),
        client: "client.4123".to_owned(),
        address: "192.0.2.9:0/1".to_owned(),
    };
    [lock, Hold::Mirrored]
}

fn assert_refused<T: std::fmt::Debug>(
    lab: &Lab,
    words: &str,
    ask: impl FnOnce(&Controller) -> cinderblock::volume::Result<T>,
) {
    let error = lab.refused(ask);
    assert!(matches!(&error, Error::FailedPrecondition(why) if why.contains(words)), "{error:?}");
}

#[test]
fn an_image_nobody_can_change_refuses_what_would_change_it_and_stays_usable() {
    for hold in holds() {
        let words = match hold {
            Hold::Lock { .. } => "rbd lock remove rbd/A \"backup\" client.4123",
            Hold::Mirrored => "rbd mirror image promote rbd/A",
        };
        let lab = Lab::new();
        lab.create("A");
        let s = lab.snapshot("A", "s");
        lab.model.hold("rbd", "A", Some(hold));
        assert_refused(&lab, words, |controller| controller.delete(RBD, "A"));
        assert_refused(&lab, words, |controller| controller.snapshot(RBD, "A", "t", 450));
        assert_refused(&lab, words, |controller| controller.delete_snapshot(&s));
        assert_refused(&lab, words, |controller| controller.group(RBD, "g", &["A"]));
        assert_refused(&lab, words, |controller| controller.grow(RBD, "A", 9));
        assert_refused(&lab, words, |controller| controller.create(&lab.wish("B").of("A")));
        let settings = [("conf_a".to_owned(), "1".to_owned())].into();
        assert_refused(&lab, words, |controller| {
            controller.volumes(RBD)?.modify("A", &settings, |_| Ok(()))
        });
        lab.restore(&s, "B");
        lab.controller.publish(RBD, "A", "n").unwrap();
        lab.controller.unpublish(RBD, "A").unwrap();
        lab.model.hold("rbd", "A", None);
        lab.delete("A");
        lab.delete("B");
        lab.delete_snapshot(&s);
        lab.assert_empty();
    }
}

#[test]
fn an_image_in_a_group_is_not_deleted_and_stays_usable() {
    let lab = Lab::new();
    lab.create("A");
    lab.model.group("rbd", "A", Some("rbd/g"));
    assert_refused(&lab, "rbd group image remove rbd/g rbd/A", |controller| {
        controller.delete(RBD, "A")
    });
    lab.controller.publish(RBD, "A", "n").unwrap();
    lab.controller.unpublish(RBD, "A").unwrap();
    lab.model.group("rbd", "A", None);
    lab.delete("A");
    lab.assert_empty();
}

#[test]
fn a_parent_nobody_can_change_keeps_its_childless_snapshot_until_it_can_be_changed() {
    for hold in holds() {
        let lab = Lab::new();
        lab.create("A");
        lab.clone("A", "B");
        lab.model.hold("rbd", "A", Some(hold.clone()));
        lab.delete("B");
        assert_eq!(lab.picture(), "A [B.clone_snap]");
        lab.model.hold("rbd", "A", None);
        lab.controller.recover().unwrap();
        assert_eq!(lab.picture(), "A");
        // A silent one too.
        let s = lab.snapshot("A", "s");
        lab.delete("A");
        lab.model.hold("rbd", "A.deleted", Some(hold));
        assert_refused(&lab, "rbd/A.deleted", |controller| controller.delete_snapshot(&s));
        lab.model.hold("rbd", "A.deleted", None);
        lab.model.group("rbd", "A.deleted", Some("rbd/g"));
        lab.delete_snapshot(&s);
        assert_eq!(lab.picture(), "A.deleted");
        lab.model.group("rbd", "A.deleted", None);
        lab.controller.recover().unwrap();
        lab.assert_empty();
    }
}
