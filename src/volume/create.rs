//! CreateVolume: empty, from a volume, from a snapshot, from a golden image. How a source is looked
//! at is in `source`, and how a clone is made in `clone`.
//!
//! Crash points. The record says `creating`, with the planned link to the source, before the first
//! RBD call; an image whose record does not say `ready` is a leftover, also when it opens and has
//! the right size: a process killed inside librbd's clone can leave an image without a parent,
//! which reads as zeros. A retry removes it and starts over. `ready` is written last, after the
//! link was seen from both sides.
//!
//! A final answer leaves nothing behind: what was begun, now or by an earlier attempt, is undone
//! before it is given. A caller that hears one may never ask again, not even for a deletion.

use super::catalogue::{Source, State, Stored, Volume};
use super::clone::Parent;
use super::deletion::Deletion;
use super::source::VolumeSource;
use super::{DeleteWithSnapshots, Error, Made, Policy, Result, Volumes, now};
use crate::rbd::{CloneFormat, Errno, Features, Image, ImageKey, ImageOptions, OpenMode};
use std::collections::BTreeMap;

/// Bytes of a volume when the request names no size and there is no source: the seed's.
pub const DEFAULT_SIZE: u64 = 100 << 20;

/// Bytes of a sector: block devices have a whole number of them.
pub const SECTOR: u64 = 512;
/// Objects an object map can describe.
const OBJECT_MAP_OBJECTS: u64 = 256_000_000;
/// log2 of the bytes of an object when the request does not say.
const DEFAULT_ORDER: u8 = 22;

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
    /// The same as an earlier version of the driver made it: a record may hold that one.
    pub older_digest: String,
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
    /// The claim it is made for, as `namespace/name`, where the request says so.
    pub claim: Option<String>,
    /// For how many seconds DeleteVolume parks it in the trash; `None` deletes it.
    pub trash_retention: Option<u64>,
}

impl CreateVolume {
    /// Whether the image gets metadata: settings, or the CSI name when the image's own no longer
    /// says it.
    pub(super) fn has_metadata(&self) -> bool {
        !self.settings.is_empty() || self.is_hashed()
    }

    fn is_hashed(&self) -> bool {
        !self.image.ends_with(&self.name)
    }
}

impl Volumes {
    /// Creates the volume, or finds it as an earlier request made it, and returns its record.
    ///
    /// [`Error::AlreadyExists`] when the name is taken by something different, [`Error::NotFound`]
    /// when the source is gone, [`Error::OutOfRange`] when the sizes cannot be had from it,
    /// [`Error::Exhausted`] when there is no room.
    pub fn create(&self, request: &CreateVolume) -> Result<Made<Volume>> {
        if let Some(stored) = self.catalogue.volume(&request.image)? {
            let stored = self.returned(&request.image, stored)?;
            if stored.record.state == State::Ready {
                self.require_image(&request.image, &stored.record)?;
                return existing(&self.spec(&request.image), &stored.record, request)
                    .map(Made::Existing);
            }
            self.refuse_if_restoring(&request.image, &stored.record)?;
            // Never handed out, or on its way out: gone with it, and a fresh start.
            self.clear_away(&request.image, &stored)?;
        }
        if let Some(data_pool) = &request.options.data_pool
            && self.elsewhere(data_pool, "")?.is_none()
        {
            return Err(Error::Invalid(format!("the data pool {data_pool} does not exist")));
        }
        let parent =
            request.source.as_ref().map(|source| self.parent(source, request)).transpose()?;
        let record = Volume {
            state: State::Creating,
            id: request.id.clone(),
            name: request.name.clone(),
            size: size(request, parent.as_ref())?,
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
            claim: request.claim.clone(),
            trash_retention: request.trash_retention,
            adopted: None,
        };
        // Before the record is written: a retry that finds the record takes the image to be its
        // own.
        if self.is_foreign(&request.image)? {
            return Err(self.foreign(&request.image));
        }
        let mut stored = self.catalogue.insert_volume(&request.image, record)?;
        let made = self.make(request, &mut stored, parent.as_ref()).and_then(|record| {
            let ready = Volume { state: State::Ready, ..record };
            Ok(self.catalogue.replace(&request.image, &stored, ready)?.record)
        });
        match made {
            Ok(record) => Ok(Made::Created(record)),
            Err(error) if !error.is_final() => Err(error.after_a_change()),
            // The record is gone, and the image is not ours.
            Err(error @ Error::AlreadyExists(_)) => Err(error),
            Err(error) => match self.clear_away(&request.image, &stored) {
                Ok(()) => Err(error.after_an_undo()),
                Err(undoing) => {
                    tracing::warn!(image = request.image, %error, "a failed creation is not undone yet");
                    Err(undoing)
                }
            },
        }
    }

