//! What is remembered in an image's own metadata of what was written to it, so that no later probe
//! of its device, however wrong, has it formatted over.
//!
//! The key [`CONTENT_KEY`] holds one of
//!
//! - `mkfs FS,UUID`: a filesystem with this UUID was about to be made on a device proven to be
//!   blank. It was never mounted: that comes after the next one is written.
//! - `FS,UUID`: the image holds this filesystem.
//! - `block`: the image was handed out as a raw device, and holds what its user wrote.
//!
//! librbd copies metadata to clones and copies, so those are marked as their source is. A value
//! that the driver did not write, and a mark that cannot be read, are errors and never "no mark".

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::attach::Image;
use super::bounded::bounded;
use super::error::{Error, Result};
use super::filesystem::FsType;
use super::kill;
use crate::rbd::ceph::libraries;
use crate::rbd::{self, Cluster, Errno, Features, ImageKey, KeyType, OpenMode, Pool, Watcher};

/// The metadata key.
pub const CONTENT_KEY: &str = "cinderblock.content";

/// How long one reading or writing may take, connecting included. A connection and each operation
/// have timeouts of their own; this is for the waits inside librados that know none.
const PATIENCE: Duration = Duration::from_mins(1);

/// What was written to an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mark {
    /// Perhaps the beginnings of a filesystem; nothing else.
    Making(FsType, String),
    /// A filesystem, by type and UUID.
    Filesystem(FsType, String),
    /// Whatever the user of a raw device wrote.
    Block,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mark::Making(fs_type, uuid) => write!(f, "mkfs {fs_type},{uuid}"),
            Mark::Filesystem(fs_type, uuid) => write!(f, "{fs_type},{uuid}"),
            Mark::Block => f.write_str("block"),
        }
    }
}

impl FromStr for Mark {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        let filesystem = |text: &str| {
            let (fs_type, uuid) = text.split_once(',').ok_or(())?;
            Ok((fs_type.parse().map_err(drop)?, uuid.to_owned()))
        };
        match text.strip_prefix("mkfs ") {
            Some(rest) => {
                let (fs_type, uuid) = filesystem(rest)?;
                uuid.parse::<uuid::Uuid>().map_err(drop)?;
                Ok(Mark::Making(fs_type, uuid))
            }
            None if text == "block" => Ok(Mark::Block),
            None => filesystem(text).map(|(fs_type, uuid)| Mark::Filesystem(fs_type, uuid)),
        }
    }
}

/// How the image's cluster is reached, as the user who attaches it.
pub(super) type Connect = dyn Fn() -> rbd::Result<Arc<dyn Cluster>> + Send + Sync;

/// The mark of one image.
#[derive(Clone)]
pub(super) struct Marks {
    image: Image,
    key: Option<KeyType>,
    connect: Arc<Connect>,
}

impl Marks {
    /// The mark of `image`, whose user has a key of the type `key`.
    pub(super) fn new(image: Image, key: Option<KeyType>, connect: Arc<Connect>) -> Self {
        Self { image, key, connect }
    }

    /// The image's mark, if it has one. `FailedPrecondition` for one that makes no sense;
    /// `Unavailable`, `NotFound`, `Unauthenticated`, or `FailedPrecondition` with the command that
    /// gives the user its rights, when it cannot be read.
    pub(super) fn read(&self) -> Result<Option<Mark>> {
        let text = self.with_image(OpenMode::ReadOnly, |image| image.metadata_get(CONTENT_KEY))?;
        text.map(|text| {
            text.parse().map_err(|()| {
                Error::FailedPrecondition(format!(
                    "the metadata of the image {} has {CONTENT_KEY} {text:?}, which this version of the driver does not know; the \
                     image is left alone",
                    self.image
                ))
            })
        })
        .transpose()
    }

    /// Sets the image's mark. Errors as [`Marks::read`]; the mark may have been set then.
    pub(super) fn write(&self, mark: &Mark) -> Result<()> {
        let text = mark.to_string();
        self.with_image(OpenMode::ReadWrite, move |image| image.metadata_set(CONTENT_KEY, &text))?;
        kill::step("image marked");
        Ok(())
    }

    /// The image's features. Errors as [`Marks::read`].
    pub(super) fn features(&self) -> Result<Features> {
        self.with_image(OpenMode::ReadOnly, |image| image.info().map(|info| info.features))
    }

