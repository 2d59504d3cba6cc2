//! Links between images: how deep a chain is, what an image would let go of, and cutting chains short.
//!
//! Links are what librbd answers for the parent of the head and of every snapshot, keyed by ids. Names are never matched:
//! renamed, restored and adopted images would be missed.

use super::journal::Suspect;
use super::names;
use super::{Error, Result, Volumes};
use crate::rbd::{Errno, Image, ImageKey, OpenMode, Snapshot, SnapshotId, SnapshotKind};

/// Ancestors looked at before a chain is simply called too deep. More than the kernel opens.
const DEPTH_BOUND: u32 = 64;

impl Volumes {
    /// How many ancestors the head of `image`, or its snapshot `at`, has, across pools and namespaces, silent and trashed
    /// ones included.
    pub fn depth(&self, image: &dyn Image, at: Option<SnapshotId>) -> Result<u32> {
        let mut depth = 0;
        let mut parent = image.parent(at)?;
        while let Some(link) = parent {
            depth += 1;
            if depth >= DEPTH_BOUND {
                break;
            }
            let pool = self.cluster().pool(&link.pool, &link.namespace)?;
            let ancestor = pool.open_image(ImageKey::Id(&link.image_id), OpenMode::ReadOnly)?;
            parent = ancestor.parent(Some(link.snapshot_id))?;
        }
        Ok(depth)
    }

    /// Everything that may become unneeded when `image` goes: the parents of its head and of each of `snapshots`.
    pub(super) fn links(image: &dyn Image, id: &str, snapshots: &[Snapshot]) -> Result<Vec<Suspect>> {
        let mut links = Vec::new();
        for at in std::iter::once(None).chain(snapshots.iter().map(|snapshot| Some(snapshot.id))) {
            if let Some(parent) = image.parent(at)? {
                links.push(Suspect::link(parent, id));
            }
        }
        links.sort();
        links.dedup();
        Ok(links)
    }

    /// Cuts `image` off its ancestors. Fine when it has none. What it lets go of is in the journal first; the caller
    /// collects.
    pub(super) fn flatten(&self, image: &dyn Image, spec: &str) -> Result<()> {
        let id = image.id()?;
        self.journal.add(&Self::links(image, &id, &image.snapshots()?)?)?;
        self.activity.begin(format!("flattening {spec}"));
        match image.flatten(&mut self.activity.progress()) {
            // Not, or no longer, a clone: somebody else flattened it.
            Err(error) if error.errno == Errno::EINVAL && image.parent(None)?.is_none() => Ok(()),
            other => Ok(other?),
        }
    }

    /// Sees to it that one more snapshot fits on the image `id`: when it has `most` or more, its oldest clones are
    /// flattened until it has fewer. [`Error::Exhausted`] when that cannot help.
    pub(super) fn make_room(&self, id: &str, spec: &str, most: usize) -> Result<()> {
        loop {
            let image = self.pool.open_image(ImageKey::Id(id), OpenMode::ReadOnly)?;
            let snapshots = image.snapshots()?;
            if snapshots.len() < most {
                return Ok(());
            }
            let count = snapshots.len();
            let Some(oldest) = oldest_with_clones(&*image, snapshots)? else {
                return Err(Error::Exhausted(format!(
                    "{spec} has {count} snapshots and may have {most}, and no clone of it can be flattened to free one: \
                     delete snapshots of it"
                )));
            };
            for child in image.children(Some(oldest.id))? {
                let pool = self.cluster().pool(&child.pool, &child.namespace)?;
                let clone = pool.open_image(ImageKey::Id(&child.image_id), OpenMode::ReadWrite)?;
                self.flatten(&*clone, &super::image_spec(&child.pool, &child.namespace, &child.image))?;
            }
            drop(image);
            self.collect()?;
            let image = self.pool.open_image(ImageKey::Id(id), OpenMode::ReadOnly)?;
            if image.snapshots()?.len() >= count {
                return Err(Error::Exhausted(format!(
                    "{spec} has {count} snapshots and may have {most}, and flattening the clones of its snapshot {} did \
                     not free it: delete snapshots of it",
                    oldest.name
                )));
            }
        }
    }
}

/// The oldest snapshot that goes away when its clones are flattened.
fn oldest_with_clones(image: &dyn Image, snapshots: Vec<Snapshot>) -> Result<Option<Snapshot>> {
    for snapshot in snapshots {
        let goes_with_its_clones = match &snapshot.kind {
            SnapshotKind::User => names::is_collectable_snapshot(&snapshot.name),
            SnapshotKind::Trash { .. } => true,
            SnapshotKind::Group | SnapshotKind::Mirror => false,
        };
        if goes_with_its_clones && !image.children(Some(snapshot.id))?.is_empty() {
            return Ok(Some(snapshot));
        }
    }
    Ok(None)
}
