//! From a request's secrets and a volume's location to a connection and its pool.

use super::config::{self, Config};
use super::ids::Location;
use super::operations::{Class, Operation};
use super::status::Scope;
use crate::metrics::PlaceLabels;
use crate::rbd::ceph::{ConnectOptions, Timeouts};
use crate::rbd::{self, Errno, Key, Monitor, Pool};
use crate::volume::{Activity, Process, Volumes};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::ToSocketAddrs as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tonic::Status;
use zeroize::Zeroizing;

/// How connections are made: pooled ones to Ceph, or to the in-memory model in tests.
pub type Connect = Box<dyn Fn(&ConnectOptions) -> rbd::Result<Arc<dyn rbd::Cluster>> + Send + Sync>;
/// How the connection with this address is replaced by a new one, if one can be had.
pub type SetAside = Box<dyn Fn(&str) + Send + Sync>;

/// For how long nothing may be heard of an operation before its connection is set aside: no single
/// wait that knows a timeout takes as long.
const STUCK: Duration = Duration::from_secs(30);

/// What metrics call what the configuration does not name.
pub(super) const OTHER: &str = "other";

/// How long the monitors of a cluster are handed out without asking again.
const MONITORS_FRESH: Duration = Duration::from_mins(1);

/// The clusters of the configuration, and how to reach them.
pub struct Clusters {
    config: Config,
    instance: String,
    connect: Connect,
    set_aside: SetAside,
    timeouts: Timeouts,
    /// What works on which connection.
    at_work: Mutex<Vec<(Weak<Activity>, String)>>,
    monitors: Mutex<HashMap<String, (Instant, Vec<Monitor>)>>,
    /// The users and places where the namespace was seen to be registered, or where the user may
    /// not look. The driver asks once for each.
    registered: Mutex<HashSet<(String, Location)>>,
    process: Process,
}

impl std::fmt::Debug for Clusters {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Clusters").field("instance", &self.instance).finish_non_exhaustive()
    }
}

/// A user's name and key, from a request's secrets or from the configuration.
#[derive(Debug, Clone)]
pub struct Credentials {
    user: String,
    key: Key,
}

impl Credentials {
    /// Those of a user that is named without `client.`.
    pub fn new(user: &str, key: Key) -> Credentials {
        Credentials { user: user.to_owned(), key }
    }
}

/// A pool as one request reached it.
#[derive(Debug)]
pub struct Access {
    /// As whom and where, for the answers.
    pub scope: Scope,
    /// The volumes there.
    pub volumes: Volumes,
}

impl Access {
    /// The outcome of an operation on the volumes, with its error as an answer.
    pub fn answer<T>(&self, outcome: crate::volume::Result<T>) -> Result<T, Status> {
        outcome.map_err(|error| self.scope.status(&error))
    }
}

