//! Attaching an image to the node as a block device.
//!
//! A [`Mounter`] is one way to do that. What each of them promises:
//!
//! - `attach` is idempotent. What an earlier attempt left half-done is cleared first; an attached
//!   image is returned.
//! - `find` tells from the kernel and the process table alone what is attached, so it works after a
//!   restart of the driver. It does not touch the device, so it does not hang with it.
//! - `detach` is idempotent, refuses (`FailedPrecondition`) while the device is in use, and loses
//!   no write that was acknowledged. It also clears what is half-done or dead.
//! - `refresh` makes the device as large as the image is now, with I/O going on. It never resizes
//!   the image.
//! - `watch` asks what the client knows by itself, and not the cluster, so it answers when that
//!   does not.
//!
//! The Ceph key is given to `attach` alone, and is never an argument, an environment variable or a
//! file.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::map_options::MapOptions;
use super::mount::DeviceNumber;
use super::{fuse, krbd, nbd};
use crate::rbd::{Features, Key, KeyType, User, Watcher};

/// An image, and how its cluster is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The pool.
    pub pool: String,
    /// The RADOS namespace, "" for the default one.
    pub namespace: String,
    /// The image's name.
    pub name: String,
    /// The monitors in the form of ceph.conf's `mon_host`.
    pub monitors: String,
    /// The Ceph user without `client.`; `None` when the cluster authenticates no client.
    pub user: Option<String>,
}

impl Image {
    /// Has `monitors` asked too, in the form of ceph.conf's `mon_host`.
    pub(super) fn add_monitors(&mut self, monitors: &str) {
        let are_asked =
            self.monitors == monitors || self.monitors.starts_with(&format!("{monitors},"));
        if !monitors.is_empty() && !are_asked {
            self.monitors = format!("{monitors},{}", self.monitors);
        }
    }

    /// Its user, whose key is of the kind `key`, for what to say of it.
    pub(super) fn as_user(&self, key: Option<KeyType>) -> User<'_> {
        User {
            name: self.user.as_deref().unwrap_or_default(),
            key,
            pool: &self.pool,
            namespace: &self.namespace,
        }
    }
}

impl fmt::Display for Image {
    /// The image spec, as the `rbd` program takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.namespace.is_empty() { "" } else { "/" };
        write!(f, "{}/{}{separator}{}", self.pool, self.namespace, self.name)
    }
}

/// A way to attach images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mounter {
    /// The kernel's own client.
    Rbd,
    /// A process of the rbd-nbd program, and a network block device of the kernel's in front of it.
    RbdNbd,
    /// A qemu-storage-daemon that shows the image as a file, and a loop device on it.
    Fuse,
}

impl Mounter {
    /// What StorageClasses call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Mounter::Rbd => "rbd",
            Mounter::RbdNbd => "rbd-nbd",
            Mounter::Fuse => "fuse",
        }
    }
}

impl FromStr for Mounter {
    type Err = Error;

    /// `InvalidArgument` for a mounter that the driver does not know. Whether this node has what it
    /// takes shows when it attaches.
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "rbd" => Ok(Mounter::Rbd),
            "fuse" => Ok(Mounter::Fuse),
            "rbd-nbd" => Ok(Mounter::RbdNbd),
            _ => Err(Error::InvalidArgument(format!("there is no mounter {name:?}"))),
        }
    }
}

/// A block device of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    /// Its name in /dev and /sys.
    pub(super) name: String,
    /// Its number.
    pub(super) number: DeviceNumber,
}

impl Device {
    /// The device node.
    pub(super) fn path(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    /// The size in bytes as the kernel has it now.
    pub(super) fn size(&self) -> Result<u64> {
        const SECTOR: u64 = 512;
        let path = PathBuf::from(format!("/sys/block/{}/size", self.name));
        let text =
            std::fs::read_to_string(&path).map_err(|error| Error::io("read", &path, error))?;
        text.trim()
            .parse::<u64>()
            .map(|sectors| sectors * SECTOR)
            .map_err(|error| Error::io("understand", &path, error))
    }
}

/// What is there of an image on this node.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Attachment {
    /// No device. There may be remains for `detach` to clear.
    Absent,
    /// A device that serves I/O.
    Live(Device),
    /// A device whose server is gone: it answers everything with errors. It has to be unstaged.
    Dead(Device),
}

/// The watch on an image: by it a client hears that its image has grown, and others hear that the
/// image is in use. Ceph takes it from a client that was silent for 30 seconds, and from one that
/// it refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watch {
    /// The client has it, as far as it knows.
    Held,
    /// It was lost and is not back; a client that may have it takes it again at once.
    Lost,
    /// There is no telling here.
    Unknown,
}

impl Mounter {
    /// Attaches `image`. `directory` is the volume's own place for files; `key` is there when the
    /// image has a user. `NotFound` when there is no such image, `Unauthenticated` when Ceph
    /// refuses the user or the key, `Unavailable` when the cluster does not answer,
    /// `FailedPrecondition` when the node lacks what the mounter or the image takes.
    pub(super) fn attach(
        self,
        directory: &Path,
        image: &Image,
        key: Option<&Key>,
        read_only: bool,
        options: &MapOptions,
    ) -> Result<Device> {
        if let Attachment::Live(device) = self.find(directory)? {
            return Ok(device);
        }
        self.detach(directory)?;
        match self {
            Mounter::Rbd => krbd::attach(directory, image, key, read_only, options),
            Mounter::RbdNbd => nbd::attach(directory, image, key, read_only, options),
            Mounter::Fuse => fuse::attach(directory, image, key, read_only),
        }
    }

