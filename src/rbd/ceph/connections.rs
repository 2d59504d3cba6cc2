use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::cluster::CephCluster;
use super::connection::{ConnectOptions, Connection, Timeouts};
use crate::rbd::{Cluster, Key, Result};

/// Shared connections: one for each cluster, user and key.
///
/// - Callers that ask at the same time share one attempt to connect and its outcome. A failure is forgotten at once:
///   the next caller tries again.
/// - A connection the cluster blocklisted, or whose key stopped working, is replaced when it is next asked for. The
///   blocklist entry stays: whoever made it wanted the old connection out.
/// - A connection nobody uses and nobody asked for in a while is dropped when another one is asked for: each holds a
///   dozen threads and file descriptors.
#[derive(Debug)]
pub struct Connections {
    entries: Mutex<HashMap<Identity, Entry>>,
    idle: Duration,
}

/// What tells connections apart. Of the key it holds a digest only.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Identity {
    monitors: Vec<String>,
    ceph_conf: Option<PathBuf>,
    user: String,
    key: Option<[u8; 32]>,
    timeouts: Timeouts,
}

#[derive(Debug)]
struct Entry {
    attempt: Attempt,
    asked: Instant,
}

/// One attempt to connect, started by whoever comes first; the others wait for it.
type Attempt = Arc<OnceLock<Result<Arc<Connection>>>>;

impl Default for Connections {
    /// Connections that are dropped after ten idle minutes.
    fn default() -> Connections {
        Connections::new(Duration::from_mins(10))
    }
}

impl Connections {
    /// None yet. One that is idle for the time given is dropped.
    pub fn new(idle: Duration) -> Connections {
        Connections { entries: Mutex::default(), idle }
    }

    /// A connection that worked when last used, or a new one. Errors as [`connect`](super::connect).
    pub fn get(&self, options: &ConnectOptions) -> Result<Arc<dyn Cluster>> {
        let identity = Identity {
            monitors: options.monitors.clone(),
            ceph_conf: options.ceph_conf.clone(),
            user: options.user.clone(),
            key: options.key.as_ref().map(Key::digest),
            timeouts: options.timeouts,
        };
        loop {
            let attempt = self.attempt(&identity);
            let outcome = attempt.get_or_init(|| Connection::open(options).map(Arc::new));
            match outcome {
                Ok(connection) if !connection.is_broken() => {
                    return Ok(Arc::new(CephCluster { connection: Arc::clone(connection) }));
                }
                _ => self.discard(|_, entry| Arc::ptr_eq(&entry.attempt, &attempt)),
            }
            if let Err(error) = outcome {
                return Err(error.clone());
            }
        }
    }

    /// Stops handing out the connection `cluster` is on, because a call on it is stuck. Those who have it keep it;
    /// it is shut down when the last of them lets go.
    pub fn forget(&self, cluster: &dyn Cluster) {
        let Ok(address) = cluster.address() else { return };
        self.discard(|_, entry| connected(entry).is_some_and(|connection| connection.address() == address));
    }

    fn attempt(&self, identity: &Identity) -> Attempt {
        self.discard(|other, entry| {
            // Nobody but this entry holds it.
            let unused = connected(entry).is_some_and(|connection| Arc::strong_count(connection) == 1);
            other != identity && unused && entry.asked.elapsed() > self.idle
        });
        let mut entries = self.lock();
        let entry = entries
            .entry(identity.clone())
            .or_insert_with(|| Entry { attempt: Attempt::default(), asked: Instant::now() });
        entry.asked = Instant::now();
        Arc::clone(&entry.attempt)
    }

    fn discard(&self, condition: impl Fn(&Identity, &Entry) -> bool) {
        let discarded: Vec<_> =
            self.lock().extract_if(|identity, entry| condition(identity, entry)).collect();
        // Shutting down takes a while: after the lock was released.
        drop(discarded);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Identity, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn connected(entry: &Entry) -> Option<&Arc<Connection>> {
    entry.attempt.get()?.as_ref().ok()
}
