//! CreateVolume: empty, from a volume, from a snapshot.
//!
//! Crash points. The record says `creating`, with the planned link to the source, before the first RBD call; an image
//! whose record does not say `ready` is a leftover, also when it opens and has the right size: a process killed inside
//! librbd's clone can leave an image without a parent, which reads as zeros. A retry removes it and starts over. `ready` is
//! written last, after the link was seen from both sides.

use super::catalogue::{Intent, Link, Source, State, Stored, Volume};
use super::names;
use super::{DeleteWithSnapshots, Error, FlattenTarget, Policy, Result, Volumes, now};
use crate::rbd::{
    CloneFormat, Errno, Features, Image, ImageKey, ImageOptions, OpenMode, Snapshot, SnapshotKind,
    SnapshotSpec, Tolerate,
};
use std::collections::BTreeMap;

/// Bytes of a volume when the request names no size and there is no source: the seed's.
pub(super) const DEFAULT_SIZE: u64 = 100 << 20;

/// The sizes a request allows, in bytes. Zero is "not said".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// At least this many.
    pub required: u64,
    /// At most this many.
    pub limit: u64,
}

impl Sizes {
    /// Whether an existing size will do.
    pub fn allow(self, size: u64) -> bool {
        size >= self.required && (self.limit == 0 || size <= self.limit)
    }
}

/// What a new volume is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeSource {
    /// The head of another volume, as it is when the request is carried out.
    Volume {
        /// Its volume id.
        id: String,
        /// Pool of its image.
        pool: String,
        /// RADOS namespace of its image.
        namespace: String,
        /// Name of its image.
        image: String,
    },
    /// A snapshot, whose volume may be deleted already.
    Snapshot {
        /// Its snapshot id.
        id: String,
        /// Pool of its image.
        pool: String,
        /// RADOS namespace of its image.
        namespace: String,
        /// Id of its image.
        image_id: String,
        /// Its RBD name.
        snapshot: String,
    },
}

impl VolumeSource {
    fn recorded(&self) -> Source {
        match self {
            VolumeSource::Volume { id, .. } => Source::Volume(id.clone()),
            VolumeSource::Snapshot { id, .. } => Source::Snapshot(id.clone()),
        }
    }
}

/// A request for a volume.
#[derive(Debug, Clone)]
pub struct CreateVolume {
    /// The volume id it is handed out under.
    pub id: String,
    /// The CSI name.
    pub name: String,
    /// The image's name, made of it by [`names::rbd_name`].
    pub image: String,
    /// The sizes allowed.
    pub sizes: Sizes,
    /// What it is made from; empty when `None`.
    pub source: Option<VolumeSource>,
    /// A digest of everything else that a repeated request must match.
    pub digest: String,
    /// How its lineage is kept in bounds.
    pub policy: Policy,
    /// Layout of a new image; a clone takes its source's, features and data pool apart.
    pub options: ImageOptions,
    /// What DeleteVolume does when it still has snapshots.
    pub delete_with_snapshots: DeleteWithSnapshots,
    /// Context a node needs, handed out with the volume.
    pub context: BTreeMap<String, String>,
    /// Image metadata to set, such as librbd configuration.
    pub settings: BTreeMap<String, String>,
}

/// A source that was looked at and can be cloned.
struct Parent {
    home: Volumes,
    image_id: String,
    /// Bytes a clone has at least.
    size: u64,
    link: Link,
    /// The snapshot to clone when it exists already; a clone of a head gets one cut.
    snapshot: Option<Snapshot>,
}

