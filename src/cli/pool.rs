//! The cluster and the pool a command works on: flags, and the way there.

use std::path::PathBuf;
use std::sync::Arc;

use cinderblock::csi::config::{self, Config};
use cinderblock::csi::ids::Location;
use cinderblock::rbd::ceph::{ConnectOptions, Timeouts, connect};
use cinderblock::rbd::{Cluster, Key, Pool};
use cinderblock::volume::{Activity, Process, Volumes};
use clap::Args;

/// Which cluster to work on, and as whom.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterArgs {
    /// The driver's configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,

    /// The cluster in it, by clusterID; may be left out when there is one
    #[arg(long, value_name = "ID")]
    cluster: Option<String>,

    /// The driver's --instance, whose catalogue is read
    #[arg(long, default_value = "default")]
    instance: String,

    /// The Ceph user, without "client."; the configuration's userID when left out
    #[arg(long, requires = "key_file")]
    user: Option<String>,

    /// File with that user's key and nothing else; the configuration's keyFile when left out
    #[arg(long, value_name = "FILE", requires = "user")]
    key_file: Option<PathBuf>,
}

/// Which pool to look at.
#[derive(Debug, Args)]
pub(crate) struct PoolArgs {
    #[command(flatten)]
    cluster: ClusterArgs,

    /// The pool
    #[arg(long, help_heading = "Cluster")]
    pool: String,

    /// The RADOS namespace in the pool; the default one when left out
    #[arg(long, default_value = "", hide_default_value = true, help_heading = "Cluster")]
    namespace: String,
}

impl PoolArgs {
    /// Connects and opens the pool.
    pub(crate) fn open(&self) -> Result<Volumes, Box<dyn std::error::Error>> {
        let cluster = self.cluster.connect(self.cluster.cluster.as_deref())?;
        Ok(self.cluster.volumes(cluster.pool(&self.pool, &self.namespace)?))
    }
}

impl PoolArgs {
    /// The pool as ids have it.
    pub(crate) fn location(&self) -> Result<Location, Box<dyn std::error::Error>> {
        let config = self.config()?;
        let cluster = choose(&config, self.cluster.cluster.as_deref())?.cluster_id.clone();
        Ok(Location { cluster, pool: self.pool.clone(), namespace: self.namespace.clone() })
    }

    /// The driver's configuration.
    pub(crate) fn config(&self) -> Result<Config, Box<dyn std::error::Error>> {
        Ok(Config::read(&self.cluster.config)?)
    }
}

impl ClusterArgs {
    /// The clusterID on the command line.
    pub(crate) fn chosen(&self) -> Option<&str> {
        self.cluster.as_deref()
    }

    /// The clusterIDs that the configuration knows.
    pub(crate) fn known(&self) -> Result<Vec<String>, Box<dyn std::error::Error>> {
        Ok(Config::read(&self.config)?.clusters.into_keys().collect())
    }

    /// Connects to the cluster of that clusterID, or to the only one.
    pub(crate) fn connect(
        &self,
        id: Option<&str>,
    ) -> Result<Arc<dyn Cluster>, Box<dyn std::error::Error>> {
        let config = Config::read(&self.config)?;
        let cluster = choose(&config, id)?;
        let (Some(user), Some(key_file)) = (
            self.user.as_ref().or(cluster.user_id.as_ref()),
            self.key_file.as_ref().or(cluster.key_file.as_ref()),
        ) else {
            return Err(
                "no Ceph user: give --user and --key-file, or userID and keyFile in the configuration".into(),
            );
        };
        let key = std::fs::read_to_string(key_file)
            .map_err(|error| format!("cannot read the key file {}: {error}", key_file.display()))?;
        let cluster = connect(&ConnectOptions {
            monitors: cluster.monitors.clone(),
            ceph_conf: cluster.ceph_conf.clone(),
            user: user.clone(),
            key: Some(Key::new(&key)),
            timeouts: Timeouts::default(),
        })?;
        Ok(cinderblock::rbd::observed(cluster, ""))
    }

    /// The volumes in `pool`, as the driver of that instance has them.
    pub(crate) fn volumes(&self, pool: Arc<dyn Pool>) -> Volumes {
        Volumes::new(pool, &self.instance, Process::default(), Arc::new(Activity::default()))
    }
}

fn choose<'a>(config: &'a Config, id: Option<&str>) -> Result<&'a config::Cluster, String> {
    let known = || config.clusters.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    match id {
        Some(id) => config
            .clusters
            .get(id)
            .ok_or_else(|| format!("the configuration knows {}, and no cluster {id:?}", known())),
        None if config.clusters.len() == 1 => {
            config.clusters.values().next().ok_or_else(|| "no cluster".to_string())
        }
        None => Err(format!("the configuration knows {}: choose one with --cluster", known())),
    }
}
