//! The command line: arguments, dispatch and exit codes. One file per subcommand, no logic of the driver.
#![allow(clippy::print_stderr, clippy::print_stdout, reason = "a command line talks to its user")]

mod call;
mod find;
mod gc;
mod pool;
mod serve;
mod size;
mod tree;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A CSI driver for Ceph RBD: bounded clone depth, silent parents, nothing leaked.
#[derive(Debug, Parser)]
#[command(name = "cinderblock", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one value in the life of the process")]
enum Command {
    Serve(serve::ServeArgs),
    Call(call::CallArgs),
    Tree(tree::TreeArgs),
    Gc(gc::GcArgs),
    Find(find::FindArgs),
}

/// Runs the program. Bad arguments are reported by clap, which exits with 2.
pub(crate) fn run() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::Call(args) => call::run(args),
        Command::Tree(args) => tree::run(&args),
        Command::Gc(args) => gc::run(&args),
        Command::Find(args) => find::run(&args),
    }
}
