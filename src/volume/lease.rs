//! Leases: which controller is at work on a record that says `creating` or `deleting`.
//!
//! A lease is a key beside the record's. The atomic changes that write and remove the record also
//! write and remove its lease, and the lease is part of what guards them. It names the clients that
//! work under it, by their addresses as Ceph's blocklist has them: the connection that took it, and
//! each further one, which is written into it before it changes anything.
//!
//! The holder renews the lease while it works, also while a single call into librbd takes minutes.
//! A controller takes a record over from another one when that one's process, on this machine and
//! in this PID namespace, does not exist any more, or when its lease did not change for
//! [`PATIENCE`].
//! - Time is this machine's monotonic clock. Clocks are never compared.
//! - Only time counts during which this controller could read the lease, and it takes over only
//!   when it can write, too. So two controllers that both lose Ceph do not take each other for
//!   dead.
//!
//! **Before it takes the lease over, it puts the clients in it on the blocklist.** From then on no
//! call of theirs changes anything, also none that was begun before, however long its threads stood
//! still. So a controller with a lease needs no look at its record before a call. Its own next call
//! tells it when it was overtaken: `ESHUTDOWN`. Without the right to blocklist nothing is taken
//! over. What a client has asked of another one that has an image's exclusive lock is not stopped:
//! that one cuts a snapshot, or resizes, by itself.
//!
//! The same holds inside a process. An operation that [counts as hung](Activity::is_given_up) does
//! not renew its lease. The next one for the same record has another connection, and fences the
//! first.
//!
//! A failed operation gives its lease back, and another one takes it without fencing. When a call
//! of it timed out, that call can be on its way still. Then the lease stays, marked as over, and
//! the next operation fences its clients at once. A lease that cannot be given back is given back
//! later, so that a healthy controller is not taken for a silent one.
//!
//! A version before 2 named no clients. Its leases are taken over as it did itself, without
//! fencing. It cannot read those of this version, and leaves their records alone.
//!
//! A lease that is stored otherwise than its holder believes, but is the same lease still, was
//! renewed and the reply lost: it is held.
//!
//! Crash points: a killed holder leaves its lease, which the next one replaces. A controller killed
//! between the blocklist and the lease leaves both as they are, and the next one does the same
//! again.

use super::{Activity, Error, Result};
use crate::metrics::metrics;
use crate::notes::FENCED_SECONDS;
use crate::rbd::{Errno, Guard, OmapUpdate, Pool};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

mod stored;
mod upkeep;

use stored::{Holder, VERSION};
pub(crate) use stored::{Stored, parse};
use upkeep::{Held, Owed, Status, Upkeep, lock};

/// How long a lease must stay as it is to have expired: longer than any single write to Ceph takes
/// before it times out.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a lease is tried to be taken while it changes.
const ATTEMPTS: usize = 5;

/// What the keys of leases begin with.
pub(super) const KIND: &str = "lease/";

/// The leases that one process holds, and what it has seen of others', for one operation. Clones
/// share it.
#[derive(Debug, Clone)]
pub struct Leases {
    process: Arc<Upkeep>,
    operation: Weak<Activity>,
}

/// A lease that is held, given back when dropped.
#[derive(Debug)]
pub(super) struct Lease {
    process: Weak<Upkeep>,
    pool: Arc<dyn Pool>,
    object: String,
    key: String,
    id: String,
    /// As it is stored, until it is given back. Locked during I/O.
    stored: Mutex<Option<Stored>>,
    status: Arc<Status>,
    operation: Weak<Activity>,
}

impl Default for Leases {
    fn default() -> Leases {
        Leases::new(PATIENCE)
    }
}

impl Leases {
    /// Those of a new process that takes a lease for expired when it did not change for `patience`.
    pub fn new(patience: Duration) -> Leases {
        let process = Arc::new(Upkeep::new(Holder::this_process(), patience));
        Leases { process, operation: Weak::new() }
    }

    /// Those of the same process for the operation that does this. When it hangs, its leases are
    /// not renewed.
    pub(super) fn of(&self, operation: &Arc<Activity>) -> Leases {
        Leases { process: self.process.clone(), operation: Arc::downgrade(operation) }
    }

