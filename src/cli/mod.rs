//! The command line: arguments, dispatch and exit codes. One file per subcommand, no logic of the
//! driver.
#![allow(clippy::print_stderr, clippy::print_stdout, reason = "a command line talks to its user")]

mod adopt;
mod backup;
mod bounded;
mod call;
mod check;
mod find;
mod flatten;
mod gc;
mod image;
mod install;
mod kubernetes;
mod list;
mod orphans;
mod pool;
mod serve;
mod show;
mod size;
mod support_bundle;
mod table;
mod trash;
mod tree;
mod version;
mod why;

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use clap::{ArgAction, Parser, Subcommand, ValueEnum};
use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, setrlimit};
use serde::Serialize;

/// What was asked for could not be done.
const EXIT_FAILURE: u8 = 1;
/// The arguments or the configuration are wrong, as clap has it.
const EXIT_USAGE: u8 = 2;
/// There is no such thing, or it was refused and nothing was changed, or something was found that
/// wants to be looked after.
const EXIT_REFUSED: u8 = 3;

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
    Check(check::CheckArgs),
    List(list::ListArgs),
    Show(show::ShowArgs),
    Why(why::WhyArgs),
    Tree(tree::TreeArgs),
    Trash(trash::TrashArgs),
    Flatten(flatten::FlattenArgs),
    Gc(gc::GcArgs),
    Orphans(orphans::OrphansArgs),
    Image(image::ImageArgs),
    Backup(backup::BackupArgs),
    Find(find::FindArgs),
    SupportBundle(support_bundle::SupportBundleArgs),
    Completions(install::CompletionsArgs),
    Man(install::ManArgs),
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
        Some(Command::Check(args)) => check::run(&args),
        Some(Command::List(args)) => list::run(&args),
        Some(Command::Show(args)) => show::run(&args),
        Some(Command::Why(args)) => why::run(&args),
        Some(Command::Tree(args)) => tree::run(&args),
        Some(Command::Trash(args)) => trash::run(&args),
        Some(Command::Flatten(args)) => flatten::run(&args),
        Some(Command::Gc(args)) => gc::run(&args),
        Some(Command::Orphans(args)) => orphans::run(&args),
        Some(Command::Backup(args)) => backup::run(&args),
        Some(Command::Image(args)) => image::run(&args),
        Some(Command::Find(args)) => find::run(&args),
        Some(Command::SupportBundle(args)) => support_bundle::run(&args),
        Some(Command::Completions(args)) => install::completions(&args),
        Some(Command::Man(args)) => install::man(&args),
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

/// How what was found is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Tables for people
    Text,
    /// JSON for programs
    Json,
}

/// Writes a value as JSON.
fn print_json(value: &impl Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(json) => print_line(json),
        Err(error) => eprintln!("cinderblock: this cannot be written as JSON: {error}"),
    }
}

/// Keys are in memory, and a core dump is a file: neither this process nor a program it starts
/// dumps core, and no other user may look into its memory.
fn forbid_core_dumps() -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    set_dumpable(false)
}
