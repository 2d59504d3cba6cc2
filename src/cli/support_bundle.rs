//! `cinderblock support-bundle`: what a supporter needs to see.

use std::fs;
use std::process::ExitCode;

use cinderblock::check::Finding;
use cinderblock::rbd::ceph::libraries;
use cinderblock::volume::leftovers::Leftover;
use cinderblock::volume::overview::Overview;
use cinderblock::volume::survey::Survey;
use cinderblock::volume::trash::Parked;
use clap::Args;
use serde::Serialize;

use super::pool::PoolArgs;
use super::{check, gc};

/// Print what a supporter needs to see, as one JSON object
///
/// It has versions, what the configuration names, all findings of `check`, and of each pool the
/// volumes, the lineage, what was left half-done and the trash. It has no key and nothing that is
/// in a volume; names of claims, nodes, pools and hosts are in it. Nothing is changed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cinderblock support-bundle --config clusters.yaml > bundle.json
  kubectl --namespace cinderblock exec deploy/cinderblock-controller -- cinderblock support-bundle > bundle.json

Exit status: 0 when all of it could be told, 1 when a pool could not be read: the rest is there, and check says why; 2 when arguments or
the configuration are wrong.")]
pub(crate) struct SupportBundleArgs {
    #[command(flatten)]
    pool: PoolArgs,
}

#[derive(Debug, Serialize)]
struct Bundle {
    made: jiff::Timestamp,
    version: &'static str,
    librbd: String,
    librbd_lacks: Vec<&'static str>,
    kernel: String,
    system: String,
    clusters: Vec<Cluster>,
    check: Vec<Finding>,
    pools: Vec<PoolPart>,
}

/// What the configuration says of a cluster. It is told key by key, so that nothing else that may
/// stand in the file gets out.
#[derive(Debug, Serialize)]
struct Cluster {
    id: String,
    monitors: Vec<String>,
    user: Option<String>,
    pools: Vec<String>,
    clone_format: u8,
}

#[derive(Debug, Serialize)]
struct PoolPart {
    place: String,
    volumes: Vec<Overview>,
    lineage: Survey,
    leftovers: Vec<Leftover>,
    trash: Vec<Parked>,
}

/// Gathers, and prints.
pub(crate) fn run(args: &SupportBundleArgs) -> ExitCode {
    let config = match args.pool.cluster().read() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("cinderblock support-bundle: {error}");
            return error.exit_code();
        }
    };
    let (check, _) = check::findings(args.pool.cluster(), &[], None);
    let (pools, failed) = args.pool.each("support-bundle", |place, volumes| {
        let lineage = volumes.survey()?;
        Ok(PoolPart {
            place: place.to_string(),
            volumes: volumes.overview()?,
            leftovers: volumes.leftovers(&lineage, gc::ABANDONED)?,
            lineage,
            trash: volumes.trash()?,
        })
    });
    let clusters = config.clusters.values().map(|cluster| Cluster {
        id: cluster.cluster_id.clone(),
        monitors: cluster.monitors.clone(),
        user: cluster.user_id.clone(),
        pools: cluster.pools.clone(),
        clone_format: cluster.clone_format,
    });
    super::print_json(&Bundle {
        made: jiff::Timestamp::now(),
        version: env!("CARGO_PKG_VERSION"),
        librbd: libraries().ceph.clone(),
        librbd_lacks: libraries().lacks.clone(),
        kernel: read("/proc/sys/kernel/osrelease"),
        system: system(),
        clusters: clusters.collect(),
        check,
        pools,
    });
    failed.unwrap_or(ExitCode::SUCCESS)
}

/// What the system calls itself.
fn system() -> String {
    let release = read("/etc/os-release");
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("unknown").trim_matches('"').to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}
