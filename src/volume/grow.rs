//! ControllerExpandVolume.
//!
//! Crash points: the image grows before its record says so; a retry finds the image large enough
//! and writes the record.

use super::catalogue::Volume;
use super::{Error, Result, Sizes, Volumes};
use crate::rbd::{Errno, ImageKey, OpenMode};

impl Volumes {
    /// Grows the volume to `sizes.required` bytes, never shrinks it, and returns its size in bytes.
    ///
    /// [`Error::NotFound`] when there is no such volume, [`Error::OutOfRange`] when it is larger
    /// than `sizes.limit` already.
    pub fn grow(&self, image: &str, sizes: Sizes) -> Result<u64> {
        let gone = || Error::NotFound(format!("the volume {} does not exist", self.spec(image)));
        let stored = self.ready(image)?.ok_or_else(gone)?;
        let record = &stored.record;
        let too_large = |size: u64| {
            Error::OutOfRange(format!(
                "{} has {size} bytes, more than the limit of {}: volumes cannot shrink",
                self.spec(image),
                sizes.limit
            ))
        };
        if sizes.limit != 0 && record.size > sizes.limit {
            return Err(too_large(record.size));
        }
        if record.size >= sizes.required {
            return Ok(record.size);
        }
        let opened = match self.pool.open_image(ImageKey::Name(image), OpenMode::ReadWrite) {
            Ok(opened) => opened,
            Err(error) if error.errno == Errno::ENOENT => return Err(gone()),
            Err(error) => return Err(error.into()),
        };
        self.refuse_unchangeable(&*opened)?;
        let image_id = Some(opened.id()?);
        let actual = opened.info()?.size;
        if sizes.limit != 0 && actual > sizes.limit {
            return Err(too_large(actual));
        }
        let size = actual.max(sizes.required);
        if actual < size {
            self.activity.begin(format!("growing {}", self.spec(image)));
            opened.resize(size, false).map_err(|error| match error.errno {
                Errno::ENOSPC | Errno::EDQUOT => Error::Exhausted(format!(
                    "no room to grow {} to {size} bytes: {error}",
                    self.spec(image)
                )),
                Errno::EINVAL => self.cannot_have(image, size, &error),
                _ => Error::Unfinished(error),
            })?;
        }
        self.catalogue
            .replace(image, &stored, Volume { size, image_id, ..record.clone() })
            .map_err(Error::after_a_change)?;
        Ok(size)
    }

    /// What to tell when librbd refuses a size, which it does before it touches anything: an object
    /// map describes no more objects.
    pub(super) fn cannot_have(&self, image: &str, size: u64, cause: &crate::rbd::Error) -> Error {
        Error::OutOfRange(format!("{} cannot have {size} bytes: {cause}", self.spec(image)))
    }
}
