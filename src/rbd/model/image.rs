//! An open image: the model's [`Image`]. Its bytes are in `bytes`, flattening in `flatten`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::ControlFlow;

use super::bytes;
use super::flatten;
use super::lineage;
use super::session::Session;
use super::state::{
    Header, ImageRef, Link, Outcome, ParentRef, Protection, SnapshotState, State, Version, Watch,
};
use crate::rbd::{
    Child, Diff, Errno, Extent, Features, Hold, Image, ImageInfo, Parent, Progress, Result,
    Snapshot, SnapshotId, Watcher,
};

/// An open image. Closing it takes its watch off.
pub(super) struct ModelImage {
    session: Session,
    image: ImageRef,
    opened_as: String,
    mode: Mode,
}

enum Mode {
    /// Holds the header as it was when the image was opened: no client tells librbd of changes
    /// without a watch.
    ReadOnly(Box<Header>),
    /// Holds the cookie of its watch.
    ReadWrite(u64),
}

impl ModelImage {
    pub(super) fn read_only(
        session: &Session,
        state: &State,
        image: ImageRef,
        opened_as: &str,
    ) -> Outcome<ModelImage> {
        let mode = Mode::ReadOnly(Box::new(state.header(&image)?.clone()));
        Ok(ModelImage { session: session.clone(), image, opened_as: opened_as.to_owned(), mode })
    }

    pub(super) fn read_write(
        session: &Session,
        state: &mut State,
        image: ImageRef,
        opened_as: &str,
    ) -> Outcome<ModelImage> {
        let watch = session.new_watch();
        let mode = Mode::ReadWrite(watch.cookie);
        state.watch(&image, watch)?;
        Ok(ModelImage { session: session.clone(), image, opened_as: opened_as.to_owned(), mode })
    }

    fn object(&self) -> String {
        self.image.place.spec(&self.opened_as)
    }

    fn snapshot_object(&self, name: &str) -> String {
        format!("{}@{name}", self.object())
    }

    /// Reads something of the cluster.
    fn read<T>(&self, method: &'static str, read: impl FnOnce(&State) -> Outcome<T>) -> Result<T> {
        self.session.call(method, self.object(), |call| read(&call.state()))
    }

    /// The header as this handle sees it.
    fn header<'a>(&'a self, state: &'a State) -> Outcome<&'a Header> {
        match &self.mode {
            Mode::ReadOnly(header) => Ok(header),
            Mode::ReadWrite(_) => state.header(&self.image),
        }
    }

    /// What is looked at in a snapshot goes through a second handle, which needs the parents of the
    /// head and of the snapshot.
    fn check_at(&self, state: &State, at: Option<SnapshotId>) -> Outcome<()> {
        let Some(id) = at else { return Ok(()) };
        let header = state.opened(&self.image)?;
        state.check_parents(header.link.as_ref())?;
        state.check_parents(header.snapshots.get(&id).ok_or(Errno::ENOENT)?.link.as_ref())
    }

    /// What this handle reads: the head, or the snapshot `at`.
    fn version<'a>(&'a self, state: &'a State, at: Option<SnapshotId>) -> Outcome<Version<'a>> {
        self.check_at(state, at)?;
        match at {
            None => Ok(state.head(&self.image, self.header(state)?)),
            Some(_) => state.version(&self.image, at),
        }
    }

    /// `EINVAL` when the range reaches beyond the end of the head.
    fn check_range(&self, state: &State, offset: u64, length: u64) -> Outcome<()> {
        let size = self.header(state)?.size;
        if offset.checked_add(length).is_none_or(|end| end > size) {
            Err(Errno::EINVAL)
        } else {
            Ok(())
        }
    }

    fn writable(&self) -> Outcome<()> {
        if matches!(self.mode, Mode::ReadWrite(_)) { Ok(()) } else { Err(Errno::EROFS) }
    }

    /// No client can change the header while the image has a [`Hold`]. librbd waits for a
    /// [`Hold::Lock`] for ever; here it times out.
    fn changeable(&self) -> Outcome<()> {
        self.writable()?;
        match self.session.state().header(&self.image)?.hold {
            None => Ok(()),
            Some(Hold::Lock { .. }) => Err(Errno::ETIMEDOUT),
            Some(Hold::Mirrored) => Err(Errno::EROFS),
        }
    }

    /// Data goes to the image only with its exclusive lock, if it has that feature.
    fn lockable(&self, state: &State) -> Outcome<()> {
        let watches = &state.header(&self.image)?.watches;
        let other =
            watches.iter().any(|watch| watch.keeps_lock && watch.session != self.session.client());
        if other { Err(Errno::EROFS) } else { Ok(()) }
    }

    /// Changes the header in one step.
    fn write(
        &self,
        method: &'static str,
        object: String,
        change: impl FnOnce(&mut Header) -> Outcome<()>,
    ) -> Result<()> {
        self.session.call(method, object, |call| {
            self.changeable()?;
            change(call.state().header_mut(&self.image)?)?;
            call.step()
        })
    }
}

