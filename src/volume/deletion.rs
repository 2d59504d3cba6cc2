//! What is done to a volume once its deletion is decided: its image goes, or becomes a silent
//! parent, and its record ends.
//!
//! One that is parked in the [trash](super::trash) becomes a silent parent, too, whatever needs it.
//!
//! Crash points: the record says `deleting` before anything is destroyed and goes last. Links are
//! in the journal before they are cut. The rename to the silent name comes before the note of the
//! silent parent, so a retry looks for the image by its id.

use super::catalogue::{Silent, State, Stored, Volume};
use super::collect::is_collectable;
use super::delete::{Retained, is_kept, is_large};
use super::journal::{Child, Suspect};
use super::trash::note_of_parked;
use super::{Result, Volumes, names, now};
use crate::rbd::{self, Errno, Image, ImageKey, OpenMode, Snapshot, SnapshotKind, Tolerate};

/// The deletion of the volume whose image has the name `image`.
pub(super) struct Deletion<'a> {
    volumes: &'a Volumes,
    image: &'a str,
    stored: Stored<Volume>,
}

/// What became of an image that does not have its volume's name.
enum Settled {
    /// It is a silent parent, and the record has gone.
    Silent(Option<Retained>),
    /// Nothing of it is left, or about to be.
    Unmade,
}