impl Volumes {
    /// Creates the volume, or finds it as an earlier request made it, and returns its record.
    ///
    /// [`Error::AlreadyExists`] when the name is taken by something different, [`Error::NotFound`] when the source is gone,
    /// [`Error::OutOfRange`] when the sizes cannot be had from it, [`Error::Exhausted`] when there is no room.
    pub fn create(&self, request: &CreateVolume) -> Result<Volume> {
        let found = self.catalogue.volume(&request.image)?;
        if let Some(stored) = &found {
            match stored.record.state {
                State::Ready => return existing(&self.spec(&request.image), &stored.record, request),
                // An earlier volume of this name is half-way deleted; its DeleteVolume died.
                State::Deleting => {
                    self.delete(&request.image)?;
                    return self.create(request);
                }
                State::Creating => {}
            }
        }
        if let Some(data_pool) = &request.options.data_pool
            && self.elsewhere(data_pool, "")?.is_none()
        {
            return Err(Error::Invalid(format!("the data pool {data_pool} does not exist")));
        }
        let parent = request.source.as_ref().map(|source| self.parent(source, &request.image)).transpose()?;
        let size = size(request, parent.as_ref())?;
        let record = Volume {
            state: State::Creating,
            id: request.id.clone(),
            name: request.name.clone(),
            size,
            created: now(),
            image_id: None,
            source: request.source.as_ref().map(VolumeSource::recorded),
            link: parent.as_ref().map(|parent| parent.link.clone()),
            digest: request.digest.clone(),
            attempt: uuid::Uuid::new_v4().simple().to_string(),
            delete_with_snapshots: request.delete_with_snapshots,
            clone_format: if request.options.clone_format == CloneFormat::V1 { 1 } else { 2 },
            context: request.context.clone(),
            published: Vec::new(),
        };
        let stored = match found {
            Some(earlier) => self.take_over(&request.image, &earlier, record)?,
            None => self.begin(&request.image, record)?,
        };
        let made = self.make(request, &stored, parent.as_ref()).and_then(|record| {
            Ok(self
                .catalogue
                .replace(&request.image, &stored, Volume { state: State::Ready, ..record })?
                .record)
        });
        match made {
            Ok(record) => {
                if let Some(parent) = &parent {
                    self.forget_intent(parent)?;
                }
                self.collect_leftovers();
                Ok(record)
            }
            Err(error) => Err(self.undo(&request.image, &stored, error)),
        }
    }

    fn begin(&self, image: &str, record: Volume) -> Result<Stored<Volume>> {
        // Looked at before the record is written, so that a retry which finds the record knows the image to be its own.
        if self.pool.image_id(image)?.is_some() {
            return Err(self.foreign(image));
        }
        self.catalogue.insert_volume(image, record)
    }

    fn foreign(&self, image: &str) -> Error {
        Error::AlreadyExists(format!(
            "the image {} exists, but the catalogue of instance {} does not know it: it was made by somebody else and is \
             left alone; use another volumeNamePrefix, or remove it",
            self.spec(image),
            self.instance
        ))
    }

    /// Makes an unfinished attempt ours, and removes what it left.
    fn take_over(&self, image: &str, earlier: &Stored<Volume>, record: Volume) -> Result<Stored<Volume>> {
        self.note_leftovers(image, &earlier.record)?;
        let stored = self.catalogue.replace(image, earlier, record)?;
        self.pool
            .remove_image(image)
            .tolerate(Errno::ENOENT)
            .map_err(Error::from)
            .map_err(Error::after_a_change)?;
        Ok(stored)
    }

    /// Writes down what an unfinished creation of `image` may have left on its source's side.
    fn note_leftovers(&self, image: &str, record: &Volume) -> Result<()> {
        let mut suspects = Vec::new();
        let mut child = String::new();
        match self.pool.open_image(ImageKey::Name(image), OpenMode::ReadOnly) {
            Ok(leftover) => {
                child = leftover.id()?;
                suspects = Self::links(&*leftover, &child, &[])?;
            }
            Err(error) if error.errno == Errno::ENOENT => {}
            Err(error) => return Err(error.into()),
        }
        suspects.extend(self.planned_link(record, &child)?);
        self.journal.add(&suspects)
    }

