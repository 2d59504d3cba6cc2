//! The wire: CSI as the orchestrator speaks it.
//!
//! - [`proto`]: the types, clients and servers generated from `proto/csi/v1/csi.proto`.
//! - [`endpoint`]: the address of a CSI socket.
//! - [`server`]: the socket, from binding to a graceful end; every RPC it serves is logged.

pub mod endpoint;
pub mod proto;
mod rpc_log;
pub mod server;
