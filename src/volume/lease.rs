//! Leases: who is at work on a record that says `creating` or `deleting`.
//!
//! A lease is a key beside the record's, written and removed in the same atomic changes as the record itself, and part of what guards
//! them. While its holder works it is renewed from time to time, also while a single call into librbd takes minutes. So a
//! record is taken over from a controller only when that one is dead, has let go of it, or was not heard of for long:
//!
//! - a process of this machine (and of this PID namespace) that does not exist any more is dead;
//! - a lease that did not change for [`PATIENCE`], by the own monotonic clock, has expired. Clocks are never compared.
//!
//! Who has been overtaken finds that out with its next write to the record, or its next look at it. A lease that is stored
//! otherwise than its holder believes, but is the same lease still, was renewed and the reply lost: it is held.
//!
//! Crash points: a killed holder leaves its lease, which the next one replaces.

use super::{Error, Result};
use crate::rbd::{Guard, OmapUpdate, Pool};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How long a lease must stay as it is to have expired: longer than any single write to Ceph takes before it times out.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a lease is renewed before it could expire.
const RENEWALS: u32 = 3;
/// How soon the thread that renews ends when the leases are gone.
const LOOK: Duration = Duration::from_secs(1);
/// How often a lease is tried to be taken while it changes.
const ATTEMPTS: usize = 5;

/// The leases that one process holds, and what it has seen of others'. Clones share it.
#[derive(Debug, Clone)]
pub struct Leases(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    holder: Holder,
    patience: Duration,
    held: Mutex<Vec<Held>>,
    /// Others' leases, by their id: as which renewal each was seen first, and when.
    seen: Mutex<HashMap<String, (u64, Instant)>>,
    renewing: OnceLock<()>,
}

/// A lease of this process, as it is seen without a lock that is held during I/O.
#[derive(Debug)]
struct Held {
    id: String,
    status: Arc<Status>,
    lease: Weak<Lease>,
}

#[derive(Debug)]
struct Status {
    held: AtomicBool,
    renewing: AtomicBool,
}

impl Default for Leases {
    fn default() -> Leases {
        Leases::new(PATIENCE)
    }
}

/// A process that holds leases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    /// Its host's name, for people.
    host: String,
    /// The boot of the machine it runs on.
    boot: String,
    /// The PID namespace it is in.
    namespace: u64,
    /// Its PID there.
    pid: u32,
    /// When it started, in the kernel's ticks since boot.
    started: u64,
    /// Tells apart what else could be the same.
    id: String,
}

/// A lease as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stored {
    version: u32,
    /// No two leases have the same.
    id: String,
    holder: Holder,
    /// Seconds since 1970 when it was taken.
    since: i64,
    /// How often it was renewed.
    renewed: u64,
}

impl Stored {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        #[expect(clippy::expect_used, reason = "a plain struct of strings and numbers always serialises")]
        serde_json::to_vec(self).expect("a lease serialises")
    }
}

/// Reads a lease.
pub(crate) fn parse(bytes: &[u8]) -> serde_json::Result<Stored> {
    serde_json::from_slice(bytes)
}

/// A lease that is held, given back when dropped.
#[derive(Debug)]
pub(super) struct Lease {
    pool: Arc<dyn Pool>,
    object: String,
    key: String,
    id: String,
    /// As it is stored, until it is given back. Locked during I/O.
    stored: Mutex<Option<Stored>>,
    status: Arc<Status>,
}

impl Leases {
    /// Those of a new process that takes a lease for expired when it did not change for `patience`.
    pub fn new(patience: Duration) -> Leases {
        let holder = Holder {
            id: uuid::Uuid::new_v4().simple().to_string(),
            ..LazyLock::force(&THIS_PROCESS).clone()
        };
        Leases(Arc::new(Inner {
            holder,
            patience,
            held: Mutex::default(),
            seen: Mutex::default(),
            renewing: OnceLock::new(),
        }))
    }

