//! `cinderblock backup delete` and `prune`.

use cinderblock::backup::{Keep, Removed, delete as remove, prune as forget};
use clap::Args;

use super::super::image::{Failure, Output, json, watch};
use super::super::size::show_unsigned;

/// Delete a restore point
///
/// An increment cannot be restored without those it is based on, so a chain goes as a whole: the
/// full restore point and all its increments.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cinderblock backup delete /mnt/backup csi-pvc-0b9e7a52.1f5c0a9b7e2d/20261130T031500.123Z
  cinderblock backup delete --chain s3://backup/prod csi-pvc-0b9e7a52.1f5c0a9b7e2d/20261130T031500.123Z")]
pub(crate) struct DeleteArgs {
    /// Where restore points are: a folder or s3://BUCKET/PREFIX
    target: String,

    /// The restore point: SERIES/ID, or SERIES/latest
    point: String,

    /// Delete all restore points of its chain
    #[arg(long)]
    chain: bool,

    /// How the result is written
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Output,
}

/// Delete the restore points that no rule keeps
///
/// The rules apply to each series. A chain stays as long as a rule keeps one of its restore points,
/// so room becomes free once there are newer full ones: see `backup create --increments`. What is
/// left of restore points that were never finished goes after a week.
#[derive(Debug, Args)]
#[command(after_help = "Without --apply it tells what it would delete.

Examples:
  cinderblock backup prune --keep-last 3 --keep-daily 14 --keep-monthly 6 /mnt/backup
  cinderblock backup prune --keep-daily 30 --apply s3://backup/prod")]
pub(crate) struct PruneArgs {
    /// Where restore points are: a folder or s3://BUCKET/PREFIX
    target: String,

    /// One series; all when left out
    series: Option<String>,

    /// Keep the newest COUNT
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "COUNT")]
    keep_last: usize,

    /// Keep the newest of each of the last COUNT hours that have one
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "COUNT")]
    keep_hourly: usize,

    /// Keep the newest of each of the last COUNT days (in UTC) that have one
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "COUNT")]
    keep_daily: usize,

    /// Keep the newest of each of the last COUNT weeks that have one
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "COUNT")]
    keep_weekly: usize,

    /// Keep the newest of each of the last COUNT months that have one
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "COUNT")]
    keep_monthly: usize,

    /// Keep the newest of each of the last COUNT years that have one
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "COUNT")]
    keep_yearly: usize,

    /// Delete them
    #[arg(long)]
    apply: bool,

    /// How the result is written
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Output,
}

pub(super) fn delete(args: &DeleteArgs) -> Result<(), Failure> {
    let store = super::store(&args.target)?;
    let removed = watch::watched(|job| remove(&store, &args.point, args.chain, job))??;
    tell(&removed, "deleted", args.output)
}

pub(super) fn prune(args: &PruneArgs) -> Result<(), Failure> {
    let store = super::store(&args.target)?;
    let keep = Keep {
        last: args.keep_last,
        hourly: args.keep_hourly,
        daily: args.keep_daily,
        weekly: args.keep_weekly,
        monthly: args.keep_monthly,
        yearly: args.keep_yearly,
    };
    if keep.is_empty() {
        return Err(Failure::Usage("no rule keeps anything: give one, as --keep-last 7".into()));
    }
    let series = args.series.as_deref();
    let removed = watch::watched(|job| forget(&store, series, &keep, args.apply, job))??;
    tell(&removed, if args.apply { "deleted" } else { "would delete" }, args.output)
}

fn tell(removed: &Removed, verb: &str, output: Output) -> Result<(), Failure> {
    if output == Output::Json {
        super::super::print_line(json(removed)?);
        return Ok(());
    }
    let points = removed.points.iter().map(|point| format!("{verb} {point}"));
    let leftovers = removed.leftovers.iter().map(|name| format!("{verb} what is left of {name}"));
    for line in points.chain(leftovers) {
        super::super::print_line(line);
    }
    let count = removed.points.len();
    super::super::print_line(format!(
        "{verb} {count} restore points, {}",
        show_unsigned(removed.stored)
    ));
    Ok(())
}
