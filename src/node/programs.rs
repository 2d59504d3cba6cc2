//! The external programs the node uses, and the one way to run them.
//!
//! Promises:
//!
//! - A program is taken from a fixed list of directories; `PATH` has no say.
//! - Arguments are passed as they are. No shell, an environment of `LC_ALL=C` alone, and an empty
//!   standard input unless the caller gives one ([`run_with`]).
//! - Every run has a deadline, but for those that repair or move what is on a device: cut off, they
//!   would leave it damaged. A program that passes its deadline is killed. One that cannot be
//!   killed (it waits in the kernel for a device that does not answer) is left behind, and the
//!   error names its process.
//!
//! No argument may hold a secret: arguments are readable by everyone on the node.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::error::{Error, Result};
use super::kill;

/// Where programs are looked for, in this order.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// How much of a program's output is kept.
const OUTPUT_LIMIT: u64 = 64 * 1024;

/// How long a killed program may take to go.
const KILL_GRACE: Duration = Duration::from_secs(2);

/// A program the node may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    Blkid,
    Blockdev,
    Dd,
    Dumpe2fs,
    E2fsck,
    Losetup,
    MkfsExt4,
    MkfsXfs,
    Modprobe,
    Mount,
    QemuStorageDaemon,
    RbdNbd,
    Resize2fs,
    /// resize2fs on what is not mounted.
    Resize2fsUnmounted,
    Umount,
    XfsGrowfs,
}

impl Program {
    /// What every node needs, whatever its mounter.
    const ALWAYS: [Program; 10] = [
        Program::Blkid,
        Program::Blockdev,
        Program::Dumpe2fs,
        Program::E2fsck,
        Program::MkfsExt4,
        Program::MkfsXfs,
        Program::Mount,
        Program::Resize2fs,
        Program::Umount,
        Program::XfsGrowfs,
    ];

    /// File name, the Debian package that brings it, and the seconds one run may take if it may be
    /// cut off.
    const fn entry(self) -> (&'static str, &'static str, Option<u64>) {
        match self {
            Program::Blkid => ("blkid", "util-linux", Some(60)),
            Program::Blockdev => ("blockdev", "util-linux", Some(30)),
            // It writes to files of krbd's, which wait for the cluster.
            Program::Dd => ("dd", "coreutils", Some(60)),
            Program::Dumpe2fs => ("dumpe2fs", "e2fsprogs", Some(60)),
            Program::E2fsck => ("e2fsck", "e2fsprogs", None),
            Program::Losetup => ("losetup", "util-linux", Some(30)),
            Program::MkfsExt4 => ("mkfs.ext4", "e2fsprogs", Some(600)),
            Program::MkfsXfs => ("mkfs.xfs", "xfsprogs", Some(600)),
            Program::Modprobe => ("modprobe", "kmod", Some(60)),
            // Mounting replays the journal.
            Program::Mount => ("mount", "util-linux", Some(300)),
            Program::QemuStorageDaemon => (
                "qemu-storage-daemon",
                "qemu-block-extra and qemu-utils (on Debian 12 qemu-system-common)",
                Some(30),
            ),
            Program::RbdNbd => ("rbd-nbd", "rbd-nbd", Some(60)),
            Program::Resize2fs => ("resize2fs", "e2fsprogs", Some(600)),
            Program::Resize2fsUnmounted => ("resize2fs", "e2fsprogs", None),
            // Unmounting writes back what is dirty.
            Program::Umount => ("umount", "util-linux", Some(300)),
            Program::XfsGrowfs => ("xfs_growfs", "xfsprogs", Some(600)),
        }
    }

    /// Where it is. `FailedPrecondition` when it is not installed.
    pub(super) fn path(self) -> Result<PathBuf> {
        let (name, package, _) = self.entry();
        DIRECTORIES
            .iter()
            .map(|directory| Path::new(directory).join(name))
            .find(|path| path.is_file())
            .ok_or_else(|| {
                Error::FailedPrecondition(format!(
                    "the program {name} is in none of {}: install {package} on the node",
                    DIRECTORIES.join(", ")
                ))
            })
    }
}

/// What a program left behind when it ended by itself.
#[derive(Debug)]
pub(super) struct Finished {
    /// The exit code; `None` when a signal ended it.
    pub(super) code: Option<i32>,
    /// Standard output and standard error as they came, at most 64 KiB, lossily decoded.
    pub(super) output: String,
}

/// Checks that the programs every node needs are installed. `FailedPrecondition` naming the first
/// that is not.
pub(super) fn check() -> Result<()> {
    Program::ALWAYS.into_iter().try_for_each(|program| program.path().map(drop))
}

/// Runs `program` and returns how it ended, whatever its exit code. `Unavailable` when it passed
/// its deadline, if it has one.
pub(super) fn run(program: Program, arguments: &[&OsStr]) -> Result<Finished> {
    run_with(program, arguments, Stdio::null(), OsStr::new(program.entry().0))
}

