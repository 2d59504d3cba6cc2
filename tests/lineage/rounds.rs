//! A snapshot waits for one round of the monitor, which gathers changes for a second before it decides.

use std::time::{Duration, Instant};

use crate::common::OwnLab;
use crate::family::Family;

async fn time(work: impl Future<Output = ()>) -> Duration {
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
    // The first comes in the middle of a round; one right after another takes a whole round.
    family.snapshot("B", "first").await;
    let one = time(family.snapshot_all(&["B".to_owned()])).await;
    let ten = time(family.snapshot_all(&volumes)).await;
    println!("one snapshot {one:.2?}, ten at once {ten:.2?}");
    assert!(ten < 4 * one, "one snapshot took {one:?}, ten at once {ten:?}");
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
