//! A cluster whose calls are measured: how long each takes, and how it ends.
//!
//! [`observed`] puts a wrapper around a cluster, its pools and their images. A call is a method of
//! the traits, under its own name, and the closing of an image is one too. What names no cluster,
//! such as an address that is known, is none.
//!
//! With `debug_assertions` the tests' way of having the process die between two calls is told of
//! each as well (`kill`).

use super::{
    Child, Cluster, Diff, Extent, Hold, Image, ImageEntry, ImageInfo, ImageKey, ImageOptions,
    Monitor, NewSnapshot, OmapPage, OmapUpdate, OpenMode, Parent, Pool, PoolStats, Progress,
    Result, Snapshot, SnapshotId, SnapshotSpec, TrashEntry, Watcher,
};
use crate::metrics::{Begun, metrics};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

/// `cluster`, with its calls measured under the name `name`, which is that of a cluster of the
/// configuration, or empty.
pub fn observed(cluster: Arc<dyn Cluster>, name: &str) -> Arc<dyn Cluster> {
    Arc::new(Observed { inner: cluster, cluster: name.into() })
}

/// Whether a call may change something in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Read,
    Change,
}

impl Effect {
    /// That of opening an image: a watch is a change.
    fn of(mode: OpenMode) -> Effect {
        if mode == OpenMode::ReadWrite { Effect::Change } else { Effect::Read }
    }
}

/// A call under way.
struct Call<'a> {
    cluster: &'a str,
    name: &'static str,
    #[cfg_attr(not(debug_assertions), expect(dead_code, reason = "kill alone asks"))]
    effect: Effect,
    began: Instant,
    _in_flight: Begun,
}

impl<'a> Call<'a> {
    fn begin(cluster: &'a str, name: &'static str, effect: Effect) -> Call<'a> {
        #[cfg(debug_assertions)]
        super::kill::stop_before(name);
        let in_flight = metrics().call_begins(cluster);
        Call { cluster, name, effect, began: Instant::now(), _in_flight: in_flight }
    }

    fn end<T>(self, answer: Result<T>) -> Result<T> {
        let errno = answer.as_ref().err().map(|error| error.errno);
        let took = self.began.elapsed();
        metrics().call_ends(self.cluster, self.name, took, errno);
        tracing::trace!(cluster = self.cluster, call = self.name, ?took, ?errno, "asked Ceph");
        #[cfg(debug_assertions)]
        super::kill::count(self.name, self.effect == Effect::Change);
        answer
    }
}

/// A cluster or a pool whose calls are measured.
#[derive(Debug)]
struct Observed<T> {
    inner: T,
    cluster: Arc<str>,
}

/// An open image whose calls are measured.
#[derive(Debug)]
struct ObservedImage {
    /// There until it is dropped.
    inner: Option<Box<dyn Image>>,
    cluster: Arc<str>,
    mode: OpenMode,
}

impl ObservedImage {
    fn inner(&self) -> &dyn Image {
        #[expect(clippy::expect_used, reason = "it is taken by `drop` alone")]
        &**self.inner.as_ref().expect("an image that is open")
    }
}

impl Drop for ObservedImage {
    fn drop(&mut self) {
        let call = Call::begin(&self.cluster, "close", Effect::of(self.mode));
        drop(self.inner.take());
        let _: Result<()> = call.end(Ok(()));
    }
}

