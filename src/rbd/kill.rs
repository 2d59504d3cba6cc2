//! A process that dies or stands still on demand between two calls to Ceph, for the tests of what
//! such a driver leaves.
//!
//! [`wired`] puts a wrapper around a cluster, its pools and their images that counts the calls.
//! `CINDERBLOCK_KILL_AT` says after which one the process gets SIGKILL from itself, with no
//! destructor run and nothing flushed:
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

use super::{
    Child, Cluster, Diff, Extent, Hold, Image, ImageEntry, ImageInfo, ImageKey, ImageOptions,
    Monitor, NewSnapshot, OmapPage, OmapUpdate, OpenMode, Parent, Pool, PoolStats, Progress,
    Result, Snapshot, SnapshotId, SnapshotSpec, TrashEntry, Watcher,
};
use nix::sys::signal::{Signal, raise};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

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
fn stop_before(call: &str) {
    if STOP_BEFORE.as_deref() == Some(call) && !STOPPED.swap(true, Ordering::SeqCst) {
        tracing::warn!(call, "standing still here, as CINDERBLOCK_STOP_BEFORE asks");
        let _ = raise(Signal::SIGSTOP);
    }
}

/// The cluster itself when the environment asks for neither, else one that counts.
pub fn wired(cluster: Arc<dyn Cluster>) -> Arc<dyn Cluster> {
    if PLAN.is_some() || STOP_BEFORE.is_some() { Arc::new(Wired(cluster)) } else { cluster }
}

fn local(_call: &str) {}

fn read(call: &str) {
    count(call, false);
}

fn change(call: &str) {
    count(call, true);
}

fn count(call: &str, changes: bool) {
    let Some(plan) = *PLAN else { return };
    if (changes || plan.reads_too) && CALLS.fetch_add(1, Ordering::SeqCst) + 1 == plan.calls {
        tracing::warn!(call, number = plan.calls, "dying here, as CINDERBLOCK_KILL_AT asks");
        let _ = raise(Signal::SIGKILL);
    }
}

/// A handle whose calls are counted.
#[derive(Debug)]
struct Wired<T>(T);

/// An open image whose calls are counted. Its fields are dropped in this order, so the image is
/// closed when that is counted.
#[derive(Debug)]
struct WiredImage(
    Box<dyn Image>,
    #[expect(dead_code, reason = "it is there to be dropped")] Closing,
);

#[derive(Debug)]
struct Closing(OpenMode);

impl Drop for Closing {
    fn drop(&mut self) {
        count("close", self.0 == OpenMode::ReadWrite);
    }
}