impl Clusters {
    /// The clusters of `config`, for the driver instance `instance`.
    pub fn new(
        config: Config,
        instance: &str,
        timeouts: Timeouts,
        connect: Connect,
        set_aside: SetAside,
    ) -> Clusters {
        Clusters {
            config,
            instance: instance.to_string(),
            connect,
            set_aside,
            timeouts,
            at_work: Mutex::default(),
            monitors: Mutex::default(),
            registered: Mutex::default(),
            process: Process::default(),
        }
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The credentials for a request on `cluster`: its secrets, else the driver's own from the
    /// configuration. `UNAUTHENTICATED` when there are none.
    pub fn credentials(
        &self,
        cluster: &config::Cluster,
        secrets: &BTreeMap<String, String>,
    ) -> Result<Credentials, Status> {
        let secret = |name: &str| secrets.get(name).filter(|value| !value.is_empty());
        match (secret("userID"), secret("userKey")) {
            (Some(user), Some(_)) if user.starts_with("client.") => Err(Status::unauthenticated(format!(
                "the secret's userID is to be without \"client.\": {:?}",
                user.trim_start_matches("client.")
            ))),
            (Some(user), Some(_)) if !looks_like_a_user(user) => Err(Status::unauthenticated(
                "the secret's userID is no name of a Ceph user: it is the NAME in client.NAME, of letters, digits and \
                 punctuation",
            )),
            (Some(_), Some(key)) if !looks_like_a_key(key) => Err(Status::unauthenticated(
                "the secret's userKey is not a cephx key: it is the text that `ceph auth get-key client.NAME` prints, and in a Secret \
                 encoded in base64 once more under `data` alone, not under `stringData`",
            )),
            (Some(user), Some(key)) => Ok(Credentials { user: user.clone(), key: Key::new(key) }),
            (None, None) if secrets.is_empty() => own_credentials(cluster)?.ok_or_else(|| {
                Status::unauthenticated(format!(
                    "the request has no secrets and the cluster {:?} has no userID and keyFile in the configuration: name a \
                     secret with userID and userKey in the StorageClass or snapshot class",
                    cluster.cluster_id
                ))
            }),
            (user, _) => Err(Status::unauthenticated(format!(
                "the secret lacks {}: it needs userID (without \"client.\") and userKey",
                if user.is_none() { "userID" } else { "userKey" }
            ))),
        }
    }

    /// Connects and opens the pool. Blocks for as long as the timeouts say.
    pub fn access(
        &self,
        location: &Location,
        credentials: Credentials,
        activity: Arc<Activity>,
    ) -> Result<Access, Status> {
        let scope = Scope {
            user: credentials.user.clone(),
            key: credentials.key.key_type(),
            location: location.clone(),
        };
        let config = super::parameters::cluster(&self.config, &location.cluster)?;
        self.set_stuck_connections_aside(STUCK);
        activity.begin("connecting to Ceph");
        let ceph_conf = config.ceph_conf.as_deref();
        let cluster = self.connect(config, credentials).map_err(|error| {
            let malformed = error.errno == Errno::EINVAL;
            let unresolved = malformed.then(|| unresolved(&error, &config.monitors)).flatten();
            unresolved.unwrap_or_else(|| scope.unconnected_status(&error, ceph_conf))
        })?;
        activity.begin("");
        if let Ok(address) = cluster.address() {
            self.at_work().push((Arc::downgrade(&activity), address));
        }
        let pool = cluster.pool(&location.pool, &location.namespace).map_err(|error| match error.errno {
            Errno::ENOENT => Status::invalid_argument(format!(
                "the pool {} does not exist in the cluster {}: create it, or correct the parameter pool",
                location.pool, location.cluster
            )),
            _ => scope.connection_status(&error),
        })?;
        let volumes = Volumes::new(pool, &self.instance, self.process.clone(), activity);
        Ok(Access { scope, volumes })
    }

    /// Sets aside each connection on which an operation has been quiet for `long`. An operation on
    /// it goes on; all others get a new one. A few waits inside librados know no timeout.
    fn set_stuck_connections_aside(&self, long: Duration) {
        let stuck = |(activity, _): &mut (Weak<Activity>, String)| {
            activity.upgrade().is_none_or(|activity| activity.quiet_for() >= long)
        };
        let ended_or_stuck: Vec<_> = self.at_work().extract_if(.., stuck).collect();
        for (activity, address) in ended_or_stuck {
            if let Some(activity) = activity.upgrade() {
                tracing::warn!(%activity, address, "a call is stuck; its connection is set aside");
                (self.set_aside)(&address);
            }
        }
    }

    fn at_work(&self) -> MutexGuard<'_, Vec<(Weak<Activity>, String)>> {
        self.at_work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a place where librbd would not create images: a RADOS namespace that was never
    /// registered. A user whose capabilities end with that namespace may not look; librbd will say
    /// `ENOENT` then.
    pub fn check_namespace(&self, access: &Access) -> Result<(), Status> {
        let Scope { user, location, .. } = &access.scope;
        let asked = (user.clone(), location.clone());
        if location.namespace.is_empty() || self.registered().contains(&asked) {
            return Ok(());
        }
        let exists = match access.volumes.pool().namespace_exists() {
            Err(error) if error.errno == Errno::EPERM => true,
            other => other.map_err(|error| access.scope.connection_status(&error))?,
        };
        if !exists {
            return Err(Status::invalid_argument(format!(
                "the RADOS namespace {0} does not exist in the pool {1}, run: rbd namespace create {1}/{0}",
                location.namespace, location.pool
            )));
        }
        self.registered().insert(asked);
        Ok(())
    }

    fn registered(&self) -> MutexGuard<'_, HashSet<(String, Location)>> {
        self.registered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(
        &self,
        cluster: &config::Cluster,
        credentials: Credentials,
    ) -> rbd::Result<Arc<dyn rbd::Cluster>> {
        let connected = (self.connect)(&ConnectOptions {
            monitors: cluster.monitors.clone(),
            ceph_conf: cluster.ceph_conf.clone(),
            user: credentials.user,
            key: Some(credentials.key),
            timeouts: self.timeouts,
        })?;
        Ok(rbd::observed(connected, &cluster.cluster_id))
    }

    /// What metrics call a place: its pool and namespace when the configuration names them, else
    /// `other`.
    pub(super) fn labels(&self, location: &Location) -> PlaceLabels {
        let Location { cluster, pool, namespace } = location;
        let known = self.config.clusters.get(cluster);
        let named = known.into_iter().flat_map(|cluster| {
            cluster
                .pools
                .iter()
                .map(|named| named.split_once('/').unwrap_or((named, cluster.default_namespace())))
        });
        let (mut pool_label, mut namespace_label) = (OTHER, OTHER);
        for (named_pool, named_namespace) in named.filter(|(named, _)| named == pool) {
            pool_label = named_pool;
            if named_namespace == namespace {
                namespace_label = named_namespace;
            }
        }
        PlaceLabels {
            cluster: if known.is_some() { cluster.as_str() } else { OTHER }.to_owned(),
            pool: pool_label.to_owned(),
            namespace: namespace_label.to_owned(),
        }
    }

    /// The pools that the configuration names with credentials of the driver's own, for work at
    /// start-up.
    pub fn own_pools(&self) -> Vec<Location> {
        let with_own_user =
            self.config.clusters.values().filter(|cluster| cluster.user_id.is_some());
        with_own_user.flat_map(config::Cluster::places).collect()
    }

    /// The pools of all clusters, for RPCs that bring neither secrets nor a pool.
    /// `FAILED_PRECONDITION` when a cluster of the configuration cannot be listed: an answer
    /// without its volumes would look like a whole one.
    pub fn listable(&self) -> Result<Vec<Location>, Status> {
        for cluster in self.config.clusters.values() {
            let lacks = [
                ("userID", cluster.user_id.is_none()),
                ("keyFile", cluster.key_file.is_none()),
                ("pools", cluster.pools.is_empty()),
            ];
            let lacks: Vec<_> =
                lacks.iter().filter(|(_, lacks)| *lacks).map(|(key, _)| *key).collect();
            if !lacks.is_empty() {
                return Err(Status::failed_precondition(format!(
                    "the cluster {:?} cannot be listed: its entry in the configuration lacks {}, without which the driver has no user of \
                     its own there and knows no pools",
                    cluster.cluster_id,
                    lacks.join(", ")
                )));
            }
        }
        Ok(self.own_pools())
    }

    /// The live monitors of the cluster `pool` is in; known ones are handed out for a minute, and
    /// for as long as the cluster's monitors do not answer.
    pub fn monitors(&self, cluster: &str, pool: &dyn Pool) -> rbd::Result<Vec<Monitor>> {
        let known =
            self.monitors.lock().unwrap_or_else(PoisonError::into_inner).get(cluster).cloned();
        if let Some((since, monitors)) = &known
            && since.elapsed() < MONITORS_FRESH
        {
            return Ok(monitors.clone());
        }
        let monitors = match (pool.cluster().monitors(), known) {
            (Ok(monitors), _) => monitors,
            (Err(error), Some((_, monitors))) => {
                tracing::warn!(cluster, %error, "the monitors do not answer; nodes get those known before");
                monitors
            }
            (Err(error), None) => return Err(error),
        };
        // Those known before too: one request a minute waits for monitors that do not answer.
        let mut table = self.monitors.lock().unwrap_or_else(PoisonError::into_inner);
        table.insert(cluster.to_string(), (Instant::now(), monitors.clone()));
        Ok(monitors)
    }
}

/// Whether a text can name a Ceph user: printable, without blanks, so that it is itself in every
/// log and message.
pub(crate) fn looks_like_a_user(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// Whether a text has the form of a cephx key: base64 of a type, a time and at least 16 bytes with
/// their length before them. librados would answer `EINVAL` for anything else, as it does for a key
/// of a type it does not know.
pub(crate) fn looks_like_a_key(text: &str) -> bool {
    /// Bytes before the key's own: two of the type, eight of the time, two of the length.
    const HEADER: usize = 12;
    let Ok(bytes) = STANDARD.decode(text.trim_ascii()).map(Zeroizing::new) else { return false };
    let length = bytes
        .get(HEADER - 2..HEADER)
        .map_or(0, |length| usize::from(length[0]) | usize::from(length[1]) << 8);
    length >= 16 && bytes.len() == HEADER + length
}

/// The answer for a connection that librados does not even try, where a monitor's name does not
/// resolve.
fn unresolved(error: &rbd::Error, monitors: &[String]) -> Option<Status> {
    monitors.iter().flat_map(|monitor| hosts(monitor)).find_map(|host| {
        let why = (host.as_str(), 0).to_socket_addrs().err()?;
        Some(Status::unavailable(format!(
            "the monitor's name {host:?} in the configuration does not resolve ({why}): correct monitors, or the name service; {error}"
        )))
    })
}

/// The hosts in one entry of `monitors`, without versions, ports and nonces.
fn hosts(monitor: &str) -> Vec<String> {
    let addresses = monitor.trim().trim_start_matches('[').split([',', ' ', ';']);
    let host = |address: &str| {
        let address =
            address.trim_start_matches("v1:").trim_start_matches("v2:").trim_start_matches("any:");
        match address.strip_prefix('[') {
            Some(v6) => v6.split(']').next().unwrap_or_default().to_string(),
            None => address.split([':', '/', ']']).next().unwrap_or_default().to_string(),
        }
    };
    // A bracket around a vector is not one around an IPv6 address.
    let vector =
        monitor.trim().starts_with('[') && (monitor.contains("v1:") || monitor.contains("v2:"));
    if !vector && monitor.trim().starts_with('[') {
        return vec![host(monitor.trim())];
    }
    addresses.map(host).filter(|host| !host.is_empty()).collect()
}

/// The driver's own user on `cluster`, if the configuration names one. The key file is read anew
/// each time, so that a rotated key needs no restart.
fn own_credentials(cluster: &config::Cluster) -> Result<Option<Credentials>, Status> {
    let (Some(user), Some(file)) = (&cluster.user_id, &cluster.key_file) else {
        return Ok(None);
    };
    match std::fs::read_to_string(file) {
        Ok(key) => Ok(Some(Credentials { user: user.clone(), key: Key::new(&key) })),
        Err(error) => Err(Status::failed_precondition(format!(
            "cannot read the keyFile {} of the cluster {:?}: {error}",
            file.display(),
            cluster.cluster_id
        ))),
    }
}

/// The operation `rpc` of `class` on `keys` at `location`, told apart from others by `request`,
/// which must not hold secrets.
pub fn operation(
    class: Class,
    rpc: &'static str,
    location: &Location,
    keys: Vec<String>,
    request: String,
) -> Operation {
    Operation {
        class,
        rpc,
        cluster: location.cluster.clone(),
        pool: location.pool.clone(),
        keys,
        request,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rbd::model::Model;

    #[test]
    fn hosts_are_found_in_every_form_of_an_address() {
        for (monitor, found) in [
            ("mon-a", &["mon-a"][..]),
            ("mon-a:6789", &["mon-a"]),
            ("10.0.0.1:3300/0", &["10.0.0.1"]),
            ("[fd00::1]:6789", &["fd00::1"]),
            ("[v2:10.0.0.3:3300,v1:mon-c:6789]", &["10.0.0.3", "mon-c"]),
            ("[v2:[fd00::1]:3300/0,v1:[fd00::1]:6789/0]", &["fd00::1", "fd00::1"]),
        ] {
            assert_eq!(hosts(monitor), found, "{monitor}");
        }
    }

    #[test]
    fn metrics_name_no_place_that_the_configuration_does_not() {
        let config = "- {clusterID: lab, monitors: [m], pools: [rbd, fast/tenant]}";
        let clusters = Clusters::new(
            Config::parse(config).unwrap(),
            "default",
            Timeouts::default(),
            Box::new(|_| unreachable!("nothing is asked")),
            Box::new(|_| ()),
        );
        for (place, labels) in [
            (["lab", "rbd", ""], ["lab", "rbd", ""]),
            (["lab", "rbd", "any"], ["lab", "rbd", "other"]),
            (["lab", "fast", "tenant"], ["lab", "fast", "tenant"]),
            (["lab", "fast", ""], ["lab", "fast", "other"]),
            (["lab", "any", "tenant"], ["lab", "other", "other"]),
            (["any", "rbd", ""], ["other", "other", "other"]),
        ] {
            let [cluster, pool, namespace] = place.map(str::to_owned);
            let found = clusters.labels(&Location { cluster, pool, namespace });
            assert_eq!(
                [found.cluster.as_str(), &found.pool, &found.namespace],
                labels,
                "{place:?}"
            );
        }
    }

    #[test]
    fn a_key_is_known_by_its_form() {
        let key = "AQAbc2Rl5YW8LxAAXGtO8bq8mcZnUEOKzcbHtw==";
        assert!(looks_like_a_key(key) && looks_like_a_key(&format!("{key}\n")));
        assert!(!looks_like_a_key(&STANDARD.encode(key)), "encoded twice");
        assert!(!looks_like_a_key("AQAbc2Rl5YW8LxAAXGtO8bq8mcZnUEOKzcbHt"), "cut off");
        assert!(!looks_like_a_key("this is a secret that nobody would take for one"));
    }

    #[test]
    fn a_connection_is_set_aside_when_nothing_is_heard_of_what_works_on_it() {
        let model = Model::new();
        model.create_pool("rbd");
        let session = model.connect();
        let address = session.cluster().address().unwrap();
        let aside = Arc::new(Mutex::new(Vec::new()));
        let seen = aside.clone();
        let clusters = Clusters::new(
            Config::parse("- {clusterID: lab, monitors: [m]}").unwrap(),
            "default",
            Timeouts::default(),
            Box::new(move |_| Ok(session.cluster())),
            Box::new(move |address| seen.lock().unwrap().push(address.to_owned())),
        );
        let location =
            Location { cluster: "lab".into(), pool: "rbd".into(), namespace: String::new() };
        let work = || {
            let credentials = Credentials { user: "csi".into(), key: Key::new("k") };
            clusters.access(&location, credentials, Arc::default()).unwrap()
        };
        let (long, no_time) = (Duration::from_hours(1), Duration::ZERO);
        // What is over is not stuck.
        drop(work());
        clusters.set_stuck_connections_aside(no_time);
        assert!(aside.lock().unwrap().is_empty());
        let stuck = work();
        clusters.set_stuck_connections_aside(long);
        assert!(aside.lock().unwrap().is_empty());
        clusters.set_stuck_connections_aside(no_time);
        // Once is enough.
        clusters.set_stuck_connections_aside(no_time);
        assert_eq!(*aside.lock().unwrap(), [address]);
        drop(stuck);
    }
}