impl fmt::Debug for ModelImage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "ModelImage({}, id {})", self.object(), self.image.id)
    }
}

impl Drop for ModelImage {
    fn drop(&mut self) {
        if let Mode::ReadWrite(cookie) = self.mode
            && !self.session.is_dead()
        {
            self.session.state().unwatch(&self.image, self.session.client(), cookie);
        }
    }
}

impl Image for ModelImage {
    fn name(&self) -> Result<String> {
        self.read("name", |state| {
            Ok(state
                .image_name(&self.image)
                .map_or_else(|| self.opened_as.clone(), |(name, _)| name))
        })
    }

    fn id(&self) -> Result<String> {
        self.read("id", |_| Ok(self.image.id.to_string()))
    }

    fn info(&self) -> Result<ImageInfo> {
        self.read("info", |state| {
            let header = self.header(state)?;
            Ok(ImageInfo {
                size: header.size,
                order: header.order,
                features: header.all_features(),
                stripe_unit: header.stripe_unit,
                stripe_count: header.stripe_count,
            })
        })
    }

    fn resize(&self, size: u64, allow_shrink: bool) -> Result<()> {
        self.session.call("resize", self.object(), |call| {
            self.changeable()?;
            let mut state = call.state();
            if size < state.header(&self.image)?.size {
                if !allow_shrink {
                    return Err(Errno::EINVAL);
                }
                bytes::trim(&mut state, &self.image, size)?;
                call.step()?;
            }
            let header = state.header_mut(&self.image)?;
            header.size = size;
            if let Some(link) = &mut header.link {
                link.overlap = link.overlap.min(size);
            }
            call.step()
        })
    }

    fn snapshots(&self) -> Result<Vec<Snapshot>> {
        self.read("snapshots", |state| {
            let snapshot = |(id, state): (&SnapshotId, &SnapshotState)| Snapshot {
                id: *id,
                name: state.name.clone(),
                size: state.size,
                kind: state.kind.clone(),
                // One whose protection is half taken off counts: it cannot be removed either.
                protected: state.protection != Protection::Unprotected,
                created: state.created,
            };
            Ok(self.header(state)?.snapshots.iter().map(snapshot).collect())
        })
    }

    fn create_snapshot(&self, name: &str) -> Result<()> {
        self.session.call("create_snapshot", self.snapshot_object(name), |call| {
            self.changeable()?;
            call.state().cut_snapshot(&self.image, name)?;
            call.step()
        })
    }

    fn remove_snapshot(&self, name: &str) -> Result<()> {
        self.session.call("remove_snapshot", self.snapshot_object(name), |call| {
            let id = self.header(&call.state())?.user_snapshot(name)?;
            self.changeable()?;
            lineage::remove_snapshot(call, &self.image, id)
        })
    }

    fn remove_snapshot_by_id(&self, id: SnapshotId) -> Result<()> {
        self.session.call("remove_snapshot_by_id", self.snapshot_object(&id.to_string()), |call| {
            self.changeable()?;
            lineage::remove_snapshot(call, &self.image, id)
        })
    }

    fn protect_snapshot(&self, name: &str) -> Result<()> {
        self.write("protect_snapshot", self.snapshot_object(name), |header| {
            if !header.features.contains(Features::LAYERING) {
                return Err(Errno::ENOSYS);
            }
            let id = header.user_snapshot(name)?;
            let snapshot = header.snapshots.get_mut(&id).ok_or(Errno::ENOENT)?;
            if snapshot.protection == Protection::Protected {
                return Err(Errno::EBUSY);
            }
            snapshot.protection = Protection::Protected;
            Ok(())
        })
    }

    fn unprotect_snapshot(&self, name: &str) -> Result<()> {
        self.session.call("unprotect_snapshot", self.snapshot_object(name), |call| {
            self.changeable()?;
            let mut state = call.state();
            let id = state.header(&self.image)?.user_snapshot(name)?;
            let parent = ParentRef { image: self.image.clone(), snapshot: id };
            let in_use = state.has_format1_children(&parent);
            let header = state.header_mut(&self.image)?;
            let snapshot = header.snapshots.get_mut(&id).ok_or(Errno::ENOENT)?;
            if snapshot.protection == Protection::Unprotected {
                return Err(Errno::EINVAL);
            }
            snapshot.protection = Protection::Unprotecting;
            call.step()?;
            snapshot.protection =
                if in_use { Protection::Protected } else { Protection::Unprotected };
            call.step()?;
            if in_use { Err(Errno::EBUSY) } else { Ok(()) }
        })
    }

