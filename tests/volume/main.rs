//! What the driver does with volumes and snapshots, over the in-memory model of RBD.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, its helpers too")]

mod chains;
mod lab;
mod picture;
mod rest;
mod sweep;
