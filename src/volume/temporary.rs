//! Images that a transfer makes for itself: the image that an import fills, and the clone that
//! holds the snapshot an export reads.
//!
//! - `<name>.importing` becomes `<name>` when it is whole.
//! - `<image>.<random>.exporting` is a clone of the snapshot that an export has cut. Nothing is
//!   read from it. While it is there the snapshot has a clone, so nothing takes the snapshot for a
//!   leftover.
//!
//! The transfer that makes one has it open for writing until it is renamed or removed. So one
//! without a watcher is left by a process that was killed (its watch ends half a minute later), and
//! goes when [`clear`] finds it: called by the next run and by `cinderblock gc`.

use super::names;
use super::{Result, image_spec};
use crate::rbd::{Errno, Image, ImageKey, OpenMode, Pool, Snapshot, SnapshotKind, Tolerate};

/// Ends the name of an image that is being imported.
pub const IMPORT_SUFFIX: &str = ".importing";
/// Ends the name of the clone that holds an export's snapshot.
pub const EXPORT_SUFFIX: &str = ".exporting";

/// Bytes RBD allows for an image's name.
const NAME_BYTES: usize = 95;

/// The longest name that can be imported to.
pub const IMPORT_NAME_BYTES: usize = NAME_BYTES - IMPORT_SUFFIX.len();

/// What the image `name` is called while it is imported.
pub fn importing(name: &str) -> String {
    format!("{name}{IMPORT_SUFFIX}")
}

/// A new name for the clone that holds a snapshot of `image`.
pub fn exporting(image: &str) -> String {
    let random = uuid::Uuid::new_v4().simple().to_string();
    let room = NAME_BYTES - EXPORT_SUFFIX.len() - 1 - random.len();
    let end = (0..=room.min(image.len())).rev().find(|end| image.is_char_boundary(*end));
    format!("{}.{random}{EXPORT_SUFFIX}", &image[..end.unwrap_or(0)])
}

/// Whether an image of this name is a transfer's.
pub fn is_temporary(name: &str) -> bool {
    name.ends_with(IMPORT_SUFFIX) || name.ends_with(EXPORT_SUFFIX)
}

/// Whether a snapshot of this name was cut for an export.
pub fn is_export_snapshot(name: &str) -> bool {
    name.strip_suffix(names::CLONE_SNAPSHOT_SUFFIX)
        .is_some_and(|clone| clone.ends_with(EXPORT_SUFFIX))
}

/// The names of the snapshots of `image` that were cut for exports, those among them whose removal
/// was interrupted.
pub fn export_snapshots(image: &dyn Image) -> Result<Vec<String>> {
    let names = image.snapshots()?.into_iter().map(|snapshot| cut_as(&snapshot).to_owned());
    Ok(names.filter(|name| is_export_snapshot(name)).collect())
}

/// The name a snapshot was cut with: librbd's removal parks it under another one first.
fn cut_as(snapshot: &Snapshot) -> &str {
    match &snapshot.kind {
        SnapshotKind::Trash { original_name } => original_name,
        _ => &snapshot.name,
    }
}

/// What [`clear`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing, or what has been removed now.
    Nothing,
    /// A whole import, killed while it took its name. It has it now.
    Finished,
    /// An image that a client has open, by its address: the transfer goes on, or was killed less
    /// than half a minute ago.
    Live(String),
}

/// Removes the temporary image `name`, with the snapshot it holds, unless a client has it open.
pub fn clear(pool: &dyn Pool, name: &str) -> Result<Found> {
    let image = match pool.open_image(ImageKey::Name(name), OpenMode::ReadOnly) {
        Ok(image) => image,
        // Nothing, or the remains of a creation, a rename or a removal.
        Err(error) if error.errno == Errno::ENOENT => {
            pool.remove_image(name).tolerate(Errno::ENOENT)?;
            return Ok(Found::Nothing);
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(watcher) = image.watchers()?.first() {
        return Ok(Found::Live(watcher.address.clone()));
    }
    if let Some(real) = name.strip_suffix(IMPORT_SUFFIX)
        && pool.image_id(real)? == Some(image.id()?)
    {
        pool.rename_image(name, real)?;
        return Ok(Found::Finished);
    }
    let parent = image.parent(None)?;
    drop(image);
    match pool.remove_image(name) {
        // Opened since it was looked at.
        Err(error) if error.errno == Errno::EBUSY => {
            return Ok(Found::Live(image_spec(pool.name(), pool.namespace(), name)));
        }
        other => other.tolerate(Errno::ENOENT)?,
    }
    if let Some(parent) = parent.filter(|parent| is_export_snapshot(&parent.snapshot)) {
        let pool = pool.cluster().pool(&parent.pool, &parent.namespace)?;
        match pool.open_image(ImageKey::Id(&parent.image_id), OpenMode::ReadWrite) {
            Ok(image) => drop_export_snapshot(&*image, &parent.snapshot)?,
            Err(error) if error.errno == Errno::ENOENT => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Found::Nothing)
}

/// Removes a snapshot that was cut for an export, if it is there and has no clone.
pub fn drop_export_snapshot(image: &dyn Image, snapshot: &str) -> Result<()> {
    let found = image.snapshots()?.into_iter().find(|found| cut_as(found) == snapshot);
    let Some(found) = found else { return Ok(()) };
    if !image.children(Some(found.id))?.is_empty() {
        return Ok(());
    }
    let removed = match found.kind {
        SnapshotKind::User => image.remove_snapshot(snapshot),
        _ => image.remove_snapshot_by_id(found.id),
    };
    Ok(removed.tolerate(Errno::ENOENT)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_names_fit_and_are_known() {
        assert!(importing(&"n".repeat(IMPORT_NAME_BYTES)).len() <= NAME_BYTES);
        for image in ["a", &"n".repeat(95), &"é".repeat(47)] {
            let name = exporting(image);
            assert!(name.len() <= NAME_BYTES && is_temporary(&name), "{name}");
            assert!(is_export_snapshot(&names::clone_snapshot(&name, 0)), "{name}");
        }
        assert!(is_temporary(&importing("a")));
        assert!(!is_temporary("csi-importing") && !is_export_snapshot("csi-a.clone_snap"));
    }
}
