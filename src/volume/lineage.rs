//! Links between images: how deep a chain is, what an image would let go of, and cutting chains
//! short.
//!
//! Links are what librbd answers for the parent of the head and of every snapshot, keyed by ids.
//! Names are never matched: renamed, restored and adopted images would be missed.

use super::catalogue::{Link, State};
use super::collect::is_collectable;
use super::journal::{Child, Suspect};
use super::{Error, Result, Volumes, names};
use crate::rbd::{Errno, Image, ImageKey, OpenMode, Parent, Snapshot, SnapshotId};

/// Ancestors looked at before a chain is simply called too deep. More than the kernel opens.
const DEPTH_BOUND: u32 = 64;

impl Volumes {
    /// How many ancestors the head of `image`, or its snapshot `at`, has, across pools and
    /// namespaces, silent and trashed ones included.
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

    /// Everything that may become unneeded when the image `id` here goes: the parents of its head
    /// and of each of `snapshots`.
    pub(super) fn links(
        &self,
        image: &dyn Image,
        id: &str,
        snapshots: &[Snapshot],
    ) -> Result<Vec<Suspect>> {
        let mut links = Vec::new();
        for at in std::iter::once(None).chain(snapshots.iter().map(|snapshot| Some(snapshot.id))) {
            if let Some(parent) = image.parent(at)? {
                links.push(self.link_suspect(parent, id)?);
            }
        }
        links.sort();
        links.dedup();
        Ok(links)
    }

    /// The suspect that remains when the image `id` here drops its link to `parent`.
    pub(super) fn link_suspect(&self, parent: Parent, id: &str) -> Result<Suspect> {
        let link = Link {
            pool: parent.pool.clone(),
            namespace: parent.namespace.clone(),
            image_id: parent.image_id.clone(),
            snapshot: parent.snapshot.clone(),
        };
        let is_foreign = self.is_foreign_link(&link, &parent.image)?;
        Ok(Suspect { is_foreign, ..Suspect::link(parent, self.child(id)) })
    }

    /// Whether the snapshot that `link` leads to, of an image named `image`, is not this driver's
    /// to collect: a golden image's, or one in a pool where the user may not write the journal.
    /// Those that were cut for clones are its own, whatever their image is named by now.
    pub(super) fn is_foreign_link(&self, link: &Link, image: &str) -> Result<bool> {
        let Link { pool, namespace, image_id, snapshot } = link;
        if names::is_collectable_snapshot(snapshot) {
            return Ok(false);
        }
        let Some(home) = self.elsewhere(pool, namespace)? else { return Ok(true) };
        if !home.is_ours(image, image_id)? {
            return Ok(true);
        }
        Ok(!self.journal.is_of(pool, namespace) && !home.journal.is_writable()?)
    }

    /// The image `id` here as one that drops a link.
    pub(super) fn child(&self, id: &str) -> Child {
        Child {
            pool: self.pool.name().to_string(),
            namespace: self.pool.namespace().to_string(),
            image_id: id.to_string(),
            flattened: false,
        }
    }

    /// Cuts `image`, which is here, off its ancestors, and tells those who wait `why`. Fine when it
    /// has none. What it lets go of is in the journal first; the caller settles it.
    pub(super) fn flatten(&self, image: &dyn Image, spec: &str, why: &str) -> Result<()> {
        let id = image.id()?;
        let mut links = self.links(image, &id, &image.snapshots()?)?;
        for child in links.iter_mut().filter_map(|link| link.child.as_mut()) {
            child.flattened = true;
        }
        self.suspect(&links)?;
        self.activity.begin_heavy();
        self.activity.begin_flattening(spec, why);
        self.flatten_noted(image)
    }

    /// Flattens the volume whose image has the name `image`, because an operator wants that. Says
    /// whether it was a clone. [`Error::NotFound`] when there is no such volume. The caller settles
    /// what it lets go of.
    pub fn flatten_volume(&self, image: &str) -> Result<bool> {
        self.handed_out(image)?;
        let opened = self.pool.open_image(ImageKey::Name(image), OpenMode::ReadWrite)?;
        if opened.parent(None)?.is_none() {
            return Ok(false);
        }
        self.refuse_unchangeable(&*opened)?;
        self.flatten(&*opened, &self.spec(image), "an operator asked for it")?;
        Ok(true)
    }

