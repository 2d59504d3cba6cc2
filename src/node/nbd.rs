//! The mounter `rbd-nbd`: librbd in a process of the `rbd-nbd` program, and the kernel's network
//! block device in front of it. For images with features that krbd lacks.
//!
//! The device carries a cookie made of the volume's own name, in /sys/block/nbdN/backend, and so
//! does the command line of the process that serves it. So both are found again by what the kernel
//! says, and nothing is kept in a file.
//!
//! The process has the key in its memory alone: it reads its configuration from its standard input,
//! a file that exists in memory only. It outlives the driver, but not its container. A device whose
//! process has gone keeps what is written to it for `reattach-timeout` seconds (30), and [`revive`]
//! gives it a new process; without one it answers with errors then.
//!
//! `asok` in the volume's directory is the process's admin socket, by which [`watch`] asks it.
//!
//! Crash points: before the mapping; while `rbd-nbd` still maps, which [`detach`] ends; after it.

mod netlink;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{self, Signal};
use nix::sys::stat::makedev;
use nix::unistd::Pid;
use zeroize::Zeroizing;

use super::admin_socket;
use super::attach::{Attachment, Device, Image, Watch};
use super::bounded::bounded;
use super::error::{Error, Result};
use super::kill;
use super::map_options::MapOptions;
use super::mount;
use super::notes;
use super::programs::{self, Finished, Program};
use crate::rbd::{Features, Key, Watcher};

const BLOCK_DEVICES: &str = "/sys/block";

/// The unit of a device's size, in bytes.
const SECTOR: u64 = 512;

/// How long the process waits for monitors, in seconds.
const MONITOR_PATIENCE: u32 = 20;

/// How long a process may take to close its image and end.
const STOP_PATIENCE: Duration = Duration::from_secs(40);

/// How long writing back what the kernel's cache holds of a device may take.
const SYNC_PATIENCE: Duration = Duration::from_mins(1);

/// How long a process that tells the kernel of its image's growth by itself may take to.
const GROWTH_PATIENCE: Duration = Duration::from_secs(1);

/// How long the kernel may take to change a device's size.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long another process may have a device open just to look at it.
const BUSY_PATIENCE: Duration = Duration::from_secs(5);

/// What a volume's device and process are known by.
fn cookie(directory: &Path) -> String {
    format!("cinderblock-{}", directory.file_name().unwrap_or_default().to_string_lossy())
}

/// Refuses what cannot be mapped: without nbd anything, and an image that librbd, which `features`
/// asks, does not open.
pub(super) fn check(key: Option<&Key>, features: impl FnOnce() -> Result<Features>) -> Result<()> {
    require_nbd()?;
    key.map(require_key).transpose()?;
    features().map(drop)
}

/// Attaches what is not attached, where nothing is left half-done. See [`super::attach`] for what
/// this and the functions below promise.
pub(super) fn attach(
    directory: &Path,
    image: &Image,
    key: Option<&Key>,
    read_only: bool,
    options: &MapOptions,
) -> Result<Device> {
    serve(directory, image, key, read_only, options, None)?;
    match find(directory)? {
        Attachment::Live(device) => Ok(device),
        Attachment::Absent => Err(Error::FailedPrecondition(
            "this kernel's nbd devices carry no cookie to find them by: the mounter rbd-nbd needs Linux 5.14"
                .to_owned(),
        )),
        dead @ Attachment::Dead(_) => {
            Err(Error::Unavailable(format!("{image} was mapped, but is {dead:?} now")))
        }
    }
}

pub(super) fn find(directory: &Path) -> Result<Attachment> {
    let cookie = cookie(directory);
    let folder = Path::new(BLOCK_DEVICES);
    for entry in fs::read_dir(folder).map_err(|error| Error::io("list", folder, error))? {
        let path = entry.map_err(|error| Error::io("list", folder, error))?.path();
        // Only a device in use has this, and it may go out of use at any time.
        let backend = fs::read_to_string(path.join("backend"));
        if backend.is_ok_and(|backend| backend.trim_end() == cookie) {
            let device = device(&path)?;
            let is_served = !servers(directory)?.is_empty();
            return Ok(if is_served { Attachment::Live(device) } else { Attachment::Dead(device) });
        }
    }
    Ok(Attachment::Absent)
}

/// Gives a device whose process has gone a new one, with what is written to it meanwhile.
pub(super) fn revive(
    directory: &Path,
    image: &Image,
    key: Option<&Key>,
    read_only: bool,
    options: &MapOptions,
    device: &Device,
) -> Result<Attachment> {
    serve(directory, image, key, read_only, options, Some(device))?;
    find(directory)
}

