//! The defects of the Cinder driver this one descends from, none of which may come back. Each test
//! is named for what must not happen, behind the number the defect has in the project's list.

use std::sync::{Arc, Mutex};

use cinderblock::rbd::model::Fault;
use cinderblock::rbd::{CloneFormat, Errno, ImageKey, OpenMode};
use cinderblock::volume::{Error, FlattenTarget};

use crate::lab::{Controller, Lab, RBD};

const AAA: &[&str] = &["A", "A", "A"];

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

#[test]
fn s01_a_chain_deeper_than_the_limit_is_not_refused() {
    let lab = chain(Lab::new());
    lab.clone("C", "D");
    lab.make(&lab.wish("E").of("D").depth(1));
    lab.assert_holds(RBD, "E", AAA);
}

#[test]
fn s02_a_chain_deeper_than_the_limit_does_not_grow() {
    let lab = chain(Lab::new());
    lab.clone("C", "D");
    lab.make(&lab.wish("E").of("D").depth(2).flatten(FlattenTarget::Clone));
    assert!(lab.picture().ends_with(" ; E"), "{}", lab.picture());
    lab.make(&lab.wish("F").of("D").depth(2).flatten(FlattenTarget::Source));
    assert!(
        lab.picture().ends_with("; D [F.clone_snap] ; E ; F <- D@F.clone_snap"),
        "{}",
        lab.picture()
    );
}

#[test]
fn s03_the_limit_of_one_class_is_not_the_limit_of_another() {
    let lab = chain(Lab::new());
    lab.make(&lab.wish("D").of("C").depth(5));
    lab.make(&lab.wish("E").of("C").depth(2).flatten(FlattenTarget::Clone));
    assert!(
        lab.picture().ends_with("; C [D.clone_snap] <- B@C.clone_snap ; D <- C@D.clone_snap ; E")
    );
}

#[test]
fn s04_a_source_with_snapshots_does_not_fail_its_first_clone_at_the_limit() {
    for kind in [Lab::format_1, Lab::new, shallow] {
        let lab = chain(kind());
        lab.snapshot("B", "s");
        lab.make(&lab.wish("D").of("B").depth(1).flatten(FlattenTarget::Source));
        lab.assert_at_rest();
        lab.assert_holds(RBD, "D", AAA);
    }
}

#[test]
fn s04_an_attached_source_is_not_flattened_by_default() {
    let lab = chain(Lab::new());
    lab.controller.publish(RBD, "C", "n").unwrap();
    lab.make(&lab.wish("D").of("C").depth(2));
    assert!(lab.picture().ends_with("; C <- B@C.clone_snap ; D"), "{}", lab.picture());
}

#[test]
fn s05_an_emptied_silent_parent_is_not_left_behind() {
    for kind in [Lab::format_1, Lab::new] {
        let lab = kind();
        lab.create("A");
        lab.clone("A", "B");
        lab.delete("A");
        lab.make(&lab.wish("C").of("B").depth(1).flatten(FlattenTarget::Source));
        assert_eq!(
            lab.picture().replace('*', ""),
            "B [C.clone_snap] ; C <- B@C.clone_snap",
            "A.deleted went with its last clone's link"
        );
        lab.assert_at_rest();
    }
}

/// Runs `act` on one controller again and again, each time on a new cluster, with `meanwhile` run
/// by another controller before one of its calls.
fn interleaved(before: fn() -> Lab, act: impl Fn(&Lab, &Controller), meanwhile: fn(&Controller)) {
    for call in 1.. {
        let lab = before();
        let controller = Controller::new(&lab.model);
        let other = Controller::new(&lab.model);
        let met = Arc::new(Mutex::new(false));
        controller.session.on_call({
            let met = met.clone();
            move |info| {
                if info.number == call {
                    *met.lock().unwrap() = true;
                    meanwhile(&other);
                }
            }
        });
        act(&lab, &controller);
        if !*met.lock().unwrap() {
            assert!(call > 1, "it makes no calls");
            return;
        }
        lab.controller.recover().unwrap();
        lab.assert_at_rest();
    }
}

#[test]
fn s06_two_clones_at_the_limit_do_not_break_each_other() {
    let wish =
        |name: &str| crate::lab::Wish::new(name).of("B").depth(1).flatten(FlattenTarget::Source);
    interleaved(
        || chain(Lab::new()),
        |lab, controller| {
            controller.create(&wish("D")).or_else(|_| controller.create(&wish("D"))).unwrap();
            let picture = lab.picture();
            if picture.contains("E <-") {
                lab.assert_holds(RBD, "E", AAA);
            }
            lab.assert_holds(RBD, "D", AAA);
            assert!(picture.starts_with("A ; B ["), "{picture}");
        },
        |other| {
            let wish = crate::lab::Wish::new("E").of("B").depth(1).flatten(FlattenTarget::Source);
            other.create(&wish).unwrap();
        },
    );
}

