//! Clones across pools and RADOS namespaces.

use cinderblock::rbd::CloneFormat;
use cinderblock::volume::Error;

use crate::lab::{Lab, OTHER_NAMESPACE, OTHER_POOL, RBD};

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
    assert_eq!(lab.picture(), "A.deleted [(s)] ; rbd/tenant/B <- A.deleted@(s)");
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
