//! One client of the model, and what a test does to it: crashes, errors, lost replies, a hook, a
//! log.
//!
//! Every trait method that returns a `Result` is one *call*, numbered from 1 in the order the
//! session made them. Closing an image (a drop) is not a call. A call that changes the cluster does
//! so in *steps*, numbered from 1: each step is one write librbd sends, and a process may die after
//! any of them. [`Session::crash_points`] lists all the places where the calls of a finished run
//! could have died, so that a test can sweep them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::cluster::ModelCluster;
use super::state::{ImageRef, Outcome, Place, State, Watch};
use crate::rbd::{Cluster, Errno, Error, Result};

/// What happens to one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process dies before the call does anything.
    CrashBefore,
    /// The process dies inside the call, right after this step (from 1). A call with fewer steps is
    /// not hit.
    CrashInside(usize),
    /// The process dies after the call's last step, before it sees the answer.
    CrashAfter,
    /// The call fails with this errno and does nothing.
    Fail(Errno),
    /// The call does all its work, but fails with this errno: the reply was lost.
    LoseReply(Errno),
}

/// A call about to be made, as the hook of [`Session::on_call`] sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallInfo {
    /// Its number in this session, from 1.
    pub number: usize,
    /// The trait method.
    pub method: &'static str,
    /// What it is about, as an image spec where there is one.
    pub object: String,
}

/// A call that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallRecord {
    /// Which call.
    pub info: CallInfo,
    /// How many steps it took: writes to the cluster. Zero for a call that only read.
    pub steps: usize,
    /// What the caller was told: nothing, or this errno.
    pub error: Option<Errno>,
}

impl fmt::Display for CallRecord {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CallInfo { number, method, object } = &self.info;
        write!(formatter, "{number:>4} {method} {object} ({} steps)", self.steps)?;
        match self.error {
            Some(errno) => write!(formatter, ": {errno:?}"),
            None => Ok(()),
        }
    }
}

/// Called before each call, with no lock held: it may use the model and other sessions.
pub type Hook = Box<dyn FnMut(&CallInfo) + Send>;

/// One client of a [`Model`](super::Model): one process with one connection. Clones are the same
/// client.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

struct Inner {
    number: u64,
    state: Arc<Mutex<State>>,
    control: Mutex<Control>,
    cookies: AtomicU64,
}

#[derive(Default)]
struct Control {
    dead: bool,
    linger: bool,
    read_only: Vec<Place>,
    timed_out: bool,
    calls: usize,
    faults: BTreeMap<usize, Fault>,
    records: Vec<CallRecord>,
    hook: Option<Hook>,
}

impl fmt::Debug for Session {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Session({})", self.inner.number)
    }
}

impl Session {
    pub(super) fn new(state: Arc<Mutex<State>>, number: u64) -> Session {
        let inner = Inner {
            number,
            state,
            control: Mutex::new(Control::default()),
            cookies: AtomicU64::new(1),
        };
        Session { inner: Arc::new(inner) }
    }

    /// The connection, as the code under test sees it.
    pub fn cluster(&self) -> Arc<dyn Cluster> {
        Arc::new(ModelCluster::new(self.clone()))
    }

    /// Plans `fault` for call number `call` of this session (from 1), replacing what was planned
    /// for it.
    pub fn inject(&self, call: usize, fault: Fault) {
        self.control().faults.insert(call, fault);
    }

    /// Nothing is planned for any call any more.
    pub fn forget_faults(&self) {
        self.control().faults.clear();
    }

    /// Calls `hook` before each call of this session from now on. No lock is held while it runs, so
    /// it may make calls on other sessions and inspect the model; calls of this session made inside
    /// it do not run it again.
    pub fn on_call(&self, hook: impl FnMut(&CallInfo) + Send + 'static) {
        self.control().hook = Some(Box::new(hook));
    }

    /// Kills the process now: every later call fails with `ESHUTDOWN`, its watchers vanish (see
    /// [`Session::linger`]).
    pub fn crash(&self) {
        let linger = {
            let mut control = self.control();
            control.dead = true;
            control.linger
        };
        if !linger {
            self.state().drop_watches(|watch| watch.session == self.inner.number);
        }
    }

    /// From now on the watchers of this session outlive its crash until
    /// [`Model::expire_watchers`](super::Model::expire_watchers), as they do on Ceph for half a
    /// minute.
    pub fn linger(&self) {
        self.control().linger = true;
    }

    /// From now on the user of this session may only read there, as with `profile rbd-read-only`:
    /// what changes something is `EPERM`, but for the list of a snapshot's clones.
    pub fn read_only(&self, pool: &str, namespace: &str) {
        self.control().read_only.push(Place::new(pool, namespace));
    }

    /// Whether the session crashed.
    pub fn is_dead(&self) -> bool {
        self.control().dead
    }

    /// The number of calls begun so far.
    pub fn calls(&self) -> usize {
        self.control().calls
    }

    /// Every call finished so far, in the order they finished.
    pub fn log(&self) -> Vec<CallRecord> {
        self.control().records.clone()
    }

    /// Every place where the calls made so far could have died with a different cluster left
    /// behind: before the first step of all, and after each step of each call. Calls that only read
    /// add none.
    pub fn crash_points(&self) -> Vec<(usize, Fault)> {
        let control = self.control();
        let writes = || control.records.iter().filter(|record| record.steps > 0);
        let first = writes().next().map(|record| (record.info.number, Fault::CrashBefore));
        let after = |record: &CallRecord| {
            let number = record.info.number;
            (1..=record.steps).map(move |step| (number, Fault::CrashInside(step)))
        };
        first.into_iter().chain(writes().flat_map(after)).collect()
    }

