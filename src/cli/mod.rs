//! The command line: arguments, dispatch and exit codes. One file per subcommand, no logic of the
//! driver.
#![allow(clippy::print_stderr, clippy::print_stdout, reason = "a command line talks to its user")]

mod adopt;
mod backup;
mod bounded;
mod call;
mod find;
mod gc;
mod image;
mod pool;
mod serve;
mod size;
mod table;
mod tree;
mod version;

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use clap::{ArgAction, Parser, Subcommand};
use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, setrlimit};

/// A CSI driver for Ceph RBD: bounded clone depth, silent parents, nothing leaked.
#[derive(Debug, Parser)]
#[command(name = "cinderblock", arg_required_else_help = true)]
struct Cli {
    /// Print the version, of which Ceph the librbd is that it runs on, and what that librbd lacks.
    #[arg(short = 'V', long, action = ArgAction::SetTrue)]
    version: bool,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one value in the life of the process")]
enum Command {
    Serve(serve::ServeArgs),
    Call(call::CallArgs),
    Tree(tree::TreeArgs),
    Gc(gc::GcArgs),
    Image(image::ImageArgs),
    Backup(backup::BackupArgs),
    Find(find::FindArgs),
    Adopt(adopt::AdoptArgs),
    Release(adopt::release::ReleaseArgs),
    #[command(hide = true)]
    Bounded(bounded::BoundedArgs),
}

/// Runs the program. Bad arguments are reported by clap, which exits with 2.
pub(crate) fn run() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = forbid_core_dumps() {
        eprintln!("cinderblock: a crash could write keys into a core dump: {error}");
        return ExitCode::FAILURE;
    }
    match cli.command.filter(|_| !cli.version) {
        Some(Command::Serve(args)) => serve::run(args),
        Some(Command::Call(args)) => call::run(args),
        Some(Command::Tree(args)) => tree::run(&args),
        Some(Command::Gc(args)) => gc::run(&args),
        Some(Command::Backup(args)) => backup::run(&args),
        Some(Command::Image(args)) => image::run(&args),
        Some(Command::Find(args)) => find::run(&args),
        Some(Command::Adopt(args)) => adopt::run(&args),
        Some(Command::Release(args)) => adopt::release::run(&args),
        Some(Command::Bounded(args)) => bounded::run(&args),
        // Without any argument clap prints the help instead.
        None => {
            version::print();
            ExitCode::SUCCESS
        }
    }
}

/// Writes a line to standard output. A reader that has gone, as `head` goes, wanted no more: the
/// exit code stays that of the work. Any other failure to write ends the process with 1.
fn print_line(text: impl Display) {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            eprintln!("cinderblock: cannot write to standard output: {error}");
            std::process::exit(1);
        }
        _ => {}
    }
}

/// Keys are in memory, and a core dump is a file: neither this process nor a program it starts
/// dumps core, and no other user may look into its memory.
fn forbid_core_dumps() -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    set_dumpable(false)
}
