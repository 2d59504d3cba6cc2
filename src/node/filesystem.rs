//! The filesystem on a device: what is there, making one, checking it, growing it.
//!
//! The rule above all: data is never formatted over. A filesystem is made only when the volume was created empty,
//! blkid answers that it knows nothing there, and the places where data or a superblock would begin read as zeros.
//! An answer that is not certain (blkid is at odds with itself, a read fails, a program runs out of time) is an error
//! and never "blank". mkfs runs without force, so it looks once more for itself.
//!
//! Crash point: a driver or node that dies inside mkfs leaves a device that is neither blank nor a filesystem. It is
//! refused from then on, and people decide.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::options;
use super::programs::{self, Finished, Program};

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
        [FsType::Ext4, FsType::Xfs].into_iter().find(|fs_type| fs_type.name() == name).ok_or_else(|| {
            Error::InvalidArgument(format!("the filesystem {name:?} is not supported: ask for ext4 or xfs"))
        })
    }
}

/// What mkfs gets when the StorageClass says nothing. No discards: a new image holds nothing to give back. ext4
/// keeps no blocks for root and initialises its tables when mounted.
fn default_mkfs_options(fs_type: FsType) -> &'static str {
    match fs_type {
        FsType::Ext4 => "-m 0 -E nodiscard,lazy_itable_init=1,lazy_journal_init=1",
        FsType::Xfs => "-K",
    }
}

/// How to make a filesystem where there is none.
#[derive(Debug)]
pub(super) struct Format<'a> {
    /// The filesystem asked for; `None` takes what is there, or ext4 on an empty volume.
    pub(super) fs_type: Option<FsType>,
    /// mkfs options as the StorageClass gives them; `None` for the driver's.
    pub(super) mkfs_options: Option<&'a str>,
    /// Whether the volume was created empty: only then may it be formatted.
    pub(super) created_empty: bool,
    /// Whether the device is attached for reading alone.
    pub(super) read_only: bool,
}

/// Finds the filesystem of `device`, and makes one when every condition for it holds. `FailedPrecondition` when
/// another filesystem or other data is there, or when there is nothing and formatting is not allowed.
pub(super) fn find_or_make(device: &Path, format: &Format<'_>) -> Result<FsType> {
    let refuse = |why: String| Err(Error::FailedPrecondition(format!("{}: {why}", device.display())));
    match probe(device)? {
        Contents::Known(found) => match (found.parse(), format.fs_type) {
            (Ok(found), Some(wanted)) if found != wanted => refuse(format!(
                "the volume holds {found} and {wanted} was asked for: set csi.storage.k8s.io/fstype to {found}"
            )),
            (Ok(found), _) => Ok(found),
            (Err(_), _) => {
                refuse(format!("the volume holds {found}, which is no filesystem the driver mounts"))
            }
        },
        Contents::Nothing => {
            require_blank(device)?;
            if !format.created_empty {
                return refuse(
                    "it is blank, and a volume that was not created empty is never formatted".to_owned(),
                );
            }
            if format.read_only {
                return refuse("it is blank and attached for reading alone: write to it first".to_owned());
            }
            // When volumes come to remember in Ceph that they were formatted, that mark is one more condition here.
            let fs_type = format.fs_type.unwrap_or(FsType::Ext4);
            make(device, fs_type, format.mkfs_options)?;
            Ok(fs_type)
        }
    }
}

/// Checks mkfs options without a device, so that a bad request is refused before anything is attached.
pub(super) fn check_mkfs_options(fs_type: Option<FsType>, mkfs_options: Option<&str>) -> Result<()> {
    options::mkfs_arguments(fs_type.unwrap_or(FsType::Ext4), mkfs_options.unwrap_or_default()).map(drop)
}

/// What blkid says is on a device.
#[derive(Debug, PartialEq, Eq)]
enum Contents {
    /// A filesystem, partition table, LUKS header or the like, by blkid's name for it.
    Known(String),
    /// blkid found nothing it knows, or could not even open the device; it does not say which.
    Nothing,
}

fn probe(device: &Path) -> Result<Contents> {
    let arguments: [&OsStr; 5] =
        ["--probe".as_ref(), "--output".as_ref(), "export".as_ref(), "--".as_ref(), device.as_ref()];
    interpret(&programs::run(Program::Blkid, &arguments)?)
}