    /// Removes what an unfinished creation or deletion of `image` left, with the snapshot it cut on
    /// its source: at the limit of snapshots, a new attempt would flatten a clone to make room for
    /// one more. Its errors are never final: something is left.
    fn clear_away(&self, image: &str, stored: &Stored<Volume>) -> Result<()> {
        let cleared = self.destroy(image, stored);
        self.settle_own();
        cleared.map(drop).map_err(|error| match error {
            Error::FailedPrecondition(_) | Error::InUse(_) | Error::HasSnapshots { .. } => {
                Error::Conflict(format!("an unfinished volume of this name is in the way: {error}"))
            }
            // To remove a clone takes the right to take it off the list of a golden image.
            Error::Rbd(cause) | Error::Unfinished(cause) if cause.errno == Errno::EPERM => {
                match (&stored.record.source, &stored.record.link) {
                    (Some(Source::Image(image)), Some(link)) => Error::MayNotClone {
                        image: image.clone(),
                        pool: link.pool.clone(),
                        namespace: link.namespace.clone(),
                        cause: Box::new(cause),
                        is_begun: true,
                    },
                    _ => Error::Unfinished(cause),
                }
            }
            other => other.after_a_change(),
        })
    }

    /// Whether there is an image of this name that no record knows. [`Error::Conflict`] when
    /// another controller has just made it or is about to have removed it: it had a record before,
    /// or has one by now.
    pub(super) fn is_foreign(&self, image: &str) -> Result<bool> {
        let Some(id) = self.pool.image_id(image)? else { return Ok(false) };
        // A record goes after its image, so an image that outlives the look had none.
        if self.catalogue.volume(image)?.is_none() && self.pool.image_id(image)? == Some(id) {
            return Ok(true);
        }
        Err(Error::Conflict(format!("another controller is at work on {}", self.spec(image))))
    }

    fn foreign(&self, image: &str) -> Error {
        Error::AlreadyExists(format!(
            "the image {} exists, but the catalogue of instance {} does not know it: another tool made it, and it is \
             left alone; use another volumeNamePrefix, or remove it",
            self.spec(image),
            self.instance
        ))
    }

    /// Makes the image. Returns the record as it is to be written when all is well; `stored` is
    /// what is written now.
    fn make(
        &self,
        request: &CreateVolume,
        stored: &mut Stored<Volume>,
        parent: Option<&Parent>,
    ) -> Result<Volume> {
        if let Some(parent) = parent {
            return self.clone_volume(request, stored, parent);
        }
        self.activity.begin(format!("creating {}", self.spec(&request.image)));
        match self.pool.create_image(&request.image, stored.record.size, &request.options) {
            Ok(()) => {}
            Err(error) if error.errno == Errno::EEXIST => {
                return Err(self.name_is_taken(&request.image, stored)?);
            }
            Err(error) => return Err(error.into()),
        }
        if !request.has_metadata() {
            let image_id = self.pool.image_id(&request.image)?;
            return Ok(Volume { image_id, ..stored.record.clone() });
        }
        let image = self.pool.open_image(ImageKey::Name(&request.image), OpenMode::ReadWrite)?;
        describe(&*image, request)?;
        Ok(Volume { image_id: Some(image.id()?), ..stored.record.clone() })
    }

    /// What to tell when the image's name was taken between our look and our create.
    pub(super) fn name_is_taken(&self, image: &str, stored: &Stored<Volume>) -> Result<Error> {
        if self.pool.image_id(image)?.is_none() {
            return Ok(Error::Conflict(format!(
                "the name {} is taken by what a killed creation or removal left",
                self.spec(image)
            )));
        }
        Deletion::of_unmade(self, image, stored).forget()?;
        Ok(self.foreign(image))
    }
}

/// The image metadata key for the CSI name, for people with `rbd`.
pub(super) const NAME_KEY: &str = "cinderblock/name";

/// Writes the settings, and the CSI name that a hashed image name does not say, into the image's
/// metadata.
pub(super) fn describe(image: &dyn Image, request: &CreateVolume) -> Result<()> {
    if request.is_hashed() {
        image.metadata_set(NAME_KEY, &request.name)?;
    }
    super::modify::set(image, &request.settings)
}

fn size(request: &CreateVolume, parent: Option<&Parent>) -> Result<u64> {
    let Sizes { required, limit } = request.sizes;
    let Some(parent) = parent else {
        let largest = largest(&request.options);
        if required > largest {
            return Err(Error::OutOfRange(format!(
                "{required} bytes are more than a volume of this class can have, which is {largest}: objectSize and imageFeatures \
                 decide that"
            )));
        }
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

/// Bytes the largest image of this layout has: an object map describes 256 million objects
/// (cls_rbd's own bound).
pub fn largest(options: &ImageOptions) -> u64 {
    if options.features.unwrap_or(Features::DEFAULT).contains(Features::OBJECT_MAP) {
        OBJECT_MAP_OBJECTS << options.order.unwrap_or(DEFAULT_ORDER)
    } else {
        i64::MAX.unsigned_abs()
    }
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
            Some(Source::Image(location)) => format!("it was made from the image {location}"),
        });
    }
    if record.digest != request.digest && record.digest != request.older_digest {
        return differs("its parameters or capabilities are different".to_string());
    }
    Ok(record.clone())
}
