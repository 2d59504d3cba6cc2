//! `cinderblock backup create`.

use cinderblock::backup::{Create, Created, Store, create};
use clap::Args;

use super::super::image::export::what;
use super::super::image::{Failure, Output, json, place, watch};
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
#[derive(Debug, Args)]
#[command(after_help = "What to back up is one of:
  CLUSTERID/POOL[/NAMESPACE]/IMAGE                 a volume, by the id (volumeHandle) in its PersistentVolume
  CLUSTERID/POOL[/NAMESPACE]/IMAGEID@SNAPSHOT      a snapshot, by the handle in its VolumeSnapshotContent
  POOL[/NAMESPACE]/IMAGE, with @SNAPSHOT           an image or a snapshot of it, as rbd writes it
What begins with a clusterID of the configuration is an id; with --cluster it is an image.

Examples:
  cinderblock backup create --config clusters.yaml prod/rbd/csi-pvc-0b9e7a52-5c1e-4b6f-9d0a-2f1c7d3e8a46 /mnt/backup
  cinderblock backup create --config clusters.yaml --full prod/rbd/csi-pvc-0b9e7a52-5c1e-4b6f-9d0a-2f1c7d3e8a46 s3://backup/prod
  cinderblock backup create --config clusters.yaml prod/rbd/10ab5f3c9d21@snapshot-7d1e /mnt/backup")]
pub(crate) struct CreateArgs {
    /// A volume or a snapshot, see below
    #[arg(value_name = "WHAT")]
    what: String,

    /// Where restore points are: a folder or s3://BUCKET/PREFIX
    target: String,

    /// Make a full restore point, which no other one is needed for
    #[arg(long)]
    full: bool,

    /// How many increments a full restore point may have before a full one is made again
    #[arg(long, default_value_t = 30, value_name = "COUNT")]
    increments: usize,

    /// How the result is written
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Output,

    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(super) fn run(args: &CreateArgs) -> Result<(), Failure> {
    let store = Store::open(&place(&args.target)?, true)?;
    let clusters = match args.cluster.chosen() {
        Some(_) => Vec::new(),
        None => args.cluster.known()?,
    };
    let what = what(&args.what, &clusters).map_err(Failure::Usage)?;
    let cluster = args.cluster.connect(what.cluster.as_deref().or(args.cluster.chosen()))?;
    let volumes = args.cluster.volumes(cluster.pool(&what.pool, &what.namespace)?);
    let request = Create {
        image: what.image,
        snapshot: what.snapshot,
        full: args.full,
        increments: args.increments,
        kubernetes: None,
    };
    let created = watch::watched(|job| create(&volumes, &store, &request, job))??;
    super::super::print_line(match args.output {
        Output::Json => json(&created)?,
        Output::Text => text(&created),
    });
    Ok(())
}

fn text(created: &Created) -> String {
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
