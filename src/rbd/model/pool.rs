//! The images of a pool: the model's [`Pool`].
//!
//! Creating, cloning, removing, renaming and the trash follow librbd write by write; the steps are in the order in
//! which librbd 16.2 sends them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::cluster::{ModelCluster, omap_get, omap_list, omap_update, stats};
use super::create::{self, Layout};
use super::image::ModelImage;
use super::lineage::unregister;
use super::session::{Call, Session};
use super::state::{ImageRef, Link, Outcome, ParentRef, Place, Protection, State, TrashItem, TrashState};
use crate::rbd::{
    CloneFormat, Cluster, Errno, Features, Image, ImageEntry, ImageKey, ImageOptions, OmapPage, OmapUpdate,
    OpenMode, Pool, PoolStats, Result, SnapshotSpec, TrashEntry,
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
            let layout = Layout::new(options, Features::DEFAULT, create::DEFAULT_ORDER)?;
            create::create(call, &self.place, name, size, &layout).map(|_| ())
        })
    }

    fn open_image(&self, image: ImageKey<'_>, mode: OpenMode) -> Result<Box<dyn Image>> {
        let (ImageKey::Name(name) | ImageKey::Id(name)) = image;
        let handle = self.session.call("open_image", self.object(name), |call| {
            let mut state = call.state();
            let id = match image {
                ImageKey::Id(id) => id.to_owned(),
                ImageKey::Name(name) => {
                    state.space(&self.place).id_objects.get(name).ok_or(Errno::ENOENT)?.clone()
                }
            };
            let image = ImageRef::new(&self.place, &id);
            // librbd opens the parents along with the image, all the way up.
            let mut link = state.header(&image)?.link.as_ref();
            while let Some(Link { parent, .. }) = link {
                link = state.parent_snapshot(parent)?.link.as_ref();
            }
            let cookie = match mode {
                OpenMode::ReadOnly => None,
                OpenMode::ReadWrite => {
                    let watch = self.session.new_watch();
                    let cookie = watch.cookie;
                    state.watch(&image, watch)?;
                    Some(cookie)
                }
            };
            Ok(ModelImage::new(self.session.clone(), image, name.to_owned(), cookie))
        })?;
        Ok(Box::new(handle))
    }

    fn clone_image(&self, parent: &SnapshotSpec, name: &str, options: &ImageOptions) -> Result<()> {
        self.session
            .call("clone_image", self.object(name), |call| clone(call, parent, &self.place, name, options))
    }

    fn remove_image(&self, name: &str) -> Result<()> {
        self.session.call("remove_image", self.object(name), |call| remove(call, &self.place, name))
    }

    fn rename_image(&self, from: &str, to: &str) -> Result<()> {
        self.session.call("rename_image", self.object(from), |call| rename(call, &self.place, from, to))
    }

    fn image_id(&self, name: &str) -> Result<Option<String>> {
        self.session.call("image_id", self.object(name), |call| {
            Ok(call.state().space(&self.place).id_objects.get(name).cloned())
        })
    }

    fn list_images(&self) -> Result<Vec<ImageEntry>> {
        self.session.call("list_images", self.object(""), |call| {
            let mut state = call.state();
            let names = &state.space(&self.place).names;
            Ok(names.iter().map(|(name, id)| ImageEntry { name: name.clone(), id: id.clone() }).collect())
        })
    }

    fn trash_get(&self, image_id: &str) -> Result<Option<TrashEntry>> {
        self.session.call("trash_get", self.object(image_id), |call| {
            Ok(call.state().space(&self.place).trash.get(image_id).map(|item| entry(image_id, item)))
        })
    }

    fn trash_list(&self) -> Result<Vec<TrashEntry>> {
        self.session.call("trash_list", self.object(""), |call| {
            Ok(call.state().space(&self.place).trash.iter().map(|(id, item)| entry(id, item)).collect())
        })
    }

    fn trash_move(&self, name: &str, delay_seconds: u64) -> Result<()> {
        self.session.call("trash_move", self.object(name), |call| {
            let id = call.state().space(&self.place).names.get(name).cloned().ok_or(Errno::ENOENT)?;
            let deferred_until = call.state().now + Duration::from_secs(delay_seconds);
            let item = TrashItem {
                name: name.to_owned(),
                removing: false,
                state: TrashState::Moving,
                deferred_until,
            };
            move_to_trash(call, &self.place, &id, item)
        })
    }

    fn trash_restore(&self, image_id: &str, name: &str) -> Result<()> {
        self.session
            .call("trash_restore", self.object(image_id), |call| restore(call, &self.place, image_id, name))
    }

    fn trash_remove(&self, image_id: &str, force: bool) -> Result<()> {
        self.session.call("trash_remove", self.object(image_id), |call| {
            remove_from_trash(call, &self.place, image_id, force)
        })
    }

    fn omap_get(&self, object: &str, keys: &[&str]) -> Result<BTreeMap<String, Vec<u8>>> {
        self.session.call("omap_get", self.object(object), |call| {
            Ok(omap_get(&mut call.state(), &self.place, object, keys))
        })
    }

    fn omap_update(&self, object: &str, update: &OmapUpdate) -> Result<()> {
        self.session.call("omap_update", self.object(object), |call| {
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
            call.state().space(&self.place).objects.remove(object).ok_or(Errno::ENOENT)?;
            call.step()
        })
    }
}

