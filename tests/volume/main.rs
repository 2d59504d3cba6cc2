//! What the driver does with volumes and snapshots, over the in-memory model of RBD.

#![allow(
    clippy::struct_excessive_bools,
    clippy::type_complexity,
    clippy::unnested_or_patterns,
    reason = "generated requests are independent switches, and a table of cases reads better row by row"
)]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod chains;
mod costs;
mod defects;
mod elsewhere;
mod fence;
mod foreign;
mod golden;
mod lab;
mod leases;
mod limits;
mod others;
mod picture;
mod rest;
mod snapshots;
mod sweep;
mod trash;
