//! The mounter `rbd`: the kernel's own client, krbd, through its files in /sys/bus/rbd. No `rbd`
//! program takes part.
//!
//! In the volume's directory (`D`) there is one file, `D/krbd`: the line the image is mapped by, as
//! krbd takes it, without a key. It is written before the image is mapped and goes after it is
//! unmapped. krbd shows with each of its devices the line it was made by, and the line of a volume
//! is its own (it names the volume's key in the keyring), so the volume's device is found again by
//! what the kernel says alone, and nothing else is ever taken for it. Where `D/krbd` was lost, the
//! name of the key tells the device. A volume without a key in a keyring is not found then.
//!
//! The key goes into a keyring ([`super::kernel_key`]). Where the kernel refuses that, as some
//! containers' system call filters do, it is written to krbd in the line itself, which then only
//! root can read, as long as the image is mapped.
//!
//! Writing to krbd's files waits for the cluster, and nothing ends such a write but a signal that
//! kills. So it is done by a program (dd) that has a deadline and calls itself by the path of
//! `D/krbd`. Crash points: before the mapping, between it and anything later, and while that
//! program still runs; [`detach`] takes down what is there and refuses while it runs.

mod bus;
mod line;
mod watches;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use zeroize::Zeroizing;

use super::attach::{Attachment, Device, Image, Watch};
use super::error::{Error, Result};
use super::kernel_key;
use super::kill::step;
use super::map_options::MapOptions;
use super::mount;
use crate::rbd::{Features, Key, KeyType};
use bus::{Refusal, mapped, mapped_as, write};
use line::{HIDDEN, line, names_key, without_secret};

/// How long a device may take to appear, to take its new size, or to be let go by who is just
/// looking at it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the line of a volume is kept.
fn line_file(directory: &Path) -> PathBuf {
    directory.join("krbd")
}

/// The name of a volume's key in the keyring. No other volume's key has it.
fn key_name(directory: &Path) -> String {
    let volume = directory.file_name().unwrap_or_default().to_string_lossy();
    format!("cinderblock-{volume}")
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
    bus::require_krbd()?;
    let key_type = key.and_then(Key::key_type);
    let key = key.map(kernel_key::payload).transpose()?.zip(key);
    let name = key_name(directory);
    let line = |credential: &str| line(image, credential, read_only, options);
    let named = line(&format!("key={name}"))?;
    let hidden = line(&format!("secret={HIDDEN}"))?;
    let outcome = match key {
        None => map(directory, &line("")?, None),
        Some((payload, key)) => {
            match kernel_key::with(&name, &payload, || map(directory, &named, None)) {
                Ok(outcome) => outcome,
                Err(errno) if kernel_key::is_refusal(errno) => Err(kernel_key::refused(image, key)),
                // No keyrings here.
                Err(_) => map(directory, &hidden, Some(key)),
            }
        }
    };
    let outcome = outcome.map_err(|error| match error {
        // Monitors that do not answer are a refusal; a wait for OSDs has no end of its own.
        Error::Unavailable(text) => Error::Unavailable(format!(
            "krbd cannot map {image}: {text}; the kernel's log says what it waits for{}",
            unencrypted(options)
        )),
        error => error,
    })?;
    outcome.map_err(|refusal| map_error(image, key_type, options, &refusal))?;
    let Attachment::Live(device) = find(directory)? else {
        return Err(Error::Unavailable(format!("{image} was mapped, and is not there now")));
    };
    require_only_mapping(directory, image, &device)?;
    bus::wait_for_node(&device, PATIENCE)?;
    Ok(device)
}

pub(super) fn find(directory: &Path) -> Result<Attachment> {
    let path = line_file(directory);
    let line = match fs::read_to_string(&path) {
        Ok(line) => Some(line),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(Error::io("read", &path, error)),
    };
    let key_name = key_name(directory);
    let own = mapped()?.into_iter().find(|mapped| {
        let shown = without_secret(&mapped.attribute("config_info"));
        match &line {
            Some(line) => shown == *line,
            // The file was lost.
            None => names_key(&shown, &key_name),
        }
    });
    own.map_or(Ok(Attachment::Absent), |mapped| mapped.device().map(Attachment::Live))
}

