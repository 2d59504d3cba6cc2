//! Leases: which controller is at work on a record that says `creating` or `deleting`.
//!
//! A lease is a key beside the record's. The atomic changes that write and remove the record also write
//! and remove its lease, and the lease is part of what guards them. It names the clients that work under
//! it, by their addresses as Ceph's blocklist has them: the connection that took it, and each further
//! one, which is written into it before it changes anything.
//!
//! The holder renews the lease while it works, also while a single call into librbd takes minutes. A
//! controller takes a record over from another one when that one's process, on this machine and in this
//! PID namespace, does not exist any more, or when its lease did not change for [`PATIENCE`].
//! - Time is this machine's monotonic clock. Clocks are never compared.
//! - Only time counts during which this controller could read the lease. So two controllers that both
//!   lose Ceph do not take each other for dead.
//!
//! **Before it takes the lease over, it puts the clients in it on the blocklist.** From then on no call
//! of the other can change anything, also none that was begun before, however long its threads stood
//! still. So a controller with a lease needs no look at its record before a call. Its own next call
//! tells it when it was overtaken: `ESHUTDOWN`. Without the right to blocklist nothing is taken over.
//!
//! The same holds inside a process: an operation whose connection hangs loses its lease to the next one,
//! which has another connection.
//!
//! A lease that is over and could not be given back is given back as soon as Ceph answers, so that a
//! healthy controller is not taken for a silent one.
//!
//! A version before 2 named no clients. Its leases are taken over as it did itself, without fencing. It
//! cannot read those of this version, and leaves their records alone.
//!
//! A lease that is stored otherwise than its holder believes, but is the same lease still, was renewed
//! and the reply lost: it is held.
//!
//! Crash points: a killed holder leaves its lease, which the next one replaces. A controller killed
//! between the blocklist and the lease leaves both as they are, and the next one does the same again.

use super::{Error, Result};
use crate::notes::FENCED_SECONDS;
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

/// The version of leases this build writes.
const VERSION: u32 = 2;

/// The leases that one process holds, and what it has seen of others'. Clones share it.
#[derive(Debug, Clone)]
pub struct Leases(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    holder: Holder,
    patience: Duration,
    held: Mutex<Vec<Held>>,
    /// Leases that stand in the way of an operation here, by their id.
    seen: Mutex<HashMap<String, Seen>>,
    /// Leases that are over, and could not be given back.
    owed: Mutex<Vec<Owed>>,
    /// Clients that were fenced, with the own address that each was fenced from, and when.
    fenced: Mutex<HashMap<(String, String), Instant>>,
    renewing: OnceLock<()>,
}

/// A lease that stands in the way, as it was read last.
#[derive(Debug)]
struct Seen {
    pool: Arc<dyn Pool>,
    object: String,
    key: String,
    renewals: u64,
    /// When it was read last.
    read: Instant,
    /// How long it was readable and did not change.
    silent: Duration,
    /// Whether it is being read again.
    looking: bool,
}

