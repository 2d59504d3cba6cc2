//! What is mounted where, and how that is changed.
//!
//! The kernel's own table (`/proc/self/mountinfo`) is the only witness; nothing is remembered. A
//! mount is told from another by its device number, so a path is "ours" only when the volume's own
//! device is mounted there. A table that cannot be read is an error and never an empty table.
//!
//! A filesystem of a device is mounted and unmounted by the programs of util-linux, which may hang
//! with the device and are given a deadline. Bind mounts are plain system calls on what is held
//! open ([`Place`]). There are no lazy unmounts: they would take a device away under its users.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use nix::sys::stat::{major, makedev, minor};
use rustix::mount::{FsOpenFlags, fsconfig_set_flag, fsconfig_set_string, fsopen};

use super::bounded::bounded;
use super::error::{Error, Result};
use super::kernel_log::KernelLog;
use super::kill;
use super::options;
use super::place::{self, Place};
use super::programs::{self, Finished, Program};

/// How long a busy mount is tried again. A process that is just being started holds copies of all
/// open files of its parent for a moment.
pub(super) const BUSY_PATIENCE: Duration = Duration::from_secs(1);

/// How long taking a bind mount away may take.
const UNBIND_PATIENCE: Duration = Duration::from_mins(5);

/// The device number of a filesystem or of a device node.
pub(super) type DeviceNumber = u64;

/// One line of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// The kernel's number of this mount.
    id: u64,
    /// The device number files of this mount report.
    pub(super) device: DeviceNumber,
    /// Which directory or file of its filesystem is mounted.
    pub(super) root: PathBuf,
    /// Where it is mounted.
    pub(super) point: PathBuf,
    /// The filesystem's type.
    pub(super) fs_type: String,
    /// Options of this mount alone.
    options: Vec<String>,
    /// Options of the filesystem, shared by all its mounts.
    filesystem_options: Vec<String>,
}

impl Mount {
    /// Whether writing through this mount is forbidden.
    pub(super) fn is_read_only(&self) -> bool {
        self.options.iter().any(|option| option == "ro") || self.is_filesystem_read_only()
    }

    /// Whether the filesystem itself is read-only: mounted so, or turned so by the kernel after an
    /// error. Linux 6.15 says in a word of its own that an ext4 is.
    pub(super) fn is_filesystem_read_only(&self) -> bool {
        let says_so =
            |option: &String| matches!(option.as_str(), "ro" | "emergency_ro" | "shutdown");
        self.filesystem_options.iter().any(says_so) || self.is_ext4_with_errors()
    }

    /// Linux 6.12, and 6.1 of the same time, refuse writes after an error and say so nowhere, but
    /// count the errors. Mounted volumes begin without any: e2fsck clears them.
    fn is_ext4_with_errors(&self) -> bool {
        let gives_up = self.filesystem_options.iter().any(|option| option == "errors=remount-ro");
        if self.fs_type != "ext4" || !gives_up {
            return false;
        }
        let (major, minor) = (major(self.device), minor(self.device));
        let Ok(device) = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")) else {
            return false;
        };
        let count = Path::new("/sys/fs/ext4")
            .join(device.file_name().unwrap_or_default())
            .join("errors_count");
        std::fs::read_to_string(count).is_ok_and(|count| count.trim() != "0")
    }

    /// Whether the device node `name` of /dev is mounted here, as block volumes are published.
    pub(super) fn is_device_node(&self, name: &str) -> bool {
        matches!(self.fs_type.as_str(), "devtmpfs" | "tmpfs")
            && self.root.file_name() == Some(OsStr::new(name))
    }

    /// The flags a remount must repeat in order not to lose them.
    fn flags(&self) -> MsFlags {
        self.options.iter().fold(MsFlags::empty(), |flags, option| {
            flags
                | match option.as_str() {
                    "nosuid" => MsFlags::MS_NOSUID,
                    "nodev" => MsFlags::MS_NODEV,
                    "noexec" => MsFlags::MS_NOEXEC,
                    "noatime" => MsFlags::MS_NOATIME,
                    "nodiratime" => MsFlags::MS_NODIRATIME,
                    "relatime" => MsFlags::MS_RELATIME,
                    _ => MsFlags::empty(),
                }
        })
    }
}

/// The mount table of this process, in mount order.
#[derive(Debug)]
pub(crate) struct MountTable(Vec<Mount>);

impl MountTable {
    /// Reads the table. `Internal` when it cannot be read or understood.
    pub(super) fn read() -> Result<Self> {
        let path = Path::new("/proc/self/mountinfo");
        let table = std::fs::read(path).map_err(|error| Error::io("read", path, error))?;
        Self::parse(&table)
    }

