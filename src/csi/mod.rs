//! The wire: CSI as the orchestrator speaks it.
//!
//! - [`proto`]: the types, clients and servers generated from `proto/csi/v1/csi.proto`.

pub mod proto;
