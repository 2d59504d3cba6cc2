//! The `fuse` mounter: for kernels with neither an rbd nor an nbd module.
//!
//! One `qemu-storage-daemon` per volume opens the image through librbd and shows it as a regular
//! file over FUSE; a loop device on that file is the block device. In the volume's directory (`D`):
//!
//! - `D/export`: an empty file; the daemon mounts the image over it.
//! - `D/qmp`: the socket the daemon is commanded through.
//! - `D/ceph.conf`: how to reach the monitors; no key.
//! - `D/asok-N`: the admin socket of the image's N-th opening (below), by which [`watch`] asks.
//! - `D/loop`: which loop device it is.
//!
//! The Ceph key goes to the daemon over its socket and lives in its memory alone. It stays there as
//! the daemon's secret `key`, because growing opens the image once more.
//!
//! The daemon has its own session and outlives the driver. It does not outlive its container or pid
//! namespace, nor a systemd unit that kills its whole control group.
//!
//! Everything is found again without memory: the daemon by its command line (it holds the path of
//! `D/qmp`), the export in the mount table, the loop device as [`super::loop_device`] says. An
//! image counts as attached when all three are there, and as dead when the loop device is there
//! without the others. Crash points are the gaps between them; [`attach`] clears what is half-done
//! and starts over, and [`detach`] takes down whatever is there, in reverse order.
//!
//! The daemon's nodes are `device` (what is exported) on top of `image-N` (the opened image). QEMU
//! learns the size of an image when it opens it, so [`refresh`] opens it again as `image-N+1`, puts
//! that under `device` and closes the old one; QEMU flushes and holds I/O back meanwhile. The
//! obvious `block_resize` is not used: it sets the image's size, and would shrink an image that the
//! controller grew at the same moment.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::admin_socket;
use super::attach::{Attachment, Device, Image, Watch};
use super::bounded::bounded;
use super::error::{Error, Result};
use super::kill::step;
use super::loop_device::LoopDevice;
use super::mount::{self, MountTable};
use super::notes;
use super::programs::{self, Program};
use super::qmp::{Qmp, Refusal};
use crate::rbd::{Key, KeyType, Watcher};

/// How long the daemon waits for monitors, in seconds.
const MONITOR_PATIENCE: u32 = 20;

/// How long a daemon may take to close its image and go.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// How long a daemon may take to write back what it holds.
const SYNC_PATIENCE: Duration = Duration::from_mins(1);

/// What the names of admin sockets begin with.
const ADMIN_SOCKET: &str = "asok-";

fn socket(directory: &Path) -> PathBuf {
    directory.join("qmp")
}

fn export(directory: &Path) -> PathBuf {
    directory.join("export")
}

fn configuration(directory: &Path) -> PathBuf {
    directory.join("ceph.conf")
}

/// Where the admin sockets of all openings are.
fn admin_socket_paths(directory: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error: std::io::Error| Error::io("list", directory, error);
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries.collect::<std::io::Result<Vec<_>>>().map_err(failed)?,
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(failed(error)),
    };
    let is_one = |name: &OsStr| name.to_str().is_some_and(|name| name.starts_with(ADMIN_SOCKET));
    Ok(entries
        .iter()
        .filter(|entry| is_one(&entry.file_name()))
        .map(std::fs::DirEntry::path)
        .collect())
}

fn loop_device(directory: &Path) -> LoopDevice {
    LoopDevice { file: export(directory), identity: directory.join("loop") }
}

/// The daemon's argument that names its socket, and by which its process is known.
fn socket_argument(directory: &Path) -> String {
    // QEMU reads a doubled comma as one that separates nothing.
    let path = socket(directory).display().to_string().replace(',', ",,");
    format!("socket,id=qmp,path={path},server=on,wait=off")
}

