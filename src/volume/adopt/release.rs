//! Giving back what was adopted: the same image, usable by its former driver again.
//!
//! The journal of ceph-csi is written as it was before the record goes, so nothing is lost when a
//! release is killed: the next one finishes it. A silent parent goes back once no clone of this
//! driver hangs on it.

use super::{
    Adopted, CsiJournal, Error, Kind, Owner, Result, Silent, Snapshot, State, Volume, Volumes,
};
use crate::rbd::{self, ImageKey, OpenMode};
use crate::volume::Suspect;
use crate::volume::catalogue::Stored;
use crate::volume::collect::is_collectable;
use serde::Serialize;

/// Something adopted, and whether it can go back.
#[derive(Debug, Clone, Serialize)]
pub struct Release {
    /// What it is.
    pub kind: Kind,
    /// Its image's name, or the snapshot's.
    pub image: String,
    /// The CSI name.
    pub name: String,
    /// Who gets it.
    pub to: Owner,
    /// Why it stays, if it does.
    pub refused: Option<String>,
    #[serde(skip)]
    stored: Adoption,
}

#[derive(Debug, Clone)]
enum Adoption {
    Volume(Stored<Volume>),
    Snapshot(Stored<Snapshot>, Option<Stored<Silent>>),
}

impl Volumes {
    /// All volumes and snapshots that were adopted.
    pub fn plan_release(&self) -> Result<Vec<Release>> {
        let known = self.known()?;
        let mut found = Vec::new();
        for (image, stored) in &known.volumes {
            let Some(adopted) = &stored.record.adopted else { continue };
            let own: Vec<_> = known
                .snapshots
                .iter()
                .filter(|(_, cut)| cut.record.adopted.is_none())
                .filter(|(_, cut)| Some(&cut.record.image_id) == stored.record.image_id.as_ref())
                .map(|(name, _)| name.as_str())
                .collect();
            let refused = if own.is_empty() {
                self.why_kept(image, &stored.record)?
            } else {
                let own = own.join(", ");
                Some(format!(
                    "its former driver would not know the snapshots made since: delete {own}"
                ))
            };
            found.push(Release {
                kind: Kind::Volume,
                image: image.clone(),
                name: stored.record.name.clone(),
                to: adopted.from,
                refused,
                stored: Adoption::Volume(stored.clone()),
            });
        }
        for (name, stored) in &known.snapshots {
            let Some(adopted) = &stored.record.adopted else { continue };
            let silent = known.silent.get(&stored.record.image_id);
            let silent = silent.filter(|silent| silent.record.image.as_ref() == Some(name));
            let is_ready = stored.record.state == State::Ready;
            found.push(Release {
                kind: Kind::Snapshot,
                image: name.clone(),
                name: stored.record.name.clone(),
                to: adopted.from,
                refused: (!is_ready).then(|| "it is being deleted".to_owned()),
                stored: Adoption::Snapshot(stored.clone(), silent.cloned()),
            });
        }
        Ok(found)
    }

    /// Why a volume cannot go back as it is, if it cannot.
    fn why_kept(&self, image: &str, record: &Volume) -> Result<Option<String>> {
        if record.state != State::Ready {
            return Ok(Some("it is being deleted or restored".to_owned()));
        }
        if let Some(publication) = record.published.first() {
            let node = &publication.node;
            return Ok(Some(format!("it is published to node {node}: unpublish it first")));
        }
        let Some(opened) = self.open_to_adopt(image)? else {
            return Ok(Some("its image is not there".to_owned()));
        };
        if let Some(watcher) = opened.watchers()?.first() {
            return Ok(Some(format!("it is open at {}: stop what uses it", watcher.address)));
        }
        let looks = self.refuse_unchangeable(&*opened).and_then(|()| {
            let (_, is_backed_up) = self.catalogue.volume_and_backup(image)?;
            if is_backed_up { self.refuse_if_backed_up(image) } else { Ok(()) }
        });
        match looks {
            Ok(()) => Ok(None),
            Err(Error::FailedPrecondition(why) | Error::Conflict(why)) => Ok(Some(why)),
            Err(error) => Err(error),
        }
    }