    /// Reads the text of the table.
    pub(crate) fn parse(table: &[u8]) -> Result<Self> {
        table
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| {
                parse_line(line).ok_or_else(|| {
                    Error::Internal(format!(
                        "a line of /proc/self/mountinfo makes no sense: {}",
                        line.escape_ascii()
                    ))
                })
            })
            .collect::<Result<_>>()
            .map(Self)
    }

    /// What one sees at `point`: the last mount on it, if there is one.
    pub(super) fn at(&self, point: &Path) -> Option<&Mount> {
        self.0.iter().rfind(|mount| mount.point == point)
    }

    /// The mount with this number.
    pub(super) fn by_id(&self, id: u64) -> Option<&Mount> {
        self.0.iter().find(|mount| mount.id == id)
    }

    /// All mounts, in mount order.
    pub(super) fn iter(&self) -> std::slice::Iter<'_, Mount> {
        self.0.iter()
    }
}

/// Reads one line of mountinfo:
/// `id parent major:minor root point options [tags...] - type source options`.
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let number = std::str::from_utf8(fields.by_ref().nth(1)?).ok()?;
    let (major, minor) = number.split_once(':')?;
    let root = unescape(fields.next()?);
    let point = unescape(fields.next()?);
    let options = split_options(fields.next()?);
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let fs_type = String::from_utf8_lossy(fields.next()?).into_owned();
    let filesystem_options = split_options(fields.nth(1)?);
    Some(Mount {
        id,
        device: makedev(major.parse().ok()?, minor.parse().ok()?),
        root: PathBuf::from(root),
        point: PathBuf::from(point),
        fs_type,
        options,
        filesystem_options,
    })
}

fn split_options(field: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(field).split(',').map(str::to_owned).collect()
}

/// Undoes the kernel's escapes: a backslash and three octal digits stand for one byte.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        rest = tail;
        bytes.push(match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                rest = tail;
                (a - b'0') << 6 | (b - b'0') << 3 | (c - b'0')
            }
            _ => *first,
        });
    }
    OsString::from_vec(bytes)
}

/// Mounts the filesystem of `device` on `point` with mount(8)'s `options`.
pub(super) fn mount(device: &Path, fs_type: &str, options: &str, point: &Path) -> Result<()> {
    let mut log = KernelLog::from_now();
    mounted(device, fs_type, &run_mount(device, fs_type, options, point)?, &mut log)?;
    require_contexts(options, point)
}

/// Refuses (`InvalidArgument`) options that the kernel's filesystem of this type does not know,
/// before anything is made or attached. Nothing is refused where the kernel cannot be asked, nor
/// the SELinux contexts, which are seen to be there after the mount.
pub(super) fn check_options(fs_type: &str, options: &[String]) -> Result<()> {
    // mount(8) turns these into flags of the mount, for any filesystem.
    const OF_ANY: [&str; 33] = [
        "_netdev",
        "async",
        "atime",
        "auto",
        "defaults",
        "dev",
        "diratime",
        "dirsync",
        "exec",
        "iversion",
        "lazytime",
        "loud",
        "mand",
        "noatime",
        "noauto",
        "nodev",
        "nodiratime",
        "noexec",
        "nofail",
        "noiversion",
        "nolazytime",
        "nomand",
        "norelatime",
        "nostrictatime",
        "nosuid",
        "nosymfollow",
        "relatime",
        "ro",
        "rw",
        "silent",
        "strictatime",
        "suid",
        "sync",
    ];
    for option in options {
        let (name, value) = option
            .split_once('=')
            .map_or((option.as_str(), None), |(name, value)| (name, Some(value)));
        if OF_ANY.contains(&name) || name.ends_with("context") {
            continue;
        }
        // A context of its own for each: what one says of an option stands in its log.
        let Ok(context) = fsopen(fs_type, FsOpenFlags::FSOPEN_CLOEXEC) else { return Ok(()) };
        let known = match value {
            Some(value) => fsconfig_set_string(&context, name, value),
            None => fsconfig_set_flag(&context, name),
        };
        if known == Err(rustix::io::Errno::INVAL) {
            let mut words = vec![0; 1024];
            let length = rustix::io::read(&context, &mut words).unwrap_or(0);
            let words = String::from_utf8_lossy(&words[..length]);
            return Err(Error::InvalidArgument(format!(
                "{fs_type} does not take the mount option {option:?} here ({})",
                words.trim().trim_start_matches("e ")
            )));
        }
    }
    Ok(())
}