/// Attaches what is not attached, where nothing is left half-done. See [`super::attach`] for what
/// this and the functions below promise.
pub(super) fn attach(
    directory: &Path,
    image: &Image,
    key: Option<&Key>,
    read_only: bool,
) -> Result<Device> {
    start_daemon(directory)?;
    let mut qmp = Qmp::connect(&socket(directory))?;
    open_image(&mut qmp, directory, image, key, read_only)?;
    loop_device(directory).attach(read_only)?;
    match find(directory)? {
        Attachment::Live(device) => Ok(device),
        other => Err(Error::Unavailable(format!("{image} was attached, but is {other:?} now"))),
    }
}

pub(super) fn find(directory: &Path) -> Result<Attachment> {
    let Some(device) = loop_device(directory).find()? else { return Ok(Attachment::Absent) };
    let exported = MountTable::read()?.at(&export(directory)).is_some();
    let alive = exported && !daemons(directory)?.is_empty();
    Ok(if alive { Attachment::Live(device) } else { Attachment::Dead(device) })
}

pub(super) fn confirm(directory: &Path, image: &Image, device: &Device) -> Result<()> {
    if find(directory)? != Attachment::Live(device.clone()) {
        return Err(Error::Unavailable(format!(
            "{} does not show the image {image} any more",
            device.name
        )));
    }
    let mut qmp = Qmp::connect(&socket(directory))?;
    let opened = nodes(&mut qmp)?;
    let shown = opened.iter().filter_map(opened_image).collect::<Vec<_>>();
    match &shown[..] {
        [shown] if *shown == image.to_string() => Ok(()),
        _ => Err(Error::FailedPrecondition(format!(
            "the storage daemon of {} shows {shown:?} and not {image}: unstage the volume and stage it again",
            device.name
        ))),
    }
}

/// The spec of the image that a node of the daemon's is, if it is one.
fn opened_image(node: &Value) -> Option<String> {
    if node["drv"] != "rbd" {
        return None;
    }
    let options: Value =
        serde_json::from_str(node["file"].as_str()?.strip_prefix("json:")?).ok()?;
    let text = |key: &str| options[key].as_str().unwrap_or_default().to_owned();
    let image = Image {
        pool: text("pool"),
        namespace: text("namespace"),
        name: text("image"),
        monitors: String::new(),
        user: None,
    };
    Some(image.to_string())
}

pub(super) fn refresh(
    directory: &Path,
    image: &Image,
    key: Option<&Key>,
    read_only: bool,
    device: &Device,
    admit: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let mut qmp = Qmp::connect(&socket(directory))?;
    // The one it has may be older than a rotation.
    if let Some(key) = key {
        qmp.set_secret("key", key)?;
    }
    let size = reopen_image(&mut qmp, directory, image, read_only, admit)?;
    loop_device(directory).grow(device, size)
}

pub(super) fn detach(directory: &Path) -> Result<()> {
    let loop_device = loop_device(directory);
    if let Some(device) = loop_device.find()? {
        loop_device.detach(&device)?;
    }
    stop_daemons(directory)?;
    let export = export(directory);
    while MountTable::read()?.at(&export).is_some() {
        mount::unmount(&export)?;
    }
    for path in admin_socket_paths(directory)? {
        admin_socket::remove(&path)?;
    }
    let draft = loop_device.identity_draft();
    for path in [export, socket(directory), configuration(directory), draft, loop_device.identity] {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::io("remove", &path, error));
            }
            _ => step("file removed"),
        }
    }
    Ok(())
}

/// Starts a daemon that has nothing open yet. When this returns, its socket accepts connections.
fn start_daemon(directory: &Path) -> Result<()> {
    if socket(directory).as_os_str().len() > admin_socket::PATH_LIMIT {
        return Err(Error::FailedPrecondition(format!(
            "{} is too long for a unix socket: choose a shorter state directory",
            socket(directory).display()
        )));
    }
    let argument = socket_argument(directory);
    let arguments = ["--daemonize", "--chardev", &argument, "--monitor", "chardev=qmp"]
        .map(std::convert::AsRef::as_ref);
    programs::succeed(Program::QemuStorageDaemon, &arguments).map(drop)
}

