//! What the cluster holds, object by object as librbd lays it out, so that a call stopped half-way
//! leaves what librbd would leave.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::data::{Content, Object, chunks};
use crate::rbd::{Errno, Features, Hold, SnapshotId, SnapshotKind};

/// What steps return inside the model; the call adds its name and object.
pub(super) type Outcome<T> = std::result::Result<T, Errno>;

/// One RADOS namespace of one pool.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    pub(super) pool: Arc<str>,
    pub(super) namespace: Arc<str>,
}

impl Place {
    pub(super) fn new(pool: &str, namespace: &str) -> Place {
        Place { pool: pool.into(), namespace: namespace.into() }
    }

    /// The image spec of `name` here.
    pub(super) fn spec(&self, name: &str) -> String {
        match &*self.namespace {
            "" => format!("{}/{name}", self.pool),
            namespace => format!("{}/{namespace}/{name}", self.pool),
        }
    }
}

/// An image by id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ImageRef {
    pub(super) place: Place,
    pub(super) id: Arc<str>,
}

impl ImageRef {
    pub(super) fn new(place: &Place, id: &str) -> ImageRef {
        ImageRef { place: place.clone(), id: id.into() }
    }
}

/// A snapshot as the parent of clones.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ParentRef {
    pub(super) image: ImageRef,
    pub(super) snapshot: SnapshotId,
}

/// What a head or a snapshot is a clone of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) parent: ParentRef,
    /// Bytes from the start that are still read through.
    pub(super) overlap: u64,
}

/// How far protection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protection {
    Unprotected,
    /// Between the two writes of taking it off.
    Unprotecting,
    Protected,
}

/// One snapshot in an image header.
#[derive(Debug, Clone)]
pub(super) struct SnapshotState {
    pub(super) name: String,
    pub(super) kind: SnapshotKind,
    pub(super) size: u64,
    pub(super) protection: Protection,
    pub(super) link: Option<Link>,
    /// Clones of format 2.
    pub(super) children: BTreeSet<ImageRef>,
    pub(super) content: Content,
    pub(super) created: SystemTime,
}

/// A watch on an image header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Watch {
    pub(super) session: u64,
    pub(super) cookie: u64,
    pub(super) address: String,
    /// Whether its client has the exclusive lock and never gives it away.
    pub(super) keeps_lock: bool,
}

/// An image header with the data that hangs on it.
#[derive(Debug, Clone)]
pub(super) struct Header {
    pub(super) size: u64,
    pub(super) order: u8,
    pub(super) features: Features,
    pub(super) stripe_unit: u64,
    pub(super) stripe_count: u64,
    pub(super) link: Option<Link>,
    /// Whether the header is marked as a clone of format 2.
    pub(super) clone_child: bool,
    pub(super) snapshots: BTreeMap<SnapshotId, SnapshotState>,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) content: Content,
    pub(super) watches: Vec<Watch>,
    /// What keeps everybody from changing it.
    pub(super) hold: Option<Hold>,
    /// The spec of its group, which keeps everybody from removing it.
    pub(super) group: Option<String>,
}

/// What a trash entry is in the middle of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TrashState {
    Normal,
    Moving,
    Removing,
    Restoring,
}

/// A trash entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TrashItem {
    pub(super) name: String,
    /// Put there by a removal, not by a person.
    pub(super) removing: bool,
    pub(super) state: TrashState,
    pub(super) deferred_until: SystemTime,
}

/// One namespace of one pool.
#[derive(Debug, Clone, Default)]
pub(super) struct Space {
    /// The directory, both ways; written in one operation.
    pub(super) names: BTreeMap<String, String>,
    pub(super) ids: BTreeMap<String, String>,
    /// The `rbd_id.NAME` objects, by which images open.
    pub(super) id_objects: BTreeMap<String, String>,
    pub(super) headers: BTreeMap<String, Header>,
    pub(super) trash: BTreeMap<String, TrashItem>,
    /// The children index of format 1: clones in this namespace.
    pub(super) children: BTreeMap<ParentRef, BTreeSet<String>>,
    /// Plain RADOS objects with their omaps.
    pub(super) objects: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
}

