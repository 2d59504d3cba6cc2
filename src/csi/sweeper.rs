//! Background work in each pool: what operations leave to be settled, and what dead ones left
//! half-done.
//!
//! Each pool has a task. It settles what the operations here hand over ([`Sweeper::hand_over`]),
//! and sweeps the pool ([`Volumes::sweep`]) when it first hears of it and every minute. Pools with
//! a user of the driver's own are swept from the start; others are after the first request that
//! changes something there, with that request's user.
//!
//! The suspects of one image are settled together, and those of different images independently: a
//! removal of hours delays no other. What comes up about an image meanwhile is its next batch. What
//! cannot be settled yet is looked at again after a second, then less and less often, at last every
//! 15 minutes: what is stuck for days costs next to nothing.

use super::clusters::{Access, Clusters, Credentials, OTHER};
use super::ids::Location;
use super::operations::{Class, Permits};
use super::parameters;
use crate::metrics::{Figures, PlaceLabels, Space, metrics};
use crate::rbd::PoolStats;
use crate::volume::{Activity, Entry, Volumes};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tonic::{Code, Status};

/// How often a pool is swept.
const INTERVAL: Duration = Duration::from_mins(1);
/// How long after it was begun a creation counts as abandoned, unless an operation is at work on
/// it.
const ABANDONED: Duration = Duration::from_hours(1);
/// The longest time after which something busy is looked at again at first: what keeps it may be
/// another operation here, or the watch of a client that died.
const OFTEN: Duration = Duration::from_secs(30);
/// How many times it is looked at so often.
const LOOKS: u32 = 20;
/// How long after each further look the next one comes.
const SELDOM: Duration = Duration::from_mins(15);
/// How often a driver that ends looks whether everything is settled.
const LOOK: Duration = Duration::from_millis(20);

/// The background work of one driver. Clones share it.
#[derive(Debug, Clone)]
pub struct Sweeper(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clusters: Arc<Clusters>,
    permits: Permits,
    places: Mutex<HashMap<Location, Arc<Place>>>,
    /// Shared with all work that has begun and not ended.
    running: Arc<()>,
}

/// What is to be done in one pool and namespace.
#[derive(Debug, Default)]
struct Place {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The user of the latest request; `None` for the driver's own.
    credentials: Option<Credentials>,
    suspects: HashMap<Entry, Busy>,
    /// The images whose suspects are being settled.
    working: HashSet<Image>,
    /// Entries of the journal that do not say when they were written, with when they were seen
    /// first, in seconds since 1970.
    undated: HashMap<Entry, i64>,
}

/// An image by its pool, namespace and id.
type Image = (String, String, String);
/// Suspects, each with how often it was found busy.
type Batch = HashMap<Entry, u32>;

/// How often a suspect was found busy, and when it is to be looked at next.
#[derive(Debug, Clone, Copy)]
struct Busy {
    times: u32,
    due: Instant,
}

impl Busy {
    fn since(times: u32) -> Busy {
        let pause = match times {
            0 => Duration::ZERO,
            1..=LOOKS => Duration::from_secs(2_u64.saturating_pow(times - 1)).min(OFTEN),
            _ => SELDOM,
        };
        Busy { times, due: Instant::now() + pause }
    }
}

impl State {
    /// Takes what is due of images that none is at work on, by image. They count as worked on from
    /// now on.
    fn take_due(&mut self) -> HashMap<Image, Batch> {
        let now = Instant::now();
        let working = &self.working;
        let due = self
            .suspects
            .extract_if(|entry, busy| busy.due <= now && !working.contains(&entry.image()));
        let mut images: HashMap<Image, Batch> = HashMap::new();
        for (entry, busy) in due {
            images.entry(entry.image()).or_default().insert(entry, busy.times);
        }
        self.working.extend(images.keys().cloned());
        images
    }

    /// When something comes due of images that none is at work on.
    fn next(&self) -> Option<Instant> {
        let free = |entry: &Entry| !self.working.contains(&entry.image());
        self.suspects.iter().filter(|(entry, _)| free(entry)).map(|(_, busy)| busy.due).min()
    }

    /// When the oldest of the entries of a journal, all of them, was written.
    fn oldest(&mut self, journal: &[Entry]) -> Option<i64> {
        let undated: HashSet<_> = journal.iter().filter(|entry| entry.since().is_none()).collect();
        self.undated.retain(|entry, _| undated.contains(entry));
        let now = now();
        for entry in undated {
            self.undated.entry(entry.clone()).or_insert(now);
        }
        journal.iter().filter_map(Entry::since).chain(self.undated.values().copied()).min()
    }

    /// Adds suspects that are due at once, but for those that are known.
    fn add(&mut self, suspects: Vec<Entry>) {
        for suspect in suspects {
            self.suspects.entry(suspect).or_insert(Busy::since(0));
        }
    }
}