    /// This client's address as a blocklist would name it.
    pub(super) fn address(&self) -> String {
        format!("192.0.2.{}:0/{}", self.inner.number % 256, self.inner.number)
    }

    /// The address of the connection that this client makes beside its own for some calls. It does
    /// no work of its own here.
    pub(super) fn second_address(&self) -> String {
        format!("192.0.2.{}:1/{}", self.inner.number % 256, self.inner.number)
    }

    /// This client's global id.
    pub(super) fn client(&self) -> u64 {
        self.inner.number
    }

    /// A new watch of this client.
    pub(super) fn new_watch(&self) -> Watch {
        let cookie = self.inner.cookies.fetch_add(1, Ordering::Relaxed);
        Watch { session: self.client(), cookie, address: self.address(), keeps_lock: false }
    }

    /// Makes one call: runs the hook, applies the fault planned for it, runs `body`, and writes the
    /// log.
    pub(super) fn call<T>(
        &self,
        method: &'static str,
        object: impl Into<String>,
        body: impl FnOnce(&mut Call<'_>) -> Outcome<T>,
    ) -> Result<T> {
        let mut info = CallInfo { number: 0, method, object: object.into() };
        let fault = match self.begin(&mut info) {
            Ok(fault) => fault,
            Err(errno) => return Err(Error::new(errno, method, info.object)),
        };
        let crash_after =
            if let Some(Fault::CrashInside(step)) = fault { Some(step) } else { None };
        let mut call = Call { session: self, steps: 0, crash_after, watches: Vec::new() };
        let mut outcome = match fault {
            Some(Fault::CrashBefore) => Err(Errno::ESHUTDOWN),
            Some(Fault::Fail(errno)) => Err(errno),
            _ => body(&mut call),
        };
        let steps = call.steps;
        let watches = std::mem::take(&mut call.watches);
        let crashed = match fault {
            Some(Fault::CrashBefore | Fault::CrashAfter) => true,
            Some(Fault::CrashInside(step)) => steps >= step,
            _ => false,
        };
        if crashed {
            self.crash();
            outcome = Err(Errno::ESHUTDOWN);
        } else {
            let mut state = self.state();
            for (image, cookie) in watches {
                state.unwatch(&image, self.client(), cookie);
            }
        }
        if let (Some(Fault::LoseReply(errno)), Ok(_)) = (fault, &outcome) {
            outcome = Err(errno);
        }
        let error = outcome.as_ref().err().copied();
        let answer = outcome.map_err(|errno| Error::new(errno, method, info.object.clone()));
        let mut control = self.control();
        control.timed_out |= error == Some(Errno::ETIMEDOUT);
        control.records.push(CallRecord { info, steps, error });
        drop(control);
        answer
    }

    /// Numbers the call and runs the hook; the fault planned for it, or `ESHUTDOWN` when the
    /// session is dead.
    fn begin(&self, info: &mut CallInfo) -> Outcome<Option<Fault>> {
        let hook = {
            let blocklisted = self.is_blocklisted();
            let mut control = self.control();
            if control.dead || blocklisted {
                return Err(Errno::ESHUTDOWN);
            }
            control.calls += 1;
            info.number = control.calls;
            control.hook.take()
        };
        if let Some(mut hook) = hook {
            hook(info);
            self.control().hook.get_or_insert(hook);
        }
        let blocklisted = self.is_blocklisted();
        let control = self.control();
        if control.dead || blocklisted {
            Err(Errno::ESHUTDOWN)
        } else {
            Ok(control.faults.get(&info.number).copied())
        }
    }

    /// Whether a call of this client timed out.
    pub(super) fn has_timed_out(&self) -> bool {
        self.control().timed_out
    }

    /// Whether the cluster refuses this client.
    pub fn is_blocklisted(&self) -> bool {
        self.state().blocklist.contains(&self.address())
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.inner.state)
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        lock(&self.inner.control)
    }
}

/// Locks, also after a test's hook or assertion panicked with the lock held.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A call being made.
pub(super) struct Call<'a> {
    session: &'a Session,
    steps: usize,
    crash_after: Option<usize>,
    watches: Vec<(ImageRef, u64)>,
}

impl<'a> Call<'a> {
    /// The cluster. The guard must be gone before anything the caller gave us runs.
    pub(super) fn state(&self) -> MutexGuard<'a, State> {
        self.session.state()
    }

    /// `EPERM` for a user who may only read at `place`.
    pub(super) fn may_write(&self, place: &Place) -> Outcome<()> {
        let may = !self.session.control().read_only.contains(place);
        may.then_some(()).ok_or(Errno::EPERM)
    }

    /// Marks one write as done. `ESHUTDOWN` when the process dies right after it.
    pub(super) fn step(&mut self) -> Outcome<()> {
        self.steps += 1;
        if self.crash_after == Some(self.steps) { Err(Errno::ESHUTDOWN) } else { Ok(()) }
    }

    /// Registers the watch of an image librbd opens inside this call; it goes when the call ends,
    /// or with the session when the process dies in it.
    pub(super) fn watch(&mut self, state: &mut State, image: &ImageRef) {
        let watch = self.session.new_watch();
        let cookie = watch.cookie;
        if state.watch(image, watch).is_ok() {
            self.watches.push((image.clone(), cookie));
        }
    }
}