/// What belongs to a pool as a whole.
#[derive(Debug, Clone)]
pub(super) struct PoolState {
    pub(super) last_snapshot: SnapshotId,
    /// The namespaces in which images may be created, besides the default one.
    pub(super) namespaces: BTreeSet<String>,
    pub(super) quota: Option<u64>,
    /// Whether what is removed only moves to the trash.
    pub(super) keeps_removed: bool,
    /// What writes that need space fail with.
    pub(super) full: Option<Errno>,
}

/// The whole cluster.
#[derive(Debug)]
pub(super) struct State {
    pub(super) pools: BTreeMap<String, PoolState>,
    pub(super) spaces: BTreeMap<Place, Space>,
    pub(super) now: SystemTime,
    /// Addresses of clients whose calls are refused.
    pub(super) blocklist: BTreeSet<String>,
    last_image: u64,
}

impl State {
    pub(super) fn new() -> State {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        State {
            pools: BTreeMap::new(),
            spaces: BTreeMap::new(),
            now,
            blocklist: BTreeSet::new(),
            last_image: 0,
        }
    }

    /// A new image id: hexadecimal as librbd's, never used twice.
    pub(super) fn new_image_id(&mut self) -> String {
        self.last_image += 1;
        format!("1{:011x}", self.last_image)
    }

    /// A new snapshot id of `pool`.
    pub(super) fn new_snapshot_id(&mut self, pool: &str) -> Outcome<SnapshotId> {
        let pool = self.pools.get_mut(pool).ok_or(Errno::ENOENT)?;
        pool.last_snapshot += 1;
        Ok(pool.last_snapshot)
    }

    /// One second later, so that later things have later times.
    pub(super) fn tick(&mut self) -> SystemTime {
        self.now += Duration::from_secs(1);
        self.now
    }

    /// Whether images may be created in a namespace: `ENOENT` when it was never registered.
    pub(super) fn check_registered(&self, place: &Place) -> Outcome<()> {
        let pool = self.pools.get(&*place.pool).ok_or(Errno::ENOENT)?;
        let registered = place.namespace.is_empty() || pool.namespaces.contains(&*place.namespace);
        if registered { Ok(()) } else { Err(Errno::ENOENT) }
    }

    /// What a write that needs space in `pool` fails with, if anything.
    pub(super) fn check_full(&self, pool: &str) -> Outcome<()> {
        self.pools.get(pool).and_then(|pool| pool.full).map_or(Ok(()), Err)
    }

    pub(super) fn space(&mut self, place: &Place) -> &mut Space {
        if !self.spaces.contains_key(place) {
            self.spaces.insert(place.clone(), Space::default());
        }
        #[expect(clippy::unwrap_used, reason = "inserted above when missing")]
        self.spaces.get_mut(place).unwrap()
    }

    /// The header of an image. `ENOENT` when it is gone.
    pub(super) fn header(&self, image: &ImageRef) -> Outcome<&Header> {
        self.spaces
            .get(&image.place)
            .and_then(|space| space.headers.get(&*image.id))
            .ok_or(Errno::ENOENT)
    }

    pub(super) fn header_mut(&mut self, image: &ImageRef) -> Outcome<&mut Header> {
        self.spaces
            .get_mut(&image.place)
            .and_then(|space| space.headers.get_mut(&*image.id))
            .ok_or(Errno::ENOENT)
    }

    /// The snapshot of a link. `ENOENT` when it or its image is gone.
    pub(super) fn parent_snapshot(&self, parent: &ParentRef) -> Outcome<&SnapshotState> {
        self.header(&parent.image)?.snapshots.get(&parent.snapshot).ok_or(Errno::ENOENT)
    }

