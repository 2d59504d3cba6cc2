//! RBD over librados and librbd.
//!
//! [`connect`] makes one connection, [`Connections`] shares them. Credentials stay in memory: no
//! configuration file, keyring, log or admin socket is read or written unless the caller names a
//! `ceph.conf`.
//!
//! Invariants:
//!
//! - An image holds its I/O context, an I/O context its connection. Each closes its own handle
//!   first and then lets go, so images close before contexts and contexts before the connection is
//!   shut down.
//! - Every I/O context has full-try set: at a quota or on a full cluster calls fail (`EDQUOT`,
//!   `ENOSPC`) and removals go through. What a deletion needs besides is a few bytes, forced
//!   through: omap updates, the new name of a renamed image, librbd's list of the trash.
//! - Panics in callbacks never unwind through C, and librbd's cache is off.
//!
//! All `unsafe` code of the crate is in here. The externs are in `sys`, those that only newer
//! releases have in `newer`; both are checked against the installed headers by
//! `cargo test -p externs`, and against those of newer releases by `tests/librbd.sh`.

#![allow(unsafe_code)] // this is the door to C

mod barrier;
mod call;
mod cloning;
mod cluster;
mod connection;
mod connections;
mod directory;
mod flatten;
mod group_snapshot;
mod handle;
mod handle_cache;
mod holds;
mod image;
mod ioctx;
mod libraries;
mod memory;
pub(crate) mod monmap;
mod newer;
mod omap;
mod options;
pub(crate) mod pool;
mod snapshot_removal;
mod sys;
mod trash;

use std::sync::Arc;

pub use connection::{ConnectOptions, Timeouts};
pub use connections::Connections;
pub use libraries::{Libraries, libraries};
pub use memory::share_one_heap;

use super::{Cluster, Result};

/// Ends the process at once. An ordinary exit runs the destructors of librados and librbd, which
/// abort the process when another thread is in a call of theirs.
pub fn end_process(code: i32) -> ! {
    // SAFETY: `_exit` takes any number and touches nothing of the process.
    unsafe { libc::_exit(code) }
}

/// Connects to a cluster.
///
/// `ETIMEDOUT` when no monitor answers within [`Timeouts::connect`], `EACCES` when the key is wrong
/// or the user unknown, `ENOENT` when the `ceph.conf` is missing or no monitor is named.
pub fn connect(options: &ConnectOptions) -> Result<Arc<dyn Cluster>> {
    let connection = Arc::new(connection::Connection::open(options)?);
    Ok(Arc::new(cluster::CephCluster { connection }))
}