/// Methods that make the call of the same name and count it as what stands before them.
macro_rules! delegate {
    ($($kind:ident $name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        $(fn $name(&self, $($argument: $type),*) -> $answer {
            stop_before(stringify!($name));
            let answer = self.0.$name($($argument),*);
            $kind(stringify!($name));
            answer
        })*
    };
}

impl Cluster for Wired<Arc<dyn Cluster>> {
    fn pool(&self, name: &str, namespace: &str) -> Result<Arc<dyn Pool>> {
        let pool = self.0.pool(name, namespace);
        read("pool");
        Ok(Arc::new(Wired(pool?)))
    }

    delegate! {
        read fsid() -> Result<String>;
        read monitors() -> Result<Vec<Monitor>>;
        change monitor_command(command: &str) -> Result<Vec<u8>>;
        change manager_command(command: &str) -> Result<Vec<u8>>;
        local address() -> Result<String>;
        local is_own(address: &str) -> Result<bool>;
        change blocklist(address: &str, seconds: u32) -> Result<()>;
    }
}

impl Pool for Wired<Arc<dyn Pool>> {
    fn cluster(&self) -> Arc<dyn Cluster> {
        Arc::new(Wired(self.0.cluster()))
    }

    fn open_image(&self, image: ImageKey<'_>, mode: OpenMode) -> Result<Box<dyn Image>> {
        let image = self.0.open_image(image, mode);
        count("open_image", mode == OpenMode::ReadWrite);
        Ok(Box::new(WiredImage(image?, Closing(mode))))
    }

    // Counted under the names that the model's calls have.
    fn remove_image_with_progress(&self, name: &str, progress: Progress<'_>) -> Result<()> {
        stop_before("remove_image");
        let answer = self.0.remove_image_with_progress(name, progress);
        change("remove_image");
        answer
    }

    fn trash_remove_with_progress(
        &self,
        image_id: &str,
        force: bool,
        progress: Progress<'_>,
    ) -> Result<()> {
        let answer = self.0.trash_remove_with_progress(image_id, force, progress);
        change("trash_remove");
        answer
    }

    delegate! {
        local name() -> &str;
        local namespace() -> &str;
        local has_timed_out() -> bool;
        read namespace_exists() -> Result<bool>;
        read stats() -> Result<PoolStats>;
        change create_image(name: &str, size: u64, options: &ImageOptions) -> Result<()>;
        change clone_image(parent: &SnapshotSpec, name: &str, options: &ImageOptions) -> Result<()>;
        change create_snapshots(
            snapshots: &[NewSnapshot],
            announce: &mut dyn FnMut(&str) -> Result<()>
        ) -> Result<()>;
        change rename_image(from: &str, to: &str) -> Result<()>;
        read image_id(name: &str) -> Result<Option<String>>;
        read list_images() -> Result<Vec<ImageEntry>>;
        read trash_get(image_id: &str) -> Result<Option<TrashEntry>>;
        read trash_list() -> Result<Vec<TrashEntry>>;
        change trash_move(name: &str, delay_seconds: u64) -> Result<()>;
        change trash_restore(image_id: &str, name: &str) -> Result<()>;
        read omap_get(object: &str, keys: &[&str]) -> Result<BTreeMap<String, Vec<u8>>>;
        change omap_update(object: &str, update: &OmapUpdate) -> Result<()>;
        read omap_list(object: &str, after: &str, limit: u64) -> Result<OmapPage>;
        change remove_object(object: &str) -> Result<()>;
    }
}

impl Image for WiredImage {
    delegate! {
        read name() -> Result<String>;
        read id() -> Result<String>;
        read info() -> Result<ImageInfo>;
        change resize(size: u64, allow_shrink: bool) -> Result<()>;
        read snapshots() -> Result<Vec<Snapshot>>;
        change create_snapshot(name: &str) -> Result<()>;
        change remove_snapshot(name: &str) -> Result<()>;
        change remove_snapshot_by_id(id: SnapshotId) -> Result<()>;
        change protect_snapshot(name: &str) -> Result<()>;
        change unprotect_snapshot(name: &str) -> Result<()>;
        change rename_snapshot(from: &str, to: &str) -> Result<()>;
        read parent(at: Option<SnapshotId>) -> Result<Option<Parent>>;
        read children(of: Option<SnapshotId>) -> Result<Vec<Child>>;
        change flatten(progress: Progress<'_>) -> Result<()>;
        change copy(
            at: Option<SnapshotId>,
            to: &dyn Pool,
            name: &str,
            options: &ImageOptions,
            progress: Progress<'_>
        ) -> Result<()>;
        read metadata_get(key: &str) -> Result<Option<String>>;
        change metadata_set(key: &str, value: &str) -> Result<()>;
        change metadata_remove(key: &str) -> Result<()>;
        read metadata_list() -> Result<BTreeMap<String, String>>;
        read hold() -> Result<Option<Hold>>;
        read group() -> Result<Option<String>>;
        read watchers() -> Result<Vec<Watcher>>;
        read read_at(at: Option<SnapshotId>, offset: u64, buffer: &mut [u8]) -> Result<usize>;
        change write_at(offset: u64, data: &[u8]) -> Result<()>;
        change discard(offset: u64, length: u64) -> Result<()>;
        change flush() -> Result<()>;
        read diff(query: &Diff, visit: &mut (dyn FnMut(Extent) -> ControlFlow<()> + Send)) -> Result<()>;
    }
}