impl Place {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sweeper {
    /// A sweeper of pools of `clusters`, which does nothing yet.
    pub(super) fn new(clusters: Arc<Clusters>, permits: Permits) -> Sweeper {
        let (places, running) = (Mutex::default(), Arc::default());
        Sweeper(Arc::new(Inner { clusters, permits, places, running }))
    }

    /// Begins to sweep the pools that the configuration names with credentials, in the background
    /// of the current runtime.
    pub fn start(&self) {
        for location in self.0.clusters.own_pools() {
            self.place(&location, None);
        }
    }

    /// Waits until nothing is at work and nothing is due, for as long as `patience`. A driver that
    /// ends in the middle of a call into librbd leaves a watch, which keeps the image open for half
    /// a minute.
    pub async fn rest(&self, patience: Duration) {
        let rests = async {
            while Arc::strong_count(&self.0.running) > 1 || self.is_anything_due() {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(patience, rests).await.is_err() {
            tracing::info!("what is being tidied up is left to the next start");
        }
    }

    fn is_anything_due(&self) -> bool {
        let now = Instant::now();
        let is_due = |place: &Arc<Place>| place.state().next().is_some_and(|due| due <= now);
        self.0.places().values().any(is_due)
    }

    /// Settles `suspects` in the background, and sweeps the pool at `location` from now on, as the
    /// user of these credentials.
    pub(super) fn hand_over(
        &self,
        location: &Location,
        credentials: Credentials,
        suspects: Vec<Entry>,
    ) {
        let place = self.place(location, Some(credentials));
        place.state().add(suspects);
        place.changed.notify_one();
    }

    /// The place at `location`, as the user of these credentials, if any, from now on. A new one is
    /// swept at once, so it has them from the start.
    fn place(&self, location: &Location, credentials: Option<Credentials>) -> Arc<Place> {
        let mut places = self.0.places();
        if let Some(place) = places.get(location) {
            if credentials.is_some() {
                place.state().credentials = credentials;
            }
            return place.clone();
        }
        let state = State { credentials, ..State::default() };
        let place = Arc::new(Place { state: Mutex::new(state), ..Place::default() });
        places.insert(location.clone(), place.clone());
        let figures = Figures { swept: now(), ..Figures::default() };
        metrics().place_is(&location.to_string(), self.0.clusters.labels(location), figures);
        tokio::spawn(work(self.0.clone(), location.clone(), place.clone()));
        place
    }
}

impl Inner {
    fn places(&self) -> MutexGuard<'_, HashMap<Location, Arc<Place>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `act` with a permit for background work at `location`, as the user of that place.
    async fn run<T: Send + 'static>(
        self: Arc<Inner>,
        location: Location,
        place: Arc<Place>,
        act: impl FnOnce(&Access) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let running = self.running.clone();
        let permit = self.permits.get(Class::Background, &location.cluster, &location.pool).await;
        let activity = Arc::<Activity>::default();
        let permit = self.permits.exchange(permit, &activity, &location.cluster, &location.pool);
        let inner = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let done = access(&inner.clusters, &location, &place, activity);
            let done = done.and_then(|access| act(&access));
            drop((permit, running));
            done
        });
        done.await.unwrap_or_else(|panic| {
            tracing::error!(%panic, "background work panicked");
            Err(Status::aborted("the driver failed inside this work"))
        })
    }
}

/// What has been done in a place.
enum Done {
    Swept(Result<(), Status>),
    Settled,
}

/// Works in one place, for as long as it is swept.
async fn work(inner: Arc<Inner>, location: Location, place: Arc<Place>) {
    let mut tasks = JoinSet::new();
    // None while it is being swept.
    let mut sweep = Some(Instant::now());
    let mut first = true;
    loop {
        if sweep.is_some_and(|due| due <= Instant::now()) {
            sweep = None;
            tasks.spawn(swept(inner.clone(), location.clone(), place.clone(), first));
        }
        let images = place.state().take_due();
        for (image, batch) in images {
            tasks.spawn(settled(inner.clone(), location.clone(), place.clone(), image, batch));
        }
        let next = [sweep, place.state().next()].into_iter().flatten().min();
        let due = next.unwrap_or_else(|| Instant::now() + INTERVAL);
        tokio::select! {
            () = tokio::time::sleep_until(due.into()) => {}
            () = place.changed.notified() => {}
            Some(done) = tasks.join_next() => match done {
                Ok(Done::Settled) => {}
                Ok(Done::Swept(Ok(()))) => {
                    if first {
                        tracing::info!(%location, "what was left half-done here is finished");
                    }
                    first = false;
                    sweep = Some(Instant::now() + INTERVAL);
                }
                Ok(Done::Swept(Err(status)))
                    if status.code() == Code::InvalidArgument && place.state().credentials.is_some() =>
                {
                    tracing::info!(%location, why = status.message(), "is not swept until it is used again");
                    inner.places().remove(&location);
                    metrics().place_is_left(&location.to_string());
                    return;
                }
                Ok(Done::Swept(Err(status))) => {
                    tracing::warn!(%location, why = status.message(), "sweeping is tried again");
                    sweep = Some(Instant::now() + INTERVAL);
                }
                Err(error) => tracing::error!(%location, %error, "background work ended"),
            },
        }
    }
}

