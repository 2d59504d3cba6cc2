//! The worked chains: A→B→C in every order of deletion, and the snapshot that outlives its volume.

use crate::lab::Lab;

/// A, a clone B of it, a clone C of that.
fn chain(lab: Lab) -> Lab {
    lab.create("A");
    lab.clone("A", "B");
    lab.clone("B", "C");
    lab
}

#[test]
fn a_chain_is_built_as_drawn() {
    let lab = chain(Lab::format_1());
    assert_eq!(
        lab.picture(),
        "A [B.clone_snap*] ; B [C.clone_snap*] <- A@B.clone_snap ; C <- B@C.clone_snap"
    );
    lab.assert_at_rest();
    for name in ["A", "B", "C"] {
        lab.assert_holds(crate::lab::RBD, name, &["A", "A", "A"]);
    }
}

/// Deletes the volumes in order; after each deletion the cluster looks as drawn, and the survivors
/// hold their bytes.
fn deleted_in_order(order: [&str; 3], drawn: [&str; 3]) {
    for (lab, protected) in [(Lab::format_1(), "*"), (Lab::new(), "")] {
        let lab = chain(lab);
        for (position, (name, drawn)) in order.into_iter().zip(drawn).enumerate() {
            lab.delete(name);
            assert_eq!(
                lab.picture(),
                drawn.replace('*', protected),
                "after {:?}",
                &order[..=position]
            );
            lab.assert_at_rest();
            for survivor in &order[position + 1..] {
                lab.assert_holds(crate::lab::RBD, survivor, &["A", "A", "A"]);
            }
        }
        lab.assert_empty();
    }
}

#[test]
fn deleted_a_b_c() {
    deleted_in_order(
        ["A", "B", "C"],
        [
            "A.deleted [B.clone_snap*] ; B [C.clone_snap*] <- A.deleted@B.clone_snap ; C <- B@C.clone_snap",
            "A.deleted [B.clone_snap*] ; B.deleted [C.clone_snap*] <- A.deleted@B.clone_snap ; \
             C <- B.deleted@C.clone_snap",
            "",
        ],
    );
}

#[test]
fn deleted_a_c_b() {
    deleted_in_order(
        ["A", "C", "B"],
        [
            "A.deleted [B.clone_snap*] ; B [C.clone_snap*] <- A.deleted@B.clone_snap ; C <- B@C.clone_snap",
            "A.deleted [B.clone_snap*] ; B <- A.deleted@B.clone_snap",
            "",
        ],
    );
}

#[test]
fn deleted_b_a_c() {
    deleted_in_order(
        ["B", "A", "C"],
        [
            "A [B.clone_snap*] ; B.deleted [C.clone_snap*] <- A@B.clone_snap ; C <- B.deleted@C.clone_snap",
            "A.deleted [B.clone_snap*] ; B.deleted [C.clone_snap*] <- A.deleted@B.clone_snap ; \
             C <- B.deleted@C.clone_snap",
            "",
        ],
    );
}

#[test]
fn deleted_b_c_a() {
    deleted_in_order(
        ["B", "C", "A"],
        [
            "A [B.clone_snap*] ; B.deleted [C.clone_snap*] <- A@B.clone_snap ; C <- B.deleted@C.clone_snap",
            "A",
            "",
        ],
    );
}

#[test]
fn deleted_c_a_b() {
    deleted_in_order(
        ["C", "A", "B"],
        [
            "A [B.clone_snap*] ; B <- A@B.clone_snap",
            "A.deleted [B.clone_snap*] ; B <- A.deleted@B.clone_snap",
            "",
        ],
    );
}

#[test]
fn deleted_c_b_a() {
    deleted_in_order(["C", "B", "A"], ["A [B.clone_snap*] ; B <- A@B.clone_snap", "A", ""]);
}

#[test]
fn a_snapshot_outlives_its_volume_and_still_restores() {
    for (lab, protected) in [(Lab::format_1(), "*"), (Lab::new(), "")] {
        let drawn = |text: &str| text.replace('*', protected);
        lab.create("A");
        let s1 = lab.snapshot("A", "s1");
        lab.write(crate::lab::RBD, "A", 0, "later");
        lab.restore(&s1, "B");
        lab.delete("A");
        assert_eq!(lab.picture(), drawn("A.deleted [s1*] ; B <- A.deleted@s1"));
        lab.restore(&s1, "C");
        assert_eq!(lab.picture(), drawn("A.deleted [s1*] ; B <- A.deleted@s1 ; C <- A.deleted@s1"));
        for restored in ["B", "C"] {
            lab.assert_holds(crate::lab::RBD, restored, &["A", "A", "A"]);
        }
        lab.assert_at_rest();
        lab.delete("C");
        lab.delete("B");
        assert_eq!(lab.picture(), drawn("A.deleted [s1*]"));
        lab.assert_at_rest();
        lab.delete_snapshot(&s1);
        lab.assert_empty();
    }
}
