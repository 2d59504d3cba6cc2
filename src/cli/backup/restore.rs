//! `cinderblock backup restore`.

use cinderblock::backup::{Restore, Restored, restore};
use cinderblock::csi::ids::VolumeId;
use clap::Args;

use super::super::image::{Failure, Output, json, watch};
use super::super::pool::ClusterArgs;
use super::super::size::show_unsigned;

/// Make a volume of a restore point
///
/// The volume is new, of the same size or larger, in any pool of any cluster. It cannot be
/// published until all of it was written, read back and compared. It is never formatted. A restore
/// that was killed begins again when it is run again; it can be run with another restore point,
/// too.
///
/// With --overwrite it can be a volume that is there and that no node has. It gets the bytes of the
/// restore point, and zeros behind them if it is larger. Its snapshots stay. Until it is done the
/// volume cannot be used, also when the restore fails.
#[derive(Debug, Args)]
#[command(
    after_help = "A new volume is unknown to Kubernetes: write a PersistentVolume whose volumeHandle is the volume's id and whose
volumeAttributes are what this prints.

Examples:
  cinderblock backup restore --config clusters.yaml /mnt/backup csi-pvc-0b9e7a52.1f5c0a9b7e2d prod/rbd/restored-1
  cinderblock backup restore --config clusters.yaml --size 40GiB s3://backup/prod csi-pvc-0b9e7a52.1f5c0a9b7e2d/20261130T031500.123Z new/ssd/restored-1
  cinderblock backup restore --config clusters.yaml --overwrite /mnt/backup csi-pvc-0b9e7a52.1f5c0a9b7e2d prod/rbd/csi-pvc-7d1e0c42"
)]
pub(crate) struct RestoreArgs {
    /// Where restore points are: a folder or s3://BUCKET/PREFIX
    target: String,

    /// The restore point: SERIES/ID, or SERIES for its newest
    point: String,

    /// The id of the volume: CLUSTERID/POOL[/NAMESPACE]/IMAGE
    volume: String,

    /// The volume's size, if it is to be larger than the restore point
    #[arg(long, value_parser = super::super::size::parse)]
    size: Option<i64>,

    /// Overwrite the volume if it is there
    #[arg(long)]
    overwrite: bool,

    /// How the result is written
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Output,

    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(super) fn run(args: &RestoreArgs) -> Result<(), Failure> {
    let store = super::store(&args.target)?;
    let id = VolumeId::parse(&args.volume).ok_or_else(|| {
        Failure::Usage(format!(
            "{:?} is no id of a volume: CLUSTERID/POOL/IMAGE or CLUSTERID/POOL/NAMESPACE/IMAGE",
            args.volume
        ))
    })?;
    let cluster = args.cluster.connect(Some(&id.location.cluster))?;
    let pool = cluster.pool(&id.location.pool, &id.location.namespace)?;
    let volumes = args.cluster.volumes(pool);
    let request = Restore {
        point: args.point.clone(),
        image: id.image,
        id: args.volume.clone(),
        size: args.size.and_then(|size| u64::try_from(size).ok()),
        overwrite: args.overwrite,
    };
    let restored = watch::watched(|job| restore(&volumes, &store, &request, job))??;
    super::super::print_line(match args.output {
        Output::Json => json(&restored)?,
        Output::Text => text(&restored),
    });
    Ok(())
}

fn text(restored: &Restored) -> String {
    let Restored { point, volume, image, size, content, context } = restored;
    let attributes: Vec<_> =
        context.iter().map(|(key, value)| format!("\n          {key}: {value}")).collect();
    let attributes = attributes.concat();
    format!(
        "point     {point}\nvolume    {volume}\nimage     {image}\nsize      {}\ncontent   {content}\ncontext{attributes}",
        show_unsigned(*size)
    )
}
