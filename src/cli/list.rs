//! `cinderblock list`: the volumes there are.

use std::io::{IsTerminal, stdout};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use cinderblock::volume::overview::{Overview, VolumeState};
use clap::{Args, ValueEnum};

use super::pool::PoolArgs;
use super::table::{self, Cell, Color};
use super::{Output, size};

/// What a terminal takes for "begin again at the top of an empty screen".
const CLEAR_SCREEN: &str = "\x1b[2J\x1b[H";

/// List the volumes: whose each is, how much of it is used, where it is attached, and its state
///
/// The catalogue is read, and each image is opened read-only; nothing is changed. USED counts the
/// objects that a volume has for itself, without its snapshots and parents; it is "?" for an image
/// without the feature fast-diff, which `show` counts. CLAIM is what the provisioner said when the
/// volume was made, and "?" when it said nothing.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cinderblock list --config clusters.yaml
  cinderblock list --claim shop --watch
  cinderblock list --node worker-3 --output json | jq -r '.[].id'
  kubectl --namespace cinderblock exec deploy/cinderblock-controller -- cinderblock list

Exit status: 0 when every pool was read, 1 when one could not be, 2 when arguments or the configuration are wrong.")]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pool: PoolArgs,

    /// Only volumes of claims in this namespace, or of this claim
    #[arg(long, value_name = "NAMESPACE[/NAME]")]
    claim: Option<String>,

    /// Only volumes that are published to this node
    #[arg(long, value_name = "ID")]
    node: Option<String>,

    /// Only volumes in this state
    #[arg(long, value_enum, value_name = "STATE")]
    state: Option<StateName>,

    /// List again every so many seconds, until stopped
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
          value_parser = clap::value_parser!(u64).range(1..))]
    watch: Option<u64>,

    /// How the volumes are written
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Output,
}

/// A volume's state, as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StateName {
    /// Being made
    Creating,
    /// Handed out
    Ready,
    /// Being deleted
    Deleting,
    /// Being filled from a backup
    Restoring,
    /// Being brought back from the trash
    Returning,
    /// Handed out, and its image is gone
    ImageMissing,
}

/// Lists, once or again and again.
pub(crate) fn run(args: &ListArgs) -> ExitCode {
    loop {
        let (found, failed) = args.pool.each("list", |_, volumes| Ok(volumes.overview()?));
        let mut found: Vec<_> = found.into_iter().flatten().collect();
        found.retain(|volume| args.wants(volume));
        if args.watch.is_some() && stdout().is_terminal() {
            super::print_line(CLEAR_SCREEN);
        }
        match args.output {
            Output::Json => super::print_json(&found),
            Output::Text if found.is_empty() && failed.is_some() => {}
            Output::Text if found.is_empty() => super::print_line("no volumes"),
            Output::Text => super::print_line(text(&found)),
        }
        let Some(seconds) = args.watch else {
            return failed.unwrap_or(ExitCode::SUCCESS);
        };
        sleep(Duration::from_secs(seconds));
    }
}

impl ListArgs {
    fn wants(&self, volume: &Overview) -> bool {
        let claim = volume.claim.as_deref().unwrap_or_default();
        let namespace = claim.split('/').next().unwrap_or_default();
        self.claim.as_deref().is_none_or(|wanted| wanted == claim || wanted == namespace)
            && self.node.as_ref().is_none_or(|wanted| volume.nodes.contains(wanted))
            && self.state.is_none_or(|wanted| wanted == StateName::of(volume.state))
    }
}

impl StateName {
    fn of(state: VolumeState) -> StateName {
        match state {
            VolumeState::Creating => StateName::Creating,
            VolumeState::Ready => StateName::Ready,
            VolumeState::Deleting => StateName::Deleting,
            VolumeState::Restoring => StateName::Restoring,
            VolumeState::Returning => StateName::Returning,
            VolumeState::ImageMissing => StateName::ImageMissing,
        }
    }
}

/// A state in words, in a colour that says how well it is.
pub(super) fn state(state: VolumeState) -> Cell {
    match state {
        VolumeState::Ready => table::coloured("ready", Color::Green),
        VolumeState::Creating => table::coloured("creating", Color::Yellow),
        VolumeState::Deleting => table::coloured("deleting", Color::Yellow),
        VolumeState::Restoring => table::coloured("restoring", Color::Yellow),
        VolumeState::Returning => table::coloured("returning", Color::Yellow),
        VolumeState::ImageMissing => table::coloured("image missing", Color::Red),
    }
}

fn text(volumes: &[Overview]) -> String {
    let unknown = || "?".to_owned();
    let row = |volume: &Overview| {
        let nodes = if volume.nodes.is_empty() { "-".to_owned() } else { volume.nodes.join(",") };
        [
            Cell::new(&volume.id),
            Cell::new(volume.claim.clone().unwrap_or_else(unknown)),
            Cell::new(size::short(volume.size)),
            Cell::new(volume.used.map_or_else(unknown, size::short)),
            Cell::new(nodes),
            Cell::new(volume.snapshots),
            Cell::new(volume.depth.map_or_else(unknown, |depth| depth.to_string())),
            state(volume.state),
        ]
    };
    let heading = ["VOLUME", "CLAIM", "SIZE", "USED", "NODE", "SNAPSHOTS", "DEPTH", "STATE"];
    table::of_rows(&heading, volumes.iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume() -> Overview {
        Overview {
            id: "prod/rbd/csi-pvc-1".to_owned(),
            image: "csi-pvc-1".to_owned(),
            name: "pvc-1".to_owned(),
            claim: Some("shop/data".to_owned()),
            size: 10 << 30,
            used: Some(1536 << 20),
            nodes: vec!["a".to_owned(), "b".to_owned()],
            snapshots: 2,
            depth: Some(1),
            state: VolumeState::Ready,
            created: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn people_read_a_line_for_each_volume() {
        let gone = Overview {
            claim: None,
            used: None,
            nodes: Vec::new(),
            depth: None,
            state: VolumeState::ImageMissing,
            ..volume()
        };
        assert_eq!(
            text(&[volume(), gone]),
            "VOLUME              CLAIM      SIZE   USED    NODE  SNAPSHOTS  DEPTH  STATE
prod/rbd/csi-pvc-1  shop/data  10GiB  1.5GiB  a,b   2          1      ready
prod/rbd/csi-pvc-1  ?          10GiB  ?       -     2          ?      image missing"
        );
    }
}
