//! `cinderblock show`: all there is to say about one volume.

use std::process::ExitCode;

use cinderblock::volume::overview::Details;
use cinderblock::volume::survey::{SnapshotUse, SurveyedImage};
use clap::Args;

use super::pool::PoolArgs;
use super::{Output, list, size, table};

/// Show all there is to say about one volume: claim, image, size, nodes, clients, parent, snapshots
/// and clones
///
/// Every pool of the configuration is looked through, unless one is named. Nothing is changed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cinderblock show shop/data                # a claim, by namespace and name, where the provisioner named it
  cinderblock show prod/rbd/csi-pvc-0b9e    # a volume id
  cinderblock show rbd/csi-pvc-0b9e         # an image, as pool[/namespace]/image
  cinderblock show pvc-0b9e --output json   # a PersistentVolume

What is a name in several of these ways is shown for each.

Exit status: 0 when it was found, 1 when a pool could not be read, 2 when arguments or the configuration are wrong, 3 when there is
no such volume.")]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    pool: PoolArgs,

    /// A volume id, a claim as NAMESPACE/NAME, an image as IMAGE or POOL[/NAMESPACE]/IMAGE, or a
    /// PersistentVolume
    #[arg(value_name = "NAME")]
    name: String,

    /// How the volume is written
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Output,
}

/// Finds and shows.
pub(crate) fn run(args: &ShowArgs) -> ExitCode {
    let (found, failed) = args.pool.each("show", |_, volumes| Ok(volumes.details(&args.name)?));
    let found: Vec<_> = found.into_iter().flatten().collect();
    match args.output {
        Output::Json => super::print_json(&found),
        Output::Text => {
            let texts: Vec<_> = found.iter().map(text).collect();
            if !texts.is_empty() {
                super::print_line(texts.join("\n\n"));
            }
        }
    }
    match (failed, found.is_empty()) {
        (Some(code), _) => code,
        (None, false) => ExitCode::SUCCESS,
        (None, true) => {
            eprintln!(
                "cinderblock show: the catalogue knows no volume, claim or image {:?}; `cinderblock list` shows those it knows, and \
                 `cinderblock tree` every image",
                args.name
            );
            ExitCode::from(super::EXIT_REFUSED)
        }
    }
}

fn text(details: &Details) -> String {
    let Details { overview, source, mounter, lineage, open_at } = details;
    let or_none = |words: Vec<String>| {
        if words.is_empty() { "none".to_owned() } else { words.join("\n") }
    };
    let unknown = || "unknown".to_owned();
    let parent = lineage.as_ref().and_then(|image| image.parent.as_ref());
    let rows = vec![
        ("volume", overview.id.clone()),
        ("claim", overview.claim.clone().unwrap_or_else(unknown)),
        ("name", overview.name.clone()),
        ("state", list::state(overview.state).content()),
        (
            "image",
            lineage.as_ref().map_or_else(
                || format!("{} (missing)", overview.image),
                |image| format!("{} (id {})", overview.image, image.id),
            ),
        ),
        ("size", size::show_unsigned(overview.size)),
        ("used", overview.used.map_or_else(unknown, size::show_unsigned)),
        ("created", overview.created.to_string()),
        ("mounter", mounter.clone().unwrap_or_else(unknown)),
        ("made from", source.clone().unwrap_or_else(|| "nothing".to_owned())),
        (
            "parent",
            parent.map_or_else(
                || "none".to_owned(),
                |link| format!("{}@{}", link.image, link.snapshot),
            ),
        ),
        ("depth", overview.depth.map_or_else(unknown, |depth| depth.to_string())),
        ("nodes", or_none(overview.nodes.clone())),
        ("open at", or_none(open_at.clone())),
        ("snapshots", or_none(lineage.as_ref().map(snapshots).unwrap_or_default())),
        ("clones", or_none(lineage.as_ref().map(clones).unwrap_or_default())),
    ];
    table::of_pairs(rows)
}

fn snapshots(image: &SurveyedImage) -> Vec<String> {
    let listed = image.snapshots.iter().filter(|snapshot| snapshot.kind == SnapshotUse::Listed);
    listed
        .map(|snapshot| format!("{}, {}", snapshot.name, size::show_unsigned(snapshot.size)))
        .collect()
}

fn clones(image: &SurveyedImage) -> Vec<String> {
    image.snapshots.iter().flat_map(|snapshot| snapshot.children.clone()).collect()
}
