//! The pool a command works on: flags, and the way there.

use std::path::PathBuf;
use std::sync::Arc;

use cinderblock::csi::config::{Cluster, Config};
use cinderblock::rbd::Key;
use cinderblock::rbd::ceph::{ConnectOptions, Timeouts, connect};
use cinderblock::volume::{Activity, Process, Volumes};
use clap::Args;

/// Which pool to look at, and as whom.
#[derive(Debug, Args)]
#[command(next_help_heading = "Pool")]
pub(crate) struct PoolArgs {
    /// The driver's configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,

    /// The cluster in it, by clusterID; may be left out when there is one
    #[arg(long, value_name = "ID")]
    cluster: Option<String>,

    /// The pool
    #[arg(long)]
    pool: String,

    /// The RADOS namespace in the pool; the default one when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    namespace: String,

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

impl PoolArgs {
    /// Connects and opens the pool.
    pub(crate) fn open(&self) -> Result<Volumes, Box<dyn std::error::Error>> {
        let config = Config::read(&self.config)?;
        let cluster = self.choose(&config)?;
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
        let pool = cluster.pool(&self.pool, &self.namespace)?;
        Ok(Volumes::new(pool, &self.instance, Process::default(), Arc::new(Activity::default())))
    }

    fn choose<'a>(&self, config: &'a Config) -> Result<&'a Cluster, String> {
        let known = || config.clusters.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        match &self.cluster {
            Some(id) => config.clusters.get(id).ok_or_else(|| {
                format!("the configuration knows {}, and no cluster {id:?}", known())
            }),
            None if config.clusters.len() == 1 => {
                config.clusters.values().next().ok_or_else(|| "no cluster".to_string())
            }
            None => Err(format!("the configuration knows {}: choose one with --cluster", known())),
        }
    }
}