    /// Changes `object` by `update` and takes the lease `key` there with it.
    ///
    /// [`Error::Conflict`] when another holds it; `None` when a guard of `update` does not hold;
    /// [`Error::MayNotFence`] when it is to be taken over and the user may not blocklist.
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
            holder: self.process.holder.clone(),
            since: super::now(),
            clients: vec![pool.cluster().address()?],
            over: false,
            renewals: 0,
        };
        // It is known here before it is there: no other operation of this process takes it for one
        // that is over.
        let status = Status::new();
        {
            let mut held = lock(&self.process.held);
            held.retain(|held| held.status.held.load(Ordering::SeqCst));
            held.push(Held { id: stored.id.clone(), status: status.clone(), lease: Weak::new() });
        }
        let taken = self.try_take(pool, object, key, update, &stored);
        if !matches!(taken, Ok(true)) {
            status.held.store(false, Ordering::SeqCst);
            return taken.map(|_| None);
        }
        let lease = Arc::new(Lease {
            process: Arc::downgrade(&self.process),
            pool: pool.clone(),
            object: object.to_string(),
            key: key.to_string(),
            id: stored.id.clone(),
            stored: Mutex::new(Some(stored)),
            status,
            operation: self.operation.clone(),
        });
        if let Some(held) = lock(&self.process.held).iter_mut().find(|held| held.id == lease.id) {
            held.lease = Arc::downgrade(&lease);
        }
        self.process.run();
        Ok(Some(lease))
    }

    /// [`Leases::take`] of the lease `stored`. Whether the guards of `update` hold.
    fn try_take(
        &self,
        pool: &Arc<dyn Pool>,
        object: &str,
        key: &str,
        update: &OmapUpdate,
        stored: &Stored,
    ) -> Result<bool> {
        let mut free = Guard::Absent(key.to_string());
        for _ in 0..ATTEMPTS {
            let is_anothers = matches!(free, Guard::Equals(..));
            let mut with_lease = update.clone();
            with_lease.guards.push(free);
            with_lease.set.push((key.to_string(), stored.bytes()));
            match pool.omap_update(object, &with_lease) {
                Ok(()) => {
                    if is_anothers {
                        metrics().lease_taken_over();
                    }
                    return Ok(true);
                }
                Err(error) if error.errno == Errno::ECANCELED => {}
                Err(error) => {
                    // It may be there all the same, and no operation would have it.
                    self.process.owe(owed(pool, object, key, &stored.id));
                    return Err(error.into());
                }
            }
            let mut keys: Vec<_> = update.guards.iter().map(Guard::key).collect();
            keys.push(key);
            let found = pool.omap_get(object, &keys)?;
            if !update
                .guards
                .iter()
                .all(|guard| guard.holds(found.get(guard.key()).map(Vec::as_slice)))
            {
                return Ok(false);
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
                    let is_theirs = Guard::Equals(key.to_string(), bytes.clone());
                    self.overtake(pool, object, key, &theirs, &is_theirs)?;
                    is_theirs
                }
            };
        }
        Err(Error::Conflict(format!("others took and gave back {key} all the time")))
    }

    /// Makes sure that no client works under a lease any more, which is there as `is_theirs` says.
    /// [`Error::Conflict`] unless its holder is dead, or has given it up, or has not renewed it for
    /// long.
    fn overtake(
        &self,
        pool: &Arc<dyn Pool>,
        object: &str,
        key: &str,
        theirs: &Stored,
        is_theirs: &Guard,
    ) -> Result<()> {
        let record = key.strip_prefix(KIND).unwrap_or(key);
        let since = super::now() - theirs.since;
        let own = pool.cluster().address()?;
        let ours = theirs.holder.id == self.process.holder.id;
        let is_it = |held: &Held| held.id == theirs.id && held.status.held.load(Ordering::SeqCst);
        let is_over = theirs.over || ours && !lock(&self.process.held).iter().any(is_it);
        if !is_over && ours && theirs.clients.contains(&own) {
            return Err(Error::Conflict(format!(
                "another operation of this driver is at work on {record} for {since} seconds"
            )));
        }
        if !is_over && !theirs.holder.is_dead() {
            let silent = self.process.observe(pool, object, key, theirs);
            let left = self.process.patience.saturating_sub(silent);
            if !left.is_zero() {
                let holder = if ours {
                    "another operation of this driver, on another connection,".to_string()
                } else {
                    format!(
                        "another controller, process {} on {},",
                        theirs.holder.pid, theirs.holder.host
                    )
                };
                return Err(Error::Conflict(format!(
                    "{holder} is at work on {record} for {since} seconds; if it is dead, its work is taken over in {} seconds",
                    left.as_secs() + 1
                )));
            }
            // Where nothing can be written, it cannot be renewed either. This writes nothing.
            pool.omap_update(
                object,
                &OmapUpdate { guards: vec![is_theirs.clone()], ..OmapUpdate::default() },
            )
            .map_err(|error| match error.errno {
                Errno::ECANCELED => Error::Conflict(format!("the holder of {key} is back at work")),
                _ => error.into(),
            })?;
        }
        self.fence(pool, record, theirs, &own)
    }

    /// Puts the clients that work under a lease on the blocklist, but for the own one. Those that
    /// are on it already, as far as the connection of `pool` knows, stay as they are: each entry
    /// costs a round of the monitors.
    fn fence(&self, pool: &Arc<dyn Pool>, record: &str, theirs: &Stored, own: &str) -> Result<()> {
        if theirs.clients.is_empty() {
            tracing::warn!(
                record,
                host = theirs.holder.host,
                "a version of the driver that names no clients left this; it is taken over without fencing"
            );
        }
        for client in theirs.clients.iter().filter(|client| *client != own) {
            let known = (own.to_string(), client.clone());
            let fresh = Duration::from_secs(u64::from(FENCED_SECONDS) / 2);
            {
                let mut fenced = lock(&self.process.fenced);
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
                over = theirs.over,
                "the client of a controller that is dead, silent or gave up a call is fenced, and its work taken over"
            );
            pool.cluster().blocklist(client, FENCED_SECONDS).map_err(|error| {
                match error.errno {
                    Errno::EPERM => Error::MayNotFence(error),
                    _ => error.into(),
                }
            })?;
            metrics().client_fenced("controller");
            lock(&self.process.fenced).insert(known, Instant::now());
        }
        Ok(())
    }
}

