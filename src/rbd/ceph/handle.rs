use std::ffi::{c_char, c_int, c_void};
use std::fmt;
use std::ops::ControlFlow;
use std::ptr::{null, null_mut};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::call::{Callback, List, c_string, grow, owned, text};
use super::directory;
use super::ioctx::Ioctx;
use super::newer::{
    DIFF_ITERATE3, RBD_DIFF_ITERATE_FLAG_INCLUDE_PARENT, RBD_DIFF_ITERATE_FLAG_WHOLE_OBJECT,
    rbd_diff_iterate3,
};
use super::sys::{
    RBD_MAX_BLOCK_NAME_SIZE, RBD_MAX_IMAGE_NAME_SIZE, RBD_SNAP_NAMESPACE_TYPE_GROUP,
    RBD_SNAP_NAMESPACE_TYPE_MIRROR, RBD_SNAP_NAMESPACE_TYPE_TRASH, RBD_SNAP_NAMESPACE_TYPE_USER,
    rbd_close, rbd_diff_iterate2, rbd_flush, rbd_get_features, rbd_get_id, rbd_get_parent,
    rbd_get_size, rbd_get_stripe_count, rbd_get_stripe_unit, rbd_image_info_t, rbd_image_t,
    rbd_is_exclusive_lock_owner, rbd_linked_image_spec_cleanup, rbd_linked_image_spec_list_cleanup,
    rbd_linked_image_spec_t, rbd_list_children3, rbd_open, rbd_open_by_id,
    rbd_open_by_id_read_only, rbd_open_read_only, rbd_read, rbd_snap_get_name,
    rbd_snap_get_namespace_type, rbd_snap_get_timestamp, rbd_snap_get_trash_namespace,
    rbd_snap_info_t, rbd_snap_is_protected, rbd_snap_list, rbd_snap_list_end, rbd_snap_set_by_id,
    rbd_snap_spec_cleanup, rbd_snap_spec_t, rbd_stat, rbd_write, rbd_write_zeroes, timespec,
};
use crate::rbd::{
    Child, Diff, Errno, Error, Extent, Features, ImageInfo, ImageKey, OpenMode, Parent, Result,
    Snapshot, SnapshotId, SnapshotKind,
};

/// The most bytes one call of librbd may read, write or clear (it keeps lengths in an `int`).
const MOST: usize = 1 << 30;

/// An open `rbd_image_t`, set to the head or to one snapshot for good, closed when dropped. It
/// keeps its pool and connection alive.
pub(super) struct Handle {
    raw: rbd_image_t,
    id: String,
    spec: String,
    /// Removals of snapshots in progress.
    removals: AtomicUsize,
    // Dropped after `drop` has closed the image.
    ioctx: Arc<Ioctx>,
}