/// Whether `device` shows `image` itself, as krbd says.
pub(super) fn confirm(image: &Image, device: &Device) -> Result<()> {
    let mapped = mapped_as(device)?;
    let shown = |name: &str| mapped.attribute(name);
    let is_image = shown("pool") == image.pool
        && shown("pool_ns") == image.namespace
        && shown("name") == image.name
        && shown("current_snap") == "-";
    if is_image {
        return Ok(());
    }
    Err(Error::FailedPrecondition(format!(
        "{} is not the image {image} but {}/{}/{}: unmap it by hand",
        device.name,
        shown("pool"),
        shown("pool_ns"),
        shown("name")
    )))
}

pub(super) fn refresh(directory: &Path, image: &Image, device: &Device) -> Result<()> {
    let mapped = mapped_as(device)?;
    write(directory, &mapped.0.join("refresh"), "1")?.map_err(|refusal| {
        Error::Unavailable(format!("krbd cannot look up the size of {image}: {}", refusal.words))
    })?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let size = mapped.attribute("size").parse().unwrap_or(u64::MAX);
        if device.size()? >= size - size % 512 {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::Unavailable(format!(
                "{} does not grow to the {size} bytes of {image}",
                device.name
            )));
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// What krbd says of it in debugfs, where that is mounted.
pub(super) fn watch(device: &Device) -> Watch {
    let Ok(mapped) = mapped_as(device) else { return Watch::Unknown };
    let shown = |name: &str| mapped.attribute(name);
    let client = format!("{}.{}", shown("cluster_fsid"), shown("client_id"));
    let path = Path::new("/sys/kernel/debug/ceph").join(client).join("osdc");
    match fs::read_to_string(path) {
        Ok(requests) => watches::find(
            &requests,
            &shown("pool_id"),
            &format!("rbd_header.{}", shown("image_id")),
        ),
        Err(_) => Watch::Unknown,
    }
}

pub(super) fn client_address(device: &Device) -> Option<String> {
    let address = mapped_as(device).ok()?.attribute("client_addr");
    (!address.is_empty()).then_some(address)
}

pub(super) fn detach(directory: &Path) -> Result<()> {
    bus::require_no_writer(directory)?;
    while let Attachment::Live(device) = find(directory)? {
        unmap(directory, &device)?;
    }
    match fs::remove_file(line_file(directory)) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::io("remove", &line_file(directory), error))
        }
        _ => {
            step("the line of a mapping removed");
            Ok(())
        }
    }
}

/// Refuses what this node cannot map: without krbd anything, a key of a type it does not know, and
/// an image with features it does not know.
pub(super) fn check(
    image: &Image,
    key: Option<&Key>,
    features: impl FnOnce() -> Result<Features>,
) -> Result<()> {
    bus::require_krbd()?;
    key.map(|key| kernel_key::check(image, key)).transpose()?;
    let features = features()?;
    // A kernel too old to say which it knows says so when it maps.
    let lacking = bus::supported_features().map_or(0, |known| features.0 & !known);
    if lacking == 0 {
        return Ok(());
    }
    Err(Error::FailedPrecondition(format!(
        "{image} has the features {}, which this kernel's krbd does not know: {}",
        bus::feature_names(lacking),
        other_ways()
    )))
}

/// What to do about an image krbd does not take.
fn other_ways() -> String {
    let known =
        bus::supported_features().map_or_else(|| "few features".to_owned(), bus::feature_names);
    format!(
        "it knows {known}. Take the others off the image (rbd feature disable), or set the StorageClass parameter mounter to \
         rbd-nbd"
    )
}

