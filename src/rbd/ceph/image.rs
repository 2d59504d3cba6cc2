use std::collections::BTreeMap;
use std::ffi::{c_char, c_int};
use std::ops::ControlFlow;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, PoisonError};

use super::call::{List, c_string, grow, owned, strings, text, with_progress};
use super::handle::Handle;
use super::handle_cache::{self, SharedHandle};
use super::ioctx::Ioctx;
use super::sys::{
    rados, rbd_image_t, rbd_image_watcher_t, rbd_metadata_get, rbd_metadata_list,
    rbd_metadata_remove, rbd_metadata_set, rbd_resize2, rbd_snap_create, rbd_snap_protect,
    rbd_snap_remove, rbd_snap_rename, rbd_snap_unprotect, rbd_watchers_list,
    rbd_watchers_list_cleanup,
};
use super::{directory, flatten, snapshot_removal};
use crate::rbd::{
    Child, Diff, Errno, Error, Extent, Features, Hold, Image, ImageInfo, ImageKey, OpenMode,
    Parent, Progress, Result, Snapshot, SnapshotId, Watcher,
};

/// An [`Image`] over librbd.
///
/// `head` is what the caller opened. Everything at a snapshot goes through a second, read-only
/// handle set to that snapshot, which costs an open. Setting `head` itself there and back would be
/// quicker, but meanwhile writes, snapshots and resizes of other threads would fail, and the
/// exclusive lock would be given up. Keeping the second handle would show old links: no client
/// tells a read-only handle of changes.
#[derive(Debug)]
pub(super) struct CephImage {
    head: Arc<Handle>,
    /// Dropped after `head`: the last of its shares closes it.
    share: Option<SharedHandle>,
    mode: OpenMode,
    /// The snapshot read last, to not open it again for every block. What a snapshot holds never
    /// changes.
    reader: Mutex<Option<(SnapshotId, Arc<Handle>)>>,
}

impl CephImage {
    pub(super) fn open(
        ioctx: &Arc<Ioctx>,
        image: ImageKey<'_>,
        mode: OpenMode,
    ) -> Result<CephImage> {
        let (head, share) = match mode {
            OpenMode::ReadOnly => (Arc::new(Handle::open(ioctx, image, mode)?), None),
            OpenMode::ReadWrite => {
                handle_cache::open(ioctx, image).map(|(head, share)| (head, Some(share)))?
            }
        };
        Ok(CephImage { head, share, mode, reader: Mutex::new(None) })
    }

    /// Runs `act` on the head or on a handle set to the snapshot `at`.
    fn with<T>(&self, at: Option<SnapshotId>, act: impl FnOnce(&Handle) -> Result<T>) -> Result<T> {
        match at {
            None => act(&self.head),
            Some(snapshot) => act(&self.head.at(snapshot)?),
        }
    }

    fn reader(&self, snapshot: SnapshotId) -> Result<Arc<Handle>> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((current, handle)) = &*reader
            && *current == snapshot
        {
            return Ok(Arc::clone(handle));
        }
        let handle = Arc::new(self.head.at(snapshot)?);
        *reader = Some((snapshot, Arc::clone(&handle)));
        Ok(handle)
    }

    /// One call on the snapshot `name`.
    fn snapshot_call(
        &self,
        call: &'static str,
        name: &str,
        function: impl FnOnce(rbd_image_t, *const c_char) -> c_int,
    ) -> Result<()> {
        let c_name = c_string(name, call)?;
        let code = function(self.head.raw(), c_name.as_ptr());
        self.head.check_at(code, call, name).map(drop)
    }

    /// Keeps the snapshots of an image under migration until its last step: `rbd migration execute`
    /// of librbd 16.2 to 20.2 aborts for ever when one that it has to copy is gone.
    fn refuse_under_migration(&self, call: &'static str, snapshot: &str) -> Result<()> {
        if !self.info()?.features.contains(Features::MIGRATING) {
            return Ok(());
        }
        let object = format!("{}@{snapshot}, while `rbd migration` moves it", self.head.spec());
        Err(Error::new(Errno::EBUSY, call, object))
    }
}