/// Mounts the filesystem of a device that takes no writes. `false` when its log has to be replayed
/// first. Other errors as [`mount`].
pub(super) fn mount_for_readers(
    device: &Path,
    fs_type: &str,
    options: &str,
    point: &Path,
) -> Result<bool> {
    let mut log = KernelLog::from_now();
    let finished = run_mount(device, fs_type, options, point)?;
    // mount(8)'s words for EROFS, which both filesystems give for such a log.
    if finished.code != Some(0) && finished.output.contains(" read-only.") {
        return Ok(false);
    }
    mounted(device, fs_type, &finished, &mut log)?;
    require_contexts(options, point).map(|()| true)
}

fn run_mount(device: &Path, fs_type: &str, options: &str, point: &Path) -> Result<Finished> {
    let arguments: [&OsStr; 8] = [
        "--internal-only".as_ref(),
        "--types".as_ref(),
        fs_type.as_ref(),
        "--options".as_ref(),
        options.as_ref(),
        "--".as_ref(),
        device.as_ref(),
        point.as_ref(),
    ];
    programs::run(Program::Mount, &arguments)
}

/// Refuses what was just mounted without the SELinux context that was asked for, and unmounts it.
/// mount(8) leaves contexts out where it sees no SELinux, and then pods may not touch a file.
fn require_contexts(options: &str, point: &Path) -> Result<()> {
    let name = |option: &str| option.split('=').next().unwrap_or_default().to_owned();
    let asked: Vec<_> = options::split(options)
        .into_iter()
        .filter(|option| name(option).ends_with("context") && option.contains('='))
        .collect();
    if asked.is_empty() {
        return Ok(());
    }
    let table = MountTable::read()?;
    let taken = table.at(point).map(|mount| mount.filesystem_options.as_slice());
    let taken: Vec<_> = taken.unwrap_or_default().iter().map(|option| name(option)).collect();
    let Some(missing) = asked.iter().find(|option| !taken.contains(&name(option))) else {
        return Ok(());
    };
    unmount(point)?;
    Err(Error::FailedPrecondition(format!(
        "the mount option {missing} did not reach the kernel: mount(8) sees no SELinux here. Where this node enforces it, let the          node plugin see the host's /sys/fs/selinux (the chart's node.selinux); else leave the option out"
    )))
}

fn mounted(device: &Path, fs_type: &str, finished: &Finished, log: &mut KernelLog) -> Result<()> {
    if finished.code == Some(0) {
        return Ok(());
    }
    let mut words = programs::describe(Program::Mount, finished);
    let name = device.file_name().unwrap_or_default().to_string_lossy();
    if let Some(reason) = log.trouble_with(&name) {
        words = format!("{words}; the kernel said: {reason}");
    }
    match finished.code {
        _ if words.contains("Structure needs cleaning") => Err(Error::FailedPrecondition(format!(
            "the {fs_type} of {} is damaged, and repairing it may lose data, so people have to decide: take a snapshot, \
             then check the image by hand ({words})",
            device.display()
        ))),
        _ => Err(Error::Internal(words)),
    }
}

/// Binds the directory or file `source`, which is held open, to `target`, read-only if asked.
pub(super) fn bind(source: &OwnedFd, target: &Place, read_only: bool) -> Result<()> {
    let failed = |what: &str, error: Errno| Error::io(what, target.path(), error);
    let below = target.hold()?.ok_or_else(|| failed("bind to", Errno::ENOENT))?;
    let none = None::<&str>;
    nix::mount::mount(
        Some(&place::pinned(source)),
        &place::pinned(&below),
        none,
        MsFlags::MS_BIND,
        none,
    )
    .map_err(|error| failed("bind to", error))?;
    kill::step("bound");
    if !read_only {
        return Ok(());
    }
    // The kernel ignores the read-only flag of the bind itself; it takes a second call.
    let kept = target.mount(&MountTable::read()?)?.map_or(MsFlags::empty(), Mount::flags);
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | kept;
    nix::mount::mount(none, &target.pinned(), none, flags, none)
        .map_err(|error| failed("make read-only", error))?;
    kill::step("made read-only");
    Ok(())
}

/// Takes the topmost mount at `target` away. `FailedPrecondition` naming the processes that use it
/// when it is busy.
pub(super) fn unbind(target: &Arc<Place>) -> Result<()> {
    let deadline = Instant::now() + BUSY_PATIENCE;
    loop {
        let place = Arc::clone(target);
        // Where a bind mount is the last mount of its filesystem, this writes back what is dirty.
        let what = format!("cannot unmount {}", target.path().display());
        let outcome = bounded(&what, UNBIND_PATIENCE, move || {
            Ok(nix::mount::umount2(&place.pinned(), MntFlags::UMOUNT_NOFOLLOW))
        })?;
        match outcome {
            Ok(()) => {
                kill::step("unbound");
                return Ok(());
            }
            Err(Errno::EBUSY) if Instant::now() > deadline => return Err(busy(target.path())),
            Err(Errno::EBUSY) => std::thread::sleep(Duration::from_millis(50)),
            Err(error) => return Err(Error::io("unmount", target.path(), error)),
        }
    }
}

