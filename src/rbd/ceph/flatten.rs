//! Flattening an image without losing bytes.
//!
//! `rbd_flatten` of librbd 16.2 passes over every object that the image's object map says exists. The map is written
//! before the data, so a write, or an earlier flatten, that failed or was killed in between leaves objects in the map
//! that do not exist: they read as the parent's until the link is cut, and as zeros afterwards. So the map is marked
//! invalid before a flatten, which makes librbd look at every object, and rebuilt afterwards. A flatten that does not
//! come to its end leaves the map marked, which costs speed and nothing else: rebuilding it while there is a parent would
//! bring the lost objects back.

use std::ops::ControlFlow;

use super::call::with_progress;
use super::handle::Handle;
use super::sys::{rbd_flatten_with_progress, rbd_rebuild_object_map};
use crate::rbd::{Features, ImageKey, OpenMode, Progress, Result};

/// Bits of an image's flags: the object map, and what fast-diff reads from it, are not to be trusted.
const OBJECT_MAP_INVALID: u64 = 1;
const FAST_DIFF_INVALID: u64 = 2;

/// Flattens the image that `head` is open on.
pub(super) fn flatten(head: &Handle, mode: OpenMode, progress: Progress<'_>) -> Result<()> {
    let has_map = head.info()?.features.contains(Features::OBJECT_MAP);
    if !has_map || mode == OpenMode::ReadOnly || head.parent()?.is_none() {
        return rbd_flatten(head, progress);
    }
    distrust_object_map(head)?;
    // An image that is open does not hear of the mark.
    let head = Handle::open(head.ioctx(), ImageKey::Id(head.id()), OpenMode::ReadWrite)?;
    rbd_flatten(&head, progress)?;
    let code = with_progress(&mut |_, _| ControlFlow::Continue(()), |callback, argument| {
        // SAFETY: the image is open; callback and argument are valid for the call.
        unsafe { rbd_rebuild_object_map(head.raw(), callback, argument) }
    });
    head.check(code, "rbd_rebuild_object_map").map(drop)
}

fn rbd_flatten(head: &Handle, progress: Progress<'_>) -> Result<()> {
    let code = with_progress(progress, |callback, argument| {
        // SAFETY: the image is open; callback and argument are valid for the call.
        unsafe { rbd_flatten_with_progress(head.raw(), callback, argument) }
    });
    head.check(code, "rbd_flatten_with_progress").map(drop)
}

/// Sets the flags in the image's header, with the method of the OSD's `rbd` class that librbd uses itself.
fn distrust_object_map(head: &Handle) -> Result<()> {
    let flags = (OBJECT_MAP_INVALID | FAST_DIFF_INVALID).to_le_bytes();
    // The flags, then the mask of those that are set.
    head.ioctx().call_class(&format!("rbd_header.{}", head.id()), "set_flags", &[flags, flags].concat())
}
