//! `cinderblock check`: what keeps the driver from working, and what to do about it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cinderblock::check::{self, Finding, Login, Outcome};
use cinderblock::node::attach::Mounter;
use clap::{Args, ValueEnum};

use super::pool::ClusterArgs;
use super::table::{self, Color};
use super::{EXIT_FAILURE, EXIT_REFUSED, EXIT_USAGE, Output};

/// Find out what keeps the driver from working, and what to do about it
///
/// The configuration, each cluster's monitors, the user's key and rights, clocks, pools, namespaces
/// and room are looked at, and what was left half-done; with --mounter also this machine, as a node.
/// No driver has to run, and nothing is changed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cinderblock check --config clusters.yaml
  cinderblock check --mounter rbd --kubelet-dir /var/lib/kubelet     # on a node, as root
  kubectl --namespace cinderblock exec deploy/cinderblock-controller -- cinderblock check
  cinderblock check --output json | jq '.[] | select(.outcome != \"well\")'

Exit status: 0 when all is well, 1 when something is in the way or could not be found out, 2 when arguments or the configuration are
wrong, 3 when there are warnings alone.")]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    cluster: ClusterArgs,

    /// Check this machine as a node, too, whose volumes are attached in this way; may be repeated
    #[arg(long, value_enum, value_name = "MOUNTER", help_heading = "Node")]
    mounter: Vec<MounterName>,

    /// kubelet's folder on this node
    #[arg(long, value_name = "FOLDER", requires = "mounter", help_heading = "Node")]
    kubelet_dir: Option<PathBuf>,

    /// How the findings are written
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Output,
}

/// How a node attaches volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum MounterName {
    /// The kernel's own client
    Rbd,
    /// rbd-nbd, and the kernel's network block devices
    RbdNbd,
    /// qemu-storage-daemon, FUSE and loop devices
    Fuse,
}

/// Checks, and writes what was found.
pub(crate) fn run(args: &CheckArgs) -> ExitCode {
    let (findings, is_configured) =
        findings(&args.cluster, &args.mounter, args.kubelet_dir.as_deref());
    match args.output {
        Output::Json => super::print_json(&findings),
        Output::Text => super::print_line(text(&findings)),
    }
    let has = |outcome| findings.iter().any(|finding| finding.outcome == outcome);
    ExitCode::from(match is_configured {
        false => EXIT_USAGE,
        true if has(Outcome::Failed) || has(Outcome::Unknown) => EXIT_FAILURE,
        true if has(Outcome::Warning) => EXIT_REFUSED,
        true => 0,
    })
}

/// All findings, and whether there is a configuration to go by.
pub(super) fn findings(
    args: &ClusterArgs,
    mounters: &[MounterName],
    kubelet: Option<&Path>,
) -> (Vec<Finding>, bool) {
    let mut findings = vec![check::librbd()];
    let config = match args.read() {
        Ok(config) => config,
        Err(error) => {
            findings.push(Finding::failed(
                "configuration",
                "",
                error.to_string(),
                "give its path with --config or CINDERBLOCK_CONFIG; docs/reference/parameters.md lists its keys",
            ));
            return (findings, false);
        }
    };
    let clusters: Vec<_> = match args.chosen() {
        Some(id) => config.clusters.get(id).into_iter().collect(),
        None => config.clusters.values().collect(),
    };
    if clusters.is_empty() {
        let known: Vec<_> = config.clusters.keys().map(String::as_str).collect();
        findings.push(Finding::failed(
            "configuration",
            "",
            "there is no such cluster in it",
            format!("choose one of these with --cluster: {}", known.join(", ")),
        ));
        return (findings, false);
    }
    findings.push(Finding::well(
        "configuration",
        "",
        format!("{} can be read", args.file().display()),
    ));
    let mut keys = Vec::new();
    for cluster in clusters {
        let login = args
            .user_and_key(cluster)
            .map(|(user, key)| Login { user, key })
            .map_err(|error| error.to_string());
        keys.extend(login.iter().map(|login| login.key.clone()));
        let places: Vec<_> = cluster.places().collect();
        findings.extend(check::cluster(cluster, login, args.instance(), &places));
    }
    if !mounters.is_empty() {
        let mounters: Vec<_> = mounters.iter().map(|name| name.mounter()).collect();
        findings.extend(check::this_node(&mounters, &keys, kubelet));
    }
    (findings, true)
}

impl MounterName {
    fn mounter(self) -> Mounter {
        match self {
            MounterName::Rbd => Mounter::Rbd,
            MounterName::RbdNbd => Mounter::RbdNbd,
            MounterName::Fuse => Mounter::Fuse,
        }
    }
}

/// A line for each finding, and its remedy under it.
fn text(findings: &[Finding]) -> String {
    let row = |finding: &Finding| {
        let outcome = match finding.outcome {
            Outcome::Well => table::coloured("well", Color::Green),
            Outcome::Warning => table::coloured("warning", Color::Yellow),
            Outcome::Failed => table::coloured("FAILED", Color::Red),
            Outcome::Unknown => table::coloured("unknown", Color::Yellow),
        };
        let place = if finding.place.is_empty() { "-" } else { finding.place.as_str() };
        let found = match &finding.remedy {
            Some(remedy) => format!("{}\n→ {remedy}", finding.found),
            None => finding.found.clone(),
        };
        [outcome, finding.check.into(), place.into(), found.into()]
    };
    table::of_rows(&["", "CHECK", "PLACE", ""], findings.iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_stands_under_what_it_mends() {
        let findings = [
            Finding::well("librbd", "", "librbd of Ceph 20.2.0"),
            Finding::failed("namespace", "lab/rbd/team", "there is none", "run: make it"),
        ];
        assert_eq!(
            text(&findings),
            "        CHECK      PLACE
well    librbd     -             librbd of Ceph 20.2.0
FAILED  namespace  lab/rbd/team  there is none
                                 → run: make it"
        );
    }
}
