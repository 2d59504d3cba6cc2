//! Snapshots beside clones, of clones, after their volume, and with names that come again.

use cinderblock::volume::{DeleteWithSnapshots, Error};

use crate::lab::{Cut, Lab, RBD};

const AAA: &[&str] = &["A", "A", "A"];

/// Both formats, and what marks a protected snapshot in a picture.
fn both() -> [(Lab, &'static str); 2] {
    [(Lab::format_1(), "*"), (Lab::new(), "")]
}

#[test]
fn many_clones_of_one_volume_go_in_any_order() {
    for (lab, protected) in both() {
        lab.create("A");
        for name in ["B", "C", "D"] {
            lab.clone("A", name);
        }
        lab.delete("A");
        lab.delete("C");
        assert_eq!(
            lab.picture(),
            "A.deleted [B.clone_snap*, D.clone_snap*] ; B <- A.deleted@B.clone_snap ; D <- A.deleted@D.clone_snap"
                .replace('*', protected)
        );
        lab.assert_at_rest();
        lab.delete("D");
        lab.assert_holds(RBD, "B", AAA);
        lab.delete("B");
        lab.assert_empty();
    }
}

#[test]
fn a_users_snapshot_beside_a_clone_keeps_the_silent_parent() {
    for (lab, protected) in both() {
        lab.create("A");
        lab.clone("A", "B");
        let s = lab.snapshot("A", "s");
        lab.delete("A");
        assert_eq!(
            lab.picture(),
            "A.deleted [B.clone_snap*, s*] ; B <- A.deleted@B.clone_snap".replace('*', protected)
        );
        lab.delete("B");
        assert_eq!(lab.picture(), "A.deleted [s*]".replace('*', protected));
        lab.assert_at_rest();
        lab.restore(&s, "C");
        lab.assert_holds(RBD, "C", AAA);
        lab.delete_snapshot(&s);
        assert_eq!(
            lab.picture(),
            "A.deleted [s.deleted*] ; C <- A.deleted@s.deleted".replace('*', protected)
        );
        lab.assert_at_rest();
        lab.assert_holds(RBD, "C", AAA);
        lab.delete("C");
        lab.assert_empty();
    }
}

#[test]
fn a_snapshot_of_a_clone_holds_the_whole_chain() {
    for (lab, protected) in both() {
        lab.create("A");
        lab.clone("A", "B");
        let s = lab.snapshot("B", "s");
        lab.delete("A");
        lab.delete("B");
        assert_eq!(
            lab.picture(),
            "A.deleted [B.clone_snap*] ; B.deleted [s*] <- A.deleted@B.clone_snap"
                .replace('*', protected)
        );
        lab.assert_at_rest();
        lab.restore(&s, "C");
        lab.assert_holds(RBD, "C", AAA);
        lab.delete("C");
        lab.delete_snapshot(&s);
        lab.assert_empty();
    }
}

#[test]
fn the_name_of_a_silent_volume_can_be_used_again() {
    for (lab, protected) in both() {
        lab.create("A");
        lab.clone("A", "B");
        lab.delete("A");
        lab.create("A");
        lab.clone("A", "C");
        let id = lab.graph().pools[&("rbd".to_owned(), String::new())].names["A"].clone();
        lab.delete("A");
        assert_eq!(
            lab.picture(),
            format!(
                "A.{id}.deleted [C.clone_snap*] ; A.deleted [B.clone_snap*] ; B <- A.deleted@B.clone_snap ; \
                 C <- A.{id}.deleted@C.clone_snap"
            )
            .replace('*', protected)
        );
        lab.assert_at_rest();
        lab.delete("B");
        assert_eq!(
            lab.picture(),
            format!("A.{id}.deleted [C.clone_snap*] ; C <- A.{id}.deleted@C.clone_snap")
                .replace('*', protected)
        );
        lab.delete("C");
        lab.assert_empty();
    }
}

#[test]
fn a_clone_of_a_name_whose_earlier_clone_snapshot_is_in_use_gets_another() {
    let lab = Lab::new();
    lab.create("A");
    lab.clone("A", "B");
    lab.clone("B", "C");
    lab.delete("B");
    lab.clone("A", "B");
    assert_eq!(
        lab.picture(),
        "A [B.clone_snap, B.1.clone_snap] ; B <- A@B.1.clone_snap ; B.deleted [C.clone_snap] <- A@B.clone_snap ; \
         C <- B.deleted@C.clone_snap"
    );
    lab.assert_at_rest();
    lab.delete("C");
    assert_eq!(lab.picture(), "A [B.1.clone_snap] ; B <- A@B.1.clone_snap");
    lab.assert_at_rest();
}

#[test]
fn the_name_of_a_parked_snapshot_can_be_used_again() {
    let lab = Lab::format_1();
    lab.create("A");
    let s = lab.snapshot("A", "s");
    lab.restore(&s, "B");
    lab.delete_snapshot(&s);
    let again = lab.snapshot("A", "s");
    lab.restore(&again, "C");
    lab.delete_snapshot(&again);
    assert_eq!(
        lab.picture(),
        "A [s.deleted*, s.2.deleted*] ; B <- A@s.deleted ; C <- A@s.2.deleted"
    );
    lab.assert_at_rest();
    lab.delete("C");
    lab.delete("B");
    assert_eq!(lab.picture(), "A");
    lab.assert_at_rest();
}

#[test]
fn a_snapshot_is_made_once_and_deleted_once() {
    let lab = Lab::new();
    lab.create("A");
    lab.create("B");
    let s = lab.snapshot("A", "s");
    let before = lab.graph();
    assert_eq!(lab.snapshot("A", "s"), s);
    assert_eq!(lab.graph(), before, "asked twice, made once");
    let error = lab.refused(|controller| controller.snapshot(RBD, "B", "s", 450));
    assert!(matches!(error, Error::AlreadyExists(_)), "{error:?}");
    let error = lab.refused(|controller| controller.snapshot(RBD, "X", "t", 450));
    assert!(matches!(error, Error::NotFound(_)), "{error:?}");

    let elsewhere = Cut { image_id: "1234".to_owned(), ..s.clone() };
    lab.delete_snapshot(&elsewhere);
    assert_eq!(lab.picture(), "A [s] ; B", "the snapshot of another image is another snapshot");
    lab.delete_snapshot(&s);
    lab.delete_snapshot(&s);
    assert_eq!(lab.picture(), "A ; B");
    lab.assert_at_rest();
}

#[test]
fn a_volume_with_snapshots_is_refused_if_the_class_says_so() {
    let lab = Lab::new();
    let wish = lab.wish("A");
    lab.make(&crate::lab::Wish { delete_with_snapshots: DeleteWithSnapshots::Refuse, ..wish });
    lab.clone("A", "B");
    let s = lab.snapshot("A", "s");
    let error = lab.refused(|controller| controller.delete(RBD, "A"));
    assert!(
        matches!(&error, Error::HasSnapshots { snapshots, .. } if snapshots[..] == ["s"]),
        "{error:?}"
    );
    lab.delete_snapshot(&s);
    lab.delete("A");
    assert_eq!(lab.picture(), "A.deleted [B.clone_snap] ; B <- A.deleted@B.clone_snap");
}
