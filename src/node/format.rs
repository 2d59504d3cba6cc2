//! Making a filesystem where there is none. The rule above all: data is never formatted over.
//!
//! mkfs runs only when all of this holds, and every answer that is not certain (blkid is at odds
//! with itself, a read fails, a program runs out of time, Ceph does not say what the image is
//! marked with) is an error and never "blank":
//!
//! - The device node has the number of the volume's device, which is held open from the first look
//!   to the end so that the number stays this device's, and the mounter itself says that it shows
//!   this image.
//! - The volume was created empty: it has no source.
//! - The image's metadata do not say that it held a filesystem, or was handed out as a raw device
//!   ([`mark`](super::mark)).
//! - blkid knows nothing there, and the places where data or a superblock would begin read as
//!   zeros.
//! - The device opens with `O_EXCL`, as it does for mkfs once more: no other process has it so.
//! - blkid still knows nothing there after the image was marked, directly before mkfs starts.
//!   mkfs.ext4 without a terminal does not look for itself. What another node may write after that
//!   look is the business of [`notes`](super::notes).
//!
//! The new filesystem has a UUID of the driver's choice. The image is marked with it before, as an
//! intent, and after, as a fact, and only then is it mounted. From then on the mark speaks for the
//! device: a pod may write signatures of anything into its files, and blkid takes some of them for
//! contents of the device.
//!
//! Crash point: who dies inside mkfs leaves the intent, and perhaps beginnings. The last thing that
//! mkfs.xfs writes takes a flag from a superblock that no kernel mounts before; the last thing
//! mkfs.ext4 writes is the superblock, after its copies. So beginnings with the UUID of the intent
//! are known to be just that, and are made anew. What shows no such sign is left alone, whatever
//! the intent says.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use super::attach::Device;
use super::error::{Error, Result};
use super::filesystem::FsType;
use super::mark::{self, Mark, Marks};
use super::mount;
use super::options;
use super::programs::{self, Finished, Program};
use crate::metrics::metrics;

#[cfg(test)]
mod matrix;

/// Bytes of the smallest device on which mkfs gives an ext4 with blocks of 4 KiB a journal.
const SMALLEST_OF_4_KIB: u64 = 8 * MIB;

/// What mkfs gets when the StorageClass says nothing, for a device of `size` bytes. No discards: a
/// new image holds nothing to give back. ext4 keeps no blocks for root and initialises its tables
/// when mounted. Its blocks have 4 KiB: mkfs gives small devices blocks of 1 KiB, with which a
/// volume cannot grow to a TiB.
fn default_mkfs_options(fs_type: FsType, size: u64) -> &'static str {
    match fs_type {
        FsType::Ext4 if size < SMALLEST_OF_4_KIB => {
            "-m 0 -E nodiscard,lazy_itable_init=1,lazy_journal_init=1"
        }
        FsType::Ext4 => "-b 4096 -m 0 -E nodiscard,lazy_itable_init=1,lazy_journal_init=1",
        FsType::Xfs => "-K",
    }
}

/// How to make a filesystem where there is none.
pub(super) struct Format<'a> {
    /// The filesystem asked for; `None` takes what is there, or ext4 on an empty volume.
    pub(super) fs_type: Option<FsType>,
    /// mkfs options as the StorageClass gives them; `None` for the driver's.
    pub(super) mkfs_options: Option<&'a str>,
    /// Whether the volume was created empty: only then may it be formatted.
    pub(super) created_empty: bool,
    /// Whether the device is attached for reading alone.
    pub(super) read_only: bool,
    /// Asks the mounter whether the device shows the volume's image.
    pub(super) confirm: &'a dyn Fn() -> Result<()>,
    /// The image's mark.
    pub(super) marks: &'a Marks,
}

