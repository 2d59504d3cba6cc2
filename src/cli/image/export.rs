//! `cinderblock image export`.

use cinderblock::csi::ids::{SnapshotId, VolumeId};
use cinderblock::transfer::{Export, Exported, Format, Place, Wanted, Which, export};
use clap::Args;

use super::super::pool::ClusterArgs;
use super::super::size::show_unsigned;
use super::name::ImageName;
use super::{Failure, Output, watch};

/// Export an image, a volume or a snapshot as a disk
///
/// An image or volume may be in use: it is read as it is at one moment, from a snapshot that is cut
/// for that and removed afterwards.
#[derive(Debug, Args)]
#[command(after_help = "What to export is one of:
  POOL[/NAMESPACE]/IMAGE                           an image, as rbd writes it
  POOL[/NAMESPACE]/IMAGE@SNAPSHOT                  a snapshot of it
  CLUSTERID/POOL[/NAMESPACE]/IMAGE                 a volume, by the id (volumeHandle) in its PersistentVolume
  CLUSTERID/POOL[/NAMESPACE]/IMAGEID@SNAPSHOT      a snapshot, by the handle in its VolumeSnapshotContent
What begins with a clusterID of the configuration is an id; with --cluster it is an image.

Examples:
  cinderblock image export --config clusters.yaml rbd/debian-13 debian-13.raw
  cinderblock image export --config clusters.yaml prod/rbd/csi-pvc-0b9e7a52-5c1e-4b6f-9d0a-2f1c7d3e8a46 vm.raw
  cinderblock image export --config clusters.yaml rbd/debian-13 debian-13.qcow2
  cinderblock image export --config clusters.yaml rbd/debian-13 s3://images/debian-13.raw
  cinderblock image export --config clusters.yaml --checksum sha256 rbd/debian-13@golden - | xz >debian-13.raw.xz")]
pub(crate) struct ExportArgs {
    /// An image, a volume or a snapshot, see below
    #[arg(value_name = "WHAT")]
    what: String,

    /// A file that does not exist yet, - for standard output, or s3://BUCKET/KEY
    target: String,

    /// The format to write: raw, qcow2, vmdk, vdi or vhdx. What the target's name ends in when left
    /// out, else raw
    #[arg(long)]
    format: Option<Format>,

    /// The checksum to make of what is written: blake3, sha256 or none; or the one it must have, as
    /// sha256:HEX or blake3:HEX
    #[arg(long, default_value = "blake3", value_parser = super::import::wanted)]
    checksum: Wanted,

    /// How the result is written; with the target - it goes to standard error
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Output,

    #[command(flatten)]
    tools: super::ToolArgs,

    #[command(flatten)]
    cluster: ClusterArgs,
}

/// What is exported, and from where.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cli) struct What {
    /// `None`: what the command line says, or the only one.
    pub(in crate::cli) cluster: Option<String>,
    pub(in crate::cli) pool: String,
    pub(in crate::cli) namespace: String,
    pub(in crate::cli) image: Which,
    pub(in crate::cli) snapshot: Option<String>,
}

/// Reads what is to be exported; `clusters` are the clusterIDs that ids can begin with.
pub(in crate::cli) fn what(text: &str, clusters: &[String]) -> Result<What, String> {
    let is_id = text.split_once('/').is_some_and(|(first, rest)| {
        rest.contains('/') && clusters.iter().any(|cluster| cluster == first)
    });
    if !is_id {
        let (image, snapshot) = match text.split_once('@') {
            Some((image, snapshot)) => (image, Some(snapshot.to_owned())),
            None => (text, None),
        };
        let ImageName { pool, namespace, name } = image.parse()?;
        return Ok(What { cluster: None, pool, namespace, image: Which::Name(name), snapshot });
    }
    let (location, image, snapshot) = if let Some(id) = SnapshotId::parse(text) {
        (id.location, Which::Id(id.image_id), Some(id.snapshot))
    } else if let Some(id) = VolumeId::parse(text) {
        (id.location, Which::Name(id.image), None)
    } else {
        return Err(format!(
            "{text} begins with a clusterID, and is no id of a volume or snapshot"
        ));
    };
    let (pool, namespace) = (location.pool, location.namespace);
    Ok(What { cluster: Some(location.cluster), pool, namespace, image, snapshot })
}

pub(super) fn run(args: &ExportArgs) -> Result<(), Failure> {
    let target = super::place(&args.target)?;
    let clusters = match args.cluster.chosen() {
        Some(_) => Vec::new(),
        None => args.cluster.known()?,
    };
    let what = what(&args.what, &clusters)?;
    let cluster = args.cluster.connect(what.cluster.as_deref().or(args.cluster.chosen()))?;
    let pool = cluster.pool(&what.pool, &what.namespace)?;
    let request = Export {
        image: what.image,
        snapshot: what.snapshot,
        format: args.format.unwrap_or_else(|| Format::of_name(&args.target)),
        target,
        checksum: args.checksum,
        tools: args.tools.tools()?,
    };
    let exported = watch::watched(|job| export(&pool, &request, job))??;
    let text = match args.output {
        Output::Json => super::json(&exported)?,
        Output::Text => text(&exported),
    };
    match request.target {
        Place::Stream => eprintln!("{text}"),
        _ => super::super::print_line(text),
    }
    Ok(())
}

fn text(Exported { image, target, size, format, checksum }: &Exported) -> String {
    let checksum = checksum.as_ref().map(|checksum| format!("\nchecksum  {checksum}"));
    format!(
        "image     {image}\ntarget    {target}\nsize      {}\nformat    {format}{}",
        show_unsigned(*size),
        checksum.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Option<String>, String, Which, Option<String>) {
        let What { cluster, pool, namespace, image, snapshot } =
            what(text, &["prod".to_owned()]).unwrap();
        (cluster, format!("{pool}/{namespace}"), image, snapshot)
    }

    #[test]
    fn images_and_ids_are_told_apart() {
        let name = |name: &str| Which::Name(name.to_owned());
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(read("rbd/a"), (None, "rbd/".to_owned(), name("a"), None));
        assert_eq!(read("rbd/n/a@s"), (None, "rbd/n".to_owned(), name("a"), some("s")));
        assert_eq!(read("prod/a"), (None, "prod/".to_owned(), name("a"), None));
        assert_eq!(read("prod/rbd/a"), (some("prod"), "rbd/".to_owned(), name("a"), None));
        let id = Which::Id("10ab".to_owned());
        assert_eq!(read("prod/rbd/n/10ab@s"), (some("prod"), "rbd/n".to_owned(), id, some("s")));
        for wrong in ["a", "/a", "rbd/", "a/b/c/d", "prod/rbd/a b", "rbd//a", ""] {
            assert!(what(wrong, &["prod".to_owned()]).is_err(), "{wrong}");
        }
    }
}