    /// What to tell the caller of a creation that failed. When the failure is final, what was begun is undone first: a
    /// caller that hears a final answer may never ask again, not even for a deletion.
    fn undo(&self, image: &str, stored: &Stored<Volume>, error: Error) -> Error {
        if !is_final(&error) {
            return error.after_a_change();
        }
        let undone = || -> Result<()> {
            let deleting = self.catalogue.replace(
                image,
                stored,
                Volume { state: State::Deleting, ..stored.record.clone() },
            )?;
            if !matches!(error, Error::AlreadyExists(_)) {
                self.note_leftovers(image, &stored.record)?;
                self.pool.remove_image(image).tolerate(Errno::ENOENT)?;
            }
            self.catalogue.remove(image, &deleting)
        };
        match undone() {
            Ok(()) => {
                self.collect_leftovers();
                match error {
                    Error::Rbd(cause) if matches!(cause.errno, Errno::ENOSPC | Errno::EDQUOT) => {
                        Error::Exhausted(format!(
                            "no room for {}, and nothing was left behind: {cause}",
                            self.spec(image)
                        ))
                    }
                    other => other,
                }
            }
            Err(undoing) => {
                tracing::warn!(image, %error, %undoing, "an unfinished creation could not be undone");
                error.after_a_change()
            }
        }
    }

    /// Looks at the source: it must be handed out, and not be on its way out.
    fn parent(&self, source: &VolumeSource, child: &str) -> Result<Parent> {
        let (id, pool, namespace) = match source {
            VolumeSource::Volume { id, pool, namespace, .. }
            | VolumeSource::Snapshot { id, pool, namespace, .. } => (id, pool, namespace),
        };
        let gone = || Error::NotFound(format!("the source {id} does not exist"));
        let home = self.elsewhere(pool, namespace)?.ok_or_else(gone)?;
        let key = match source {
            VolumeSource::Volume { image, .. } => {
                home.catalogue
                    .volume(image)?
                    .filter(|stored| stored.record.state == State::Ready)
                    .ok_or_else(gone)?;
                ImageKey::Name(image)
            }
            VolumeSource::Snapshot { image_id, snapshot, .. } => {
                home.catalogue
                    .snapshot(snapshot)?
                    .filter(|stored| {
                        stored.record.state == State::Ready && stored.record.image_id == *image_id
                    })
                    .ok_or_else(gone)?;
                ImageKey::Id(image_id)
            }
        };
        let image = match home.pool.open_image(key, OpenMode::ReadOnly) {
            Ok(image) => image,
            Err(error) if error.errno == Errno::ENOENT => return Err(gone()),
            Err(error) => return Err(error.into()),
        };
        let image_id = image.id()?;
        let snapshots = image.snapshots()?;
        let (snapshot, name, size) = match source {
            VolumeSource::Volume { .. } => {
                (None, free_clone_snapshot_name(&*image, &snapshots, child)?, image.info()?.size)
            }
            VolumeSource::Snapshot { snapshot, .. } => {
                let found = user_snapshot(&snapshots, snapshot).ok_or_else(gone)?.clone();
                let size = found.size;
                (Some(found), snapshot.clone(), size)
            }
        };
        let link = Link {
            pool: pool.clone(),
            namespace: namespace.clone(),
            image_id: image_id.clone(),
            snapshot: name,
        };
        Ok(Parent { home, image_id, size, link, snapshot })
    }

    /// Makes the image. Returns the record as it is to be written when all is well.
    fn make(
        &self,
        request: &CreateVolume,
        stored: &Stored<Volume>,
        parent: Option<&Parent>,
    ) -> Result<Volume> {
        let record = stored.record.clone();
        let Some(parent) = parent else {
            self.activity.begin(format!("creating {}", self.spec(&request.image)));
            return match self.pool.create_image(&request.image, record.size, &request.options) {
                Ok(()) => self.describe(request, record),
                Err(error) if error.errno == Errno::EEXIST => Err(self.name_is_taken(&request.image)?),
                Err(error) => Err(error.into()),
            };
        };
        if parent.snapshot.is_none() && !parent.is_in(self) {
            let intent = Intent {
                pool: self.pool.name().to_string(),
                namespace: self.pool.namespace().to_string(),
                image: request.image.clone(),
            };
            parent.home.catalogue.note_intent(&parent.image_id, &parent.link.snapshot, intent)?;
        }
        if request.policy.max_clone_depth == 0 {
            self.copy(request, record, parent)
        } else {
            self.clone_and_verify(request, record, parent)
        }
    }