/// Finds the filesystem of `device`, and makes one when every condition for it holds. The image is
/// marked with it before this returns, unless it is attached for reading alone.
/// `FailedPrecondition` when another filesystem or other data is there, or when there is nothing
/// and formatting is not allowed; errors of [`Marks`] when the image's mark is not to be had.
pub(super) fn find_or_make(device: &Device, format: &Format<'_>) -> Result<FsType> {
    let held = hold(device)?;
    (format.confirm)()?;
    let path = device.path();
    let mark = format.marks.read()?;
    let contents = match &mark {
        Some(Mark::Filesystem(fs_type, uuid)) if holds(&path, *fs_type, uuid) => {
            Contents::Known { name: fs_type.name().to_owned(), uuid: uuid.clone() }
        }
        _ => probe(&path, None)?,
    };
    let outcome = match contents {
        Contents::Known { name, uuid } => found(device, &held, format, mark, &name, uuid),
        Contents::Nothing => make_on_nothing(device, format, mark),
    };
    outcome.map_err(|error| match error {
        Error::FailedPrecondition(why) => {
            Error::FailedPrecondition(format!("{}: {why}", path.display()))
        }
        other => other,
    })
}

/// Checks mkfs options without a device, so that a bad request is refused before anything is
/// attached.
pub(super) fn check_mkfs_options(
    fs_type: Option<FsType>,
    mkfs_options: Option<&str>,
) -> Result<()> {
    options::mkfs_arguments(fs_type.unwrap_or(FsType::Ext4), mkfs_options.unwrap_or_default())
        .map(drop)
}

fn refuse<T>(why: String) -> Result<T> {
    metrics().mkfs("refused");
    Err(Error::FailedPrecondition(why))
}

/// Opens the device and checks that it is the one. While it is open its number goes to no other.
fn hold(device: &Device) -> Result<File> {
    let path = device.path();
    let cannot = |error: std::io::Error| {
        Error::Unavailable(format!("cannot look at {}: {error}", path.display()))
    };
    let file = File::open(&path).map_err(cannot)?;
    let metadata = file.metadata().map_err(cannot)?;
    if !metadata.file_type().is_block_device() || metadata.rdev() != device.number {
        return refuse(format!(
            "{} is not the block device the volume was attached as: see why /dev of the node plugin differs from the kernel's",
            path.display()
        ));
    }
    Ok(file)
}

fn found(
    device: &Device,
    held: &File,
    format: &Format<'_>,
    mark: Option<Mark>,
    name: &str,
    uuid: String,
) -> Result<FsType> {
    let Ok(found) = name.parse::<FsType>() else {
        return refuse(format!(
            "the volume holds {name}, which is no filesystem the driver mounts"
        ));
    };
    if let Some(wanted) = format.fs_type
        && wanted != found
    {
        return refuse(format!(
            "the volume holds {found} and {wanted} was asked for: set csi.storage.k8s.io/fstype to {found}"
        ));
    }
    let is_begun = found == FsType::Xfs && is_xfs_in_progress(held)?;
    let begun = || {
        refuse(
            "the volume holds an xfs whose mkfs was interrupted: create the volume anew".to_owned(),
        )
    };
    if format.read_only {
        return if is_begun { begun() } else { Ok(found) };
    }
    if is_begun {
        return match mark {
            Some(Mark::Making(FsType::Xfs, begun)) if format.created_empty && begun == uuid => {
                exclusive(&device.path())?;
                make(device, format, FsType::Xfs, uuid, Over::ItsOwnBeginnings)
            }
            _ => begun(),
        };
    }
    let now = Mark::Filesystem(found, uuid);
    if mark.as_ref() != Some(&now) {
        format.marks.write(&now)?;
    }
    Ok(found)
}

