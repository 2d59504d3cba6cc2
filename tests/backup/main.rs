//! `cinderblock backup`: restore points, and volumes made of them.
//!
//! `random` runs on a real Ceph and on the model; `kills`, `holds`, `mistakes` and `chains` are on
//! the model; `program` and `stock` are the program and Ceph's own tools on a real Ceph.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "a random test says its seed")]
#![allow(clippy::useless_vec, reason = "what is large is on the heap")]
#![allow(unreachable_pub, reason = "this is a program of its own")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../transfer/server.rs"]
#[allow(dead_code, reason = "the tests of transfers use all of it")]
mod server;

mod chains;
mod field;
mod holds;
mod kills;
mod mistakes;
mod program;
mod random;
mod stock;