    /// Changes `object` by `update` and takes the lease `key` there with it.
    ///
    /// [`Error::Conflict`] when another holds it; `None` when a guard of `update` does not hold.
    pub(super) fn take(
        &self,
        pool: &Arc<dyn Pool>,
        object: &str,
        key: &str,
        update: &OmapUpdate,
    ) -> Result<Option<Arc<Lease>>> {
        let stored = Stored {
            version: 1,
            id: uuid::Uuid::new_v4().simple().to_string(),
            holder: self.0.holder.clone(),
            since: super::now(),
            renewed: 0,
        };
        let mut free = Guard::Absent(key.to_string());
        for _ in 0..ATTEMPTS {
            let mut with_lease = update.clone();
            with_lease.guards.push(free);
            with_lease.set.push((key.to_string(), stored.bytes()));
            match pool.omap_update(object, &with_lease) {
                Err(error) if error.errno == Errno::ECANCELED => {}
                other => {
                    other?;
                    return Ok(Some(self.held(pool, object, key, stored)));
                }
            }
            let mut keys: Vec<_> = update.guards.iter().map(Guard::key).collect();
            keys.push(key);
            let found = pool.omap_get(object, &keys)?;
            if !update.guards.iter().all(|guard| guard.holds(found.get(guard.key()).map(Vec::as_slice))) {
                return Ok(None);
            }
            free = match found.get(key) {
                // Given back just now.
                None => Guard::Absent(key.to_string()),
                Some(bytes) => {
                    let theirs = parse(bytes).map_err(|error| {
                        Error::FailedPrecondition(format!(
                            "the lease {key} in the RADOS object {object} cannot be read ({error}); nothing was changed"
                        ))
                    })?;
                    self.refuse_if_alive(key, &theirs)?;
                    Guard::Equals(key.to_string(), bytes.clone())
                }
            };
        }
        Err(Error::Conflict(format!("others took and gave back {key} all the time")))
    }

    fn held(&self, pool: &Arc<dyn Pool>, object: &str, key: &str, stored: Stored) -> Arc<Lease> {
        let status = Arc::new(Status { held: AtomicBool::new(true), renewing: AtomicBool::new(false) });
        let lease = Arc::new(Lease {
            pool: pool.clone(),
            object: object.to_string(),
            key: key.to_string(),
            id: stored.id.clone(),
            stored: Mutex::new(Some(stored)),
            status: status.clone(),
        });
        let mut held = lock(&self.0.held);
        held.retain(|held| held.status.held.load(Ordering::SeqCst));
        held.push(Held { id: lease.id.clone(), status, lease: Arc::downgrade(&lease) });
        drop(held);
        if !self.0.patience.is_zero() {
            self.0.renewing.get_or_init(|| keep_renewing(Arc::downgrade(&self.0)));
        }
        lease
    }

    /// [`Error::Conflict`] unless the holder of a lease is dead, or has it no more, or has not renewed it for long.
    fn refuse_if_alive(&self, key: &str, theirs: &Stored) -> Result<()> {
        let record = key.strip_prefix(KIND).unwrap_or(key);
        let since = super::now() - theirs.since;
        if theirs.holder.id == self.0.holder.id {
            let is_this = |held: &Held| held.id == theirs.id && held.status.held.load(Ordering::SeqCst);
            if !lock(&self.0.held).iter().any(is_this) {
                return Ok(());
            }
            return Err(Error::Conflict(format!(
                "another operation of this driver is at work on {record} for {since} seconds"
            )));
        }
        if theirs.holder.is_dead() {
            return Ok(());
        }
        let mut seen = lock(&self.0.seen);
        // Whoever renewed a lease last so long ago has given it back since, or nobody asks for it any more.
        seen.retain(|_, (_, first)| first.elapsed() <= self.0.patience.saturating_mul(100));
        let entry = seen.entry(theirs.id.clone()).or_insert((theirs.renewed, Instant::now()));
        if entry.0 != theirs.renewed {
            *entry = (theirs.renewed, Instant::now());
        }
        let unchanged = entry.1.elapsed();
        if unchanged >= self.0.patience {
            return Ok(());
        }
        Err(Error::Conflict(format!(
            "another controller, process {} on {}, is at work on {record} for {since} seconds; if it is dead, its work is taken \
             over in {} seconds",
            theirs.holder.pid,
            theirs.holder.host,
            self.0.patience.saturating_sub(unchanged).as_secs() + 1
        )))
    }
}

