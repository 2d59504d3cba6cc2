//! Killed inside librbd's calls.
//!
//! The OSD is made slow, so that an RPC takes long and that time is spread over its RADOS
//! operations; its driver gets SIGKILL at evenly spaced times. librbd dies between any two of its
//! writes and leaves half of what it was making: names without an image, images without a parent,
//! children their parent does not know of, removals in progress.

use std::collections::BTreeMap;
use std::time::Instant;

use cinderblock::rbd::{Errno, ImageKey, OpenMode, Pool};

use crate::lab::{SharedLab, SlowOsd};
use crate::rpc::Rpc;
use crate::scenario::{Aftermath, FORMAT_1, FORMAT_2, Parameters, Prepare, Scenario, is_long};
use crate::tenant::Tenant;

static LAB: SharedLab = SharedLab::new();

/// Cuts the RPC that `prepare` gives into slices and kills a driver in the middle of each.
fn sweep(what: &str, parameters: Parameters<'_>, prepare: Prepare) {
    let lab = LAB.get();
    let scenario = Scenario::new(what, &lab, parameters, prepare);
    let aftermath = |slice| Aftermath::ALL[slice as usize % Aftermath::ALL.len()];
    cut(&scenario, if is_long() { 60 } else { 5 }, aftermath, |_| {});
}

/// Kills a driver in the middle of each of so many slices. `look` sees what is left before another
/// driver goes on.
fn cut(
    scenario: &Scenario<'_>,
    slices: u32,
    aftermath: impl Fn(u32) -> Aftermath,
    mut look: impl FnMut(&Tenant<'_>),
) {
    let started = Instant::now();
    let mut tenant = scenario.tenant();
    let rpc = scenario.set_up(&mut tenant);
    let mut driver = tenant.driver(&[]);
    let slow = SlowOsd::new(tenant.pool());
    let asked = Instant::now();
    driver.ask(&rpc).unwrap();
    let duration = asked.elapsed();
    drop((slow, driver));
    scenario.settle(&mut tenant, &rpc, Aftermath::Retry, true);

    let mut kills = 0;
    for slice in 0..slices {
        let rpc = scenario.set_up(&mut tenant);
        let mut victim = tenant.driver(&[]);
        let slow = SlowOsd::new(tenant.pool());
        let answer = victim.ask_for(&rpc, duration * (2 * slice + 1) / (2 * slices));
        victim.driver.kill();
        kills += u32::from(answer.is_none());
        drop(slow);
        look(&tenant);
        let _context = Context { what: scenario.what, slice, slices };
        scenario.settle(&mut tenant, &rpc, aftermath(slice), slice.is_multiple_of(2));
    }
    tenant.end();
    scenario.report(&format!(
        "{slices} slices of {:.1} s, {kills} drivers killed, {:.1} s",
        duration.as_secs_f64(),
        started.elapsed().as_secs_f64()
    ));
}

/// Says where a sweep failed.
struct Context<'a> {
    what: &'a str,
    slice: u32,
    slices: u32,
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}: killed in slice {} of {}", self.what, self.slice, self.slices);
        }
    }
}

/// In both formats, or in the usual one when time is short.
fn sweep_lineage(what: &str, parameters: Parameters<'_>, prepare: Prepare) {
    let formats = if is_long() { &[FORMAT_2, FORMAT_1][..] } else { &[FORMAT_2] };
    for &format in formats {
        sweep(what, &[&[format], parameters].concat(), prepare);
    }
}

fn restore(tenant: &mut Tenant<'_>) -> Rpc {
    tenant.have_volume("a");
    tenant.have_snapshot("s", "a");
    tenant.restore("b", "s")
}

/// What a killed restore left under the volume's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Left {
    Nothing,
    AName,
    AnImageWithoutItsParent,
    AClone,
}

impl Left {
    fn of(pool: &dyn Pool) -> Left {
        match pool.open_image(ImageKey::Name("csi-b"), OpenMode::ReadOnly) {
            Ok(image) if image.parent(None).unwrap().is_some() => Left::AClone,
            Ok(_) => Left::AnImageWithoutItsParent,
            Err(error) => {
                assert_eq!(error.errno, Errno::ENOENT, "{error}");
                if pool.image_id("csi-b").unwrap().is_some() { Left::AName } else { Left::Nothing }
            }
        }
    }
}

/// librbd's clone makes the image first and hangs it on its parent later. In between it opens, has
/// the right size, and reads as zeros.
#[test]
fn a_restore_killed_inside_the_clone_call_never_hands_out_an_image_of_zeros() {
    let lab = LAB.get();
    let scenario = Scenario::new("CreateVolume from a snapshot", &lab, &[FORMAT_2], restore);
    let mut left = BTreeMap::new();
    // Other numbers of slices kill at other times.
    for slices in 11..20 {
        let look = |tenant: &Tenant<'_>| *left.entry(Left::of(tenant.pool())).or_insert(0) += 1;
        cut(&scenario, slices, |_| Aftermath::Retry, look);
        if left.contains_key(&Left::AnImageWithoutItsParent) {
            scenario.report(&format!("left behind: {left:?}"));
            return;
        }
    }
    panic!("nothing is proved: no kill left an image without its parent, but {left:?}");
}

#[test]
fn restore_in_format_1() {
    sweep("CreateVolume from a snapshot", &[FORMAT_1], restore);
}

#[test]
fn restore_and_flatten() {
    sweep_lineage(
        "CreateVolume from a snapshot, flattened",
        &[("flattenOnRestore", "true")],
        restore,
    );
}

#[test]
fn create_an_empty_volume() {
    sweep("CreateVolume, empty", &[FORMAT_2], |tenant| tenant.create("a"));
}

#[test]
fn create_from_a_volume() {
    sweep_lineage("CreateVolume from a volume", &[], |tenant| {
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
fn delete_the_last_clone_of_a_silent_parent() {
    sweep_lineage("DeleteVolume, last of a silent parent", &[], |tenant| {
        tenant.have_volume("a");
        tenant.have_clone("b", "a");
        tenant.have_deleted("a");
        tenant.delete("b")
    });
}

#[test]
fn create_from_a_golden_image() {
    sweep_lineage("CreateVolume from a golden image", &[], |tenant| {
        tenant.have_golden();
        tenant.of_golden("b")
    });
}

#[test]
fn create_a_snapshot() {
    // This format's has one step more.
    sweep("CreateSnapshot", &[FORMAT_1], |tenant| {
        tenant.have_volume("a");
        tenant.create_snapshot("s", "a")
    });
}

#[test]
fn delete_a_snapshot_with_a_clone() {
    sweep("DeleteSnapshot with a clone", &[FORMAT_2], |tenant| {
        tenant.have_volume("a");
        tenant.have_snapshot("s", "a");
        tenant.have_restore("b", "s");
        tenant.delete_snapshot("s")
    });
}
