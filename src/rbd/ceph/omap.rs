//! The omap of plain RADOS objects: read by keys, listed in pages, changed atomically behind
//! guards.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int};
use std::ptr::{null, null_mut};

use super::call::c_string;
use super::ioctx::Ioctx;
use super::sys::{
    LIBRADOS_CMPXATTR_OP_EQ, LIBRADOS_CREATE_EXCLUSIVE, LIBRADOS_CREATE_IDEMPOTENT,
    LIBRADOS_OPERATION_FULL_FORCE, rados, rados_omap_get_next2, rados_read_op_omap_get_vals2,
};
use crate::rbd::{Errno, Error, Guard, OmapPage, OmapUpdate, Result};

pub(super) fn get(ioctx: &Ioctx, object: &str, keys: &[&str]) -> Result<BTreeMap<String, Vec<u8>>> {
    let keys = Strings::new(keys.iter().copied())?;
    let op = ReadOp::new();
    let mut entries = Entries(null_mut());
    let mut result: c_int = 0;
    // SAFETY: the arrays have the length given and outlive the operation, as do `entries` and
    // `result`.
    unsafe {
        rados::rados_read_op_omap_get_vals_by_keys(
            op.0,
            keys.pointers.as_ptr(),
            keys.pointers.len(),
            &raw mut entries.0,
            &raw mut result,
        );
    }
    if !op.operate(ioctx, object)? {
        return Ok(BTreeMap::new());
    }
    ioctx.check(result, "rados_read_op_omap_get_vals_by_keys", || ioctx.spec(object))?;
    Ok(entries.read(ioctx, object)?.into_iter().collect())
}

pub(super) fn list(ioctx: &Ioctx, object: &str, after: &str, limit: u64) -> Result<OmapPage> {
    let after = c_string(after, "rados_read_op_omap_get_vals2")?;
    let op = ReadOp::new();
    let mut entries = Entries(null_mut());
    let (mut more, mut result) = (0_u8, 0);
    // SAFETY: the strings are NUL-terminated and copied; `entries`, `more` and `result` outlive the
    // operation.
    unsafe {
        rados_read_op_omap_get_vals2(
            op.0,
            after.as_ptr(),
            c"".as_ptr(),
            limit,
            &raw mut entries.0,
            &raw mut more,
            &raw mut result,
        );
    }
    if !op.operate(ioctx, object)? {
        return Ok(OmapPage::default());
    }
    ioctx.check(result, "rados_read_op_omap_get_vals2", || ioctx.spec(object))?;
    Ok(OmapPage { entries: entries.read(ioctx, object)?, more: more != 0 })
}

/// Goes through in a full pool: these are notes of a few bytes, and without them nothing could be
/// deleted there.
///
/// One write operation: the object is created when missing, then the guards are compared, then keys
/// set and removed. A failing guard cancels all of it, the creation included.
///
/// An absent key compares as an empty value, which is why empty values are refused (`EINVAL`).
pub(super) fn update(ioctx: &Ioctx, object: &str, update: &OmapUpdate) -> Result<()> {
    let empty = |value: &[u8]| value.is_empty();
    let equals_empty = |guard: &Guard| matches!(guard, Guard::Equals(_, value) if empty(value));
    if update.set.iter().any(|(_, value)| empty(value)) || update.guards.iter().any(equals_empty) {
        return Err(Error::new(
            Errno::EINVAL,
            "omap update with an empty value",
            ioctx.spec(object),
        ));
    }
    let op = WriteOp::new();
    // SAFETY: the operation is valid; no category is the default one.
    unsafe { rados::rados_write_op_create(op.0, LIBRADOS_CREATE_IDEMPOTENT, null()) };
    for guard in &update.guards {
        let (key, value): (&str, &[u8]) = match guard {
            Guard::Absent(key) => (key, &[]),
            Guard::Equals(key, value) => (key, value),
        };
        let key = c_string(key, "rados_write_op_omap_cmp")?;
        // SAFETY: key and value are copied; the result of the single comparison is not asked for.
        unsafe {
            rados::rados_write_op_omap_cmp(
                op.0,
                key.as_ptr(),
                LIBRADOS_CMPXATTR_OP_EQ,
                value.as_ptr().cast(),
                value.len(),
                null_mut(),
            );
        }
    }
    if !update.set.is_empty() {
        let keys = Strings::new(update.set.iter().map(|(key, _)| key.as_str()))?;
        let values: Vec<*const c_char> =
            update.set.iter().map(|(_, value)| value.as_ptr().cast()).collect();
        let lengths: Vec<usize> = update.set.iter().map(|(_, value)| value.len()).collect();
        // SAFETY: three arrays of the same length, the one given; librados copies keys and values.
        unsafe {
            rados::rados_write_op_omap_set(
                op.0,
                keys.pointers.as_ptr(),
                values.as_ptr(),
                lengths.as_ptr(),
                values.len(),
            );
        }
    }
    if !update.remove.is_empty() {
        let keys = Strings::new(update.remove.iter().map(String::as_str))?;
        // SAFETY: an array of the length given; librados copies the keys.
        unsafe {
            rados::rados_write_op_omap_rm_keys(op.0, keys.pointers.as_ptr(), keys.pointers.len());
        };
    }
    op.operate(ioctx, object)
}