#[test]
fn s07_zero_does_not_mean_without_limit() {
    let lab = chain(Lab::new());
    lab.make(&lab.wish("D").of("C").depth(0));
    assert!(lab.picture().ends_with("; C <- B@C.clone_snap ; D"), "{}", lab.picture());
}

#[test]
fn s08_a_failed_protect_does_not_leak_the_snapshot() {
    for errno in [Errno::EIO, Errno::EPERM] {
        let lab = Lab::format_1();
        lab.create("A");
        let fail = |ask: &dyn Fn(&Controller) -> cinderblock::volume::Result<()>| {
            let controller = Controller::new(&lab.model);
            let session = controller.session.clone();
            controller.session.on_call(move |call| {
                if call.method == "protect_snapshot" {
                    session.inject(call.number, Fault::Fail(errno));
                }
            });
            ask(&controller).unwrap_err();
            if errno == Errno::EPERM {
                assert_eq!(lab.picture(), "A", "a final answer leaves nothing");
                lab.assert_at_rest();
            }
        };
        fail(&|controller| controller.snapshot(RBD, "A", "s", 450).map(drop));
        fail(&|controller| controller.create(&lab.wish("B").of("A")).map(drop));
        lab.snapshot("A", "s");
        lab.clone("A", "B");
        assert_eq!(lab.picture(), "A [s*, B.clone_snap*] ; B <- A@B.clone_snap");
        lab.assert_at_rest();
    }
}

#[test]
fn s09_an_operation_that_fails_does_not_leave_an_image_open() {
    for call in 1..40 {
        let lab = chain(Lab::new());
        let controller = Controller::new(&lab.model);
        controller.session.inject(call, Fault::Fail(Errno::EIO));
        let _failed = controller.create(&lab.wish("D").of("C").depth(2));
        let _failed = controller.delete(RBD, "B");
        let graph = lab.graph();
        let watched: Vec<_> =
            graph.images().filter(|(_, _, _, image)| !image.watchers.is_empty()).collect();
        assert!(watched.is_empty(), "call {call}: {watched:?}");
    }
}

#[test]
fn s10_a_larger_clone_is_not_left_at_the_size_of_its_source() {
    let lab = Lab::new();
    lab.create("A");
    let s = lab.snapshot("A", "s");
    for (name, wish) in [
        ("B", lab.wish("B").of("A")),
        ("C", lab.wish("C").of_snapshot(&s)),
        ("D", lab.wish("D").of("A").depth(0)),
    ] {
        let record = lab.make(&wish.blocks(5));
        assert_eq!(record.size, 5 * crate::lab::BLOCK);
        lab.assert_holds(RBD, name, &["A", "A", "A", "", ""]);
    }
    lab.assert_at_rest();
}

#[test]
fn s11_a_flatten_does_not_stop_other_work() {
    let lab = chain(Lab::new());
    let controller = Controller::new(&lab.model);
    let other = Controller::new(&lab.model);
    controller.session.on_call(move |call| {
        if call.method == "flatten" {
            other.snapshot(RBD, "C", "s", 450).unwrap();
            other.create(&crate::lab::Wish::new("E").of("C")).unwrap();
            other.grow(RBD, "A", 9).unwrap();
            other.delete(RBD, "B").unwrap();
        }
    });
    controller.create(&lab.wish("D").of("C").depth(2).flatten(FlattenTarget::Clone)).unwrap();
    lab.assert_at_rest();
    lab.assert_holds(RBD, "D", AAA);
    lab.assert_holds(RBD, "E", AAA);
}

#[test]
fn s12_a_chain_below_the_limit_is_not_flattened() {
    let lab = chain(Lab::new());
    lab.clone("C", "D");
    let flattened = lab.controller.session.log().iter().any(|call| call.info.method == "flatten");
    assert!(!flattened);
}

#[test]
fn s13_the_links_of_later_snapshots_are_not_overlooked() {
    for kind in [Lab::format_1, Lab::new, shallow] {
        for order in [["A", "B", "C", "D"], ["A", "B", "D", "C"], ["D", "C", "B", "A"]] {
            let lab = chain(kind());
            lab.flatten_outside("B");
            lab.clone("B", "D");
            for name in order {
                lab.delete(name);
            }
            lab.assert_empty();
        }
    }
}