/// What the keys of leases begin with.
pub(super) const KIND: &str = "lease/";

impl Lease {
    /// Changes its object by `update` if the lease is still held, and gives it back in the same change if `over`.
    /// `ECANCELED` when it is not held any more, or a guard does not hold.
    pub(super) fn change(&self, update: &OmapUpdate, over: bool) -> crate::rbd::Result<()> {
        let mut stored = lock(&self.stored);
        let changed = match self.try_change(stored.as_ref(), update, over) {
            Err(error) if error.errno == Errno::ECANCELED && self.adopt(&mut stored)? => {
                self.try_change(stored.as_ref(), update, over)
            }
            other => other,
        };
        if over && changed.is_ok() {
            *stored = None;
            self.status.held.store(false, Ordering::SeqCst);
        }
        changed
    }

    fn try_change(&self, stored: Option<&Stored>, update: &OmapUpdate, over: bool) -> crate::rbd::Result<()> {
        let mut update = update.clone();
        update.guards.push(match stored {
            Some(stored) => Guard::Equals(self.key.clone(), stored.bytes()),
            None => Guard::Absent(self.key.clone()),
        });
        if over {
            update.remove.push(self.key.clone());
        }
        self.pool.omap_update(&self.object, &update)
    }

    /// Whether it is held, and the key of its object's omap `record` has the value `bytes`.
    pub(super) fn holds_with(&self, record: &str, bytes: &[u8]) -> crate::rbd::Result<bool> {
        let mut stored = lock(&self.stored);
        let found = self.pool.omap_get(&self.object, &[record, &self.key])?;
        let held = match found.get(&self.key) {
            Some(lease) => self.is_ours(lease, &mut stored),
            None => stored.is_none(),
        };
        Ok(held && found.get(record).map(Vec::as_slice) == Some(bytes))
    }

    /// Takes what is stored for ours when it differs from what we believe and is still this lease: it was renewed, and the reply
    /// was lost. Says whether it did.
    fn adopt(&self, stored: &mut Option<Stored>) -> crate::rbd::Result<bool> {
        let before = stored.clone();
        let found = self.pool.omap_get(&self.object, &[&self.key])?;
        Ok(found.get(&self.key).is_some_and(|lease| self.is_ours(lease, stored)) && *stored != before)
    }

    /// Whether this is our lease as it is stored, which we believe from then on.
    fn is_ours(&self, lease: &[u8], stored: &mut Option<Stored>) -> bool {
        match parse(lease) {
            Ok(found) if found.id == self.id => stored.as_mut().is_some_and(|stored| {
                *stored = found;
                true
            }),
            _ => false,
        }
    }

    fn renew(&self) {
        let mut stored = lock(&self.stored);
        if stored.is_none() {
            return;
        }
        let renewed = match self.try_renew(&mut stored) {
            Err(error) if error.errno == Errno::ECANCELED => match self.adopt(&mut stored) {
                Ok(true) => self.try_renew(&mut stored),
                Ok(false) => Err(error),
                Err(error) => Err(error),
            },
            other => other,
        };
        // Its holder hears of it with the next write.
        if let Err(error) = renewed {
            tracing::warn!(lease = self.key, %error, "a lease could not be renewed");
        }
    }

    fn try_renew(&self, stored: &mut Option<Stored>) -> crate::rbd::Result<()> {
        let Some(before) = &stored else { return Ok(()) };
        let renewed = Stored { renewed: before.renewed + 1, ..before.clone() };
        let update = OmapUpdate {
            guards: vec![Guard::Equals(self.key.clone(), before.bytes())],
            set: vec![(self.key.clone(), renewed.bytes())],
            remove: vec![],
        };
        self.pool.omap_update(&self.object, &update)?;
        *stored = Some(renewed);
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let held = lock(&self.stored).is_some();
        if held && let Err(error) = self.change(&OmapUpdate::default(), true) {
            tracing::debug!(lease = self.key, %error, "a lease is left to expire");
        }
        self.status.held.store(false, Ordering::SeqCst);
    }
}