/// Unmaps `device`. What has it open for a moment only is waited for.
fn unmap(directory: &Path, device: &Device) -> Result<()> {
    let id = device.name.trim_start_matches("rbd");
    let deadline = Instant::now() + PATIENCE;
    while let Err(refusal) =
        write(directory, &Path::new(bus::FOLDER).join("remove_single_major"), id)?
    {
        // Another process unmapped it.
        if refusal.errno == Errno::ENOENT {
            return Ok(());
        }
        if refusal.errno != Errno::EBUSY {
            return Err(Error::Unavailable(format!(
                "krbd does not unmap {}: {}",
                device.name, refusal.words
            )));
        }
        if Instant::now() > deadline {
            let holders = match mount::namespaces_with(device.number) {
                Some(names) => format!("by a mount in the mount namespace of {names}"),
                None => mount::holders(&device.path(), &[]),
            };
            return Err(Error::FailedPrecondition(format!(
                "{} is in use {holders}: end what uses it",
                device.name
            )));
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Has krbd map an image by `line`, which holds `key` hidden if it is to hold one.
fn map(
    directory: &Path,
    line: &str,
    key: Option<&Key>,
) -> Result<std::result::Result<(), Refusal>> {
    let path = line_file(directory);
    fs::write(&path, line).map_err(|error| Error::io("write", &path, error))?;
    step("the line of a mapping written");
    let whole = Zeroizing::new(match key {
        None => line.to_owned(),
        Some(key) => {
            line.replacen(&format!("secret={HIDDEN}"), &format!("secret={}", key.expose()), 1)
        }
    });
    write(directory, &Path::new(bus::FOLDER).join("add_single_major"), &whole)
}

/// Refuses an image that is mapped a second time: whichever process mapped it, two writers would
/// destroy it.
fn require_only_mapping(directory: &Path, image: &Image, device: &Device) -> Result<()> {
    let own = mapped_as(device)?;
    let identity = own.identity();
    let other =
        mapped()?.into_iter().find(|other| other.0 != own.0 && other.identity() == identity);
    let Some(other) = other else { return Ok(()) };
    detach(directory)?;
    Err(Error::FailedPrecondition(format!(
        "{image} is mapped already on this node, as /dev/{} and not by this driver: unmap it there first",
        other.device()?.name
    )))
}

/// Why krbd did not map `image`, as a user with a key of the type `key`.
fn map_error(
    image: &Image,
    key: Option<KeyType>,
    options: &MapOptions,
    refusal: &Refusal,
) -> Error {
    let text = format!("krbd cannot map {image}: {}", refusal.words);
    let user = image.as_user(key);
    match refusal.errno {
        Errno::ENOENT => Error::NotFound(text),
        Errno::ETIMEDOUT => {
            Error::Unavailable(format!("{text}: no monitor of {} answers", image.monitors))
        }
        Errno::EACCES | Errno::EKEYREJECTED | Errno::ENOKEY => {
            Error::Unauthenticated(format!("{text}; {}{}", user.refused(), unencrypted(options)))
        }
        Errno::EPERM => Error::FailedPrecondition(format!("{text}; {}", user.lacks_capabilities())),
        // Without keyrings the kernel sees the key here first.
        Errno::EINVAL if key == Some(KeyType::Aes256k) => {
            let kernel =
                "this kernel does not know one of the mapOptions, or a value of theirs; or it";
            Error::FailedPrecondition(format!(
                "{text}: {}; its log says which. {}",
                user.has_newer_key(kernel),
                user.aes_twin()
            ))
        }
        Errno::EINVAL => Error::FailedPrecondition(format!(
            "{text}: this kernel does not know one of the mapOptions, or a value of theirs; its log says which"
        )),
        Errno::ENXIO => Error::FailedPrecondition(format!(
            "{text}: this kernel's krbd lacks a feature of the image or of one it was cloned from: {}",
            other_ways()
        )),
        _ => Error::Unavailable(text),
    }
}

/// What else may be wrong where `options` ask for connections that are not encrypted.
fn unencrypted(options: &MapOptions) -> &'static str {
    if options.krbd.iter().any(|option| option == "ms_mode=crc") {
        "; or the cluster takes encrypted connections alone (ms_service_mode): then take ms_mode=crc off the mapOptions"
    } else {
        ""
    }
}