#[test]
fn s14_a_snapshot_that_holds_the_last_link_does_not_take_the_knowledge_of_it_along() {
    for kind in [Lab::format_1, Lab::new, shallow] {
        for backup in [true, false] {
            let lab = kind();
            lab.create("A");
            lab.clone("A", "B");
            let s = if backup {
                lab.open(RBD, "B").create_snapshot("backup.1.snap.1").unwrap();
                None
            } else {
                Some(lab.snapshot("B", "s"))
            };
            lab.flatten_outside("B");
            lab.delete("B");
            if let Some(s) = s {
                lab.delete_snapshot(&s);
            }
            lab.delete("A");
            lab.assert_empty();
        }
    }
}

#[test]
fn s15_a_renamed_child_does_not_leak_its_parent() {
    let lab = Lab::new();
    lab.create("A");
    lab.clone("A", "B");
    lab.pool(RBD).rename_image("B", "renamed").unwrap();
    lab.delete("A");
    let error = lab.refused(|controller| controller.delete(RBD, "B"));
    assert!(error.to_string().contains("rbd rename rbd/renamed rbd/B"), "{error}");
    assert_eq!(lab.picture(), "A.deleted [B.clone_snap] ; renamed <- A.deleted@B.clone_snap");
    lab.assert_holds(RBD, "renamed", AAA);
    lab.pool(RBD).remove_image("renamed").unwrap();
    lab.delete("B");
    lab.controller.recover().unwrap();
    lab.assert_empty();
}

/// The last delete of A, B, C, killed before and inside each of its steps: what is there, and what
/// must come of it.
#[test]
fn s16_a_kill_between_child_and_parent_does_not_leak_the_parent() {
    let table = [
        (
            "remove_image rbd/C",
            None,
            "A.deleted [B.clone_snap*] ; B.deleted [C.clone_snap*] <- A.deleted@B.clone_snap ; \
          C <- B.deleted@C.clone_snap",
        ),
        (
            "remove_image rbd/C",
            Some(3),
            "A.deleted [B.clone_snap*] ; \
          B.deleted [C.clone_snap*] <- A.deleted@B.clone_snap ; C! <- B.deleted@C.clone_snap",
        ),
        (
            "unprotect_snapshot rbd/{B}@C.clone_snap",
            None,
            "A.deleted [B.clone_snap*] ; \
          B.deleted [C.clone_snap*] <- A.deleted@B.clone_snap",
        ),
        (
            "remove_snapshot_by_id rbd/{B}@2",
            None,
            "A.deleted [B.clone_snap*] ; \
          B.deleted [C.clone_snap] <- A.deleted@B.clone_snap",
        ),
        (
            "remove_image rbd/B.deleted",
            None,
            "A.deleted [B.clone_snap*] ; B.deleted <- A.deleted@B.clone_snap",
        ),
        ("remove_snapshot_by_id rbd/{A}@1", None, "A.deleted [B.clone_snap]"),
        ("remove_image rbd/A.deleted", None, "A.deleted"),
    ];
    for (killed, step, there) in table {
        for start in [true, false] {
            let lab = chain(Lab::format_1());
            let ids = lab.graph().pools[&("rbd".to_owned(), String::new())].names.clone();
            let killed = killed.replace("{A}", &ids["A"]).replace("{B}", &ids["B"]);
            lab.delete("A");
            lab.delete("B");
            let victim = Controller::new(&lab.model);
            let session = victim.session.clone();
            let wanted = killed.clone();
            victim.session.on_call(move |call| {
                if format!("{} {}", call.method, call.object) == wanted {
                    session
                        .inject(call.number, step.map_or(Fault::CrashBefore, Fault::CrashInside));
                }
            });
            let _killed = victim.delete(RBD, "C");
            assert!(victim.session.is_dead(), "{killed} never came:\n{:#?}", victim.session.log());
            assert_eq!(lab.picture(), there, "killed before {killed}");
            let next = Controller::new(&lab.model);
            if !start {
                next.delete(RBD, "C").unwrap();
            }
            next.recover().unwrap();
            lab.assert_empty();
        }
    }
}

fn siblings(lab: Lab) -> Lab {
    lab.create("A");
    lab.clone("A", "B");
    lab.clone("A", "C");
    lab.delete("A");
    lab
}

#[test]
fn s17_siblings_deleted_at_the_same_time_do_not_fail_each_other() {
    for before in [|| siblings(Lab::format_1()), || siblings(Lab::new())] {
        interleaved(
            before,
            |_, controller| controller.delete(RBD, "B").unwrap(),
            |other| other.delete(RBD, "C").unwrap(),
        );
    }
}

