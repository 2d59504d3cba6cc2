//! A lease as it is stored, and the process that holds it.

use serde::{Deserialize, Serialize};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::sync::LazyLock;

/// The version of leases this build writes.
pub(super) const VERSION: u32 = 2;

/// A process that holds leases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Holder {
    /// Its host's name, for people.
    pub(super) host: String,
    /// The boot of the machine it runs on.
    boot: String,
    /// The PID namespace it is in.
    namespace: u64,
    /// Its PID there.
    pub(super) pid: u32,
    /// When it started, in the kernel's ticks since boot.
    started: u64,
    /// Tells apart what else could be the same.
    pub(super) id: String,
}

/// A lease as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stored {
    pub(super) version: u32,
    /// No two leases have the same.
    pub(super) id: String,
    pub(super) holder: Holder,
    /// Seconds since 1970 when it was taken.
    pub(super) since: i64,
    /// The addresses of the clients that work under it. Version 1 has none.
    #[serde(default)]
    pub(super) clients: Vec<String>,
    /// Its operation has ended, and a call of it timed out: that can be on its way to Ceph still.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) over: bool,
    /// How often it was renewed. Version 1 has another name for it, so that it cannot read this
    /// one.
    #[serde(alias = "renewed")]
    pub(super) renewals: u64,
}

impl Stored {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        #[expect(
            clippy::expect_used,
            reason = "a plain struct of strings and numbers always serialises"
        )]
        serde_json::to_vec(self).expect("a lease serialises")
    }
}

impl Stored {
    /// Who holds it, since when, and with which clients, for people.
    pub(crate) fn describe(&self) -> String {
        let Holder { host, pid, .. } = &self.holder;
        let since = jiff::Timestamp::from_second(self.since).unwrap_or_default();
        let ended = if self.over || self.holder.is_dead() {
            "; it has ended, and the next request takes its work over"
        } else {
            ""
        };
        format!("process {pid} on {host} since {since}, by {}{ended}", self.clients.join(", "))
    }
}

/// Reads a lease. An error for one of a newer version.
pub(crate) fn parse(bytes: &[u8]) -> serde_json::Result<Stored> {
    let stored: Stored = serde_json::from_slice(bytes)?;
    if stored.version > VERSION {
        let version = stored.version;
        return Err(serde::de::Error::custom(format!(
            "version {version} is newer than this driver's {VERSION}"
        )));
    }
    Ok(stored)
}

/// This process, as a holder without an id.
static THIS_PROCESS: LazyLock<Holder> = LazyLock::new(|| {
    let pid = std::process::id();
    Holder {
        host: nix::unistd::gethostname()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
        boot: boot(),
        namespace: pid_namespace(),
        pid,
        started: start_of(pid).unwrap_or_default(),
        id: String::new(),
    }
});

impl Holder {
    /// This process, as one that tells itself apart from every other.
    pub(super) fn this_process() -> Holder {
        Holder {
            id: uuid::Uuid::new_v4().simple().to_string(),
            ..LazyLock::force(&THIS_PROCESS).clone()
        }
    }

    /// Whether it is certain that the process does not exist any more.
    pub(super) fn is_dead(&self) -> bool {
        let here = LazyLock::force(&THIS_PROCESS);
        let comparable = self.boot == here.boot && self.namespace == here.namespace;
        comparable
            && !self.boot.is_empty()
            && self.namespace != 0
            && self.started != 0
            && match start_of(self.pid) {
                Ok(started) => started != self.started,
                Err(error) => error.kind() == ErrorKind::NotFound,
            }
    }
}

/// The id of this machine's boot, "" when it cannot be read.
fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_string()
}

/// The number of this process's PID namespace, 0 when it cannot be read.
fn pid_namespace() -> u64 {
    fs::metadata("/proc/self/ns/pid").map_or(0, |namespace| namespace.ino())
}

/// When a process started, in ticks since boot. `NotFound` when it does not exist, or nothing is
/// left of it but its exit code.
fn start_of(pid: u32) -> std::io::Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path)?;
    // The program's name, in parentheses, may hold anything.
    let (_, fields) = stat.rsplit_once(')').unwrap_or_default();
    let mut fields = fields.split_ascii_whitespace();
    if matches!(fields.next(), Some("Z" | "X")) {
        return Err(ErrorKind::NotFound.into());
    }
    let started = fields.nth(18).and_then(|field| field.parse().ok());
    started.ok_or_else(|| std::io::Error::other(format!("{path} is not as expected")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn a_process_that_is_gone_is_told_from_one_that_is_not() {
        let this = LazyLock::force(&THIS_PROCESS).clone();
        assert!(!this.is_dead());
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let holder =
            Holder { pid: child.id(), started: start_of(child.id()).unwrap(), ..this.clone() };
        assert!(!holder.is_dead());
        // Another one has its number now.
        assert!(Holder { started: holder.started + 1, ..holder.clone() }.is_dead());
        child.kill().unwrap();
        // Its exit code is there still: this test has not asked for it.
        let deadline = Instant::now() + Duration::from_mins(1);
        while !holder.is_dead() {
            assert!(Instant::now() < deadline, "a killed process lives for ever");
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(holder.is_dead());
        // Of those elsewhere nothing is known.
        assert!(!Holder { boot: "another".into(), ..holder.clone() }.is_dead());
        assert!(!Holder { namespace: holder.namespace + 1, ..holder }.is_dead());
    }
}
