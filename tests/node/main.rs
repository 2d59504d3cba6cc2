//! The node on a real Ceph, with real daemons, devices and mounts: what pods see, what survives,
//! what is refused, and that nothing stays behind.
//!
//! Needs root, FUSE, loop devices, and the environment `lab/ceph env` prints.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]
#![expect(clippy::print_stdout, reason = "figures are for people, with --nocapture")]

mod faults;
mod growth;
mod kills;
mod lab;
mod many;
mod marks;
mod paths;
mod readers;
mod safety;
mod service;
mod steps;
mod use_of_volumes;
