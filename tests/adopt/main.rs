//! `cinderblock adopt` and `cinderblock release`.
//!
//! `fixtures` makes pools as ceph-csi and Cinder leave them, on a real Ceph and on the model.
//! `faults` sweeps the model; `program` and `kills` run the program, the driver and a node on a
//! real Ceph.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(unreachable_pub, reason = "this is a program of its own")]

#[path = "../common/mod.rs"]
mod common;

mod faults;
mod fixtures;
mod kills;
mod node;
mod page;
mod program;
mod refusals;