    /// The image's name was taken between our look and our create.
    fn name_is_taken(&self, image: &str) -> Result<Error> {
        if self.pool.image_id(image)?.is_some() {
            return Ok(self.foreign(image));
        }
        // Only the remains of a killed removal: out of the way with them, and the retry goes through.
        self.pool.remove_image(image).tolerate(Errno::ENOENT)?;
        Ok(Error::Conflict(format!("the image {}", self.spec(image))))
    }

    /// A hashed image name says nothing to a person with `rbd`: the CSI name goes into the image's metadata.
    fn describe(&self, request: &CreateVolume, record: Volume) -> Result<Volume> {
        if request.image.ends_with(&request.name) && request.settings.is_empty() {
            return Ok(record);
        }
        let image = self.pool.open_image(ImageKey::Name(&request.image), OpenMode::ReadWrite)?;
        image.metadata_set("cinderblock/name", &request.name)?;
        super::modify::set(&*image, &request.settings)?;
        Ok(Volume { image_id: Some(image.id()?), ..record })
    }

    fn copy(&self, request: &CreateVolume, record: Volume, parent: &Parent) -> Result<Volume> {
        let source = parent.open(OpenMode::ReadWrite)?;
        let snapshot = self.snapshot_to_clone(parent, &*source, request)?;
        self.activity.begin(format!("copying to {}", self.spec(&request.image)));
        source.copy(
            Some(snapshot.id),
            &*self.pool,
            &request.image,
            &request.options,
            &mut self.activity.progress(),
        )?;
        let image = self.pool.open_image(ImageKey::Name(&request.image), OpenMode::ReadWrite)?;
        grow(&*image, record.size)?;
        if parent.snapshot.is_none() {
            parent.home.drop_snapshot(&*source, &parent.image_id, &snapshot)?;
        }
        self.describe(request, Volume { image_id: Some(image.id()?), ..record })
    }

    fn clone_and_verify(&self, request: &CreateVolume, record: Volume, parent: &Parent) -> Result<Volume> {
        let flatten_clone = self.shorten(request, parent)?;
        if parent.snapshot.is_none() {
            let spec = parent.home.spec(&parent.link.image_id);
            parent.home.make_room(&parent.image_id, &spec, request.policy.max_snapshots)?;
        }
        let source = parent.open(OpenMode::ReadWrite)?;
        let snapshot = self.snapshot_to_clone(parent, &*source, request)?;
        if request.options.clone_format == CloneFormat::V1 && !snapshot.protected {
            source.protect_snapshot(&snapshot.name).tolerate(Errno::EBUSY)?;
        }
        self.activity.begin(format!("cloning to {}", self.spec(&request.image)));
        let spec = SnapshotSpec {
            pool: parent.link.pool.clone(),
            namespace: parent.link.namespace.clone(),
            image: source.name()?,
            snapshot: snapshot.name.clone(),
        };
        let options =
            ImageOptions { order: None, stripe_unit: None, stripe_count: None, ..request.options.clone() };
        self.pool.clone_image(&spec, &request.image, &options).map_err(|error| match error.errno {
            // The source, or its snapshot, went while we were at it.
            Errno::ENOENT => Error::NotFound(format!("the source {} does not exist any more", error.object)),
            Errno::EEXIST => Error::Conflict(format!("the image {}", self.spec(&request.image))),
            _ => error.into(),
        })?;
        let grows = record.size > snapshot.size;
        let mode = if grows || flatten_clone { OpenMode::ReadWrite } else { OpenMode::ReadOnly };
        let image = self.pool.open_image(ImageKey::Name(&request.image), mode)?;
        let id = image.id()?;
        verify_link(&*image, &id, parent, &*source, &snapshot)?;
        if grows {
            grow(&*image, record.size)?;
        }
        if flatten_clone {
            self.flatten(&*image, &self.spec(&request.image))?;
        }
        self.describe(request, Volume { image_id: Some(id), ..record })
    }

