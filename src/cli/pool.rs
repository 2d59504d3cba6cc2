//! The clusters and pools a command works on: flags, and the way there.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use cinderblock::csi::clusters::{Clusters, Credentials};
use cinderblock::csi::config::{self, Config};
use cinderblock::csi::ids::Location;
use cinderblock::rbd::ceph::{ConnectOptions, Connections, Timeouts, connect};
use cinderblock::rbd::{Cluster, Key, Pool};
use cinderblock::volume::{Activity, Process, Volumes};
use clap::Args;

/// Which cluster to work on, and as whom.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterArgs {
    /// The driver's configuration
    #[arg(long, value_name = "FILE", env = "CINDERBLOCK_CONFIG", hide_env_values = true)]
    config: PathBuf,

    /// The cluster in it, by clusterID; may be left out when there is one
    #[arg(long, value_name = "ID")]
    cluster: Option<String>,

    /// The driver's --instance, whose catalogue is read
    #[arg(
        long,
        value_name = "NAME",
        default_value = "default",
        env = "CINDERBLOCK_INSTANCE",
        hide_env_values = true
    )]
    instance: String,

    /// The Ceph user, without "client."; the configuration's userID when left out
    #[arg(long, requires = "key_file")]
    user: Option<String>,

    /// File with that user's key and nothing else; the configuration's keyFile when left out
    #[arg(long, value_name = "FILE", requires = "user")]
    key_file: Option<PathBuf>,
}

/// Which pools to look at.
#[derive(Debug, Args)]
pub(crate) struct PoolArgs {
    #[command(flatten)]
    cluster: ClusterArgs,

    /// The pool; when left out, every pool that the configuration names
    #[arg(long, help_heading = "Cluster")]
    pool: Option<String>,

    /// The RADOS namespace in the pool; the default one when left out
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        requires = "pool",
        help_heading = "Cluster"
    )]
    namespace: String,
}

/// Why a command cannot begin.
#[derive(Debug)]
pub(crate) enum NoPool {
    /// Arguments or the configuration are wrong.
    Arguments(String),
    /// The cluster cannot be reached as they say.
    Cluster(String),
}

impl NoPool {
    /// What the program ends with.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            NoPool::Arguments(_) => super::EXIT_USAGE,
            NoPool::Cluster(_) => super::EXIT_FAILURE,
        })
    }
}

impl fmt::Display for NoPool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (NoPool::Arguments(why) | NoPool::Cluster(why)) = self;
        formatter.write_str(why)
    }
}

impl std::error::Error for NoPool {}

impl PoolArgs {
    /// The clusters.
    pub(crate) fn cluster(&self) -> &ClusterArgs {
        &self.cluster
    }

    /// The pool on the command line, or all that the configuration names; with a connection each.
    /// Pools that cannot be reached are there with the reason.
    #[allow(clippy::type_complexity, reason = "named parts would be used here alone")]
    fn open(&self) -> Result<Vec<(Location, Result<Volumes, NoPool>)>, NoPool> {
        let config = self.cluster.read()?;
        let places = self.places(&config)?;
        let connections = Connections::default();
        let clusters = Clusters::new(
            config,
            &self.cluster.instance,
            Timeouts::default(),
            Box::new(move |options| connections.get(options)),
            Box::new(|_| ()),
        );
        let open = |place: &Location| {
            let cluster = &clusters.config().clusters[&place.cluster];
            let (user, key) = self.cluster.user_and_key(cluster)?;
            let access = clusters
                .access(place, Credentials::new(&user, key), Arc::default())
                .map_err(|status| NoPool::Cluster(status.message().to_owned()))?;
            Ok(access.volumes)
        };
        Ok(places.into_iter().map(|place| (place.clone(), open(&place))).collect())
    }

    /// The one pool that a command works on: the one on the command line, or the only one that the
    /// configuration names.
    pub(crate) fn open_one(&self) -> Result<(Location, Volumes), NoPool> {
        let mut opened = self.open()?;
        match (opened.pop(), opened.is_empty()) {
            (Some((place, volumes)), true) => Ok((place, volumes?)),
            _ => Err(NoPool::Arguments(
                "the configuration names several pools: choose one with --pool".to_owned(),
            )),
        }
    }

