//! Topology: which nodes reach which cluster.
//!
//! A node says where it is with `--topology`; a cluster says in the configuration from where it is
//! reached. A cluster that says nothing is reached from everywhere. All of this is off, and no
//! capability is offered, while no cluster says anything.

use super::config::Config;
use super::proto::{Topology, TopologyRequirement};
use std::collections::BTreeMap;
use tonic::Status;

/// Where something is: values by key, such as `topology.kubernetes.io/zone`.
pub type Segments = BTreeMap<String, String>;

/// Reads `KEY=VALUE`.
pub fn segment(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    check(key, value)?;
    Ok((key.to_string(), value.to_string()))
}

/// What is wrong with a segment by the rules of the CSI specification: a key of at most 63 letters,
/// digits, `-`, `_` and `.`, with a DNS name and `/` before it if one likes; a value of the same.
pub(super) fn check(key: &str, value: &str) -> Result<(), String> {
    let word = |word: &str| {
        let ends = |c: char| c.is_ascii_alphanumeric();
        let inner =
            word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        word.len() <= 63 && inner && word.starts_with(ends) && word.ends_with(ends)
    };
    let (prefix, name) =
        key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let is_domain = |prefix: &str| {
        prefix.len() <= 63
            && prefix.split('.').all(word)
            && !prefix.contains(|c: char| c.is_uppercase() || c == '_')
    };
    if !word(name) || prefix.is_some_and(|prefix| !is_domain(prefix)) {
        return Err(format!(
            "{key:?} is no topology key: expected [domain/]name, each of at most 63 characters"
        ));
    }
    if !word(value) {
        return Err(format!(
            "{value:?} is no topology value: expected 1 to 63 letters, digits, '-', '_' or '.'"
        ));
    }
    Ok(())
}

/// Whether topology is used at all: some cluster is not reached from everywhere.
pub fn is_used(config: &Config) -> bool {
    config.clusters.values().any(|cluster| !cluster.topology.is_empty())
}

/// Whether what is in `place` reaches a cluster that is reached from `cluster`.
pub(super) fn is_reached_from(cluster: &Segments, place: &Topology) -> bool {
    cluster.iter().all(|(key, value)| place.segments.get(key) == Some(value))
}

/// From where volumes of a cluster are reached, as the wire has it.
pub(super) fn accessible_from(cluster: &Segments) -> Vec<Topology> {
    if cluster.is_empty() { Vec::new() } else { vec![Topology { segments: cluster.clone() }] }
}

/// Refuses a volume that none of the places it is required at would reach. Preferences are no
/// requirement: a cluster is where it is.
pub(super) fn require(
    cluster_id: &str,
    cluster: &Segments,
    requirement: Option<&TopologyRequirement>,
) -> Result<(), Status> {
    let requisite = requirement.map_or(&[][..], |requirement| &requirement.requisite);
    if requisite.is_empty() || requisite.iter().any(|place| is_reached_from(cluster, place)) {
        return Ok(());
    }
    Err(Status::resource_exhausted(format!(
        "the cluster {cluster_id} is reached from {cluster:?} alone, and the volume is required elsewhere: use a class of another \
         cluster, or allow that place"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(pairs: &[(&str, &str)]) -> Segments {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn segments_are_read_and_mistakes_told() {
        let zone = ("topology.kubernetes.io/zone".to_owned(), "a".to_owned());
        assert_eq!(segment("topology.kubernetes.io/zone=a").unwrap(), zone);
        let long = "x".repeat(64);
        for wrong in [
            "",
            "zone",
            "=a",
            "zone=",
            "zone=a b",
            "zone=-a",
            "Zone.io/z=a",
            "a/b/c=d",
            &format!("{long}=a"),
        ] {
            segment(wrong).unwrap_err();
        }
    }

    #[test]
    fn a_volume_is_made_where_one_of_the_required_places_reaches_it() {
        let cluster = segments(&[("zone", "a")]);
        let place = |zone: &str| Topology { segments: segments(&[("zone", zone), ("rack", "1")]) };
        let required = |zones: &[&str]| TopologyRequirement {
            requisite: zones.iter().map(|zone| place(zone)).collect(),
            preferred: vec![place("b")],
        };
        require("lab", &cluster, None).unwrap();
        require("lab", &cluster, Some(&required(&[]))).unwrap();
        require("lab", &cluster, Some(&required(&["b", "a"]))).unwrap();
        require("lab", &Segments::new(), Some(&required(&["b"]))).unwrap();
        let error = require("lab", &cluster, Some(&required(&["b", "c"]))).unwrap_err();
        assert_eq!(error.code(), tonic::Code::ResourceExhausted);
    }
}