    /// Flattens an image whose links are in the journal.
    pub(super) fn flatten_noted(&self, image: &dyn Image) -> Result<()> {
        let _flattening = self.begin_flatten(image)?;
        match image.flatten(&mut self.activity.progress()) {
            // Not, or no longer, a clone: another client flattened it.
            Err(error) if error.errno == Errno::EINVAL && image.parent(None)?.is_none() => Ok(()),
            other => Ok(other?),
        }
    }

    /// Sees to it that one more snapshot fits on the image `id`: when it has `most` or more, those
    /// that wait for their removal are removed, and then its oldest clones flattened, until it has
    /// fewer. [`Error::Exhausted`] when that cannot help.
    pub(super) fn make_room(&self, id: &str, spec: &str, most: usize) -> Result<()> {
        let image = self.pool.open_image(ImageKey::Id(id), OpenMode::ReadOnly)?;
        let name = image.name()?;
        let snapshots = image.snapshots()?;
        let mut count = snapshots.len();
        if count < most {
            return Ok(());
        }
        let (mut candidates, mut cloned) = (Vec::new(), Vec::new());
        for snapshot in snapshots.into_iter().filter(is_collectable) {
            let has_clones = !self.clones(&*image, id, snapshot.id)?.is_empty();
            if has_clones { &mut cloned } else { &mut candidates }.push(snapshot);
        }
        candidates.extend(cloned);
        for snapshot in candidates {
            if count < most {
                break;
            }
            self.suspect(&[Suspect { snapshot: Some(snapshot.id), ..self.as_suspect(&name, id) }])?;
            let why = format!(
                "{spec} has as many snapshots as it may ({most}), one of them for this clone"
            );
            self.flatten_clones(&*image, id, &snapshot, &why)?;
            self.settle_own();
            let image = self.pool.open_image(ImageKey::Id(id), OpenMode::ReadOnly)?;
            let left = image.snapshots()?;
            count = left.len();
            if left.iter().any(|left| left.id == snapshot.id)
                && self.clones(&*image, id, snapshot.id)?.is_empty()
                && !self.is_needed_by_a_creation(id, &snapshot.name)?
            {
                // Otherwise a fault would have one clone after another flattened.
                let name = &snapshot.name;
                return Err(Error::Conflict(format!(
                    "the snapshot {name} of {spec} has no clone any more and is not removed yet"
                )));
            }
        }
        if count < most {
            return Ok(());
        }
        Err(Error::Exhausted(format!(
            "{spec} has {count} snapshots and may have {most}, and flattening its clones frees none: delete snapshots of it"
        )))
    }

    /// The clones of a snapshot of the image `id`. None when the snapshot is gone: another
    /// operation may have removed it since it was listed.
    pub(super) fn clones(
        &self,
        image: &dyn Image,
        id: &str,
        snapshot: SnapshotId,
    ) -> Result<Vec<crate::rbd::Child>> {
        match image.children(Some(snapshot)) {
            Err(error) if error.errno == Errno::ENOENT && self.is_gone(id, snapshot)? => {
                Ok(Vec::new())
            }
            other => Ok(other?),
        }
    }

    /// Whether the image `id` has that snapshot no more, or is gone itself.
    pub(super) fn is_gone(&self, id: &str, snapshot: SnapshotId) -> Result<bool> {
        match self.pool.open_image(ImageKey::Id(id), OpenMode::ReadOnly) {
            Ok(image) => Ok(image.snapshots()?.iter().all(|found| found.id != snapshot)),
            Err(error) if error.errno == Errno::ENOENT => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Flattens the clones of a snapshot, but for those whose creation is not finished.
    fn flatten_clones(
        &self,
        image: &dyn Image,
        id: &str,
        snapshot: &Snapshot,
        why: &str,
    ) -> Result<()> {
        for child in self.clones(image, id, snapshot.id)? {
            let Some(home) = self.elsewhere(&child.pool, &child.namespace)? else { continue };
            let record = home.catalogue.volume(&child.image)?;
            if record.is_some_and(|stored| stored.record.state == State::Creating) {
                continue;
            }
            let clone =
                match home.pool.open_image(ImageKey::Id(&child.image_id), OpenMode::ReadWrite) {
                    Ok(clone) => clone,
                    // Deleted since it was listed.
                    Err(error) if error.errno == Errno::ENOENT => continue,
                    Err(error) => return Err(error.into()),
                };
            if clone.hold()?.is_some() {
                continue;
            }
            home.flatten(&*clone, &home.spec(&child.image), why)?;
        }
        Ok(())
    }
}
