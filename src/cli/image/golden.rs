//! `cinderblock image snapshot`, `ls` and `rm`.

use cinderblock::transfer::golden::{self, GoldenImage};
use cinderblock::volume::Volumes;
use clap::Args;
use serde::Serialize;

use super::super::pool::ClusterArgs;
use super::super::size::show_unsigned;
use super::super::table;
use super::name::{ImageName, PoolName};
use super::{Failure, Output, watch};

/// Make an image one that volumes are cloned from, and print its location
///
/// A snapshot of it is cut and protected. Done again it changes nothing, and prints the same.
#[derive(Debug, Args)]
#[command(
    after_help = "The location is what a StorageClass takes as sourceImage. A new release of an image is a new image, or a new snapshot: volumes that
exist keep theirs.

Examples:
  cinderblock image snapshot --config clusters.yaml rbd/debian-13
  cinderblock image snapshot --config clusters.yaml --snapshot 13.2 rbd/debian-13"
)]
pub(crate) struct SnapshotArgs {
    /// The image: POOL/NAME or POOL/NAMESPACE/NAME
    #[arg(value_name = "IMAGE")]
    image: ImageName,

    /// The snapshot's name
    #[arg(long, default_value = "golden", value_name = "NAME")]
    snapshot: String,

    /// How the result is written
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Output,

    #[command(flatten)]
    cluster: ClusterArgs,
}

/// List the images that were imported, or made golden, in a pool
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cinderblock image ls --config clusters.yaml rbd
  cinderblock image ls --config clusters.yaml rbd/tenant --output json | jq -r '.[].snapshots[].location'")]
pub(crate) struct ListArgs {
    /// The pool: POOL or POOL/NAMESPACE
    pool: PoolName,

    /// How the result is written
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Output,

    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Remove an image that was imported, or made golden, with its snapshots
///
/// One that has clones, or is in use, is refused, and so is every other image.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cinderblock image rm --config clusters.yaml rbd/debian-12")]
pub(crate) struct RemoveArgs {
    /// The image: POOL/NAME or POOL/NAMESPACE/NAME
    #[arg(value_name = "IMAGE")]
    image: ImageName,

    #[command(flatten)]
    cluster: ClusterArgs,
}

fn volumes(cluster: &ClusterArgs, pool: &str, namespace: &str) -> Result<Volumes, Failure> {
    Ok(cluster.volumes(cluster.connect(cluster.chosen())?.pool(pool, namespace)?))
}

#[derive(Serialize)]
struct Location {
    location: String,
}

pub(super) fn snapshot(args: &SnapshotArgs) -> Result<(), Failure> {
    let ImageName { pool, namespace, name } = &args.image;
    let volumes = volumes(&args.cluster, pool, namespace)?;
    let location = golden::snapshot(&volumes, name, &args.snapshot)?;
    super::super::print_line(match args.output {
        Output::Json => super::json(&Location { location })?,
        Output::Text => location,
    });
    Ok(())
}

pub(super) fn list(args: &ListArgs) -> Result<(), Failure> {
    let volumes = volumes(&args.cluster, &args.pool.pool, &args.pool.namespace)?;
    let images = watch::watched(|job| golden::list(&volumes, job))??;
    super::super::print_line(match args.output {
        Output::Json => super::json(&images)?,
        Output::Text if images.is_empty() => {
            "no images; `cinderblock image import` makes one".into()
        }
        Output::Text => table_of(&images),
    });
    Ok(())
}

pub(super) fn remove(args: &RemoveArgs) -> Result<(), Failure> {
    let ImageName { pool, namespace, name } = &args.image;
    let volumes = volumes(&args.cluster, pool, namespace)?;
    Ok(watch::watched(|job| golden::remove(&volumes, name, job))??)
}

/// A line for each snapshot.
fn table_of(images: &[GoldenImage]) -> String {
    let mut rows = Vec::new();
    for image in images {
        let row = |clones: String, location: &str| {
            [image.image.clone(), show_unsigned(image.size), clones, location.to_owned()]
        };
        if image.snapshots.is_empty() {
            rows.push(row(String::new(), "none; `image snapshot` makes one"));
        }
        for snapshot in &image.snapshots {
            rows.push(row(snapshot.clones.to_string(), &snapshot.location));
        }
    }
    table::of_rows(&["IMAGE", "SIZE", "CLONES", "LOCATION"], rows)
}