impl Image for CephImage {
    fn name(&self) -> Result<String> {
        directory::image_name(self.head.ioctx(), self.head.id())
    }

    fn id(&self) -> Result<String> {
        Ok(self.head.id().to_owned())
    }

    fn info(&self) -> Result<ImageInfo> {
        self.head.info()
    }

    fn resize(&self, size: u64, allow_shrink: bool) -> Result<()> {
        let code = with_progress(&mut |_, _| ControlFlow::Continue(()), |progress, argument| {
            // SAFETY: the image is open; callback and argument are valid for the call.
            unsafe { rbd_resize2(self.head.raw(), size, allow_shrink, progress, argument) }
        });
        self.head.check(code, "rbd_resize2").map(drop)
    }

    fn snapshots(&self) -> Result<Vec<Snapshot>> {
        self.head.snapshots()
    }

    fn create_snapshot(&self, name: &str) -> Result<()> {
        // SAFETY: the image is open, the name NUL-terminated.
        self.snapshot_call("rbd_snap_create", name, |image, name| unsafe {
            rbd_snap_create(image, name)
        })
    }

    fn remove_snapshot(&self, name: &str) -> Result<()> {
        self.refuse_under_migration("rbd_snap_remove", name)?;
        // SAFETY: the image is open, the name NUL-terminated.
        self.snapshot_call("rbd_snap_remove", name, |image, name| unsafe {
            rbd_snap_remove(image, name)
        })
    }

    fn remove_snapshot_by_id(&self, id: SnapshotId) -> Result<()> {
        self.refuse_under_migration("rbd_snap_remove_by_id", &id.to_string())?;
        snapshot_removal::remove(&self.head, id)
    }

    fn protect_snapshot(&self, name: &str) -> Result<()> {
        // SAFETY: the image is open, the name NUL-terminated.
        self.snapshot_call("rbd_snap_protect", name, |image, name| unsafe {
            rbd_snap_protect(image, name)
        })
    }

    fn unprotect_snapshot(&self, name: &str) -> Result<()> {
        self.refuse_under_migration("rbd_snap_unprotect", name)?;
        // SAFETY: the image is open, the name NUL-terminated.
        self.snapshot_call("rbd_snap_unprotect", name, |image, name| unsafe {
            rbd_snap_unprotect(image, name)
        })
    }

    fn rename_snapshot(&self, from: &str, to: &str) -> Result<()> {
        let to = c_string(to, "rbd_snap_rename")?;
        // SAFETY: the image is open, the names NUL-terminated.
        self.snapshot_call("rbd_snap_rename", from, |image, from| unsafe {
            rbd_snap_rename(image, from, to.as_ptr())
        })
    }

    fn parent(&self, at: Option<SnapshotId>) -> Result<Option<Parent>> {
        if at.is_none() && self.share.as_ref().is_some_and(SharedHandle::joined) {
            // librbd reads the names of parent and snapshot when it opens the image, and never
            // again.
            let id = ImageKey::Id(self.head.id());
            return Handle::open(self.head.ioctx(), id, OpenMode::ReadOnly)?.parent();
        }
        self.with(at, Handle::parent)
    }

    fn children(&self, of: Option<SnapshotId>) -> Result<Vec<Child>> {
        self.with(of, Handle::children)
    }

    fn flatten(&self, progress: Progress<'_>) -> Result<()> {
        flatten::flatten(&self.head, self.mode, progress)
    }

    fn metadata_get(&self, key: &str) -> Result<Option<String>> {
        let call = "rbd_metadata_get";
        let c_key = c_string(key, call)?;
        let (code, value) = grow(0, 256, |value, length| {
            // SAFETY: the image is open, the key NUL-terminated; there is room for `length` bytes
            // at `value`.
            unsafe { rbd_metadata_get(self.head.raw(), c_key.as_ptr(), value, length) }
        });
        match self.head.check(code, call) {
            Err(error) if error.errno == Errno::ENOENT => Ok(None),
            other => other.map(|_| Some(text(&value))),
        }
    }