fn make_on_nothing(device: &Device, format: &Format<'_>, mark: Option<Mark>) -> Result<FsType> {
    if !format.created_empty {
        return refuse(
            "no filesystem is found on it, and only a volume that was created empty is ever formatted. If what it was made \
             from had none, mount that once and make this volume anew; if it had one, do not use this volume"
                .to_owned(),
        );
    }
    if format.read_only {
        return refuse(
            "no filesystem is found on it and it is attached for reading alone: write to it first"
                .to_owned(),
        );
    }
    if let Some(mark @ (Mark::Filesystem(..) | Mark::Block)) = &mark {
        return refuse(format!(
            "no filesystem is found on it, but the image's metadata say that it held data ({}: {mark}), so it is left as it \
             is. If what it held is worth nothing, create the volume anew",
            mark::CONTENT_KEY
        ));
    }
    let fs_type = format.fs_type.unwrap_or(FsType::Ext4);
    let begun = match mark {
        Some(Mark::Making(of_type, uuid)) if of_type == fs_type => Some(uuid),
        _ => None,
    };
    let path = device.path();
    let file = exclusive(&path)?;
    let uuid = match (first_data(&file, &path)?, begun) {
        (None, Some(begun)) => begun,
        (None, None) => uuid::Uuid::new_v4().to_string(),
        (Some(_), Some(begun)) if has_ext4_copy(&file, &path, &begun)? => begun,
        (Some(offset), _) => {
            return refuse(format!(
                "it holds data near byte {offset} but no known filesystem, so it is not formatted. If an interrupted mkfs \
                 left it, create the volume anew"
            ));
        }
    };
    // mkfs wants the device for itself.
    drop(file);
    make(device, format, fs_type, uuid, Over::Nothing)
}

/// What blkid says is on a device.
#[derive(Debug, PartialEq, Eq)]
enum Contents {
    /// A filesystem, partition table, LUKS header or the like, by blkid's name for it, and its UUID
    /// if it has one.
    Known { name: String, uuid: String },
    /// blkid found nothing it knows, or could not even open the device; it does not say which.
    Nothing,
}

/// Looks for everything blkid knows, or for `only` one filesystem.
fn probe(device: &Path, only: Option<FsType>) -> Result<Contents> {
    let mut arguments: Vec<&OsStr> = ["--probe", "--output", "export"].map(AsRef::as_ref).to_vec();
    if let Some(fs_type) = only {
        arguments.extend(["--match-types", fs_type.name()].map(<str as AsRef<OsStr>>::as_ref));
    }
    arguments.extend(["--".as_ref(), device.as_os_str()]);
    interpret(&programs::run(Program::Blkid, &arguments)?)
}

/// Whether the device holds the filesystem that its image is marked with. Where that is not
/// certain, a look for everything tells more.
fn holds(device: &Path, fs_type: FsType, uuid: &str) -> bool {
    let marked = Contents::Known { name: fs_type.name().to_owned(), uuid: uuid.to_owned() };
    !uuid.is_empty() && probe(device, Some(fs_type)).is_ok_and(|contents| contents == marked)
}

/// Reads blkid's answer: 0 with a name, 2 without a word, 8 when two signatures contradict each
/// other.
fn interpret(finished: &Finished) -> Result<Contents> {
    let value = |key: &str| {
        finished.output.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    };
    let unknown = |why: &str| {
        metrics().mkfs("refused");
        Error::FailedPrecondition(format!(
            "what is on the device is not certain, so it is left alone: {why}"
        ))
    };
    let unexamined = || {
        let answer = programs::describe(Program::Blkid, finished);
        unknown(&format!("it could not be examined ({answer})"))
    };
    match finished.code {
        Some(0) => {
            let name = value("TYPE").or_else(|| value("PTTYPE"));
            let name = name.ok_or_else(|| unknown("something was found that has no name"))?;
            let uuid = value("UUID").unwrap_or_default().to_lowercase();
            Ok(Contents::Known { name: name.to_owned(), uuid })
        }
        Some(2) if finished.output.is_empty() => Ok(Contents::Nothing),
        // blkid's own words recommend a program that removes signatures, and data with them.
        Some(8) => Err(unknown(&format!(
            "signatures of several kinds were found. If it held a filesystem of this driver, name that in the image's \
             metadata as FILESYSTEM,UUID with the key {}",
            mark::CONTENT_KEY
        ))),
        _ => Err(unexamined()),
    }
}

