//! One of the two that are compared, and what it answers, in words that leave out what may differ:
//! ids and times.

use std::fmt::Debug;
use std::ops::ControlFlow;
use std::sync::Arc;

use cinderblock::rbd::{
    Child, Cluster, Diff, Features, Image, ImageInfo, ImageKey, ImageOptions, OpenMode, Parent,
    Pool, Result, Snapshot, SnapshotId, SnapshotKind, SnapshotSpec,
};

use super::operation::{Action, At, ImageAction, Key, NAMES, Operation, SLOTS, Target};
use super::pools::Pools;

pub(crate) struct Side {
    pub(crate) pools: Vec<Arc<dyn Pool>>,
    open: Vec<Option<Opened>>,
    pub(crate) names: Names,
}

/// An image with the name of its pool.
struct Opened {
    pool: String,
    image: Box<dyn Image>,
}

/// Ids in the order in which they came up.
#[derive(Clone, Default)]
pub(crate) struct Names {
    images: Vec<String>,
    /// With the pool, in which they are unique.
    snapshots: Vec<(String, SnapshotId)>,
}

impl Side {
    pub(crate) fn new(cluster: &dyn Cluster, pools: &Pools<'_>) -> Side {
        let pools = pools.names().into_iter().map(|name| cluster.pool(name, "").unwrap()).collect();
        let open = (0..SLOTS).map(|_| None).collect();
        Side { pools, open, names: Names::default() }
    }

    /// The same side over another connection, with nothing open.
    pub(crate) fn over(&self, cluster: &dyn Cluster, pools: &Pools<'_>) -> Side {
        Side { names: self.names.clone(), ..Side::new(cluster, pools) }
    }

    /// Runs `operation`; what it answered.
    pub(crate) fn run(&mut self, operation: &Operation) -> String {
        let pool = Arc::clone(&self.pools[operation.pool]);
        match &operation.action {
            Action::Create { name, size, order, features } => {
                let options = ImageOptions {
                    features: Some(*features),
                    order: Some(*order),
                    ..ImageOptions::default()
                };
                let answer = pool.create_image(name, *size, &options);
                self.names.learn_image(&*pool, name);
                say(answer)
            }
            Action::Clone { parent_pool, parent, snapshot, name, format, features } => {
                let spec = SnapshotSpec {
                    pool: self.pools[*parent_pool].name().to_owned(),
                    namespace: String::new(),
                    image: (*parent).to_owned(),
                    snapshot: (*snapshot).to_owned(),
                };
                let options = ImageOptions {
                    clone_format: *format,
                    features: *features,
                    ..ImageOptions::default()
                };
                let answer = pool.clone_image(&spec, name, &options);
                self.names.learn_image(&*pool, name);
                say(answer)
            }
            Action::Remove { name } => say(pool.remove_image(name)),
            Action::Rename { from, to } => say(pool.rename_image(from, to)),
            Action::ImageId { name } => {
                say(pool.image_id(name).map(|id| id.map(|id| self.names.image(&id))))
            }
            Action::ListImages => say(pool.list_images().map(|images| {
                let mut images: Vec<_> = images
                    .into_iter()
                    .map(|image| (image.name, self.names.image(&image.id)))
                    .collect();
                images.sort();
                images
            })),
            Action::TrashMove { name, delay } => say(pool.trash_move(name, *delay)),
            Action::TrashRestore { image, name } => {
                say(pool.trash_restore(&self.names.id(*image), name))
            }
            Action::TrashRemove { image, force } => {
                say(pool.trash_remove(&self.names.id(*image), *force))
            }
            Action::TrashGet { image } => {
                let entry = pool.trash_get(&self.names.id(*image));
                say(entry.map(|entry| entry.map(|entry| (entry.name, entry.removing))))
            }
            Action::TrashList => say(pool.trash_list().map(|entries| {
                let mut entries: Vec<_> = entries
                    .into_iter()
                    .map(|entry| (entry.name, self.names.image(&entry.id)))
                    .collect();
                entries.sort();
                entries
            })),
            Action::Open { slot, key, read_only } => {
                let slot = usize::try_from(*slot).unwrap();
                self.open[slot] = None;
                match self.open(&*pool, *key, *read_only) {
                    Ok(image) => {
                        self.open[slot] = Some(image);
                        "open".to_owned()
                    }
                    Err(error) => format!("{:?}", error.errno),
                }
            }
            Action::Close { slot } => {
                self.open[usize::try_from(*slot).unwrap()] = None;
                "closed".to_owned()
            }
            Action::On { target: Target::Slot(slot), action } => {
                let slot = usize::try_from(*slot).unwrap();
                let Some(image) = self.open[slot].take() else { return "nothing open".to_owned() };
                let answer = self.act(&image, action);
                self.open[slot] = Some(image);
                answer
            }
            Action::On { target: Target::Opened(key, read_only), action } => {
                match self.open(&*pool, *key, *read_only) {
                    Ok(image) => self.act(&image, action),
                    Err(error) => format!("not opened: {:?}", error.errno),
                }
            }
        }
    }