    fn rename_snapshot(&self, from: &str, to: &str) -> Result<()> {
        self.write("rename_snapshot", self.snapshot_object(from), |header| {
            let id = header.user_snapshot(from)?;
            if header.user_snapshot(to).is_ok() {
                return Err(Errno::EEXIST);
            }
            to.clone_into(&mut header.snapshots.get_mut(&id).ok_or(Errno::ENOENT)?.name);
            Ok(())
        })
    }

    fn parent(&self, at: Option<SnapshotId>) -> Result<Option<Parent>> {
        self.read("parent", |state| {
            self.check_at(state, at)?;
            let link = match at {
                None => &self.header(state)?.link,
                Some(id) => &state.header(&self.image)?.snapshots[&id].link,
            };
            let link = link.as_ref().filter(|link| link.overlap > 0);
            link.map(|link| parent(state, link)).transpose()
        })
    }

    fn children(&self, of: Option<SnapshotId>) -> Result<Vec<Child>> {
        self.read("children", |state| {
            self.check_at(state, of)?;
            match of {
                Some(id) => state.children(&self.image, [id]),
                None => state.children(&self.image, self.header(state)?.snapshots.keys().copied()),
            }
        })
    }

    fn flatten(&self, progress: Progress<'_>) -> Result<()> {
        self.session.call("flatten", self.object(), |call| {
            self.changeable()?;
            flatten::flatten(call, &self.image, progress)
        })
    }

    fn metadata_get(&self, key: &str) -> Result<Option<String>> {
        self.read("metadata_get", |state| Ok(state.header(&self.image)?.metadata.get(key).cloned()))
    }

    fn metadata_set(&self, key: &str, value: &str) -> Result<()> {
        self.write("metadata_set", self.object(), |header| {
            header.metadata.insert(key.to_owned(), value.to_owned());
            Ok(())
        })
    }

    fn metadata_remove(&self, key: &str) -> Result<()> {
        self.write("metadata_remove", self.object(), |header| {
            header.metadata.remove(key);
            Ok(())
        })
    }

    fn metadata_list(&self) -> Result<BTreeMap<String, String>> {
        self.read("metadata_list", |state| Ok(state.header(&self.image)?.metadata.clone()))
    }

    fn hold(&self) -> Result<Option<Hold>> {
        self.read("hold", |state| Ok(self.header(state)?.hold.clone()))
    }

    fn group(&self) -> Result<Option<String>> {
        self.read("group", |state| Ok(state.header(&self.image)?.group.clone()))
    }

    fn watchers(&self) -> Result<Vec<Watcher>> {
        self.read("watchers", |state| {
            let mut seen = match self.mode {
                Mode::ReadOnly(_) => BTreeSet::new(),
                Mode::ReadWrite(_) => BTreeSet::from([self.session.client()]),
            };
            let watches = &state.header(&self.image)?.watches;
            let others = watches.iter().filter(|watch| seen.insert(watch.session));
            let describe = |watch: &Watch| Watcher {
                address: watch.address.clone(),
                client: watch.session,
                cookie: watch.cookie,
            };
            Ok(others.map(describe).collect())
        })
    }

    fn read_at(&self, at: Option<SnapshotId>, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.read("read_at", |state| bytes::read(&self.version(state, at)?, offset, buffer))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.session.call("write_at", self.object(), |call| {
            let mut state = call.state();
            self.check_range(&state, offset, data.len() as u64)?;
            self.writable()?;
            self.lockable(&state)?;
            bytes::write(&mut state, &self.image, offset, data)?;
            call.step()
        })
    }

    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.session.call("discard", self.object(), |call| {
            let mut state = call.state();
            self.check_range(&state, offset, length)?;
            self.writable()?;
            self.lockable(&state)?;
            bytes::discard(&mut state, &self.image, offset, length)?;
            call.step()
        })
    }

    fn flush(&self) -> Result<()> {
        self.read("flush", |_| Ok(()))
    }

    fn diff(
        &self,
        query: &Diff,
        visit: &mut (dyn FnMut(Extent) -> ControlFlow<()> + Send),
    ) -> Result<()> {
        self.session.call("diff", self.object(), |call| {
            let extents = {
                let state = call.state();
                bytes::diff(&self.version(&state, query.at)?, &self.image, &state, query)?
            };
            for extent in extents {
                if visit(extent).is_break() {
                    return Err(Errno::ECANCELED);
                }
            }
            Ok(())
        })
    }
}

/// What a link points at. `ENOENT` when the snapshot is gone.
fn parent(state: &State, link: &Link) -> Outcome<Parent> {
    let ParentRef { image, snapshot } = &link.parent;
    let name = state.parent_snapshot(&link.parent)?.name.clone();
    let (image_name, in_trash) = state.image_name(image).unwrap_or_default();
    Ok(Parent {
        pool: image.place.pool.to_string(),
        namespace: image.place.namespace.to_string(),
        image_id: image.id.to_string(),
        image: image_name,
        in_trash,
        snapshot_id: *snapshot,
        snapshot: name,
    })
}