#[test]
fn s18_the_kernels_limit_of_snapshots_is_not_passed() {
    for kind in [Lab::format_1, Lab::new] {
        let lab = kind();
        lab.create("A");
        for number in 0..12 {
            let name = format!("clone-{number}");
            lab.make(&lab.wish(&name).of("A").max_snapshots(4));
            let graph = lab.graph();
            let snapshots = graph.images().map(|(_, _, _, image)| image.snapshots.len()).max();
            assert!(snapshots <= Some(4), "{graph}");
            lab.assert_holds(RBD, &name, AAA);
        }
        lab.assert_at_rest();
    }
}

#[test]
fn d01_a_volume_with_a_users_snapshot_is_not_lost_behind_an_older_clone() {
    for kind in [Lab::format_1, Lab::new] {
        let lab = kind();
        lab.create("A");
        lab.clone("A", "B");
        let s = lab.snapshot("A", "s");
        lab.delete("A");
        lab.restore(&s, "C");
        lab.delete("C");
        lab.delete("B");
        lab.delete_snapshot(&s);
        lab.assert_empty();
    }
}

#[test]
fn d02_a_refused_delete_does_not_lose_the_backup_snapshots() {
    let lab = Lab::new();
    lab.create("A");
    lab.open(RBD, "A").create_snapshot("backup.1.snap.1").unwrap();
    lab.controller.publish(RBD, "A", "n").unwrap();
    lab.refused(|controller| controller.delete(RBD, "A"));
    assert_eq!(lab.picture(), "A [backup.1.snap.1]");
    lab.controller.unpublish(RBD, "A").unwrap();
    lab.delete("A");
    lab.assert_empty();
}

#[test]
fn d03_a_failed_delete_does_not_leave_an_image_open() {
    for call in 1..30 {
        let lab = chain(Lab::new());
        lab.open(RBD, "C").create_snapshot("backup.1.snap.1").unwrap();
        let controller = Controller::new(&lab.model);
        controller.session.inject(call, Fault::Fail(Errno::EIO));
        let _failed = controller.delete(RBD, "C");
        let graph = lab.graph();
        assert!(
            graph.images().all(|(_, _, _, image)| image.watchers.is_empty()),
            "call {call}\n{graph}"
        );
    }
}

#[test]
fn d04_an_image_that_is_gone_already_is_not_an_error() {
    let lab = chain(Lab::format_1());
    lab.pool(RBD).remove_image("C").unwrap();
    lab.delete("C");
    lab.delete("C");
    lab.assert_at_rest();
    assert_eq!(lab.picture(), "A [B.clone_snap*] ; B <- A@B.clone_snap");
}

#[test]
fn d05_the_watch_of_a_dead_client_is_not_for_ever() {
    let lab = Lab::new();
    lab.create("A");
    let client = lab.model.connect();
    client.linger();
    let pool = client.cluster().pool("rbd", "").unwrap();
    let open = pool.open_image(ImageKey::Name("A"), OpenMode::ReadWrite).unwrap();
    client.crash();
    drop(open);
    let error = lab.refused(|controller| controller.delete(RBD, "A"));
    let address = "192.0.2.3:0/3";
    assert!(matches!(&error, Error::InUse(why) if why.contains(address)), "{error:?}");
    lab.model.expire_watchers(&client);
    lab.delete("A");
    lab.assert_empty();
}

#[test]
fn d06_a_snapshot_that_comes_meanwhile_is_not_an_error() {
    let lab = Lab::new();
    lab.create("A");
    let controller = Controller::new(&lab.model);
    let image = lab.pool(RBD);
    controller.session.on_call(move |call| {
        if call.method == "remove_image" {
            let open = image.open_image(ImageKey::Name("A"), OpenMode::ReadWrite).unwrap();
            open.create_snapshot("late").unwrap();
        }
    });
    controller.delete(RBD, "A").unwrap();
    assert_eq!(lab.picture(), "A.deleted [late]");
}

#[test]
fn d06_clones_of_a_parked_snapshot_do_not_block_the_delete() {
    let lab = Lab::new();
    lab.create("A");
    let s = lab.snapshot("A", "s");
    lab.restore(&s, "B");
    lab.delete_snapshot(&s);
    lab.delete("A");
    assert_eq!(lab.picture(), "A.deleted [s.deleted] ; B <- A.deleted@s.deleted");
    lab.assert_at_rest();
    lab.delete("B");
    lab.assert_empty();
}

