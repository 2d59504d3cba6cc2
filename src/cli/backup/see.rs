//! `cinderblock backup list`, `show` and `verify`.

use cinderblock::backup::{
    Kubernetes, Listing, Manifest, list as listing, show as manifest, verify as verified,
};
use cinderblock::transfer::Error;
use clap::Args;

use super::super::image::{Failure, Output, json, watch};
use super::super::size::show_unsigned;
use super::super::table;

/// List the restore points in a target
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cinderblock backup list /mnt/backup
  cinderblock backup list s3://backup/prod --output json | jq -r 'group_by(.volume)[] | last | .point'")]
pub(crate) struct ListArgs {
    /// Where restore points are: a folder or s3://BUCKET/PREFIX
    target: String,

    /// One series; all when left out
    series: Option<String>,

    /// How the result is written
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Output,
}

/// Show what is known of a restore point
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cinderblock backup show /mnt/backup csi-pvc-0b9e7a52.1f5c0a9b7e2d/20261130T031500.123Z
  cinderblock backup show /mnt/backup csi-pvc-0b9e7a52.1f5c0a9b7e2d --output json | jq .volume")]
pub(crate) struct ShowArgs {
    /// Where restore points are: a folder or s3://BUCKET/PREFIX
    target: String,

    /// The restore point: SERIES/ID, or SERIES for its newest
    point: String,

    /// How the result is written; JSON is the whole manifest
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Output,
}

/// Read restore points, and tell which can be restored
///
/// Every object is read and compared with its digest, and so is every one of the restore points it
/// is based on.
#[derive(Debug, Args)]
#[command(after_help = "Exit status: 0 when all can be restored, 4 when one cannot.

Examples:
  cinderblock backup verify /mnt/backup
  cinderblock backup verify s3://backup/prod csi-pvc-0b9e7a52.1f5c0a9b7e2d/latest")]
pub(crate) struct VerifyArgs {
    /// Where restore points are: a folder or s3://BUCKET/PREFIX
    target: String,

    /// One restore point, as SERIES/ID, or one SERIES; all when left out
    point: Option<String>,

    /// How the result is written
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Output,
}

pub(super) fn list(args: &ListArgs) -> Result<(), Failure> {
    let store = super::store(&args.target)?;
    let found = listing(&store, args.series.as_deref())?;
    let text = match args.output {
        Output::Json => json(&found)?,
        Output::Text if found.is_empty() => {
            eprintln!("cinderblock backup list: {} holds no restore points", store.name());
            return Ok(());
        }
        Output::Text => table::of_rows(
            &["POINT", "CUT", "KIND", "SIZE", "STORED", "VOLUME"],
            found.iter().map(row),
        ),
    };
    super::super::print_line(text);
    Ok(())
}

fn row(listing: &Listing) -> [String; 6] {
    let kind = match (&listing.wrong, &listing.parent) {
        (Some(_), _) => "broken",
        (None, Some(_)) => "increment",
        (None, None) => "full",
    };
    let cut = jiff::Timestamp::from_second(listing.cut).map(|cut| cut.to_string());
    [
        listing.point.clone(),
        cut.unwrap_or_default(),
        kind.to_owned(),
        show_unsigned(listing.size),
        show_unsigned(listing.stored),
        listing.volume.clone().unwrap_or_else(|| listing.image.clone()),
    ]
}

pub(super) fn show(args: &ShowArgs) -> Result<(), Failure> {
    let found = manifest(&super::store(&args.target)?, &args.point)?;
    super::super::print_line(match args.output {
        Output::Json => json(&found)?,
        Output::Text => text(&found),
    });
    Ok(())
}

fn text(manifest: &Manifest) -> String {
    let Manifest { id, parent, source, size, chunks, content, volume, kubernetes, .. } = manifest;
    let image = cinderblock::volume::image_spec(&source.pool, &source.namespace, &source.image);
    let none = || "none".to_owned();
    let cut = jiff::Timestamp::from_second(source.cut).map(|cut| cut.to_string());
    let mut rows = vec![
        ("point", id.clone()),
        ("based on", parent.as_ref().map_or_else(none, |parent| parent.id.clone())),
        ("cluster", source.fsid.clone()),
        ("image", image),
        ("snapshot", source.snapshot.clone()),
        ("cut", cut.unwrap_or_default()),
        ("size", show_unsigned(*size)),
        ("stored", format!("{} in {} objects", show_unsigned(manifest.stored()), chunks.len())),
        ("content", content.clone().unwrap_or_else(none)),
        ("volume", volume.as_ref().map_or_else(none, |volume| volume.id.clone())),
    ];
    if let Some(Kubernetes { persistent_volume, claim, storage_class, parameters, .. }) = kubernetes
    {
        let parameters: Vec<_> =
            parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
        rows.extend([
            ("claim", claim.clone().unwrap_or_else(none)),
            ("persistent volume", persistent_volume.clone()),
            ("storage class", storage_class.clone().unwrap_or_else(none)),
            ("class parameters", parameters.join(" ")),
        ]);
    }
    table::of_pairs(rows)
}

pub(super) fn verify(args: &VerifyArgs) -> Result<(), Failure> {
    let store = super::store(&args.target)?;
    let found = watch::watched(|job| verified(&store, args.point.as_deref(), job))??;
    let text = match args.output {
        Output::Json => json(&found)?,
        Output::Text => table::of_rows(
            &["POINT", "STORED", "STATE"],
            found.iter().map(|point| {
                let state = point.wrong.clone().unwrap_or_else(|| "whole".to_owned());
                [point.point.clone(), show_unsigned(point.stored), state]
            }),
        ),
    };
    super::super::print_line(text);
    let broken = found.iter().filter(|point| point.wrong.is_some()).count();
    if broken == 0 {
        return Ok(());
    }
    Err(Failure::Transfer(Error::Checksum {
        what: format!("{broken} of {} restore points of {}", found.len(), store.name()),
        expected: "the one in its manifest".to_owned(),
        found: "another, or is broken otherwise".to_owned(),
    }))
}