    /// Makes the chain short enough for one more clone, by flattening the source if the policy has it so. Answers whether
    /// the clone must be flattened instead, or anyhow.
    fn shorten(&self, request: &CreateVolume, parent: &Parent) -> Result<bool> {
        let policy = &request.policy;
        if parent.snapshot.is_some() && policy.flatten_on_restore {
            return Ok(true);
        }
        let at = parent.snapshot.as_ref().map(|snapshot| snapshot.id);
        let source = parent.open(OpenMode::ReadOnly)?;
        if self.depth(&*source, at)? < policy.max_clone_depth {
            return Ok(false);
        }
        // A snapshot keeps its own link, which only a deep flatten cuts.
        let helps = at.is_none() || source.info()?.features.contains(Features::DEEP_FLATTEN);
        let wanted = match policy.flatten_target {
            FlattenTarget::Clone => false,
            FlattenTarget::Source => true,
            FlattenTarget::Auto => !parent.is_attached(&*source)?,
        };
        if !(helps && wanted) {
            return Ok(true);
        }
        drop(source);
        let source = parent.open(OpenMode::ReadWrite)?;
        self.flatten(&*source, &parent.home.spec(&source.name()?))?;
        drop(source);
        self.collect_leftovers();
        let source = parent.open(OpenMode::ReadOnly)?;
        Ok(self.depth(&*source, at)? >= policy.max_clone_depth)
    }

    /// The snapshot to clone: the one asked for, or one newly cut. A childless one of the planned name is stale, an older
    /// point in time left by an earlier attempt, and is cut anew.
    fn snapshot_to_clone(
        &self,
        parent: &Parent,
        source: &dyn Image,
        request: &CreateVolume,
    ) -> Result<Snapshot> {
        if let Some(snapshot) = &parent.snapshot {
            return Ok(snapshot.clone());
        }
        let name = &parent.link.snapshot;
        if let Some(stale) = user_snapshot(&source.snapshots()?, name) {
            if !source.children(Some(stale.id))?.is_empty() {
                return Err(Error::Conflict(format!("the snapshot {}@{name}", parent.image_id)));
            }
            self.drop_snapshot(source, &parent.image_id, stale)?;
        }
        self.activity.begin(format!("taking a snapshot for {}", self.spec(&request.image)));
        source.create_snapshot(name)?;
        user_snapshot(&source.snapshots()?, name)
            .cloned()
            .ok_or_else(|| Error::Conflict(format!("the snapshot {}@{name}", parent.image_id)))
    }

    fn forget_intent(&self, parent: &Parent) -> Result<()> {
        if parent.snapshot.is_none() && !parent.is_in(self) {
            parent.home.catalogue.forget_intent(&parent.image_id, &parent.link.snapshot)?;
        }
        Ok(())
    }
}

impl Parent {
    fn open(&self, mode: OpenMode) -> Result<Box<dyn Image>> {
        self.home.pool.open_image(ImageKey::Id(&self.image_id), mode).map_err(|error| match error.errno {
            Errno::ENOENT => {
                Error::NotFound(format!("the source image {} does not exist any more", self.image_id))
            }
            _ => error.into(),
        })
    }

    fn is_in(&self, volumes: &Volumes) -> bool {
        self.link.pool == volumes.pool.name() && self.link.namespace == volumes.pool.namespace()
    }

    fn is_attached(&self, image: &dyn Image) -> Result<bool> {
        let published = self
            .home
            .catalogue
            .volume(&image.name()?)?
            .is_some_and(|stored| !stored.record.published.is_empty());
        Ok(published || !image.watchers()?.is_empty())
    }
}

