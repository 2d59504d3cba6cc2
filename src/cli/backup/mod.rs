//! `cinderblock backup`: restore points of volumes, and volumes made of them.

mod claims;
mod create;
mod remove;
mod restore;
mod see;

use std::process::ExitCode;

use cinderblock::backup::Store;
use cinderblock::transfer::Error;
use cinderblock::volume;
use clap::{Args, Subcommand};

use super::image::{EXIT_CHECKSUM, Failure, watch};
use super::{EXIT_REFUSED, EXIT_USAGE};

/// Back up volumes to a folder or an object store, and restore them
///
/// A backup adds a restore point to a target. The first of a volume is full; later ones hold what
/// has changed since. The target needs nothing else: restore points are listed and restored from it
/// alone, into any cluster.
#[derive(Debug, Args)]
#[command(
    after_help = "TARGET is a folder, or s3://BUCKET/PREFIX with what else is needed in the environment (AWS_ENDPOINT, AWS_REGION,
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY). Restore points are called SERIES/ID: all of one volume are in one series.

What is stored is the stream of `rbd export-diff`, compressed with zstd: docs/backup.md shows how to restore it without this
program.

Exit status of all of them: 0 when it is done, 1 when it failed, 2 when arguments are wrong, 3 when it was refused and nothing
was changed, 4 when something stored is damaged, 130 or 143 when it was stopped by SIGINT or SIGTERM.
What a backup that failed or was stopped has stored is taken up by the next one."
)]
pub(crate) struct BackupArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Create(create::CreateArgs),
    List(see::ListArgs),
    Show(see::ShowArgs),
    Verify(see::VerifyArgs),
    Restore(restore::RestoreArgs),
    Delete(remove::DeleteArgs),
    Prune(remove::PruneArgs),
}

/// Runs one of them.
pub(crate) fn run(args: &BackupArgs) -> ExitCode {
    let (name, outcome) = match &args.command {
        Command::Create(args) => ("create", create::run(args)),
        Command::List(args) => ("list", see::list(args)),
        Command::Show(args) => ("show", see::show(args)),
        Command::Verify(args) => ("verify", see::verify(args)),
        Command::Restore(args) => ("restore", restore::run(args)),
        Command::Delete(args) => ("delete", remove::delete(args)),
        Command::Prune(args) => ("prune", remove::prune(args)),
    };
    let (why, code) = match outcome {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Usage(why)) => (why, EXIT_USAGE),
        Err(Failure::Other(why)) => (why, 1),
        Err(Failure::Transfer(error)) => (error.to_string(), code(&error)),
    };
    eprintln!("cinderblock backup {name}: {why}");
    ExitCode::from(code)
}

fn code(error: &Error) -> u8 {
    match error {
        Error::Checksum { .. } => EXIT_CHECKSUM,
        Error::Cancelled => watch::exit_code(),
        Error::Refused(_)
        | Error::Volume(
            volume::Error::Conflict(_)
            | volume::Error::AlreadyExists(_)
            | volume::Error::InUse(_)
            | volume::Error::FailedPrecondition(_)
            | volume::Error::NotFound(_)
            | volume::Error::Invalid(_),
        ) => EXIT_REFUSED,
        _ => 1,
    }
}

/// Opens a target that is there.
fn store(target: &str) -> Result<Store, Failure> {
    Ok(Store::open(&super::image::place(target)?, false)?)
}