// SAFETY: librbd's functions may be called with one image from any thread, several at a time; what
// changes the handle itself (the snapshot it is set to) happens before another thread has it.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Handle {
    /// Opens the head.
    pub(super) fn open(ioctx: &Arc<Ioctx>, image: ImageKey<'_>, mode: OpenMode) -> Result<Handle> {
        let (call, open, key): (_, unsafe extern "C" fn(_, _, _, _) -> c_int, _) =
            match (image, mode) {
                (ImageKey::Name(name), OpenMode::ReadWrite) => ("rbd_open", rbd_open, name),
                (ImageKey::Name(name), OpenMode::ReadOnly) => {
                    ("rbd_open_read_only", rbd_open_read_only, name)
                }
                (ImageKey::Id(id), OpenMode::ReadWrite) => ("rbd_open_by_id", rbd_open_by_id, id),
                (ImageKey::Id(id), OpenMode::ReadOnly) => {
                    ("rbd_open_by_id_read_only", rbd_open_by_id_read_only, id)
                }
            };
        let c_key = c_string(key, call)?;
        let mut raw = null_mut();
        let is_there = || directory::has_header(ioctx, image);
        directory::insist(is_there, || {
            // SAFETY: the context is valid, the key NUL-terminated, `raw` a place for the handle;
            // no snapshot.
            let code = unsafe { open(ioctx.raw(), c_key.as_ptr(), &raw mut raw, null()) };
            ioctx.check(code, call, || ioctx.spec(key))
        })?;
        let mut handle = Handle {
            raw,
            id: String::new(),
            spec: ioctx.spec(key),
            removals: AtomicUsize::new(0),
            ioctx: Arc::clone(ioctx),
        };
        let (code, id) = grow(0, 64, |id, length| {
            // SAFETY: the image is open; there is room for `length` bytes at `id`.
            unsafe { rbd_get_id(handle.raw, id, *length) }
        });
        handle.check(code, "rbd_get_id")?;
        handle.id = text(&id);
        Ok(handle)
    }

    /// A second, read-only handle on the same image, set to a snapshot. `ENOENT` when there is no
    /// such snapshot.
    pub(super) fn at(&self, snapshot: SnapshotId) -> Result<Handle> {
        let mut handle = Handle::open(&self.ioctx, ImageKey::Id(&self.id), OpenMode::ReadOnly)?;
        handle.spec = format!("{}@{snapshot}", self.spec);
        // SAFETY: the image is open.
        let code = unsafe { rbd_snap_set_by_id(handle.raw, snapshot) };
        handle.check(code, "rbd_snap_set_by_id")?;
        Ok(handle)
    }

    pub(super) fn raw(&self) -> rbd_image_t {
        self.raw
    }

    pub(super) fn ioctx(&self) -> &Arc<Ioctx> {
        &self.ioctx
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// What was opened, for messages.
    pub(super) fn spec(&self) -> &str {
        &self.spec
    }

    /// [`Ioctx::check`] about the image.
    pub(super) fn check(&self, code: c_int, call: &'static str) -> Result<c_int> {
        self.ioctx.check(code, call, || self.spec.clone())
    }

    /// [`Ioctx::check`] about a snapshot of the image.
    pub(super) fn check_at(
        &self,
        code: c_int,
        call: &'static str,
        snapshot: &str,
    ) -> Result<c_int> {
        self.ioctx.check(code, call, || format!("{}@{snapshot}", self.spec))
    }

    /// Whether this handle has the exclusive lock. While an operation of its own is in progress it
    /// cannot lose it.
    pub(super) fn owns_lock(&self) -> bool {
        let mut owner = 0;
        // SAFETY: the image is open; `owner` is a place for the answer.
        let code = unsafe { rbd_is_exclusive_lock_owner(self.raw, &raw mut owner) };
        code == 0 && owner != 0
    }

    /// How many snapshots are being removed through this handle.
    pub(super) fn removals(&self) -> &AtomicUsize {
        &self.removals
    }

    /// The RADOS object of the image's header.
    pub(super) fn header(&self) -> String {
        directory::header(&self.id)
    }

    /// Tells all who have the image open that its header changed, as librbd does, and waits as
    /// [`Ioctx::notify`] does.
    pub(super) fn notify_of_change(&self, timeout: Duration) -> Result<()> {
        /// librbd's `NotifyMessage` in Ceph's encoding: version 1, readable since version 1, then
        /// the length and the number of `HeaderUpdate`, which has no fields.
        const HEADER_UPDATE: [u8; 10] = [1, 1, 4, 0, 0, 0, 3, 0, 0, 0];
        self.ioctx.notify(&self.header(), &HEADER_UPDATE, timeout)
    }

    /// Waits for what was written. Takes the exclusive lock for that, as a write would.
    pub(super) fn flush(&self) -> Result<()> {
        // SAFETY: the image is open.
        self.check(unsafe { rbd_flush(self.raw) }, "rbd_flush").map(drop)
    }

    pub(super) fn size(&self) -> Result<u64> {
        self.number("rbd_get_size", rbd_get_size)
    }

    pub(super) fn info(&self) -> Result<ImageInfo> {
        let mut info = rbd_image_info_t {
            size: 0,
            obj_size: 0,
            num_objs: 0,
            order: 0,
            block_name_prefix: [0; RBD_MAX_BLOCK_NAME_SIZE],
            parent_pool: 0,
            parent_name: [0; RBD_MAX_IMAGE_NAME_SIZE],
        };
        // SAFETY: the image is open; `info` has the size given.
        let code = unsafe { rbd_stat(self.raw, &raw mut info, size_of::<rbd_image_info_t>()) };
        self.check(code, "rbd_stat")?;
        let order = u8::try_from(info.order).map_err(|_| {
            Error::new(Errno::EBADMSG, "rbd_stat", format!("{}: order {}", self.spec, info.order))
        })?;
        Ok(ImageInfo {
            size: info.size,
            order,
            features: Features(self.number("rbd_get_features", rbd_get_features)?),
            stripe_unit: self.number("rbd_get_stripe_unit", rbd_get_stripe_unit)?,
            stripe_count: self.number("rbd_get_stripe_count", rbd_get_stripe_count)?,
        })
    }

    fn number(
        &self,
        call: &'static str,
        function: unsafe extern "C" fn(rbd_image_t, *mut u64) -> c_int,
    ) -> Result<u64> {
        let mut value = 0;
        // SAFETY: the image is open; `value` is a place for the answer.
        self.check(unsafe { function(self.raw, &raw mut value) }, call)?;
        Ok(value)
    }

    pub(super) fn snapshots(&self) -> Result<Vec<Snapshot>> {
        let blank = rbd_snap_info_t { id: 0, size: 0, name: null() };
        let (code, mut items) = grow(blank, 64, |snapshots, count| {
            let mut most = c_int::try_from(*count).unwrap_or(c_int::MAX);
            // SAFETY: the image is open; there is room for `most` entries at `snapshots`.
            let code = unsafe { rbd_snap_list(self.raw, snapshots, &raw mut most) };
            *count = usize::try_from(most).unwrap_or(0);
            code
        });
        let found = usize::try_from(self.check(code, "rbd_snap_list")?).unwrap_or(0);
        // SAFETY: librbd made the names, and they are freed below.
        let name = |info: &rbd_snap_info_t| unsafe { owned(info.name) };
        let found: Vec<_> =
            items[..found].iter().map(|info| (info.id, info.size, name(info))).collect();
        // SAFETY: rbd_snap_list wrote the entries and ended them with one without a name; they are
        // freed once.
        unsafe { rbd_snap_list_end(items.as_mut_ptr()) };
        let mut snapshots = Vec::with_capacity(found.len());
        for (id, size, name) in found {
            match self.snapshot(id, size, name) {
                Ok(snapshot) => snapshots.push(snapshot),
                // Removed since it was listed.
                Err(error) if error.errno == Errno::ENOENT => {}
                Err(error) => return Err(error),
            }
        }
        snapshots.sort_by_key(|snapshot| snapshot.id);
        Ok(snapshots)
    }

    fn snapshot(&self, id: SnapshotId, size: u64, name: String) -> Result<Snapshot> {
        let mut namespace = 0;
        // SAFETY: the image is open; `namespace` is a place for the answer.
        let code = unsafe { rbd_snap_get_namespace_type(self.raw, id, &raw mut namespace) };
        self.check_at(code, "rbd_snap_get_namespace_type", &name)?;
        let kind = match namespace {
            RBD_SNAP_NAMESPACE_TYPE_USER => SnapshotKind::User,
            RBD_SNAP_NAMESPACE_TYPE_GROUP => SnapshotKind::Group,
            RBD_SNAP_NAMESPACE_TYPE_TRASH => {
                SnapshotKind::Trash { original_name: self.original_name(id)? }
            }
            RBD_SNAP_NAMESPACE_TYPE_MIRROR => SnapshotKind::Mirror,
            _ => SnapshotKind::Unknown,
        };
        let mut protected = 0;
        if kind == SnapshotKind::User {
            let c_name = c_string(&name, "rbd_snap_is_protected")?;
            // SAFETY: the image is open, the name NUL-terminated; `protected` is a place for the
            // answer.
            let code =
                unsafe { rbd_snap_is_protected(self.raw, c_name.as_ptr(), &raw mut protected) };
            self.check_at(code, "rbd_snap_is_protected", &name)?;
        }
        let mut time = timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the image is open; `time` is a place for the answer.
        let code = unsafe { rbd_snap_get_timestamp(self.raw, id, &raw mut time) };
        self.check_at(code, "rbd_snap_get_timestamp", &name)?;
        Ok(Snapshot { id, name, size, kind, protected: protected != 0, created: system_time(time) })
    }

    fn original_name(&self, id: SnapshotId) -> Result<String> {
        let (code, name) = grow(0, 128, |name, length| {
            // SAFETY: the image is open; there is room for `length` bytes at `name`.
            unsafe { rbd_snap_get_trash_namespace(self.raw, id, name, *length) }
        });
        self.check_at(code, "rbd_snap_get_trash_namespace", &id.to_string())?;
        Ok(text(&name))
    }

    pub(super) fn parent(&self) -> Result<Option<Parent>> {
        let mut image = BLANK_IMAGE;
        let mut snapshot = rbd_snap_spec_t { id: 0, namespace_type: 0, name: null_mut() };
        // SAFETY: the image is open; both are places for the answer.
        let code = unsafe { rbd_get_parent(self.raw, &raw mut image, &raw mut snapshot) };
        match self.check(code, "rbd_get_parent") {
            Err(error) if error.errno == Errno::ENOENT => return Ok(None),
            other => other?,
        };
        // SAFETY: on success librbd filled both, and they are cleaned up once, after they were
        // copied.
        unsafe {
            let child = linked(&image);
            let parent = Parent {
                pool: child.pool,
                namespace: child.namespace,
                image_id: child.image_id,
                image: child.image,
                in_trash: child.in_trash,
                snapshot_id: snapshot.id,
                snapshot: owned(snapshot.name),
            };
            rbd_linked_image_spec_cleanup(&raw mut image);
            rbd_snap_spec_cleanup(&raw mut snapshot);
            Ok(Some(parent))
        }
    }

    /// The clones of the snapshot the handle is set to; of all snapshots when it is set to the
    /// head.
    pub(super) fn children(&self) -> Result<Vec<Child>> {
        let (code, items) = grow(BLANK_IMAGE, 64, |images, count| {
            // SAFETY: the image is open; there is room for `count` entries at `images`.
            unsafe { rbd_list_children3(self.raw, images, count) }
        });
        self.check(code, "rbd_list_children3")?;
        // SAFETY: rbd_list_children3 wrote the entries; this is its cleanup.
        let list = unsafe { List::new(items, rbd_linked_image_spec_list_cleanup) };
        // SAFETY: librbd made the strings, and `list` still owns them.
        Ok(list.iter().map(|image| unsafe { linked(image) }).collect())
    }

    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let size = self.size()?;
        let length =
            usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX).min(buffer.len());
        let mut done = 0;
        while done < length {
            let chunk = &mut buffer[done..length.min(done + MOST)];
            // SAFETY: the image is open; the chunk has the length given.
            let code = unsafe {
                rbd_read(
                    self.raw,
                    offset + done as u64,
                    chunk.len(),
                    chunk.as_mut_ptr().cast::<c_char>(),
                )
            };
            let read = self.count(code, "rbd_read")?;
            if read == 0 {
                break;
            }
            done += read;
        }
        Ok(done)
    }

    pub(super) fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        // librbd cuts a write off at the end and reports success.
        self.within(offset, data.len() as u64, "rbd_write")?;
        let mut done = 0;
        while done < data.len() {
            let chunk = &data[done..data.len().min(done + MOST)];
            // SAFETY: the image is open; the chunk has the length given.
            let code = unsafe {
                rbd_write(
                    self.raw,
                    offset + done as u64,
                    chunk.len(),
                    chunk.as_ptr().cast::<c_char>(),
                )
            };
            let written = self.count(code, "rbd_write")?;
            if written == 0 {
                // Shrunk meanwhile.
                return Err(Error::new(Errno::EINVAL, "rbd_write", self.spec.clone()));
            }
            done += written;
        }
        Ok(())
    }

    /// Not `rbd_discard`, which by default leaves alone what does not fill 64 KiB.
    pub(super) fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.within(offset, length, "rbd_write_zeroes")?;
        let mut done = 0;
        while done < length {
            let chunk = usize::try_from(length - done).unwrap_or(MOST).min(MOST);
            // SAFETY: the image is open; no flags.
            let code = unsafe { rbd_write_zeroes(self.raw, offset + done, chunk, 0, 0) };
            self.count(code, "rbd_write_zeroes")?;
            done += chunk as u64;
        }
        Ok(())
    }

    fn within(&self, offset: u64, length: u64, call: &'static str) -> Result<()> {
        let size = self.size()?;
        match offset.checked_add(length) {
            Some(end) if end <= size => Ok(()),
            _ => {
                let object = format!("{}: {length} bytes at {offset} of {size}", self.spec);
                Err(Error::new(Errno::EINVAL, call, object))
            }
        }
    }

    /// The byte count in the return value of an I/O call.
    fn count(&self, code: isize, call: &'static str) -> Result<usize> {
        // Negative values are errnos, which fit; `min` keeps the others out.
        let error = c_int::try_from(code.min(0)).unwrap_or(c_int::MIN);
        self.check(error, call)?;
        Ok(code.cast_unsigned())
    }

    /// The difference between what this handle is set to and `query.since`; `query.at` is not
    /// looked at.
    pub(super) fn diff(&self, query: &Diff, visit: Visit<'_>) -> Result<()> {
        let length = query.length.min(self.size()?.saturating_sub(query.offset));
        if length == 0 {
            return Ok(());
        }
        match *DIFF_ITERATE3 {
            Some(function) => self.diff_by_id(function, query, length, visit),
            None => self.diff_by_name(query, length, visit),
        }
    }

    fn diff_by_id(
        &self,
        function: rbd_diff_iterate3,
        query: &Diff,
        length: u64,
        visit: Visit<'_>,
    ) -> Result<()> {
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        let flags = flag(query.include_parent, RBD_DIFF_ITERATE_FLAG_INCLUDE_PARENT)
            | flag(query.whole_object, RBD_DIFF_ITERATE_FLAG_WHOLE_OBJECT);
        let since = query.since.unwrap_or(0);
        let callback = Callback::new(visit);
        // SAFETY: the image is open; the callback outlives the call.
        let code = unsafe {
            function(
                self.raw,
                since,
                query.offset,
                length,
                flags,
                Some(visit_extent),
                callback.argument(),
            )
        };
        self.check(callback.finish(code), "rbd_diff_iterate3").map(drop)
    }

    fn diff_by_name(&self, query: &Diff, length: u64, visit: Visit<'_>) -> Result<()> {
        let since = query.since.map(|snapshot| self.snapshot_name(snapshot)).transpose()?;
        let since = since.map(|name| c_string(&name, "rbd_diff_iterate2")).transpose()?;
        let callback = Callback::new(visit);
        // SAFETY: the image is open; `since` is null or NUL-terminated; the callback outlives the
        // call.
        let code = unsafe {
            rbd_diff_iterate2(
                self.raw,
                since.as_ref().map_or(null(), |name| name.as_ptr()),
                query.offset,
                length,
                query.include_parent.into(),
                query.whole_object.into(),
                Some(visit_extent),
                callback.argument(),
            )
        };
        self.check(callback.finish(code), "rbd_diff_iterate2").map(drop)
    }

    fn snapshot_name(&self, id: SnapshotId) -> Result<String> {
        let (code, name) = grow(0, 128, |name, length| {
            // SAFETY: the image is open; there is room for `length` bytes at `name`.
            unsafe { rbd_snap_get_name(self.raw, id, name, length) }
        });
        self.check_at(code, "rbd_snap_get_name", &id.to_string())?;
        Ok(text(&name))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: opened by `open`, closed nowhere else. What a failing close leaves behind (a
        // watch) the cluster expires; the driver could do nothing about it here.
        unsafe { rbd_close(self.raw) };
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Handle").field(&self.spec).finish()
    }
}

