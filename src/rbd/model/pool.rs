//! The images of a pool: the model's [`Pool`].
//!
//! Creating, cloning, removing, renaming and the trash follow librbd write by write; the steps are
//! in the order in which librbd 16.2 sends them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::cloning;
use super::cluster::{ModelCluster, omap_get, omap_list, omap_update, stats};
use super::create::{self, Layout};
use super::image::ModelImage;
use super::removal;
use super::session::{Call, Session};
use super::state::{ImageRef, Outcome, Place, TrashItem};
use crate::rbd::{
    Cluster, Errno, Features, Image, ImageEntry, ImageKey, ImageOptions, NewSnapshot, OmapPage,
    OmapUpdate, OpenMode, Pool, PoolStats, Progress, Result, SnapshotSpec, TrashEntry,
};

/// One namespace of one pool, over one session.
#[derive(Debug, Clone)]
pub(super) struct ModelPool {
    session: Session,
    place: Place,
}

impl ModelPool {
    pub(super) fn new(session: Session, place: Place) -> ModelPool {
        ModelPool { session, place }
    }

    fn object(&self, name: &str) -> String {
        self.place.spec(name)
    }
}

impl Pool for ModelPool {
    fn name(&self) -> &str {
        &self.place.pool
    }

    fn namespace(&self) -> &str {
        &self.place.namespace
    }

    fn cluster(&self) -> Arc<dyn Cluster> {
        Arc::new(ModelCluster::new(self.session.clone()))
    }

    fn stats(&self) -> Result<PoolStats> {
        self.session.call("stats", &*self.place.pool, |call| stats(&call.state(), &self.place.pool))
    }

    fn create_image(&self, name: &str, size: u64, options: &ImageOptions) -> Result<()> {
        self.session.call("create_image", self.object(name), |call| {
            call.may_write(&self.place)?;
            create::check_free(&mut call.state(), &self.place, name)?;
            let layout = Layout::new(options, Features::DEFAULT, create::DEFAULT_ORDER)?;
            create::create(call, &self.place, name, size, &layout).map(|_| ())
        })
    }