    /// Takes note of what others made.
    pub(crate) fn learn(&mut self) {
        for pool in &self.pools {
            for name in NAMES {
                self.names.learn_image(&**pool, name);
                if let Ok(image) = pool.open_image(ImageKey::Name(name), OpenMode::ReadOnly) {
                    self.names.learn_snapshots(pool.name(), &image.snapshots().unwrap());
                }
            }
        }
    }

    /// How many watch the images there are.
    pub(crate) fn watchers(&self) -> usize {
        let of = |pool: &Arc<dyn Pool>, key: ImageKey<'_>| {
            let image = pool.open_image(key, OpenMode::ReadOnly);
            image.map_or(0, |image| image.watchers().unwrap().len())
        };
        let known = |pool| {
            let by_id = self.names.images.iter().map(move |id| of(pool, ImageKey::Id(id)));
            by_id
                .chain(NAMES.into_iter().map(move |name| of(pool, ImageKey::Name(name))))
                .sum::<usize>()
        };
        self.pools.iter().map(known).sum()
    }

    fn open(&self, pool: &dyn Pool, key: Key, read_only: bool) -> Result<Opened> {
        let mode = if read_only { OpenMode::ReadOnly } else { OpenMode::ReadWrite };
        let image = match key {
            Key::Name(name) => pool.open_image(ImageKey::Name(name), mode)?,
            Key::Id(number) => pool.open_image(ImageKey::Id(&self.names.id(number)), mode)?,
        };
        Ok(Opened { pool: pool.name().to_owned(), image })
    }

    fn act(&mut self, Opened { pool, image }: &Opened, action: &ImageAction) -> String {
        let image = &**image;
        let mut go_on = |_, _| ControlFlow::Continue(());
        match action {
            ImageAction::Name => say(image.name()),
            ImageAction::Info => say(info(image)),
            ImageAction::Resize { size, allow_shrink } => say(image.resize(*size, *allow_shrink)),
            ImageAction::Snapshots => {
                say(image.snapshots().map(|all| self.names.snapshots(pool, all)))
            }
            ImageAction::CreateSnapshot { name } => {
                let answer = image.create_snapshot(name);
                if let Ok(snapshots) = image.snapshots() {
                    self.names.learn_snapshots(pool, &snapshots);
                }
                say(answer)
            }
            ImageAction::RemoveSnapshot { name } => say(image.remove_snapshot(name)),
            ImageAction::RemoveSnapshotById { at } => match snapshot_at(image, *at) {
                Some(id) => say(image.remove_snapshot_by_id(id)),
                None => "no snapshot".to_owned(),
            },
            ImageAction::Protect { name } => say(image.protect_snapshot(name)),
            ImageAction::Unprotect { name } => say(image.unprotect_snapshot(name)),
            ImageAction::RenameSnapshot { from, to } => say(image.rename_snapshot(from, to)),
            ImageAction::Parent { at } => {
                let parent = image.parent(snapshot_at(image, *at));
                say(parent.map(|parent| parent.map(|parent| self.names.parent(&parent))))
            }
            ImageAction::Children { of } => {
                let children = image.children(snapshot_at(image, *of));
                say(children.map(|children| self.names.children(&children)))
            }
            ImageAction::Flatten => say(image.flatten(&mut go_on)),
            ImageAction::Metadata { key } => {
                say(image.metadata_get(key).and_then(|value| Ok((value, image.metadata_list()?))))
            }
            ImageAction::MetadataSet { key, value } => say(image.metadata_set(key, value)),
            ImageAction::MetadataRemove { key } => say(image.metadata_remove(key)),
            ImageAction::Watchers => say(image.watchers().map(|watchers| watchers.len())),
            ImageAction::Read { at } => say(content(image, snapshot_at(image, *at))),
            ImageAction::Write { offset, length, byte } => {
                say(image.write_at(*offset, &vec![*byte; usize::try_from(*length).unwrap()]))
            }
            ImageAction::Discard { offset, length } => say(image.discard(*offset, *length)),
            ImageAction::Diff { at, since, include_parent, whole_object } => {
                let query = Diff {
                    at: snapshot_at(image, *at),
                    since: snapshot_at(image, *since),
                    offset: 0,
                    length: u64::MAX,
                    include_parent: *include_parent,
                    whole_object: *whole_object,
                };
                say(check_diff(image, &query))
            }
        }
    }
}

/// Asks for the difference and checks it against the bytes: in order, inside, and nothing that
/// changed left out. How far librbd rounds the extents depends on how the OSD stores objects.
fn check_diff(image: &dyn Image, query: &Diff) -> Result<&'static str> {
    let mut extents = Vec::new();
    image.diff(query, &mut |extent| {
        extents.push(extent);
        ControlFlow::Continue(())
    })?;
    let now = bytes(image, query.at)?;
    let mut before = match query.since {
        Some(since) => bytes(image, Some(since))?,
        None => Vec::new(),
    };
    before.resize(now.len(), 0);
    let mut end = 0;
    for extent in extents {
        if extent.offset < end || extent.offset + extent.length > now.len() as u64 {
            return Ok("extents overlap, or reach beyond the end");
        }
        end = extent.offset + extent.length;
        let range = usize::try_from(extent.offset).unwrap()..usize::try_from(end).unwrap();
        before[range.clone()].copy_from_slice(&now[range]);
    }
    // Without the parent's data one cannot tell from the bytes what should be there.
    let complete = before == now || !query.include_parent;
    Ok(if complete { "all that changed" } else { "something that changed is missing" })
}