/// The same with a standard input. The process calls itself `title`, by which it is found in the
/// process table.
pub(super) fn run_with(
    program: Program,
    arguments: &[&OsStr],
    input: Stdio,
    title: &OsStr,
) -> Result<Finished> {
    let (name, _, seconds) = program.entry();
    let path = program.path()?;
    let failed =
        |error: &dyn std::fmt::Display| Error::Internal(format!("cannot run {name}: {error}"));

    // A file rather than pipes: a grandchild that keeps its standard output open cannot hold us up.
    let mut output =
        File::from(memfd_create("output", MFdFlags::MFD_CLOEXEC).map_err(|error| failed(&error))?);
    let mut child = Command::new(path)
        .arg0(title)
        .args(arguments)
        .env_clear()
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(input)
        .stdout(output.try_clone().map_err(|error| failed(&error))?)
        .stderr(output.try_clone().map_err(|error| failed(&error))?)
        .spawn()
        .map_err(|error| failed(&error))?;
    kill::step(&format!("{name} begun"));

    let status = match seconds {
        None => child.wait().map_err(|error| failed(&error))?,
        Some(seconds) => {
            let patience = Duration::from_secs(seconds);
            match wait(&mut child, patience).map_err(|error| failed(&error))? {
                Some(status) => status,
                None => return Err(give_up(name, seconds, child)),
            }
        }
    };
    kill::step(&format!("{name} ended"));
    let mut bytes = Vec::new();
    output.rewind().map_err(|error| failed(&error))?;
    output.take(OUTPUT_LIMIT).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
    Ok(Finished { code: status.code(), output: String::from_utf8_lossy(&bytes).trim().to_owned() })
}

/// Runs `program` and returns its output. `Internal`, with the output, when the exit code is not 0.
pub(super) fn succeed(program: Program, arguments: &[&OsStr]) -> Result<String> {
    let finished = run(program, arguments)?;
    if finished.code == Some(0) {
        Ok(finished.output)
    } else {
        Err(Error::Internal(describe(program, &finished)))
    }
}

/// One line for an error: the program, how it ended, what it said. How it is used is left out.
pub(super) fn describe(program: Program, finished: &Finished) -> String {
    let end =
        finished.code.map_or_else(|| "was killed".to_owned(), |code| format!("ended with {code}"));
    let is_usage = |line: &str| line.trim_start().to_ascii_lowercase().starts_with("usage:");
    let lines = finished.output.lines().take_while(|line| !is_usage(line));
    let output = lines.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ");
    format!("{} {end}: {output}", program.entry().0)
}

/// Waits for `child` to end; `None` when it did not within `patience`.
fn wait(child: &mut Child, patience: Duration) -> std::io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Kills a program that passed its deadline, and says how that went.
fn give_up(name: &str, seconds: u64, mut child: Child) -> Error {
    let killed = child.kill().and_then(|()| wait(&mut child, KILL_GRACE));
    if matches!(killed, Ok(Some(_))) {
        return Error::Unavailable(format!("{name} did not end within {seconds} s and was killed"));
    }
    let process = child.id();
    // It ends when its device answers, or never; a thread has to collect it then.
    std::thread::spawn(move || child.wait());
    Error::Unavailable(format!(
        "{name} did not end within {seconds} s and cannot be killed: process {process} waits for a device that does \
         not answer"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_code_and_output_are_reported() {
        let finished = run(Program::Blockdev, &["--getsz".as_ref(), "/nowhere".as_ref()]).unwrap();
        assert_eq!(finished.code, Some(1));
        assert!(finished.output.contains("/nowhere"), "{}", finished.output);
        let error =
            succeed(Program::Blockdev, &["--getsz".as_ref(), "/nowhere".as_ref()]).unwrap_err();
        assert!(
            matches!(&error, Error::Internal(text) if text.starts_with("blockdev ended with 1: ")),
            "{error}"
        );
    }

    #[test]
    fn how_a_program_is_used_is_not_told() {
        let mkfs = |output: &str| {
            let finished = Finished { code: Some(1), output: output.to_owned() };
            describe(Program::MkfsXfs, &finished)
        };
        let output =
            "invalid value 3 for -b option\nUsage: mkfs.xfs\n/* blocksize */ [-b size=num]";
        assert_eq!(mkfs(output), "mkfs.xfs ended with 1: invalid value 3 for -b option");
        assert_eq!(mkfs("one\n  two"), "mkfs.xfs ended with 1: one two");
    }

    #[test]
    fn a_program_past_its_deadline_is_killed() {
        let child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let process = child.id();
        let mut child = child;
        assert!(wait(&mut child, Duration::from_millis(20)).unwrap().is_none());
        let error = give_up("sleep", 0, child);
        assert!(
            matches!(&error, Error::Unavailable(text) if text.contains("was killed")),
            "{error}"
        );
        assert!(!Path::new(&format!("/proc/{process}")).exists());
    }
}
