//! Cloning a snapshot: `rbd_clone3`, and what librbd must not be asked for.

use std::sync::Arc;

use super::call::c_string;
use super::directory;
use super::handle::Handle;
use super::ioctx::Ioctx;
use super::options::RawOptions;
use super::sys::rbd_clone3;
use crate::rbd::{
    CloneFormat, Errno, Error, Features, ImageKey, ImageOptions, OpenMode, Result, SnapshotKind,
    SnapshotSpec,
};

const CALL: &str = "rbd_clone3";

/// [`clone_image`](crate::rbd::Pool::clone_image) into the pool of `ioctx`.
pub(super) fn clone_image(
    ioctx: &Arc<Ioctx>,
    parent: &SnapshotSpec,
    name: &str,
    options: &ImageOptions,
) -> Result<()> {
    let raw_options = RawOptions::for_clone(options)?;
    let parent_ioctx = Arc::new(Ioctx::open(ioctx.connection(), &parent.pool, &parent.namespace)?);
    let (image, snapshot) = (c_string(&parent.image, CALL)?, c_string(&parent.snapshot, CALL)?);
    let c_name = c_string(name, CALL)?;
    let object = || {
        let parent = format!("{}@{}", parent_ioctx.spec(&parent.image), parent.snapshot);
        format!("{} from {parent}", ioctx.spec(name))
    };
    let same_namespace = parent.namespace == ioctx.namespace();
    if let Some(errno) = refusal(&parent_ioctx, parent, same_namespace, options)? {
        return Err(Error::new(errno, CALL, object()));
    }
    let is_there = || directory::has_header(&parent_ioctx, ImageKey::Name(&parent.image));
    directory::insist(is_there, || {
        // SAFETY: both contexts, the NUL-terminated names and the options are valid for the call.
        let code = unsafe {
            rbd_clone3(
                parent_ioctx.raw(),
                image.as_ptr(),
                snapshot.as_ptr(),
                ioctx.raw(),
                c_name.as_ptr(),
                raw_options.raw(),
            )
        };
        ioctx.check(code, CALL, object).map(drop)
    })
}

/// What librbd would say of a clone that it refuses for the parent that it has just opened. librbd
/// closes that parent on one thread and goes on to use it on another: under load the process
/// aborts, or no call over the connection returns any more (`clone-refused` in
/// `tests/librbd/faults.c`).
fn refusal(
    parent_ioctx: &Arc<Ioctx>,
    parent: &SnapshotSpec,
    same_namespace: bool,
    options: &ImageOptions,
) -> Result<Option<Errno>> {
    let layering = options.features.is_none_or(|features| features.contains(Features::LAYERING));
    let protection = options.clone_format == CloneFormat::V1 && same_namespace;
    if layering && !protection {
        return Ok(None);
    }
    // What is missing librbd tells by itself.
    let key = ImageKey::Name(&parent.image);
    let image = match Handle::open(parent_ioctx, key, OpenMode::ReadOnly) {
        Err(error) if error.errno == Errno::ENOENT => return Ok(None),
        image => image?,
    };
    let snapshots = image.snapshots()?;
    let Some(snapshot) = snapshots
        .iter()
        .find(|snapshot| snapshot.kind == SnapshotKind::User && snapshot.name == parent.snapshot)
    else {
        return Ok(None);
    };
    Ok(if !image.info()?.features.contains(Features::LAYERING) {
        Some(Errno::ENOSYS)
    } else if protection && !snapshot.protected {
        Some(Errno::EINVAL)
    } else if !layering {
        Some(Errno::ENOSYS)
    } else {
        None
    })
}
