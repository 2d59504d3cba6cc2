//! ControllerModifyVolume: settings of an image that may change while it is in use.
//!
//! Crash points: settings are written one by one; the same request, sent again, writes the rest. The record is not touched: what an
//! image is set to is read from the image.

use super::catalogue::State;
use super::{Error, Result, Volumes};
use crate::rbd::{Errno, Image, ImageKey, OpenMode};
use std::collections::BTreeMap;

impl Volumes {
    /// Sets image metadata, such as librbd configuration (`conf_…`). Keys that are not named stay as they are.
    /// [`Error::NotFound`] when there is no such volume.
    pub fn modify(&self, image: &str, settings: &BTreeMap<String, String>) -> Result<()> {
        let gone = || Error::NotFound(format!("the volume {} does not exist", self.spec(image)));
        self.catalogue
            .volume(image)?
            .filter(|stored| stored.record.state == State::Ready)
            .ok_or_else(gone)?;
        let opened = match self.pool.open_image(ImageKey::Name(image), OpenMode::ReadWrite) {
            Ok(opened) => opened,
            Err(error) if error.errno == Errno::ENOENT => return Err(gone()),
            Err(error) => return Err(error.into()),
        };
        set(&*opened, settings).map_err(Error::after_a_change)
    }
}

/// Sets what is not set so already.
pub(super) fn set(image: &dyn Image, settings: &BTreeMap<String, String>) -> Result<()> {
    for (key, value) in settings {
        if image.metadata_get(key)?.as_ref() != Some(value) {
            image.metadata_set(key, value)?;
        }
    }
    Ok(())
}
