//! The wire: CSI as the orchestrator speaks it.
//!
//! - [`proto`]: the types, clients and servers generated from `proto/csi/v1/csi.proto`.
//! - [`endpoint`]: the address of a CSI socket.
//! - [`server`]: the socket, from binding to a graceful end; every RPC it serves is logged.
//! - [`identity`], [`controller`], [`snapshot_metadata`], [`node`]: the services, with one file per
//!   RPC where there is something to it; the group controller's are the controller's.
//! - [`config`], [`parameters`], [`qos`], [`ids`], [`repeats`], [`validate`]: everything that comes
//!   from outside, checked before use.
//! - [`handles`]: the ids that ceph-csi gives.
//! - [`clusters`], [`operations`]: how a checked request reaches a pool, and runs there without
//!   hanging its caller.
//! - [`sweeper`]: what a controller settles and finishes in the background.
//! - [`status`]: the one table from errors to answers.

pub mod clusters;
pub mod config;
pub mod controller;
pub(crate) mod deadline;
pub mod endpoint;
pub mod handles;
pub mod identity;
pub mod ids;
pub mod node;
pub mod operations;
pub mod parameters;
pub mod proto;
pub mod qos;
pub mod repeats;
mod rpc_log;
pub mod server;
pub mod snapshot_metadata;
pub mod status;
pub mod sweeper;
pub mod topology;
pub mod validate;
