//! One pool and namespace: whether it is there, and takes images; what was left half-done in it.

use super::{Finding, rights};
use crate::csi::ids::Location;
use crate::rbd::{Cluster, Errno, PoolStats};
use crate::volume::{Activity, Process, Volumes};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// Creations that were begun this long ago count as abandoned, as the sweeper has it.
const ABANDONED: Duration = Duration::from_hours(1);

/// Checks the pool and namespace.
pub(super) fn pool(
    cluster: &Arc<dyn Cluster>,
    location: &Location,
    instance: &str,
    caps: &str,
) -> Vec<Finding> {
    let (place, name) = (location.to_string(), location.pool.as_str());
    let pool = match cluster.pool(name, &location.namespace) {
        Ok(pool) => pool,
        Err(error) if error.errno == Errno::ENOENT => {
            return vec![Finding::failed(
                "pool",
                &place,
                format!("there is no pool {name}"),
                format!(
                    "correct pools in the configuration, or run: ceph osd pool create {name} && rbd pool init {name}"
                ),
            )];
        }
        Err(error) => return vec![Finding::unknown("pool", &place, error.to_string())],
    };
    let mut findings = vec![application(&**cluster, &place, name)];
    let volumes =
        Volumes::new(pool.clone(), instance, Process::default(), Arc::new(Activity::default()));
    if !location.namespace.is_empty() {
        let namespace = namespace(&volumes, &place, location);
        let is_gone = namespace.outcome == super::Outcome::Failed;
        findings.push(namespace);
        if is_gone {
            return findings;
        }
    }
    findings.push(match pool.stats() {
        Ok(stats) => room(&place, name, &stats),
        Err(error) => Finding::unknown("room", &place, error.to_string()),
    });
    let images = rights::images(&volumes, &place, caps);
    let is_readable = images.outcome == super::Outcome::Well;
    findings.push(images);
    if is_readable {
        findings.push(leftovers(&volumes, &place, location));
    }
    findings
}

/// Whether the pool is one for RBD.
fn application(cluster: &dyn Cluster, place: &str, pool: &str) -> Finding {
    let command = serde_json::json!({
        "prefix": "osd pool application get", "pool": pool, "format": "json",
    });
    let answer = match cluster.monitor_command(&command.to_string()) {
        Ok(answer) => answer,
        Err(error) => return Finding::unknown("pool", place, error.to_string()),
    };
    match serde_json::from_slice::<Value>(&answer) {
        Ok(applications) if applications.get("rbd").is_some() => {
            Finding::well("pool", place, "it is there, for rbd")
        }
        Ok(_) => Finding::warning(
            "pool",
            place,
            format!("the pool {pool} is not marked as one for rbd"),
            format!("run: rbd pool init {pool}"),
        ),
        Err(error) => Finding::unknown("pool", place, error.to_string()),
    }
}

fn namespace(volumes: &Volumes, place: &str, location: &Location) -> Finding {
    let Location { pool, namespace, .. } = location;
    match volumes.pool().namespace_exists() {
        Ok(true) => Finding::well("namespace", place, "it is registered"),
        Ok(false) => Finding::failed(
            "namespace",
            place,
            format!("there is no RADOS namespace {namespace} in the pool {pool}"),
            format!("run: rbd namespace create {pool}/{namespace}"),
        ),
        // The user's capabilities end with the namespace, so it may not look beside it.
        Err(error) if error.errno == Errno::EPERM => {
            Finding::well("namespace", place, "the user sees nothing beside it")
        }
        Err(error) => Finding::unknown("namespace", place, error.to_string()),
    }
}

fn room(place: &str, pool: &str, stats: &PoolStats) -> Finding {
    let (percent, free) = (stats.percent(), stats.room() >> 20);
    let found = format!("{percent}% used, room for {free} MiB");
    if stats.room() == 0 {
        let (why, remedy) = match stats.quota {
            Some(quota) if quota <= stats.stored => (
                format!("the pool {pool} is at its quota of {quota} bytes"),
                format!(
                    "delete volumes, see `cinderblock trash purge`, or run: ceph osd pool set-quota {pool} max_bytes BYTES"
                ),
            ),
            _ => (format!("the pool {pool} is full"), full()),
        };
        return Finding::failed("room", place, why, remedy);
    }
    if percent >= PoolStats::NEARLY_FULL {
        return Finding::warning("room", place, format!("nearly full: {found}"), full());
    }
    Finding::well("room", place, found)
}

fn full() -> String {
    "look at `ceph df`; add disks, raise the quota, delete volumes, or see `cinderblock trash purge`".to_owned()
}

fn leftovers(volumes: &Volumes, place: &str, location: &Location) -> Finding {
    let check = "leftovers";
    let found = volumes.survey().and_then(|survey| volumes.leftovers(&survey, ABANDONED));
    let Location { cluster, pool, namespace } = location;
    match found {
        Ok(found) if found.is_empty() => Finding::well(check, place, "nothing is left half-done"),
        Ok(found) => {
            let namespace = match namespace.as_str() {
                "" => String::new(),
                namespace => format!(" --namespace {namespace}"),
            };
            Finding::warning(
                check,
                place,
                format!("{} things are left half-done", found.len()),
                format!(
                    "a running controller finishes them by itself; without one, see: cinderblock gc --cluster {cluster} --pool {pool}{namespace}"
                ),
            )
        }
        Err(error) => Finding::unknown(check, place, error.to_string()),
    }
}
