//! What is done about leases in the background: those held are renewed, those in the way are read
//! again, and those that are over are given back.
//!
//! One thread per process gives the beat. All I/O is on threads of its own, so that a cluster or a
//! connection that hangs keeps nothing on another from being done, and connections are shut down
//! there too.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::Lease;
use super::stored::{Holder, Stored, parse};
use crate::rbd::{Errno, Guard, OmapUpdate, Pool, Result};

/// How often a lease is renewed before it could expire.
const RENEWALS: u32 = 3;
/// How soon the thread ends when the leases are gone.
const LOOK: Duration = Duration::from_secs(1);

/// What the leases of one process share.
#[derive(Debug)]
pub(super) struct Upkeep {
    pub(super) holder: Holder,
    /// How long a lease must stay as it is to have expired.
    pub(super) patience: Duration,
    pub(super) held: Mutex<Vec<Held>>,
    /// Clients that were fenced, with the own address that each was fenced from, and when.
    pub(super) fenced: Mutex<HashMap<(String, String), Instant>>,
    /// Leases that stand in the way of an operation here, by their id.
    seen: Mutex<HashMap<String, Seen>>,
    owed: Mutex<Vec<Owed>>,
    /// The connections over which leases are being given back.
    giving_back: Mutex<HashSet<String>>,
    running: AtomicBool,
}

/// A lease of this process, as it is seen without a lock that is held during I/O.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) id: String,
    pub(super) status: Arc<Status>,
    pub(super) lease: Weak<Lease>,
}

#[derive(Debug)]
pub(super) struct Status {
    pub(super) held: AtomicBool,
    renewing: AtomicBool,
}

impl Status {
    pub(super) fn new() -> Arc<Status> {
        Arc::new(Status { held: AtomicBool::new(true), renewing: AtomicBool::new(false) })
    }
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

/// A lease that is over and is to be given back. A controller that took it for silent would
/// fence a healthy one.
#[derive(Debug)]
pub(super) struct Owed {
    pub(super) pool: Arc<dyn Pool>,
    pub(super) object: String,
    pub(super) key: String,
    pub(super) id: String,
}

impl Upkeep {
    pub(super) fn new(holder: Holder, patience: Duration) -> Upkeep {
        Upkeep {
            holder,
            patience,
            held: Mutex::default(),
            fenced: Mutex::default(),
            seen: Mutex::default(),
            owed: Mutex::default(),
            giving_back: Mutex::default(),
            running: AtomicBool::new(false),
        }
    }

    /// How long a lease that was read just now was readable and did not change.
    pub(super) fn observe(
        self: &Arc<Upkeep>,
        pool: &Arc<dyn Pool>,
        object: &str,
        key: &str,
        lease: &Stored,
    ) -> Duration {
        self.run();
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
            // In a longer gap a read has failed, or has waited: the holder could not renew it
            // either.
            let readable = gap <= self.patience / RENEWALS * 3 / 2;
            entry.silent = if readable { entry.silent + gap } else { Duration::ZERO };
        }
        (entry.renewals, entry.read) = (lease.renewals, now);
        let silent = entry.silent;
        // The connection of the latest reader is the likeliest to work.
        let earlier = std::mem::replace(&mut entry.pool, pool.clone());
        if !Arc::ptr_eq(&earlier, pool) {
            entry.looking = false;
        }
        drop(seen);
        drop(earlier);
        silent
    }

    /// Has a lease given back that is over.
    pub(super) fn owe(self: &Arc<Upkeep>, owed: Owed) {
        lock(&self.owed).push(owed);
        self.run();
    }

    /// Begins to renew what is held and so on, for as long as the leases exist.
    pub(super) fn run(self: &Arc<Upkeep>) {
        if self.patience.is_zero() || self.running.swap(true, Ordering::SeqCst) {
            return;
        }
        let (upkeep, beat) = (Arc::downgrade(self), self.patience / RENEWALS);
        let run = move || {
            while let Some(all) = upkeep.upgrade() {
                all.renew();
                all.look_again();
                all.give_back();
                drop(all);
                let mut left = beat;
                while !left.is_zero() && upkeep.strong_count() > 0 {
                    let slice = left.min(LOOK);
                    std::thread::sleep(slice);
                    left -= slice;
                }
            }
        };
        if !spawn("leases", run) {
            self.running.store(false, Ordering::SeqCst);
        }
    }

