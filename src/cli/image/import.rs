//! `cinderblock image import`.

use cinderblock::transfer::{Format, Import, Imported, Wanted, import};
use clap::Args;

use super::super::pool::ClusterArgs;
use super::super::size::show_unsigned;
use super::name::ImageName;
use super::{Failure, Output, watch};

/// Import a disk as a new image
///
/// The image has the size of the disk, to the byte. Zeros are not stored. The image belongs to no
/// volume; `image snapshot` makes it one that volumes are cloned from.
///
/// Formats other than raw take qemu-img and a file of the disk's size in --tmp-dir. A disk that
/// refers to another file is refused.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cinderblock image import --config clusters.yaml disk.raw rbd/debian-13
  xzcat disk.raw.xz | cinderblock image import --config clusters.yaml - rbd/debian-13
  cinderblock image import --config clusters.yaml https://cloud.debian.org/images/cloud/trixie/latest/debian-13-genericcloud-amd64.qcow2 rbd/debian-13
  AWS_ENDPOINT=https://s3.example.com cinderblock image import --config clusters.yaml s3://images/debian-13.raw rbd/debian-13
  cinderblock image import --config clusters.yaml --checksum sha256:$(sha256sum <disk.raw | cut -d' ' -f1) disk.raw rbd/debian-13

An object store is told in the environment, as AWS's own programs take it: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION,
AWS_ENDPOINT, and AWS_ALLOW_HTTP=true for one without TLS; SSL_CERT_FILE names certificates to trust.")]
pub(crate) struct ImportArgs {
    /// A file, - for standard input, or a URL: s3://BUCKET/KEY, https://HOST/PATH, file:///PATH
    source: String,

    /// The new image: POOL/NAME or POOL/NAMESPACE/NAME
    #[arg(value_name = "IMAGE")]
    image: ImageName,

    /// The source's format: raw, qcow2, vmdk, vdi or vhdx. Told by how it begins when left out;
    /// name raw for disks of strangers, who can have them begin like any
    #[arg(long)]
    format: Option<Format>,

    /// The checksum to make of the source: blake3, sha256 or none; or the one it must have, as
    /// sha256:HEX or blake3:HEX
    #[arg(long, default_value = "blake3", value_parser = wanted)]
    checksum: Wanted,

    /// How the result is written
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Output,

    #[command(flatten)]
    tools: super::ToolArgs,

    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Reads what a caller wants to know of a checksum.
pub(super) fn wanted(text: &str) -> Result<Wanted, String> {
    match text {
        "none" => Ok(Wanted::Nothing),
        _ if text.contains(':') => text.parse().map(Wanted::Equal),
        _ => text.parse().map(Wanted::Made),
    }
}

pub(super) fn run(args: &ImportArgs) -> Result<(), Failure> {
    let source = super::place(&args.source)?;
    let cluster = args.cluster.connect(args.cluster.chosen())?;
    let pool = cluster.pool(&args.image.pool, &args.image.namespace)?;
    let request = Import {
        source,
        format: args.format,
        name: args.image.name.clone(),
        checksum: args.checksum,
        tools: args.tools.tools()?,
    };
    let imported = watch::watched(|job| import(&pool, &request, job))??;
    super::super::print_line(match args.output {
        Output::Json => super::json(&imported)?,
        Output::Text => text(&imported),
    });
    Ok(())
}

fn text(Imported { image, size, format, checksum }: &Imported) -> String {
    let checksum = checksum.as_ref().map(|checksum| format!("\nchecksum  {checksum}"));
    format!(
        "image     {image}\nsize      {}\nformat    {format}{}",
        show_unsigned(*size),
        checksum.unwrap_or_default()
    )
}
