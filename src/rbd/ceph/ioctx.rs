//! An I/O context: one namespace of one pool, over one connection.

use std::ffi::c_int;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::call::c_string;
use super::connection::Connection;
use super::sys::{rados, rados_notify2, rados_set_pool_full_try};
use crate::rbd::{Errno, Error, Result};

/// An I/O context. It is destroyed when dropped and keeps its connection alive. The namespace never
/// changes, so it can be used from several threads.
#[derive(Debug)]
pub(super) struct Ioctx {
    raw: rados::rados_ioctx_t,
    pool: String,
    namespace: String,
    timed_out: AtomicBool,
    // Dropped after `drop` has destroyed the context.
    connection: Arc<Connection>,
}

// SAFETY: librados' and librbd's functions may be called with one context from any thread, several
// at a time; what changes the context itself (namespace, full-try) happens in `open` only.
unsafe impl Send for Ioctx {}
// SAFETY: as above.
unsafe impl Sync for Ioctx {}

impl Ioctx {
    pub(super) fn open(connection: &Arc<Connection>, pool: &str, namespace: &str) -> Result<Ioctx> {
        let c_pool = c_string(pool, "rados_ioctx_create")?;
        let c_namespace = c_string(namespace, "rados_ioctx_set_namespace")?;
        let mut raw = null_mut();
        // SAFETY: the connection is up; `raw` is a place for the handle.
        let code =
            unsafe { rados::rados_ioctx_create(connection.raw(), c_pool.as_ptr(), &raw mut raw) };
        connection.check(code, "rados_ioctx_create", || format!("pool {pool}"))?;
        // SAFETY: the context is valid and not shared yet. With full-try a full pool refuses at
        // once instead of blocking, and lets removals through.
        unsafe {
            rados::rados_ioctx_set_namespace(raw, c_namespace.as_ptr());
            rados_set_pool_full_try(raw);
        }
        Ok(Ioctx {
            raw,
            pool: pool.to_owned(),
            namespace: namespace.to_owned(),
            timed_out: AtomicBool::new(false),
            connection: Arc::clone(connection),
        })
    }

    /// Whether a call timed out.
    pub(super) fn has_timed_out(&self) -> bool {
        self.timed_out.load(Ordering::Relaxed)
    }

    /// The handle, for calls that take a `rados_ioctx_t`.
    pub(super) fn raw(&self) -> rados::rados_ioctx_t {
        self.raw
    }

    /// The pool's name.
    pub(super) fn pool(&self) -> &str {
        &self.pool
    }

    /// The namespace, "" for the default one.
    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The same place over another connection.
    pub(super) fn over(&self, connection: &Arc<Connection>) -> Result<Ioctx> {
        Ioctx::open(connection, &self.pool, &self.namespace)
    }

    /// The connection the context belongs to.
    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// What tells the image with this id from all others of this process's connections.
    pub(super) fn key(&self, id: &str) -> (usize, String, String, String) {
        (
            Arc::as_ptr(&self.connection).addr(),
            self.pool.clone(),
            self.namespace.clone(),
            id.to_owned(),
        )
    }

    /// The spec of an image or object here, for messages.
    pub(super) fn spec(&self, name: &str) -> String {
        spec(&self.pool, &self.namespace, name)
    }

    /// The spec of an image, group or object of that pool in the namespace here.
    pub(super) fn spec_in(&self, pool: &str, name: &str) -> String {
        spec(pool, &self.namespace, name)
    }

    /// [`Connection::check`].
    pub(super) fn check(
        &self,
        code: c_int,
        call: &'static str,
        object: impl FnOnce() -> String,
    ) -> Result<c_int> {
        let checked = self.connection.check(code, call, object);
        if matches!(&checked, Err(error) if error.errno == Errno::ETIMEDOUT) {
            self.timed_out.store(true, Ordering::Relaxed);
        }
        checked
    }

    /// Calls `method` of the OSD's `rbd` class, as librbd does, on `object`. There is no output.
    /// `input` is in Ceph's encoding.
    pub(super) fn call_class(
        &self,
        object: &str,
        method: &'static str,
        input: &[u8],
    ) -> Result<()> {
        let (c_object, c_method) = (c_string(object, method)?, c_string(method, method)?);
        // SAFETY: the context is valid, the names NUL-terminated; the input has the length given.
        let code = unsafe {
            rados::rados_exec(
                self.raw,
                c_object.as_ptr(),
                c"rbd".as_ptr(),
                c_method.as_ptr(),
                input.as_ptr().cast(),
                input.len(),
                null_mut(),
                0,
            )
        };
        self.check(code, method, || self.spec(object)).map(drop)
    }
}

impl Ioctx {
    /// Tells all who watch `object`, and waits until each has heard or its watch is over:
    /// `ETIMEDOUT` when that takes longer than `timeout`.
    pub(super) fn notify(&self, object: &str, message: &[u8], timeout: Duration) -> Result<()> {
        let call = "rados_notify2";
        let c_object = c_string(object, call)?;
        let length = c_int::try_from(message.len())
            .map_err(|_| Error::new(Errno::E2BIG, call, self.spec(object)))?;
        let milliseconds = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        // SAFETY: the context is valid, the name NUL-terminated, the message of the length given;
        // no answers are wanted.
        let code = unsafe {
            rados_notify2(
                self.raw,
                c_object.as_ptr(),
                message.as_ptr().cast(),
                length,
                milliseconds,
                null_mut(),
                null_mut(),
            )
        };
        self.check(code, call, || self.spec(object)).map(drop)
    }
}

impl Drop for Ioctx {
    fn drop(&mut self) {
        // SAFETY: made by `open`, destroyed nowhere else; images hold a reference to this context.
        unsafe { rados::rados_ioctx_destroy(self.raw) }
    }
}

/// `pool/namespace/name`, without the namespace when it is the default one.
fn spec(pool: &str, namespace: &str, name: &str) -> String {
    if namespace.is_empty() {
        format!("{pool}/{name}")
    } else {
        format!("{pool}/{namespace}/{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_leave_the_default_namespace_out() {
        assert_eq!(spec("rbd", "", "image"), "rbd/image");
        assert_eq!(spec("rbd", "tenant", "image"), "rbd/tenant/image");
    }
}
