use std::collections::HashSet;
use std::ffi::{CStr, c_char, c_int};
use std::fmt;
use std::path::PathBuf;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use zeroize::Zeroizing;

use super::call::{c_string, errno, owned};
use super::sys::{rados, rados_getaddrs};
use crate::metrics::metrics;
use crate::rbd::{Errno, Error, Key, Result};

/// Which cluster to connect to, and as whom.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// Monitor addresses as in `mon_host` (`10.0.0.1`, `10.0.0.1:6789`,
    /// `[v2:10.0.0.1:3300,v1:10.0.0.1:6789]`). May be empty when `ceph_conf` names them; wins over
    /// it otherwise.
    pub monitors: Vec<String>,
    /// A `ceph.conf` to read first. Without one nothing on disk is read.
    pub ceph_conf: Option<PathBuf>,
    /// The user without the `client.` in front.
    pub user: String,
    /// The user's key. Without one the keyring that `ceph_conf` names is used, or none at all where
    /// cephx is off.
    pub key: Option<Key>,
    /// How long calls may take.
    pub timeouts: Timeouts,
}

/// How long librados waits, in whole seconds (rounded up). librbd calls are made of several such
/// operations, and a few waits in librados know no timeout at all: callers need deadlines of their
/// own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Timeouts {
    /// For a connection to come up (`client_mount_timeout`).
    pub connect: Duration,
    /// For one monitor command (`rados_mon_op_timeout`).
    pub monitor: Duration,
    /// For one operation on an OSD (`rados_osd_op_timeout`).
    pub osd: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            connect: Duration::from_secs(5),
            monitor: Duration::from_secs(10),
            osd: Duration::from_secs(15),
        }
    }
}

/// File descriptors that a connection may take, generously: event loops, pipes, and sockets to
/// monitors and some OSDs.
const DESCRIPTORS: u64 = 32;

/// Whether a connection is worth another call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// Nothing speaks against it.
    Sound,
    /// A call timed out. That is how a key that was changed or deleted shows: librados keeps trying
    /// to get new tickets with it. It is also how a cluster in trouble shows, where this connection
    /// is as good as any. Or a call was not permitted: OSDs go by the capabilities in the ticket,
    /// which the user had when it was given out, up to an hour ago.
    Suspect,
    /// No call will work any more: the cluster blocklisted it (`ESHUTDOWN`), does not accept the
    /// key (`EACCES`; missing capabilities are `EPERM`), or it was never connected (`ENOTCONN`).
    Broken,
}

/// Threads on which librados and librbd continue what was waited for: their own default.
const THREADS: usize = 2;

/// What is wrong with a connection, in an atomic, the worse the larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Fault {
    None,
    // What makes it suspect.
    Stuck,
    Timeout,
    NotPermitted,
    // What breaks it.
    Refused,
    NotConnected,
    Blocklisted,
}

impl Fault {
    const ALL: [Fault; 7] = [
        Fault::None,
        Fault::Stuck,
        Fault::Timeout,
        Fault::NotPermitted,
        Fault::Refused,
        Fault::NotConnected,
        Fault::Blocklisted,
    ];

    fn of(errno: Errno) -> Fault {
        match errno {
            Errno::ESHUTDOWN => Fault::Blocklisted,
            Errno::EACCES => Fault::Refused,
            Errno::ENOTCONN => Fault::NotConnected,
            Errno::ETIMEDOUT => Fault::Timeout,
            Errno::EPERM => Fault::NotPermitted,
            _ => Fault::None,
        }
    }

    fn stored(number: u8) -> Fault {
        Fault::ALL[usize::from(number).min(Fault::ALL.len() - 1)]
    }

    fn trust(self) -> Trust {
        match self {
            Fault::None => Trust::Sound,
            Fault::Stuck | Fault::Timeout | Fault::NotPermitted => Trust::Suspect,
            Fault::Refused | Fault::NotConnected | Fault::Blocklisted => Trust::Broken,
        }
    }