fn entry(id: &str, item: &TrashItem) -> TrashEntry {
    TrashEntry { id: id.to_owned(), name: item.name.clone(), removing: item.removing }
}

/// Finds the parent's snapshot by name: its reference, its size, and whether it may be cloned in `format`.
fn find_parent(
    state: &mut State,
    spec: &SnapshotSpec,
    child: &Place,
    format: CloneFormat,
) -> Outcome<(ParentRef, u64)> {
    if !state.pools.contains_key(&spec.pool) {
        return Err(Errno::ENOENT);
    }
    let place = Place::new(&spec.pool, &spec.namespace);
    let id = state.space(&place).id_objects.get(&spec.image).ok_or(Errno::ENOENT)?.clone();
    if format == CloneFormat::V1 && place.namespace != child.namespace {
        return Err(Errno::EXDEV);
    }
    let image = ImageRef { place, id: id.into() };
    let header = state.header(&image)?;
    let snapshot = header.user_snapshot(&spec.snapshot)?;
    if !header.features.contains(Features::LAYERING) {
        return Err(Errno::ENOSYS);
    }
    let state = &header.snapshots[&snapshot];
    if format == CloneFormat::V1 && state.protection != Protection::Protected {
        return Err(Errno::EINVAL);
    }
    Ok((ParentRef { image, snapshot }, state.size))
}

fn clone(
    call: &mut Call<'_>,
    spec: &SnapshotSpec,
    place: &Place,
    name: &str,
    options: &ImageOptions,
) -> Outcome<()> {
    let mut state = call.state();
    let (parent, size) = find_parent(&mut state, spec, place, options.clone_format)?;
    let header = state.header(&parent.image)?;
    let layout = Layout::new(options, create::inherited(header.features), header.order)?;
    let metadata = header.metadata.clone();
    if !layout.features.contains(Features::LAYERING) {
        return Err(Errno::ENOSYS);
    }
    drop(state);

    let child = create::create(call, place, name, size, &layout)?;
    let mut state = call.state();
    call.watch(&mut state, &child);
    state.header_mut(&child)?.link = Some(Link { parent: parent.clone(), overlap: size });
    drop(state);
    call.step()?;
    match options.clone_format {
        CloneFormat::V1 => {
            let mut state = call.state();
            state.space(place).children.entry(parent).or_default().insert(child.id.to_string());
        }
        CloneFormat::V2 => {
            call.state().header_mut(&child)?.clone_child = true;
            call.step()?;
            let mut state = call.state();
            let snapshots = &mut state.header_mut(&parent.image)?.snapshots;
            snapshots.get_mut(&parent.snapshot).ok_or(Errno::ENOENT)?.children.insert(child.clone());
        }
    }
    call.step()?;
    if metadata.is_empty() {
        return Ok(());
    }
    call.state().header_mut(&child)?.metadata = metadata;
    call.step()
}

/// What must hold before an image is removed: no snapshots of any kind, nobody watching.
fn check_removable(state: &State, image: &ImageRef) -> Outcome<()> {
    let Ok(header) = state.header(image) else { return Ok(()) };
    if !header.snapshots.is_empty() {
        return Err(Errno::ENOTEMPTY);
    }
    if header.watches.is_empty() { Ok(()) } else { Err(Errno::EBUSY) }
}

