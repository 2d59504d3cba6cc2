//! A snapshot waits for one round of the monitor, which gathers changes for a second before it
//! decides.

use std::time::{Duration, Instant};

use crate::common::OwnLab;
use crate::family::Family;

pub(crate) async fn timed(work: impl Future<Output = ()>) -> Duration {
    let began = Instant::now();
    work.await;
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_snapshots_of_ten_volumes_at_once_take_about_one_monitor_round_and_not_ten() {
    let lab = OwnLab::up_with(&["--monitor-round", "1"]);
    let mut family = Family::new(&lab, "").await;
    let volumes: Vec<String> = (0..10).map(|number| format!("A{number}")).collect();
    for name in volumes.iter().map(String::as_str).chain(["B"]) {
        family.create(name).await;
    }
    // The first comes in the middle of a round; one right after another takes a whole round, unless
    // a busy machine has it come when a round ends.
    family.snapshot("B", "first").await;
    let one = timed(family.snapshot_all(&["B".to_owned()])).await;
    let ten = timed(family.snapshot_all(&volumes)).await;
    println!("one snapshot {one:.2?}, ten at once {ten:.2?}");
    let round = one.max(Duration::from_secs(1));
    assert!(ten < 4 * round, "one snapshot took {one:?}, ten at once {ten:?}");
    family.assert(
        &(0..10)
            .map(|number| format!("A{number} [snap-A{number}]"))
            .chain(["B [snap-first, snap-B]".to_owned()])
            .collect::<Vec<_>>()
            .join(" ; "),
    );
    for name in volumes.iter().map(String::as_str).chain(["B"]) {
        family.delete_snapshot(name).await;
        family.delete(name).await;
    }
    family.delete_snapshot("first").await;
    family.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_of_one_volume_deleted_at_once_are_answered_without_a_monitor_round_and_gone_in_few()
{
    let lab = OwnLab::up();
    let mut family = Family::new(&lab, "").await;
    family.create("golden").await;
    let clones: Vec<String> = (0..100).map(|number| format!("clone-{number:03}")).collect();
    family.clone_all("golden", &clones).await;
    // From here on a round takes as long as in any other cluster.
    lab.run("ceph", &["tell", "mon.*", "config", "set", "paxos_propose_interval", "1"]);
    let (answered, gone) = family.delete_all(&clones).await;
    println!(
        "100 clones deleted: the last was answered after {answered:.2?}, all was gone after {gone:.2?}"
    );
    // One round each would be 100 seconds.
    assert!(answered < Duration::from_secs(30), "answered after {answered:?}");
    assert!(gone < Duration::from_secs(50), "gone after {gone:?}");
    family.assert("golden");
    family.delete("golden").await;
    family.end();
}