    /// Gives one back, unless it is refused. [`Error::Conflict`] when its record has changed since
    /// the plan was made.
    pub fn release(&self, release: &Release) -> Result<()> {
        if release.refused.is_some() {
            return Ok(());
        }
        match &release.stored {
            Adoption::Volume(stored) => {
                let id = self.pool.image_id(&release.image)?;
                self.give_back(stored.record.adopted.as_ref(), id)?;
                self.catalogue.remove(&release.image, stored)
            }
            Adoption::Snapshot(stored, silent) => {
                let id = Some(stored.record.image_id.clone());
                self.give_back(stored.record.adopted.as_ref(), id)?;
                match silent {
                    Some(silent) => {
                        self.catalogue.remove_snapshot_image(&release.image, stored, silent)
                    }
                    None => self.catalogue.remove(&release.image, stored),
                }
            }
        }
        .map_err(Error::after_a_change)
    }

    /// Writes the journal of the former driver, if it has one, with the id that the image has now.
    fn give_back(&self, adopted: Option<&Adopted>, id: Option<String>) -> Result<()> {
        let Some(journal) = adopted.and_then(|adopted| adopted.journal.as_ref()) else {
            return Ok(());
        };
        let mut journal: CsiJournal = journal.clone();
        if let (Some(known), Some(id)) = (journal.entries.get_mut("csi.imageid"), id) {
            *known = id;
        }
        self.give_journal(&journal)
    }

    /// Gives back the adopted silent parents that no clone of this driver hangs on, and no snapshot
    /// that it lists. Returns their names.
    pub fn release_parents(&self) -> Result<Vec<String>> {
        let mut released = Vec::new();
        loop {
            let before = released.len();
            for (id, stored) in self.known()?.silent {
                if stored.record.adopted.is_none() {
                    continue;
                }
                let image = match self.pool.open_image(ImageKey::Id(&id), OpenMode::ReadOnly) {
                    Ok(image) => image,
                    Err(error) if error.errno == rbd::Errno::ENOENT => continue,
                    Err(error) => return Err(error.into()),
                };
                let mut is_needed = false;
                let snapshots = image.snapshots()?;
                for snapshot in &snapshots {
                    is_needed |= self.is_listed(&id, snapshot)?
                        || self.is_any_ours(&self.clones(&*image, &id, snapshot.id)?)?;
                }
                // One without a snapshot is collected. An image whose snapshot was deleted since it
                // was adopted is nothing that ceph-csi would look for: it stays here.
                let name = image.name()?;
                let is_known_there = stored.record.image.is_none()
                    || name.ends_with(super::ceph_csi::TEMPORARY)
                    || self.pool.trash_get(&id)?.is_some();
                if !is_needed && !snapshots.is_empty() && is_known_there {
                    let volume = super::names::before_silence(&name, &id);
                    self.catalogue.remove(volume, &stored)?;
                    released.push(name);
                }
            }
            if released.len() == before {
                self.suspect_what_released_clones_keep()?;
                return Ok(released);
            }
        }
    }

    /// Writes down the snapshots of silent parents that stay here and whose clones have all been
    /// released: these clones go without a word from now on.
    fn suspect_what_released_clones_keep(&self) -> Result<()> {
        for (id, stored) in self.known()?.silent {
            if stored.record.trash.is_some() {
                continue;
            }
            let image = match self.pool.open_image(ImageKey::Id(&id), OpenMode::ReadOnly) {
                Ok(image) => image,
                Err(error) if error.errno == rbd::Errno::ENOENT => continue,
                Err(error) => return Err(error.into()),
            };
            let image_as_suspect = self.as_suspect(&image.name()?, &id);
            let mut suspects = Vec::new();
            for snapshot in image.snapshots()?.iter().filter(|snapshot| is_collectable(snapshot)) {
                if !self.is_any_ours(&self.clones(&*image, &id, snapshot.id)?)? {
                    let snapshot = Some(snapshot.id);
                    suspects.push(Suspect { snapshot, ..image_as_suspect.clone() });
                }
            }
            self.suspect(&suspects)?;
        }
        Ok(())
    }
}
