//! What goes wrong in a cluster, injected into a real one, and what the driver answers: black-box,
//! over the socket.
//!
//! Tests that stop daemons share one lab of their own, one after the other ([`lab::Broken`]); the
//! others use the lab of the environment. How long it took until service was back is printed, never
//! asserted; docs/faults.md repeats it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::wildcard_imports, reason = "most messages of CSI")]
#![allow(clippy::print_stdout, reason = "measured times are for the reader of a run")]

#[path = "../common/mod.rs"]
mod common;
mod hosts;
mod lab;
mod limits;
mod outages;
mod refusals;
mod secrets;
