//! Depth and number: what is flattened, when, and what that leaves.

use cinderblock::rbd::{ImageKey, OpenMode};
use cinderblock::volume::{Error, FlattenTarget};

use crate::lab::{Controller, Lab, RBD};
use crate::rest::Exempt;

/// A, B cloned of A, C cloned of B.
fn chain(lab: Lab) -> Lab {
    lab.create("A");
    lab.clone("A", "B");
    lab.clone("B", "C");
    lab
}

fn shallow() -> Lab {
    let mut lab = Lab::new();
    lab.plain.deep_flatten = false;
    lab
}

const AAA: &[&str] = &["A", "A", "A"];

#[test]
fn a_chain_grows_to_the_limit_and_then_its_source_is_flattened() {
    let lab = Lab::new();
    lab.create("0");
    for depth in 1..=5 {
        lab.clone(&(depth - 1).to_string(), &depth.to_string());
    }
    let chain = "1 [2.clone_snap] <- 0@1.clone_snap ; 2 [3.clone_snap] <- 1@2.clone_snap ; \
                 3 [4.clone_snap] <- 2@3.clone_snap";
    assert_eq!(
        lab.picture(),
        format!(
            "0 [1.clone_snap] ; {chain} ; 4 [5.clone_snap] <- 3@4.clone_snap ; 5 <- 4@5.clone_snap"
        )
    );
    lab.clone("5", "6");
    assert_eq!(
        lab.picture(),
        format!(
            "0 [1.clone_snap] ; {chain} ; 4 <- 3@4.clone_snap ; 5 [6.clone_snap] ; 6 <- 5@6.clone_snap"
        )
    );
    lab.assert_at_rest();
    lab.assert_holds(RBD, "6", &["0", "0", "0"]);
}

#[test]
fn at_the_limit_the_clone_is_flattened_if_the_class_says_so() {
    let lab = chain(Lab::format_1());
    lab.make(&lab.wish("D").of("C").depth(2).flatten(FlattenTarget::Clone));
    assert_eq!(
        lab.picture(),
        "A [B.clone_snap*] ; B [C.clone_snap*] <- A@B.clone_snap ; C <- B@C.clone_snap ; D"
    );
    lab.assert_at_rest();
    lab.assert_holds(RBD, "D", AAA);
}

#[test]
fn a_source_in_use_is_not_flattened_unless_the_class_says_so() {
    for publish in [true, false] {
        let lab = chain(Lab::new());
        let held = if publish {
            lab.controller.publish(RBD, "C", "node").unwrap();
            None
        } else {
            Some(lab.open(RBD, "C"))
        };
        lab.make(&lab.wish("D").of("C").depth(2));
        let drawn =
            "A [B.clone_snap] ; B [C.clone_snap] <- A@B.clone_snap ; C <- B@C.clone_snap ; D";
        assert_eq!(lab.picture(), drawn);
        lab.make(&lab.wish("E").of("C").depth(2).flatten(FlattenTarget::Source));
        let drawn =
            "A [B.clone_snap] ; B <- A@B.clone_snap ; C [E.clone_snap] ; D ; E <- C@E.clone_snap";
        assert_eq!(lab.picture(), drawn);
        drop(held);
        lab.assert_at_rest();
    }
}

#[test]
fn limit_0_makes_full_copies() {
    let lab = Lab::new();
    lab.create("A");
    let s = lab.snapshot("A", "s");
    lab.write(RBD, "A", 0, "later");
    lab.make(&lab.wish("B").of("A").depth(0));
    lab.make(&lab.wish("C").of_snapshot(&s).depth(0).blocks(4));
    assert_eq!(lab.picture(), "A [s] ; B ; C");
    lab.assert_holds(RBD, "B", &["later", "A", "A"]);
    lab.assert_holds(RBD, "C", &["A", "A", "A", ""]);
    lab.assert_at_rest();
}

#[test]
fn limit_1_allows_one_ancestor() {
    let lab = Lab::new();
    lab.create("A");
    lab.make(&lab.wish("B").of("A").depth(1));
    assert_eq!(lab.picture(), "A [B.clone_snap] ; B <- A@B.clone_snap");
    lab.make(&lab.wish("C").of("B").depth(1));
    assert_eq!(lab.picture(), "A ; B [C.clone_snap] ; C <- B@C.clone_snap");
    lab.assert_at_rest();
}

