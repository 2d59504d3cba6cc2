//! Killed between any two calls into Ceph.
//!
//! For every point the namespace gets the same volumes, a driver gets the RPC and dies after its
//! n-th call that changes something, and another driver is asked to go on. What it is asked changes
//! from point to point: the same RPC, once the dead driver's watches are gone or at once, or after
//! `cinderblock gc` has settled what it found; and at some the opposite RPC.

use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::lab::SharedLab;
use crate::scenario::{Aftermath, FORMAT_1, FORMAT_2, Parameters, Prepare, Scenario, is_long};
use crate::tenant::Tenant;

static LAB: SharedLab = SharedLab::new();

/// Namespaces that are swept at the same time: much of the time is spent waiting for Ceph.
const WORKERS: usize = 2;

/// Kills a driver at every point of the RPC that `prepare` gives, with volumes of these parameters.
fn sweep(what: &str, parameters: Parameters<'_>, prepare: Prepare) {
    sweep_by(1, what, parameters, prepare);
}

/// The same at the first point and at every `step`-th after it.
fn sweep_by(step: u64, what: &str, parameters: Parameters<'_>, prepare: Prepare) {
    let lab = LAB.get();
    let started = Instant::now();
    let scenario = Scenario::new(what, &lab, parameters, prepare);
    let (next, end, kills) = (AtomicU64::new(1), AtomicU64::new(u64::MAX), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                let mut tenant = scenario.tenant();
                loop {
                    let number = next.fetch_add(step, Ordering::SeqCst);
                    for aftermath in aftermaths(number) {
                        if number >= end.load(Ordering::SeqCst) {
                            return tenant.end();
                        }
                        if point(&scenario, &mut tenant, number, aftermath) {
                            kills.fetch_add(1, Ordering::SeqCst);
                        } else {
                            end.fetch_min(number, Ordering::SeqCst);
                        }
                    }
                }
            });
        }
    });
    let (points, kills) = (end.into_inner() - 1, kills.into_inner());
    assert!(
        kills > 0,
        "no driver was killed: was it built with debug assertions? See src/rbd/kill.rs"
    );
    let seconds = started.elapsed().as_secs_f64();
    scenario.report(&format!("{points} points, {kills} drivers killed, {seconds:.1} s"));
}

fn aftermaths(number: u64) -> Vec<Aftermath> {
    use Aftermath::{Abandoned, Opposite, Retry, RetryAtOnce};
    match number % 6 {
        _ if is_long() => Aftermath::ALL.to_vec(),
        1 => vec![Retry, Opposite],
        3 => vec![Abandoned],
        5 => vec![RetryAtOnce],
        _ => vec![Retry],
    }
}

/// One driver's life and death, and what comes after. Says whether it was killed.
fn point(
    scenario: &Scenario<'_>,
    tenant: &mut Tenant<'_>,
    number: u64,
    aftermath: Aftermath,
) -> bool {
    let _context = Context { what: scenario.what, number, aftermath };
    let rpc = scenario.set_up(tenant);
    let plan = format!("{}:{number}", if is_long() { "call" } else { "change" });
    let mut victim = tenant.driver(&[("CINDERBLOCK_KILL_AT", &plan)]);
    let answer = victim.ask(&rpc);
    let killed = answer.is_err() || tenant.settled_or_dead(&mut victim.driver);
    if killed {
        let ended = victim.driver.wait();
        assert_eq!(ended.signal(), Some(9), "{answer:?}: {}", victim.driver.log());
    }
    drop(victim);
    scenario.settle(tenant, &rpc, aftermath, number.is_multiple_of(2));
    killed
}

/// Says where a sweep failed.
struct Context<'a> {
    what: &'a str,
    number: u64,
    aftermath: Aftermath,
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}: killed at {}, then {:?}", self.what, self.number, self.aftermath);
        }
    }
}

/// In both formats; in the older one at every second point when time is short.
fn sweep_lineage(what: &str, parameters: Parameters<'_>, prepare: Prepare) {
    sweep(what, &[&[FORMAT_2], parameters].concat(), prepare);
    let step = if is_long() { 1 } else { 2 };
    sweep_by(step, what, &[&[FORMAT_1], parameters].concat(), prepare);
}

#[test]
fn create_an_empty_volume() {
    sweep("CreateVolume, empty", &[FORMAT_2], |tenant| tenant.create("a"));
}

#[test]
fn create_an_empty_volume_whose_name_is_hashed() {
    sweep("CreateVolume, empty, hashed name", &[FORMAT_2], |tenant| tenant.create("a b"));
}

#[test]
fn create_from_a_volume() {
    sweep_lineage("CreateVolume from a volume", &[], |tenant| {
        tenant.have_volume("a");
        tenant.clone_volume("b", "a")
    });
}

#[test]
fn create_from_a_volume_in_another_namespace() {
    sweep("CreateVolume from a volume in another namespace", &[FORMAT_2], |tenant| {
        tenant.have_volume("a");
        tenant.clone_volume("far-b", "a")
    });
}

#[test]
fn create_a_full_copy_of_a_volume_in_another_namespace() {
    sweep(
        "CreateVolume, full copy from another namespace",
        &[FORMAT_2, ("maxCloneDepth", "0")],
        |tenant| {
            tenant.have_volume("a");
            tenant.clone_volume("far-b", "a")
        },
    );
}

#[test]
fn create_from_a_snapshot() {
    sweep_lineage("CreateVolume from a snapshot", &[], |tenant| {
        tenant.have_volume("a");
        tenant.have_snapshot("s", "a");
        tenant.restore_larger("b", "s")
    });
}