/// Sweeps a place. What is suspect there is due from then on.
async fn swept(inner: Arc<Inner>, location: Location, place: Arc<Place>, first: bool) -> Done {
    let labels = inner.clusters.labels(&location);
    let key = location.to_string();
    let found = inner
        .run(location, place.clone(), move |access| access.answer(sweep(&access.volumes, first)))
        .await;
    metrics().swept(&labels, if found.is_ok() { "done" } else { "failed" });
    let found = match found {
        Ok(found) => found,
        Err(status) => return Done::Swept(Err(status)),
    };
    let mut state = place.state();
    measure(&mut state, &key, labels, &found);
    let mut suspects = found.journal;
    suspects.extend(found.elsewhere);
    // What is being settled now is found by the next sweep if it is still there.
    suspects.retain(|suspect| !state.working.contains(&suspect.image()));
    state.add(suspects);
    Done::Swept(Ok(()))
}

/// Tells the metrics what a sweep has found.
fn measure(state: &mut State, key: &str, labels: PlaceLabels, found: &Found) {
    if let Some(PoolStats { stored, max_available, quota }) = found.room
        && labels.pool != OTHER
    {
        let space = Space { used: stored, available: max_available, quota };
        metrics().pool_is(&labels.cluster, &labels.pool, space);
    }
    let figures = Figures {
        journal: found.journal.len() as u64,
        oldest: state.oldest(&found.journal),
        trash: found.trash,
        swept: now(),
    };
    metrics().place_is(key, labels, figures);
}

/// Settles the suspects of one image. What becomes suspect by that is due from then on.
async fn settled(
    inner: Arc<Inner>,
    location: Location,
    place: Arc<Place>,
    image: Image,
    batch: Batch,
) -> Done {
    let entries: Vec<_> = batch.keys().cloned().collect();
    let settled = inner.run(location, place.clone(), move |access| {
        let left = access.volumes.settle_some(entries);
        Ok((left, access.volumes.take_suspects()))
    });
    let (left, more) = match settled.await {
        Ok(settled) => settled,
        Err(status) => {
            tracing::debug!(?image, why = status.message(), "is settled later");
            (batch.keys().cloned().collect(), Vec::new())
        }
    };
    let mut state = place.state();
    state.working.remove(&image);
    state.add(more);
    for entry in left {
        let times = batch.get(&entry).copied().unwrap_or_default() + 1;
        // The operation that wrote it may have handed it over meanwhile.
        state.suspects.entry(entry).or_insert(Busy::since(times));
    }
    Done::Settled
}

fn access(
    clusters: &Clusters,
    location: &Location,
    place: &Place,
    activity: Arc<Activity>,
) -> Result<Access, Status> {
    let latest = place.state().credentials.clone();
    let credentials = if let Some(credentials) = latest {
        credentials
    } else {
        let cluster = parameters::cluster(clusters.config(), &location.cluster)?;
        clusters.credentials(cluster, &BTreeMap::new())?
    };
    clusters.access(location, credentials, activity)
}

/// What a sweep finds.
struct Found {
    /// All suspects there.
    journal: Vec<Entry>,
    /// Those that it wrote elsewhere.
    elsewhere: Vec<Entry>,
    /// Images in the trash, and the room in the pool, if they can be told.
    trash: Option<u64>,
    room: Option<PoolStats>,
}

/// Sweeps a pool, and looks at what metrics tell of it.
fn sweep(volumes: &Volumes, first: bool) -> crate::volume::Result<Found> {
    if first {
        volumes.recount_nodes()?;
    }
    let journal = volumes.sweep(ABANDONED)?;
    let elsewhere = volumes.take_suspects();
    let trash = volumes.pool().trash_list().map(|entries| entries.len() as u64);
    let room = volumes.pool().stats();
    for error in trash.as_ref().err().into_iter().chain(room.as_ref().err()) {
        tracing::debug!(%error, "metrics do without this");
    }
    Ok(Found { journal, elsewhere, trash: trash.ok(), room: room.ok() })
}

/// Seconds since 1970.
fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

#[cfg(test)]
mod tests;
