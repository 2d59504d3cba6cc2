//! `cinderblock gc`: finds what was left half-done, and finishes it when told to.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use cinderblock::volume::leftovers::Leftover;
use cinderblock::volume::{Error, Volumes};
use clap::Args;
use serde::Serialize;

use super::Output;
use super::pool::PoolArgs;

/// Find what was left half-done in a pool and, with --apply, finish it
///
/// A running controller finishes its own leftovers by itself; this is for pools whose controller is
/// gone, for deletions no client asked for again, and for a look. Without --apply nothing is
/// changed. Each leftover is looked at again before anything is removed. What another operation is
/// at work on is tried again for 45 seconds.
#[derive(Debug, Args)]
#[command(
    after_help = "What is found: entries of the journal, unfinished volumes, snapshots and group snapshots, snapshots made for clones that are gone,
silent parents that nothing depends on or that only other tools' snapshots and clones keep, remains of interrupted removals, images and
snapshots of imports and exports that were killed, volumes whose restore from a backup was killed or failed. These last stay with
--apply, unless --give-up names them. Other images the
catalogue does not know are never touched; only --foreign looks at one kind of them: the volume-UUID.deleted chains that Cinder leaves
in its pools.

Examples:
  cinderblock gc --config clusters.yaml --pool rbd
  cinderblock gc --config clusters.yaml --pool rbd --apply
  cinderblock gc --config clusters.yaml --pool volumes --foreign --apply

Exit status: 0 when nothing is left, 1 when a pool could not be read or something could not be cleared, 2 when arguments or the
configuration are wrong, 3 when something was found and left, for want of --apply."
)]
pub(crate) struct GcArgs {
    #[command(flatten)]
    pool: PoolArgs,

    /// Finish and remove what is found
    #[arg(long)]
    apply: bool,

    /// Look for the .deleted chains of Cinder instead of this driver's leftovers
    #[arg(long)]
    foreign: bool,

    /// Remove this volume, whose restore from a backup was not finished; as often as need be
    #[arg(long, requires = "apply", value_name = "IMAGE")]
    give_up: Vec<String>,

    /// Seconds after which an unfinished creation counts as abandoned; younger ones may be in
    /// progress
    #[arg(long, default_value = "3600", value_name = "SECONDS")]
    patience: u64,

    /// How the findings are written
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Output,
}

/// What a run found and did.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// The cluster, pool and namespace.
    place: String,
    found: Vec<Leftover>,
    cleared: Vec<Leftover>,
    failed: Vec<Failure>,
}

#[derive(Debug, Serialize)]
struct Failure {
    leftover: Leftover,
    why: String,
}

/// How long ago a creation was begun that counts as abandoned, as the sweeper has it.
pub(super) const ABANDONED: Duration = Duration::from_hours(1);
/// How long other operations are waited for: longer than the lease of a dead controller lasts.
const OTHERS: Duration = Duration::from_secs(45);
/// How long before they are looked at again.
const PAUSE: Duration = Duration::from_secs(1);

/// Searches, and clears when told to.
pub(crate) fn run(args: &GcArgs) -> ExitCode {
    let (reports, cannot) = args.pool.each("gc", |place, volumes| {
        Ok(Report { place: place.to_string(), ..work(args, volumes)? })
    });
    for report in &reports {
        match args.output {
            Output::Text if reports.len() > 1 => {
                super::print_line(format!("{}:", report.place));
                super::print_line(text(report, args.apply));
            }
            Output::Text => super::print_line(text(report, args.apply)),
            Output::Json => super::print_json(report),
        }
    }
    let failed = reports.iter().any(|report| !report.failed.is_empty());
    let left = !args.apply && reports.iter().any(|report| !report.found.is_empty());
    match (cannot, failed, left) {
        (Some(code), _, _) => code,
        (None, true, _) => ExitCode::from(super::EXIT_FAILURE),
        (None, false, true) => ExitCode::from(super::EXIT_REFUSED),
        (None, false, false) => ExitCode::SUCCESS,
    }
}

