//! Clones across pools and RADOS namespaces.

use std::time::Duration;

use cinderblock::rbd::CloneFormat;
use cinderblock::rbd::model::Fault;
use cinderblock::volume::Error;

use crate::lab::{Controller, Lab, OTHER_NAMESPACE, OTHER_POOL, RBD};

const AAA: &[&str] = &["A", "A", "A"];

#[test]
fn a_chain_across_pools_goes_in_any_order() {
    for (lab, protected) in [(Lab::format_1(), "*"), (Lab::new(), "")] {
        lab.create("A");
        lab.make(&lab.wish("B").home(OTHER_POOL).of_volume_in(RBD, "A"));
        lab.make(&lab.wish("C").of_volume_in(OTHER_POOL, "B"));
        assert_eq!(
            lab.picture(),
            "A [B.clone_snap*] ; C <- two/B@C.clone_snap ; two/B [C.clone_snap*] <- A@B.clone_snap"
                .replace('*', protected)
        );
        lab.assert_at_rest();
        lab.delete("A");
        lab.controller.delete(OTHER_POOL, "B").unwrap();
        assert_eq!(
            lab.picture(),
            "A.deleted [B.clone_snap*] ; C <- two/B.deleted@C.clone_snap ; \
             two/B.deleted [C.clone_snap*] <- A.deleted@B.clone_snap"
                .replace('*', protected)
        );
        lab.assert_at_rest();
        lab.assert_holds(RBD, "C", AAA);
        lab.delete("C");
        lab.assert_empty();
    }
}

#[test]
fn the_depth_counts_across_pools() {
    let lab = Lab::new();
    lab.create("A");
    lab.make(&lab.wish("B").home(OTHER_POOL).of_volume_in(RBD, "A"));
    lab.make(&lab.wish("C").home(OTHER_NAMESPACE).of_volume_in(OTHER_POOL, "B").depth(1));
    assert_eq!(lab.picture(), "A ; rbd/tenant/C <- two/B@C.clone_snap ; two/B [C.clone_snap]");
    lab.assert_at_rest();
    lab.assert_holds(OTHER_NAMESPACE, "C", AAA);
}

#[test]
fn a_snapshot_restores_into_another_namespace() {
    let lab = Lab::new();
    lab.create("A");
    let s = lab.snapshot("A", "s");
    lab.make(&lab.wish("B").home(OTHER_NAMESPACE).of_snapshot(&s));
    lab.delete("A");
    assert_eq!(lab.picture(), "A.deleted [s] ; rbd/tenant/B <- A.deleted@s");
    lab.assert_at_rest();
    lab.delete_snapshot(&s);
    assert_eq!(lab.picture(), "A.deleted [s.deleted] ; rbd/tenant/B <- A.deleted@s.deleted");
    lab.assert_at_rest();
    lab.assert_holds(OTHER_NAMESPACE, "B", AAA);
    lab.controller.delete(OTHER_NAMESPACE, "B").unwrap();
    lab.assert_empty();
}

#[test]
fn format_1_across_namespaces_is_refused() {
    let lab = Lab::new();
    lab.create("A");
    let wish = lab.wish("B").home(OTHER_NAMESPACE).of_volume_in(RBD, "A").format(CloneFormat::V1);
    let error = lab.refused(|controller| controller.create(&wish));
    assert!(matches!(error, Error::Invalid(_)), "{error:?}");
}

#[test]
fn same_named_clones_in_two_pools_have_a_snapshot_each() {
    let lab = Lab::new();
    lab.create("A");
    lab.clone("A", "B");
    lab.make(&lab.wish("B").home(OTHER_POOL).of_volume_in(RBD, "A"));
    assert_eq!(
        lab.picture(),
        "A [B.clone_snap, B.1.clone_snap] ; B <- A@B.clone_snap ; two/B <- A@B.1.clone_snap"
    );
    lab.assert_at_rest();
    lab.delete("A");
    lab.delete("B");
    lab.controller.delete(OTHER_POOL, "B").unwrap();
    lab.assert_empty();
}

/// A, deleted and in the pool RBD; a clone B of it in the other pool, deleted; and C of B in
/// another namespace, alive.
fn chain() -> Lab {
    let lab = Lab::new();
    lab.create("A");
    lab.make(&lab.wish("B").home(OTHER_POOL).of_volume_in(RBD, "A"));
    lab.make(&lab.wish("C").home(OTHER_NAMESPACE).of_volume_in(OTHER_POOL, "B"));
    lab.controller.delete(RBD, "A").unwrap();
    lab.controller.delete(OTHER_POOL, "B").unwrap();
    lab
}

#[test]
fn what_a_killed_deletion_left_in_other_pools_is_settled_by_the_sweeper_of_its_own() {
    let calls = {
        let lab = chain();
        let controller = Controller::new(&lab.model);
        controller.delete(OTHER_NAMESPACE, "C").unwrap();
        lab.assert_empty();
        controller.session.calls()
    };
    for call in 1..=calls {
        for fault in [Fault::CrashBefore, Fault::CrashAfter] {
            let lab = chain();
            let victim = Controller::new(&lab.model);
            victim.session.inject(call, fault);
            victim.delete(OTHER_NAMESPACE, "C").ok();
            assert!(victim.session.is_dead(), "call {call}");
            // The caller may have had its answer, and asks nothing more.
            let next = Controller::new(&lab.model);
            next.sweep_one(OTHER_NAMESPACE, Duration::from_hours(1)).unwrap();
            let begun = !lab.picture().contains('C');
            if begun {
                let graph = lab.graph();
                assert!(graph.has_no_images(), "killed at call {call}, {fault:?}:\n{graph}");
                lab.assert_at_rest();
            }
        }
    }
}