fn remove(call: &mut Call<'_>, place: &Place, name: &str) -> Outcome<()> {
    let mut state = call.state();
    let space = state.space(place);
    let Some(id) = space.names.get(name).cloned() else {
        let interrupted = space.trash.iter().find(|(_, item)| item.removing && item.name == name);
        let id = interrupted.map(|(id, _)| id.clone()).ok_or(Errno::ENOENT)?;
        drop(state);
        return remove_from_trash(call, place, &id, true);
    };
    check_removable(&state, &ImageRef::new(place, &id))?;
    let deferred_until = state.now;
    drop(state);
    let item = TrashItem { name: name.to_owned(), removing: true, state: TrashState::Moving, deferred_until };
    move_to_trash(call, place, &id, item)?;
    remove_from_trash(call, place, &id, true)
}

fn move_to_trash(call: &mut Call<'_>, place: &Place, id: &str, item: TrashItem) -> Outcome<()> {
    let name = item.name.clone();
    call.state().space(place).trash.insert(id.to_owned(), item);
    call.step()?;
    call.state().space(place).id_objects.remove(&name);
    call.step()?;
    let mut state = call.state();
    let space = state.space(place);
    space.names.remove(&name);
    space.ids.remove(id);
    drop(state);
    call.step()?;
    set_trash_state(call, place, id, TrashState::Normal)
}

fn set_trash_state(call: &mut Call<'_>, place: &Place, id: &str, to: TrashState) -> Outcome<()> {
    call.state().space(place).trash.get_mut(id).ok_or(Errno::ENOENT)?.state = to;
    call.step()
}

fn restore(call: &mut Call<'_>, place: &Place, id: &str, name: &str) -> Outcome<()> {
    let mut state = call.state();
    let space = state.space(place);
    if space.trash.get(id).ok_or(Errno::ENOENT)?.removing {
        return Err(Errno::EINVAL);
    }
    if space.id_objects.contains_key(name) {
        return Err(Errno::EEXIST);
    }
    drop(state);
    set_trash_state(call, place, id, TrashState::Restoring)?;
    call.state().space(place).id_objects.insert(name.to_owned(), id.to_owned());
    call.step()?;
    let mut state = call.state();
    let space = state.space(place);
    space.names.insert(name.to_owned(), id.to_owned());
    space.ids.insert(id.to_owned(), name.to_owned());
    drop(state);
    call.step()?;
    call.state().space(place).trash.remove(id);
    call.step()
}

fn remove_from_trash(call: &mut Call<'_>, place: &Place, id: &str, force: bool) -> Outcome<()> {
    let image = ImageRef::new(place, id);
    let mut state = call.state();
    let now = state.now;
    if state.space(place).trash.get(id).ok_or(Errno::ENOENT)?.deferred_until > now && !force {
        return Err(Errno::EPERM);
    }
    check_removable(&state, &image)?;
    drop(state);
    set_trash_state(call, place, id, TrashState::Removing)?;
    let mut state = call.state();
    if let Ok(header) = state.header_mut(&image) {
        header.content = super::data::Content::default();
        let parent = header.link.as_ref().map(|link| link.parent.clone());
        call.watch(&mut state, &image);
        drop(state);
        if let Some(parent) = parent {
            unregister(call, &image, &parent)?;
        }
        call.state().space(place).headers.remove(id);
        call.step()?;
    } else {
        drop(state);
    }
    call.state().space(place).trash.remove(id);
    call.step()
}

fn rename(call: &mut Call<'_>, place: &Place, from: &str, to: &str) -> Outcome<()> {
    let mut state = call.state();
    let space = state.space(place);
    let id = space.id_objects.get(from).ok_or(Errno::ENOENT)?.clone();
    if !space.headers.contains_key(&id) {
        return Err(Errno::ENOENT);
    }
    if space.id_objects.contains_key(to) {
        return Err(Errno::EEXIST);
    }
    space.id_objects.insert(to.to_owned(), id.clone());
    drop(state);
    call.step()?;
    let mut state = call.state();
    let space = state.space(place);
    space.names.remove(from);
    space.names.insert(to.to_owned(), id.clone());
    space.ids.insert(id, to.to_owned());
    drop(state);
    call.step()?;
    call.state().space(place).id_objects.remove(from);
    call.step()
}
