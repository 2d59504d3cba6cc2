//! `cinderblock why`: what a request for a volume waits for.

use std::process::ExitCode;

use cinderblock::volume::why::Reason;
use clap::Args;
use serde::Serialize;

use super::pool::PoolArgs;
use super::{EXIT_REFUSED, Output, table};

/// Tell what keeps a volume from being changed, attached or deleted
///
/// Unfinished work and who is at it, nodes, clients that have the image open, locks, groups,
/// migrations, backups and the journal are looked at. Nothing is changed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cinderblock why shop/data
  cinderblock why prod/rbd/csi-pvc-0b9e --output json

Exit status: 0 when the volume was found, 1 when a pool could not be read, 2 when arguments or the configuration are wrong, 3 when there
is no such volume.")]
pub(crate) struct WhyArgs {
    #[command(flatten)]
    pool: PoolArgs,

    /// A volume id, a claim as NAMESPACE/NAME, an image as IMAGE or POOL[/NAMESPACE]/IMAGE, or a
    /// PersistentVolume
    #[arg(value_name = "NAME")]
    name: String,

    /// How the reasons are written
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Output,
}

/// A volume and what stands in its way.
#[derive(Debug, Serialize)]
struct Why {
    id: String,
    reasons: Vec<Reason>,
}

/// Finds the volume, and tells.
pub(crate) fn run(args: &WhyArgs) -> ExitCode {
    let (found, failed) = args.pool.each("why", |_, volumes| {
        let mut all = Vec::new();
        for volume in volumes.details(&args.name)? {
            let reasons = volumes.why(&volume.overview.image)?;
            all.push(Why { id: volume.overview.id, reasons });
        }
        Ok(all)
    });
    let found: Vec<_> = found.into_iter().flatten().collect();
    match args.output {
        Output::Json => super::print_json(&found),
        Output::Text => found.iter().map(text).for_each(super::print_line),
    }
    match (failed, found.is_empty()) {
        (Some(code), _) => code,
        (None, false) => ExitCode::SUCCESS,
        (None, true) => {
            eprintln!("cinderblock why: no volume goes by {:?}; see `cinderblock list`", args.name);
            ExitCode::from(EXIT_REFUSED)
        }
    }
}

fn text(why: &Why) -> String {
    if why.reasons.is_empty() {
        return format!("{}: nothing stands in its way", why.id);
    }
    let rows = why.reasons.iter().map(|reason| [reason.kind, reason.what.as_str()]);
    format!("{}:\n{}", why.id, table::of_rows(&[], rows))
}
