//! What keeps a driver from working, found before a volume is asked for: `cinderblock check`.
//!
//! Each check is one [`Finding`]: what was looked at, what was found, and what to do about it. A
//! check never changes anything, but for an empty journal object that it makes where a pool has
//! none. What could not be found out is said to be unknown, and never to be well. Nothing here
//! needs a running driver or Kubernetes.
//!
//! `cluster` connects and looks at what concerns the whole cluster, `pool` at one pool and
//! namespace; what this machine lacks for being a node is told by [`crate::node::check`].

mod cluster;
mod pool;
mod rights;

use crate::node::attach::Mounter;
use crate::node::check as node;
use crate::rbd::Key;
use crate::rbd::ceph::libraries;
use serde::Serialize;
use std::path::Path;

pub use cluster::{Login, cluster};

/// The outcome of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// The cluster, or the pool and namespace, as in volume ids; empty for this machine.
    pub place: String,
    /// How it is.
    pub outcome: Outcome,
    /// What was found.
    pub found: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

/// How things are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As they must be.
    Well,
    /// Good enough for now.
    Warning,
    /// In the way of the driver's work.
    Failed,
    /// Not known: something else is in the way of finding out.
    Unknown,
}

impl Finding {
    /// All is well.
    pub fn well(check: &'static str, place: &str, found: impl Into<String>) -> Finding {
        Finding::new(check, place, Outcome::Well, found, None)
    }

    /// Something wants to be looked after.
    pub fn warning(
        check: &'static str,
        place: &str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        Finding::new(check, place, Outcome::Warning, found, Some(remedy.into()))
    }

    /// Something is in the way.
    pub fn failed(
        check: &'static str,
        place: &str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        Finding::new(check, place, Outcome::Failed, found, Some(remedy.into()))
    }

    /// It could not be found out.
    pub fn unknown(check: &'static str, place: &str, why: impl Into<String>) -> Finding {
        Finding::new(check, place, Outcome::Unknown, why, None)
    }

    fn new(
        check: &'static str,
        place: &str,
        outcome: Outcome,
        found: impl Into<String>,
        remedy: Option<String>,
    ) -> Finding {
        Finding { check, place: place.to_owned(), outcome, found: found.into(), remedy }
    }
}

/// Which Ceph the librbd of this program is of.
pub fn librbd() -> Finding {
    let libraries = libraries();
    let ceph = format!("librbd of Ceph {}", libraries.ceph);
    match libraries.lacks.as_slice() {
        [] => Finding::well("librbd", "", ceph),
        lacks => Finding::well("librbd", "", format!("{ceph}, without {}", lacks.join("; "))),
    }
}

/// What this machine lacks for being a node whose volumes are attached by `mounters`, with keys
/// like `keys`.
pub fn this_node(mounters: &[Mounter], keys: &[Key], kubelet: Option<&Path>) -> Vec<Finding> {
    let mut findings = vec![match node::programs() {
        Ok(()) => Finding::well("programs", "", "all that every node needs are installed"),
        Err(lack) => Finding::failed("programs", "", lack.what, lack.remedy),
    }];
    for mounter in mounters {
        findings.push(match node::mounter(*mounter, keys) {
            Ok(found) => Finding::well("mounter", "", found),
            Err(lack) => Finding::failed("mounter", "", lack.what, lack.remedy),
        });
    }
    if let Some(kubelet) = kubelet {
        findings.push(match node::kubelet(kubelet) {
            Ok(()) => {
                Finding::well("kubelet's folder", "", format!("{} is there", kubelet.display()))
            }
            Err(lack) => Finding::failed("kubelet's folder", "", lack.what, lack.remedy),
        });
    }
    findings
}
