//! krbd's files in /sys: what is mapped, and how it is told what to do.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{ErrorKind, Seek, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::makedev;
use zeroize::Zeroizing;

use super::super::attach::Device;
use super::super::error::{Error, Result};
use super::super::programs::{self, Program};

/// Where they are.
pub(super) const FOLDER: &str = "/sys/bus/rbd";

/// The bits of `supported_features`, by name.
const FEATURES: [(u64, &str); 10] = [
    (1 << 0, "layering"),
    (1 << 1, "striping"),
    (1 << 2, "exclusive-lock"),
    (1 << 3, "object-map"),
    (1 << 4, "fast-diff"),
    (1 << 5, "deep-flatten"),
    (1 << 6, "journaling"),
    (1 << 7, "data-pool"),
    (1 << 8, "operations"),
    (1 << 9, "migrating"),
];

/// A mapped image: its folder in /sys.
pub(super) struct Mapped(pub(super) PathBuf);

impl Mapped {
    /// What krbd says of it; "" when it is gone, or does not know such a thing.
    pub(super) fn attribute(&self, name: &str) -> String {
        // As the line may hold a key.
        let text = fs::read_to_string(self.0.join(name)).map(Zeroizing::new);
        text.map(|text| text.trim_end_matches('\n').to_owned()).unwrap_or_default()
    }

    pub(super) fn device(&self) -> Result<Device> {
        let number = |name: &str| self.attribute(name).parse::<u64>();
        let (Ok(major), Ok(minor)) = (number("major"), number("minor")) else {
            return Err(Error::io("understand", &self.0, "it has no device number"));
        };
        let id = self.0.file_name().unwrap_or_default().to_string_lossy();
        Ok(Device { name: format!("rbd{id}"), number: makedev(major, minor) })
    }

    /// What tells one image from all others, in any cluster.
    pub(super) fn identity(&self) -> [String; 5] {
        ["cluster_fsid", "pool_id", "pool_ns", "image_id", "current_snap"]
            .map(|name| self.attribute(name))
    }
}

/// The images this node has mapped, whichever process mapped them.
pub(super) fn mapped() -> Result<Vec<Mapped>> {
    let folder = Path::new(FOLDER).join("devices");
    match fs::read_dir(&folder) {
        Ok(entries) => entries
            .map(|entry| {
                Ok(Mapped(entry.map_err(|error| Error::io("list", &folder, error))?.path()))
            })
            .collect(),
        // The module is not loaded, so nothing is mapped.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::io("list", &folder, error)),
    }
}

pub(super) fn mapped_as(device: &Device) -> Result<Mapped> {
    let path = Path::new(FOLDER).join("devices").join(device.name.trim_start_matches("rbd"));
    if path.exists() {
        Ok(Mapped(path))
    } else {
        Err(Error::Unavailable(format!("{} is not mapped any more", device.name)))
    }
}

/// Loads krbd if need be. `FailedPrecondition` when this kernel has none.
pub(super) fn require_krbd() -> Result<()> {
    if Path::new(FOLDER).exists() {
        return Ok(());
    }
    let missing = |why: &dyn std::fmt::Display| {
        Error::FailedPrecondition(format!(
            "this node's kernel has no rbd module ({why}): install it, or set the StorageClass parameter mounter to rbd-nbd or \
             fuse"
        ))
    };
    let finished =
        programs::run(Program::Modprobe, &["rbd".as_ref()]).map_err(|error| missing(&error))?;
    if Path::new(FOLDER).exists() {
        return Ok(());
    }
    Err(missing(&programs::describe(Program::Modprobe, &finished)))
}

