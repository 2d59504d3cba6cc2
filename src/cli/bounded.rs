//! `cinderblock bounded`: this program's own way to run another one on what a stranger made.

use std::ffi::OsString;
use std::process::ExitCode;

use cinderblock::transfer::bounded::{Limits, become_program};
use clap::Args;

/// Become another program, with limits, without network, and without other files than standard
/// input and output
#[derive(Debug, Args)]
pub(crate) struct BoundedArgs {
    /// Bytes of address space
    memory: u64,

    /// Seconds of a processor
    cpu: u64,

    /// Bytes that a file may have that it writes
    file_size: u64,

    /// The program, by its path
    program: OsString,

    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Returns only when that was not possible.
pub(crate) fn run(args: &BoundedArgs) -> ExitCode {
    let limits = Limits { memory: args.memory, cpu: args.cpu, file_size: args.file_size };
    let error = become_program(limits, &args.program, &args.arguments);
    eprintln!("cinderblock bounded: cannot run {}: {error}", args.program.display());
    ExitCode::FAILURE
}
