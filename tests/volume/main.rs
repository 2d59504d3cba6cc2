//! What the driver does with volumes and snapshots, over the in-memory model of RBD.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, its helpers too")]

mod chains;
mod costs;
mod defects;
mod elsewhere;
mod foreign;
mod lab;
mod limits;
mod picture;
mod rest;
mod snapshots;
mod sweep;
