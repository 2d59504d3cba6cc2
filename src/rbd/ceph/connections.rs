use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::cluster::CephCluster;
use super::connection::{ConnectOptions, Connection, Timeouts, Trust};
use crate::metrics::metrics;
use crate::rbd::{Cluster, Errno, Error, Key, Result};

/// How long callers wait for the successor of a suspect connection before they go on with the
/// suspect. A new connection takes some milliseconds, and so does the refusal of a key.
const LOOK: Duration = Duration::from_secs(1);
/// How much longer than its timeout connecting may take before no caller waits for it any more.
const SLACK: Duration = Duration::from_secs(5);

/// Shared connections: one for each cluster, user and key.
///
/// - Callers that ask at the same time share one attempt to connect and its outcome. A failure is
///   forgotten at once: the next caller tries again. Attempts are made on threads of their own, so
///   one that hangs holds up no caller for longer than its timeout.
/// - A connection the cluster blocklisted is replaced when it is next asked for. The blocklist
///   entry stays: the client that made it wanted the old connection out.
/// - After a timeout the next caller gets a new connection, or learns that the key is no longer
///   good. Where neither comes quickly the old connection goes on being used: it may still serve
///   where monitors do not answer.
/// - A connection that no caller uses or asked for in a while is dropped when another one is asked
///   for: each holds a dozen threads and file descriptors.
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

/// One attempt to connect, that all who ask meanwhile wait for.
#[derive(Debug)]
struct Attempt {
    began: Instant,
    state: Mutex<State>,
    done: Condvar,
}

#[derive(Debug)]
enum State {
    /// On its way, to replace the suspect connection if there is one.
    Connecting(Option<Arc<Connection>>),
    Over(Result<Arc<Connection>>),
}

impl Attempt {
    /// Begins one on a thread of its own.
    fn begin(options: &ConnectOptions, predecessor: Option<Arc<Connection>>) -> Arc<Attempt> {
        let attempt = Arc::new(Attempt {
            began: Instant::now(),
            state: Mutex::new(State::Connecting(predecessor)),
            done: Condvar::new(),
        });
        let (connecting, options) = (Arc::clone(&attempt), options.clone());
        let thread = thread::Builder::new().name("connecting".to_owned());
        if thread
            .spawn(move || connecting.finish(Connection::open(&options).map(Arc::new)))
            .is_err()
        {
            attempt.finish(Err(Error::new(
                Errno::EAGAIN,
                "rados_connect",
                "a driver without a free thread",
            )));
        }
        attempt
    }

    fn finish(&self, outcome: Result<Arc<Connection>>) {
        let mut state = self.lock();
        let outcome = match (outcome, &*state) {
            (Err(error), State::Connecting(Some(predecessor)))
                if matches!(error.errno, Errno::ETIMEDOUT | Errno::EAGAIN) =>
            {
                predecessor.trust_again();
                Ok(Arc::clone(predecessor))
            }
            (outcome, _) => outcome,
        };
        let before = std::mem::replace(&mut *state, State::Over(outcome));
        drop(state);
        self.done.notify_all();
        // Perhaps the last who holds the predecessor: shutting it down takes a while.
        drop(before);
    }

    /// Waits for the outcome, or gives the predecessor when that takes too long; says whether the
    /// attempt is over. `ETIMEDOUT` when there is no predecessor.
    fn wait(&self, connect: Duration) -> (bool, Result<Arc<Connection>>) {
        let state = self.lock();
        let patience = if let State::Connecting(Some(_)) = *state { LOOK } else { connect + SLACK };
        let left = patience.saturating_sub(self.began.elapsed());
        let connecting = |state: &mut State| matches!(state, State::Connecting(_));
        let waited = self.done.wait_timeout_while(state, left, connecting);
        match &*waited.unwrap_or_else(PoisonError::into_inner).0 {
            State::Over(outcome) => (true, outcome.clone()),
            State::Connecting(Some(predecessor)) => (false, Ok(Arc::clone(predecessor))),
            State::Connecting(None) => (
                false,
                Err(Error::new(Errno::ETIMEDOUT, "rados_connect", "a cluster that never answered")),
            ),
        }
    }

    /// The connection this attempt gave, or is to replace.
    fn connection(&self) -> Option<Arc<Connection>> {
        match &*self.lock() {
            State::Over(outcome) => outcome.as_ref().ok().cloned(),
            State::Connecting(predecessor) => predecessor.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// A connection that worked when last used, or a new one. Errors as
    /// [`connect`](super::connect).
    pub fn get(&self, options: &ConnectOptions) -> Result<Arc<dyn Cluster>> {
        let identity = Identity {
            monitors: options.monitors.clone(),
            ceph_conf: options.ceph_conf.clone(),
            user: options.user.clone(),
            key: options.key.as_ref().map(Key::digest),
            timeouts: options.timeouts,
        };
        loop {
            let attempt = self.attempt(&identity, options);
            match attempt.wait(options.timeouts.connect) {
                // A suspect is given out while its successor is on its way.
                (over, Ok(connection)) if connection.trust() == Trust::Sound || !over => {
                    return Ok(Arc::new(CephCluster { connection }));
                }
                (_, Ok(connection)) => self.replace(&identity, &attempt, options, &connection),
                (_, Err(error)) => {
                    self.discard(|_, entry| Arc::ptr_eq(&entry.attempt, &attempt));
                    return Err(error);
                }
            }
        }
    }

    /// Replaces the connection whose [`Cluster::address`] this is when it is next asked for, if a
    /// new one can be had, because a call on it is stuck. Those who have it keep it; it is shut
    /// down when the last of them lets go.
    pub fn set_aside(&self, address: &str) {
        for entry in self.lock().values() {
            if let Some(connection) = entry.attempt.connection()
                && connection.address() == address
            {
                connection.suspect();
            }
        }
    }

    /// Begins another attempt, unless another caller did already.
    fn replace(
        &self,
        identity: &Identity,
        attempt: &Arc<Attempt>,
        options: &ConnectOptions,
        connection: &Arc<Connection>,
    ) {
        let suspect = (connection.trust() == Trust::Suspect).then(|| Arc::clone(connection));
        if let Some(entry) = self.lock().get_mut(identity)
            && Arc::ptr_eq(&entry.attempt, attempt)
        {
            metrics().reconnects(connection.reason());
            entry.attempt = Attempt::begin(options, suspect);
        }
    }

    fn attempt(&self, identity: &Identity, options: &ConnectOptions) -> Arc<Attempt> {
        self.discard(|other, entry| {
            // Only this entry and this function hold it.
            let unused = entry
                .attempt
                .connection()
                .is_some_and(|connection| Arc::strong_count(&connection) == 2);
            other != identity && unused && entry.asked.elapsed() > self.idle
        });
        let mut entries = self.lock();
        let entry = entries.entry(identity.clone()).or_insert_with(|| Entry {
            attempt: Attempt::begin(options, None),
            asked: Instant::now(),
        });
        entry.asked = Instant::now();
        Arc::clone(&entry.attempt)
    }

    fn discard(&self, condition: impl Fn(&Identity, &Entry) -> bool) {
        let discarded: Vec<_> =
            self.lock().extract_if(|identity, entry| condition(identity, entry)).collect();
        if !discarded.is_empty() {
            // Shutting down takes a while, and with a cluster that is away perhaps longer.
            let _ = thread::Builder::new()
                .name("disconnecting".to_owned())
                .spawn(move || drop(discarded));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Identity, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