/// Has the daemon open the image and export it.
fn open_image(
    qmp: &mut Qmp,
    directory: &Path,
    image: &Image,
    key: Option<&Key>,
    read_only: bool,
) -> Result<()> {
    let is_address = |byte: u8| byte.is_ascii_alphanumeric() || b".:,[]/_-".contains(&byte);
    if image.monitors.is_empty() || !image.monitors.bytes().all(is_address) {
        return Err(Error::InvalidArgument(format!(
            "{:?} are no addresses of monitors",
            image.monitors
        )));
    }
    write_configuration(directory, image, 0)?;
    let export = export(directory);
    std::fs::write(&export, "").map_err(|error| Error::io("write", &export, error))?;
    step("place of the export made");

    if let Some(key) = key {
        qmp.set_secret("key", key)?;
    }
    qmp.execute("blockdev-add", &image_options(directory, image, read_only, 0))?
        .map_err(|refusal| open_error(image, key.and_then(Key::key_type), &refusal))?;
    qmp.require("blockdev-add", &device_options(read_only, 0))?;
    qmp.require(
        "block-export-add",
        &json!({"type": "fuse", "id": "export", "node-name": "device", "mountpoint": export, "writable": !read_only}),
    )
    .map(drop)
}

/// Says how the image is opened for the `number`-th time.
fn write_configuration(directory: &Path, image: &Image, number: u64) -> Result<()> {
    let path = configuration(directory);
    // No timeouts for I/O here: a volume waits out an outage of the cluster, as krbd does.
    let text = format!(
        "[global]\nmon_host = {}\nclient_mount_timeout = {MONITOR_PATIENCE}\nkeyring = /dev/null\n{}",
        image.monitors,
        admin_socket::line(&directory.join(format!("{ADMIN_SOCKET}{number}")))
    );
    std::fs::write(&path, text).map_err(|error| Error::io("write", &path, error))?;
    step("configuration written");
    Ok(())
}

/// What the daemon says of its openings: one, but for an interrupted growth.
pub(super) fn watch(directory: &Path) -> Watch {
    let answers: Vec<_> = admin_socket_paths(directory)
        .unwrap_or_default()
        .iter()
        .map(|path| admin_socket::watch(path))
        .collect();
    [Watch::Held, Watch::Lost]
        .into_iter()
        .find(|watch| answers.contains(watch))
        .unwrap_or(Watch::Unknown)
}

/// The addresses of the daemon's clients: each opening of the image has its own.
pub(super) fn clients(directory: &Path, watchers: &[Watcher]) -> Result<BTreeSet<String>> {
    notes::clients_of(daemons(directory)?.into_iter().map(Pid::as_raw), watchers)
}

/// Has the daemon open the image again in place of the one it has. Returns the image's size in
/// bytes. The new opening does not write before `admit` allowed it.
fn reopen_image(
    qmp: &mut Qmp,
    directory: &Path,
    image: &Image,
    read_only: bool,
    admit: impl FnOnce() -> Result<()>,
) -> Result<u64> {
    // An interrupted reopening left a second one; the one in use refuses to go.
    for number in open_images(qmp)? {
        let _in_use = qmp.execute("blockdev-del", &json!({"node-name": image_node(number)}))?;
    }
    let [old] = open_images(qmp)?[..] else {
        return Err(Error::Internal(format!("the storage daemon has not one opening of {image}")));
    };
    let new = old.wrapping_add(1);
    write_configuration(directory, image, new)?;
    qmp.execute("blockdev-add", &image_options(directory, image, read_only, new))?
        .map_err(|refusal| open_error(image, None, &refusal))?;
    if let Err(error) = admit() {
        qmp.require("blockdev-del", &json!({"node-name": image_node(new)}))?;
        return Err(error);
    }
    qmp.require("blockdev-reopen", &json!({"options": [device_options(read_only, new)]}))?;
    qmp.require("blockdev-del", &json!({"node-name": image_node(old)}))?;
    nodes(qmp)?
        .iter()
        .find(|node| node["node-name"] == "device")
        .and_then(|node| node["image"]["virtual-size"].as_u64())
        .ok_or_else(|| {
            Error::Internal(format!("the storage daemon does not tell the size of {image}"))
        })
}

