//! RBD in memory: the same observable behaviour as librbd, for tests of everything above.
//!
//! Promises:
//!
//! - The answers are those of librbd 16.2: the same errno or the same value, call by call. Those of
//!   18.2 and 20.2 are the same as far as `tests/model_agreement` has tried.
//! - A process that dies ([`Fault`]) leaves what a SIGKILL inside librbd leaves: each call is the
//!   sequence of writes librbd sends, in its order, and can be stopped after any of them.
//! - Nothing waits, nothing runs in the background, and the same calls give the same answers, ids
//!   and times.
//! - A call is atomic towards other sessions. A test interleaves sessions between calls
//!   ([`Session::on_call`]).

mod bytes;
mod cloning;
mod cluster;
mod create;
mod data;
mod flatten;
mod image;
mod inspect;
mod lineage;
mod pool;
mod removal;
mod session;
mod state;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

pub use inspect::{Graph, ImageGraph, LinkGraph, PoolGraph, SnapshotGraph, TrashGraph};
pub use session::{CallInfo, CallRecord, Fault, Hook, Session};
use state::{Header, Place, PoolState, State};

use super::{Errno, Hold};

/// A cluster in memory. Clones are the same cluster.
#[derive(Debug, Clone)]
pub struct Model {
    state: Arc<Mutex<State>>,
    sessions: Arc<std::sync::atomic::AtomicU64>,
}

impl Default for Model {
    fn default() -> Model {
        Model::new()
    }
}

impl Model {
    /// An empty cluster without pools.
    pub fn new() -> Model {
        Model { state: Arc::new(Mutex::new(State::new())), sessions: Arc::default() }
    }

    /// Makes an empty pool without a quota.
    pub fn create_pool(&self, name: &str) {
        let pool = PoolState {
            last_snapshot: 0,
            namespaces: BTreeSet::new(),
            quota: None,
            keeps_removed: false,
            full: None,
        };
        self.state().pools.insert(name.to_owned(), pool);
    }

    /// Registers a RADOS namespace of `pool`, as `rbd namespace create` does, so that images can be
    /// created in it.
    pub fn create_namespace(&self, pool: &str, namespace: &str) {
        if let Some(pool) = self.state().pools.get_mut(pool) {
            pool.namespaces.insert(namespace.to_owned());
        }
    }

    /// Connects one client, such as one controller process.
    pub fn connect(&self) -> Session {
        let number = self.sessions.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        Session::new(Arc::clone(&self.state), number)
    }

    /// From now on what needs space in `pool` fails with `errno`: `EDQUOT` for a pool at its quota,
    /// `ENOSPC` for a full cluster. `None` is the end of it.
    pub fn set_full(&self, pool: &str, errno: Option<Errno>) {
        if let Some(pool) = self.state().pools.get_mut(pool) {
            pool.full = errno;
        }
    }

    /// Sets the quota that [`Pool::stats`](super::Pool::stats) reports, in bytes. It is not
    /// enforced: see [`Model::set_full`].
    pub fn set_quota(&self, pool: &str, quota: Option<u64>) {
        if let Some(pool) = self.state().pools.get_mut(pool) {
            pool.quota = quota;
        }
    }

    /// From now on an image that is removed from `pool` moves to the trash and stays there for an
    /// hour, as `rbd_move_to_trash_on_remove` among the pool's settings has it.
    pub fn keep_removed(&self, pool: &str) {
        if let Some(pool) = self.state().pools.get_mut(pool) {
            pool.keeps_removed = true;
        }
    }

    /// Puts a hold on the image `name` in the default namespace of `pool`, or takes it off.
    pub fn hold(&self, pool: &str, name: &str, hold: Option<Hold>) {
        self.change_image(pool, name, |header| header.hold = hold);
    }

    /// Puts the image `name` in the default namespace of `pool` into a group, or takes it out.
    pub fn group(&self, pool: &str, name: &str, group: Option<&str>) {
        self.change_image(pool, name, |header| header.group = group.map(str::to_owned));
    }

    fn change_image(&self, pool: &str, name: &str, change: impl FnOnce(&mut Header)) {
        let mut state = self.state();
        let space = state.space(&Place::new(pool, ""));
        if let Some(header) = space.id_objects.get(name).and_then(|id| space.headers.get_mut(id)) {
            change(header);
        }
    }

    /// Lets time pass, for trash entries whose removal is deferred.
    pub fn advance(&self, time: Duration) {
        self.state().now += time;
    }

    /// Takes off the watches that crashed sessions left behind ([`Session::linger`]).
    pub fn expire_watchers(&self, session: &Session) {
        let client = session.client();
        self.state().drop_watches(|watch| watch.session == client);
    }

    /// From now on `session` keeps the exclusive lock of each image it has open for writing, until
    /// it closes it, as `rbd map --exclusive` does. Others' writes fail with `EROFS`; what else
    /// they change it carries out for them. (Otherwise a lock goes to the client that needs it, and
    /// no caller sees it.)
    pub fn keep_locks(&self, session: &Session) {
        self.state().keep_locks(session.client());
    }

    /// Everything there is.
    pub fn graph(&self) -> Graph {
        Graph::of(&self.state())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        session::lock(&self.state)
    }
}
