use std::collections::BTreeMap;
use std::ffi::{c_char, c_int};
use std::ptr::null_mut;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use serde::Deserialize;

use super::call::{List, c_string, grow, owned, with_progress};
use super::cluster::{CephCluster, from_json};
use super::directory;
use super::image::CephImage;
use super::ioctx::Ioctx;
use super::omap;
use super::options::RawOptions;
use super::sys::{
    rados, rbd_create4, rbd_image_spec_list_cleanup, rbd_image_spec_t, rbd_list2,
    rbd_namespace_exists, rbd_remove_with_progress, rbd_trash_move, rbd_trash_remove_with_progress,
    rbd_trash_restore,
};
use super::trash;
use crate::rbd::keyed_mutex::{KeyGuard, KeyedMutex};
use crate::rbd::{
    Cluster, Errno, Error, Image, ImageEntry, ImageKey, ImageOptions, NewSnapshot, OmapPage,
    OmapUpdate, OpenMode, Pool, PoolStats, Progress, Result, SnapshotSpec, TrashEntry,
};

/// For how long a removal waits for another of the same image.
const PATIENCE: Duration = Duration::from_secs(20);

/// A [`Pool`] over an I/O context.
#[derive(Debug)]
pub(super) struct CephPool {
    pub(super) ioctx: Arc<Ioctx>,
}

impl CephPool {
    /// One call on the image or trash entry `name`.
    fn call(
        &self,
        call: &'static str,
        name: &str,
        function: impl FnOnce(rados::rados_ioctx_t, *const c_char) -> c_int,
    ) -> Result<()> {
        let c_name = c_string(name, call)?;
        let code = function(self.ioctx.raw(), c_name.as_ptr());
        self.ioctx.check(code, call, || self.ioctx.spec(name)).map(drop)
    }

    /// The lock for removing or renaming the image `name`, in all of this process: librbd does
    /// not stand two removals of one image at once (one of them may never return, or leave the
    /// image's name in the directory). `EBUSY` when it does not come.
    fn lock_name(&self, name: &str, call: &'static str) -> Result<KeyGuard> {
        static REMOVALS: LazyLock<KeyedMutex> = LazyLock::new(KeyedMutex::default);
        let image = format!("{} {}", self.cluster().fsid()?, self.ioctx.spec(name));
        REMOVALS
            .lock(&image, PATIENCE)
            .ok_or_else(|| Error::new(Errno::EBUSY, call, self.ioctx.spec(name)))
    }

    /// A call that moves the image `name` to the trash. In a full pool librbd says `ENOENT` when it
    /// cannot make the object that lists the trash, because nothing was ever removed there: that
    /// object is made for it.
    fn remove(
        &self,
        call: &'static str,
        name: &str,
        mut function: impl FnMut(rados::rados_ioctx_t, *const c_char) -> c_int,
    ) -> Result<()> {
        match self.call(call, name, &mut function) {
            Err(error)
                if error.errno == Errno::ENOENT && directory::is_listed(&self.ioctx, name)? =>
            {
                omap::update(&self.ioctx, directory::TRASH, &OmapUpdate::default())?;
                self.call(call, name, function)
            }
            other => other,
        }
    }
}

impl Pool for CephPool {
    fn name(&self) -> &str {
        self.ioctx.pool()
    }

    fn namespace(&self) -> &str {
        self.ioctx.namespace()
    }

    fn cluster(&self) -> Arc<dyn Cluster> {
        Arc::new(CephCluster { connection: Arc::clone(self.ioctx.connection()) })
    }

    fn stats(&self) -> Result<PoolStats> {
        let command = r#"{"prefix":"df","detail":"detail","format":"json"}"#;
        let json = self.cluster().monitor_command(command)?;
        stats(&json, self.ioctx.pool())
    }