#[test]
fn create_from_a_snapshot_and_flatten() {
    sweep_lineage(
        "CreateVolume from a snapshot, flattened",
        &[("flattenOnRestore", "true")],
        |tenant| {
            tenant.have_volume("a");
            tenant.have_snapshot("s", "a");
            tenant.restore("b", "s")
        },
    );
}

#[test]
fn create_from_a_golden_image() {
    sweep_lineage("CreateVolume from a golden image", &[], |tenant| {
        tenant.have_golden();
        tenant.of_golden("b")
    });
}

#[test]
fn delete_a_clone_of_a_golden_image() {
    sweep("DeleteVolume, a clone of a golden image", &[FORMAT_2], |tenant| {
        tenant.have_golden();
        tenant.have_of_golden("b");
        tenant.delete("b")
    });
}

#[test]
fn create_at_the_depth_limit_and_flatten_a_clone_of_a_golden_image() {
    let parameters = [FORMAT_2, ("maxCloneDepth", "1"), ("flattenTarget", "source")];
    sweep(
        "CreateVolume at the depth limit, from a clone of a golden image",
        &parameters,
        |tenant| {
            tenant.have_golden();
            tenant.have_of_golden("b");
            tenant.clone_larger("c", "b")
        },
    );
}

#[test]
fn create_at_the_depth_limit_and_flatten_the_clone() {
    let parameters = [("maxCloneDepth", "1"), ("flattenTarget", "clone")];
    sweep_lineage("CreateVolume at the depth limit", &parameters, |tenant| {
        tenant.have_volume("a");
        tenant.have_clone("b", "a");
        tenant.clone_volume("c", "b")
    });
}

#[test]
fn create_at_the_depth_limit_and_flatten_the_source() {
    let parameters = [("maxCloneDepth", "1"), ("flattenTarget", "source")];
    sweep_lineage("CreateVolume at the depth limit", &parameters, |tenant| {
        tenant.have_volume("a");
        tenant.have_clone("b", "a");
        tenant.clone_volume("c", "b")
    });
}

#[test]
fn create_a_full_copy() {
    sweep("CreateVolume, full copy", &[FORMAT_2, ("maxCloneDepth", "0")], |tenant| {
        tenant.have_volume("a");
        tenant.clone_volume("b", "a")
    });
}

#[test]
fn delete_a_volume() {
    sweep("DeleteVolume", &[FORMAT_2], |tenant| {
        tenant.have_volume("a");
        tenant.delete("a")
    });
}

#[test]
fn delete_a_volume_with_a_snapshot() {
    sweep_lineage("DeleteVolume with a snapshot, becoming silent", &[], |tenant| {
        tenant.have_volume("a");
        tenant.have_snapshot("s", "a");
        tenant.delete("a")
    });
}

#[test]
fn delete_a_volume_with_a_clone() {
    sweep_lineage("DeleteVolume with a clone, becoming silent", &[], |tenant| {
        tenant.have_volume("a");
        tenant.have_clone("b", "a");
        tenant.delete("a")
    });
}

#[test]
fn delete_the_last_clone_of_two_silent_parents() {
    sweep_lineage("DeleteVolume, last of two silent parents", &[], |tenant| {
        tenant.have_volume("a");
        tenant.have_clone("b", "a");
        tenant.have_clone("c", "b");
        tenant.have_deleted("a");
        tenant.have_deleted("b");
        tenant.delete("c")
    });
}

#[test]
fn delete_the_last_clone_of_a_silent_parent_in_another_namespace() {
    sweep("DeleteVolume, last of a silent parent in another namespace", &[FORMAT_2], |tenant| {
        tenant.have_volume("a");
        tenant.have_clone("far-b", "a");
        tenant.have_deleted("a");
        tenant.delete("far-b")
    });
}

#[test]
fn create_a_snapshot() {
    sweep_lineage("CreateSnapshot", &[], |tenant| {
        tenant.have_volume("a");
        tenant.create_snapshot("s", "a")
    });
}

#[test]
fn delete_a_snapshot() {
    sweep_lineage("DeleteSnapshot", &[], |tenant| {
        tenant.have_volume("a");
        tenant.have_snapshot("s", "a");
        tenant.delete_snapshot("s")
    });
}

#[test]
fn delete_a_snapshot_with_a_clone() {
    sweep_lineage("DeleteSnapshot with a clone", &[], |tenant| {
        tenant.have_volume("a");
        tenant.have_snapshot("s", "a");
        tenant.have_restore("b", "s");
        tenant.delete_snapshot("s")
    });
}

#[test]
fn delete_the_last_snapshot_of_a_silent_parent() {
    sweep_lineage("DeleteSnapshot, last of a silent parent", &[], |tenant| {
        tenant.have_volume("a");
        tenant.have_snapshot("s", "a");
        tenant.have_deleted("a");
        tenant.delete_snapshot("s")
    });
}

#[test]
fn expand_a_volume() {
    sweep("ControllerExpandVolume", &[FORMAT_2], |tenant| {
        tenant.have_volume("a");
        tenant.expand("a")
    });
}

#[test]
fn publish_a_volume() {
    sweep("ControllerPublishVolume", &[FORMAT_2], |tenant| {
        tenant.have_volume("a");
        tenant.publish("a")
    });
}

#[test]
fn unpublish_a_volume() {
    sweep("ControllerUnpublishVolume", &[FORMAT_2], |tenant| {
        tenant.have_volume("a");
        tenant.have_published("a");
        tenant.unpublish("a")
    });
}
