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
/// and repairing it before that could lose what the log holds. Returns whether nothing else uses
/// the filesystem: an ext4 that is still mounted in another mount namespace of this node is mounted
/// once more as it is.
pub(super) fn check(device: &Path, fs_type: FsType) -> Result<bool> {
    match fs_type {
        FsType::Ext4 => e2fsck(device, &["-p"]),
        FsType::Xfs => Ok(true),
    }
}

/// Whether it could check: not a filesystem in use.
fn e2fsck(device: &Path, options: &[&str]) -> Result<bool> {
    let mut arguments: Vec<&OsStr> = options.iter().map(AsRef::as_ref).collect();
    arguments.push(device.as_ref());
    let finished = programs::run(Program::E2fsck, &arguments)?;
    let says = |words: &str| finished.output.contains(words);
    match finished.code {
        Some(0 | 1) => Ok(true),
        Some(8) if says(" is in use.") || says(" is mounted.") => Ok(false),
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
/// `FailedPrecondition` when the filesystem cannot have that size.
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
        _ if words.contains("Input/output error") => Err(Error::Internal(words)),
        _ => Err(Error::FailedPrecondition(format!(
            "the {fs_type} at {} cannot grow to the size of its device; copy its files to a larger volume ({words})",
            mount_point.display()
        ))),
    }
}

/// Grows an unmounted ext4 to its device, which first takes a full check. For nodes that may not
/// grow it mounted. An ext4 that cannot grow, or not without moving what it holds, stays as it is,
/// which is logged: its files are whole.
pub(super) fn grow_unmounted_ext4(device: &Path, device_size: u64) -> Result<()> {
    let header = programs::succeed(Program::Dumpe2fs, &["-h".as_ref(), device.as_ref()])?;
    let ext4 = Ext4::read(&header).ok_or_else(|| {
        Error::Internal(format!(
            "dumpe2fs did not tell the size of the filesystem of {}",
            device.display()
        ))
    })?;
    // A tail too short for one more group of blocks stays unused.
    if device_size.saturating_sub(ext4.size()) < MIB {
        return Ok(());
    }
    let stays = |why: &str| {
        tracing::warn!(device = %device.display(), size = ext4.size(), device_size, why, "an ext4 stays smaller than its device");
        Ok(())
    };
    if !ext4.has_room_for(device_size) {
        return stays(
            "it has no room for the descriptors of so many groups of blocks: growing it takes CAP_SYS_RESOURCE and a mount",
        );
    }
    e2fsck(device, &["-f", "-p"])?;
    let finished = programs::run(Program::Resize2fsUnmounted, &[device.as_ref()])?;
    match finished.code {
        Some(0) => Ok(()),
        _ => stays(&programs::describe(Program::Resize2fsUnmounted, &finished)),
    }
}

/// The layout of an ext4, from dumpe2fs' header.
#[derive(Debug)]
struct Ext4 {
    blocks: u64,
    first_block: u64,
    block_size: u64,
    blocks_per_group: u64,
    descriptor_size: u64,
    /// Blocks set aside for more group descriptors.
    reserved: u64,
    /// Whether descriptors lie with the groups they are about.
    is_meta_bg: bool,
}

impl Ext4 {
    fn read(header: &str) -> Option<Ext4> {
        let value =
            |key: &str| header.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        let number = |key: &str| value(key)?.parse::<u64>().ok();
        let ext4 = Ext4 {
            blocks: number("Block count:")?,
            first_block: number("First block:")?,
            block_size: number("Block size:")?,
            blocks_per_group: number("Blocks per group:")?,
            descriptor_size: number("Group descriptor size:").unwrap_or(32),
            reserved: number("Reserved GDT blocks:").unwrap_or(0),
            is_meta_bg: value("Filesystem features:")?
                .split_whitespace()
                .any(|feature| feature == "meta_bg"),
        };
        ext4.blocks.checked_mul(ext4.block_size)?;
        (ext4.block_size > 0 && ext4.blocks_per_group > 0).then_some(ext4)
    }

    /// In bytes.
    fn size(&self) -> u64 {
        self.blocks * self.block_size
    }

    /// Whether it can have `size` bytes with what it holds left where it is. Without room for group
    /// descriptors resize2fs moves the tables of inodes, and may damage the filesystem.
    fn has_room_for(&self, size: u64) -> bool {
        let descriptor_blocks = |blocks: u64| {
            let groups = blocks.saturating_sub(self.first_block).div_ceil(self.blocks_per_group);
            (groups * self.descriptor_size).div_ceil(self.block_size)
        };
        let room = descriptor_blocks(self.blocks) + self.reserved;
        self.is_meta_bg || descriptor_blocks(size / self.block_size) <= room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_of_an_ext4_is_read() {
        let header = "Filesystem features:      has_journal ext_attr resize_inode 64bit\n\
             Block count:              196608\nFirst block:              0\n\
             Block size:               4096\nBlocks per group:         32768\n\
             Group descriptor size:    64\nReserved GDT blocks:      95";
        let ext4 = Ext4::read(header).unwrap();
        assert_eq!(ext4.size(), 768 * MIB);
        // 64 descriptors of groups of 128 MiB in each of 96 blocks.
        let most = 96 * 64 * 128 * MIB;
        assert!(ext4.has_room_for(most));
        assert!(!ext4.has_room_for(most + 128 * MIB));
        assert!(Ext4 { is_meta_bg: true, ..ext4 }.has_room_for(2 * most));
        let without = header.replace("Reserved GDT blocks:      95", "");
        assert!(Ext4::read(&without).unwrap().has_room_for(64 * 128 * MIB));
        assert!(!Ext4::read(&without).unwrap().has_room_for(65 * 128 * MIB));
        for broken in ["Block count: 5", &header.replace("4096", "0")] {
            assert!(Ext4::read(broken).is_none(), "{broken}");
        }
    }
}