    /// What metrics call it.
    fn label(self) -> &'static str {
        match self {
            Fault::None => "none",
            Fault::Stuck => "stuck",
            Fault::Timeout => "timeout",
            Fault::NotPermitted => "not-permitted",
            Fault::Refused => "refused",
            Fault::NotConnected => "not-connected",
            Fault::Blocklisted => "blocklisted",
        }
    }
}

impl Trust {
    /// What metrics call it.
    fn label(self) -> &'static str {
        match self {
            Trust::Sound => "sound",
            Trust::Suspect => "suspect",
            Trust::Broken => "broken",
        }
    }
}

/// A connected `rados_t`, shut down when dropped. Pools and images hold on to it.
///
/// Dropping the last reference blocks for some milliseconds. That never happens on one of librados'
/// own threads: those only run callbacks during a call on an image, and the thread that made that
/// call holds a reference.
pub(super) struct Connection {
    rados: rados::rados_t,
    user: String,
    address: String,
    options: ConnectOptions,
    /// A [`Fault`].
    fault: AtomicU8,
}

// SAFETY: librados' functions may be called with one `rados_t` from any thread, several at a time.
unsafe impl Send for Connection {}
// SAFETY: as above.
unsafe impl Sync for Connection {}

impl Connection {
    /// Connects. `ETIMEDOUT` when no monitor answers in time, `EACCES` when the key is wrong or the
    /// user unknown, `EINVAL` when a value of `options` makes no sense to librados, `ENOENT` when
    /// the `ceph.conf` is missing or no monitor is named.
    pub(super) fn open(options: &ConnectOptions) -> Result<Connection> {
        Connection::open_with(options, THREADS)
    }

    /// Another connection like this one, on which `callbacks` callbacks may block at the same time.
    pub(super) fn for_blocking(&self, callbacks: usize) -> Result<Connection> {
        Connection::open_with(&self.options, THREADS + callbacks)
    }

    fn open_with(options: &ConnectOptions, threads: usize) -> Result<Connection> {
        let user = format!("client.{}", options.user);
        if options.monitors.is_empty() && options.ceph_conf.is_none() {
            // librados would ask the DNS, and complain on standard error.
            return Err(Error::new(
                Errno::ENOENT,
                "rados_connect",
                format!("{user}: no monitors are named"),
            ));
        }
        require_descriptors(&user)?;
        let name = c_string(&user, "rados_create2")?;
        let mut raw = null_mut();
        // SAFETY: `raw` is a place for the handle; both strings are NUL-terminated.
        let code =
            unsafe { rados::rados_create2(&raw mut raw, c"ceph".as_ptr(), name.as_ptr(), 0) };
        if code < 0 {
            return Err(Error::new(errno(code), "rados_create2", user));
        }
        let mut connection = Connection {
            rados: raw,
            user,
            address: String::new(),
            options: options.clone(),
            fault: AtomicU8::new(Fault::None as u8),
        };
        connection.configure(options)?;
        connection.set("librados_thread_count", &threads.to_string())?;
        let target = || format!("{} at {}", connection.user, target(options));
        // SAFETY: the handle is valid and not yet connected.
        let code = unsafe { rados::rados_connect(raw) };
        connection.check(code, "rados_connect", target).map_err(|error| match error.errno {
            // librados 20 forgets a key that it cannot decode, and then misses a keyring.
            Errno::ENOENT if options.key.is_some() && !options.monitors.is_empty() => {
                Error { errno: Errno::EINVAL, ..error }
            }
            _ => error,
        })?;
        connection.address = connection.own_address()?;
        own_addresses().insert(connection.address.clone());
        metrics().connection_changes(None, Some(connection.trust().label()));
        Ok(connection)
    }