#[test]
fn a_limit_lowered_below_a_chain_flattens_it() {
    let lab = chain(Lab::format_1());
    lab.make(&lab.wish("D").of("C").depth(1));
    assert_eq!(
        lab.picture(),
        "A [B.clone_snap*] ; B <- A@B.clone_snap ; C [D.clone_snap*] ; D <- C@D.clone_snap"
    );
    lab.assert_at_rest();
}

#[test]
fn a_volume_in_mid_chain_is_flattened_with_its_snapshots() {
    let lab = chain(Lab::format_1());
    lab.make(&lab.wish("D").of("B").depth(1));
    assert_eq!(
        lab.picture(),
        "A ; B [C.clone_snap*, D.clone_snap*] ; C <- B@C.clone_snap ; D <- B@D.clone_snap"
    );
    lab.assert_at_rest();
    for name in ["B", "C", "D"] {
        lab.assert_holds(RBD, name, AAA);
    }
}

#[test]
fn without_deep_flatten_the_snapshots_of_a_flattened_volume_keep_the_parent() {
    for order in [["A", "B", "C", "D"], ["D", "C", "B", "A"], ["B", "D", "A", "C"]] {
        let lab = chain(shallow());
        lab.make(&lab.wish("D").of("B").depth(1));
        assert_eq!(
            lab.picture(),
            "A [B.clone_snap] ; B [C.clone_snap <- A@B.clone_snap, D.clone_snap] ; C <- B@C.clone_snap ; \
             D <- B@D.clone_snap"
        );
        lab.assert_at_rest();
        for (position, name) in order.iter().enumerate() {
            lab.delete(name);
            lab.assert_at_rest();
            for survivor in &order[position + 1..] {
                lab.assert_holds(RBD, survivor, AAA);
            }
        }
        lab.assert_empty();
    }
}

#[test]
fn a_volume_in_mid_chain_flattened_by_somebody_else_leaves_nothing_in_the_end() {
    for kind in [Lab::new, Lab::format_1, shallow] {
        for order in [["A", "B", "C"], ["C", "B", "A"], ["B", "C", "A"]] {
            let lab = chain(kind());
            lab.flatten_outside("B");
            for name in order {
                lab.delete(name);
                lab.assert_at_rest_but(&Exempt {
                    childless_clone_snapshots: true,
                    ..Exempt::default()
                });
            }
            lab.assert_empty();
        }
    }
}

#[test]
fn a_restore_at_the_limit_flattens_the_image_of_the_snapshot_or_else_the_restored() {
    for (lab, drawn) in [
        (Lab::new(), "A ; B [s] ; C <- B@s"),
        (shallow(), "A [B.clone_snap] ; B [s] <- A@B.clone_snap ; C"),
    ] {
        lab.create("A");
        lab.clone("A", "B");
        let s = lab.snapshot("B", "s");
        lab.make(&lab.wish("C").of_snapshot(&s).depth(1));
        assert_eq!(lab.picture(), drawn);
        lab.assert_at_rest();
        lab.assert_holds(RBD, "C", AAA);
    }
}

#[test]
fn flatten_on_restore_leaves_no_link() {
    let lab = Lab::format_1();
    lab.create("A");
    let s = lab.snapshot("A", "s");
    let mut wish = lab.wish("B").of_snapshot(&s);
    wish.policy.flatten_on_restore = true;
    lab.make(&wish);
    assert_eq!(lab.picture(), "A [s*] ; B");
    lab.assert_at_rest();
}

#[test]
fn at_the_snapshot_limit_the_oldest_clones_are_flattened() {
    let lab = Lab::format_1();
    lab.create("A");
    let s = lab.snapshot("A", "s");
    lab.clone("A", "B");
    lab.clone("A", "C");
    lab.make(&lab.wish("D").of("A").max_snapshots(3));
    assert_eq!(
        lab.picture(),
        "A [s*, C.clone_snap*, D.clone_snap*] ; B ; C <- A@C.clone_snap ; D <- A@D.clone_snap"
    );
    lab.controller.snapshot(RBD, "A", "t", 2).unwrap();
    assert_eq!(lab.picture(), "A [s*, t*] ; B ; C ; D");
    lab.assert_at_rest();
    for name in ["A", "B", "C", "D"] {
        lab.assert_holds(RBD, name, AAA);
    }

    let error = lab.refused(|controller| controller.snapshot(RBD, "A", "u", 2));
    assert!(matches!(error, Error::Exhausted(_)), "{error:?}");
    let wish = lab.wish("E").of("A").max_snapshots(2);
    let error = lab.controller.create(&wish).unwrap_err();
    assert!(matches!(error, Error::Exhausted(_)), "{error:?}");
    assert_eq!(lab.picture(), "A [s*, t*] ; B ; C ; D");
    lab.assert_at_rest();
    lab.delete_snapshot(&s);
    lab.make(&wish);
}