fn nodes(qmp: &mut Qmp) -> Result<Vec<Value>> {
    match qmp.require("query-named-block-nodes", &json!({"flat": true}))? {
        Value::Array(nodes) => Ok(nodes),
        other => Err(Error::Internal(format!("the storage daemon lists no nodes but {other}"))),
    }
}

/// The numbers `N` of the nodes `image-N`.
fn open_images(qmp: &mut Qmp) -> Result<Vec<u64>> {
    let nodes = nodes(qmp)?;
    let names = nodes.iter().filter_map(|node| node["node-name"].as_str());
    Ok(names.filter_map(|name| name.strip_prefix("image-")?.parse().ok()).collect())
}

fn image_node(number: u64) -> String {
    format!("image-{number}")
}

fn image_options(directory: &Path, image: &Image, read_only: bool, number: u64) -> Value {
    let mut options = json!({
        "driver": "rbd",
        "node-name": image_node(number),
        "pool": image.pool,
        "namespace": image.namespace,
        "image": image.name,
        "conf": configuration(directory),
        // With librbd's cache a flush can say that a write is durable which has failed.
        "cache": {"direct": true},
        "discard": "unmap",
        "read-only": read_only,
        "auth-client-required": ["none"],
    });
    if let Some(user) = &image.user {
        options["user"] = json!(user);
        options["key-secret"] = json!("key");
        options["auth-client-required"] = json!(["cephx"]);
    }
    options
}

fn device_options(read_only: bool, number: u64) -> Value {
    json!({
        "driver": "raw",
        "node-name": "device",
        "file": image_node(number),
        "discard": "unmap",
        "read-only": read_only,
    })
}

/// Why an image could not be opened as a user with a key of the type `key`, from the daemon's
/// words: they end in the text of an errno.
fn open_error(image: &Image, key: Option<KeyType>, refusal: &Refusal) -> Error {
    let text = format!("cannot open the image {image}: {refusal}");
    let user = image.as_user(key);
    if refusal.starts_with("error connecting") {
        return match refusal.rsplit(": ").next() {
            Some("Permission denied" | "Operation not permitted") => {
                Error::Unauthenticated(format!("{text}; {}", user.refused()))
            }
            // librados 20 forgets a key that it cannot decode, and then misses a keyring.
            Some("Invalid argument" | "No such file or directory") => {
                Error::FailedPrecondition(format!(
                    "{text}; {}",
                    user.is_malformed_to("the librados of this node's qemu-storage-daemon")
                ))
            }
            _ => Error::Unavailable(format!("{text}: no monitor of {} answers", image.monitors)),
        };
    }
    if refusal.ends_with("No such file or directory") || refusal.ends_with("does not exist") {
        return Error::NotFound(text);
    }
    if refusal.ends_with("Operation not permitted") || refusal.ends_with("Permission denied") {
        return Error::FailedPrecondition(format!("{text}; {}", user.lacks_capabilities()));
    }
    Error::Unavailable(text)
}

/// The processes of the volume's daemons: one, or more when a start was interrupted.
fn daemons(directory: &Path) -> Result<Vec<Pid>> {
    let argument = socket_argument(directory);
    let processes = procfs::process::all_processes().map_err(|error| {
        Error::Internal(format!("cannot list the processes of this node: {error}"))
    })?;
    // A process that cannot be read has just ended.
    let running = processes
        .flatten()
        .filter(|process| process.cmdline().is_ok_and(|arguments| arguments.contains(&argument)));
    Ok(running.map(|process| Pid::from_raw(process.pid)).collect())
}