/// Reads blkid's answer: 0 with a name, 2 without a word, 8 when two signatures contradict each other.
fn interpret(finished: &Finished) -> Result<Contents> {
    let value =
        |key: &str| finished.output.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let unknown = |why: &str| {
        let answer = programs::describe(Program::Blkid, finished);
        Error::FailedPrecondition(format!(
            "what is on the device is not certain, so it is left alone: {why} ({answer})"
        ))
    };
    match finished.code {
        Some(0) => value("TYPE")
            .or_else(|| value("PTTYPE"))
            .map(|name| Contents::Known(name.to_owned()))
            .ok_or_else(|| unknown("something was found that has no name")),
        Some(2) if finished.output.is_empty() => Ok(Contents::Nothing),
        Some(8) => Err(unknown("signatures of several kinds were found")),
        _ => Err(unknown("it could not be examined")),
    }
}

const MIB: u64 = 1 << 20;

/// Where data, first or second superblocks, or labels would begin, as offset and length in bytes: the first MiB, the
/// backups of ext4 with blocks of 1 and 4 KiB, the mirrors of btrfs, and the last MiB (md, ZFS, GPT).
fn telling_places(size: u64) -> Vec<(u64, u64)> {
    [
        (0, MIB),
        (8 * MIB, MIB),
        (64 * MIB, MIB),
        (128 * MIB, MIB),
        (256 << 30, MIB),
        (size.saturating_sub(MIB), MIB),
    ]
    .into_iter()
    .filter(|(offset, _)| *offset < size)
    .map(|(offset, length)| (offset, length.min(size - offset)))
    .collect()
}

/// Checks that the telling places of `device` read as zeros, while nobody else holds the device. `FailedPrecondition`
/// when they do not, `Unavailable` when that cannot be told.
fn require_blank(device: &Path) -> Result<()> {
    let unreadable = |error: std::io::Error| {
        Error::Unavailable(format!(
            "cannot tell whether {} is blank, so it is left alone: {error}",
            device.display()
        ))
    };
    let mut file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_EXCL)
        .open(device)
        .map_err(unreadable)?;
    let size = file.seek(SeekFrom::End(0)).map_err(unreadable)?;
    let mut buffer = vec![0; 1 << 20];
    for (offset, length) in telling_places(size) {
        // The length is at most the buffer's, so it fits.
        let buffer = &mut buffer[..usize::try_from(length).unwrap_or(usize::MAX)];
        file.read_exact_at(buffer, offset).map_err(unreadable)?;
        if buffer.iter().any(|&byte| byte != 0) {
            return Err(Error::FailedPrecondition(format!(
                "{} holds data near byte {offset} but no known filesystem, so it is not formatted. If an interrupted \
                 mkfs left it, create the volume anew",
                device.display()
            )));
        }
    }
    Ok(())
}

fn make(device: &Path, fs_type: FsType, mkfs_options: Option<&str>) -> Result<()> {
    let program = match fs_type {
        FsType::Ext4 => Program::MkfsExt4,
        FsType::Xfs => Program::MkfsXfs,
    };
    let options = options::mkfs_arguments(fs_type, mkfs_options.unwrap_or(default_mkfs_options(fs_type)))?;
    let mut arguments: Vec<OsString> = vec!["-q".into()];
    arguments.extend(options.into_iter().map(OsString::from));
    arguments.extend(["--".into(), device.into()]);
    let arguments: Vec<&OsStr> = arguments.iter().map(OsString::as_os_str).collect();
    programs::succeed(program, &arguments).map(drop)
}

/// Brings an unmounted filesystem into order before it is mounted. ext4 has its safe repairs made (`e2fsck -p`); what
/// needs a decision is `FailedPrecondition`. XFS replays its log when mounted, and repairing it before that could
/// lose what the log holds.
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

/// Whether this process may grow a mounted filesystem of the type: ext4 wants `CAP_SYS_RESOURCE`, which some
/// sandboxes take away from root.
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

