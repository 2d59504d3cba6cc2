//! Images open for writing: one handle of an image on a connection, shared by all who have it open
//! there at the same time.
//!
//! Several handles would take the image's lock from each other, and have each other carry out their
//! operations. librbd aborts the process (`AsyncOpTracker.cc`) when a handle is closed after it has
//! carried one out and before all clients have heard of that.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use super::directory;
use super::handle::Handle;
use super::ioctx::Ioctx;
use crate::rbd::{Errno, Error, ImageKey, OpenMode, Result};

/// A connection (the address of its `Connection`, which lives as long as a handle on it does),
/// pool, namespace and image id.
type Key = (usize, String, String, String);

static SLOTS: LazyLock<Mutex<HashMap<Key, Arc<Slot>>>> = LazyLock::new(Mutex::default);

/// Where the handle of one image is. Locked while it is opened and closed, so that there are never
/// two.
#[derive(Debug, Default)]
struct Slot(Mutex<Option<(Arc<Handle>, usize)>>);

/// A share in an open image. The last one closes it when dropped.
#[derive(Debug)]
pub(super) struct SharedHandle {
    slot: Arc<Slot>,
    joined: bool,
}

impl SharedHandle {
    /// Whether another caller had opened the image before.
    pub(super) fn joined(&self) -> bool {
        self.joined
    }
}

/// Opens the image for writing, or takes a share in it where it is open already. The handle must be
/// dropped before the share.
pub(super) fn open(ioctx: &Arc<Ioctx>, image: ImageKey<'_>) -> Result<(Arc<Handle>, SharedHandle)> {
    let id = match image {
        ImageKey::Id(id) => id.to_owned(),
        ImageKey::Name(name) => directory::image_id(ioctx, name)?
            .ok_or_else(|| Error::new(Errno::ENOENT, "rbd_open", ioctx.spec(name)))?,
    };
    let slot = {
        let mut slots = SLOTS.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        slots.entry(ioctx.key(&id)).or_default().clone()
    };
    let mut open = slot.0.lock().unwrap_or_else(PoisonError::into_inner);
    let joined = open.is_some();
    let handle = if let Some((handle, users)) = &mut *open {
        *users += 1;
        Arc::clone(handle)
    } else {
        let handle = Arc::new(Handle::open(ioctx, ImageKey::Id(&id), OpenMode::ReadWrite)?);
        *open = Some((Arc::clone(&handle), 1));
        handle
    };
    drop(open);
    Ok((handle, SharedHandle { slot, joined }))
}

impl Drop for SharedHandle {
    fn drop(&mut self) {
        let mut open = self.slot.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, users)) = &mut *open {
            *users -= 1;
            if *users == 0 {
                *open = None;
            }
        }
    }
}
