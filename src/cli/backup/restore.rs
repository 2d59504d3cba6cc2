//! `cinderblock backup restore`.

use cinderblock::backup::{Restore, Restored, restore};
use cinderblock::csi::ids::VolumeId;
use cinderblock::kube::claims::{Found, named};
use cinderblock::transfer::Error;
use clap::Args;

use super::super::image::{Failure, Output, json, watch};
use super::super::kubernetes::{DriverArgs, ask};
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
volumeAttributes are what this prints. Or restore into the volume of a new claim, with --overwrite and --claim.

Examples:
  cinderblock backup restore --config clusters.yaml /mnt/backup csi-pvc-0b9e7a52.1f5c0a9b7e2d prod/rbd/restored-1
  cinderblock backup restore --config clusters.yaml --size 40GiB s3://backup/prod csi-pvc-0b9e7a52.1f5c0a9b7e2d/20261130T031500.123Z new/ssd/restored-1
  cinderblock backup restore --config clusters.yaml --overwrite /mnt/backup csi-pvc-0b9e7a52.1f5c0a9b7e2d prod/rbd/csi-pvc-7d1e0c42
  cinderblock backup restore --config clusters.yaml --overwrite s3://backup/prod csi-pvc-0b9e7a52.1f5c0a9b7e2d --claim shop/restored"
)]
pub(crate) struct RestoreArgs {
    /// Where restore points are: a folder or s3://BUCKET/PREFIX
    target: String,

    /// The restore point: SERIES/ID, or SERIES for its newest
    point: String,

    /// The id of the volume: CLUSTERID/POOL[/NAMESPACE]/IMAGE
    #[arg(required_unless_present = "claim", conflicts_with = "claim")]
    volume: Option<String>,

    /// Overwrite the volume of this claim, as NAMESPACE/NAME; Kubernetes is asked which it is
    #[arg(long, requires = "overwrite", value_name = "CLAIM", help_heading = "Kubernetes")]
    claim: Option<String>,

    #[command(flatten)]
    driver: DriverArgs,

    /// The volume's size, if it is to be larger than the restore point
    #[arg(long, value_parser = super::super::size::parse)]
    size: Option<i64>,

    /// The pool for the data of a new volume, as an erasure-coded one; the image's pool when left
    /// out
    #[arg(long, value_name = "POOL", conflicts_with = "overwrite")]
    data_pool: Option<String>,

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
    let volume = match (&args.claim, &args.volume) {
        (Some(claim), _) => volume_of(claim, &args.driver.driver_name)?,
        (None, volume) => volume.clone().unwrap_or_default(),
    };
    let id = VolumeId::parse(&volume).ok_or_else(|| {
        Failure::Usage(format!(
            "{volume:?} is no id of a volume: CLUSTERID/POOL/IMAGE or CLUSTERID/POOL/NAMESPACE/IMAGE"
        ))
    })?;
    let cluster = args.cluster.connect(Some(&id.location.cluster))?;
    let pool = cluster.pool(&id.location.pool, &id.location.namespace)?;
    let volumes = args.cluster.volumes(pool);
    let request = Restore {
        point: args.point.clone(),
        image: id.image,
        id: volume,
        size: args.size.and_then(|size| u64::try_from(size).ok()),
        overwrite: args.overwrite,
        data_pool: args.data_pool.clone(),
    };
    let restored = watch::watched(|job| restore(&volumes, &store, &request, job))??;
    super::super::print_line(match args.output {
        Output::Json => json(&restored)?,
        Output::Text => text(&restored),
    });
    Ok(())
}

/// The id of the volume that a claim has.
fn volume_of(claim: &str, driver: &str) -> Result<String, Failure> {
    let Some((namespace, name)) = claim.split_once('/').filter(|(_, name)| !name.contains('/'))
    else {
        return Err(Failure::Usage(format!("{claim:?} is no claim: give NAMESPACE/NAME")));
    };
    let refused = |why: String| Err(Failure::Transfer(Error::Refused(why)));
    match ask(async |client| named(&client, driver, namespace, name).await)? {
        Some(Found::Volume(known)) => Ok(known.id),
        Some(Found::Nothing { why, .. }) => refused(format!("the claim {claim} {why}")),
        None => refused(format!("there is no claim {claim}")),
    }
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