/// What the image says of itself, without the feature bit that librbd keeps for itself: an open
/// image learns late that it was cloned.
pub(crate) fn info(image: &dyn Image) -> Result<ImageInfo> {
    let info = image.info()?;
    Ok(ImageInfo { features: Features(info.features.0 & 0xff), ..info })
}

/// The snapshot `at` stands for; `None` is the head.
fn snapshot_at(image: &dyn Image, at: At) -> Option<SnapshotId> {
    let snapshots = image.snapshots().ok()?;
    let place = usize::try_from(at?).unwrap().checked_rem(snapshots.len())?;
    Some(snapshots[place].id)
}

/// The bytes of an image as runs of one value: (first byte, value).
pub(crate) fn content(image: &dyn Image, at: Option<SnapshotId>) -> Result<Vec<(usize, u8)>> {
    let bytes = bytes(image, at)?;
    let mut runs = Vec::new();
    for (offset, &byte) in bytes.iter().enumerate() {
        if runs.last().is_none_or(|&(_, last)| last != byte) {
            runs.push((offset, byte));
        }
    }
    runs.push((bytes.len(), 0xff));
    Ok(runs)
}

/// All bytes of the head or the snapshot `at`.
fn bytes(image: &dyn Image, at: Option<SnapshotId>) -> Result<Vec<u8>> {
    let mut bytes = vec![0xff; 1 << 20];
    let count = image.read_at(at, 0, &mut bytes)?;
    assert!(count < bytes.len(), "no image here is that large");
    bytes.truncate(count);
    Ok(bytes)
}

/// An answer in words: the errno of an error, its call and object left out.
fn say<T: Debug>(answer: Result<T>) -> String {
    match answer {
        Ok(value) => format!("{value:?}"),
        Err(error) => format!("{:?}", error.errno),
    }
}

impl Names {
    fn learn_image(&mut self, pool: &dyn Pool, name: &str) {
        if let Ok(Some(id)) = pool.image_id(name)
            && !self.images.contains(&id)
        {
            self.images.push(id);
        }
    }

    fn learn_snapshots(&mut self, pool: &str, snapshots: &[Snapshot]) {
        for snapshot in snapshots {
            let known = (pool.to_owned(), snapshot.id);
            if !self.snapshots.contains(&known) {
                self.snapshots.push(known);
            }
        }
    }

    /// The id of the image that came up as number `number`, modulo how many there are.
    pub(crate) fn id(&self, number: u64) -> String {
        let place = usize::try_from(number).unwrap().checked_rem(self.images.len());
        place.map_or_else(|| "none".to_owned(), |place| self.images[place].clone())
    }

    pub(crate) fn image(&self, id: &str) -> String {
        match self.images.iter().position(|known| known == id) {
            Some(place) => format!("image {place}"),
            None => "unknown image".to_owned(),
        }
    }

    fn snapshot(&self, pool: &str, id: SnapshotId) -> String {
        match self
            .snapshots
            .iter()
            .position(|(known, known_id)| (known.as_str(), *known_id) == (pool, id))
        {
            Some(place) => format!("snapshot {place}"),
            None => "unknown snapshot".to_owned(),
        }
    }

    pub(crate) fn snapshots(&self, pool: &str, snapshots: Vec<Snapshot>) -> Vec<String> {
        let words = |snapshot: Snapshot| {
            let name = match snapshot.kind {
                SnapshotKind::User => snapshot.name,
                SnapshotKind::Trash { original_name } => format!("parked {original_name}"),
                kind => format!("{kind:?} {}", snapshot.name),
            };
            let protected = if snapshot.protected { ", protected" } else { "" };
            format!(
                "{} {name} of {} bytes{protected}",
                self.snapshot(pool, snapshot.id),
                snapshot.size
            )
        };
        snapshots.into_iter().map(words).collect()
    }

    pub(crate) fn parent(&self, parent: &Parent) -> String {
        let trash = if parent.in_trash { " in the trash" } else { "" };
        // Parked snapshots have a random UUID for a name.
        let name = if parent.snapshot.len() == 36 { "parked" } else { &parent.snapshot };
        format!(
            "{}/{}{trash} ({}) at {name} ({})",
            parent.pool,
            parent.image,
            self.image(&parent.image_id),
            self.snapshot(&parent.pool, parent.snapshot_id)
        )
    }

    pub(crate) fn children(&self, children: &[Child]) -> Vec<String> {
        let words = |child: &Child| {
            let trash = if child.in_trash { " in the trash" } else { "" };
            format!("{}/{}{trash} ({})", child.pool, child.image, self.image(&child.image_id))
        };
        let mut children: Vec<_> = children.iter().map(words).collect();
        children.sort();
        children
    }
}
