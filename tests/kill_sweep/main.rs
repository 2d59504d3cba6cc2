//! Drivers killed in the middle of an RPC, on a real Ceph: a killed driver leaks nothing and loses
//! nothing.
//!
//! - `points`: killed after each call into Ceph that changes something, by the driver's own switch
//!   (`src/rbd/kill.rs`, in debug builds alone).
//! - `slices`: killed by SIGKILL at evenly spaced times inside an RPC while the OSD is slow, so
//!   that librbd dies in the middle of its own calls.
//!
//! `KILL_SWEEP=all` (`make test-kills`) makes both longer: every call instead of those that change
//! something, every aftermath at every point, and more slices.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "where a sweep failed is for the test harness to show")]
#![allow(unreachable_pub, reason = "a test has no outside")]

#[path = "../common/mod.rs"]
mod common;
mod lab;
mod picture;
mod points;
mod rpc;
mod scenario;
mod slices;
mod tenant;
