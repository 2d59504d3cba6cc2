//! Kubernetes as a client, against an API server in memory and RBD in memory: what is told, and
//! what a controller does about nodes that may be lost. Needs neither a cluster nor Ceph.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod api;
mod claims;
mod controller;
mod events;
mod nodes;
mod volumes;

/// The CSI driver's name.
const DRIVER: &str = "rbd.csi.cinderblock.dev";

/// Waits for what comes in the background.
async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(std::time::Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}
