//! ControllerModifyVolume: settings of an image that may change while it is in use.
//!
//! Crash points: settings are written one by one; the same request, sent again, writes the rest.
//! The record is not touched: what an image is set to is read from the image.

use super::create::NAME_KEY;
use super::{Error, Result, Volumes};
use crate::rbd::{Errno, Image, ImageKey, OpenMode};
use std::collections::BTreeMap;

impl Volumes {
    /// Sets image metadata, such as librbd configuration (`conf_…`). Keys that are not named stay
    /// as they are. [`Error::NotFound`] when there is no such volume, [`Error::Invalid`] when
    /// `check` refuses all of the image's metadata as they would be then.
    pub fn modify(
        &self,
        image: &str,
        settings: &BTreeMap<String, String>,
        check: impl Fn(&BTreeMap<String, String>) -> std::result::Result<(), String>,
    ) -> Result<()> {
        let gone = || Error::NotFound(format!("the volume {} does not exist", self.spec(image)));
        self.ready(image)?.ok_or_else(gone)?;
        let opened = match self.pool.open_image(ImageKey::Name(image), OpenMode::ReadWrite) {
            Ok(opened) => opened,
            Err(error) if error.errno == Errno::ENOENT => return Err(gone()),
            Err(error) => return Err(error.into()),
        };
        self.refuse_unchangeable(&*opened)?;
        let mut all = opened.metadata_list()?;
        all.extend(settings.clone());
        check(&all).map_err(|why| Error::Invalid(format!("{}: {why}", self.spec(image))))?;
        set(&*opened, settings).map_err(Error::after_a_change)
    }
}

/// What librbd's quality of service is configured by.
const QOS_PREFIX: &str = "conf_rbd_qos_";

/// The keys of a source's metadata that a clone must not keep, although librbd copies them all: the
/// source's own limits, and its name.
pub(super) fn not_inherited(
    source: &dyn Image,
    settings: &BTreeMap<String, String>,
) -> Result<Vec<String>> {
    let own = |key: &String| {
        key == NAME_KEY || key.starts_with(QOS_PREFIX) && !settings.contains_key(key)
    };
    Ok(source.metadata_list()?.into_keys().filter(own).collect())
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
