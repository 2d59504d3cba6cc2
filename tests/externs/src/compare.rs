//! Compares what `src/rbd/ceph/sys.rs` declares with the installed headers:
//! `cargo test -p externs`.
//!
//! The comparisons are generated and compiled by `build.rs`, which says what is checked where.

#![allow(clippy::all, reason = "the code included below is written by ctest")]

#[path = "../../../src/rbd/ceph/sys.rs"]
#[expect(
    unused_imports,
    reason = "the functions of the ceph crate are checked by their declarations alone"
)]
mod sys;

use sys::rados::*;
use sys::*;

include!(concat!(env!("OUT_DIR"), "/ctest.rs"));
