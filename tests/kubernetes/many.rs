//! Many claims at once through the provisioner: how fast, and that nothing is left.
//!
//! kube-controller-manager binds claims, and asks the API server 20 times a second as it comes:
//! four claims a second. With `--kube-api-qps=200` there, 200 claims are bound in 9 seconds instead
//! of 49, on two cores.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;

use super::api::{PATIENCE, text};
use super::field::Field;
use super::space::Space;

/// How many claims; KUBERNETES_CLAIMS says otherwise.
const CLAIMS: usize = 200;

pub(crate) fn many_claims_come_and_go_at_once(field: &Field) {
    let count = std::env::var("KUBERNETES_CLAIMS").map_or(CLAIMS, |count| count.parse().unwrap());
    let space = Space::new(field, "many");
    let names: Vec<_> = (0..count).map(|number| format!("claim-{number}")).collect();

    let asked: BTreeMap<_, _> = names
        .iter()
        .map(|name| {
            space.claim(name, "immediate", "1Gi", &json!({}));
            (name.clone(), Instant::now())
        })
        .collect();
    report("bound", &asked, || {
        let claims = space.api().list("PersistentVolumeClaim", &space.name);
        let bound = claims.iter().filter(|claim| text(claim, "/status/phase") == "Bound");
        bound.map(|claim| text(claim, "/metadata/name").to_owned()).collect()
    });

    // A claim is gone at once; what takes its time is its volume.
    let volumes: Vec<_> = space
        .api()
        .list("PersistentVolume", "")
        .iter()
        .map(|o| text(o, "/metadata/name").to_owned())
        .collect();
    assert_eq!(volumes.len(), count);
    let claim_of: BTreeMap<_, _> = space
        .api()
        .list("PersistentVolumeClaim", &space.name)
        .iter()
        .map(|claim| {
            (text(claim, "/spec/volumeName").to_owned(), text(claim, "/metadata/name").to_owned())
        })
        .collect();
    let asked: BTreeMap<_, _> = volumes
        .iter()
        .map(|volume| {
            space.delete("PersistentVolumeClaim", &claim_of[volume]);
            (volume.clone(), Instant::now())
        })
        .collect();
    report("gone", &asked, || {
        let left: Vec<_> = space
            .api()
            .list("PersistentVolume", "")
            .iter()
            .map(|o| text(o, "/metadata/name").to_owned())
            .collect();
        volumes.iter().filter(|volume| !left.contains(volume)).cloned().collect()
    });
    space.finish();
}

/// Waits until everything that was asked for is among what `done` gives, and prints how long that
/// took from the asking.
fn report(what: &str, asked: &BTreeMap<String, Instant>, done: impl Fn() -> Vec<String>) {
    let mut took: BTreeMap<String, Duration> = BTreeMap::new();
    let first = *asked.values().min().unwrap();
    while took.len() < asked.len() {
        for name in done() {
            if !took.contains_key(&name) {
                took.insert(name.clone(), asked[&name].elapsed());
            }
        }
        assert!(first.elapsed() < 2 * PATIENCE, "{} of {} are {what}", took.len(), asked.len());
        std::thread::sleep(Duration::from_millis(100));
    }
    let whole = first.elapsed().as_secs_f64();
    let mut sorted: Vec<_> = took.into_values().collect();
    sorted.sort();
    let percentile =
        |percent: usize| sorted[(sorted.len() * percent).div_ceil(100) - 1].as_secs_f64();
    println!(
        "    {} {what} in {whole:.1} s: {:.1} a second; each after p50 {:.1} s, p95 {:.1} s, p99 {:.1} s",
        sorted.len(),
        f64::from(u32::try_from(sorted.len()).unwrap()) / whole,
        percentile(50),
        percentile(95),
        percentile(99),
    );
}