#[test]
fn a_clone_whose_snapshots_hold_the_parent_does_not_keep_others_from_making_room() {
    let lab = shallow();
    lab.create("A");
    lab.clone("A", "B");
    lab.snapshot("B", "s");
    lab.clone("A", "C");
    lab.make(&lab.wish("D").of("A").max_snapshots(2));
    assert_eq!(
        lab.picture(),
        "A [B.clone_snap, D.clone_snap] ; B [s <- A@B.clone_snap] ; C ; D <- A@D.clone_snap"
    );
    lab.assert_at_rest();
}

#[test]
fn snapshots_parked_by_librbd_count_and_make_room() {
    let lab = Lab::new();
    lab.create("A");
    let s = lab.snapshot("A", "s");
    lab.restore(&s, "B");
    let image = lab.pool(RBD).open_image(ImageKey::Name("A"), OpenMode::ReadWrite).unwrap();
    image.remove_snapshot("s").unwrap();
    drop(image);
    lab.delete_snapshot(&s);
    assert_eq!(lab.picture(), "A [(s)] ; B <- A@(s)");
    lab.assert_at_rest();
    lab.make(&lab.wish("C").of("A").max_snapshots(1));
    assert_eq!(lab.picture(), "A [C.clone_snap] ; B ; C <- A@C.clone_snap");
    lab.assert_at_rest();
}

#[test]
fn a_deleted_snapshot_makes_room_before_a_clone_is_flattened() {
    let lab = Lab::new();
    lab.create("A");
    lab.clone("A", "B");
    let s = lab.snapshot("A", "s");
    // Its removal goes on after the answer, and is not waited for.
    let controller = Controller::new(&lab.model);
    controller.volumes(RBD).unwrap().delete_snapshot(&s.image_id, &s.name).unwrap();
    assert_eq!(lab.picture(), "A [B.clone_snap, s.deleted] ; B <- A@B.clone_snap");
    controller.snapshot(RBD, "A", "t", 2).unwrap();
    assert_eq!(lab.picture(), "A [B.clone_snap, t] ; B <- A@B.clone_snap");
    lab.assert_at_rest();
}

#[test]
fn a_node_has_as_many_volumes_as_it_may_and_no_more() {
    let lab = Lab::new();
    for name in ["A", "B", "C"] {
        lab.create(name);
    }
    let publish = |name: &str, node: &str| lab.controller.publish_limited(RBD, name, node, 2);
    publish("A", "n").unwrap();
    publish("B", "n").unwrap();
    publish("A", "n").unwrap();
    let refused = lab.refused(|controller| controller.publish_limited(RBD, "C", "n", 2));
    assert!(matches!(refused, Error::Exhausted(_)), "{refused:?}");
    assert!(refused.to_string().contains("node n has 2 volumes in rbd"), "{refused}");
    publish("C", "other").unwrap();
    publish("A", "other").unwrap();
    lab.controller.unpublish(RBD, "A").unwrap();
    publish("C", "n").unwrap();
    for name in ["A", "B", "C"] {
        lab.controller.unpublish(RBD, name).unwrap();
        lab.delete(name);
    }
    lab.assert_empty();
}

#[test]
fn two_controllers_count_the_volumes_of_a_node_together() {
    let lab = Lab::new();
    let names: Vec<String> = (0..8).map(|number| format!("v{number}")).collect();
    for name in &names {
        lab.create(name);
    }
    let published = std::thread::scope(|scope| {
        let publishing: Vec<_> = names
            .iter()
            .map(|name| {
                let controller = Controller::new(&lab.model);
                scope.spawn(move || controller.publish_limited(RBD, name, "n", 3))
            })
            .collect();
        let outcomes = publishing.into_iter().map(|thread| thread.join().unwrap());
        outcomes.flatten().count()
    });
    assert_eq!(published, 3);
    for name in &names {
        lab.controller.unpublish(RBD, name).unwrap();
        lab.delete(name);
    }
    lab.assert_empty();
}