    /// What is attached for the volume of `directory`.
    pub(super) fn find(self, directory: &Path) -> Result<Attachment> {
        match self {
            Mounter::Rbd => krbd::find(directory),
            Mounter::RbdNbd => nbd::find(directory),
            Mounter::Fuse => fuse::find(directory),
        }
    }

    /// Brings a dead `device` back to life under its users, where the mounter can; what is attached
    /// afterwards.
    pub(super) fn revive(
        self,
        directory: &Path,
        image: &Image,
        key: Option<&Key>,
        read_only: bool,
        options: &MapOptions,
        device: Device,
    ) -> Result<Attachment> {
        match self {
            Mounter::RbdNbd => nbd::revive(directory, image, key, read_only, options, &device),
            Mounter::Rbd | Mounter::Fuse => Ok(Attachment::Dead(device)),
        }
    }

    /// Refuses (`FailedPrecondition`) what this node cannot attach whatever the cluster does,
    /// before it is tried: an image with these `features`, which are only asked for where they
    /// matter, or as a user with such a key.
    pub(super) fn check(
        self,
        image: &Image,
        key: Option<&Key>,
        features: impl FnOnce() -> Result<Features>,
    ) -> Result<()> {
        match self {
            Mounter::Rbd => krbd::check(image, key, features),
            Mounter::RbdNbd => nbd::check(key, features),
            Mounter::Fuse => Ok(()),
        }
    }

    /// Asks the mounter itself whether it is `image` that `device` shows. `FailedPrecondition` when
    /// it is another one, `Unavailable` when there is no telling.
    pub(super) fn confirm(self, directory: &Path, image: &Image, device: &Device) -> Result<()> {
        match self {
            Mounter::Rbd => krbd::confirm(image, device),
            Mounter::RbdNbd => nbd::confirm(directory, image, device),
            Mounter::Fuse => fuse::confirm(directory, image, device),
        }
    }

    /// Takes up the image's present size. `key` is the one that the image's user has now, if it is
    /// known; `image_size` asks the cluster for the size, where the mounter cannot; `admit` is
    /// asked before a new client of the image may write. `Unavailable` when the cluster or the
    /// device's server does not answer.
    #[allow(clippy::too_many_arguments, reason = "what the three mounters need, together")]
    pub(super) fn refresh(
        self,
        directory: &Path,
        image: &Image,
        key: Option<&Key>,
        read_only: bool,
        device: &Device,
        image_size: impl FnOnce() -> Result<u64>,
        admit: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        match self {
            Mounter::Rbd => krbd::refresh(directory, image, device),
            Mounter::RbdNbd => nbd::refresh(directory, image, read_only, device, image_size),
            Mounter::Fuse => fuse::refresh(directory, image, key, read_only, device, admit),
        }
    }

    /// Whether the client of the volume of `directory`, which has it for writing, watches its
    /// image.
    pub(super) fn watch(self, directory: &Path, device: &Device) -> Watch {
        match self {
            Mounter::Rbd => krbd::watch(device),
            Mounter::RbdNbd => nbd::watch(directory),
            Mounter::Fuse => fuse::watch(directory),
        }
    }

    /// The addresses Ceph knows the clients by that serve `device`: one, but for an interrupted
    /// [`refresh`](Self::refresh). `watchers` says who watches the image, where that is needed.
    pub(super) fn clients(
        self,
        directory: &Path,
        device: &Device,
        watchers: impl FnOnce() -> Result<Vec<Watcher>>,
    ) -> Result<BTreeSet<String>> {
        match self {
            Mounter::Rbd => Ok(krbd::client_address(device).into_iter().collect()),
            Mounter::RbdNbd => nbd::clients(directory, &watchers()?),
            Mounter::Fuse => fuse::clients(directory, &watchers()?),
        }
    }

    /// The address Ceph knows the client of `device` by, where the mounter can tell.
    pub(super) fn client_address(self, device: &Device) -> Option<String> {
        match self {
            Mounter::Rbd => krbd::client_address(device),
            Mounter::RbdNbd | Mounter::Fuse => None,
        }
    }

    /// Detaches the image of the volume of `directory` and removes the mounter's files there.
    pub(super) fn detach(self, directory: &Path) -> Result<()> {
        match self {
            Mounter::Rbd => krbd::detach(directory),
            Mounter::RbdNbd => nbd::detach(directory),
            Mounter::Fuse => fuse::detach(directory),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_named_by_its_spec() {
        let mut image = Image {
            pool: "p".into(),
            namespace: String::new(),
            name: "i".into(),
            monitors: String::new(),
            user: None,
        };
        assert_eq!(image.to_string(), "p/i");
        image.namespace = "n".into();
        assert_eq!(image.to_string(), "p/n/i");
    }

    #[test]
    fn monitors_are_added_once() {
        let mut image = Image { monitors: "10.0.0.1".into(), ..Image::default() };
        for monitors in ["", "10.0.0.1", "10.0.0.2", "10.0.0.2"] {
            image.add_monitors(monitors);
        }
        assert_eq!(image.monitors, "10.0.0.2,10.0.0.1");
        let mut image = Image { monitors: "10.0.0.10".into(), ..Image::default() };
        image.add_monitors("10.0.0.1");
        assert_eq!(image.monitors, "10.0.0.1,10.0.0.10", "one address begins like the other");
    }

    #[test]
    fn mounters_are_told_apart() {
        assert_eq!("rbd-nbd".parse::<Mounter>().unwrap(), Mounter::RbdNbd);
        assert_eq!("fuse".parse::<Mounter>().unwrap(), Mounter::Fuse);
        assert_eq!("rbd".parse::<Mounter>().unwrap(), Mounter::Rbd);
        assert!(matches!("nfs".parse::<Mounter>(), Err(Error::InvalidArgument(_))));
    }
}
