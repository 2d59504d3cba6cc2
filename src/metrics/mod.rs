//! What the driver measures, for Prometheus.
//!
//! There is one set for the process ([`metrics`]), as there is one log. Every room tells it in
//! words of its own what has happened, and [`Metrics::text`] reads it. Promises:
//!
//! - Reading looks at memory alone. It waits for no call to Ceph and for no lock that is held
//!   during one, so a scrape is answered at once, whatever becomes of a cluster.
//! - No label holds what a request brings, but for clusters and pools that the configuration
//!   names. So the number of series is bounded by the configuration.
//! - A counter whose labels have few values is there with 0 from the start, so that its first
//!   increase shows.
//!
//! `docs/reference/metrics.md` lists all of them. It is made of [`Metrics::descriptions`].

mod instruments;
mod places;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

pub use instruments::{Begun, Description};
use instruments::{Catalogue, InFlight, Labelled};
use places::Places;
pub use places::{Figures, PlaceLabels};

/// The kinds of work with permits of their own.
pub const CLASSES: [&str; 5] = ["attach", "change", "heavy", "stream", "background"];
/// What connections are.
pub const CONNECTION_STATES: [&str; 3] = ["sound", "suspect", "broken"];
/// Why connections are replaced.
pub const RECONNECT_REASONS: [&str; 6] =
    ["stuck", "timeout", "not-permitted", "refused", "not-connected", "blocklisted"];
/// How a sweep ends.
pub const SWEEP_OUTCOMES: [&str; 2] = ["done", "failed"];
/// Whose clients are fenced.
pub const FENCED: [&str; 2] = ["node", "controller"];
/// What becomes of volumes on which a filesystem was to be found or made.
pub const MKFS_RESULTS: [&str; 3] = ["done", "refused", "failed"];
/// What can be wrong with a volume on its node.
pub const ILLNESSES: [&str; 6] =
    ["device-gone", "read-only", "failing", "not-answering", "blocklisted", "watch-lost"];
/// How images are attached.
pub const MOUNTERS: [&str; 3] = ["rbd", "rbd-nbd", "fuse"];

/// Seconds, from a read by key to a flatten of many minutes.
fn seconds() -> Histogram {
    Histogram::new([0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0])
}

/// Ancestors. The kernel's rbd opens 16 images in a chain.
fn depths() -> Histogram {
    Histogram::new((0..=16).map(f64::from))
}

/// Room in a pool, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Stored by clients.
    pub used: u64,
    /// What clients may still store.
    pub available: u64,
    /// The quota, if there is one.
    pub quota: Option<u64>,
}

/// Everything that is measured.
#[derive(Debug)]
pub struct Metrics {
    catalogue: Catalogue,
    /// Held while gauges are set and read.
    reading: Mutex<()>,
    rpcs: Arc<InFlight>,
    rpc_seconds: Labelled<Histogram, 2>,
    operations: Arc<InFlight>,
    waiting: Arc<InFlight>,
    calls: Arc<InFlight>,
    call_seconds: Labelled<Histogram, 2>,
    call_errors: Labelled<Counter, 3>,
    connections: Labelled<Gauge, 1>,
    reconnects: Labelled<Counter, 1>,
    cluster_up: Labelled<Gauge, 1>,
    sweeps: Labelled<Counter, 4>,
    places: Places,
    pool_used: Labelled<Gauge<f64, AtomicU64>, 2>,
    pool_available: Labelled<Gauge<f64, AtomicU64>, 2>,
    pool_quota: Labelled<Gauge<f64, AtomicU64>, 2>,
    leases_taken_over: Labelled<Counter, 0>,
    clients_fenced: Labelled<Counter, 1>,
    clone_depth: Labelled<Histogram, 0>,
    mkfs: Labelled<Counter, 1>,
    illnesses: Labelled<Counter, 1>,
    mapped: Labelled<Gauge, 1>,
    build: Labelled<Gauge, 2>,
}