/// Whether the device's process serves `image`.
pub(super) fn confirm(directory: &Path, image: &Image, device: &Device) -> Result<()> {
    let spec = image.to_string();
    let is_of_image = |server: &Server| server.arguments.last() == Some(&spec);
    if find(directory)? == Attachment::Live(device.clone())
        && servers(directory)?.iter().all(is_of_image)
    {
        return Ok(());
    }
    Err(Error::FailedPrecondition(format!(
        "{} is not served by an rbd-nbd for the image {image}: unmap it by hand",
        device.name
    )))
}

/// The process hears of it when its image grows. That of Ceph 17 tells the kernel; that of Ceph 16
/// does so without the cookie, which Linux 5.14 and newer refuse, so the driver tells it. A device
/// must never be larger than what its process takes for the image's size: it would read as zeros
/// there, and what is written be lost without an error.
pub(super) fn refresh(
    directory: &Path,
    image: &Image,
    read_only: bool,
    device: &Device,
    image_size: impl FnOnce() -> Result<u64>,
) -> Result<()> {
    let wanted = image_size()?;
    let wanted = wanted - wanted % SECTOR;
    let deadline = Instant::now() + GROWTH_PATIENCE;
    while device.size()? < wanted {
        if Instant::now() > deadline {
            require_knowledge_of_growth(directory, image, read_only)?;
            return set_size(directory, device, wanted);
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Who changes an image's size waits until all who watch it have heard of that, so a process with
/// the watch knows.
fn require_knowledge_of_growth(directory: &Path, image: &Image, read_only: bool) -> Result<()> {
    let why = match watch(directory) {
        _ if read_only => "has the image for reading alone",
        Watch::Held => return Ok(()),
        Watch::Lost => "has lost its watch on the image",
        Watch::Unknown => "does not answer at its admin socket",
    };
    Err(Error::FailedPrecondition(format!(
        "{image} has grown, but its rbd-nbd {why}, so it may not have heard of that: the volume has its new size when it is \
         staged again"
    )))
}

fn set_size(directory: &Path, device: &Device, bytes: u64) -> Result<()> {
    let index = device.name.trim_start_matches("nbd").parse().map_err(|_| {
        Error::Internal(format!("{} is not the name of a network block device", device.name))
    })?;
    let cookie = cookie(directory);
    let what = format!("the kernel does not give {} the size of {bytes} bytes", device.name);
    // Newer kernels wait for the I/O in flight.
    let outcome = bounded(&what, PATIENCE, move || Ok(netlink::set_size(index, &cookie, bytes)))?;
    outcome.map_err(|error| Error::Unavailable(format!("{what}: {error}; its log says why")))?;
    kill::step("device told its size");
    Ok(())
}

/// What its process says, if it has an admin socket.
pub(super) fn watch(directory: &Path) -> Watch {
    admin_socket::watch(&admin_socket_path(directory))
}

/// The addresses of the process's clients.
pub(super) fn clients(directory: &Path, watchers: &[Watcher]) -> Result<BTreeSet<String>> {
    notes::clients_of(servers(directory)?.iter().map(|server| server.process.as_raw()), watchers)
}

fn admin_socket_path(directory: &Path) -> PathBuf {
    directory.join("asok")
}

pub(super) fn detach(directory: &Path) -> Result<()> {
    let deadline = Instant::now() + STOP_PATIENCE;
    loop {
        let found = find(directory)?;
        match &found {
            Attachment::Live(device) => {
                require_unused(directory, device)?;
                // What is in the kernel's cache goes to the process while there is one.
                let path = device.path();
                let what = format!("{} cannot be written back", device.name);
                let outcome = bounded(&what, SYNC_PATIENCE, move || {
                    Ok(File::open(&path).and_then(|file| file.sync_all()))
                });
                if let Err(error) = outcome? {
                    // As when this node was fenced: there is nothing to wait for.
                    tracing::warn!("{what}: {error}; what it had not written is lost");
                }
                unmap(device)?;
            }
            Attachment::Dead(device) => {
                require_unused(directory, device)?;
                unmap(device)?;
            }
            // One that is just mapping, or does not end.
            Attachment::Absent => stop(directory, Signal::SIGTERM)?,
        }
        if found == Attachment::Absent && servers(directory)?.is_empty() {
            return admin_socket::remove(&admin_socket_path(directory));
        }
        if Instant::now() > deadline {
            stop(directory, Signal::SIGKILL)?;
            return Err(Error::Unavailable(format!(
                "the rbd-nbd of {} does not end; it was killed",
                directory.display()
            )));
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Starts a process that serves `image` on a free device, or on `device` again. It has gone into
/// the background when this returns.
fn serve(
    directory: &Path,
    image: &Image,
    key: Option<&Key>,
    read_only: bool,
    options: &MapOptions,
    device: Option<&Device>,
) -> Result<()> {
    let mut arguments = vec![
        if device.is_some() { "attach" } else { "map" }.to_owned(),
        "--conf=/proc/self/fd/0".to_owned(),
        "--try-netlink".to_owned(),
        "--cookie".to_owned(),
        cookie(directory),
    ];
    if let Some(user) = &image.user {
        arguments.extend(["--id".to_owned(), user.clone()]);
    }
    if let Some(device) = device {
        arguments.extend(["--device".to_owned(), device.path().display().to_string()]);
    }
    if read_only {
        arguments.push("--read-only".to_owned());
    }
    for option in &options.nbd {
        let (name, value) =
            option.split_once('=').map_or((option.as_str(), None), |(n, v)| (n, Some(v)));
        match name {
            "try-netlink" => {}
            "timeout" => arguments.push("--io-timeout".to_owned()),
            name => arguments.push(format!("--{name}")),
        }
        arguments.extend(value.map(str::to_owned));
    }
    let spec = image.to_string();
    if spec.starts_with('-') {
        return Err(Error::InvalidArgument(format!("rbd-nbd takes {spec} for an option")));
    }
    arguments.push(spec);
    let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
    let finished = programs::run_with(
        Program::RbdNbd,
        &arguments,
        configuration(directory, image, key)?,
        OsStr::new("rbd-nbd"),
    )?;
    if finished.code == Some(0) { Ok(()) } else { Err(map_error(image, key, &finished)) }
}

/// The configuration of a process, with the key in it, in memory.
fn configuration(directory: &Path, image: &Image, key: Option<&Key>) -> Result<Stdio> {
    let is_address = |byte: u8| byte.is_ascii_alphanumeric() || b".:,[]/_-".contains(&byte);
    if image.monitors.is_empty() || !image.monitors.bytes().all(is_address) {
        return Err(Error::InvalidArgument(format!(
            "{:?} are no addresses of monitors",
            image.monitors
        )));
    }
    let auth = match key {
        None => Zeroizing::new("auth_client_required = none\n".to_owned()),
        Some(key) => {
            require_key(key)?;
            Zeroizing::new(format!("auth_client_required = cephx\nkey = {}\n", key.expose()))
        }
    };
    // No timeouts for I/O here: a volume waits out an outage of the cluster, as krbd does. With
    // librbd's cache a flush can say that a write is durable which has failed.
    let text = Zeroizing::new(format!(
        "[global]\nmon_host = {}\nclient_mount_timeout = {MONITOR_PATIENCE}\nkeyring = /dev/null\nlog_file =\n\
         run_dir = /run\nrbd_cache = false\n{}{}",
        image.monitors,
        admin_socket::line(&admin_socket_path(directory)),
        *auth
    ));
    let failed = |error: &dyn std::fmt::Display| {
        Error::Internal(format!("cannot keep rbd-nbd's configuration in memory: {error}"))
    };
    let mut file =
        File::from(memfd_create("conf", MFdFlags::MFD_CLOEXEC).map_err(|error| failed(&error))?);
    file.write_all(text.as_bytes()).and_then(|()| file.rewind()).map_err(|error| failed(&error))?;
    Ok(Stdio::from(file))
}

/// Refuses what cannot be a key. `Unauthenticated`.
fn require_key(key: &Key) -> Result<()> {
    if key.key_type().is_some() {
        return Ok(());
    }
    Err(Error::Unauthenticated(
        "the Ceph key in the node-stage secret is not one as `ceph auth get-key` prints it"
            .to_owned(),
    ))
}

/// Takes the device from the kernel. Its process ends by itself then.
fn unmap(device: &Device) -> Result<()> {
    let path = device.path();
    let arguments: [&OsStr; 4] =
        ["unmap".as_ref(), "--conf=/dev/null".as_ref(), "--try-netlink".as_ref(), path.as_ref()];
    let finished = programs::run(Program::RbdNbd, &arguments)?;
    if finished.code == Some(0) {
        return Ok(());
    }
    Err(Error::Unavailable(programs::describe(Program::RbdNbd, &finished)))
}

/// Refuses a device that a mount or a process uses: the kernel would cut it off.
fn require_unused(directory: &Path, device: &Device) -> Result<()> {
    let path = device.path();
    let deadline = Instant::now() + BUSY_PATIENCE;
    loop {
        // A mount in any namespace holds the device exclusively. A device without its process may
        // not be opened at all.
        let opened = OpenOptions::new().read(true).custom_flags(nix::libc::O_EXCL).open(&path);
        let is_held = opened.is_err_and(|error| error.raw_os_error() == Some(nix::libc::EBUSY));
        let own: Vec<_> =
            servers(directory)?.iter().map(|server| server.process.as_raw()).collect();
        let holders = match mount::namespaces_with(device.number) {
            Some(names) => Some(format!("by a mount in the mount namespace of {names}")),
            None if is_held => Some(mount::holders(&path, &own)),
            None => mount::known_holders(&path, &own),
        };
        let Some(holders) = holders else { return Ok(()) };
        if Instant::now() > deadline {
            return Err(Error::FailedPrecondition(format!(
                "{} is in use {holders}: end what uses it",
                device.name
            )));
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// A process that serves, or is about to.
struct Server {
    process: Pid,
    arguments: Vec<String>,
}

/// The volume's processes.
fn servers(directory: &Path) -> Result<Vec<Server>> {
    let cookie = cookie(directory);
    let processes = procfs::process::all_processes().map_err(|error| {
        Error::Internal(format!("cannot list the processes of this node: {error}"))
    })?;
    // A process that cannot be read has just ended.
    let servers = processes.flatten().filter_map(|process| {
        let arguments = process.cmdline().ok()?;
        let serves =
            arguments.first().is_some_and(|name| name == "rbd-nbd") && arguments.contains(&cookie);
        serves.then(|| Server { process: Pid::from_raw(process.pid), arguments })
    });
    Ok(servers.collect())
}

fn stop(directory: &Path, signal: Signal) -> Result<()> {
    for server in servers(directory)? {
        match signal::kill(server.process, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => {
                return Err(Error::Internal(format!(
                    "cannot end process {}: {error}",
                    server.process
                )));
            }
        }
    }
    Ok(())
}

/// Loads nbd if need be. `FailedPrecondition` when this kernel has none.
fn require_nbd() -> Result<()> {
    let module = Path::new("/sys/module/nbd");
    if module.exists() {
        return Ok(());
    }
    let missing = |why: &dyn std::fmt::Display| {
        Error::FailedPrecondition(format!(
            "this node's kernel has no nbd module ({why}): install it, or set the StorageClass parameter mounter to rbd or fuse"
        ))
    };
    let finished =
        programs::run(Program::Modprobe, &["nbd".as_ref()]).map_err(|error| missing(&error))?;
    if module.exists() {
        return Ok(());
    }
    Err(missing(&programs::describe(Program::Modprobe, &finished)))
}

fn device(path: &Path) -> Result<Device> {
    let file = path.join("dev");
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(Error::Unavailable(format!("{} has just gone", path.display())));
        }
        Err(error) => return Err(Error::io("read", &file, error)),
    };
    let number = text
        .trim()
        .split_once(':')
        .and_then(|(major, minor)| Some(makedev(major.parse().ok()?, minor.parse().ok()?)))
        .ok_or_else(|| Error::io("understand", &file, &text))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Device { name, number })
}

/// Why rbd-nbd did not map `image`. Whether cluster, user and image are there was looked at before,
/// by librbd itself.
fn map_error(image: &Image, key: Option<&Key>, finished: &Finished) -> Error {
    let mut words = programs::describe(Program::RbdNbd, finished);
    if let Some(key) = key {
        // librados repeats keys that it cannot read.
        words = words.replace(key.expose(), "(the key)");
    }
    let text = format!("cannot map {image}: {words}");
    let user = image.as_user(key.and_then(Key::key_type));
    if words.contains("(2) No such file or directory") {
        return Error::NotFound(text);
    }
    // The librados of rbd-nbd may be another than the driver's, and the cluster may have changed
    // its mind.
    if words.contains("(13) Permission denied") {
        return Error::Unauthenticated(format!("{text}; {}", user.refused()));
    }
    if words.contains("failed to decode key") {
        return Error::FailedPrecondition(format!(
            "{text}; {}",
            user.is_malformed_to("this node's rbd-nbd")
        ));
    }
    if words.contains("unknown args") {
        return Error::FailedPrecondition(format!(
            "{text}: this node's rbd-nbd does not know one of the mapOptions"
        ));
    }
    Error::Unavailable(text)
}
