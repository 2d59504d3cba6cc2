//! Background work in each pool: what operations leave to be settled, and what dead ones left half-done.
//!
//! Each pool has a task. It settles what the operations here hand over ([`Sweeper::hand_over`]), many at once, and sweeps the pool
//! ([`Volumes::sweep`]) when it first hears of it and every minute. Pools with a user of the driver's own are swept from the
//! start; others are after the first request that changes something there, with that request's user.
//!
//! What cannot be settled yet is looked at again after a second, then less and less often: what is stuck for days costs next to
//! nothing.

use super::clusters::{Access, Clusters, Credentials};
use super::ids::Location;
use super::parameters;
use crate::volume::{Activity, Entry, Volumes};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tonic::{Code, Status};

/// How often a pool is swept.
const INTERVAL: Duration = Duration::from_mins(1);
/// How long after it was begun a creation counts as abandoned, unless somebody is at work on it.
const ABANDONED: Duration = Duration::from_hours(1);
/// The longest time after which something busy is looked at again.
const SELDOM: Duration = Duration::from_mins(15);

/// The background work of one driver. Clones share it.
#[derive(Debug, Clone)]
pub struct Sweeper(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clusters: Arc<Clusters>,
    places: Mutex<HashMap<Location, Arc<Place>>>,
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
}

/// How often a suspect was found busy, and when it is to be looked at next.
#[derive(Debug, Clone, Copy)]
struct Busy {
    times: u32,
    due: Instant,
}

impl Busy {
    fn since(times: u32) -> Busy {
        let pause = Duration::from_secs(2_u64.saturating_pow(times.saturating_sub(1))).min(SELDOM);
        Busy { times, due: Instant::now() + if times == 0 { Duration::ZERO } else { pause } }
    }
}

impl Place {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When there is something to do next.
    fn due(&self, sweep: Instant) -> Instant {
        self.state().suspects.values().map(|busy| busy.due).min().map_or(sweep, |due| due.min(sweep))
    }
}

impl Sweeper {
    /// A sweeper of pools of `clusters`, which does nothing yet.
    pub fn new(clusters: Arc<Clusters>) -> Sweeper {
        Sweeper(Arc::new(Inner { clusters, places: Mutex::default() }))
    }

    /// Begins to sweep the pools that the configuration names with credentials, in the background of the current runtime.
    pub fn start(&self) {
        for location in self.0.clusters.own_pools() {
            self.place(&location);
        }
    }

    /// Settles `suspects` in the background, and sweeps the pool at `location` from now on, as the user of these credentials.
    pub fn hand_over(&self, location: &Location, credentials: Credentials, suspects: Vec<Entry>) {
        let place = self.place(location);
        let mut state = place.state();
        state.credentials = Some(credentials);
        state.suspects.extend(suspects.into_iter().map(|suspect| (suspect, Busy::since(0))));
        drop(state);
        place.changed.notify_one();
    }

    fn place(&self, location: &Location) -> Arc<Place> {
        let mut places = self.0.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = places.get(location) {
            return place.clone();
        }
        let place = Arc::<Place>::default();
        places.insert(location.clone(), place.clone());
        tokio::spawn(work(self.0.clone(), location.clone(), place.clone()));
        place
    }
}

/// Works in one place, for as long as it is swept.
async fn work(inner: Arc<Inner>, location: Location, place: Arc<Place>) {
    let mut sweep = Instant::now();
    let mut first = true;
    loop {
        let due = place.due(sweep);
        tokio::select! {
            () = tokio::time::sleep_until(due.into()) => {}
            // There may be something to do earlier.
            () = place.changed.notified() => continue,
        }
        let sweeps = sweep <= Instant::now();
        let round = {
            let (inner, location, place) = (inner.clone(), location.clone(), place.clone());
            tokio::task::spawn_blocking(move || round(&inner.clusters, &location, &place, sweeps, first))
        };
        match round.await {
            Ok(Ok(())) if sweeps && first => {
                tracing::info!(%location, "what was left half-done here is finished");
                first = false;
            }
            Ok(Ok(())) => {}
            Ok(Err(status))
                if status.code() == Code::InvalidArgument && place.state().credentials.is_some() =>
            {
                tracing::info!(%location, why = status.message(), "is not swept until it is used again");
                inner.places.lock().unwrap_or_else(PoisonError::into_inner).remove(&location);
                return;
            }
            Ok(Err(status)) => tracing::warn!(%location, why = status.message(), "sweeping is tried again"),
            Err(error) => tracing::error!(%location, %error, "sweeping failed and is tried again"),
        }
        if sweeps {
            sweep = Instant::now() + INTERVAL;
        }
    }
}

/// Does what is due in one place.
fn round(
    clusters: &Clusters,
    location: &Location,
    place: &Place,
    sweeps: bool,
    first: bool,
) -> Result<(), Status> {
    let now = Instant::now();
    let mut due: HashMap<Entry, Busy> =
        place.state().suspects.extract_if(|_, busy| busy.due <= now).collect();
    let accessed = access(clusters, location, place);
    let swept = match &accessed {
        Ok(access) if sweeps => access.answer(sweep(&access.volumes, first)),
        _ => Ok(Vec::new()),
    };
    for suspect in swept.iter().flatten() {
        if !place.state().suspects.contains_key(suspect) {
            due.entry(suspect.clone()).or_insert(Busy::since(0));
        }
    }
    let suspects = due.keys().cloned().collect();
    let left = match &accessed {
        Ok(access) => access.volumes.settle(suspects),
        Err(_) => suspects,
    };
    let mut state = place.state();
    for suspect in left {
        let times = due.get(&suspect).map_or(0, |busy| busy.times);
        // The operation that wrote it may have handed it over meanwhile.
        state.suspects.entry(suspect).or_insert(Busy::since(times + 1));
    }
    drop(state);
    accessed.and(swept).map(drop)
}

fn access(clusters: &Clusters, location: &Location, place: &Place) -> Result<Access, Status> {
    let credentials = match place.state().credentials.clone() {
        Some(credentials) => credentials,
        None => {
            let cluster = parameters::cluster(clusters.config(), &location.cluster)?;
            clusters.credentials(cluster, &BTreeMap::new())?
        }
    };
    clusters.access(location, credentials, Arc::new(Activity::default()))
}

/// Sweeps a pool. Returns all suspects there, and those it wrote elsewhere.
fn sweep(volumes: &Volumes, first: bool) -> crate::volume::Result<Vec<Entry>> {
    if first {
        volumes.recount_nodes()?;
    }
    let mut suspects = volumes.sweep(ABANDONED)?;
    suspects.extend(volumes.take_suspects());
    suspects.sort();
    suspects.dedup();
    Ok(suspects)
}
