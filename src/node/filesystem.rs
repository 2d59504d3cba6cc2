//! A filesystem that is there: bringing it into order, and growing it. `format` is about making
//! one.

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::programs::{self, Program};

/// A filesystem the driver can make, check and grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FsType {
    /// ext4, the default.
    Ext4,
    /// XFS.
    Xfs,
}

impl FsType {
    /// The kernel's name of it.
    pub fn name(self) -> &'static str {
        match self {
            FsType::Ext4 => "ext4",
            FsType::Xfs => "xfs",
        }
    }
}

impl fmt::Display for FsType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FsType {
    type Err = Error;

    /// `InvalidArgument` for a filesystem the driver does not make.
    fn from_str(name: &str) -> Result<Self> {
        [FsType::Ext4, FsType::Xfs].into_iter().find(|fs_type| fs_type.name() == name).ok_or_else(
            || {
                Error::InvalidArgument(format!(
                    "the filesystem {name:?} is not supported: ask for ext4 or xfs"
                ))
            },
        )
    }
}

/// Brings an unmounted filesystem into order before it is mounted. ext4 has its safe repairs made
/// (`e2fsck -p`); what needs a decision is `FailedPrecondition`. XFS replays its log when mounted,
/// and repairing it before that could lose what the log holds.
pub(super) fn check(device: &Path, fs_type: FsType) -> Result<()> {
    match fs_type {
        FsType::Ext4 => e2fsck(device, &["-p"]),
        FsType::Xfs => Ok(()),
    }
}

fn e2fsck(device: &Path, options: &[&str]) -> Result<()> {
    let mut arguments: Vec<&OsStr> = options.iter().map(AsRef::as_ref).collect();
    arguments.push(device.as_ref());
    let finished = programs::run(Program::E2fsck, &arguments)?;
    match finished.code {
        Some(0 | 1) => Ok(()),
        Some(code) if code & 4 != 0 => Err(Error::FailedPrecondition(format!(
            "the filesystem of {} needs a repair that may lose data, so people have to decide: take a snapshot, then \
             run e2fsck on the image ({})",
            device.display(),
            programs::describe(Program::E2fsck, &finished)
        ))),
        _ => Err(Error::Unavailable(programs::describe(Program::E2fsck, &finished))),
    }
}

const MIB: u64 = 1 << 20;

/// Whether this process may grow a mounted filesystem of the type: ext4 wants `CAP_SYS_RESOURCE`,
/// which some sandboxes take away from root.
pub(super) fn can_grow_mounted(fs_type: FsType) -> Result<bool> {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let status = procfs::process::Process::myself()
        .and_then(|process| process.status())
        .map_err(|error| Error::Internal(format!("cannot read the own capabilities: {error}")))?;
    Ok(fs_type != FsType::Ext4 || status.capeff & CAP_SYS_RESOURCE != 0)
}

/// Grows a mounted filesystem to its device. Nothing happens when it fills it already.
pub(super) fn grow_mounted(device: &Path, fs_type: FsType, mount_point: &Path) -> Result<()> {
    let (program, arguments): (_, &[&OsStr]) = match fs_type {
        FsType::Ext4 => (Program::Resize2fs, &[device.as_ref()]),
        FsType::Xfs => (Program::XfsGrowfs, &["-d".as_ref(), mount_point.as_ref()]),
    };
    let finished = programs::run(program, arguments)?;
    let words = programs::describe(program, &finished);
    match finished.code {
        Some(0) => Ok(()),
        _ if words.contains("Permission denied") => Err(Error::FailedPrecondition(format!(
            "growing a mounted {fs_type} takes CAP_SYS_RESOURCE, which the node plugin does not have: give it that \
             capability, or end the pods that use the volume, and it grows when it is staged again ({words})"
        ))),
        _ => Err(Error::Internal(words)),
    }
}

/// Grows an unmounted ext4 to its device, which first takes a full check. For nodes that may not
/// grow it mounted.
pub(super) fn grow_unmounted_ext4(device: &Path, device_size: u64) -> Result<()> {
    let header = programs::succeed(Program::Dumpe2fs, &["-h".as_ref(), device.as_ref()])?;
    let size = ext4_size(&header).ok_or_else(|| {
        Error::Internal(format!(
            "dumpe2fs did not tell the size of the filesystem of {}",
            device.display()
        ))
    })?;
    // A tail too short for one more group of blocks stays unused.
    if device_size.saturating_sub(size) < MIB {
        return Ok(());
    }
    e2fsck(device, &["-f", "-p"])?;
    programs::succeed(Program::Resize2fs, &[device.as_ref()]).map(drop)
}

/// The size in bytes of an ext4 from dumpe2fs' header.
fn ext4_size(header: &str) -> Option<u64> {
    let number = |key: &str| {
        header.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok())
    };
    number("Block count:")?.checked_mul(number("Block size:")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_an_ext4_is_read() {
        let header = "Inode count:              65536\nBlock count:              196608\nBlock size:               4096";
        assert_eq!(ext4_size(header), Some(768 * MIB));
        assert_eq!(ext4_size("Block count: 5"), None);
    }
}