fn busy(point: &Path) -> Error {
    Error::FailedPrecondition(format!(
        "{} is in use {}: end what uses it",
        point.display(),
        holders(point, &[])
    ))
}

/// Unmounts the topmost mount on `point`. `FailedPrecondition` naming the processes that use it
/// when it is busy.
pub(super) fn unmount(point: &Path) -> Result<()> {
    // Without --no-canonicalize umount would look at the mount itself, which hangs or fails on a
    // dead one.
    let arguments: [&OsStr; 4] =
        ["--internal-only".as_ref(), "--no-canonicalize".as_ref(), "--".as_ref(), point.as_ref()];
    let deadline = Instant::now() + BUSY_PATIENCE;
    loop {
        let finished = programs::run(Program::Umount, &arguments)?;
        if finished.code == Some(0) {
            return Ok(());
        }
        if !finished.output.contains("busy") {
            return Err(Error::Internal(programs::describe(Program::Umount, &finished)));
        }
        if Instant::now() > deadline {
            return Err(busy(point));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Opens a device for this process alone. One that is busy is tried again for a moment: a process
/// that looks for a free loop device claims others for an instant.
pub(super) fn exclusive(device: &Path) -> std::io::Result<File> {
    let deadline = Instant::now() + BUSY_PATIENCE;
    loop {
        match OpenOptions::new().read(true).custom_flags(nix::libc::O_EXCL).open(device) {
            Err(error)
                if error.raw_os_error() == Some(nix::libc::EBUSY) && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            other => return other,
        }
    }
}

/// The processes that hold a file at or below `path` open or work there, for an error message.
/// Processes of other mount namespaces may not be seen. The processes `besides` do not count.
pub(super) fn holders(path: &Path, besides: &[i32]) -> String {
    known_holders(path, besides).unwrap_or_else(|| {
        "by no process that can be seen from here, perhaps in another mount namespace".to_owned()
    })
}

/// The same; `None` when none is seen.
pub(super) fn known_holders(path: &Path, besides: &[i32]) -> Option<String> {
    let uses = |link: std::io::Result<PathBuf>| link.is_ok_and(|target| target.starts_with(path));
    let mut found = Vec::new();
    for process in procfs::process::all_processes().into_iter().flatten().flatten() {
        if besides.contains(&process.pid) {
            continue;
        }
        let folder = PathBuf::from(format!("/proc/{}", process.pid));
        let places =
            ["cwd", "root", "exe"].iter().any(|name| uses(std::fs::read_link(folder.join(name))));
        let files = std::fs::read_dir(folder.join("fd")).into_iter().flatten().flatten();
        if places || files.into_iter().any(|file| uses(std::fs::read_link(file.path()))) {
            let name = process.stat().map_or_else(|_| "?".to_owned(), |stat| stat.comm);
            found.push(format!("{name} {}", process.pid));
        }
    }
    (!found.is_empty()).then(|| format!("by {}", found.join(", ")))
}

/// The processes in whose mount namespaces a filesystem of `device` is mounted, one for each
/// namespace, for an error message. `None` when there are none that can be seen.
pub(super) fn namespaces_with(device: DeviceNumber) -> Option<String> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for process in procfs::process::all_processes().into_iter().flatten().flatten() {
        let folder = PathBuf::from(format!("/proc/{}", process.pid));
        // What cannot be read has just ended.
        let Ok(namespace) = std::fs::read_link(folder.join("ns/mnt")) else { continue };
        if !seen.insert(namespace) {
            continue;
        }
        let table = std::fs::read(folder.join("mountinfo")).unwrap_or_default();
        if MountTable::parse(&table)
            .is_ok_and(|table| table.iter().any(|mount| mount.device == device))
        {
            let name = process.stat().map_or_else(|_| "?".to_owned(), |stat| stat.comm);
            found.push(format!("{name} {}", process.pid));
        }
    }
    (!found.is_empty()).then(|| found.join(", "))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use proptest::prelude::*;

    use super::*;

    /// What the kernel does to paths in the table (`mangle_path` with space, tab, newline,
    /// backslash).
    fn escape(path: &[u8]) -> Vec<u8> {
        path.iter()
            .flat_map(|&byte| match byte {
                b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
                _ => vec![byte],
            })
            .collect()
    }

    #[test]
    fn options_that_a_filesystem_does_not_know_are_refused() {
        let check = |fs_type: &str, option: &str| check_options(fs_type, &[option.to_owned()]);
        for (fs_type, known) in [
            (
                "ext4",
                &["data=ordered", "commit=30", "errors=remount-ro", "discard", "stripe=64"][..],
            ),
            ("xfs", &["allocsize=64m", "inode64", "logbsize=256k", "noquota", "discard"]),
        ] {
            let of_any =
                ["noatime", "nodev", "sync", "ro", "context=\"system_u:object_r:a_t:s0:c1,c2\""];
            for option in known.iter().chain(&of_any) {
                check(fs_type, option).unwrap();
            }
            for option in ["no_such_option", "no_such=1", "commit=soon", "allocsize=much"] {
                let error = check(fs_type, option).unwrap_err();
                assert!(
                    matches!(&error, Error::InvalidArgument(text) if text.contains(option)),
                    "{fs_type}: {error}"
                );
            }
        }
        check("ext4", "allocsize=64m").unwrap_err();
        check("xfs", "data=ordered").unwrap_err();
        check("nofilesystem", "data=ordered").unwrap();
    }

    #[test]
    fn a_line_is_read() {
        let line =
            br"98 42 7:3 / /mnt/a\040b\134c rw,nosuid,relatime shared:1 master:2 - ext4 /dev/loop3 ro,data=x";
        let mount = parse_line(line).unwrap();
        assert_eq!(mount.device, makedev(7, 3));
        assert_eq!(mount.root, Path::new("/"));
        assert_eq!(mount.point, Path::new(r"/mnt/a b\c"));
        assert_eq!(mount.fs_type, "ext4");
        assert!(mount.is_filesystem_read_only() && mount.is_read_only());
        assert_eq!(mount.flags(), MsFlags::MS_NOSUID | MsFlags::MS_RELATIME);
    }

    #[test]
    fn a_read_only_bind_of_a_writable_filesystem_is_told_apart() {
        let mount = parse_line(b"98 42 7:3 / /mnt ro - ext4 /dev/loop3 rw").unwrap();
        assert!(mount.is_read_only());
        assert!(!mount.is_filesystem_read_only());
    }

    #[test]
    fn a_line_that_makes_no_sense_is_no_mount() {
        for line in [
            "",
            "1 2 3",
            "98 42 7:x / /mnt rw - ext4 d rw",
            "98 42 7:3 / /mnt rw shared:1 ext4 d rw",
        ] {
            assert_eq!(parse_line(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn the_last_mount_on_a_point_counts() {
        let lines = [
            "1 0 7:1 / /a rw - ext4 d rw",
            "2 0 7:2 / /a rw - xfs d rw",
            "3 0 7:1 / /ab rw - ext4 d rw",
        ];
        let table =
            MountTable(lines.iter().map(|line| parse_line(line.as_bytes()).unwrap()).collect());
        assert_eq!(table.at(Path::new("/a")).unwrap().fs_type, "xfs");
        assert!(table.at(Path::new("/")).is_none());
    }

    #[test]
    fn a_published_device_node_is_known() {
        let mount = parse_line(b"98 42 0:5 /loop3 /target rw - devtmpfs udev rw,size=1k").unwrap();
        assert!(mount.is_device_node("loop3"));
        assert!(!mount.is_device_node("loop30"));
        let other = parse_line(b"98 42 7:1 /loop3 /target rw - ext4 /dev/loop1 rw").unwrap();
        assert!(!other.is_device_node("loop3"));
    }

    #[test]
    fn the_own_table_is_understood() {
        assert!(MountTable::read().unwrap().at(Path::new("/proc")).is_some());
    }

    #[test]
    fn the_holder_of_an_open_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap();
        let open = std::fs::File::create(path.join("file")).unwrap();
        assert!(holders(&path, &[]).contains(&std::process::id().to_string()));
        drop(open);
        assert!(holders(&path, &[]).contains("no process"));
    }

    proptest! {
        #[test]
        fn escaped_paths_come_back(path in proptest::collection::vec(1u8..=255, 0..40)) {
            let escaped = escape(&path);
            let back = unescape(&escaped);
            prop_assert_eq!(back.as_bytes(), path.as_slice());
        }

        #[test]
        fn no_line_panics(line in proptest::collection::vec(any::<u8>(), 0..120)) {
            parse_line(&line);
        }
    }
}