/// Makes the object `object`, which holds `data`, also in a full pool. `EEXIST` when it is there.
pub(super) fn create_object(ioctx: &Ioctx, object: &str, data: &[u8]) -> Result<()> {
    let op = WriteOp::new();
    // SAFETY: the operation is valid and copies the data, whose length is given; no category is the
    // default one.
    unsafe {
        rados::rados_write_op_create(op.0, LIBRADOS_CREATE_EXCLUSIVE, null());
        rados::rados_write_op_write_full(op.0, data.as_ptr().cast(), data.len());
    }
    op.operate(ioctx, object)
}

/// C strings and the array of pointers to them.
struct Strings {
    pointers: Vec<*const c_char>,
    _strings: Vec<CString>,
}

impl Strings {
    fn new<'a>(strings: impl Iterator<Item = &'a str>) -> Result<Strings> {
        let strings: Vec<CString> =
            strings.map(|key| c_string(key, "omap key")).collect::<Result<_>>()?;
        // Moving a CString leaves the bytes it points to where they are.
        Ok(Strings {
            pointers: strings.iter().map(|key| key.as_ptr()).collect(),
            _strings: strings,
        })
    }
}

struct ReadOp(rados::rados_read_op_t);

impl ReadOp {
    fn new() -> ReadOp {
        // SAFETY: takes nothing; `Drop` releases the operation.
        ReadOp(unsafe { rados::rados_create_read_op() })
    }

    /// Runs the operation. `false` when the object is missing.
    fn operate(&self, ioctx: &Ioctx, object: &str) -> Result<bool> {
        let name = c_string(object, "rados_read_op_operate")?;
        // SAFETY: operation and ioctx are valid, the name is NUL-terminated.
        let code = unsafe { rados::rados_read_op_operate(self.0, ioctx.raw(), name.as_ptr(), 0) };
        match ioctx.check(code, "rados_read_op_operate", || ioctx.spec(object)) {
            Err(error) if error.errno == Errno::ENOENT => Ok(false),
            other => other.map(|_| true),
        }
    }
}

impl Drop for ReadOp {
    fn drop(&mut self) {
        // SAFETY: made by `new`, released nowhere else.
        unsafe { rados::rados_release_read_op(self.0) }
    }
}

struct WriteOp(rados::rados_write_op_t);

impl WriteOp {
    fn new() -> WriteOp {
        // SAFETY: takes nothing; `Drop` releases the operation.
        WriteOp(unsafe { rados::rados_create_write_op() })
    }

    /// Runs the operation, also in a full pool.
    fn operate(&self, ioctx: &Ioctx, object: &str) -> Result<()> {
        let call = "rados_write_op_operate";
        let name = c_string(object, call)?;
        let flags = LIBRADOS_OPERATION_FULL_FORCE;
        // SAFETY: operation and ioctx are valid, the name is NUL-terminated; no modification time
        // means now.
        let code = unsafe {
            rados::rados_write_op_operate(self.0, ioctx.raw(), name.as_ptr(), null_mut(), flags)
        };
        ioctx.check(code, call, || ioctx.spec(object)).map(drop)
    }
}

impl Drop for WriteOp {
    fn drop(&mut self) {
        // SAFETY: made by `new`, released nowhere else.
        unsafe { rados::rados_release_write_op(self.0) }
    }
}

/// An omap iterator, null until an operation asked for it.
struct Entries(rados::rados_omap_iter_t);

impl Entries {
    fn read(&self, ioctx: &Ioctx, object: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let mut entries = Vec::new();
        loop {
            let (mut key, mut value) = (null_mut::<c_char>(), null_mut::<c_char>());
            let (mut key_length, mut value_length) = (0, 0);
            // SAFETY: the iterator belongs to a completed operation; the places for pointers and
            // lengths are ours.
            let code = unsafe {
                rados_omap_get_next2(
                    self.0,
                    &raw mut key,
                    &raw mut value,
                    &raw mut key_length,
                    &raw mut value_length,
                )
            };
            ioctx.check(code, "rados_omap_get_next2", || ioctx.spec(object))?;
            if key.is_null() {
                return Ok(entries);
            }
            // SAFETY: the iterator owns key and value, of the lengths it gave, until it is closed.
            let (key, value) = unsafe { (bytes(key, key_length), bytes(value, value_length)) };
            let key = String::from_utf8(key).map_err(|_| {
                Error::new(Errno::EILSEQ, "rados_omap_get_next2", ioctx.spec(object))
            })?;
            entries.push((key, value));
        }
    }
}

impl Drop for Entries {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: made by an omap read, closed nowhere else.
            unsafe { rados::rados_omap_get_end(self.0) }
        }
    }
}

/// A copy of `length` bytes at `data`.
///
/// # Safety
///
/// There are `length` readable bytes at `data`, which may be null when `length` is 0.
unsafe fn bytes(data: *const c_char, length: usize) -> Vec<u8> {
    if length == 0 {
        return Vec::new();
    }
    // SAFETY: the caller promises `length` bytes.
    unsafe { std::slice::from_raw_parts(data.cast(), length) }.to_vec()
}