    /// The name of an image now, and whether it is in the trash. `None` when neither the directory
    /// nor the trash knows it.
    pub(super) fn image_name(&self, image: &ImageRef) -> Option<(String, bool)> {
        let space = self.spaces.get(&image.place)?;
        if let Some(name) = space.ids.get(&*image.id) {
            return Some((name.clone(), false));
        }
        self.trash_item(image).map(|item| (item.name.clone(), true))
    }

    /// The trash entry of an image, if there is one.
    pub(super) fn trash_item(&self, image: &ImageRef) -> Option<&TrashItem> {
        self.spaces.get(&image.place)?.trash.get(&*image.id)
    }

    /// The header of an image as librbd opens it by id: `ENOENT` when it is gone, or when neither
    /// the directory nor the trash has a name for it.
    pub(super) fn opened(&self, image: &ImageRef) -> Outcome<&Header> {
        self.image_name(image).ok_or(Errno::ENOENT)?;
        self.header(image)
    }

    /// librbd opens the parents along with an image, all the way up: `ENOENT` when one is gone.
    pub(super) fn check_parents(&self, link: Option<&Link>) -> Outcome<()> {
        let mut link = link;
        while let Some(Link { parent, overlap: 1.. }) = link {
            let header = self.opened(&parent.image)?;
            link = header.snapshots.get(&parent.snapshot).ok_or(Errno::ENOENT)?.link.as_ref();
        }
        Ok(())
    }

    /// Cuts a user snapshot of the head of an image.
    pub(super) fn cut_snapshot(&mut self, image: &ImageRef, name: &str) -> Outcome<()> {
        if self.header(image)?.user_snapshot(name).is_ok() {
            return Err(Errno::EEXIST);
        }
        let created = self.tick();
        let id = self.new_snapshot_id(&image.place.pool)?;
        let header = self.header_mut(image)?;
        let snapshot = SnapshotState {
            name: name.to_owned(),
            kind: SnapshotKind::User,
            size: header.size,
            protection: Protection::Unprotected,
            link: header.link.clone(),
            children: BTreeSet::new(),
            content: header.content.clone(),
            created,
        };
        header.snapshots.insert(id, snapshot);
        Ok(())
    }

    /// Registers a watch on an image header.
    pub(super) fn watch(&mut self, image: &ImageRef, watch: Watch) -> Outcome<()> {
        self.header_mut(image)?.watches.push(watch);
        Ok(())
    }

    /// Takes one watch off; the image may be gone.
    pub(super) fn unwatch(&mut self, image: &ImageRef, session: u64, cookie: u64) {
        if let Ok(header) = self.header_mut(image) {
            header.watches.retain(|watch| (watch.session, watch.cookie) != (session, cookie));
        }
    }

    /// Takes every watch off for which `gone` says so.
    pub(super) fn drop_watches(&mut self, gone: impl Fn(&Watch) -> bool) {
        for header in self.spaces.values_mut().flat_map(|space| space.headers.values_mut()) {
            header.watches.retain(|watch| !gone(watch));
        }
    }

    /// Has `session` keep the exclusive locks of all images it has open for writing.
    pub(super) fn keep_locks(&mut self, session: u64) {
        for header in self.spaces.values_mut().flat_map(|space| space.headers.values_mut()) {
            let lockable = header.features.contains(Features::EXCLUSIVE_LOCK);
            for watch in header.watches.iter_mut().filter(|watch| watch.session == session) {
                watch.keeps_lock = lockable;
            }
        }
    }

    /// One version of an image to read: the head, or the snapshot `at`.
    pub(super) fn version(&self, image: &ImageRef, at: Option<SnapshotId>) -> Outcome<Version<'_>> {
        let header = self.header(image)?;
        let (size, content, link) = match at {
            None => (header.size, &header.content, header.link.as_ref()),
            Some(id) => {
                let snapshot = header.snapshots.get(&id).ok_or(Errno::ENOENT)?;
                (snapshot.size, &snapshot.content, snapshot.link.as_ref())
            }
        };
        Ok(Version { state: self, order: header.order, size, content, link })
    }

    /// The head of an image for a handle that knows it by `header`, which may be older: size and
    /// link are the handle's, the bytes are today's. Of an image that is gone there are none, which
    /// reads as zeros.
    pub(super) fn head<'a>(&'a self, image: &ImageRef, header: &'a Header) -> Version<'a> {
        static GONE: Content = Content::new();
        let content = self.header(image).map_or(&GONE, |today| &today.content);
        Version {
            state: self,
            order: header.order,
            size: header.size,
            content,
            link: header.link.as_ref(),
        }
    }
}