/// Renews what is held, in a thread of its own, for as long as `inner` exists. Each renewal has its own thread too: one that hangs
/// keeps no other from happening. Only those threads own leases meanwhile, so that a last owner's give-back hangs no other either.
fn keep_renewing(inner: Weak<Inner>) {
    let Some(patience) = inner.upgrade().map(|inner| inner.patience) else { return };
    let renew_all = move || {
        while let Some(leases) = inner.upgrade() {
            for held in lock(&leases.held).iter().filter(|held| held.status.held.load(Ordering::SeqCst)) {
                if held.status.renewing.swap(true, Ordering::SeqCst) {
                    continue;
                }
                let (status, lease) = (held.status.clone(), held.lease.clone());
                let renewal = move || {
                    if let Some(lease) = lease.upgrade() {
                        lease.renew();
                    }
                    status.renewing.store(false, Ordering::SeqCst);
                };
                if let Err(error) = std::thread::Builder::new().name("lease".into()).spawn(renewal) {
                    tracing::warn!(%error, "a lease is renewed later");
                    held.status.renewing.store(false, Ordering::SeqCst);
                }
            }
            drop(leases);
            let mut left = patience / RENEWALS;
            while !left.is_zero() && inner.strong_count() > 0 {
                let slice = left.min(LOOK);
                std::thread::sleep(slice);
                left -= slice;
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("leases".into()).spawn(renew_all) {
        tracing::warn!(%error, "leases are not renewed");
    }
}

/// This process, as a holder without an id.
static THIS_PROCESS: LazyLock<Holder> = LazyLock::new(|| {
    let pid = std::process::id();
    Holder {
        host: nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        boot: boot(),
        namespace: pid_namespace(),
        pid,
        started: start_of(pid).unwrap_or_default(),
        id: String::new(),
    }
});

impl Holder {
    /// Whether it is certain that the process does not exist any more.
    fn is_dead(&self) -> bool {
        let here = LazyLock::force(&THIS_PROCESS);
        let comparable = self.boot == here.boot && self.namespace == here.namespace;
        comparable
            && !self.boot.is_empty()
            && self.namespace != 0
            && self.started != 0
            && match start_of(self.pid) {
                Ok(started) => started != self.started,
                Err(error) => error.kind() == ErrorKind::NotFound,
            }
    }
}

/// The id of this machine's boot, "" when it cannot be read.
fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_string()
}

/// The number of this process's PID namespace, 0 when it cannot be read.
fn pid_namespace() -> u64 {
    fs::metadata("/proc/self/ns/pid").map_or(0, |namespace| namespace.ino())
}

/// When a process started, in ticks since boot. `NotFound` when it does not exist, or nothing is left of it but its exit code.
fn start_of(pid: u32) -> std::io::Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path)?;
    // The program's name, in parentheses, may hold anything.
    let (_, fields) = stat.rsplit_once(')').unwrap_or_default();
    let mut fields = fields.split_ascii_whitespace();
    if matches!(fields.next(), Some("Z" | "X")) {
        return Err(ErrorKind::NotFound.into());
    }
    let started = fields.nth(18).and_then(|field| field.parse().ok());
    started.ok_or_else(|| std::io::Error::other(format!("{path} is not as expected")))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_gone_is_told_from_one_that_is_not() {
        let this = LazyLock::force(&THIS_PROCESS).clone();
        assert!(!this.is_dead());
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let holder = Holder { pid: child.id(), started: start_of(child.id()).unwrap(), ..this.clone() };
        assert!(!holder.is_dead());
        // Another one has its number now.
        assert!(Holder { started: holder.started + 1, ..holder.clone() }.is_dead());
        child.kill().unwrap();
        // Nobody has asked for its exit code yet.
        let deadline = Instant::now() + Duration::from_mins(1);
        while !holder.is_dead() {
            assert!(Instant::now() < deadline, "a killed process lives for ever");
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(holder.is_dead());
        // Of those elsewhere nothing is known.
        assert!(!Holder { boot: "another".into(), ..holder.clone() }.is_dead());
        assert!(!Holder { namespace: holder.namespace + 1, ..holder }.is_dead());
    }
}