/// Methods that make the call of the same name, measured. `local` ones ask the cluster nothing.
macro_rules! delegate {
    ($($kind:ident $name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        $(fn $name(&self, $($argument: $type),*) -> $answer {
            delegate!(@ $kind self, $name, self.inner().$name($($argument),*))
        })*
    };
    (@ local $self:ident, $name:ident, $answer:expr) => { $answer };
    (@ read $self:ident, $name:ident, $answer:expr) => {{
        let call = Call::begin(&$self.cluster, stringify!($name), Effect::Read);
        call.end($answer)
    }};
    (@ change $self:ident, $name:ident, $answer:expr) => {{
        let call = Call::begin(&$self.cluster, stringify!($name), Effect::Change);
        call.end($answer)
    }};
}

impl<T> Observed<T> {
    fn inner(&self) -> &T {
        &self.inner
    }
}

impl Cluster for Observed<Arc<dyn Cluster>> {
    fn pool(&self, name: &str, namespace: &str) -> Result<Arc<dyn Pool>> {
        let call = Call::begin(&self.cluster, "pool", Effect::Read);
        let inner = call.end(self.inner.pool(name, namespace))?;
        Ok(Arc::new(Observed { inner, cluster: self.cluster.clone() }))
    }

    delegate! {
        read fsid() -> Result<String>;
        read monitors() -> Result<Vec<Monitor>>;
        change monitor_command(command: &str) -> Result<Vec<u8>>;
        local address() -> Result<String>;
        local is_own(address: &str) -> Result<bool>;
        change blocklist(address: &str, seconds: u32) -> Result<()>;
    }
}

impl Pool for Observed<Arc<dyn Pool>> {
    fn cluster(&self) -> Arc<dyn Cluster> {
        Arc::new(Observed { inner: self.inner.cluster(), cluster: self.cluster.clone() })
    }

    fn open_image(&self, image: ImageKey<'_>, mode: OpenMode) -> Result<Box<dyn Image>> {
        let call = Call::begin(&self.cluster, "open_image", Effect::of(mode));
        let inner = Some(call.end(self.inner.open_image(image, mode))?);
        Ok(Box::new(ObservedImage { inner, cluster: self.cluster.clone(), mode }))
    }

    // Measured under the names that the model's calls have.
    fn remove_image_with_progress(&self, name: &str, progress: Progress<'_>) -> Result<()> {
        let call = Call::begin(&self.cluster, "remove_image", Effect::Change);
        call.end(self.inner.remove_image_with_progress(name, progress))
    }

    fn trash_remove_with_progress(
        &self,
        image_id: &str,
        force: bool,
        progress: Progress<'_>,
    ) -> Result<()> {
        let call = Call::begin(&self.cluster, "trash_remove", Effect::Change);
        call.end(self.inner.trash_remove_with_progress(image_id, force, progress))
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

impl Image for ObservedImage {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rbd::Errno;
    use crate::rbd::model::Model;

    /// The value of the series of this process that begins so.
    fn value(series: &str) -> f64 {
        let text = metrics().text();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    #[test]
    #[expect(clippy::float_cmp, reason = "counts are whole")]
    fn every_call_is_measured_once_the_closing_of_an_image_too() {
        let model = Model::new();
        model.create_pool("rbd");
        // No other test in this process has this cluster.
        let cluster = observed(model.connect().cluster(), "observed-here");
        let pool = cluster.pool("rbd", "").unwrap();
        pool.create_image("i", 1 << 20, &ImageOptions::default()).unwrap();
        let image = pool.open_image(ImageKey::Name("i"), OpenMode::ReadWrite).unwrap();
        let error = pool.open_image(ImageKey::Name("none"), OpenMode::ReadOnly).unwrap_err();
        assert_eq!(error.errno, Errno::ENOENT);
        let calls = |call: &str| {
            let labels = format!(r#"{{cluster="observed-here",call="{call}"}}"#);
            value(&format!("cinderblock_ceph_call_duration_seconds_count{labels}"))
        };
        assert_eq!((calls("open_image"), calls("close")), (2.0, 0.0));
        drop(image);
        assert_eq!((calls("pool"), calls("create_image"), calls("close")), (1.0, 1.0, 1.0));
        let errors = r#"{cluster="observed-here",call="open_image",errno="ENOENT"}"#;
        assert_eq!(value(&format!("cinderblock_ceph_call_errors_total{errors}")), 1.0);
        assert_eq!(value(r#"cinderblock_ceph_calls_in_flight{cluster="observed-here"}"#), 0.0);
        // Those of the pool's own connection, and of none that ask nothing.
        pool.cluster().fsid().unwrap();
        pool.cluster().address().unwrap();
        assert_eq!((calls("fsid"), calls("address")), (1.0, 0.0));
    }
}
