//! `cinderblock trash`: deleted volumes that can be brought back.

mod manifest;

use std::process::ExitCode;

use cinderblock::node::CONTENT_KEY;
use cinderblock::rbd::{ImageKey, OpenMode};
use cinderblock::volume::catalogue::Volume;
use cinderblock::volume::trash::Parked;
use cinderblock::volume::{Volumes, image_spec};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::pool::PoolArgs;
use super::{EXIT_FAILURE, EXIT_REFUSED, Output, size, table};
use manifest::ManifestArgs;

/// List, bring back and purge deleted volumes that are in the trash
///
/// A volume whose class has the parameter trashRetention goes to the trash when it is deleted, and
/// is purged when that time is over. Until then it takes up its room in the pool.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status of all of them: 0 when it is done, 1 when a pool could not be read or changed, 2 when arguments or the
configuration are wrong, 3 when there is no such volume in the trash, or it was shown what would be purged."
)]
pub(crate) struct TrashArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Ls(ListArgs),
    Restore(RestoreArgs),
    Purge(PurgeArgs),
}

/// List what is in the trash
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cinderblock trash ls --config clusters.yaml
  cinderblock trash ls --output json | jq -r '.[] | select(.claim == \"shop/data\") | .image_id'")]
struct ListArgs {
    #[command(flatten)]
    pool: PoolArgs,

    /// How the volumes are written
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Output,
}

/// Bring a volume back under its old id, and print manifests that give it to its claim
///
/// Its snapshots are as they were. Standard output has a PersistentVolume, and the
/// PersistentVolumeClaim where it is known, for kubectl apply; nothing is sent to Kubernetes.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cinderblock trash restore shop/data --secret cinderblock/ceph-user --storage-class fast | kubectl apply -f -
  cinderblock trash restore prod/rbd/csi-pvc-0b9e
  cinderblock trash restore 102de638515e     # an image's id, when several volumes had the name")]
struct RestoreArgs {
    #[command(flatten)]
    pool: PoolArgs,

    /// A volume id, a claim as NAMESPACE/NAME, an image as IMAGE or POOL[/NAMESPACE]/IMAGE, a
    /// PersistentVolume, or an image's id
    #[arg(value_name = "NAME")]
    name: String,

    #[command(flatten)]
    manifest: ManifestArgs,
}

/// Delete what is in the trash for good
///
/// Without --apply it is shown what would go, and nothing is changed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cinderblock trash purge                     # shows what would go
  cinderblock trash purge --apply             # all of it
  cinderblock trash purge shop/data --apply   # one volume")]
struct PurgeArgs {
    #[command(flatten)]
    pool: PoolArgs,

    /// One volume, as `trash restore` takes it; all when left out
    #[arg(value_name = "NAME")]
    name: Option<String>,

    /// Delete what is found
    #[arg(long)]
    apply: bool,

    /// How the volumes are written
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Output,
}

/// Runs one of them.
pub(crate) fn run(args: &TrashArgs) -> ExitCode {
    match &args.command {
        Command::Ls(args) => list(args),
        Command::Restore(args) => restore(args),
        Command::Purge(args) => purge(args),
    }
}

fn list(args: &ListArgs) -> ExitCode {
    let (parked, failed) = args.pool.each("trash ls", |_, volumes| Ok(volumes.trash()?));
    let parked: Vec<_> = parked.into_iter().flatten().collect();
    match args.output {
        Output::Json => super::print_json(&parked),
        Output::Text if parked.is_empty() => super::print_line("the trash is empty"),
        Output::Text => super::print_line(text(&parked)),
    }
    failed.unwrap_or(ExitCode::SUCCESS)
}