/// Ends the volume's daemons. Nothing may use the export any more.
fn stop_daemons(directory: &Path) -> Result<()> {
    if daemons(directory)?.is_empty() {
        return Ok(());
    }
    // Once all is on disk, a daemon that does not end by itself can be killed without losing a
    // write.
    let export = export(directory);
    if MountTable::read()?.at(&export).is_some() {
        let what = "the storage daemon cannot write back what it holds";
        let outcome = bounded(what, SYNC_PATIENCE, move || {
            Ok(File::open(&export).and_then(|export| export.sync_all()))
        })?;
        match outcome {
            // The cluster takes no write of this client's any more, so there is nothing to wait
            // for.
            Err(error) if error.raw_os_error() == Some(Errno::ESHUTDOWN as i32) => {
                tracing::warn!(directory = %directory.display(), "this node was fenced: what it had not written is lost");
            }
            other => other.map_err(|error| Error::Unavailable(format!("{what}: {error}")))?,
        }
    }
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        for process in daemons(directory)? {
            match kill(process, signal) {
                Ok(()) | Err(Errno::ESRCH) => step("daemon told to end"),
                Err(error) => {
                    return Err(Error::Internal(format!("cannot end process {process}: {error}")));
                }
            }
        }
        let deadline = Instant::now() + STOP_PATIENCE;
        while Instant::now() < deadline {
            if daemons(directory)?.is_empty() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    Err(Error::Unavailable(format!("the storage daemon of {} does not end", directory.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        Image {
            pool: "rbd".into(),
            namespace: String::new(),
            name: "i".into(),
            monitors: "10.0.0.1".into(),
            user: Some("csi".into()),
        }
    }

    #[test]
    fn refusals_are_told_apart() {
        let kind = |refusal: &str| open_error(&image(), None, &refusal.to_owned());
        for (refusal, expected) in [
            ("error connecting: Permission denied", "Unauthenticated"),
            ("error connecting: Invalid argument", "FailedPrecondition"),
            ("error connecting: No such file or directory", "FailedPrecondition"),
            ("error connecting: Connection timed out", "Unavailable"),
            ("error reading header from i: No such file or directory", "NotFound"),
            ("error opening pool rbd: No such file or directory", "NotFound"),
            ("namespace 'n' does not exist", "NotFound"),
            ("error reading header from i: Operation not permitted", "FailedPrecondition"),
            ("error reading header from i: Input/output error", "Unavailable"),
        ] {
            assert!(format!("{:?}", kind(refusal)).starts_with(expected), "{refusal}");
        }
    }

    #[test]
    fn the_key_is_no_part_of_what_the_daemon_is_told_about_the_image() {
        let options = image_options(Path::new("/d"), &image(), true, 3);
        assert_eq!(options["key-secret"], "key");
        assert_eq!(options["node-name"], "image-3");
        assert_eq!(options["read-only"], true);
        assert_eq!(options["cache"]["direct"], true);
        let open = Image { user: None, ..image() };
        let options = image_options(Path::new("/d"), &open, false, 0);
        assert_eq!(options["auth-client-required"], json!(["none"]));
        assert!(options.get("user").is_none() && options.get("key-secret").is_none());
    }

    #[test]
    fn a_comma_in_the_path_does_not_end_the_argument() {
        assert_eq!(
            socket_argument(Path::new("/a,b")),
            "socket,id=qmp,path=/a,,b/qmp,server=on,wait=off"
        );
    }

    #[test]
    fn a_directory_without_anything_has_nothing_attached() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(find(folder.path()).unwrap(), Attachment::Absent);
        detach(folder.path()).unwrap();
    }
}
