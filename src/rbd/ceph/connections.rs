use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::cluster::CephCluster;
use super::connection::{ConnectOptions, Connection, Timeouts, Trust};
use crate::rbd::{Cluster, Errno, Key, Result};

/// Shared connections: one for each cluster, user and key.
///
/// - Callers that ask at the same time share one attempt to connect and its outcome. A failure is forgotten at once:
///   the next caller tries again.
/// - A connection the cluster blocklisted is replaced when it is next asked for. The blocklist entry stays: whoever
///   made it wanted the old connection out.
/// - After a timeout the next caller gets a new connection, or learns that the key is no longer good. When connecting
///   times out too, the old connection stays: it may still serve where monitors do not answer.
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
    attempt: Arc<Attempt>,
    asked: Instant,
}

/// One attempt to connect, made by whoever comes first; the others wait for it.
#[derive(Debug, Default)]
struct Attempt {
    outcome: OnceLock<Result<Arc<Connection>>>,
    /// The suspect connection that is to be replaced.
    predecessor: Mutex<Option<Arc<Connection>>>,
}

impl Attempt {
    fn outcome(&self, options: &ConnectOptions) -> &Result<Arc<Connection>> {
        self.outcome.get_or_init(|| {
            let predecessor = self.predecessor.lock().unwrap_or_else(PoisonError::into_inner).take();
            match (Connection::open(options), predecessor) {
                (Err(error), Some(predecessor)) if error.errno == Errno::ETIMEDOUT => {
                    predecessor.trust_again();
                    Ok(predecessor)
                }
                (outcome, _) => outcome.map(Arc::new),
            }
        })
    }
}

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
            match attempt.outcome(options) {
                Ok(connection) if connection.trust() == Trust::Sound => {
                    return Ok(Arc::new(CephCluster { connection: Arc::clone(connection) }));
                }
                Ok(connection) => self.replace(&identity, &attempt, connection),
                Err(error) => {
                    self.discard(|_, entry| Arc::ptr_eq(&entry.attempt, &attempt));
                    return Err(error.clone());
                }
            }
        }
    }

    /// Stops handing out the connection `cluster` is on, because a call on it is stuck. Those who have it keep it;
    /// it is shut down when the last of them lets go.
    pub fn forget(&self, cluster: &dyn Cluster) {
        let Ok(address) = cluster.address() else { return };
        self.discard(|_, entry| connected(entry).is_some_and(|connection| connection.address() == address));
    }

    /// Prepares another attempt, unless somebody else did already.
    fn replace(&self, identity: &Identity, attempt: &Arc<Attempt>, connection: &Arc<Connection>) {
        let suspect = (connection.trust() == Trust::Suspect).then(|| Arc::clone(connection));
        let next = Arc::new(Attempt { predecessor: Mutex::new(suspect), ..Attempt::default() });
        if let Some(entry) = self.lock().get_mut(identity)
            && Arc::ptr_eq(&entry.attempt, attempt)
        {
            entry.attempt = next;
        }
    }

    fn attempt(&self, identity: &Identity) -> Arc<Attempt> {
        self.discard(|other, entry| {
            // Nobody but this entry holds it.
            let unused = connected(entry).is_some_and(|connection| Arc::strong_count(connection) == 1);
            other != identity && unused && entry.asked.elapsed() > self.idle
        });
        let mut entries = self.lock();
        let entry = entries
            .entry(identity.clone())
            .or_insert_with(|| Entry { attempt: Arc::default(), asked: Instant::now() });
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
    entry.attempt.outcome.get()?.as_ref().ok()
}