fn restore(args: &RestoreArgs) -> ExitCode {
    let name = args.name.as_str();
    let look = |_: &_, volumes: &Volumes| Ok((found(volumes, name)?, volumes.clone()));
    let (pools, failed) = args.pool.each("trash restore", look);
    if let Some(code) = failed {
        return code;
    }
    let mut all =
        pools.iter().flat_map(|(found, volumes)| found.iter().map(move |id| (id, volumes)));
    let (image_id, volumes) = match (all.next(), all.next()) {
        (Some(found), None) => found,
        (None, _) => {
            eprintln!(
                "cinderblock trash restore: there is no volume {name:?} in the trash; see `cinderblock trash ls`"
            );
            return ExitCode::from(EXIT_REFUSED);
        }
        (Some(_), Some(_)) => {
            eprintln!(
                "cinderblock trash restore: several volumes in the trash go by {name:?}: name one by its IMAGE ID in `cinderblock trash ls`"
            );
            return ExitCode::from(EXIT_REFUSED);
        }
    };
    let restored = volumes
        .take_back(image_id)
        .map_err(|error| error.to_string())
        .and_then(|record| Ok((content(volumes, &record)?, record)))
        .and_then(|(content, record)| args.manifest.of(&record, content.as_deref()));
    volumes.settle_own();
    match restored {
        Ok(manifest) => {
            eprintln!("cinderblock trash restore: {name} is back");
            super::print_line(manifest);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("cinderblock trash restore: {error}");
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

/// What the volume's image is marked to hold.
fn content(volumes: &Volumes, record: &Volume) -> Result<Option<String>, String> {
    let id = record.image_id.as_deref().unwrap_or_default();
    let image = volumes.pool().open_image(ImageKey::Id(id), OpenMode::ReadOnly);
    image.and_then(|image| image.metadata_get(CONTENT_KEY)).map_err(|error| error.to_string())
}

/// The ids of the images of the volumes in the trash that go by `name`. One that an interrupted
/// restore has taken out already is among them.
fn found(volumes: &Volumes, name: &str) -> cinderblock::volume::Result<Vec<String>> {
    let mut found: Vec<_> = volumes
        .trash()?
        .into_iter()
        .filter(|parked| goes_by(volumes, parked, name))
        .map(|parked| parked.image_id)
        .collect();
    if found.is_empty() {
        let returning = volumes.returning()?.into_iter();
        let returning = returning.filter(|parked| goes_by(volumes, parked, name));
        found.extend(returning.map(|parked| parked.image_id));
    }
    Ok(found)
}

fn goes_by(volumes: &Volumes, parked: &Parked, name: &str) -> bool {
    let pool = volumes.pool();
    let spec = image_spec(pool.name(), pool.namespace(), &parked.image);
    [&parked.id, &parked.image, &parked.image_id, &parked.name, &spec].contains(&&name.to_owned())
        || parked.claim.as_deref() == Some(name)
}

/// What a purge found and did.
#[derive(Debug, Serialize)]
struct Purge {
    found: Vec<Parked>,
    purged: bool,
}

fn purge(args: &PurgeArgs) -> ExitCode {
    let (found, failed) = args.pool.each("trash purge", |_, volumes| {
        let mut found = volumes.trash()?;
        if let Some(name) = &args.name {
            found.retain(|parked| goes_by(volumes, parked, name));
        }
        if args.apply {
            for parked in &found {
                volumes.purge(&parked.image_id)?;
            }
            volumes.settle_own();
        }
        Ok(found)
    });
    let found: Vec<_> = found.into_iter().flatten().collect();
    let (nothing, is_named) = (found.is_empty(), args.name.is_some());
    match args.output {
        Output::Json => super::print_json(&Purge { found, purged: args.apply }),
        Output::Text if nothing && is_named => eprintln!(
            "cinderblock trash purge: there is no such volume in the trash; see `cinderblock trash ls`"
        ),
        Output::Text if nothing => super::print_line("the trash is empty"),
        Output::Text => {
            super::print_line(text(&found));
            super::print_line(if args.apply {
                "These were purged."
            } else {
                "Nothing was changed; --apply purges these."
            });
        }
    }
    match (failed, nothing) {
        (Some(code), _) => code,
        (None, true) if is_named => ExitCode::from(EXIT_REFUSED),
        (None, false) if !args.apply => ExitCode::from(EXIT_REFUSED),
        (None, _) => ExitCode::SUCCESS,
    }
}

fn text(parked: &[Parked]) -> String {
    let row = |parked: &Parked| {
        [
            parked.id.clone(),
            parked.claim.clone().unwrap_or_else(|| "?".to_owned()),
            size::short(parked.size),
            parked.used.map_or_else(|| "?".to_owned(), size::short),
            parked.deleted.to_string(),
            parked.until.to_string(),
            parked.image_id.clone(),
        ]
    };
    let heading = ["VOLUME", "CLAIM", "SIZE", "USED", "DELETED", "PURGED FROM", "IMAGE ID"];
    table::of_rows(&heading, parked.iter().map(row))
}