#[test]
fn d07_a_half_deleted_snapshot_is_not_stuck() {
    for removed_outside in [true, false] {
        let lab = Lab::format_1();
        lab.create("A");
        let s = lab.snapshot("A", "s");
        let image = lab.open(RBD, "A");
        image.unprotect_snapshot("s").unwrap();
        if removed_outside {
            image.remove_snapshot("s").unwrap();
        }
        drop(image);
        lab.delete_snapshot(&s);
        lab.delete_snapshot(&s);
        assert_eq!(lab.picture(), "A");
        lab.assert_at_rest();
    }
}

#[test]
fn d07_a_snapshot_of_an_image_that_is_gone_is_not_stuck() {
    let lab = Lab::new();
    lab.create("A");
    let s = lab.snapshot("A", "s");
    lab.open(RBD, "A").remove_snapshot("s").unwrap();
    lab.pool(RBD).remove_image("A").unwrap();
    lab.delete_snapshot(&s);
    lab.delete("A");
    lab.assert_empty();
}

#[test]
fn d08_a_silent_parent_of_the_same_name_is_not_in_the_way() {
    let lab = Lab::new();
    for name in ["B", "C", "D"] {
        lab.create("A");
        lab.clone("A", name);
        lab.delete("A");
        lab.assert_at_rest();
    }
    for name in ["C", "B", "D"] {
        lab.delete(name);
        lab.assert_at_rest();
    }
    lab.assert_empty();
}

#[test]
fn d09_a_mapped_volume_with_clones_is_not_deleted() {
    let lab = chain(Lab::new());
    let held = lab.open(RBD, "B");
    let error = lab.refused(|controller| controller.delete(RBD, "B"));
    assert!(matches!(error, Error::InUse(_)), "{error:?}");
    drop(held);
    lab.delete("B");
}

#[test]
fn d10_an_interrupted_removal_is_not_taken_for_done() {
    for step in 1..8 {
        for by_hand in [true, false] {
            let lab = chain(Lab::format_1());
            if by_hand {
                let admin = lab.model.connect();
                let pool = admin.cluster().pool("rbd", "").unwrap();
                admin.inject(admin.calls() + 1, Fault::CrashInside(step));
                let _killed = pool.remove_image("C");
            } else {
                let victim = Controller::new(&lab.model);
                let session = victim.session.clone();
                victim.session.on_call(move |call| {
                    if call.method == "remove_image" {
                        session.inject(call.number, Fault::CrashInside(step));
                    }
                });
                let _killed = victim.delete(RBD, "C");
            }
            lab.delete("C");
            assert_eq!(lab.picture(), "A [B.clone_snap*] ; B <- A@B.clone_snap", "step {step}");
            lab.assert_at_rest();
            lab.create("C");
        }
    }
}

#[test]
fn d11_a_parked_snapshot_is_not_taken_for_a_users() {
    let lab = Lab::new();
    let wish = lab.wish("A");
    lab.make(&crate::lab::Wish {
        delete_with_snapshots: cinderblock::volume::DeleteWithSnapshots::Refuse,
        ..wish
    });
    let s = lab.snapshot("A", "s");
    lab.restore(&s, "B");
    lab.delete_snapshot(&s);
    lab.delete("A");
    assert_eq!(lab.picture(), "A.deleted [s.deleted] ; B <- A.deleted@s.deleted");
    lab.assert_at_rest();
}

/// librbd takes a clone off its parent's list before it cuts the link: a flatten killed in between
/// leaves a clone that needs a parent which seems to have none.
#[test]
fn a_flatten_killed_between_its_two_ends_does_not_lose_the_parent() {
    for (format, next) in
        [(CloneFormat::V1, "recover"), (CloneFormat::V2, "delete"), (CloneFormat::V2, "clone")]
    {
        for step in 1..8 {
            let mut lab = Lab::new();
            lab.plain.format = format;
            let lab = chain(lab);
            let victim = Controller::new(&lab.model);
            let session = victim.session.clone();
            victim.session.on_call(move |call| {
                if call.method == "flatten" {
                    session.inject(call.number, Fault::CrashInside(step));
                }
            });
            let wish = lab.wish("D").of("B").depth(1).flatten(FlattenTarget::Source);
            let _killed = victim.create(&wish);
            match next {
                "recover" => lab.controller.recover().unwrap(),
                "delete" => lab.delete("A"),
                _ => lab.clone("A", "E"),
            }
            lab.assert_holds(RBD, "B", AAA);
            lab.assert_holds(RBD, "C", AAA);
            lab.make(&wish);
            lab.assert_holds(RBD, "D", AAA);
        }
    }
}