    /// Renews what is held.
    fn renew(&self) {
        for held in lock(&self.held).iter().filter(|held| held.status.held.load(Ordering::SeqCst)) {
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
            if !spawn("lease", renewal) {
                held.status.renewing.store(false, Ordering::SeqCst);
            }
        }
    }

    /// Reads again the leases that stand in the way, and forgets those that are renewed or gone,
    /// and those that expired long ago.
    fn look_again(self: &Arc<Upkeep>) {
        let long = self.patience.saturating_mul(10);
        let mut seen = lock(&self.seen);
        let forgotten: Vec<_> = seen.extract_if(|_, seen| seen.read.elapsed() >= long).collect();
        if !forgotten.is_empty() {
            // A connection may go with them.
            spawn("lease", move || drop(forgotten));
        }
        for (id, seen) in seen.iter_mut() {
            if seen.silent >= self.patience || std::mem::replace(&mut seen.looking, true) {
                continue;
            }
            let (upkeep, id, pool) = (self.clone(), id.clone(), seen.pool.clone());
            let (object, key) = (seen.object.clone(), seen.key.clone());
            let look = move || {
                let found = pool.omap_get(&object, &[&key]);
                let is_it = |lease: &Stored| lease.id == id;
                let silent = found.map(|found| {
                    let lease = found.get(&key).and_then(|bytes| parse(bytes).ok()).filter(is_it);
                    lease.map(|lease| upkeep.observe(&pool, &object, &key, &lease))
                });
                let mut seen = lock(&upkeep.seen);
                let forgotten = if matches!(silent, Ok(None | Some(Duration::ZERO))) {
                    seen.remove(&id)
                } else {
                    seen.entry(id).and_modify(|seen| seen.looking = false);
                    None
                };
                drop(seen);
                drop(forgotten);
            };
            if !spawn("lease", look) {
                seen.looking = false;
            }
        }
    }

    /// Gives back what is owed, until it is given back or its connection can change nothing any
    /// more. One thread per connection.
    fn give_back(self: &Arc<Upkeep>) {
        let mut by_connection: HashMap<String, Vec<Owed>> = HashMap::new();
        for owed in std::mem::take(&mut *lock(&self.owed)) {
            let address = owed.pool.cluster().address().unwrap_or_default();
            by_connection.entry(address).or_default().push(owed);
        }
        for (address, all) in by_connection {
            if !lock(&self.giving_back).insert(address.clone()) {
                lock(&self.owed).extend(all);
                continue;
            }
            let upkeep = self.clone();
            let give_back = move || {
                for owed in all {
                    match owed.give_back() {
                        Err(error) if error.errno != Errno::ESHUTDOWN => {
                            lock(&upkeep.owed).push(owed);
                        }
                        _ => {}
                    }
                }
                lock(&upkeep.giving_back).remove(&address);
            };
            spawn("lease", give_back);
        }
    }
}

impl Owed {
    /// Removes the lease, or marks it as over when one of its calls may be on its way still.
    pub(super) fn give_back(&self) -> Result<()> {
        let found = self.pool.omap_get(&self.object, &[&self.key])?;
        let Some(bytes) = found.get(&self.key) else { return Ok(()) };
        let Some(lease) = parse(bytes).ok().filter(|lease| lease.id == self.id && !lease.over)
        else {
            return Ok(());
        };
        let mut update = OmapUpdate {
            guards: vec![Guard::Equals(self.key.clone(), bytes.clone())],
            ..OmapUpdate::default()
        };
        if self.pool.has_timed_out() {
            update.set.push((self.key.clone(), Stored { over: true, ..lease }.bytes()));
        } else {
            update.remove.push(self.key.clone());
        }
        self.pool.omap_update(&self.object, &update)
    }
}

/// Runs `work` on a thread of its own, if there is one to be had.
fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> bool {
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    if let Err(error) = &spawned {
        tracing::warn!(%error, "leases are looked after later");
    }
    spawned.is_ok()
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