fn work(args: &GcArgs, volumes: &Volumes) -> Result<Report, Box<dyn std::error::Error>> {
    let mut report = Report::default();
    loop {
        let survey = volumes.survey()?;
        let found = if args.foreign {
            Volumes::foreign_leftovers(&survey)
        } else {
            volumes.leftovers(&survey, Duration::from_secs(args.patience))?
        };
        // What is cleared can set its parents free; what failed once is not tried for ever.
        let new: Vec<_> =
            found.into_iter().filter(|leftover| !report.found.contains(leftover)).collect();
        if new.is_empty() {
            return Ok(report);
        }
        report.found.extend(new.iter().cloned());
        if !args.apply {
            return Ok(report);
        }
        clear(volumes, new, &args.give_up, &mut report);
    }
}

/// Clears what was found. What other operations are at work on is tried again until they, or the
/// leases of dead controllers, have had their time.
fn clear(volumes: &Volumes, found: Vec<Leftover>, give_up: &[String], report: &mut Report) {
    let deadline = Instant::now() + OTHERS;
    let mut todo = found;
    loop {
        let mut conflicts = Vec::new();
        for leftover in todo {
            let cleared = match &leftover {
                Leftover::UnfinishedRestore { image, .. } if give_up.contains(image) => {
                    volumes.give_up_restore(image)
                }
                leftover => volumes.clear(leftover),
            };
            match cleared {
                Ok(()) => report.cleared.push(leftover),
                Err(error @ Error::Conflict(_)) => conflicts.push((leftover, error.to_string())),
                Err(error) => report.failed.push(Failure { leftover, why: error.to_string() }),
            }
        }
        if conflicts.is_empty() || Instant::now() >= deadline {
            let failures = conflicts.into_iter();
            report.failed.extend(failures.map(|(leftover, why)| Failure { leftover, why }));
            return;
        }
        todo = conflicts.into_iter().map(|(leftover, _)| leftover).collect();
        std::thread::sleep(PAUSE);
    }
}

fn text(report: &Report, apply: bool) -> String {
    if report.found.is_empty() {
        return "nothing is left half-done".to_string();
    }
    let mut lines: Vec<String> = if apply {
        report.cleared.iter().map(|leftover| format!("cleared  {}", describe(leftover))).collect()
    } else {
        report.found.iter().map(|leftover| format!("found    {}", describe(leftover))).collect()
    };
    lines.extend(
        report
            .failed
            .iter()
            .map(|failure| format!("failed   {}: {}", describe(&failure.leftover), failure.why)),
    );
    if !apply {
        lines.push(format!(
            "{} found; nothing was changed, --apply clears them",
            report.found.len()
        ));
    }
    lines.join("\n")
}

fn describe(leftover: &Leftover) -> String {
    match leftover {
        Leftover::UnfinishedDeletion { image } => format!("{image}: its deletion was begun"),
        Leftover::UnfinishedCreation { image, age_seconds } => {
            format!("{image}: its creation was begun {age_seconds} s ago and never finished")
        }
        Leftover::UnfinishedRestore { image, id } => {
            format!(
                "{image}: the restore to {id} was not finished; `cinderblock backup restore` goes on, --apply --give-up {image} removes the volume"
            )
        }
        Leftover::UnfinishedSnapshot { image_id, snapshot } => {
            format!("snapshot {snapshot} of image {image_id}: begun, or half deleted")
        }
        Leftover::UnfinishedGroup { group, .. } => {
            format!("group snapshot {group}: begun, or half deleted")
        }
        Leftover::ChildlessSnapshot { image, snapshot, .. } => {
            format!("{image}@{snapshot}: its clone is gone")
        }
        Leftover::EmptySilentParent { image, .. } => {
            format!("{image}: a silent parent nothing depends on")
        }
        Leftover::KeptByOthers { image, by, .. } => {
            format!("{image}: a deleted volume kept by other tools' {}", by.join(", "))
        }
        Leftover::Remains { image, .. } => format!("{image}: remains of an interrupted removal"),
        Leftover::UnfinishedTransfer { image } => {
            format!("{image}: of an import or export that was killed")
        }
        Leftover::ExportSnapshot { image, snapshot, .. } => {
            format!("{image}@{snapshot}: cut for an export that was killed")
        }
        Leftover::Journal { entries: 1 } => "1 journal entry".to_string(),
        Leftover::Journal { entries } => format!("{entries} journal entries"),
        Leftover::Unreadable { object, key, why } => {
            format!(
                "{key} in the RADOS object {object}: {why}; everything else is cleared without it"
            )
        }
        Leftover::Foreign { image, .. } => {
            format!("{image}: marked deleted by Cinder, and nothing depends on it")
        }
    }
}
