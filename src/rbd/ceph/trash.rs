//! What the trash of a pool's namespace holds.

use std::ptr::null_mut;

use super::call::{List, c_string, grow, owned};
use super::ioctx::Ioctx;
use super::sys::{
    RBD_TRASH_IMAGE_SOURCE_MIGRATION, RBD_TRASH_IMAGE_SOURCE_REMOVING, rbd_trash_get,
    rbd_trash_get_cleanup, rbd_trash_image_info_t, rbd_trash_list, rbd_trash_list_cleanup,
};
use crate::rbd::{Errno, Result, TrashEntry};

const BLANK: rbd_trash_image_info_t = rbd_trash_image_info_t {
    id: null_mut(),
    name: null_mut(),
    source: 0,
    deletion_time: 0,
    deferment_end_time: 0,
};

/// The trash entry of the image with this id.
pub(super) fn get(ioctx: &Ioctx, id: &str) -> Result<Option<TrashEntry>> {
    let call = "rbd_trash_get";
    let c_id = c_string(id, call)?;
    let mut info = BLANK;
    // SAFETY: context and id are valid for the call; `info` is a place for the entry.
    let code = unsafe { rbd_trash_get(ioctx.raw(), c_id.as_ptr(), &raw mut info) };
    match ioctx.check(code, call, || ioctx.spec(id)) {
        Err(error) if error.errno == Errno::ENOENT => return Ok(None),
        other => other?,
    };
    // SAFETY: rbd_trash_get filled `info`; it is cleaned up once, after the strings were copied.
    let entry = unsafe { entry(&info) };
    // SAFETY: as above.
    unsafe { rbd_trash_get_cleanup(&raw mut info) };
    Ok(Some(entry))
}

/// All entries of the trash.
pub(super) fn list(ioctx: &Ioctx) -> Result<Vec<TrashEntry>> {
    let (code, items) = grow(BLANK, 64, |entries, count| {
        // SAFETY: there is room for `count` entries at `entries`.
        unsafe { rbd_trash_list(ioctx.raw(), entries, count) }
    });
    ioctx.check(code, "rbd_trash_list", || ioctx.spec("*"))?;
    // SAFETY: rbd_trash_list wrote the entries; this is its cleanup.
    let list = unsafe { List::new(items, rbd_trash_list_cleanup) };
    // SAFETY: librbd made the strings, and `list` still owns them.
    Ok(list.iter().map(|info| unsafe { entry(info) }).collect())
}

/// # Safety
///
/// librbd filled `info`, and it was not cleaned up yet.
unsafe fn entry(info: &rbd_trash_image_info_t) -> TrashEntry {
    TrashEntry {
        // SAFETY: the caller promises librbd's own strings.
        id: unsafe { owned(info.id) },
        // SAFETY: as above.
        name: unsafe { owned(info.name) },
        removing: info.source == RBD_TRASH_IMAGE_SOURCE_REMOVING,
        migrating: info.source == RBD_TRASH_IMAGE_SOURCE_MIGRATION,
    }
}
