//! Pools that fill: looked at when volumes are made and grown, in the background and not often, for
//! those who made them to be told.

use crate::csi::ids::Location;
use crate::kube::{Event, Recorder, Subject};
use crate::rbd::{self, Pool, PoolStats};
use crate::volume;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How soon a pool is not looked at again.
const SOON: Duration = Duration::from_mins(1);

/// Which pools were looked at when, by cluster and pool.
#[derive(Debug, Default)]
pub(super) struct Looks(Mutex<HashMap<(String, String), Look>>);

/// The last look at a pool.
#[derive(Debug)]
struct Look {
    begun: Instant,
    /// Alive while it lasts, so that one which hangs is not followed by more.
    lasting: Weak<()>,
}

impl Looks {
    /// After work that filled the pool at `location`, or its data pool where it has one, or found
    /// no room there: looks at it, unless that was done just now or `recorder` is off, and tells
    /// `subject` when it is nearly full. Returns at once. `pool` is any of that cluster's.
    pub(super) fn look_after<T>(
        &self,
        outcome: &volume::Result<T>,
        recorder: &Recorder,
        subject: &Subject,
        location: &Location,
        pool: &Arc<dyn Pool>,
        data_pool: Option<&str>,
    ) {
        if !matches!(outcome, Ok(_) | Err(volume::Error::Exhausted(_))) {
            return;
        }
        let name = data_pool.unwrap_or(&location.pool).to_string();
        let Some(looking) = self.begin(recorder, &location.cluster, &name) else { return };
        let (recorder, subject, cluster) =
            (recorder.clone(), subject.clone(), location.cluster.clone());
        let pool = pool.clone();
        tokio::task::spawn_blocking(move || {
            match stats(&pool, &name) {
                Ok(stats) if stats.percent() >= PoolStats::NEARLY_FULL => {
                    let left = format!("{} MiB", stats.room() >> 20);
                    recorder.tell(
                        &subject,
                        Event::PoolNearlyFull {
                            pool: name,
                            cluster,
                            percent: stats.percent(),
                            left,
                        },
                    );
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "how full the pool is cannot be told"),
            }
            drop(looking);
        });
    }

    fn begin(&self, recorder: &Recorder, cluster: &str, pool: &str) -> Option<Arc<()>> {
        if !recorder.is_on() {
            return None;
        }
        let mut looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (cluster.to_string(), pool.to_string());
        if looks
            .get(&key)
            .is_some_and(|look| look.begun.elapsed() < SOON || look.lasting.strong_count() > 0)
        {
            return None;
        }
        let looking = Arc::new(());
        looks.insert(key, Look { begun: Instant::now(), lasting: Arc::downgrade(&looking) });
        Some(looking)
    }
}

fn stats(pool: &Arc<dyn Pool>, name: &str) -> rbd::Result<PoolStats> {
    if pool.name() == name { pool.stats() } else { pool.cluster().pool(name, "")?.stats() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_as_full_as_its_disks_or_its_quota_have_it() {
        let stats =
            |stored, max_available, quota| PoolStats { stored, max_available, quota }.percent();
        assert_eq!(stats(0, 0, None), 0);
        assert_eq!(stats(10, 90, None), 10);
        assert_eq!(stats(10, 90, Some(12)), 83);
        assert_eq!(stats(85, 15, Some(1000)), 85);
        assert_eq!(stats(20, 80, Some(10)), 100);
        assert_eq!(stats(u64::MAX / 2, u64::MAX / 2, None), 50);
    }
}
