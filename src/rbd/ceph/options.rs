use std::ptr::null_mut;

use super::call::{c_string, errno};
use super::sys::{
    RBD_IMAGE_OPTION_CLONE_FORMAT, RBD_IMAGE_OPTION_DATA_POOL, RBD_IMAGE_OPTION_FEATURES,
    RBD_IMAGE_OPTION_FORMAT, RBD_IMAGE_OPTION_ORDER, RBD_IMAGE_OPTION_STRIPE_COUNT,
    RBD_IMAGE_OPTION_STRIPE_UNIT, rbd_image_options_create, rbd_image_options_destroy,
    rbd_image_options_set_string, rbd_image_options_set_uint64, rbd_image_options_t,
};
use crate::rbd::{CloneFormat, Error, ImageOptions, Result};

/// An `rbd_image_options_t`, destroyed when dropped.
pub(super) struct RawOptions(rbd_image_options_t);

impl RawOptions {
    /// For a create or a copy, which refuse a clone format.
    pub(super) fn for_image(options: &ImageOptions) -> Result<RawOptions> {
        let mut raw = null_mut();
        // SAFETY: `raw` is a place for the handle.
        unsafe { rbd_image_options_create(&raw mut raw) };
        let raw = RawOptions(raw);
        raw.set(RBD_IMAGE_OPTION_FORMAT, Some(2))?;
        raw.set(RBD_IMAGE_OPTION_FEATURES, options.features.map(|features| features.0))?;
        raw.set(RBD_IMAGE_OPTION_ORDER, options.order.map(u64::from))?;
        raw.set(RBD_IMAGE_OPTION_STRIPE_UNIT, options.stripe_unit)?;
        raw.set(RBD_IMAGE_OPTION_STRIPE_COUNT, options.stripe_count)?;
        if let Some(pool) = &options.data_pool {
            let pool = c_string(pool, "rbd_image_options_set_string")?;
            // SAFETY: the handle is valid; the string is NUL-terminated and copied.
            let code = unsafe {
                rbd_image_options_set_string(raw.0, RBD_IMAGE_OPTION_DATA_POOL, pool.as_ptr())
            };
            check(code, "rbd_image_options_set_string")?;
        }
        Ok(raw)
    }

    /// For a clone. The format is always given: left to librbd, it depends on the oldest client the
    /// cluster admits.
    pub(super) fn for_clone(options: &ImageOptions) -> Result<RawOptions> {
        let raw = RawOptions::for_image(options)?;
        let format = match options.clone_format {
            CloneFormat::V1 => 1,
            CloneFormat::V2 => 2,
        };
        raw.set(RBD_IMAGE_OPTION_CLONE_FORMAT, Some(format))?;
        Ok(raw)
    }

    fn set(&self, option: i32, value: Option<u64>) -> Result<()> {
        let Some(value) = value else { return Ok(()) };
        // SAFETY: the handle is valid.
        check(
            unsafe { rbd_image_options_set_uint64(self.0, option, value) },
            "rbd_image_options_set_uint64",
        )
    }

    /// The handle, for a call of librbd.
    pub(super) fn raw(&self) -> rbd_image_options_t {
        self.0
    }
}

impl Drop for RawOptions {
    fn drop(&mut self) {
        // SAFETY: made by `rbd_image_options_create` and destroyed nowhere else.
        unsafe { rbd_image_options_destroy(self.0) }
    }
}

fn check(code: i32, call: &'static str) -> Result<()> {
    if code < 0 { Err(Error::new(errno(code), call, "image options")) } else { Ok(()) }
}