    fn create_snapshots(
        &self,
        snapshots: &[NewSnapshot],
        announce: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<()> {
        announce(&self.session.second_address())?;
        let names: Vec<_> = snapshots
            .iter()
            .map(|new| self.object(&format!("{}@{}", new.image_id, new.name)))
            .collect();
        self.session.call("create_snapshots", names.join(" "), |call| {
            let mut state = call.state();
            for new in snapshots {
                let header = state.opened(&ImageRef::new(&self.place, &new.image_id))?;
                if !header.features.contains(Features::EXCLUSIVE_LOCK) {
                    return Err(Errno::EINVAL);
                }
                if header.user_snapshot(&new.name).is_ok() {
                    return Err(Errno::EEXIST);
                }
            }
            for new in snapshots {
                state.cut_snapshot(&ImageRef::new(&self.place, &new.image_id), &new.name)?;
                call.step()?;
            }
            Ok(())
        })
    }

    fn open_image(&self, key: ImageKey<'_>, mode: OpenMode) -> Result<Box<dyn Image>> {
        let (ImageKey::Name(name) | ImageKey::Id(name)) = key;
        let handle = self.session.call("open_image", self.object(name), |call| {
            if mode == OpenMode::ReadWrite {
                call.may_write(&self.place)?;
            }
            let mut state = call.state();
            let id = match key {
                ImageKey::Id(id) => id.to_owned(),
                ImageKey::Name(name) => {
                    state.space(&self.place).id_objects.get(name).ok_or(Errno::ENOENT)?.clone()
                }
            };
            let image = ImageRef::new(&self.place, &id);
            match key {
                ImageKey::Name(_) => state.check_parents(state.header(&image)?.link.as_ref())?,
                ImageKey::Id(_) => state.check_parents(state.opened(&image)?.link.as_ref())?,
            }
            match mode {
                OpenMode::ReadOnly => ModelImage::read_only(&self.session, &state, image, name),
                OpenMode::ReadWrite => {
                    ModelImage::read_write(&self.session, &mut state, image, name)
                }
            }
        })?;
        Ok(Box::new(handle))
    }

    fn clone_image(&self, parent: &SnapshotSpec, name: &str, options: &ImageOptions) -> Result<()> {
        self.session.call("clone_image", self.object(name), |call| {
            call.may_write(&self.place)?;
            cloning::clone(call, parent, &self.place, name, options)
        })
    }

    fn remove_image_with_progress(&self, name: &str, progress: Progress<'_>) -> Result<()> {
        self.session.call("remove_image", self.object(name), |call| {
            call.may_write(&self.place)?;
            removal::remove(call, &self.place, name, progress)
        })
    }

    fn rename_image(&self, from: &str, to: &str) -> Result<()> {
        self.session.call("rename_image", self.object(from), |call| {
            call.may_write(&self.place)?;
            rename(call, &self.place, from, to)
        })
    }

    fn has_timed_out(&self) -> bool {
        self.session.has_timed_out()
    }

    fn namespace_exists(&self) -> Result<bool> {
        self.session.call("namespace_exists", self.object(""), |call| {
            match call.state().check_registered(&self.place) {
                Ok(()) => Ok(true),
                Err(Errno::ENOENT) => Ok(false),
                Err(errno) => Err(errno),
            }
        })
    }

    fn image_id(&self, name: &str) -> Result<Option<String>> {
        self.session.call("image_id", self.object(name), |call| {
            Ok(call.state().space(&self.place).id_objects.get(name).cloned())
        })
    }

    /// librbd lists the images being removed along with those in the directory, not with the trash.
    fn list_images(&self) -> Result<Vec<ImageEntry>> {
        self.session.call("list_images", self.object(""), |call| {
            let mut state = call.state();
            let space = state.space(&self.place);
            let removing = space
                .trash
                .iter()
                .filter(|(_, item)| item.removing)
                .map(|(id, item)| (&item.name, id));
            let images = space.names.iter().chain(removing);
            Ok(images.map(|(name, id)| ImageEntry { name: name.clone(), id: id.clone() }).collect())
        })
    }

    fn trash_get(&self, image_id: &str) -> Result<Option<TrashEntry>> {
        self.session.call("trash_get", self.object(image_id), |call| {
            Ok(call
                .state()
                .space(&self.place)
                .trash
                .get(image_id)
                .map(|item| entry(image_id, item)))
        })
    }

    fn trash_list(&self) -> Result<Vec<TrashEntry>> {
        self.session.call("trash_list", self.object(""), |call| {
            let mut state = call.state();
            let trash = state.space(&self.place).trash.iter().filter(|(_, item)| !item.removing);
            Ok(trash.map(|(id, item)| entry(id, item)).collect())
        })
    }

    fn trash_move(&self, name: &str, delay_seconds: u64) -> Result<()> {
        let delay = Duration::from_secs(delay_seconds);
        self.session.call("trash_move", self.object(name), |call| {
            call.may_write(&self.place)?;
            removal::trash(call, &self.place, name, delay)
        })
    }

    fn trash_restore(&self, image_id: &str, name: &str) -> Result<()> {
        self.session.call("trash_restore", self.object(image_id), |call| {
            call.may_write(&self.place)?;
            removal::restore(call, &self.place, image_id, name)
        })
    }

    fn trash_remove_with_progress(
        &self,
        image_id: &str,
        force: bool,
        progress: Progress<'_>,
    ) -> Result<()> {
        self.session.call("trash_remove", self.object(image_id), |call| {
            call.may_write(&self.place)?;
            removal::remove_from_trash(call, &self.place, image_id, force, progress)
        })
    }

    fn omap_get(&self, object: &str, keys: &[&str]) -> Result<BTreeMap<String, Vec<u8>>> {
        self.session.call("omap_get", self.object(object), |call| {
            Ok(omap_get(&mut call.state(), &self.place, object, keys))
        })
    }

    fn omap_update(&self, object: &str, update: &OmapUpdate) -> Result<()> {
        self.session.call("omap_update", self.object(object), |call| {
            call.may_write(&self.place)?;
            omap_update(&mut call.state(), &self.place, object, update)?;
            call.step()
        })
    }

    fn omap_list(&self, object: &str, after: &str, limit: u64) -> Result<OmapPage> {
        self.session.call("omap_list", self.object(object), |call| {
            Ok(omap_list(&mut call.state(), &self.place, object, after, limit))
        })
    }

    fn remove_object(&self, object: &str) -> Result<()> {
        self.session.call("remove_object", self.object(object), |call| {
            call.may_write(&self.place)?;
            call.state().space(&self.place).objects.remove(object).ok_or(Errno::ENOENT)?;
            call.step()
        })
    }
}

fn entry(id: &str, item: &TrashItem) -> TrashEntry {
    TrashEntry {
        id: id.to_owned(),
        name: item.name.clone(),
        removing: item.removing,
        migrating: false,
    }
}

/// Renames an image as librbd does, and finishes an interrupted rename of the same names as `ceph`
/// does.
fn rename(call: &mut Call<'_>, place: &Place, from: &str, to: &str) -> Outcome<()> {
    let mut state = call.state();
    let id = state.space(place).id_objects.get(from).ok_or(Errno::ENOENT)?.clone();
    state.opened(&ImageRef::new(place, &id))?;
    let space = state.space(place);
    let listed = space.names.contains_key(from);
    if let Some(taken) = space.id_objects.get(to) {
        if from == to || *taken != id {
            return Err(Errno::EEXIST);
        }
        space.id_objects.remove(if listed { to } else { from });
        call.step()?;
    }
    if !listed {
        return if space.id_objects.contains_key(from) { Err(Errno::ENOENT) } else { Ok(()) };
    }
    space.id_objects.insert(to.to_owned(), id.clone());
    call.step()?;
    if space.names.contains_key(to) {
        // The directory still has the remains of another image under that name. librbd leaves it at
        // that: both names open the image from now on.
        return Ok(());
    }
    space.names.remove(from);
    space.names.insert(to.to_owned(), id.clone());
    space.ids.insert(id, to.to_owned());
    call.step()?;
    space.id_objects.remove(from);
    call.step()
}
