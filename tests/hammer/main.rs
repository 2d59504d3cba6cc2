//! Two drivers or one, one cluster, 64 clients, ten names: every answer is legal for what went
//! before, and nothing is left.
//!
//! The clients create, clone, restore, delete and look at volumes and snapshots of the same few
//! names; some hang up in the middle, some bring deadlines that no driver can meet. Every few
//! seconds all stand still: what is there is settled and read, byte for byte, and what was answered
//! since is held against the rules in [`history`].
//!
//! Each call goes to the one or the other driver: both work at once, on one catalogue, on the same
//! names. A driver that works alone is never aborted by librbd.
//!
//! `HAMMER_SECONDS` says for how long (20, and half of it with one driver), `HAMMER_SEED` which
//! numbers are drawn; the seed is printed. Which calls meet is the machine's affair, so a seed
//! repeats the calls and not the run. `HAMMER_SECOND` is the program of the second driver, such as
//! an earlier version (`tests/versions.sh`).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(unreachable_pub, reason = "a test has no outside")]
#![allow(clippy::print_stdout, reason = "a report")]

#[path = "../common/mod.rs"]
mod common;

mod clients;
mod field;
mod history;
mod rest;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::random::Random;
use common::{Lab, Namespace};
use field::Field;

/// Clients at once.
const CLIENTS: u64 = 64;
/// How long they work between two rests.
const ROUND: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_of_two_drivers_is_legal_and_nothing_is_left() {
    hammer(2, 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_alone_is_never_aborted() {
    hammer(1, 10).await;
}

/// With so many drivers, for so many seconds unless the environment says otherwise.
async fn hammer(drivers: usize, seconds: u64) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seconds = number("HAMMER_SECONDS").map_or(seconds, |all| all * seconds / 20);
    let seed = number("HAMMER_SEED").unwrap_or_else(Random::seed_of_now);
    println!("hammer: HAMMER_SEED={seed}, {seconds} seconds, {drivers} drivers");

    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let field = Arc::new(Field::new(&lab, &namespace, drivers).await);
    let keep_alive = tokio::spawn({
        let field = field.clone();
        async move { field.keep_alive().await }
    });

    let end = Instant::now() + Duration::from_secs(seconds);
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        clients.spawn(clients::work(field.clone(), Random::new(seed ^ (client << 32)), end));
    }
    let mut random = Random::new(!seed);
    let mut total = history::Tally::default();
    while Instant::now() < end {
        tokio::time::sleep(ROUND.min(end.saturating_duration_since(Instant::now()))).await;
        let _still = field.floor.write().await;
        let events = std::mem::take(&mut *field.events.lock().unwrap());
        total.add(&events);
        history::check(&events);
        let found = rest::settle(&field, &mut random).await;
        *field.events.lock().unwrap() = found;
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    rest::delete_everything(&field).await;
    println!(
        "hammer: {total}, {} drivers aborted by librbd",
        field.restarts.load(Ordering::Relaxed)
    );
    // It ends by itself when a driver has ended otherwise.
    keep_alive.abort();
    assert!(keep_alive.await.unwrap_err().is_cancelled());
    Arc::into_inner(field).unwrap().stop();
    namespace.assert_nothing_is_recorded();
    namespace.assert_empty();
}
