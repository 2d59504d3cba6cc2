//! `cinderblock backup create`.

use cinderblock::backup::{Create, Created, Kubernetes, Store, create};
use cinderblock::kube::claims::of_volume;
use clap::Args;

use super::super::image::export::what;
use super::super::image::{Failure, Output, json, place, watch};
use super::super::kubernetes::{DriverArgs, ask};
use super::super::pool::ClusterArgs;
use super::super::size::show_unsigned;

/// Back up a volume or a snapshot
///
/// A volume may be in use: a snapshot of it is cut and read. That snapshot stays until the next
/// backup to the same target, which stores what differs from it. When it is gone, when it is
/// younger than the snapshot to back up, or when there are --increments increments, the restore
/// point is full.
///
/// Meanwhile the volume cannot be deleted, nor backed up a second time. It can be published, grown
/// and snapshotted. Run again after it was stopped or killed, it first finishes the restore point
/// that was begun then.
///
/// With --claims it backs up the volumes of all claims with these labels, one after the other. One
/// that fails keeps no other from it.
#[derive(Debug, Args)]
#[command(
    allow_missing_positional = true,
    after_help = "What to back up is one of:
  CLUSTERID/POOL[/NAMESPACE]/IMAGE                 a volume, by the id (volumeHandle) in its PersistentVolume
  CLUSTERID/POOL[/NAMESPACE]/IMAGEID@SNAPSHOT      a snapshot, by the handle in its VolumeSnapshotContent
  POOL[/NAMESPACE]/IMAGE, with @SNAPSHOT           an image or a snapshot of it, as rbd writes it
What begins with a clusterID of the configuration is an id; with --cluster it is an image.

Examples:
  cinderblock backup create --config clusters.yaml prod/rbd/csi-pvc-0b9e7a52-5c1e-4b6f-9d0a-2f1c7d3e8a46 /mnt/backup
  cinderblock backup create --config clusters.yaml --full prod/rbd/csi-pvc-0b9e7a52-5c1e-4b6f-9d0a-2f1c7d3e8a46 s3://backup/prod
  cinderblock backup create --config clusters.yaml prod/rbd/10ab5f3c9d21@snapshot-7d1e /mnt/backup
  cinderblock backup create --config clusters.yaml --claims backup=nightly --claim-namespace shop s3://backup/prod"
)]
pub(crate) struct CreateArgs {
    /// A volume or a snapshot, see below
    #[arg(value_name = "WHAT", required_unless_present = "claims", conflicts_with = "claims")]
    what: Option<String>,

    /// Where restore points are: a folder or s3://BUCKET/PREFIX
    target: String,

    /// Make a full restore point, which no other one is needed for
    #[arg(long)]
    pub(super) full: bool,

    /// How many increments a full restore point may have before a full one is made again
    #[arg(long, default_value_t = 30, value_name = "COUNT")]
    pub(super) increments: usize,

    /// How the result is written
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    pub(super) output: Output,

    #[command(flatten)]
    pub(super) kubernetes: KubernetesArgs,

    #[command(flatten)]
    pub(super) cluster: ClusterArgs,
}

/// What to ask Kubernetes: as the pod's service account in a pod, else as KUBECONFIG says.
#[derive(Debug, Args)]
#[command(next_help_heading = "Kubernetes")]
pub(crate) struct KubernetesArgs {
    /// Back up the volumes of the claims with these labels, as kubectl's --selector takes them
    #[arg(long, value_name = "LABELS")]
    claims: Option<String>,

    /// A namespace to look for claims in, as often as need be; all when left out
    #[arg(long = "claim-namespace", value_name = "NAMESPACE", requires = "claims")]
    pub(super) namespaces: Vec<String>,

    /// Store what Kubernetes knows of the volume, too. --claims always does
    #[arg(long)]
    kubernetes: bool,

    #[command(flatten)]
    pub(super) driver: DriverArgs,
}

pub(super) fn run(args: &CreateArgs) -> Result<(), Failure> {
    let store = Store::open(&place(&args.target)?, true)?;
    if let Some(labels) = &args.kubernetes.claims {
        return super::claims::run(args, labels, &store);
    }
    let named = args.what.as_deref().unwrap_or_default();
    let clusters = match args.cluster.chosen() {
        Some(_) => Vec::new(),
        None => args.cluster.known()?,
    };
    let what = what(named, &clusters).map_err(Failure::Usage)?;
    let kubernetes = if args.kubernetes.kubernetes { known(args, named)? } else { None };
    let cluster = args.cluster.connect(what.cluster.as_deref().or(args.cluster.chosen()))?;
    let volumes = args.cluster.volumes(cluster.pool(&what.pool, &what.namespace)?);
    let request = Create {
        image: what.image,
        snapshot: what.snapshot,
        full: args.full,
        increments: args.increments,
        kubernetes,
    };
    let created = watch::watched(|job| create(&volumes, &store, &request, job))??;
    super::super::print_line(match args.output {
        Output::Json => json(&created)?,
        Output::Text => text(&created),
    });
    Ok(())
}

/// What Kubernetes knows of the volume with this id.
fn known(args: &CreateArgs, id: &str) -> Result<Option<Kubernetes>, Failure> {
    let driver = &args.kubernetes.driver.driver_name;
    let known = ask(async |client| Box::pin(of_volume(&client, driver, id)).await)?;
    if known.is_none() {
        eprintln!("cinderblock backup create: Kubernetes has no PersistentVolume with the id {id}");
    }
    Ok(known.map(super::claims::stored))
}

pub(super) fn text(created: &Created) -> String {
    let Created { point, image, size, parent, stored, existing, finished, .. } = created;
    let kind = match parent {
        Some(parent) => format!("increment to {parent}"),
        None => "full".to_owned(),
    };
    let existing = if *existing { "\nmade by   an earlier run" } else { "" };
    let finished = finished.as_ref().map(|point| format!("\nfinished  {point}, of an earlier run"));
    format!(
        "point     {point}\nimage     {image}\nkind      {kind}\nsize      {}\nstored    {}{existing}{}",
        show_unsigned(*size),
        show_unsigned(*stored),
        finished.unwrap_or_default()
    )
}
