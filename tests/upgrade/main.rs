//! A cluster in mid-upgrade: daemons go one by one from Ceph 16 to 18 to 20 while a driver works.
//! Nothing is lost, no answer is wrong, nothing is left.
//!
//! Callers create, write, snapshot, restore, clone, expand, delete and list. They work while a
//! daemon is replaced, and go on for [`CALLS`] calls each on the mixture of releases that there is
//! then. After each step they stand still. All bytes are read back, and the driver and a new one
//! list exactly what the callers hold. A volume that is open the whole time is written to as by a
//! pod.
//!
//! `UPGRADE_SEED` says which numbers are drawn; the seed is printed. tests/upgrade.sh runs this.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(unreachable_pub, reason = "a test has no outside")]
#![allow(clippy::print_stdout, reason = "a report")]

#[path = "../common/mod.rs"]
mod common;

mod caller;
mod pod;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use cinderblock::csi::proto::{Snapshot, Volume};
use cinderblock::rbd::ceph::{ConnectOptions, Timeouts, connect, libraries};
use tokio::task::{JoinSet, block_in_place};

use caller::Caller;
use common::driver::{Class, Driver, lab_config_with_own_user};
use common::random::Random;
use common::{Namespace, OwnLab, PATIENCE};
use pod::Pod;

/// Callers at once.
const CALLERS: u64 = 4;

/// Calls of each caller on each mixture of releases.
const CALLS: u32 = 12;

/// Operators take this order.
const STEPS: [(&str, &str); 6] =
    [("mon", "18"), ("mgr", "18"), ("osd", "18"), ("mon", "20"), ("mgr", "20"), ("osd", "20")];

/// The daemon that is dead for as long as it takes until calls are refused, as with a host that is
/// made anew. The others are stopped in order.
const THAT_DIES: (&str, &str) = ("osd", "20");

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_while_daemons_go_from_16_to_18_to_20() {
    let seed = std::env::var("UPGRADE_SEED")
        .map_or_else(|_| Random::seed_of_now(), |seed| seed.parse().unwrap());
    println!("upgrade: UPGRADE_SEED={seed}, librbd {}", libraries().ceph);

    let lab = OwnLab::up_with(&["--objectstore", "bluestore", "--monitor-round", "0.05"]);
    let namespace = Namespace::new(&lab);
    let config = lab_config_with_own_user(&lab, &namespace.name);
    let driver = Driver::start(&config, &["--role", "controller"]);
    let controller = driver.controller().await;
    let class = Class::new(&lab, &namespace.name).with("objectSize", "1048576");
    // Nothing that writes for a pod gives up while an OSD is away.
    let patient = Timeouts { connect: PATIENCE, monitor: PATIENCE, osd: PATIENCE };
    let cluster = connect(&ConnectOptions { timeouts: patient, ..lab.options() }).unwrap();
    let pool = namespace.pool(&*cluster);

    let caller = |number| {
        let random = Random::new(seed ^ (number << 32));
        Caller::new(number, random, controller.clone(), class.clone(), pool.clone())
    };
    let mut first = caller(0);
    let origin = first.make_origin().await;
    let pod = Pod::start(&*pool, &first.create(None).await);
    let mut callers: Vec<_> =
        (1..=CALLERS).map(|number| caller(number).with_origin(&origin)).collect();

    println!(
        "| to | seconds | calls | told to ask again | longest call | longest write of a pod |"
    );
    for (daemon, release) in STEPS {
        let over = Arc::new(AtomicBool::new(false));
        let mut working = JoinSet::new();
        for caller in callers.drain(..) {
            working.spawn(caller.work(over.clone(), CALLS));
        }
        let began = Instant::now();
        if (daemon, release) == THAT_DIES {
            block_in_place(|| lab.daemon("kill", daemon));
            let request = first.ask_in_vain().await;
            block_in_place(|| lab.upgrade(daemon, release));
            first.make(request, vec![0]).await;
        } else {
            block_in_place(|| lab.upgrade(daemon, release));
        }
        let took = began.elapsed().as_secs_f64();
        over.store(true, Ordering::Relaxed);
        callers = working.join_all().await;

        let mut tally = std::mem::take(&mut first.tally);
        for caller in &mut callers {
            tally.add(std::mem::take(&mut caller.tally));
        }
        println!(
            "| {daemon} {release} | {took:.1} | {tally} | {:.1} |",
            pod.longest().as_secs_f64()
        );
        block_in_place(|| callers.iter().for_each(Caller::assert_bytes));
        let fresh = Driver::start(&config, &["--role", "controller"]);
        for driver in [&driver, &fresh] {
            assert_lists(driver, callers.iter().chain([&first])).await;
        }
        fresh.stop();
    }

    pod.stop();
    callers.push(first);
    block_in_place(|| callers.iter().for_each(Caller::assert_bytes));
    for caller in &mut callers {
        caller.delete_everything().await;
    }
    assert_lists(&driver, callers.iter()).await;
    drop((callers, controller));
    driver.stop();
    namespace.assert_nothing_is_left();
}

/// The driver lists what the callers hold, and no more.
async fn assert_lists(driver: &Driver, callers: impl Iterator<Item = &Caller> + Clone) {
    let volumes: Volumes = callers.clone().flat_map(Caller::volumes).collect();
    let snapshots: Snapshots = callers.clone().flat_map(Caller::snapshots).collect();
    let mut asking = callers.last().unwrap().through(driver.controller().await);
    assert_eq!(asking.list_volumes().await, volumes);
    assert_eq!(asking.list_snapshots().await, snapshots);
}

/// What lists say of volumes and snapshots, by their ids.
type Volumes = BTreeMap<String, Volume>;
type Snapshots = BTreeMap<String, Snapshot>;