/// The measurements of this process.
pub fn metrics() -> &'static Metrics {
    static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);
    &METRICS
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Metrics {
    /// A set of its own, in which nothing has happened yet.
    pub fn new() -> Metrics {
        let mut catalogue = Catalogue::default();
        let metrics = Metrics {
            rpcs: Arc::new(InFlight::new(
                &mut catalogue,
                "rpcs_in_flight",
                "method",
                "RPCs that are not answered yet.",
                "For how long the oldest RPC that is not answered has waited.",
            )),
            rpc_seconds: catalogue.family(
                "rpc_duration_seconds",
                ["method", "code"],
                "How long RPCs took, by gRPC's name of the answer. Of a stream it is its \
                 opening. A caller that hung up counts as CANCELLED; the work goes on.",
                seconds,
            ),
            operations: Arc::new(InFlight::new(
                &mut catalogue,
                "operations_in_flight",
                "class",
                "Operations at work, by the class of their permits. An operation outlives the \
                 RPC that began it.",
                "For how long the oldest operation has been at work. One of the class heavy \
                 may take hours.",
            )),
            waiting: Arc::new(InFlight::new(
                &mut catalogue,
                "operations_waiting",
                "class",
                "Operations that wait for a permit of this class.",
                "For how long the oldest of these has waited.",
            )),
            calls: Arc::new(InFlight::new(
                &mut catalogue,
                "ceph_calls_in_flight",
                "cluster",
                "Calls to Ceph that have not returned.",
                "For how long the oldest call has not returned. A flatten or the removal of a \
                 large image may take hours.",
            )),
            call_seconds: catalogue.family(
                "ceph_call_duration_seconds",
                ["cluster", "call"],
                "How long calls to Ceph took, those that failed included. A call is one of the \
                 driver's on a pool or an image, and several operations of RADOS. The cluster \
                 is empty on a node plugin, which is told monitors and no name.",
                seconds,
            ),
            call_errors: catalogue.family(
                "ceph_call_errors",
                ["cluster", "call", "errno"],
                "Calls to Ceph that failed, by errno. ENOENT, EEXIST, EBUSY and ECANCELED are \
                 answers that the driver reckons with.",
                Counter::default,
            ),
            connections: catalogue.family(
                "ceph_connections",
                ["state"],
                "Connections to clusters. A suspect one is replaced when a new one comes up, a \
                 broken one always.",
                Gauge::default,
            ),
            reconnects: catalogue.family(
                "ceph_reconnects",
                ["reason"],
                "Attempts to replace a connection, by what was wrong with it: a call on it \
                 hung, or timed out, or was not permitted; the cluster refused its key, or it \
                 was not connected, or is on the blocklist.",
                Counter::default,
            ),
            cluster_up: catalogue.family(
                "cluster_up",
                ["cluster"],
                "Whether a monitor of the cluster accepts connections, on a controller. A \
                 cluster that is known by its ceph.conf alone counts as up.",
                Gauge::default,
            ),
            sweeps: catalogue.family(
                "sweeps",
                ["cluster", "pool", "namespace", "outcome"],
                "Runs of the sweeper, which finishes every minute what was left half-done. A \
                 place that the configuration does not name is `other`.",
                Counter::default,
            ),
            places: Places::new(&mut catalogue),
            pool_used: catalogue.family(
                "pool_used_bytes",
                ["cluster", "pool"],
                "Bytes that clients have stored in a pool of the configuration, before \
                 replication.",
                Gauge::default,
            ),
            pool_available: catalogue.family(
                "pool_available_bytes",
                ["cluster", "pool"],
                "Bytes that clients may still store in it before the fullest OSD is full.",
                Gauge::default,
            ),
            pool_quota: catalogue.family(
                "pool_quota_bytes",
                ["cluster", "pool"],
                "Its quota, where it has one.",
                Gauge::default,
            ),
            leases_taken_over: catalogue.family(
                "leases_taken_over",
                [],
                "Records whose lease was taken over from a controller, or an operation, that \
                 was dead, silent or hung.",
                Counter::default,
            ),
            clients_fenced: catalogue.family(
                "clients_fenced",
                ["of"],
                "Clients put on Ceph's blocklist: of a node that may still have written to a \
                 volume that was taken from it, or of a controller whose work was taken over.",
                Counter::default,
            ),
            clone_depth: catalogue.family(
                "clone_depth",
                [],
                "Ancestors of each clone when it was made; 0 when it was flattened.",
                depths,
            ),
            mkfs: catalogue.family(
                "mkfs",
                ["result"],
                "Filesystems made on this node; volumes that were left alone for what is on \
                 them or might be; and runs of mkfs that failed.",
                Counter::default,
            ),
            illnesses: catalogue.family(
                "volume_illnesses_seen",
                ["illness"],
                "Times that a volume on this node was found ill when its statistics or its \
                 health were asked for, which kubelet does about once a minute.",
                Counter::default,
            ),
            mapped: catalogue.family(
                "mapped_devices",
                ["mounter"],
                "Volumes that are staged on this node, by how they are attached.",
                Gauge::default,
            ),
            build: catalogue.family(
                "build_info",
                ["version", "ceph"],
                "1, with the driver's version and that of Ceph's libraries in it.",
                Gauge::default,
            ),
            reading: Mutex::default(),
            catalogue,
        };
        metrics.begin_with_zeros();
        metrics
    }

    fn begin_with_zeros(&self) {
        for class in CLASSES {
            self.operations.know(class);
            self.waiting.know(class);
        }
        self.connections.begin_with(&CONNECTION_STATES);
        self.reconnects.begin_with(&RECONNECT_REASONS);
        self.clients_fenced.begin_with(&FENCED);
        self.mkfs.begin_with(&MKFS_RESULTS);
        self.illnesses.begin_with(&ILLNESSES);
        self.leases_taken_over.with([]);
        self.clone_depth.with([]);
    }

    /// Everything, in the text format of OpenMetrics 1.0.
    pub fn text(&self) -> String {
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        for in_flight in [&self.rpcs, &self.operations, &self.waiting, &self.calls] {
            in_flight.refresh();
        }
        self.places.refresh(now());
        let mut text = String::new();
        // A string takes all that is written to it.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.catalogue.registry);
        text
    }

    /// What there is.
    pub fn descriptions(&self) -> &[Description] {
        &self.catalogue.descriptions
    }

    /// Says which version this is, and which of Ceph's libraries it runs on.
    pub fn build(&self, version: &str, ceph: &str) {
        self.build.with([version, ceph]).set(1);
    }

    /// An RPC has come. `method` is one that there is.
    pub fn rpc_begins(&self, method: &str) -> Begun {
        self.rpcs.begin(method)
    }

    /// It is answered with `code`.
    pub fn rpc_ends(&self, method: &str, code: &str, took: Duration) {
        self.rpc_seconds.with([method, code]).observe(took.as_secs_f64());
    }

    /// An operation of one of [`CLASSES`] waits for its permit.
    pub fn operation_waits(&self, class: &str) -> Begun {
        self.waiting.begin(class)
    }

    /// It is at work.
    pub fn operation_works(&self, class: &str) -> Begun {
        self.operations.begin(class)
    }

    /// A call to a cluster begins.
    pub fn call_begins(&self, cluster: &str) -> Begun {
        self.calls.begin(cluster)
    }

    /// It has returned, with an error or without.
    pub fn call_ends(&self, cluster: &str, call: &str, took: Duration, errno: Option<Errno>) {
        self.call_seconds.with([cluster, call]).observe(took.as_secs_f64());
        if let Some(errno) = errno {
            self.call_errors.with([cluster, call, &format!("{errno:?}")]).inc();
        }
    }

    /// A connection goes from one of [`CONNECTION_STATES`] to another; `None` is before it came up
    /// and after it was shut down.
    pub fn connection_changes(&self, from: Option<&str>, to: Option<&str>) {
        from.map(|state| self.connections.with([state]).dec());
        to.map(|state| self.connections.with([state]).inc());
    }

    /// A connection is to be replaced, for one of [`RECONNECT_REASONS`].
    pub fn reconnects(&self, reason: &str) {
        self.reconnects.with([reason]).inc();
    }

    /// Whether a monitor of a cluster accepts connections.
    pub fn cluster_answers(&self, cluster: &str, answers: bool) {
        self.cluster_up.with([cluster]).set(answers.into());
    }

    /// A sweep has ended, with one of [`SWEEP_OUTCOMES`].
    pub fn swept(&self, place: &PlaceLabels, outcome: &str) {
        let PlaceLabels { cluster, pool, namespace } = place;
        self.sweeps.with([cluster, pool, namespace, outcome]).inc();
    }

    /// What was found last in the place with this key, which is no label.
    pub fn place_is(&self, key: &str, labels: PlaceLabels, figures: Figures) {
        for outcome in SWEEP_OUTCOMES {
            self.sweeps.with([&labels.cluster, &labels.pool, &labels.namespace, outcome]);
        }
        self.places.set(key, labels, figures);
    }

    /// The place with this key is not looked after any more.
    pub fn place_is_left(&self, key: &str) {
        self.places.forget(key);
    }

    /// How full a pool is that the configuration names.
    pub fn pool_is(&self, cluster: &str, pool: &str, space: Space) {
        let place = [cluster, pool];
        self.pool_used.with(place).set(bytes(space.used));
        self.pool_available.with(place).set(bytes(space.available));
        match space.quota {
            Some(quota) => drop(self.pool_quota.with(place).set(bytes(quota))),
            None => self.pool_quota.forget(place),
        }
    }

    /// A lease was taken over.
    pub fn lease_taken_over(&self) {
        self.leases_taken_over.with([]).inc();
    }

    /// A client was put on the blocklist: of one of [`FENCED`].
    pub fn client_fenced(&self, of: &str) {
        self.clients_fenced.with([of]).inc();
    }

    /// A clone was made that has so many ancestors.
    pub fn clone_made(&self, depth: u32) {
        self.clone_depth.with([]).observe(depth.into());
    }

    /// A filesystem was to be found or made, with one of [`MKFS_RESULTS`].
    pub fn mkfs(&self, result: &str) {
        self.mkfs.with([result]).inc();
    }

    /// A volume was found ill, with one of [`ILLNESSES`].
    pub fn illness_seen(&self, illness: &str) {
        self.illnesses.with([illness]).inc();
    }

    /// So many volumes are attached by one of [`MOUNTERS`].
    pub fn mapped_are(&self, mounter: &str, count: usize) {
        self.mapped.with([mounter]).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}

/// Bytes as Prometheus has them. From 2^53 on they are rounded.
#[expect(clippy::cast_precision_loss, reason = "eight petabytes and more are rounded")]
fn bytes(bytes: u64) -> f64 {
    bytes as f64
}

/// Seconds since 1970.
fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

#[cfg(test)]
mod tests;
