//! The last step before a program that reads what a stranger made: this process becomes it, within
//! bounds that it cannot leave.
//!
//! - Its memory, time and files have limits, and it dumps no core.
//! - It can make no socket of any kind (a filter of system calls).
//! - It can open no file but programs, libraries, and what it has as standard input and output,
//!   where the kernel has Landlock (5.13 and newer).
//! - It dies with the process that started it.
//!
//! The limits are set here and not by the parent, since nothing may run between a fork and an exec
//! in a process with librados' threads. `cinderblock bounded` is a new process without any.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use landlock::{
    ABI, Access, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
};
use nix::sys::prctl::{set_no_new_privs, set_pdeathsig};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// What the program may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of address space.
    pub memory: u64,
    /// Seconds of a processor.
    pub cpu: u64,
    /// Bytes that a file may have that it writes.
    pub file_size: u64,
}

/// The bounds as arguments, for [`Limits::parse`] on the other side.
impl Limits {
    pub(super) fn arguments(self) -> [OsString; 4] {
        [
            "bounded".into(),
            self.memory.to_string().into(),
            self.cpu.to_string().into(),
            self.file_size.to_string().into(),
        ]
    }
}

/// What every program may read: programs, libraries, and a device that holds nothing.
const READABLE: [&str; 7] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.cache", "/dev/urandom"];

/// Bytes of the stack of a thread.
const STACK: u64 = 1 << 20;

/// System calls that talk to others, or get around a filter.
const FORBIDDEN: [nix::libc::c_long; 8] = [
    nix::libc::SYS_socket,
    nix::libc::SYS_socketpair,
    nix::libc::SYS_connect,
    nix::libc::SYS_bind,
    nix::libc::SYS_sendto,
    nix::libc::SYS_ptrace,
    nix::libc::SYS_process_vm_readv,
    nix::libc::SYS_io_uring_setup,
];

/// Becomes `program`. Returns why that was not possible.
pub fn become_program(limits: Limits, program: &OsStr, arguments: &[OsString]) -> io::Error {
    match confine(limits) {
        // Each thread would reserve memory of its own otherwise.
        Ok(()) => Command::new(program)
            .args(arguments)
            .env_clear()
            .envs([("LC_ALL", "C"), ("MALLOC_ARENA_MAX", "1")])
            .exec(),
        Err(error) => error,
    }
}

fn confine(limits: Limits) -> io::Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    let set = |resource, most| setrlimit(resource, most, most);
    set(Resource::RLIMIT_CORE, 0)?;
    set(Resource::RLIMIT_NOFILE, 256)?;
    set(Resource::RLIMIT_STACK, STACK)?;
    set(Resource::RLIMIT_AS, limits.memory)?;
    set(Resource::RLIMIT_CPU, limits.cpu)?;
    set(Resource::RLIMIT_FSIZE, limits.file_size)?;
    set_no_new_privs()?;
    forbid_other_files().map_err(io::Error::other)?;
    forbid_network().map_err(io::Error::other)
}

/// What the kernel does not know of this is left out.
fn forbid_other_files() -> Result<(), landlock::RulesetError> {
    let all = AccessFs::from_all(ABI::V3);
    let mut rules = Ruleset::default().handle_access(all)?.create()?;
    for path in READABLE.iter().filter(|path| Path::new(path).exists()) {
        let Ok(opened) = PathFd::new(path) else { continue };
        let of_files = AccessFs::ReadFile | AccessFs::Execute;
        let access = if Path::new(path).is_dir() {
            of_files | AccessFs::ReadDir
        } else {
            AccessFs::ReadFile.into()
        };
        rules = rules.add_rule(PathBeneath::new(opened, access))?;
    }
    // A pipe needs no rule: it is open, and cannot be opened by a path.
    let is_file = |path: &str| !Path::new(path).starts_with("/proc") || Path::new(path).is_file();
    let files = [("/proc/self/fd/0", false), ("/proc/self/fd/1", true), ("/dev/null", true)];
    for (path, writes) in files.into_iter().filter(|(path, _)| is_file(path)) {
        let Ok(opened) = PathFd::new(path) else { continue };
        let access = if writes {
            AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate
        } else {
            AccessFs::ReadFile.into()
        };
        rules = rules.add_rule(PathBeneath::new(opened, access))?;
    }
    rules.restrict_self().map(drop)
}

fn forbid_network() -> Result<(), seccompiler::Error> {
    let rules = FORBIDDEN.into_iter().map(|call| (call, Vec::new())).collect();
    let refuse = SeccompAction::Errno(nix::libc::EPERM.unsigned_abs());
    let architecture = std::env::consts::ARCH.try_into().map_err(seccompiler::Error::Backend)?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, architecture)
        .map_err(seccompiler::Error::Backend)?;
    let program: BpfProgram = filter.try_into().map_err(seccompiler::Error::Backend)?;
    seccompiler::apply_filter(&program)
}
