//! Flattening an image without losing bytes.
//!
//! `rbd_flatten` of librbd 16.2 passes over every object that the image's object map says exists.
//! The map is written before the data, so a write, or an earlier flatten, that failed or was killed
//! in between leaves objects in the map that do not exist: they read as the parent's until the link
//! is cut, and as zeros afterwards. So on such a librbd the map is marked invalid before a flatten,
//! which makes librbd look at every object, and rebuilt afterwards. A flatten that does not come to
//! its end leaves the map marked, which costs speed and nothing else: rebuilding it while there is
//! a parent would bring the lost objects back.
//!
//! Later versions look at every object themselves, and are let do so.
//!
//! The flatten is carried out by the client that has the exclusive lock, with the flags as that
//! client knows them. So all clients are told of the mark, and the lock is taken after that: a
//! client that gets the lock reads the header anew when it was told of a change.

use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use super::call::with_progress;
use super::handle::Handle;
use super::libraries::libraries;
use super::sys::{rbd_flatten_with_progress, rbd_get_flags, rbd_rebuild_object_map};
use crate::rbd::{Errno, Error, Features, OpenMode, Progress, Result};

/// Bits of an image's flags: the object map, and what fast-diff reads from it, are not to be
/// trusted.
const OBJECT_MAP_INVALID: u64 = 1;
const FAST_DIFF_INVALID: u64 = 2;

/// How long the other clients of an image have to hear of the mark: longer than the watch of a dead
/// one lasts.
const HEAR: Duration = Duration::from_secs(40);
/// How long it is tried to get the exclusive lock from a client that keeps taking it back.
const TAKE: Duration = Duration::from_secs(30);
/// How long before that is tried again.
const PAUSE: Duration = Duration::from_millis(20);

/// Flattens the image that `head` is open on. `EINVAL` when it has no parent; then a map that an
/// interrupted flatten left marked is rebuilt all the same.
pub(super) fn flatten(head: &Handle, mode: OpenMode, progress: Progress<'_>) -> Result<()> {
    if !trusts_object_map(libraries().numbers()) {
        return rbd_flatten(head, progress);
    }
    let has_map = head.info()?.features.contains(Features::OBJECT_MAP);
    if !has_map || mode == OpenMode::ReadOnly {
        return rbd_flatten(head, progress);
    }
    if head.parent()?.is_some() {
        distrust_object_map(head)?;
        take_lock(head)?;
    }
    let flattened = rbd_flatten(head, progress);
    let has_no_parent = match &flattened {
        Ok(()) => true,
        Err(error) => error.errno == Errno::EINVAL && head.parent()?.is_none(),
    };
    if has_no_parent && is_distrusted(head)? {
        rebuild_object_map(head)?;
    }
    flattened
}

/// Whether `rbd_flatten` of this version passes over objects. Ceph repaired it in 18.2.5 and
/// 19.2.1; 18.2.7 and 20.2.4 were seen to be repaired (`tests/librbd/faults.c`). What was not seen
/// is not relied on.
fn trusts_object_map(version: Option<[u32; 3]>) -> bool {
    version.is_none_or(|version| version < [18, 2, 7] || version[0] == 19)
}

fn rbd_flatten(head: &Handle, progress: Progress<'_>) -> Result<()> {
    let code = with_progress(progress, |callback, argument| {
        // SAFETY: the image is open; callback and argument are valid for the call.
        unsafe { rbd_flatten_with_progress(head.raw(), callback, argument) }
    });
    head.check(code, "rbd_flatten_with_progress").map(drop)
}

fn rebuild_object_map(head: &Handle) -> Result<()> {
    let code = with_progress(&mut |_, _| ControlFlow::Continue(()), |callback, argument| {
        // SAFETY: the image is open; callback and argument are valid for the call.
        unsafe { rbd_rebuild_object_map(head.raw(), callback, argument) }
    });
    head.check(code, "rbd_rebuild_object_map").map(drop)
}

fn is_distrusted(head: &Handle) -> Result<bool> {
    let mut flags = 0;
    // SAFETY: the image is open; `flags` is a place for the answer.
    let code = unsafe { rbd_get_flags(head.raw(), &raw mut flags) };
    head.check(code, "rbd_get_flags")?;
    Ok(flags & OBJECT_MAP_INVALID != 0)
}

/// Sets the flags in the image's header, with the method of the OSD's `rbd` class that librbd uses
/// itself, and tells all who have the image open that the header changed, as librbd does.
fn distrust_object_map(head: &Handle) -> Result<()> {
    let flags = (OBJECT_MAP_INVALID | FAST_DIFF_INVALID).to_le_bytes();
    // The flags, then the mask of those that are set.
    head.ioctx().call_class(&head.header(), "set_flags", &[flags, flags].concat())?;
    head.notify_of_change(HEAR)
}

/// Takes the exclusive lock from whichever client has it. `EBUSY` when that keeps taking it back.
fn take_lock(head: &Handle) -> Result<()> {
    let deadline = Instant::now() + TAKE;
    loop {
        head.flush()?;
        if head.owns_lock() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::new(Errno::EBUSY, "rbd_flush", head.spec()));
        }
        thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_map_is_trusted_only_where_that_was_seen_to_be_right() {
        for version in [Some([16, 2, 15]), Some([18, 2, 4]), Some([19, 2, 3]), None] {
            assert!(trusts_object_map(version), "{version:?}");
        }
        for version in [[18, 2, 7], [18, 2, 8], [20, 2, 4], [21, 0, 0]] {
            assert!(!trusts_object_map(Some(version)), "{version:?}");
        }
    }
}
