//! What measurements are made of: families with fixed label names, and work in flight.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use prometheus_client::encoding::EncodeMetric;
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// What is told of a metric in `docs/reference/metrics.md`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Its name as Prometheus stores it; of a histogram without `_bucket`, `_count` and `_sum`.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// The names of its labels.
    pub labels: Vec<&'static str>,
    /// What it says.
    pub help: &'static str,
}

/// A registry, and what is registered in it.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    pub(super) registry: Registry,
    pub(super) descriptions: Vec<Description>,
}

impl Catalogue {
    /// Registers a new family. `name` is without the prefix `cinderblock_`, and that of a counter
    /// without `_total`.
    pub(super) fn family<M, const N: usize>(
        &mut self,
        name: &str,
        labels: [&'static str; N],
        help: &'static str,
        make: fn() -> M,
    ) -> Labelled<M, N>
    where
        M: EncodeMetric + TypedMetric + Clone + fmt::Debug + Send + Sync + 'static,
    {
        let family = Family::new_with_constructor(make);
        // The registry puts the full stop that it wants at the end.
        self.registry.register(
            format!("cinderblock_{name}"),
            help.trim_end_matches('.'),
            family.clone(),
        );
        let kind = M::TYPE.as_str();
        let suffix = if kind == "counter" { "_total" } else { "" };
        self.descriptions.push(Description {
            name: format!("cinderblock_{name}{suffix}"),
            kind,
            labels: labels.to_vec(),
            help,
        });
        Labelled { labels, family }
    }
}

type Labels<const N: usize> = [(&'static str, String); N];

/// A metric for each combination of the values of its labels.
#[derive(Debug)]
pub(super) struct Labelled<M, const N: usize> {
    labels: [&'static str; N],
    family: Family<Labels<N>, M, fn() -> M>,
}

impl<M: Clone, const N: usize> Labelled<M, N> {
    /// The metric with these values, made when it is missing.
    pub(super) fn with(&self, values: [&str; N]) -> M {
        self.family.get_or_create_owned(&self.labelled(values))
    }

    /// Forgets the metric with these values.
    pub(super) fn forget(&self, values: [&str; N]) {
        self.family.remove(&self.labelled(values));
    }

    fn labelled(&self, values: [&str; N]) -> Labels<N> {
        std::array::from_fn(|index| (self.labels[index], values[index].to_owned()))
    }
}

impl<M: Clone> Labelled<M, 1> {
    /// Has the metrics with these values there from the start.
    pub(super) fn begin_with(&self, values: &[&str]) {
        for value in values {
            self.with([value]);
        }
    }
}

/// Work in flight by the value of one label: how much there is, and since when the oldest of it.
#[derive(Debug)]
pub(super) struct InFlight {
    count: Labelled<Gauge, 1>,
    oldest: Labelled<Gauge<f64, AtomicU64>, 1>,
    begun: Mutex<HashMap<String, BTreeMap<u64, Instant>>>,
    number: AtomicU64,
}

impl InFlight {
    /// Registers `<name>` and `<name>_oldest_seconds`.
    pub(super) fn new(
        catalogue: &mut Catalogue,
        name: &str,
        label: &'static str,
        count: &'static str,
        oldest: &'static str,
    ) -> InFlight {
        InFlight {
            count: catalogue.family(name, [label], count, Gauge::default),
            oldest: catalogue.family(
                &format!("{name}_oldest_seconds"),
                [label],
                oldest,
                Gauge::default,
            ),
            begun: Mutex::default(),
            number: AtomicU64::new(0),
        }
    }

    /// Has this value of the label there, with nothing in flight.
    pub(super) fn know(&self, value: &str) {
        self.begun().entry(value.to_owned()).or_default();
    }

    /// Counts something as in flight until what this returns is dropped.
    pub(super) fn begin(self: &Arc<InFlight>, value: &str) -> Begun {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        self.begun().entry(value.to_owned()).or_default().insert(number, Instant::now());
        Begun { of: self.clone(), value: value.to_owned(), number }
    }

    /// Sets the gauges.
    pub(super) fn refresh(&self) {
        for (value, begun) in &*self.begun() {
            self.count.with([value]).set(begun.len().try_into().unwrap_or(i64::MAX));
            // Numbers rise with time.
            let oldest = begun.values().next().map_or(0.0, |begun| begun.elapsed().as_secs_f64());
            self.oldest.with([value]).set(oldest);
        }
    }

    fn begun(&self) -> MutexGuard<'_, HashMap<String, BTreeMap<u64, Instant>>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something in flight.
#[derive(Debug)]
#[must_use = "it counts as in flight until this is dropped"]
pub struct Begun {
    of: Arc<InFlight>,
    value: String,
    number: u64,
}

impl Drop for Begun {
    fn drop(&mut self) {
        if let Some(begun) = self.of.begun().get_mut(&self.value) {
            begun.remove(&self.number);
        }
    }
}