/// Grows an unmounted ext4 to its device, which first takes a full check. For nodes that may not grow it mounted.
pub(super) fn grow_unmounted_ext4(device: &Path, device_size: u64) -> Result<()> {
    let header = programs::succeed(Program::Dumpe2fs, &["-h".as_ref(), device.as_ref()])?;
    let size = ext4_size(&header).ok_or_else(|| {
        Error::Internal(format!("dumpe2fs did not tell the size of the filesystem of {}", device.display()))
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
    let number =
        |key: &str| header.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok());
    number("Block count:")?.checked_mul(number("Block size:")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: Option<i32>, output: &str) -> Finished {
        Finished { code, output: output.to_owned() }
    }

    #[test]
    fn blkid_names_what_it_found() {
        let known = |name: &str| Contents::Known(name.to_owned());
        let ext4 = answer(Some(0), "DEVNAME=/dev/loop1\nUUID=a-b\nTYPE=ext4\nUSAGE=filesystem");
        assert_eq!(interpret(&ext4).unwrap(), known("ext4"));
        let partitions = answer(Some(0), "DEVNAME=/dev/loop1\nPTUUID=1\nPTTYPE=gpt");
        assert_eq!(interpret(&partitions).unwrap(), known("gpt"));
    }

    #[test]
    fn only_a_silent_exit_with_2_means_nothing_found() {
        assert_eq!(interpret(&answer(Some(2), "")).unwrap(), Contents::Nothing);
        let uncertain = [
            answer(Some(2), "error: /dev/loop1: No such file or directory"),
            answer(Some(8), ""),
            answer(Some(4), ""),
            answer(Some(0), "DEVNAME=/dev/loop1"),
            answer(None, ""),
        ];
        for finished in uncertain {
            assert!(matches!(interpret(&finished), Err(Error::FailedPrecondition(_))), "{finished:?}");
        }
    }

    #[test]
    fn a_device_that_cannot_be_opened_is_not_blank() {
        let missing = Path::new("/dev/no such device");
        let format = Format { fs_type: None, mkfs_options: None, created_empty: true, read_only: false };
        assert!(matches!(find_or_make(missing, &format), Err(Error::Unavailable(_))));
    }

    #[test]
    fn a_byte_in_any_telling_place_is_data() {
        let folder = tempfile::tempdir().unwrap();
        let size = 200 * MIB;
        for offset in [0, MIB - 1, 64 * MIB + 65_536, 128 * MIB + 4096, size - 1] {
            let path = folder.path().join(offset.to_string());
            let file = std::fs::File::create(&path).unwrap();
            file.set_len(size).unwrap();
            require_blank(&path).unwrap();
            file.write_all_at(&[1], offset).unwrap();
            assert!(matches!(require_blank(&path), Err(Error::FailedPrecondition(_))), "byte {offset}");
        }
    }

    #[test]
    fn telling_places_stay_inside_the_device() {
        for size in [0, 1, MIB, 9 * MIB, 64 * MIB + 1, 300 << 30] {
            for (offset, length) in telling_places(size) {
                assert!(length > 0 && length <= MIB && offset + length <= size, "{size}: {offset} {length}");
            }
        }
        assert_eq!(telling_places(300 << 30).len(), 6);
    }

    #[test]
    fn the_size_of_an_ext4_is_read() {
        let header = "Inode count:              65536\nBlock count:              196608\nBlock size:               4096";
        assert_eq!(ext4_size(header), Some(768 * MIB));
        assert_eq!(ext4_size("Block count: 5"), None);
    }

    #[test]
    fn a_volume_that_was_not_created_empty_is_never_formatted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        std::fs::File::create(&path).unwrap().set_len(64 * MIB).unwrap();
        let format = Format { fs_type: None, mkfs_options: None, created_empty: false, read_only: false };
        assert!(matches!(find_or_make(&path, &format), Err(Error::FailedPrecondition(_))));
        assert_eq!(probe(&path).unwrap(), Contents::Nothing);
        let format = Format { created_empty: true, ..format };
        assert_eq!(find_or_make(&path, &format).unwrap(), FsType::Ext4);
        let other = Format { fs_type: Some(FsType::Xfs), ..format };
        assert!(matches!(find_or_make(&path, &other), Err(Error::FailedPrecondition(_))));
    }
}
