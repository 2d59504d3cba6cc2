//! What the sweeper finds in each place: a pool and RADOS namespace.
//!
//! Requests name pools and namespaces as they like, so a place that the configuration does not name
//! is `other` in labels, and the figures of all such places are put together.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::gauge::Gauge;

use super::instruments::{Catalogue, Labelled};

/// A pool and RADOS namespace of a cluster, as metrics name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlaceLabels {
    /// The `clusterID`.
    pub cluster: String,
    /// The pool, or `other`.
    pub pool: String,
    /// The RADOS namespace, "" for the default one, or `other`.
    pub namespace: String,
}

/// What was found in one place last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Entries of the journal.
    pub journal: u64,
    /// When the oldest of them was written, in seconds since 1970.
    pub oldest: Option<i64>,
    /// Images in the trash, removals in progress left out; `None` when that could not be told.
    pub trash: Option<u64>,
    /// When it was looked at, in seconds since 1970; before the first look, since when the driver
    /// has wanted to.
    pub swept: i64,
}

const LABELS: [&str; 3] = ["cluster", "pool", "namespace"];

#[derive(Debug)]
pub(super) struct Places {
    /// By a key that tells places apart which have the same labels.
    found: Mutex<HashMap<String, (PlaceLabels, Figures)>>,
    journal: Labelled<Gauge, 3>,
    oldest: Labelled<Gauge<f64, AtomicU64>, 3>,
    trash: Labelled<Gauge, 3>,
    swept: Labelled<Gauge, 3>,
}

impl Places {
    pub(super) fn new(catalogue: &mut Catalogue) -> Places {
        Places {
            found: Mutex::default(),
            journal: catalogue.family(
                "journal_entries",
                LABELS,
                "Entries of the journal: images and snapshots that may have lost their reason \
                 to exist, and are to be settled.",
                Gauge::default,
            ),
            oldest: catalogue.family(
                "journal_oldest_entry_seconds",
                LABELS,
                "The age of the oldest entry of the journal, 0 when there is none. An entry of \
                 a version that wrote no time is as old as this process knows it to be.",
                Gauge::default,
            ),
            trash: catalogue.family(
                "trash_images",
                LABELS,
                "Images in the trash, other tools' ones too; removals in progress are left out.",
                Gauge::default,
            ),
            swept: catalogue.family(
                "sweep_last_success_timestamp_seconds",
                LABELS,
                "When the sweeper last came to the end of a place, in seconds since 1970; \
                 before that, since when it has tried. With a cluster that answers this is at \
                 most some minutes ago.",
                Gauge::default,
            ),
        }
    }

    pub(super) fn set(&self, key: &str, labels: PlaceLabels, figures: Figures) {
        self.found().insert(key.to_owned(), (labels, figures));
    }

    pub(super) fn forget(&self, key: &str) {
        let Some((labels, _)) = self.found().remove(key) else { return };
        let PlaceLabels { cluster, pool, namespace } = &labels;
        let values = [cluster.as_str(), pool, namespace];
        // What is left of other places with these labels is set by the next scrape.
        self.journal.forget(values);
        self.oldest.forget(values);
        self.trash.forget(values);
        self.swept.forget(values);
    }

    /// Sets the gauges, as of `now` in seconds since 1970.
    pub(super) fn refresh(&self, now: i64) {
        let mut by_labels: BTreeMap<PlaceLabels, Figures> = BTreeMap::new();
        for (labels, found) in self.found().values() {
            by_labels
                .entry(labels.clone())
                .and_modify(|all| *all = together(*all, *found))
                .or_insert(*found);
        }
        for (PlaceLabels { cluster, pool, namespace }, figures) in by_labels {
            let values = [cluster.as_str(), &pool, &namespace];
            let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
            self.journal.with(values).set(signed(figures.journal));
            let age = figures.oldest.map_or(0, |oldest| now.saturating_sub(oldest).max(0));
            self.oldest.with(values).set(f64::from(i32::try_from(age).unwrap_or(i32::MAX)));
            if let Some(trash) = figures.trash {
                self.trash.with(values).set(signed(trash));
            }
            self.swept.with(values).set(figures.swept);
        }
    }

    fn found(&self) -> MutexGuard<'_, HashMap<String, (PlaceLabels, Figures)>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The figures of two places: counts are added, and of times the worse one is taken.
fn together(a: Figures, b: Figures) -> Figures {
    let oldest = a.oldest.into_iter().chain(b.oldest).min();
    let trash = match (a.trash, b.trash) {
        (None, None) => None,
        (a, b) => Some(a.unwrap_or(0) + b.unwrap_or(0)),
    };
    Figures { journal: a.journal + b.journal, oldest, trash, swept: a.swept.min(b.swept) }
}