    fn metadata_set(&self, key: &str, value: &str) -> Result<()> {
        let call = "rbd_metadata_set";
        let (key, value) = (c_string(key, call)?, c_string(value, call)?);
        // SAFETY: the image is open, key and value NUL-terminated.
        let code = unsafe { rbd_metadata_set(self.head.raw(), key.as_ptr(), value.as_ptr()) };
        self.head.check(code, call).map(drop)
    }

    fn metadata_remove(&self, key: &str) -> Result<()> {
        let call = "rbd_metadata_remove";
        let key = c_string(key, call)?;
        // SAFETY: the image is open, the key NUL-terminated.
        let code = unsafe { rbd_metadata_remove(self.head.raw(), key.as_ptr()) };
        match self.head.check(code, call) {
            Err(error) if error.errno == Errno::ENOENT => Ok(()),
            other => other.map(drop),
        }
    }

    fn metadata_list(&self) -> Result<BTreeMap<String, String>> {
        let call = "rbd_metadata_list";
        let mut all = BTreeMap::new();
        let mut start = c_string("", call)?;
        let (mut keys, mut values) = (vec![0; 4096], vec![0; 4096]);
        loop {
            let (mut key_length, mut value_length) = (keys.len(), values.len());
            // SAFETY: the image is open; both buffers have the lengths given.
            let code = unsafe {
                rbd_metadata_list(
                    self.head.raw(),
                    start.as_ptr(),
                    64,
                    keys.as_mut_ptr(),
                    &raw mut key_length,
                    values.as_mut_ptr(),
                    &raw mut value_length,
                )
            };
            if code == -(Errno::ERANGE as c_int) {
                // It says how much it wants of each.
                keys.resize(key_length.max(keys.len()), 0);
                values.resize(value_length.max(values.len()), 0);
                continue;
            }
            self.head.check(code, call)?;
            let page = strings(&keys[..key_length]);
            let Some(last) = page.last() else { return Ok(all) };
            start = c_string(last, call)?;
            all.extend(page.into_iter().zip(strings(&values[..value_length])));
        }
    }

    fn hold(&self) -> Result<Option<Hold>> {
        self.head.hold()
    }

    fn group(&self) -> Result<Option<String>> {
        self.head.group()
    }

    fn watchers(&self) -> Result<Vec<Watcher>> {
        let call = "rbd_watchers_list";
        let blank = rbd_image_watcher_t { addr: null_mut(), id: 0, cookie: 0 };
        let (code, items) = grow(blank, 16, |watchers, count| {
            // SAFETY: the image is open; there is room for `count` entries at `watchers`.
            unsafe { rbd_watchers_list(self.head.raw(), watchers, count) }
        });
        self.head.check(code, call)?;
        // SAFETY: rbd_watchers_list wrote the entries; this is its cleanup.
        let list = unsafe { List::new(items, rbd_watchers_list_cleanup) };
        // SAFETY: librbd made the addresses, and `list` still owns them.
        let watcher = |watcher: &rbd_image_watcher_t| unsafe {
            Watcher {
                address: owned(watcher.addr),
                client: watcher.id.cast_unsigned(),
                cookie: watcher.cookie,
            }
        };
        let mut watchers: Vec<Watcher> = list.iter().map(watcher).collect();
        if self.mode == OpenMode::ReadWrite {
            // librbd does not say which cookie is this handle's; one watch of this connection is.
            // SAFETY: the connection is up.
            let client =
                unsafe { rados::rados_get_instance_id(self.head.ioctx().connection().raw()) };
            if let Some(own) = watchers.iter().position(|watcher| watcher.client == client) {
                watchers.remove(own);
            }
        }
        Ok(watchers)
    }

    fn read_at(&self, at: Option<SnapshotId>, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        match at {
            None => self.head.read(offset, buffer),
            Some(snapshot) => self.reader(snapshot)?.read(offset, buffer),
        }
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.head.write(offset, data)
    }

    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.head.discard(offset, length)
    }

    fn flush(&self) -> Result<()> {
        self.head.flush()
    }

    fn diff(
        &self,
        query: &Diff,
        visit: &mut (dyn FnMut(Extent) -> ControlFlow<()> + Send),
    ) -> Result<()> {
        self.with(query.at, |handle| handle.diff(query, visit))
    }
}