    fn configure(&self, options: &ConnectOptions) -> Result<()> {
        if let Some(path) = &options.ceph_conf {
            let path = path.to_string_lossy();
            let c_path = c_string(&path, "rados_conf_read_file")?;
            // SAFETY: the handle is valid, the path NUL-terminated.
            let code = unsafe { rados::rados_conf_read_file(self.rados, c_path.as_ptr()) };
            self.check(code, "rados_conf_read_file", || path.into_owned())?;
        }
        if !options.monitors.is_empty() {
            self.set("mon_host", &options.monitors.join(","))?;
        }
        let seconds = |timeout: Duration| timeout.as_millis().div_ceil(1000).max(1).to_string();
        for (option, value) in [
            ("client_mount_timeout", seconds(options.timeouts.connect).as_str()),
            ("rados_mon_op_timeout", &seconds(options.timeouts.monitor)),
            ("rados_osd_op_timeout", &seconds(options.timeouts.osd)),
            // Nothing is written anywhere: librados' own messages can hold the key (when it is
            // malformed).
            ("log_to_stderr", "false"),
            ("err_to_stderr", "false"),
            ("log_file", ""),
            ("log_to_syslog", "false"),
            ("err_to_syslog", "false"),
            ("admin_socket", ""),
            ("ms_async_op_threads", "1"),
            // Without librbd's cache a write has its own error, not the next flush, and what one
            // handle wrote another one reads.
            ("rbd_cache", "false"),
            // What is removed is to be gone. A pool's own settings win over these.
            ("rbd_move_to_trash_on_remove", "false"),
            ("rbd_move_parent_to_trash_on_remove", "false"),
        ] {
            self.set(option, value)?;
        }
        if let Some(key) = &options.key {
            let value = Zeroizing::new([key.expose().as_bytes(), b"\0"].concat());
            let value = CStr::from_bytes_with_nul(&value)
                .map_err(|_| Error::new(Errno::EINVAL, "rados_conf_set", "key"))?;
            self.set_raw("key", value)?;
        }
        if options.key.is_some() || options.ceph_conf.is_none() {
            // Nothing is to be found by accident in /etc/ceph.
            self.set("keyring", "")?;
        }
        Ok(())
    }

    fn set(&self, option: &str, value: &str) -> Result<()> {
        self.set_raw(option, &c_string(value, "rados_conf_set")?)
    }

    fn set_raw(&self, option: &str, value: &CStr) -> Result<()> {
        let name = c_string(option, "rados_conf_set")?;
        // SAFETY: the handle is valid; both strings are NUL-terminated and copied by librados.
        let code = unsafe { rados::rados_conf_set(self.rados, name.as_ptr(), value.as_ptr()) };
        // The value stays out of the message: it may be the key.
        self.check(code, "rados_conf_set", || option.to_owned()).map(drop)
    }

    fn own_address(&self) -> Result<String> {
        let mut text: *mut c_char = null_mut();
        // SAFETY: the handle is connected; `text` is a place for the pointer.
        let code = unsafe { rados_getaddrs(self.rados, &raw mut text) };
        self.check(code, "rados_getaddrs", || self.user.clone())?;
        // SAFETY: on success librados made a NUL-terminated string for us, which is freed once,
        // here.
        let address = unsafe { owned(text) };
        // SAFETY: as above.
        unsafe { rados::rados_buffer_free(text) };
        Ok(address)
    }

    /// The handle, for calls that take a `rados_t`.
    pub(super) fn raw(&self) -> rados::rados_t {
        self.rados
    }

    /// The user, `client.` included.
    pub(super) fn user(&self) -> &str {
        &self.user
    }

    /// This connection's address in the form of the blocklist.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// What the calls so far say about the next one.
    pub(super) fn trust(&self) -> Trust {
        self.fault().trust()
    }

    fn fault(&self) -> Fault {
        Fault::stored(self.fault.load(Ordering::Relaxed))
    }