const MIB: u64 = 1 << 20;

/// Where data, first or second superblocks, or labels would begin, as offset and length in bytes:
/// the first MiB, the backups of ext4 with blocks of 1, 2 and 4 KiB, the mirrors of btrfs, and the
/// last MiB (md, ZFS, GPT).
fn telling_places(size: u64) -> Vec<(u64, u64)> {
    [
        (0, MIB),
        (8 * MIB, MIB),
        (32 * MIB, MIB),
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

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::Unavailable(format!(
        "cannot tell whether {} is blank, so it is left alone: {error}",
        path.display()
    ))
}

/// Opens the device for this process alone. `Unavailable` when another has it so: a mount, or an
/// mkfs whose driver died.
fn exclusive(path: &Path) -> Result<File> {
    mount::exclusive(path).map_err(|error| unreadable(path, &error))
}

/// Near which byte the device holds data in one of its telling places. `Unavailable` when that
/// cannot be told.
fn first_data(mut file: &File, path: &Path) -> Result<Option<u64>> {
    let cannot = |error: std::io::Error| unreadable(path, &error);
    let size = file.seek(SeekFrom::End(0)).map_err(cannot)?;
    let mut buffer = vec![0; 1 << 20];
    for (offset, length) in telling_places(size) {
        // The length is at most the buffer's, so it fits.
        let buffer = &mut buffer[..usize::try_from(length).unwrap_or(usize::MAX)];
        file.read_exact_at(buffer, offset).map_err(cannot)?;
        if buffer.iter().any(|&byte| byte != 0) {
            return Ok(Some(offset));
        }
    }
    Ok(None)
}

/// Whether the device holds a copy of the superblock of the ext4 with this UUID, and not the
/// superblock itself, which mkfs writes last.
fn has_ext4_copy(file: &File, path: &Path, uuid: &str) -> Result<bool> {
    const SUPERBLOCK: u64 = 1024;
    const MAGIC: [u8; 2] = [0x53, 0xef];
    let read = |offset: u64| {
        let mut bytes = [0; 1024];
        match file.read_exact_at(&mut bytes, offset) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok([0; 1024]),
            other => other.map(|()| bytes).map_err(|error| unreadable(path, &error)),
        }
    };
    if read(SUPERBLOCK)? != [0; 1024] {
        return Ok(false);
    }
    let Ok(uuid) = uuid.parse::<uuid::Uuid>() else { return Ok(false) };
    // Where the second group begins, for blocks of 1, 2 and 4 KiB.
    for offset in [8193 << 10, 16384 << 11, 32768 << 12] {
        let copy = read(offset)?;
        if copy[56..58] == MAGIC && copy[104..120] == *uuid.as_bytes() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the xfs on the device is one that mkfs has not finished (`sb_inprogress`).
fn is_xfs_in_progress(held: &File) -> Result<bool> {
    let mut byte = [0];
    held.read_exact_at(&mut byte, 126).map_err(|error| {
        Error::Unavailable(format!("cannot read the superblock of the xfs: {error}"))
    })?;
    Ok(byte != [0])
}

/// Over what a filesystem is made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Over {
    Nothing,
    /// mkfs.xfs takes its own beginnings for a filesystem.
    ItsOwnBeginnings,
}

fn make(
    device: &Device,
    format: &Format<'_>,
    fs_type: FsType,
    uuid: String,
    over: Over,
) -> Result<FsType> {
    let (program, identity) = match fs_type {
        FsType::Ext4 => (Program::MkfsExt4, ["-U".to_owned(), uuid.clone()]),
        FsType::Xfs => (Program::MkfsXfs, ["-m".to_owned(), format!("uuid={uuid}")]),
    };
    let default_options = default_mkfs_options(fs_type, device.size()?);
    let options = options::mkfs_arguments(fs_type, format.mkfs_options.unwrap_or(default_options))?;
    let path = device.path();
    let mut arguments: Vec<OsString> = vec!["-q".into()];
    if over == Over::ItsOwnBeginnings {
        arguments.push("-f".into());
    }
    arguments.extend(options.into_iter().chain(identity).map(OsString::from));
    arguments.extend(["--".into(), path.clone().into()]);
    let arguments: Vec<&OsStr> = arguments.iter().map(OsString::as_os_str).collect();

    format.marks.write(&Mark::Making(fs_type, uuid.clone()))?;
    let unchanged = match over {
        Over::Nothing => Contents::Nothing,
        Over::ItsOwnBeginnings => {
            Contents::Known { name: fs_type.name().to_owned(), uuid: uuid.clone() }
        }
    };
    // This node may have stood still until now, and another may have made a filesystem.
    if probe(&path, None)? != unchanged {
        return Err(Error::Busy(
            "another client wrote to it while a filesystem was about to be made, so it is left alone"
                .to_owned(),
        ));
    }
    let deadline = Instant::now() + mount::BUSY_PATIENCE;
    loop {
        let finished = programs::run(program, &arguments)?;
        let words = programs::describe(program, &finished);
        // Another process had the device for itself, perhaps for an instant; nothing was written.
        let is_busy = words.contains("in use by the system") || words.contains("resource busy");
        match finished.code {
            Some(0) => break,
            _ if is_busy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            _ if is_busy => return Err(Error::Unavailable(words)),
            _ => {
                metrics().mkfs("failed");
                return Err(Error::Internal(words));
            }
        }
    }
    metrics().mkfs("done");
    format.marks.write(&Mark::Filesystem(fs_type, uuid))?;
    Ok(fs_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: Option<i32>, output: &str) -> Finished {
        Finished { code, output: output.to_owned() }
    }

    #[test]
    fn blkid_names_what_it_found() {
        let known = |name: &str, uuid: &str| Contents::Known {
            name: name.to_owned(),
            uuid: uuid.to_owned(),
        };
        let ext4 = answer(Some(0), "DEVNAME=/dev/loop1\nUUID=a-B\nTYPE=ext4\nUSAGE=filesystem");
        assert_eq!(interpret(&ext4).unwrap(), known("ext4", "a-b"));
        let partitions = answer(Some(0), "DEVNAME=/dev/loop1\nPTUUID=1\nPTTYPE=gpt");
        assert_eq!(interpret(&partitions).unwrap(), known("gpt", ""));
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
            assert!(
                matches!(interpret(&finished), Err(Error::FailedPrecondition(_))),
                "{finished:?}"
            );
        }
    }

    #[test]
    fn a_byte_in_any_telling_place_is_data() {
        let folder = tempfile::tempdir().unwrap();
        let size = 200 * MIB;
        for offset in [0, MIB - 1, 32 * MIB, 64 * MIB + 65_536, 128 * MIB + 4096, size - 1] {
            let path = folder.path().join(offset.to_string());
            let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
            file.set_len(size).unwrap();
            assert_eq!(first_data(&file, &path).unwrap(), None);
            file.write_all_at(&[1], offset).unwrap();
            assert!(first_data(&file, &path).unwrap().is_some(), "byte {offset}");
        }
    }

    #[test]
    fn telling_places_stay_inside_the_device() {
        for size in [0, 1, MIB, 9 * MIB, 64 * MIB + 1, 300 << 30] {
            for (offset, length) in telling_places(size) {
                assert!(
                    length > 0 && length <= MIB && offset + length <= size,
                    "{size}: {offset} {length}"
                );
            }
        }
        assert_eq!(telling_places(300 << 30).len(), 7);
    }
}