/// One version of an image: the head or a snapshot.
pub(super) struct Version<'a> {
    state: &'a State,
    pub(super) order: u8,
    pub(super) size: u64,
    pub(super) content: &'a Content,
    pub(super) link: Option<&'a Link>,
}

impl<'a> Version<'a> {
    /// What the link of this version reads through to, and up to where.
    fn below(&self) -> Outcome<Option<(Version<'a>, u64)>> {
        let Some(link) = self.link else { return Ok(None) };
        let version = self.state.version(&link.parent.image, Some(link.parent.snapshot))?;
        let overlap = link.overlap.min(version.size);
        Ok(Some((version, overlap)))
    }

    /// Reads at `offset`, all of it inside the image, through the parents where this version holds
    /// nothing.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Outcome<()> {
        for (number, start, at, size) in chunks(offset, buffer.len() as u64, self.order) {
            #[expect(clippy::cast_possible_truncation, reason = "positions in a buffer in memory")]
            let piece = &mut buffer[(at - offset) as usize..(at - offset + size) as usize];
            if let Some(object) = self.content.object(number) {
                object.read(start, piece);
                continue;
            }
            piece.fill(0);
            if let Some((below, overlap)) = self.below()?
                && at < overlap
            {
                #[expect(clippy::cast_possible_truncation, reason = "at most the piece")]
                let shared = (overlap - at).min(size) as usize;
                below.read(at, &mut piece[..shared])?;
            }
        }
        Ok(())
    }

    /// The bytes of `[offset, offset + length)` as one object, from whatever holds them.
    fn gather(&self, offset: u64, length: u64) -> Outcome<Object> {
        let mut gathered = Object::default();
        for (number, start, at, size) in chunks(offset, length, self.order) {
            let part = match self.content.object(number) {
                Some(object) => object.slice(start, size),
                None => match self.below()? {
                    Some((below, overlap)) if at < overlap => {
                        below.gather(at, (overlap - at).min(size))?
                    }
                    _ => continue,
                },
            };
            gathered.place(&part, at - offset);
        }
        Ok(gathered)
    }

    /// What the parents hold below object `number` of this version; `None` when they hold no object
    /// there.
    pub(super) fn shared(&self, number: u64) -> Outcome<Option<Object>> {
        let Some((below, overlap)) = self.below()? else { return Ok(None) };
        let start = number << self.order;
        if start >= overlap {
            return Ok(None);
        }
        let object = below.gather(start, (overlap - start).min(1 << self.order))?;
        Ok(if object.length() == 0 { None } else { Some(object) })
    }

    /// What object `number` of this version would be when copied up from the parents; `None` when
    /// they hold only zeros there, which librbd does not copy.
    pub(super) fn copied_up(&self, number: u64) -> Outcome<Option<Object>> {
        Ok(self.shared(number)?.filter(|object| !object.is_zero()))
    }

    /// The numbers of this version's objects in which it or its parents may hold bytes.
    pub(super) fn used_objects(&self) -> Outcome<BTreeSet<u64>> {
        let mut used: BTreeSet<u64> = self.content.objects().map(|(number, _)| number).collect();
        if let Some((below, overlap)) = self.below()? {
            for number in below.used_objects()? {
                let (start, end) =
                    (number << below.order, ((number + 1) << below.order).min(overlap));
                if start < end {
                    used.extend(start >> self.order..=(end - 1) >> self.order);
                }
            }
        }
        Ok(used)
    }
}
