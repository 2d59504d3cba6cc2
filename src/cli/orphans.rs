//! `cinderblock orphans`: volumes that Kubernetes does not know, and PersistentVolumes without one.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use cinderblock::csi::ids::{Location, VolumeId};
use cinderblock::kube::volumes::{self, Volume};
use cinderblock::volume::Volumes;
use cinderblock::volume::overview::{Overview, VolumeState};
use clap::Args;
use serde::Serialize;

use super::call::duration;
use super::kubernetes::ask;
use super::pool::PoolArgs;
use super::{EXIT_FAILURE, EXIT_REFUSED, Output, size, table};

/// Find volumes without a PersistentVolume, and PersistentVolumes without a volume
///
/// Ceph and Kubernetes are asked, as `list` and `find` ask them. Nothing is said unless both have
/// told all they know. With --apply volumes without a PersistentVolume go to the trash; nothing is
/// deleted, and nothing is changed in Kubernetes.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cinderblock orphans --config clusters.yaml
  cinderblock orphans --older-than 720h --apply
  kubectl --namespace cinderblock exec deploy/cinderblock-controller -- cinderblock orphans

A volume that is younger than --older-than, is attached, or is being made or deleted, is no orphan. Two Kubernetes clusters that share a
pool have an --instance each; a volume of one instance is never an orphan of another.

Exit status: 0 when there are none, 1 when Ceph or Kubernetes did not tell all, or a volume could not be parked, 2 when arguments or the
configuration are wrong, 3 when there are orphans, or it was refused to park them.")]
pub(crate) struct OrphansArgs {
    #[command(flatten)]
    pool: PoolArgs,

    /// The CSI driver's name, as in CSIDriver and StorageClass objects
    #[arg(long, default_value = "rbd.csi.cinderblock.dev", value_name = "NAME")]
    driver_name: String,

    /// How old a volume without a PersistentVolume is at least; younger ones may be in the making
    #[arg(long, value_parser = duration, default_value = "24h", value_name = "TIME")]
    older_than: Duration,

    /// Move volumes without a PersistentVolume to the trash
    #[arg(long)]
    apply: bool,

    /// For how long the trash keeps them, unless their class says for how long
    #[arg(long, value_parser = duration, default_value = "168h", value_name = "TIME")]
    retention: Duration,

    /// How the orphans are written
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Output,
}

/// What was found and done.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// Volumes without a PersistentVolume.
    volumes: Vec<Overview>,
    /// PersistentVolumes without a volume.
    persistent_volumes: Vec<Volume>,
    /// Ids of the volumes that were moved to the trash.
    parked: Vec<String>,
}

/// Finds, and parks when told to.
pub(crate) fn run(args: &OrphansArgs) -> ExitCode {
    let known = match known(args) {
        Ok(known) => known,
        Err(error) => {
            eprintln!(
                "cinderblock orphans: which volumes have no PersistentVolume cannot be told: {error}"
            );
            return ExitCode::from(EXIT_FAILURE);
        }
    };
    let look = |place: &Location, volumes: &Volumes| {
        Ok((place.clone(), volumes.overview()?, volumes.clone()))
    };
    let (pools, failed) = args.pool.each("orphans", look);
    if let Some(code) = failed {
        return code;
    }
    let handles: BTreeSet<_> = known.iter().map(|volume| volume.id.as_str()).collect();
    let is_orphan = |volume: &Overview| {
        let age = jiff::Timestamp::now().duration_since(volume.created);
        !handles.contains(volume.id.as_str())
            && volume.state == VolumeState::Ready
            && volume.nodes.is_empty()
            && age.unsigned_abs() >= args.older_than
    };
    let mut report =
        Report { persistent_volumes: without_volume(&known, &pools), ..Report::default() };
    let mut code = ExitCode::SUCCESS;
    let is_any_known =
        pools.iter().flat_map(|(_, all, _)| all).any(|volume| handles.contains(volume.id.as_str()));
    for (_, all, volumes) in &pools {
        for orphan in all.iter().filter(|volume| is_orphan(volume)) {
            report.volumes.push(orphan.clone());
            if !args.apply || !is_any_known {
                continue;
            }
            match volumes.park(&orphan.image, args.retention.as_secs()) {
                Ok(()) => report.parked.push(orphan.id.clone()),
                Err(error) => {
                    eprintln!("cinderblock orphans: {}: {error}", orphan.id);
                    code = ExitCode::from(EXIT_FAILURE);
                }
            }
        }
        volumes.settle_own();
    }
    if args.apply && !is_any_known && !report.volumes.is_empty() {
        eprintln!(
            "cinderblock orphans: nothing was changed: this Kubernetes knows none of the volumes in these pools, so it may be another \
             one than theirs"
        );
    }
    match args.output {
        Output::Json => super::print_json(&report),
        Output::Text => super::print_line(text(&report, args.apply)),
    }
    let are_left =
        report.parked.len() < report.volumes.len() || !report.persistent_volumes.is_empty();
    if code == ExitCode::SUCCESS && are_left { ExitCode::from(EXIT_REFUSED) } else { code }
}

/// Every PersistentVolume of the driver.
fn known(args: &OrphansArgs) -> Result<Vec<Volume>, String> {
    ask(async |client| volumes::all(&client, &args.driver_name).await)
}

/// The PersistentVolumes whose volume is to be in one of these pools, and is not.
fn without_volume(known: &[Volume], pools: &[(Location, Vec<Overview>, Volumes)]) -> Vec<Volume> {
    let is_missing = |volume: &&Volume| {
        let Some(id) = VolumeId::parse(&volume.id) else { return false };
        let pool = pools.iter().find(|(place, ..)| *place == id.location);
        pool.is_some_and(|(_, all, _)| all.iter().all(|found| found.id != volume.id))
    };
    known.iter().filter(is_missing).cloned().collect()
}

fn text(report: &Report, apply: bool) -> String {
    if report.volumes.is_empty() && report.persistent_volumes.is_empty() {
        return "no orphans".to_owned();
    }
    let unknown = || "?".to_owned();
    let volumes = report.volumes.iter().map(|volume| {
        let what = if report.parked.contains(&volume.id) {
            "moved to the trash"
        } else {
            "no PersistentVolume"
        };
        let size = volume.used.map_or_else(unknown, size::short);
        [volume.id.clone(), volume.claim.clone().unwrap_or_else(unknown), size, what.to_owned()]
    });
    let missing = report.persistent_volumes.iter().map(|volume| {
        let claim = volume.claim.as_ref();
        let claim =
            claim.map_or_else(unknown, |claim| format!("{}/{}", claim.namespace, claim.name));
        let what = format!("no volume for the PersistentVolume {}", volume.name);
        [volume.id.clone(), claim, "-".to_owned(), what]
    });
    let table = table::of_rows(&["VOLUME", "CLAIM", "USED", "ORPHANED"], volumes.chain(missing));
    if apply || report.volumes.is_empty() {
        return table;
    }
    format!(
        "{table}\nNothing was changed; --apply moves volumes without a PersistentVolume to the trash."
    )
}
