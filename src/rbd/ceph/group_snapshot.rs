//! [`Pool::create_snapshots`](crate::rbd::Pool::create_snapshots): snapshots of several images at
//! one moment.
//!
//! `rbd_lock_acquire` on each image would not do: a client that asks for a lock taken that way is
//! told that it will never be let go (`EROFS`), and fails its write. The lock that librbd takes by
//! itself for a write is let go on request, but not while an operation runs under it; a client that
//! asks waits. So each snapshot holds off its image's writers by itself: before it cuts, librbd has
//! all clients of the image quiesce and reports progress, and the report is answered when all
//! snapshots have come that far.
//!
//! When another client gets the lock in between, librbd has that one cut the snapshot, and reports
//! its progress too. Then this client is not the lock's owner; such a snapshot is removed again.
//!
//! Each report blocks one of the connection's few threads, so this has a connection of its own.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::barrier::Barrier;
use super::call::{c_string, with_progress};
use super::handle::Handle;
use super::ioctx::Ioctx;
use super::sys::{rbd_snap_create2, rbd_snap_remove};
use crate::rbd::{Errno, Error, Features, ImageKey, NewSnapshot, OpenMode, Result};

/// How long writers are held off for want of the last image.
const HOLD: Duration = Duration::from_secs(5);
/// How long it is tried to have all images at one time.
const PATIENCE: Duration = Duration::from_secs(30);

const CALL: &str = "rbd_snap_create2";

pub(super) fn create_snapshots(
    ioctx: &Ioctx,
    snapshots: &[NewSnapshot],
    announce: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<()> {
    let connection = Arc::new(ioctx.connection().for_blocking(snapshots.len())?);
    announce(connection.address())?;
    let ioctx = Arc::new(ioctx.over(&connection)?);
    let mut handles = Vec::new();
    for new in snapshots {
        let handle = Handle::open(&ioctx, ImageKey::Id(&new.image_id), OpenMode::ReadWrite)?;
        if !handle.info()?.features.contains(Features::EXCLUSIVE_LOCK) {
            return Err(error(Errno::EINVAL, &handle, new));
        }
        handles.push(handle);
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let barrier = Barrier::of(snapshots.len());
        let outcomes: Vec<_> = thread::scope(|scope| {
            let cutting: Vec<_> = handles
                .iter()
                .zip(snapshots)
                .map(|(handle, new)| scope.spawn(|| cut_with_the_others(handle, new, &barrier)))
                .collect();
            let join = |thread: thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            cutting.into_iter().map(join).collect()
        });
        let off = barrier.is_off();
        // What only the others' failure stopped is told last.
        let failures = outcomes.into_iter().filter_map(Result::err);
        match failures.min_by_key(|error| matches!(error.errno, Errno::EBUSY)) {
            None => return Ok(()),
            Some(error) if error.errno == Errno::EBUSY && off && Instant::now() < deadline => {}
            Some(error) => return Err(error),
        }
    }
}

/// Cuts one snapshot when all who come to the barrier hold their image's writers off; else it is
/// not there afterwards, and the error is `EBUSY`.
fn cut_with_the_others(handle: &Handle, new: &NewSnapshot, barrier: &Barrier) -> Result<()> {
    let cut = loop {
        match cut(handle, new, barrier) {
            Ok(Some(ControlFlow::Continue(()))) => break Ok(()),
            Ok(other) => {
                if let Err(error) = remove(handle, new) {
                    break Err(error);
                }
                // Another client got the lock first.
                if other.is_none() && barrier.is_open() {
                    continue;
                }
                break Err(error(Errno::EBUSY, handle, new));
            }
            Err(error) => break Err(error),
        }
    };
    if cut.is_err() {
        barrier.call_off();
    }
    cut
}

/// Cuts one snapshot, and says what came of the barrier, if its writers were held off for that.
fn cut(handle: &Handle, new: &NewSnapshot, barrier: &Barrier) -> Result<Option<ControlFlow<()>>> {
    let c_name = c_string(&new.name, CALL)?;
    loop {
        // A flush takes the lock, as a write would.
        handle.flush()?;
        if handle.owns_lock() {
            break;
        }
        if !barrier.is_open() {
            return Err(error(Errno::EBUSY, handle, new));
        }
    }
    let mut reported = false;
    let mut met = None;
    let mut report = |_, _| {
        // Reported again when a client is slow to quiesce; the lock was not lost since.
        if !reported && handle.owns_lock() {
            met = Some(barrier.join(HOLD));
        }
        reported = true;
        ControlFlow::Continue(())
    };
    let code = with_progress(&mut report, |progress, argument| {
        // SAFETY: the image is open, the name NUL-terminated; callback and argument are valid for
        // the call. No flags: clients quiesce, and that is reported.
        unsafe { rbd_snap_create2(handle.raw(), c_name.as_ptr(), 0, progress, argument) }
    });
    handle.check_at(code, CALL, &new.name)?;
    Ok(met)
}

fn remove(handle: &Handle, new: &NewSnapshot) -> Result<()> {
    let call = "rbd_snap_remove";
    let c_name = c_string(&new.name, call)?;
    // SAFETY: the image is open, the name NUL-terminated.
    let code = unsafe { rbd_snap_remove(handle.raw(), c_name.as_ptr()) };
    handle.check_at(code, call, &new.name).map(drop)
}

fn error(errno: Errno, handle: &Handle, new: &NewSnapshot) -> Error {
    Error::new(errno, CALL, format!("{}@{}", handle.spec(), new.name))
}