/// Both ends of a new link must be there: a clone without it reads as zeros, a parent without it can be removed.
fn verify_link(
    image: &dyn Image,
    id: &str,
    parent: &Parent,
    source: &dyn Image,
    snapshot: &Snapshot,
) -> Result<()> {
    let upwards = image
        .parent(None)?
        .is_some_and(|link| link.image_id == parent.image_id && link.snapshot_id == snapshot.id);
    let downwards = source.children(Some(snapshot.id))?.iter().any(|child| child.image_id == id);
    if upwards && downwards {
        return Ok(());
    }
    Err(Error::Conflict(format!("the link of {} to {}@{}", image.name()?, parent.image_id, snapshot.name)))
}

fn grow(image: &dyn Image, size: u64) -> Result<()> {
    if image.info()?.size < size {
        image.resize(size, false)?;
    }
    Ok(())
}

fn user_snapshot<'a>(snapshots: &'a [Snapshot], name: &str) -> Option<&'a Snapshot> {
    snapshots.iter().find(|snapshot| snapshot.kind == SnapshotKind::User && snapshot.name == name)
}

/// The name of the snapshot to cut for `child`: one that no other clone, of an earlier volume of that name, depends on.
fn free_clone_snapshot_name(image: &dyn Image, snapshots: &[Snapshot], child: &str) -> Result<String> {
    let mut attempt = 0;
    loop {
        let name = names::clone_snapshot(child, attempt);
        match user_snapshot(snapshots, &name) {
            Some(taken) if !image.children(Some(taken.id))?.is_empty() => attempt += 1,
            _ => return Ok(name),
        }
    }
}

fn size(request: &CreateVolume, parent: Option<&Parent>) -> Result<u64> {
    let Sizes { required, limit } = request.sizes;
    let Some(parent) = parent else {
        return Ok(match (required, limit) {
            (0, 0) => DEFAULT_SIZE,
            (0, limit) => DEFAULT_SIZE.min(limit),
            (required, _) => required,
        });
    };
    if required != 0 && required < parent.size || limit != 0 && limit < parent.size {
        return Err(Error::OutOfRange(format!(
            "the source has {} bytes, so a volume made from it has at least as many: ask for that size or more",
            parent.size
        )));
    }
    Ok(required.max(parent.size))
}

/// Whether a ready volume is what the request asks for.
fn existing(spec: &str, record: &Volume, request: &CreateVolume) -> Result<Volume> {
    let differs = |what: String| {
        Err(Error::AlreadyExists(format!(
            "a volume named {} exists as {spec}, but {what}: use another name, or delete that volume",
            request.name
        )))
    };
    if record.name != request.name {
        return differs(format!("its name is {}", record.name));
    }
    if !request.sizes.allow(record.size) {
        return differs(format!("it has {} bytes", record.size));
    }
    let source = request.source.as_ref().map(VolumeSource::recorded);
    if record.source != source {
        return differs(match &record.source {
            None => "it was made empty".to_string(),
            Some(Source::Volume(id)) => format!("it was made from the volume {id}"),
            Some(Source::Snapshot(id)) => format!("it was made from the snapshot {id}"),
        });
    }
    if record.digest != request.digest {
        return differs("its parameters or capabilities are different".to_string());
    }
    Ok(record.clone())
}

/// Whether no retry of the same request could end differently, so that the caller may give up.
fn is_final(error: &Error) -> bool {
    match error {
        Error::Conflict(_) | Error::Unfinished(_) => false,
        Error::Rbd(cause) => !matches!(
            cause.errno,
            Errno::ETIMEDOUT
                | Errno::ESHUTDOWN
                | Errno::ENOTCONN
                | Errno::ECONNRESET
                | Errno::EIO
                | Errno::EAGAIN
                | Errno::EINTR
                | Errno::EBUSY
                | Errno::EEXIST
                | Errno::ENOENT
        ),
        _ => true,
    }
}