/// Waits for the device's node in /dev, with its number.
pub(super) fn wait_for_node(device: &Device, patience: Duration) -> Result<()> {
    let path = device.path();
    let deadline = Instant::now() + patience;
    loop {
        match fs::metadata(&path) {
            Ok(node) if node.file_type().is_block_device() && node.rdev() == device.number => {
                return Ok(());
            }
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::io("look at", &path, error));
            }
            _ => {}
        }
        if Instant::now() > deadline {
            return Err(Error::Unavailable(format!(
                "{} does not appear: does the node plugin see the host's /dev?",
                path.display()
            )));
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// The kernel's refusal of what was written.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) errno: Errno,
    pub(super) words: String,
}

/// Writes `text` to a file of krbd's. `Unavailable` when that takes too long.
pub(super) fn write(
    directory: &Path,
    file: &Path,
    text: &str,
) -> Result<std::result::Result<(), Refusal>> {
    let failed = |error: &dyn std::fmt::Display| Error::io("write", file, error);
    let mut input =
        File::from(memfd_create("krbd", MFdFlags::MFD_CLOEXEC).map_err(|error| failed(&error))?);
    input
        .write_all(text.as_bytes())
        .and_then(|()| input.rewind())
        .map_err(|error| failed(&error))?;
    let output = format!("of={}", file.display());
    let arguments: [&OsStr; 4] = [
        output.as_ref(),
        "bs=4096".as_ref(),
        "conv=notrunc,nocreat".as_ref(),
        "status=none".as_ref(),
    ];
    let finished = programs::run_with(
        Program::Dd,
        &arguments,
        Stdio::from(input),
        super::line_file(directory).as_os_str(),
    )?;
    if finished.code == Some(0) {
        return Ok(Ok(()));
    }
    let words = finished.output.rsplit(": ").next().unwrap_or_default().to_owned();
    Ok(Err(Refusal { errno: errno(&words), words }))
}

/// The error number of what dd says of it.
pub(super) fn errno(words: &str) -> Errno {
    const KNOWN: [Errno; 12] = [
        Errno::EACCES,
        Errno::EBUSY,
        Errno::EINVAL,
        Errno::EKEYREJECTED,
        Errno::ENOENT,
        Errno::ENOKEY,
        Errno::ENXIO,
        Errno::EPERM,
        Errno::EROFS,
        Errno::ESHUTDOWN,
        Errno::ETIMEDOUT,
        Errno::ENOMEM,
    ];
    // ENOTSUPP, which has a name inside the kernel alone: it says so of a type of keys that it does
    // not know.
    if words == "Unknown error 524" {
        return Errno::EINVAL;
    }
    KNOWN.into_iter().find(|errno| errno.desc() == words).unwrap_or(Errno::UnknownErrno)
}

/// Refuses to go on while a write of an earlier attempt is still at work.
pub(super) fn require_no_writer(directory: &Path) -> Result<()> {
    let title = super::line_file(directory).display().to_string();
    let processes = procfs::process::all_processes().map_err(|error| {
        Error::Internal(format!("cannot list the processes of this node: {error}"))
    })?;
    let writer = processes
        .flatten()
        .find(|process| process.cmdline().is_ok_and(|arguments| arguments.first() == Some(&title)));
    match writer {
        None => Ok(()),
        Some(process) => Err(Error::Busy(format!(
            "an earlier attempt still waits for krbd, in process {}: the cluster does not answer it",
            process.pid
        ))),
    }
}

/// The bits of the features this kernel's krbd knows; `None` when it is too old to say.
pub(super) fn supported_features() -> Option<u64> {
    let text = fs::read_to_string(Path::new(FOLDER).join("supported_features")).ok()?;
    u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
}

/// The names of the features of `bits`.
pub(super) fn feature_names(bits: u64) -> String {
    let name = |bit: u32| {
        let known = FEATURES.iter().find(|(feature, _)| *feature == 1 << bit);
        known.map_or_else(|| format!("number {bit}"), |(_, name)| (*name).to_owned())
    };
    let names: Vec<_> = (0..u64::BITS).filter(|bit| bits & (1 << bit) != 0).map(name).collect();
    names.join(", ")
}
