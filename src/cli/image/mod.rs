//! `cinderblock image`: disks into RBD images and out of them.

pub(super) mod export;
mod golden;
mod import;
mod name;
pub(super) mod watch;

use std::fmt::{self, Display};
use std::path::PathBuf;
use std::process::ExitCode;

use cinderblock::transfer::{Error, Place, Tools};
use clap::{Args, Subcommand};

use super::pool::NoPool;
use super::{EXIT_REFUSED, EXIT_USAGE};

/// A checksum differs.
pub(super) const EXIT_CHECKSUM: u8 = 4;

/// Bring disks into RBD images and out of them, and keep golden images
///
/// A disk is a file, a stream or an object of an object store. It is imported to an image under
/// another name, which gets its own when it is whole.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status of all of them: 0 when it is done, 1 when it failed, 2 when arguments are wrong,
3 when it was refused and nothing was changed, 4 when a checksum differs, 130 or 143 when it was stopped by SIGINT or SIGTERM.
Whatever failed, was refused or was stopped has left nothing behind."
)]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Import(import::ImportArgs),
    Export(export::ExportArgs),
    Snapshot(golden::SnapshotArgs),
    Ls(golden::ListArgs),
    Rm(golden::RemoveArgs),
}

/// Why a command did not end well.
#[derive(Debug)]
pub(super) enum Failure {
    Transfer(Error),
    /// The arguments are wrong.
    Usage(String),
    Other(String),
}

impl Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Transfer(error) => error.fmt(formatter),
            Failure::Usage(why) | Failure::Other(why) => formatter.write_str(why),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Transfer(error)
    }
}

impl From<cinderblock::rbd::Error> for Failure {
    fn from(error: cinderblock::rbd::Error) -> Failure {
        Failure::Transfer(error.into())
    }
}

impl From<String> for Failure {
    fn from(why: String) -> Failure {
        Failure::Other(why)
    }
}

impl From<NoPool> for Failure {
    fn from(error: NoPool) -> Failure {
        match error {
            NoPool::Arguments(why) => Failure::Usage(why),
            NoPool::Cluster(why) => Failure::Other(why),
        }
    }
}

/// Runs one of them.
pub(crate) fn run(args: &ImageArgs) -> ExitCode {
    let (name, outcome) = match &args.command {
        Command::Import(args) => ("import", import::run(args)),
        Command::Export(args) => ("export", export::run(args)),
        Command::Snapshot(args) => ("snapshot", golden::snapshot(args)),
        Command::Ls(args) => ("ls", golden::list(args)),
        Command::Rm(args) => ("rm", golden::remove(args)),
    };
    let say = |what: &dyn Display| eprintln!("cinderblock image {name}: {what}");
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(why)) => {
            say(&why);
            ExitCode::from(EXIT_USAGE)
        }
        Err(Failure::Other(why)) => {
            say(&why);
            ExitCode::FAILURE
        }
        Err(Failure::Transfer(error)) => {
            say(&error);
            match error {
                Error::Refused(_) => ExitCode::from(EXIT_REFUSED),
                Error::Checksum { .. } => ExitCode::from(EXIT_CHECKSUM),
                Error::Cancelled => ExitCode::from(watch::exit_code()),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Output {
    /// Lines for people
    Text,
    /// JSON
    Json,
}

/// What converting disks takes.
#[derive(Debug, Args)]
struct ToolArgs {
    /// A folder with room for a whole disk, for formats other than raw
    #[arg(
        long,
        env = "TMPDIR",
        hide_env_values = true,
        default_value = "/var/tmp",
        value_name = "FOLDER"
    )]
    tmp_dir: PathBuf,
}

impl ToolArgs {
    fn tools(&self) -> Result<Tools, Failure> {
        let launcher = std::env::current_exe()
            .map_err(|error| Failure::Other(format!("cannot find this program: {error}")))?;
        Ok(Tools { launcher, folder: self.tmp_dir.clone() })
    }
}

/// Reads a place. Not by clap, which repeats what it refuses: a URL may have a password in it.
pub(super) fn place(text: &str) -> Result<Place, Failure> {
    text.parse().map_err(Failure::Usage)
}

/// A result for programs.
pub(super) fn json(result: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(result).map_err(|error| Failure::Other(error.to_string()))
}
