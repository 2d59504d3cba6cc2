//! A process that dies or stands still on demand between two calls to Ceph, for the tests of what
//! such a driver leaves.
//!
//! [`observed`](super::observed) tells it of each call to a cluster, its pools and their images,
//! and it counts them. `CINDERBLOCK_KILL_AT` says after which one the process gets SIGKILL from
//! itself, with no destructor run and nothing flushed:
//!
//! - `call:N`: the N-th call of the process into Ceph;
//! - `change:N`: the N-th call that may change something there. An image opened for writing is one,
//!   since it leaves a watcher, and so is its closing.
//!
//! Dying right before a call leaves what dying right after the call before it leaves, so one form
//! covers both sides; and dying after a read leaves what dying after the last change leaves, so
//! `change` reaches every state of the cluster that `call` does. A call that fails counts. The
//! count is the process's: a test that gives the driver one request to answer counts that request's
//! calls alone.
//!
//! `CINDERBLOCK_STOP_BEFORE=METHOD` says before which call the process stops itself with SIGSTOP:
//! the first of that name, such as `remove_image`. It goes on with that call when it gets SIGCONT.
//!
//! Release builds do not hold this: the module exists only with `debug_assertions`, which Cargo's
//! release profile turns off and no other setting of this repository turns on. A feature could be
//! left on by a build that asks for all of them.

use nix::sys::signal::{Signal, raise};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What is counted, and after how many the process dies.
#[derive(Debug, Clone, Copy)]
struct Plan {
    reads_too: bool,
    calls: u64,
}

static PLAN: LazyLock<Option<Plan>> = LazyLock::new(|| {
    let text = std::env::var("CINDERBLOCK_KILL_AT").ok()?;
    let plan = text.split_once(':').and_then(|(what, calls)| {
        let calls = calls.parse().ok()?;
        matches!(what, "call" | "change").then_some(Plan { reads_too: what == "call", calls })
    });
    // A mistake here would make a test prove nothing.
    Some(plan.unwrap_or_else(|| panic!("CINDERBLOCK_KILL_AT is call:N or change:N, not {text:?}")))
});

static CALLS: AtomicU64 = AtomicU64::new(0);

static STOP_BEFORE: LazyLock<Option<String>> =
    LazyLock::new(|| std::env::var("CINDERBLOCK_STOP_BEFORE").ok());
static STOPPED: AtomicBool = AtomicBool::new(false);

/// Stands still if this is the call to do so before.
pub(super) fn stop_before(call: &str) {
    if STOP_BEFORE.as_deref() == Some(call) && !STOPPED.swap(true, Ordering::SeqCst) {
        tracing::warn!(call, "standing still here, as CINDERBLOCK_STOP_BEFORE asks");
        let _ = raise(Signal::SIGSTOP);
    }
}

/// Counts a call that has returned, and dies if it is the one to do so after.
pub(super) fn count(call: &str, changes: bool) {
    let Some(plan) = *PLAN else { return };
    if (changes || plan.reads_too) && CALLS.fetch_add(1, Ordering::SeqCst) + 1 == plan.calls {
        tracing::warn!(call, number = plan.calls, "dying here, as CINDERBLOCK_KILL_AT asks");
        let _ = raise(Signal::SIGKILL);
    }
}
