//! Cinderblock: a CSI driver for Ceph RBD.
//!
//! The rooms, from the wire down; arrows only run downwards (`docs/architecture.md` has the
//! picture):
//!
//! - [`csi`]: the wire. Generated types, the socket, one file per CSI service, ids, parameters, one
//!   error table.
//! - [`volume`]: what the driver does, as plain synchronous Rust over the [`rbd`] traits.
//! - [`check`]: what keeps a driver from working, found before a volume is asked for.
//! - [`backup`]: restore points of volumes in folders and object stores, and volumes made of them.
//! - [`transfer`]: disks in files and object stores, into images and out of them, over [`volume`]
//!   and [`rbd`].
//! - [`node`]: what a node does: attach, filesystems, mounts, statistics.
//! - [`kube`]: Kubernetes, as a client, for those who have it.
//! - [`notes`]: which clients may write to a volume, as `volume` and `node` tell each other.
//! - [`rbd`]: what RBD is: three traits and one error, over librbd and over an in-memory model.
//! - [`metrics`]: what all of these measure; it uses none of them. [`monitoring`]: the port on
//!   which Prometheus reads it.

pub mod backup;
pub mod check;
pub mod csi;
#[cfg(debug_assertions)]
pub mod fuzz;
pub mod kube;
pub mod metrics;
pub mod monitoring;
pub mod node;
pub mod notes;
pub mod rbd;
pub mod telemetry;
pub mod transfer;
pub mod volume;
