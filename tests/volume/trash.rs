//! The trash, and snapshots that are being deleted, where faults and other tools meet them.

use cinderblock::rbd::Errno;
use cinderblock::rbd::model::Fault;
use cinderblock::volume::leftovers::Leftover;
use cinderblock::volume::{Entry, Error, Suspect, Volumes};

use crate::lab::{Controller, Cut, Lab, RBD};

/// The error of a driver whose calls of these methods, made in this order with others between
/// them, end in one that fails.
fn fails_at<T: std::fmt::Debug>(
    lab: &Lab,
    methods: &'static [&'static str],
    ask: impl Fn(&Controller) -> Result<T, Error>,
) -> Error {
    let controller = Controller::new(&lab.model);
    let session = controller.session.clone();
    let mut left = methods.iter().peekable();
    controller.session.on_call(move |call| {
        if left.next_if(|method| **method == call.method).is_some() && left.peek().is_none() {
            session.inject(call.number, Fault::Fail(Errno::EIO));
            // Nothing after it.
            left = [].iter().peekable();
        }
    });
    ask(&controller).expect_err("the fault is met")
}

#[test]
fn a_snapshot_that_was_never_handed_out_goes_although_its_journal_entry_failed() {
    for deleted in [false, true] {
        let lab = Lab::new();
        lab.create("A");
        // Cut, and its record says nothing of that.
        fails_at(&lab, &["create_snapshot", "omap_update"], |controller| {
            controller.snapshot(RBD, "A", "s", 450)
        });
        // The removal of that has taken its name, and not written into the journal.
        let cut = Cut { home: RBD, image_id: lab.open(RBD, "A").id().unwrap(), name: "s".into() };
        fails_at(&lab, &["rename_snapshot", "omap_update"], |controller| {
            controller.volumes(RBD)?.delete_snapshot(&cut.image_id, &cut.name)
        });
        if deleted {
            lab.delete_snapshot(&cut);
        } else {
            lab.controller.snapshot(RBD, "A", "s", 450).unwrap();
            lab.delete_snapshot(&cut);
        }
        assert_eq!(lab.picture(), "A");
        lab.assert_at_rest();
    }
}

#[test]
fn a_snapshot_that_another_tool_renamed_goes() {
    for deleted_first in [false, true] {
        let lab = Lab::new();
        lab.create("A");
        let s = lab.snapshot("A", "s");
        lab.open(RBD, "A").rename_snapshot("s", "renamed").unwrap();
        if deleted_first {
            lab.delete("A");
        }
        lab.delete_snapshot(&s);
        if !deleted_first {
            assert_eq!(lab.picture(), "A");
            lab.delete("A");
        }
        lab.controller.recover().unwrap();
        lab.assert_empty();
    }
}

#[test]
fn a_volume_that_is_refused_to_the_trash_is_as_it_was() {
    let lab = Lab::new();
    lab.create("A");
    lab.controller.publish(RBD, "A", "n").unwrap();
    let refused = lab.refused(|controller| controller.volumes(RBD)?.park("A", 3600));
    assert!(matches!(refused, Error::InUse(_)), "{refused:?}");
    lab.controller.unpublish(RBD, "A").unwrap();
    lab.delete("A");
    lab.assert_empty();
}

#[test]
fn what_is_brought_back_is_no_other_tools_meanwhile() {
    let lab = Lab::new();
    let name = "volume-0b9e7a52-5c1e-4b6f-9d0a-2f1c7d3e8a46";
    lab.create(name);
    lab.controller.volumes(RBD).unwrap().park(name, 3600).unwrap();
    // Killed between the change of the record and the rename.
    fails_at(&lab, &["rename_image"], |controller| controller.take_back(RBD, name));
    let volumes = lab.controller.volumes(RBD).unwrap();
    let survey = volumes.survey().unwrap();
    let foreign = Volumes::foreign_leftovers(&survey);
    assert!(!foreign.iter().any(|found| matches!(found, Leftover::Foreign { .. })), "{foreign:?}");
    lab.controller.take_back(RBD, name).unwrap();
    lab.assert_at_rest();
    lab.delete(name);
    lab.controller.purge(RBD, name).unwrap();
    lab.assert_empty();
}

#[test]
fn a_stale_note_of_an_earlier_volume_does_not_collect_one_that_comes_back() {
    let lab = Lab::new();
    lab.create("A");
    lab.clone("A", "B");
    lab.delete("A");
    // The earlier A's image is removed by hand, so its note stays.
    let image = lab.open(RBD, "A.deleted");
    for snapshot in image.snapshots().unwrap() {
        lab.flatten_outside("B");
        image.remove_snapshot_by_id(snapshot.id).unwrap();
    }
    drop(image);
    lab.pool(RBD).remove_image("A.deleted").unwrap();
    lab.create("A");
    lab.controller.volumes(RBD).unwrap().park("A", 3600).unwrap();
    fails_at(&lab, &["rename_image"], |controller| controller.take_back(RBD, "A"));
    // A suspect about the image, such as a clone that went leaves.
    let volumes = lab.controller.volumes(RBD).unwrap();
    let id = lab.pool(RBD).image_id("A.deleted").unwrap().unwrap();
    let suspect = Suspect {
        pool: "rbd".to_owned(),
        namespace: String::new(),
        image_id: id.clone(),
        image: "A.deleted".to_owned(),
        snapshot: None,
        child: None,
        is_foreign: false,
    };
    volumes.settle(vec![Entry::new(suspect)]);
    assert_eq!(lab.pool(RBD).image_id("A.deleted").unwrap(), Some(id));
    lab.controller.take_back(RBD, "A").unwrap();
}
