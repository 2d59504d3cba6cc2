use std::ffi::{c_char, c_int};
use std::ptr::{null, null_mut};
use std::sync::Arc;

use serde::Deserialize;

use super::call::{c_string, text};
use super::connection::{Connection, own_addresses};
use super::ioctx::Ioctx;
use super::monmap;
use super::pool::CephPool;
use super::sys::{rados, rados_blocklist_add, rados_wait_for_latest_osdmap, size_t};
use crate::rbd::{Cluster, Errno, Error, Monitor, Pool, Result, is_client_address};

/// A [`Cluster`] over a librados connection. Cheap to clone: clones share the connection.
#[derive(Debug, Clone)]
pub(super) struct CephCluster {
    pub(super) connection: Arc<Connection>,
}

impl Cluster for CephCluster {
    fn fsid(&self) -> Result<String> {
        let mut buffer: [c_char; 37] = [0; 37];
        // SAFETY: the handle is connected; the buffer has the length given.
        let code = unsafe {
            rados::rados_cluster_fsid(self.connection.raw(), buffer.as_mut_ptr(), buffer.len())
        };
        self.connection.check(code, "rados_cluster_fsid", || self.connection.user().to_owned())?;
        Ok(text(&buffer).to_lowercase())
    }

    fn monitors(&self) -> Result<Vec<Monitor>> {
        monmap::parse(&self.monitor_command(r#"{"prefix":"mon dump","format":"json"}"#)?)
    }

    /// A pool this connection's map does not know costs a question to the monitors.
    fn pool(&self, name: &str, namespace: &str) -> Result<Arc<dyn Pool>> {
        Ok(Arc::new(CephPool { ioctx: Arc::new(Ioctx::open(&self.connection, name, namespace)?) }))
    }

    fn monitor_command(&self, command: &str) -> Result<Vec<u8>> {
        let call = "rados_mon_command";
        let c_command = c_string(command, call)?;
        let mut commands = [c_command.as_ptr()];
        let mut output = Output { data: null_mut(), length: 0 };
        // SAFETY: the handle is connected; there is one command, no input, and librados allocates
        // the output. The status text is not asked for (librados allows null): it may repeat what
        // the command held.
        let code = unsafe {
            rados::rados_mon_command(
                self.connection.raw(),
                commands.as_mut_ptr(),
                commands.len(),
                null(),
                0,
                &raw mut output.data,
                &raw mut output.length,
                null_mut(),
                null_mut(),
            )
        };
        self.connection.check(code, call, || prefix(command))?;
        if output.data.is_null() {
            return Ok(Vec::new());
        }
        // SAFETY: librados says how many bytes there are at `data`.
        Ok(unsafe { std::slice::from_raw_parts(output.data.cast::<u8>(), output.length) }.to_vec())
    }

    fn address(&self) -> Result<String> {
        Ok(self.connection.address().to_owned())
    }

    fn is_own(&self, address: &str) -> Result<bool> {
        Ok(own_addresses().contains(address))
    }

    fn blocklist(&self, address: &str, seconds: u32) -> Result<()> {
        let call = "rados_blocklist_add";
        if !is_client_address(address) {
            return Err(Error::new(Errno::EINVAL, call, address));
        }
        let c_address = c_string(address, call)?;
        // SAFETY: the handle is connected; the address is NUL-terminated, and librados reads it
        // alone, `const` or not.
        let code = unsafe {
            rados_blocklist_add(self.connection.raw(), c_address.as_ptr().cast_mut(), seconds)
        };
        // The monitors know the user, who connected before: it is a right that is missing, and a
        // new connection has those of now.
        let code = if code == -(Errno::EACCES as c_int) { -(Errno::EPERM as c_int) } else { code };
        self.connection.check(code, call, || address.to_owned())?;
        // SAFETY: the handle is connected.
        let code = unsafe { rados_wait_for_latest_osdmap(self.connection.raw()) };
        self.connection.check(code, "rados_wait_for_latest_osdmap", || address.to_owned()).map(drop)
    }
}

/// The name of a command, all of it that goes into messages: arguments can be secrets.
fn prefix(command: &str) -> String {
    #[derive(Deserialize)]
    struct Prefix {
        prefix: String,
    }
    serde_json::from_str(command)
        .map_or_else(|_| "a command that is not JSON".to_owned(), |c: Prefix| c.prefix)
}

/// A buffer librados allocated.
struct Output {
    data: *mut c_char,
    length: size_t,
}

impl Drop for Output {
    fn drop(&mut self) {
        // SAFETY: null, or allocated by librados and freed nowhere else.
        unsafe { rados::rados_buffer_free(self.data) }
    }
}

/// Reads JSON that a command gave.
pub(super) fn from_json<T: for<'a> Deserialize<'a>>(
    json: &[u8],
    command: &'static str,
) -> Result<T> {
    serde_json::from_slice(json)
        .map_err(|error| Error::new(Errno::EBADMSG, command, error.to_string()))
}