fn owed(pool: &Arc<dyn Pool>, object: &str, key: &str, id: &str) -> Owed {
    Owed {
        pool: pool.clone(),
        object: object.to_string(),
        key: key.to_string(),
        id: id.to_string(),
    }
}

impl Lease {
    /// Changes its object by `update` if the lease is still held, and gives it back in the same
    /// change if `over`. `ECANCELED` when it is not held any more, or a guard does not hold.
    pub(super) fn change(&self, update: &OmapUpdate, over: bool) -> crate::rbd::Result<()> {
        self.held_or_adopted(|stored| {
            let mut update = update.clone();
            if over {
                update.remove.push(self.key.clone());
            }
            self.try_change(stored.as_ref(), update)?;
            if over {
                *stored = None;
                self.status.held.store(false, Ordering::SeqCst);
            }
            Ok(())
        })
    }

    /// Makes a change that is guarded by what is stored of the lease, once more when that is this
    /// lease still and only differs from what we believe.
    fn held_or_adopted(
        &self,
        change: impl Fn(&mut Option<Stored>) -> crate::rbd::Result<()>,
    ) -> crate::rbd::Result<()> {
        let mut stored = lock(&self.stored);
        match change(&mut stored) {
            Err(error) if error.errno == Errno::ECANCELED && self.adopt(&mut stored)? => {
                change(&mut stored)
            }
            other => other,
        }
    }

    fn try_change(
        &self,
        stored: Option<&Stored>,
        mut update: OmapUpdate,
    ) -> crate::rbd::Result<()> {
        update.guards.push(match stored {
            Some(stored) => Guard::Equals(self.key.clone(), stored.bytes()),
            None => Guard::Absent(self.key.clone()),
        });
        self.pool.omap_update(&self.object, &update)
    }

    /// Writes a further client that is to work under the lease, by its address. `ECANCELED` when
    /// the lease is not held any more.
    pub(super) fn add_client(&self, address: &str) -> crate::rbd::Result<()> {
        self.rewrite(|stored| {
            if !stored.clients.iter().any(|known| known == address) {
                stored.clients.push(address.to_string());
            }
        })
    }

    /// Takes what is stored for ours when it differs from what we believe and is still this lease:
    /// it was renewed, and the reply was lost. Says whether it did.
    fn adopt(&self, stored: &mut Option<Stored>) -> crate::rbd::Result<bool> {
        let found = self.pool.omap_get(&self.object, &[&self.key])?;
        let found = found.get(&self.key).and_then(|bytes| parse(bytes).ok());
        let (Some(before), Some(found)) = (stored.as_mut(), found) else { return Ok(false) };
        let is_newer = found.id == self.id && found != *before;
        if is_newer {
            *before = found;
        }
        Ok(is_newer)
    }

    /// Says that it is at work still. Nothing is said of an operation that hangs.
    fn renew(&self) {
        if self.operation.upgrade().is_some_and(|operation| operation.is_given_up()) {
            return;
        }
        let renew = || self.rewrite(|stored| stored.renewals += 1);
        // What failed late is tried again before the next beat.
        let is_lost = |errno| matches!(errno, Errno::ECANCELED | Errno::ESHUTDOWN);
        let renewed =
            renew().or_else(|error| if is_lost(error.errno) { Err(error) } else { renew() });
        if let Err(error) = renewed {
            tracing::warn!(lease = self.key, %error, "a lease could not be renewed");
            if is_lost(error.errno) {
                // Another controller has it. Its holder hears of that with its next call.
                self.status.held.store(false, Ordering::SeqCst);
            }
        }
    }

    /// Changes what is stored of the lease, if it has not been given back.
    fn rewrite(&self, change: impl Fn(&mut Stored)) -> crate::rbd::Result<()> {
        self.held_or_adopted(|stored| {
            let Some(before) = stored.clone() else { return Ok(()) };
            let mut changed = before.clone();
            change(&mut changed);
            let set = vec![(self.key.clone(), changed.bytes())];
            self.try_change(Some(&before), OmapUpdate { set, ..OmapUpdate::default() })?;
            *stored = Some(changed);
            Ok(())
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let held = lock(&self.stored).is_some();
        if held {
            let owed = owed(&self.pool, &self.object, &self.key, &self.id);
            if let Err(error) = owed.give_back()
                && let Some(process) = self.process.upgrade()
            {
                tracing::debug!(lease = self.key, %error, "a lease is given back later");
                process.owe(owed);
            }
        }
        self.status.held.store(false, Ordering::SeqCst);
    }
}
