//! What a new volume is made from, looked at before anything is changed.

use super::catalogue::{Link, Source, State};
use super::clone::Parent;
use super::create::CreateVolume;
use super::snapshot::find;
use super::{Error, ImageLocation, Result, Volumes, names};
use crate::rbd::{CloneFormat, Errno, Image, ImageKey, OpenMode, Snapshot};

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
    /// A snapshot of a golden image, which an administrator names. See `golden`.
    Image(ImageLocation),
}

impl VolumeSource {
    /// Where its image is: the pool and the RADOS namespace.
    pub fn place(&self) -> (&str, &str) {
        match self {
            VolumeSource::Volume { pool, namespace, .. }
            | VolumeSource::Snapshot { pool, namespace, .. }
            | VolumeSource::Image(ImageLocation { pool, namespace, .. }) => (pool, namespace),
        }
    }

    pub(super) fn recorded(&self) -> Source {
        match self {
            VolumeSource::Volume { id, .. } => Source::Volume(id.clone()),
            VolumeSource::Snapshot { id, .. } => Source::Snapshot(id.clone()),
            VolumeSource::Image(location) => Source::Image(location.to_string()),
        }
    }
}

impl Volumes {
    /// Looks at the source: it must be there, handed out where it is a volume or a snapshot of this
    /// driver's, and not be on its way out.
    pub(super) fn parent(&self, source: &VolumeSource, request: &CreateVolume) -> Result<Parent> {
        let (pool, namespace) = source.place();
        if request.options.clone_format == CloneFormat::V1 && namespace != self.pool.namespace() {
            return Err(Error::Invalid(format!(
                "the source {} is in another RADOS namespace, which clones of format 1 cannot cross: use cloneFormat=2",
                source.recorded()
            )));
        }
        let (id, image_id, snapshot) = match source {
            VolumeSource::Image(location) => return self.golden(location, request),
            VolumeSource::Volume { id, image, .. } => (id, image, None),
            VolumeSource::Snapshot { id, image_id, snapshot, .. } => (id, image_id, Some(snapshot)),
        };
        let gone = || Error::NotFound(format!("the source {id} does not exist"));
        let home = self.elsewhere(pool, namespace)?.ok_or_else(gone)?;
        match snapshot {
            None => home.head_to_clone(image_id, request, &gone),
            Some(snapshot) => home.snapshot_to_restore(image_id, snapshot, &gone),
        }
    }

    /// The head of the volume here whose image is named `name`.
    fn head_to_clone(
        self,
        name: &str,
        request: &CreateVolume,
        gone: &dyn Fn() -> Error,
    ) -> Result<Parent> {
        self.ready(name)?.ok_or_else(gone)?;
        let image = match self.pool.open_image(ImageKey::Name(name), OpenMode::ReadOnly) {
            Ok(image) => image,
            Err(error) if error.errno == Errno::ENOENT => return Err(gone()),
            Err(error) => return Err(error.into()),
        };
        self.refuse_unchangeable(&*image)?;
        let image_id = image.id()?;
        let snapshots = image.snapshots()?;
        let (snapshot, stale) =
            self.clone_snapshot_name(&*image, &image_id, &snapshots, &request.image)?;
        Ok(Parent {
            size: image.info()?.size,
            link: self.link_to(&image_id, &snapshot),
            snapshots: snapshots.len(),
            snapshot: None,
            stale,
            is_golden: false,
            home: self,
            image,
            image_id,
        })
    }

    /// A snapshot here that was handed out.
    fn snapshot_to_restore(
        self,
        image_id: &str,
        snapshot: &str,
        gone: &dyn Fn() -> Error,
    ) -> Result<Parent> {
        let found = self.catalogue.snapshot(snapshot)?.map(|stored| stored.record);
        let record = found
            .filter(|record| record.state == State::Ready && record.image_id == image_id)
            .ok_or_else(gone)?;
        let image = self.image_of(snapshot, &record, OpenMode::ReadOnly)?.ok_or_else(gone)?;
        let image_id = image.id()?;
        // The snapshots of a migrated image have new ids. Otherwise another one of that name is not
        // what was handed out.
        let migrated = image_id != record.image_id;
        let snapshots = image.snapshots()?;
        let found = find(&snapshots, snapshot)
            .filter(|found| migrated || found.id == record.snapshot_id)
            .ok_or_else(gone)?
            .clone();
        Ok(Parent {
            size: found.size,
            link: self.link_to(&image_id, snapshot),
            snapshots: snapshots.len(),
            snapshot: Some(found),
            stale: None,
            is_golden: false,
            home: self,
            image,
            image_id,
        })
    }

    /// The link to a snapshot of an image here.
    pub(super) fn link_to(&self, image_id: &str, snapshot: &str) -> Link {
        Link {
            pool: self.pool.name().to_string(),
            namespace: self.pool.namespace().to_string(),
            image_id: image_id.to_string(),
            snapshot: snapshot.to_string(),
        }
    }

    /// The name of the snapshot to cut for `child`: one that no other clone, of an earlier volume
    /// of that name, depends on. And the childless snapshot that has this name now, if one has.
    fn clone_snapshot_name(
        &self,
        image: &dyn Image,
        id: &str,
        snapshots: &[Snapshot],
        child: &str,
    ) -> Result<(String, Option<Snapshot>)> {
        let mut attempt = 0;
        loop {
            let name = names::clone_snapshot(child, attempt);
            match find(snapshots, &name) {
                Some(taken) if !self.clones(image, id, taken.id)?.is_empty() => attempt += 1,
                stale => return Ok((name, stale.cloned())),
            }
        }
    }
}
