//! The lineage of volumes on a real Ceph, asked for over the socket of the built binary: which
//! images, snapshots and parents there are after each step, under their exact names, and that every
//! volume and snapshot holds the bytes written to it.
//!
//! Needs the environment that `lab/ceph env` prints.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "what is measured is told")]

#[path = "../common/mod.rs"]
mod common;

mod busy;
mod chains;
mod depth;
mod family;
mod limits;
mod operations;
mod others;
mod picture;
mod places;
mod quota;
mod refusals;
mod rounds;
mod snapshots;