impl<'a> Deletion<'a> {
    /// Writes into the record that the volume is being destroyed. `id` is the image's, where it is
    /// known: a retry finds the image by it under its silent name.
    pub(super) fn begin(
        volumes: &'a Volumes,
        image: &'a str,
        stored: &Stored<Volume>,
        id: Option<&str>,
    ) -> Result<Deletion<'a>> {
        let image_id = id.map(str::to_string).or_else(|| stored.record.image_id.clone());
        // What was never handed out is not parked.
        let was_handed_out = matches!(stored.record.state, State::Ready | State::Deleting);
        let trash_retention = stored.record.trash_retention.filter(|_| was_handed_out);
        let deleting =
            Volume { state: State::Deleting, image_id, trash_retention, ..stored.record.clone() };
        // Only what was handed out can be backed up.
        let stored = if stored.record.state == State::Ready {
            volumes.catalogue.replace_unless_backed_up(image, stored, deleting)?
        } else {
            volumes.catalogue.replace(image, stored, deleting)?
        };
        Ok(Deletion { volumes, image, stored })
    }

    /// The end of an unfinished volume whose name another client's image has.
    pub(super) fn of_unmade(
        volumes: &'a Volumes,
        image: &'a str,
        stored: &Stored<Volume>,
    ) -> Deletion<'a> {
        Deletion { volumes, image, stored: stored.clone() }
    }

    /// Destroys the image `id`, which is `opened`, with these snapshots and their clones. Returns
    /// what its data stay for, if they do. `begun_before` says that an earlier attempt may have
    /// begun to rename it.
    pub(super) fn finish(
        &self,
        opened: Box<dyn Image>,
        id: &str,
        snapshots: &[(Snapshot, Vec<rbd::Child>)],
        begun_before: bool,
    ) -> Result<Option<Retained>> {
        let silent_name = if begun_before { self.begun_silent_name(id)? } else { None };
        let unneeded = self.unneeded(id, snapshots)?;
        if !unneeded.is_empty() {
            let writable = self.volumes.pool.open_image(ImageKey::Id(id), OpenMode::ReadWrite)?;
            for snapshot in &unneeded {
                self.volumes.drop_snapshot(&*writable, id, snapshot)?;
            }
        }
        if unneeded.len() == snapshots.len() && silent_name.is_none() && !self.parks() {
            let mut suspects = self.volumes.links(&*opened, id, &[])?;
            if suspects.is_empty() {
                suspects.extend(self.planned_link(Some(self.volumes.child(id)))?);
            }
            self.volumes.suspect(&suspects)?;
            if is_large(&*opened)? {
                self.volumes.activity.begin_heavy();
            }
            drop(opened);
            match self.volumes.remove_for_good(self.image, id) {
                Ok(()) => return self.end().map(|()| None),
                // A snapshot came meanwhile.
                Err(error) if error.errno == Errno::ENOTEMPTY => {}
                Err(error) => return Err(error.into()),
            }
        }
        let silent_name = silent_name.unwrap_or_else(|| names::silent(self.image));
        match self.volumes.pool.rename_image(self.image, &silent_name) {
            // An earlier volume of this name is silent still.
            Err(error) if error.errno == Errno::EEXIST => {
                let other_name = names::silent_with_id(self.image, id);
                self.volumes.pool.rename_image(self.image, &other_name)?;
            }
            other => other?,
        }
        let renamed = self.volumes.pool.open_image(ImageKey::Id(id), OpenMode::ReadOnly)?;
        self.note_silent(&*renamed, id)
    }

    /// Destroys what there is when no image has the volume's name, or only remains of one: what a
    /// killed create, remove or rename left, or nothing. Returns what its data stay for, if they
    /// do.
    pub(super) fn finish_by_id(&self) -> Result<Option<Retained>> {
        if let Settled::Silent(retained) = self.settle_by_id()? {
            return Ok(retained);
        }
        match &self.stored.record.image_id {
            Some(id) => self.volumes.remove_for_good(self.image, id)?,
            None => self.volumes.remove_image(self.image).tolerate(Errno::ENOENT)?,
        }
        self.end().map(|()| None)
    }

    /// Ends the record. What the volume planned is a suspect.
    pub(super) fn forget(&self) -> Result<()> {
        match self.settle_by_id()? {
            Settled::Silent(_) => Ok(()),
            Settled::Unmade => self.end(),
        }
    }

    /// Whether the volume goes to the trash.
    fn parks(&self) -> bool {
        let record = &self.stored.record;
        record.state == State::Deleting && record.trash_retention.is_some()
    }

    fn end(&self) -> Result<()> {
        self.volumes.catalogue.remove(self.image, &self.stored)
    }

    /// The snapshots that go with the image. Those that are kept for other tools' clones are
    /// suspects: these clones go without a word.
    fn unneeded<'s>(
        &self,
        id: &str,
        snapshots: &'s [(Snapshot, Vec<rbd::Child>)],
    ) -> Result<Vec<&'s Snapshot>> {
        let mut unneeded = Vec::new();
        for (snapshot, clones) in snapshots {
            if is_kept(snapshot) {
                continue;
            }
            if clones.is_empty() {
                if !self.volumes.is_needed_by_a_creation(id, &snapshot.name)? {
                    unneeded.push(snapshot);
                }
            } else if !self.volumes.is_any_ours(clones)? {
                let image = self.volumes.as_suspect(self.image, id);
                self.volumes.suspect(&[Suspect { snapshot: Some(snapshot.id), ..image }])?;
            }
        }
        Ok(unneeded)
    }

    /// The silent name that an interrupted rename of the image has given it beside its old one.
    /// Such an image must not be removed by the old name: the new one would be left.
    fn begun_silent_name(&self, id: &str) -> Result<Option<String>> {
        for name in [names::silent(self.image), names::silent_with_id(self.image, id)] {
            if self.volumes.pool.image_id(&name)?.as_deref() == Some(id) {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// Looks for the volume's image by its id, where it is known, since no image of ours has its
    /// name. One that was made silent is noted as such in place of the record. Whatever else stands
    /// of its links is in the journal then.
    fn settle_by_id(&self) -> Result<Settled> {
        let id = self.stored.record.image_id.as_deref();
        if let Some(id) = id {
            match self.volumes.pool.open_image(ImageKey::Id(id), OpenMode::ReadOnly) {
                Ok(opened) if opened.name()?.ends_with(names::SILENT_SUFFIX) => {
                    return self.note_silent(&*opened, id).map(Settled::Silent);
                }
                // In the trash on its way out, links still standing.
                Ok(opened) => {
                    self.volumes.suspect(&self.volumes.links(&*opened, id, &[])?)?;
                    self.drop_latecomers(&*opened, id)?;
                }
                Err(error) if error.errno == Errno::ENOENT => {}
                Err(error) => return Err(error.into()),
            }
        }
        let child = id.map(|id| self.volumes.child(id));
        self.volumes.suspect(self.planned_link(child)?.as_slice())?;
        Ok(Settled::Unmade)
    }

    /// Removes the snapshots that a creation has cut for its clone while the image was already on
    /// its way out, too late to clone them. Nothing can make such an image a silent parent any
    /// more, and they would keep it from going.
    fn drop_latecomers(&self, image: &dyn Image, id: &str) -> Result<()> {
        let volumes = self.volumes;
        for snapshot in image.snapshots()? {
            if is_collectable(&snapshot) && volumes.clones(image, id, snapshot.id)?.is_empty() {
                let writable = volumes.pool.open_image(ImageKey::Id(id), OpenMode::ReadWrite)?;
                volumes.drop_snapshot(&*writable, id, &snapshot)?;
            }
        }
        Ok(())
    }

    /// Puts the note of a silent parent in place of the record. `renamed` was opened after the
    /// rename: if its last snapshot went before that, the client that removed it saw no silent
    /// parent, and the image is a suspect.
    fn note_silent(&self, renamed: &dyn Image, id: &str) -> Result<Option<Retained>> {
        let mut snapshots = renamed.snapshots()?;
        snapshots.retain(|snapshot| snapshot.kind != SnapshotKind::Mirror);
        let mut retained = Retained { image_id: id.to_string(), ..Retained::default() };
        for snapshot in &snapshots {
            if !is_kept(snapshot) {
                retained.for_clones += 1;
            } else if self.volumes.is_listed(id, snapshot)? {
                retained.snapshots.push(snapshot.name.clone());
            } else {
                let spec = self.volumes.spec(&renamed.name()?);
                retained.by_others.push(format!("{spec}@{}", snapshot.name));
            }
        }
        if retained.snapshots.is_empty() && retained.for_clones == 0 && !self.parks() {
            // Other tools' snapshots go without a word, and one of the driver's may just have gone.
            self.volumes.suspect(&[self.volumes.as_suspect(self.image, id)])?;
        }
        let silent = if self.parks() {
            note_of_parked(&self.stored.record)
        } else {
            Silent {
                volume: self.stored.record.id.clone(),
                deleted: now(),
                trash: None,
                image: None,
                adopted: None,
            }
        };
        self.volumes.catalogue.silence(self.image, &self.stored, id, silent)?;
        Ok((!snapshots.is_empty()).then_some(retained))
    }

    /// The snapshot a creation planned to clone, if it stands: nothing else may remember it.
    fn planned_link(&self, child: Option<Child>) -> Result<Option<Suspect>> {
        let Some(link) = &self.stored.record.link else {
            return Ok(None);
        };
        let Some(home) = self.volumes.elsewhere(&link.pool, &link.namespace)? else {
            return Ok(None);
        };
        let parent = match home.pool.open_image(ImageKey::Id(&link.image_id), OpenMode::ReadOnly) {
            Ok(parent) => parent,
            Err(error) if error.errno == Errno::ENOENT => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let Some(planned) = super::snapshot::find(&parent.snapshots()?, &link.snapshot).cloned()
        else {
            return Ok(None);
        };
        let name = parent.name()?;
        Ok(Some(Suspect {
            snapshot: Some(planned.id),
            child,
            is_foreign: self.volumes.is_foreign_link(link, &name)?,
            ..home.as_suspect(&name, &link.image_id)
        }))
    }
}
