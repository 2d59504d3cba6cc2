//! Whatever comes between which calls of two controllers, and random sequences of requests with
//! controllers that die: over the in-memory model of RBD, as [`volume`](../volume/main.rs), and for
//! minutes.

#![allow(
    clippy::struct_excessive_bools,
    clippy::type_complexity,
    clippy::unnested_or_patterns,
    reason = "generated requests are independent switches, and a table of cases reads better row by row"
)]
#![allow(dead_code, reason = "the other target uses more of what both share")]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, its helpers too"
)]

#[path = "../volume/lab.rs"]
mod lab;
mod properties;
#[path = "../volume/rest.rs"]
mod rest;
mod two_controllers;
