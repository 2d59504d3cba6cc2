//! What an operator sees of a driver at work on a real Ceph: its metrics, its health, and the
//! alerts and the dashboard that are made of them, evaluated by a real Prometheus.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::float_cmp, reason = "counts are whole")]

#[path = "../common/mod.rs"]
mod common;
mod expressions;
mod figures;
mod prometheus;