type Visit<'a> = &'a mut (dyn FnMut(Extent) -> ControlFlow<()> + Send);

unsafe extern "C" fn visit_extent(
    offset: u64,
    length: usize,
    exists: c_int,
    argument: *mut c_void,
) -> c_int {
    let extent = Extent { offset, length: length as u64, exists: exists != 0 };
    // SAFETY: `diff` passes the argument of its callback, which outlives the call.
    unsafe { Callback::<Visit<'_>>::enter(argument, |visit| visit(extent)) }
}

const BLANK_IMAGE: rbd_linked_image_spec_t = rbd_linked_image_spec_t {
    pool_id: 0,
    pool_name: null_mut(),
    pool_namespace: null_mut(),
    image_id: null_mut(),
    image_name: null_mut(),
    trash: false,
};

/// # Safety
///
/// librbd filled `image`, and it was not cleaned up yet.
unsafe fn linked(image: &rbd_linked_image_spec_t) -> Child {
    // SAFETY: the caller promises librbd's own strings.
    unsafe {
        Child {
            pool: owned(image.pool_name),
            namespace: owned(image.pool_namespace),
            image_id: owned(image.image_id),
            image: owned(image.image_name),
            in_trash: image.trash,
        }
    }
}

fn system_time(time: timespec) -> SystemTime {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
    UNIX_EPOCH + Duration::new(seconds, nanoseconds)
}
