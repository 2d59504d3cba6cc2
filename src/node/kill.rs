//! A driver that dies on demand in the middle of its work on a node, for the tests of what it
//! leaves.
//!
//! With `CINDERBLOCK_KILL_AT_STEP=N` in its environment a debug build gets SIGKILL from itself
//! right after the N-th step it has taken: a program begun or ended, a file or record written or
//! removed, a mount made or taken away, a command given to a daemon, a note made in Ceph. Release
//! builds take no notice.

#[cfg(debug_assertions)]
use std::sync::LazyLock;
#[cfg(debug_assertions)]
use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(debug_assertions)]
static LAST: LazyLock<Option<u64>> = LazyLock::new(|| {
    let text = std::env::var("CINDERBLOCK_KILL_AT_STEP").ok()?;
    // A mistake here would make a test prove nothing.
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("CINDERBLOCK_KILL_AT_STEP is a number, not {text:?}")),
    )
});

#[cfg(debug_assertions)]
static TAKEN: AtomicU64 = AtomicU64::new(0);

/// A step was taken, described by `what`.
#[cfg(debug_assertions)]
pub(super) fn step(what: &str) {
    if let Some(last) = *LAST
        && TAKEN.fetch_add(1, Ordering::SeqCst) + 1 == last
    {
        tracing::error!(what, number = last, "dying here, as CINDERBLOCK_KILL_AT_STEP asks");
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
}

/// A step was taken.
#[cfg(not(debug_assertions))]
pub(super) fn step(_what: &str) {}