    /// Why it is replaced, as metrics have it.
    pub(super) fn reason(&self) -> &'static str {
        self.fault().label()
    }

    /// Begins to suspect it, because a call on it is stuck.
    pub(super) fn suspect(&self) {
        self.note(Fault::Stuck);
    }

    /// Takes back a suspicion, when a new connection would do no better.
    pub(super) fn trust_again(&self) {
        // Broken stays broken.
        let sound =
            |fault| (Fault::stored(fault).trust() == Trust::Suspect).then_some(Fault::None as u8);
        let before = self.fault.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sound);
        if before.is_ok() {
            self.tell(Trust::Suspect, Trust::Sound);
        }
    }

    fn note(&self, fault: Fault) {
        let before = Fault::stored(self.fault.fetch_max(fault as u8, Ordering::Relaxed));
        if before.trust() != fault.trust() && before as u8 <= fault as u8 {
            self.tell(before.trust(), fault.trust());
        }
    }

    /// Tells the metrics that it is no more what it was. One that never came up is none of theirs.
    fn tell(&self, before: Trust, now: Trust) {
        if !self.address.is_empty() {
            metrics().connection_changes(Some(before.label()), Some(now.label()));
        }
    }

    /// The return value of `call` when it is none of C's errors, else the error, remembering what
    /// that says about the connection.
    pub(super) fn check(
        &self,
        code: c_int,
        call: &'static str,
        object: impl FnOnce() -> String,
    ) -> Result<c_int> {
        if code >= 0 {
            return Ok(code);
        }
        let errno = errno(code);
        self.note(Fault::of(errno));
        Err(Error::new(errno, call, object()))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        own_addresses().remove(&self.address);
        if !self.address.is_empty() {
            metrics().connection_changes(Some(self.trust().label()), None);
        }
        // SAFETY: every pool and image holds a reference to this connection, so none is left. The
        // handle also has to be shut down when connecting failed.
        unsafe { rados::rados_shutdown(self.rados) }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Connection")
            .field("user", &self.user)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// The addresses of all connections of this process.
pub(super) fn own_addresses() -> MutexGuard<'static, HashSet<String>> {
    static ADDRESSES: LazyLock<Mutex<HashSet<String>>> = LazyLock::new(Mutex::default);
    ADDRESSES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Refuses with `EMFILE` what librados would not survive: it aborts the process when it gets no
/// file descriptor for an event loop.
fn require_descriptors(user: &str) -> Result<()> {
    let refuse =
        |why: String| Err(Error::new(Errno::EMFILE, "rados_connect", format!("{user}: {why}")));
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)
        .map_err(|errno| Error::new(errno, "getrlimit", "RLIMIT_NOFILE".to_owned()))?;
    let Ok(open) = std::fs::read_dir("/proc/self/fd").map(Iterator::count) else {
        return refuse(
            "the driver has no file descriptors left: raise its limit (ulimit -n)".to_owned(),
        );
    };
    let left = limit.saturating_sub(open as u64);
    if left < DESCRIPTORS {
        return refuse(format!(
            "a connection takes {DESCRIPTORS} file descriptors and the driver may open {left} more: raise its limit (ulimit -n)"
        ));
    }
    Ok(())
}

fn target(options: &ConnectOptions) -> String {
    match &options.ceph_conf {
        Some(path) if options.monitors.is_empty() => path.display().to_string(),
        _ => options.monitors.join(","),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{CONNECTION_STATES, RECONNECT_REASONS};

    #[test]
    fn faults_are_stored_in_their_order_and_metrics_have_them_all() {
        for (number, fault) in (0..).zip(Fault::ALL) {
            assert_eq!((fault as u8, Fault::stored(number)), (number, fault));
        }
        let reasons: Vec<_> = Fault::ALL[1..].iter().map(|fault| fault.label()).collect();
        assert_eq!(reasons, RECONNECT_REASONS);
        let states = [Trust::Sound, Trust::Suspect, Trust::Broken].map(Trust::label);
        assert_eq!(states, CONNECTION_STATES);
    }
}