    /// Does `work` in each pool. What fails is said on standard error, as `name`'s, and the others
    /// are gone on with; returns what was done, and the exit status if anything failed.
    pub(crate) fn each<T>(
        &self,
        name: &str,
        mut work: impl FnMut(&Location, &Volumes) -> Result<T, Box<dyn std::error::Error>>,
    ) -> (Vec<T>, Option<ExitCode>) {
        let opened = match self.open() {
            Ok(opened) => opened,
            Err(error) => {
                eprintln!("cinderblock {name}: {error}");
                return (Vec::new(), Some(error.exit_code()));
            }
        };
        let (mut done, mut failed) = (Vec::new(), None);
        for (place, volumes) in opened {
            let worked = match volumes {
                Ok(volumes) => {
                    work(&place, &volumes).map_err(|error| NoPool::Cluster(error.to_string()))
                }
                Err(error) => Err(error),
            };
            match worked {
                Ok(result) => done.push(result),
                Err(error) => {
                    eprintln!("cinderblock {name}: {place}: {error}");
                    failed = Some(error.exit_code());
                }
            }
        }
        (done, failed)
    }

    fn places(&self, config: &Config) -> Result<Vec<Location>, NoPool> {
        if let Some(pool) = &self.pool {
            let cluster = choose(config, self.cluster.chosen())?.cluster_id.clone();
            let namespace = self.namespace.clone();
            return Ok(vec![Location { cluster, pool: pool.clone(), namespace }]);
        }
        let clusters = match self.cluster.chosen() {
            Some(id) => vec![choose(config, Some(id))?],
            None => config.clusters.values().collect(),
        };
        let places: Vec<_> = clusters.into_iter().flat_map(config::Cluster::places).collect();
        if places.is_empty() {
            return Err(NoPool::Arguments(
                "the configuration names no pools: list them under pools in it, or name one with --pool"
                    .to_owned(),
            ));
        }
        Ok(places)
    }
}

impl ClusterArgs {
    /// The clusterID on the command line.
    pub(crate) fn chosen(&self) -> Option<&str> {
        self.cluster.as_deref()
    }

    /// The configuration's path.
    pub(crate) fn file(&self) -> &Path {
        &self.config
    }

    /// The driver's instance.
    pub(crate) fn instance(&self) -> &str {
        &self.instance
    }

    /// The clusterIDs that the configuration knows.
    pub(crate) fn known(&self) -> Result<Vec<String>, NoPool> {
        Ok(self.read()?.clusters.into_keys().collect())
    }

    pub(crate) fn read(&self) -> Result<Config, NoPool> {
        Config::read(&self.config).map_err(|error| NoPool::Arguments(error.to_string()))
    }

    /// Connects to the cluster of that clusterID, or to the only one.
    pub(crate) fn connect(&self, id: Option<&str>) -> Result<Arc<dyn Cluster>, NoPool> {
        let config = self.read()?;
        let cluster = choose(&config, id)?;
        let (user, key) = self.user_and_key(cluster)?;
        let cluster = connect(&ConnectOptions {
            monitors: cluster.monitors.clone(),
            ceph_conf: cluster.ceph_conf.clone(),
            user,
            key: Some(key),
            timeouts: Timeouts::default(),
        })
        .map_err(|error| NoPool::Cluster(error.to_string()))?;
        Ok(cinderblock::rbd::observed(cluster, ""))
    }

    /// The user to work as: the one on the command line, else the configuration's.
    pub(crate) fn user_and_key(&self, cluster: &config::Cluster) -> Result<(String, Key), NoPool> {
        let (Some(user), Some(key_file)) = (
            self.user.as_ref().or(cluster.user_id.as_ref()),
            self.key_file.as_ref().or(cluster.key_file.as_ref()),
        ) else {
            return Err(NoPool::Arguments(
                "no Ceph user: give --user and --key-file, or userID and keyFile in the configuration".to_owned(),
            ));
        };
        let key = std::fs::read_to_string(key_file).map_err(|error| {
            let file = key_file.display();
            NoPool::Arguments(format!("cannot read the key file {file}: {error}"))
        })?;
        Ok((user.strip_prefix("client.").unwrap_or(user).to_owned(), Key::new(&key)))
    }

    /// The volumes in `pool`, as the driver of that instance has them.
    pub(crate) fn volumes(&self, pool: Arc<dyn Pool>) -> Volumes {
        Volumes::new(pool, &self.instance, Process::default(), Arc::new(Activity::default()))
    }
}

fn choose<'a>(config: &'a Config, id: Option<&str>) -> Result<&'a config::Cluster, NoPool> {
    let clusters: &BTreeMap<_, _> = &config.clusters;
    let known = || clusters.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let found = match id {
        Some(id) => clusters
            .get(id)
            .ok_or_else(|| format!("the configuration knows {}, and no cluster {id:?}", known())),
        None if clusters.len() == 1 => {
            clusters.values().next().ok_or_else(|| "no cluster".to_string())
        }
        None => Err(format!("the configuration knows {}: choose one with --cluster", known())),
    };
    found.map_err(NoPool::Arguments)
}