    fn create_image(&self, name: &str, size: u64, options: &ImageOptions) -> Result<()> {
        let options = RawOptions::for_image(options)?;
        // SAFETY: context, name and options are valid for the call.
        self.call("rbd_create4", name, |io, name| unsafe {
            rbd_create4(io, name, size, options.raw())
        })
    }

    fn open_image(&self, image: ImageKey<'_>, mode: OpenMode) -> Result<Box<dyn Image>> {
        Ok(Box::new(CephImage::open(&self.ioctx, image, mode)?))
    }

    fn clone_image(&self, parent: &SnapshotSpec, name: &str, options: &ImageOptions) -> Result<()> {
        super::cloning::clone_image(&self.ioctx, parent, name, options)
    }

    fn create_snapshots(
        &self,
        snapshots: &[NewSnapshot],
        announce: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<()> {
        super::group_snapshot::create_snapshots(&self.ioctx, snapshots, announce)
    }

    fn remove_image_with_progress(&self, name: &str, progress: Progress<'_>) -> Result<()> {
        let call = "rbd_remove_with_progress";
        let _guard = self.lock_name(name, call)?;
        self.remove(call, name, |io, name| {
            with_progress(&mut *progress, |callback, argument| {
                // SAFETY: context and name are valid for the call, as are callback and argument.
                unsafe { rbd_remove_with_progress(io, name, callback, argument) }
            })
        })
    }

    fn rename_image(&self, from: &str, to: &str) -> Result<()> {
        let _guard = self.lock_name(from, "rename")?;
        directory::rename(&self.ioctx, from, to)
    }

    fn has_timed_out(&self) -> bool {
        self.ioctx.has_timed_out()
    }

    fn namespace_exists(&self) -> Result<bool> {
        if self.ioctx.namespace().is_empty() {
            return Ok(true);
        }
        // The register of namespaces is in the pool's default one.
        let root = Ioctx::open(self.ioctx.connection(), self.ioctx.pool(), "")?;
        let name = c_string(self.ioctx.namespace(), "rbd_namespace_exists")?;
        let mut exists = false;
        // SAFETY: the context is open, the name NUL-terminated, and `exists` a place for the
        // answer.
        let code = unsafe { rbd_namespace_exists(root.raw(), name.as_ptr(), &raw mut exists) };
        if code == -(Errno::EPERM as c_int) {
            // As expected of a user whose capabilities end with the namespace: nothing is wrong
            // with the connection.
            return Err(Error::new(Errno::EPERM, "rbd_namespace_exists", self.ioctx.spec("*")));
        }
        self.ioctx.check(code, "rbd_namespace_exists", || self.ioctx.spec("*"))?;
        Ok(exists)
    }

    fn image_id(&self, name: &str) -> Result<Option<String>> {
        directory::image_id(&self.ioctx, name)
    }

    fn list_images(&self) -> Result<Vec<ImageEntry>> {
        let blank = rbd_image_spec_t { id: null_mut(), name: null_mut() };
        let (code, items) = grow(blank, 64, |images, count| {
            // SAFETY: there is room for `count` entries at `images`.
            unsafe { rbd_list2(self.ioctx.raw(), images, count) }
        });
        self.ioctx.check(code, "rbd_list2", || self.ioctx.spec("*"))?;
        // SAFETY: rbd_list2 wrote the entries; this is its cleanup.
        let list = unsafe { List::new(items, rbd_image_spec_list_cleanup) };
        // SAFETY: librbd made the strings, and `list` still owns them.
        let entry = |image: &rbd_image_spec_t| unsafe {
            ImageEntry { name: owned(image.name), id: owned(image.id) }
        };
        Ok(list.iter().map(entry).collect())
    }

    fn trash_get(&self, image_id: &str) -> Result<Option<TrashEntry>> {
        trash::get(&self.ioctx, image_id)
    }

    fn trash_list(&self) -> Result<Vec<TrashEntry>> {
        trash::list(&self.ioctx)
    }

    fn trash_move(&self, name: &str, delay_seconds: u64) -> Result<()> {
        // SAFETY: context and name are valid for the call.
        self.remove("rbd_trash_move", name, |io, name| unsafe {
            rbd_trash_move(io, name, delay_seconds)
        })
    }

    fn trash_restore(&self, image_id: &str, name: &str) -> Result<()> {
        let name = c_string(name, "rbd_trash_restore")?;
        // SAFETY: context, id and name are valid for the call.
        self.call("rbd_trash_restore", image_id, |io, id| unsafe {
            rbd_trash_restore(io, id, name.as_ptr())
        })
    }

    fn trash_remove_with_progress(
        &self,
        image_id: &str,
        force: bool,
        progress: Progress<'_>,
    ) -> Result<()> {
        self.call("rbd_trash_remove_with_progress", image_id, |io, id| {
            with_progress(progress, |callback, argument| {
                // SAFETY: context and id are valid for the call, as are callback and argument.
                unsafe { rbd_trash_remove_with_progress(io, id, force, callback, argument) }
            })
        })
    }

    fn omap_get(&self, object: &str, keys: &[&str]) -> Result<BTreeMap<String, Vec<u8>>> {
        omap::get(&self.ioctx, object, keys)
    }

    fn omap_update(&self, object: &str, update: &OmapUpdate) -> Result<()> {
        omap::update(&self.ioctx, object, update)
    }

    fn omap_list(&self, object: &str, after: &str, limit: u64) -> Result<OmapPage> {
        omap::list(&self.ioctx, object, after, limit)
    }

    fn remove_object(&self, object: &str) -> Result<()> {
        // SAFETY: context and name are valid for the call.
        self.call("rados_remove", object, |io, object| unsafe { rados::rados_remove(io, object) })
    }
}

/// Finds `pool` in the JSON output of `df detail`. A quota of 0 bytes is none. `EAGAIN` when the
/// pool is not in there: it exists, or there would be no context, but the monitors have no figures
/// from the manager yet.
pub(crate) fn stats(json: &[u8], pool: &str) -> Result<PoolStats> {
    #[derive(Deserialize)]
    struct Df {
        pools: Vec<DfPool>,
    }
    #[derive(Deserialize)]
    struct DfPool {
        name: String,
        stats: Stats,
    }
    #[derive(Deserialize)]
    struct Stats {
        stored: u64,
        max_avail: u64,
        quota_bytes: u64,
    }
    let df: Df = from_json(json, "df")?;
    let stats = df.pools.into_iter().find(|found| found.name == pool).map(|found| found.stats);
    let stats = stats.ok_or_else(|| Error::new(Errno::EAGAIN, "df", format!("pool {pool}")))?;
    Ok(PoolStats {
        stored: stats.stored,
        max_available: stats.max_avail,
        quota: (stats.quota_bytes > 0).then_some(stats.quota_bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DF: &[u8] = br#"{"stats":{},"pools":[
        {"name":"plain","id":1,"stats":{"stored":19,"max_avail":4080176896,"quota_objects":0,"quota_bytes":0}},
        {"name":"bounded","id":2,"stats":{"stored":0,"max_avail":7,"quota_objects":0,"quota_bytes":1048576}}]}"#;

    #[test]
    fn space_of_a_pool() {
        let plain = PoolStats { stored: 19, max_available: 4_080_176_896, quota: None };
        assert_eq!(stats(DF, "plain").unwrap(), plain);
        let bounded = PoolStats { stored: 0, max_available: 7, quota: Some(1 << 20) };
        assert_eq!(stats(DF, "bounded").unwrap(), bounded);
    }

    #[test]
    fn a_pool_without_figures_is_not_taken_for_an_empty_one() {
        assert_eq!(stats(DF, "new").unwrap_err().errno, Errno::EAGAIN);
        assert_eq!(stats(b"{}", "plain").unwrap_err().errno, Errno::EBADMSG);
    }
}