    /// The image's size in bytes. Errors as [`Marks::read`].
    pub(super) fn size(&self) -> Result<u64> {
        self.with_image(OpenMode::ReadOnly, |image| image.info().map(|info| info.size))
    }

    /// The image.
    pub(super) fn image(&self) -> &Image {
        &self.image
    }

    /// The clients that have the image open for writing. Errors as [`Marks::read`].
    pub(super) fn watchers(&self) -> Result<Vec<Watcher>> {
        self.with_image(OpenMode::ReadOnly, |image| image.watchers())
    }

    /// Does something else in the image's pool, within `patience`. Errors as [`Marks::read`],
    /// behind `what`.
    pub(super) fn with_pool<T: Send + 'static>(
        &self,
        what: &str,
        patience: Duration,
        work: impl FnOnce(&dyn Pool) -> rbd::Result<T> + Send + 'static,
    ) -> Result<T> {
        let Self { image, key, connect } = self.clone();
        let what = format!("{what} {image}");
        bounded(&what.clone(), patience, move || {
            let work = || work(&*connect()?.pool(&image.pool, &image.namespace)?);
            work().map_err(|error| explain(&image, key, &what, &error))
        })
    }

    fn with_image<T: Send + 'static>(
        &self,
        mode: OpenMode,
        work: impl FnOnce(&dyn rbd::Image) -> rbd::Result<T> + Send + 'static,
    ) -> Result<T> {
        let Self { image, key, connect } = self.clone();
        let what = match mode {
            OpenMode::ReadOnly => format!("cannot read the metadata of the image {image}"),
            OpenMode::ReadWrite => format!("cannot change the metadata of the image {image}"),
        };
        bounded(&what.clone(), PATIENCE, move || {
            let work = || {
                let pool = connect()?.pool(&image.pool, &image.namespace)?;
                work(&*pool.open_image(ImageKey::Name(&image.name), mode)?)
            };
            work().map_err(|error| explain(&image, key, &what, &error))
        })
    }
}

/// What an error of Ceph means for a node.
fn explain(image: &Image, key: Option<KeyType>, what: &str, error: &rbd::Error) -> Error {
    let text = format!("{what}: {error}");
    let user = image.as_user(key);
    match error.errno {
        Errno::ENOENT => Error::NotFound(text),
        Errno::EACCES => Error::Unauthenticated(format!("{text}; {}", user.refused())),
        Errno::EPERM => Error::FailedPrecondition(format!("{text}; {}", user.lacks_capabilities())),
        Errno::EINVAL if error.call == "rados_connect" => {
            let client = format!("the librados of this driver, Ceph {},", libraries().ceph);
            Error::FailedPrecondition(format!("{text}; {}", user.is_malformed_to(&client)))
        }
        _ => Error::Unavailable(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_written_and_read_back() {
        let uuid = "0f6b2f5c-6d52-4c0c-9a63-5f5f2d3c1f10";
        for (mark, text) in [
            (Mark::Making(FsType::Xfs, uuid.into()), format!("mkfs xfs,{uuid}")),
            (Mark::Filesystem(FsType::Ext4, uuid.into()), format!("ext4,{uuid}")),
            (Mark::Block, "block".to_owned()),
        ] {
            assert_eq!(mark.to_string(), text);
            assert_eq!(text.parse(), Ok(mark));
        }
        for text in ["", "mkfs", "mkfs ", "mkfs ext4", "mkfs ext4,x", "btrfs,x", "Block", "ext4"] {
            assert_eq!(text.parse::<Mark>(), Err(()), "{text:?}");
        }
    }

    #[test]
    fn missing_rights_name_the_command_that_gives_them() {
        let image = Image {
            pool: "fast".into(),
            namespace: "team".into(),
            name: "i".into(),
            monitors: String::new(),
            user: Some("csi".into()),
        };
        let error =
            explain(&image, None, "cannot", &rbd::Error::new(Errno::EPERM, "rbd_open", "i"));
        let line = "ceph auth caps client.csi mon 'profile rbd' osd 'profile rbd pool=fast namespace=team'";
        assert!(
            matches!(&error, Error::FailedPrecondition(text) if text.contains(line)),
            "{error}"
        );
        for errno in [Errno::ESHUTDOWN, Errno::ETIMEDOUT, Errno::EIO] {
            let error = explain(&image, None, "cannot", &rbd::Error::new(errno, "rbd_open", "i"));
            assert!(matches!(error, Error::Unavailable(_)), "{error}");
        }
    }
}