/// A lease that is over, and could not be given back. A controller that took it for silent would fence a
/// healthy one.
#[derive(Debug)]
struct Owed {
    pool: Arc<dyn Pool>,
    object: String,
    key: String,
    id: String,
    since: Instant,
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
    /// The addresses of the clients that work under it. Version 1 has none.
    #[serde(default)]
    clients: Vec<String>,
    /// How often it was renewed. Version 1 has another name for it, so that it cannot read this one.
    #[serde(alias = "renewed")]
    renewals: u64,
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
    leases: Weak<Inner>,
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
            owed: Mutex::default(),
            fenced: Mutex::default(),
            renewing: OnceLock::new(),
        }))
    }

    /// Changes `object` by `update` and takes the lease `key` there with it.
    ///
    /// [`Error::Conflict`] when another holds it; `None` when a guard of `update` does not hold; `EPERM`
    /// when it is to be taken over and the user may not blocklist.
    pub(super) fn take(
        &self,
        pool: &Arc<dyn Pool>,
        object: &str,
        key: &str,
        update: &OmapUpdate,
    ) -> Result<Option<Arc<Lease>>> {
        let stored = Stored {
            version: VERSION,
            id: uuid::Uuid::new_v4().simple().to_string(),
            holder: self.0.holder.clone(),
            since: super::now(),
            clients: vec![pool.cluster().address()?],
            renewals: 0,
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
                    self.overtake(pool, object, key, &theirs)?;
                    Guard::Equals(key.to_string(), bytes.clone())
                }
            };
        }
        Err(Error::Conflict(format!("others took and gave back {key} all the time")))
    }

    fn held(&self, pool: &Arc<dyn Pool>, object: &str, key: &str, stored: Stored) -> Arc<Lease> {
        let status = Arc::new(Status { held: AtomicBool::new(true), renewing: AtomicBool::new(false) });
        let lease = Arc::new(Lease {
            leases: Arc::downgrade(&self.0),
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
        self.0.keep_renewing();
        lease
    }

    /// Makes sure that no client works under a lease any more. [`Error::Conflict`] unless its holder is
    /// dead, or has given it up, or has not renewed it for long.
    fn overtake(&self, pool: &Arc<dyn Pool>, object: &str, key: &str, theirs: &Stored) -> Result<()> {
        let record = key.strip_prefix(KIND).unwrap_or(key);
        let since = super::now() - theirs.since;
        let ours = theirs.holder.id == self.0.holder.id;
        let is_it = |held: &Held| held.id == theirs.id && held.status.held.load(Ordering::SeqCst);
        if ours && !lock(&self.0.held).iter().any(is_it) {
            // That operation is over, and could not give its lease back.
            return Ok(());
        }
        if ours && theirs.clients.contains(&pool.cluster().address()?) {
            return Err(Error::Conflict(format!(
                "another operation of this driver is at work on {record} for {since} seconds"
            )));
        }
        if !theirs.holder.is_dead() {
            let silent = self.0.observe(pool, object, key, theirs);
            let left = self.0.patience.saturating_sub(silent);
            if !left.is_zero() {
                let holder = if ours {
                    "another operation of this driver, on a connection that was given up,".to_string()
                } else {
                    format!("another controller, process {} on {},", theirs.holder.pid, theirs.holder.host)
                };
                return Err(Error::Conflict(format!(
                    "{holder} is at work on {record} for {since} seconds; if it is dead, its work is taken over in {} seconds",
                    left.as_secs() + 1
                )));
            }
        }
        self.fence(pool, record, theirs)
    }

    /// Puts the clients that work under a lease on the blocklist. Those that are on it already, as far as the
    /// connection of `pool` knows, stay as they are: each entry costs a round of the monitors.
    fn fence(&self, pool: &Arc<dyn Pool>, record: &str, theirs: &Stored) -> Result<()> {
        let cluster = pool.cluster();
        let own = cluster.address()?;
        if theirs.clients.is_empty() {
            tracing::warn!(
                record,
                host = theirs.holder.host,
                "a version of the driver that names no clients left this; it is taken over without fencing"
            );
        }
        for client in &theirs.clients {
            let known = (own.clone(), client.clone());
            let fresh = Duration::from_secs(u64::from(FENCED_SECONDS) / 2);
            {
                let mut fenced = lock(&self.0.fenced);
                fenced.retain(|_, at| at.elapsed() < fresh);
                if fenced.contains_key(&known) {
                    continue;
                }
            }
            tracing::warn!(
                record,
                client,
                host = theirs.holder.host,
                process = theirs.holder.pid,
                "a controller that is dead or silent is fenced, and its work taken over"
            );
            cluster.blocklist(client, FENCED_SECONDS)?;
            lock(&self.0.fenced).insert(known, Instant::now());
        }
        Ok(())
    }
}

impl Inner {
    /// How long a lease that was read just now was readable and did not change.
    fn observe(self: &Arc<Inner>, pool: &Arc<dyn Pool>, object: &str, key: &str, lease: &Stored) -> Duration {
        self.keep_renewing();
        let mut seen = lock(&self.seen);
        let now = Instant::now();
        let entry = seen.entry(lease.id.clone()).or_insert_with(|| Seen {
            pool: pool.clone(),
            object: object.to_string(),
            key: key.to_string(),
            renewals: lease.renewals,
            read: now,
            silent: Duration::ZERO,
            looking: false,
        });
        let gap = now - entry.read;
        if entry.renewals != lease.renewals {
            entry.silent = Duration::ZERO;
        } else if entry.silent < self.patience {
            // In a longer gap a read has failed, or has waited: the holder could not renew it either.
            let readable = gap <= self.patience / RENEWALS * 3 / 2;
            entry.silent = if readable { entry.silent + gap } else { Duration::ZERO };
        }
        (entry.renewals, entry.read) = (lease.renewals, now);
        entry.silent
    }

    /// Reads again the leases that stand in the way, each in a thread of its own, and forgets those that are renewed or gone, and
    /// those that have expired long ago.
    fn look_again(self: &Arc<Inner>) {
        let mut seen = lock(&self.seen);
        seen.retain(|_, seen| seen.read.elapsed() < self.patience.saturating_mul(10));
        for (id, seen) in seen.iter_mut() {
            if seen.silent >= self.patience || std::mem::replace(&mut seen.looking, true) {
                continue;
            }
            let (inner, id, pool) = (self.clone(), id.clone(), seen.pool.clone());
            let (object, key) = (seen.object.clone(), seen.key.clone());
            let look = move || {
                let found = pool.omap_get(&object, &[&key]);
                let is_it = |lease: &Stored| lease.id == id;
                let silent = found.map(|found| {
                    let lease = found.get(&key).and_then(|bytes| parse(bytes).ok()).filter(is_it);
                    lease.map(|lease| inner.observe(&pool, &object, &key, &lease))
                });
                let mut seen = lock(&inner.seen);
                match silent {
                    Ok(None | Some(Duration::ZERO)) => drop(seen.remove(&id)),
                    _ => drop(seen.get_mut(&id).map(|seen| seen.looking = false)),
                }
            };
            if let Err(error) = std::thread::Builder::new().name("lease".into()).spawn(look) {
                tracing::warn!(%error, "a lease is read later");
                seen.looking = false;
            }
        }
    }

    /// Gives back what is owed, each in a thread of its own, for as long as others may look at it.
    fn give_back(self: &Arc<Inner>) {
        for owed in std::mem::take(&mut *lock(&self.owed)) {
            let inner = self.clone();
            let give_back = move || match owed.give_back() {
                Err(error)
                    if error.errno != Errno::ESHUTDOWN && owed.since.elapsed() < inner.patience * 10 =>
                {
                    lock(&inner.owed).push(owed);
                }
                _ => {}
            };
            if let Err(error) = std::thread::Builder::new().name("lease".into()).spawn(give_back) {
                tracing::warn!(%error, "a lease is left to expire");
            }
        }
    }

    /// Begins to renew what is held, and to read again what stands in the way, for as long as the leases exist.
    fn keep_renewing(self: &Arc<Inner>) {
        if !self.patience.is_zero() {
            self.renewing.get_or_init(|| keep_renewing(Arc::downgrade(self)));
        }
    }
}

impl Owed {
    fn give_back(&self) -> crate::rbd::Result<()> {
        let found = self.pool.omap_get(&self.object, &[&self.key])?;
        let Some(bytes) = found.get(&self.key) else { return Ok(()) };
        if parse(bytes).is_ok_and(|lease| lease.id != self.id) {
            return Ok(());
        }
        let update = OmapUpdate {
            guards: vec![Guard::Equals(self.key.clone(), bytes.clone())],
            set: vec![],
            remove: vec![self.key.clone()],
        };
        self.pool.omap_update(&self.object, &update)
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

    /// Writes a further client that is to work under the lease, by its address. `ECANCELED` when the lease is
    /// not held any more.
    pub(super) fn add_client(&self, address: &str) -> crate::rbd::Result<()> {
        self.rewrite(|stored| {
            if !stored.clients.iter().any(|known| known == address) {
                stored.clients.push(address.to_string());
            }
        })
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
        // Its holder hears of a failure with its next call.
        if let Err(error) = self.rewrite(|stored| stored.renewals += 1) {
            tracing::warn!(lease = self.key, %error, "a lease could not be renewed");
        }
    }

    /// Changes what is stored of the lease, if it has not been given back.
    fn rewrite(&self, change: impl Fn(&mut Stored)) -> crate::rbd::Result<()> {
        let mut stored = lock(&self.stored);
        match self.try_rewrite(&mut stored, &change) {
            Err(error) if error.errno == Errno::ECANCELED && self.adopt(&mut stored)? => {
                self.try_rewrite(&mut stored, &change)
            }
            other => other,
        }
    }

    fn try_rewrite(
        &self,
        stored: &mut Option<Stored>,
        change: &impl Fn(&mut Stored),
    ) -> crate::rbd::Result<()> {
        let Some(before) = &stored else { return Ok(()) };
        let mut changed = before.clone();
        change(&mut changed);
        let update = OmapUpdate {
            guards: vec![Guard::Equals(self.key.clone(), before.bytes())],
            set: vec![(self.key.clone(), changed.bytes())],
            remove: vec![],
        };
        self.pool.omap_update(&self.object, &update)?;
        *stored = Some(changed);
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let held = lock(&self.stored).is_some();
        if held && let Err(error) = self.change(&OmapUpdate::default(), true) {
            tracing::debug!(lease = self.key, %error, "a lease is given back later");
            if let Some(leases) = self.leases.upgrade() {
                lock(&leases.owed).push(Owed {
                    pool: self.pool.clone(),
                    object: self.object.clone(),
                    key: self.key.clone(),
                    id: self.id.clone(),
                    since: Instant::now(),
                });
            }
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
            leases.look_again();
            leases.give_back();
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
