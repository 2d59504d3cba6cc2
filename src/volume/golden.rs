//! Golden images: images that an administrator made for volumes to be cloned from, named by their
//! location in a StorageClass.
//!
//! They may belong to any tool, and the user needs no more than the right to read them. So nothing
//! of them is changed but librbd's own list of clones: no snapshot is cut, protected or removed, no
//! image flattened, and the journal of their pool is not written (`Volumes::link_suspect`).

use super::clone::Parent;
use super::create::{CreateVolume, SECTOR};
use super::snapshot::find;
use super::{Error, ImageLocation, Result, Volumes, names};
use crate::rbd::{CloneFormat, Errno, Features, Image, ImageKey, OpenMode, Snapshot};

/// How files of disk formats other than raw begin: the format, an offset, and the bytes there.
const FORMATS: &[(&str, usize, &[u8])] = &[
    ("qcow2", 0, b"QFI\xfb"),
    ("qed", 0, b"QED\0"),
    ("vmdk", 0, b"KDMV"),
    ("vhdx", 0, b"vhdxfile"),
    ("vpc", 0, b"conectix"),
    ("vdi", 64, b"\x7f\x10\xda\xbe"),
];
/// Bytes from the beginning of an image that tell its format.
const TELLING: usize = 68;

impl Volumes {
    /// The snapshot of a golden image, ready to be cloned.
    ///
    /// [`Error::NotFound`] when it is not there. [`Error::Invalid`] when it is in another cluster
    /// or cannot be cloned as it is. [`Error::MayNotClone`] for a user without the rights.
    pub(super) fn golden(
        &self,
        location: &ImageLocation,
        request: &CreateVolume,
    ) -> Result<Parent> {
        let fsid = self.cluster().fsid()?;
        if !location.fsid.eq_ignore_ascii_case(&fsid) {
            return Err(Error::Invalid(format!(
                "the image {location} is in the Ceph cluster {:?}, and the volume is to be in {fsid}: clones cannot cross clusters",
                location.fsid
            )));
        }
        let ImageLocation { pool, namespace, .. } = location;
        let home = self.elsewhere(pool, namespace)?.ok_or_else(|| {
            Error::NotFound(format!("the image {location} is not there: no pool is named {pool:?}"))
        })?;
        home.golden_here(location, request).map_err(|error| match error {
            Error::Rbd(cause) if cause.errno == Errno::EPERM => {
                may_not_clone(location.spec(), pool, namespace, cause)
            }
            other => other,
        })
    }

    fn golden_here(self, location: &ImageLocation, request: &CreateVolume) -> Result<Parent> {
        let image = self.open_golden(location)?;
        let (image_id, info) = (image.id()?, image.info()?);
        let snapshots = image.snapshots()?;
        let Some(snapshot) = find(&snapshots, &location.snapshot).cloned() else {
            return Err(Error::NotFound(format!(
                "the image {location} has no snapshot {:?}; `rbd snap ls` lists those it has",
                location.snapshot
            )));
        };
        let wrong = |why: String| Err(Error::Invalid(format!("the image {location} {why}")));
        if names::is_collectable_snapshot(&snapshot.name) {
            return wrong(
                "names a snapshot that a driver cut for a clone and removes with it: cut one of your own with `rbd snap create`"
                    .to_string(),
            );
        }
        if !info.features.contains(Features::LAYERING) {
            return wrong(
                "lacks the feature layering and cannot be cloned: copy it to a new image with `rbd deep cp --image-feature layering`".to_string(),
            );
        }
        if request.options.clone_format == CloneFormat::V1 && !snapshot.protected {
            let spec = location.spec();
            return wrong(format!(
                "is not protected, which clones of format 1 need, and the driver changes nothing of it: run `rbd snap protect {spec}`, or \
                 use cloneFormat=2"
            ));
        }
        if snapshot.size == 0 {
            return wrong("has no byte, and cannot be cloned".to_string());
        }
        if let Some(format) = disk_format(&*image, &snapshot)? {
            return wrong(format!(
                "holds a file in the format {format}, not the bytes of a disk: import it with `qemu-img convert -O raw`"
            ));
        }
        Ok(Parent {
            size: snapshot.size.next_multiple_of(SECTOR),
            link: self.link_to(&image_id, &snapshot.name),
            snapshots: snapshots.len(),
            snapshot: Some(snapshot),
            stale: None,
            is_golden: true,
            home: self,
            image,
            image_id,
        })
    }

    fn open_golden(&self, location: &ImageLocation) -> Result<Box<dyn Image>> {
        let ImageLocation { pool, namespace, image, .. } = location;
        match self.pool.open_image(ImageKey::Name(image), OpenMode::ReadOnly) {
            Err(error) if error.errno == Errno::ENOENT => {}
            opened => return Ok(opened?),
        }
        let missing = match self.pool.namespace_exists() {
            Ok(false) => format!("the pool {pool:?} has no RADOS namespace {namespace:?}"),
            // A user whose capabilities end with the namespace may not look.
            Err(error) if error.errno != Errno::EPERM => return Err(error.into()),
            Ok(true) | Err(_) if namespace.is_empty() => {
                format!("the pool {pool:?} has no image {image:?}")
            }
            Ok(true) | Err(_) => {
                format!(
                    "the RADOS namespace {namespace:?} of the pool {pool:?} has no image {image:?}"
                )
            }
        };
        Err(Error::NotFound(format!("the image {location} is not there: {missing}")))
    }
}

/// That the user lacks the rights to clone a golden image.
pub(super) fn may_not_clone(
    image: String,
    pool: &str,
    namespace: &str,
    cause: crate::rbd::Error,
) -> Error {
    let (pool, namespace) = (pool.to_string(), namespace.to_string());
    Error::MayNotClone { image, pool, namespace, cause: Box::new(cause), is_begun: false }
}

/// The format of the file that a snapshot holds, where that is not raw.
fn disk_format(image: &dyn Image, snapshot: &Snapshot) -> Result<Option<&'static str>> {
    let mut first = [0; TELLING];
    image.read_at(Some(snapshot.id), 0, &mut first)?;
    let is_it = |(_, offset, bytes): &&(&str, usize, &[u8])| first[*offset..].starts_with(bytes);
    Ok(FORMATS.iter().find(is_it).map(|(format, _, _)| *format))
}
