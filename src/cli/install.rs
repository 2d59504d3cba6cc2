//! `cinderblock completions` and `man`: what a shell and `man` know of the command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, EXIT_FAILURE};

/// Print what a shell needs to complete the command line
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cinderblock completions bash > /etc/bash_completion.d/cinderblock
  cinderblock completions zsh > \"${fpath[1]}/_cinderblock\"

Exit status: 0 when it was printed, 2 when arguments are wrong.")]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Write a man page for each command into a folder
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cinderblock man /usr/local/share/man/man1

Exit status: 0 when all were written, 1 when one could not be, 2 when arguments are wrong.")]
pub(crate) struct ManArgs {
    /// The folder, which is there
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

/// Prints the completions.
pub(crate) fn completions(args: &CompletionsArgs) -> ExitCode {
    // A write to memory cannot fail.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "cinderblock", &mut script);
    super::print_line(String::from_utf8_lossy(&script).trim_end());
    ExitCode::SUCCESS
}

/// Writes the pages.
pub(crate) fn man(args: &ManArgs) -> ExitCode {
    match clap_mangen::generate_to(Cli::command(), &args.folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let folder = args.folder.display();
            eprintln!("cinderblock man: cannot write man pages into {folder}: {error}");
            ExitCode::from(EXIT_FAILURE)
        }
    }
}
