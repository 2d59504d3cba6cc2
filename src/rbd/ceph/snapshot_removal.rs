//! Removing snapshots of one image, many in about one round of the monitors.
//!
//! librbd, from 16.2 to 20.2, removes one snapshot of an image with an object map after another,
//! and each removal waits until the monitors have let go of the snapshot's id: about a second. An
//! id that the monitors have let go of already takes no time. So a removal that would wait for
//! another one lets go of its own id meanwhile, together with all that wait like it.
//!
//! The order is librbd's own: the snapshot goes to librbd's trash namespace, where nothing can be
//! cloned from it any more; it is seen to have no clone; the monitors let go of its id; the image
//! forgets it.
//!
//! Crash points: a snapshot that is left in the trash namespace, with its id or without it, is
//! removed like any other there.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::directory;
use super::handle::Handle;
use super::omap;
use super::sys::{rados_ioctx_selfmanaged_snap_remove, rbd_snap_remove_by_id};
use crate::rbd::{Errno, Error, Features, Result, SnapshotId};

/// How long the other clients of an image have to hear of a snapshot's new name: longer than the
/// watch of a dead one lasts.
const HEAR: Duration = Duration::from_secs(40);

/// One of the removals in progress on a handle.
struct Removal<'a>(&'a AtomicUsize);

impl Drop for Removal<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Removes the snapshot `id` of the image that `head` is open on. `EBUSY` when another client is at
/// that too, and has not finished.
pub(super) fn remove(head: &Handle, id: SnapshotId) -> Result<()> {
    let waits = head.removals().fetch_add(1, Ordering::SeqCst) > 0;
    let _removal = Removal(head.removals());
    if waits && head.info()?.features.contains(Features::OBJECT_MAP) {
        let_go(head, id)?;
    }
    let call = "rbd_snap_remove_by_id";
    directory::insist(
        || is_there(head, id),
        || {
            // SAFETY: the image is open.
            let code = unsafe { rbd_snap_remove_by_id(head.raw(), id) };
            head.check_at(code, call, &id.to_string())
        },
    )?;
    // librbd takes a snapshot that has another name by now for one that is gone. And one with
    // clones stays, parked in the trash namespace.
    if is_there(head, id)? && !has_clones(head, id)? {
        return Err(Error::new(Errno::EBUSY, call, format!("{}@{id}", head.spec())));
    }
    Ok(())
}

/// Has the monitors let go of a snapshot without clones. Leaves every other to librbd's own
/// removal.
fn let_go(head: &Handle, id: SnapshotId) -> Result<()> {
    if !matches!(has_clones(head, id), Ok(false)) {
        return Ok(());
    }
    match head.ioctx().call_class(&head.header(), "snapshot_trash_add", &id.to_le_bytes()) {
        Ok(()) => {}
        // It is there already.
        Err(error) if error.errno == Errno::EEXIST => {}
        // Such as a protected one: librbd says what is wrong.
        Err(_) => return Ok(()),
    }
    // librbd has to know the snapshot by its new name when it is told to remove it.
    head.notify_of_change(HEAR)?;
    if has_clones(head, id)? {
        return Ok(());
    }
    // SAFETY: the context is open.
    let code = unsafe { rados_ioctx_selfmanaged_snap_remove(head.ioctx().raw(), id) };
    head.check_at(code, "rados_ioctx_selfmanaged_snap_remove", &id.to_string()).map(drop)
}

fn has_clones(head: &Handle, id: SnapshotId) -> Result<bool> {
    Ok(!head.at(id)?.children()?.is_empty())
}

/// Whether the image's header lists the snapshot. What the handle knows may be older.
fn is_there(head: &Handle, id: SnapshotId) -> Result<bool> {
    let key = format!("snapshot_{id:016x}");
    match omap::get(head.ioctx(), &head.header(), &[&key]) {
        Ok(found) => Ok(found.contains_key(&key)),
        Err(error) if error.errno == Errno::ENOENT => Ok(false),
        Err(error) => Err(error),
    }
}
