//! `cinderblock flatten`: a volume cut off from what it is a clone of.

use std::io::{IsTerminal, stderr};
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use cinderblock::volume::{Activity, Volumes};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::pool::PoolArgs;
use super::{EXIT_FAILURE, EXIT_REFUSED};

/// How often the bar is drawn.
const TICK: Duration = Duration::from_millis(100);

/// Copy to a volume what it shares with what it is a clone of, and cut the link
///
/// The volume may be in use meanwhile. What is not needed any more by that goes: snapshots made for
/// clones, and deleted volumes that stayed for them. A flatten that is stopped changes nothing that
/// can be seen; a controller finishes or forgets it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cinderblock flatten shop/data --config clusters.yaml
  cinderblock list --output json | jq -r '.[] | select(.depth > 3) | .id' | xargs -n 1 cinderblock flatten

Exit status: 0 when it is no clone, or was none, 1 when a pool could not be read or the flatten failed, 2 when arguments or the
configuration are wrong, 3 when there is no such volume, or several go by that name.")]
pub(crate) struct FlattenArgs {
    #[command(flatten)]
    pool: PoolArgs,

    /// A volume id, a claim as NAMESPACE/NAME, an image as IMAGE or POOL[/NAMESPACE]/IMAGE, or a
    /// PersistentVolume
    #[arg(value_name = "NAME")]
    name: String,
}

/// Finds the volume, and flattens it.
pub(crate) fn run(args: &FlattenArgs) -> ExitCode {
    let name = args.name.as_str();
    let (pools, failed) = args.pool.each("flatten", |_, volumes| {
        let found = volumes.details(name)?.into_iter().map(|details| details.overview.image);
        Ok((found.collect::<Vec<_>>(), volumes.clone()))
    });
    if let Some(code) = failed {
        return code;
    }
    let all: Vec<_> = pools
        .iter()
        .flat_map(|(found, volumes)| found.iter().map(move |one| (one, volumes)))
        .collect();
    let [(image, volumes)] = all[..] else {
        let how_many = if all.is_empty() { "no volume goes" } else { "several volumes go" };
        eprintln!("cinderblock flatten: {how_many} by {name:?}; see `cinderblock list`");
        return ExitCode::from(EXIT_REFUSED);
    };
    let flattened = with_bar(volumes, || volumes.flatten_volume(image));
    volumes.settle_own();
    match flattened {
        Ok(true) => super::print_line(format!("{name} is no clone any more")),
        Ok(false) => super::print_line(format!("{name} was no clone")),
        Err(error) => {
            eprintln!("cinderblock flatten: {error}");
            return ExitCode::from(EXIT_FAILURE);
        }
    }
    ExitCode::SUCCESS
}

/// Does `work`, with a bar that shows how far the activity of `volumes` is, on a terminal.
fn with_bar<T>(volumes: &Volumes, work: impl FnOnce() -> T) -> T {
    if !stderr().is_terminal() {
        return work();
    }
    let (done, is_done) = channel::<()>();
    let activity: &Activity = volumes.activity();
    thread::scope(|scope| {
        scope.spawn(move || {
            let bar = ProgressBar::new(100);
            if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos} % {eta}") {
                bar.set_style(style);
            }
            bar.set_message("flattening");
            while is_done.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                bar.set_position(activity.percent().unwrap_or(0).into());
            }
            bar.finish_and_clear();
        });
        let outcome = work();
        drop(done);
        outcome
    })
}
