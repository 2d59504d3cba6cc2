//! The trash: deleted volumes that can be brought back for a while.
//!
//! A volume whose class says so is parked by DeleteVolume. To everything else here it is a silent
//! parent: its image has the silent name, so the volume's own name is free at once, its snapshots
//! stay listed and restorable, and what it is a clone of stays. The note of the silent parent has a
//! [`Trash`] with the volume's record in it, and nothing collects the image while that is there.
//!
//! Crash points:
//!
//! - Parking is a deletion that ends in a silent parent, see `deletion`.
//! - Bringing back puts the volume's record in place of the note, in one atomic change. The record
//!   says `returning` until the image has its name again. Whoever meets such a record finishes that
//!   first: a retry, the sweeper, a request for the volume.
//! - Purging makes the note's time be over, then writes the image into the journal as a suspect,
//!   then takes the [`Trash`] out of the note. A suspect whose note still has one is busy, so it
//!   stays in the journal whatever happens in between; the sweeper purges what is over.

use super::catalogue::{Cursor, Silent, State, Stored, Trash, Volume};
use super::{Error, Result, Volumes, names, now};
use crate::rbd::{Errno, ImageKey, OpenMode};
use serde::Serialize;

/// A volume in the trash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Parked {
    /// The volume id it had, and will have again.
    pub id: String,
    /// The name that its image had.
    pub image: String,
    /// The id of its image, which tells it from others of the same name.
    pub image_id: String,
    /// The CSI name.
    pub name: String,
    /// The claim it was made for, as `namespace/name`, where the request said so.
    pub claim: Option<String>,
    /// Bytes.
    pub size: u64,
    /// Bytes of the objects that it has for itself. `None` when only a look at each would tell, or
    /// the image is gone.
    pub used: Option<u64>,
    /// When it was deleted.
    pub deleted: jiff::Timestamp,
    /// Until when it can be brought back, at least.
    pub until: jiff::Timestamp,
}

impl Volumes {
    /// What is in the trash, in the order of the volumes' ids.
    pub fn trash(&self) -> Result<Vec<Parked>> {
        let mut parked = Vec::new();
        for (image_id, silent) in self.silents()? {
            let Some(Trash { until, record }) = silent.record.trash else { continue };
            parked.push(self.describe(*record, image_id, silent.record.deleted, until)?);
        }
        parked.sort_by(|a, b| (&a.id, a.deleted).cmp(&(&b.id, b.deleted)));
        Ok(parked)
    }

    /// What is out of the trash, and has not its old name yet: an attempt to bring it back was
    /// killed. [`Volumes::take_back`] finishes that.
    pub fn returning(&self) -> Result<Vec<Parked>> {
        let volumes = self.catalogue.list::<Volume>(&Cursor::default(), 0)?.0.into_iter();
        let records = volumes.map(|(_, stored)| stored.record);
        let returning = records.filter(|record| record.state == State::Returning);
        let described = |record: Volume| {
            let image_id = record.image_id.clone().unwrap_or_default();
            self.describe(record, image_id, now(), now())
        };
        returning.map(described).collect()
    }

    fn describe(
        &self,
        record: Volume,
        image_id: String,
        deleted: i64,
        until: i64,
    ) -> Result<Parked> {
        let used = match self.pool.open_image(ImageKey::Id(&image_id), OpenMode::ReadOnly) {
            Ok(image) => super::overview::quickly_used(&*image, &image.info()?)?,
            Err(error) if error.errno == Errno::ENOENT => None,
            Err(error) => return Err(error.into()),
        };
        let time = |second| jiff::Timestamp::from_second(second).unwrap_or_default();
        Ok(Parked {
            image: image_of(&record.id).to_owned(),
            id: record.id,
            image_id,
            name: record.name,
            claim: record.claim,
            size: record.size,
            used,
            deleted: time(deleted),
            until: time(until),
        })
    }

    /// Brings the volume with this image back under its old id, and returns its record.
    ///
    /// [`Error::NotFound`] when it is not in the trash, [`Error::AlreadyExists`] when its name has
    /// been taken since, [`Error::Conflict`] when it is just being purged or brought back; nothing
    /// was changed then.
    pub fn take_back(&self, image_id: &str) -> Result<Volume> {
        let Some((image, silent, trash)) = self.parked(image_id)? else {
            return self.finish_taking_back(image_id);
        };
        let spec = self.spec(&image);
        let taken = |by: &str| {
            Err(Error::AlreadyExists(format!(
                "{spec} is the name of {by} by now: delete or rename that, then bring this one back"
            )))
        };
        if self.catalogue.volume(&image)?.is_some() {
            return taken("another volume");
        }
        if self.pool.image_id(&image)?.is_some_and(|id| id != image_id) {
            return taken("an image of another tool");
        }
        match self.open_unless_migrated(image_id, OpenMode::ReadOnly)? {
            Some(opened) if opened.name()?.ends_with(names::SILENT_SUFFIX) => {}
            Some(opened) => {
                return Err(Error::FailedPrecondition(format!(
                    "another tool has renamed the image {image_id} to {}, or moved it: rename it to {} and try again",
                    opened.name()?,
                    names::silent(&image)
                )));
            }
            None if self.pool.trash_get(image_id)?.is_some_and(|entry| entry.migrating) => {
                return Err(Error::FailedPrecondition(format!(
                    "`rbd migration` moves the image {image_id}, which {spec} was: finish or abort that, then try again"
                )));
            }
            None => {
                return Err(Error::NotFound(format!(
                    "another tool has removed or migrated the image {image_id}, which {spec} was"
                )));
            }
        }
        let record = Volume {
            state: State::Returning,
            image_id: Some(image_id.to_owned()),
            published: Vec::new(),
            ..*trash.record
        };
        let returning = self.catalogue.unsilence(&image, &silent, record)?;
        let returned = self.return_to_name(&image, &returning);
        Ok(returned.map_err(Error::after_a_change)?.record)
    }

    /// Deletes the volume whose image has the name `image`, with the trash keeping it for at least
    /// `retention` seconds when its class does not say for how long. Errors as [`Volumes::delete`],
    /// and [`Error::NotFound`] when there is no such volume.
    pub fn park(&self, image: &str, retention: u64) -> Result<()> {
        let (_, is_backed_up) = self.catalogue.volume_and_backup(image)?;
        if is_backed_up {
            self.refuse_if_backed_up(image)?;
        }
        // The retention is written with the first change of the deletion, so that one which is
        // refused changes nothing.
        let mut stored = self.handed_out(image)?;
        stored.record.trash_retention.get_or_insert(retention);
        self.destroy(image, &stored).map(drop)
    }

    /// The record, after what was begun to bring its volume back from the trash is finished.
    pub(super) fn returned(&self, image: &str, stored: Stored<Volume>) -> Result<Stored<Volume>> {
        if stored.record.state != State::Returning {
            return Ok(stored);
        }
        self.return_to_name(image, &stored).map_err(Error::after_a_change)
    }

    /// Purges the volume with this image from the trash, and settles nothing: the image is
    /// suspect. Fine when it is not there.
    pub fn purge(&self, image_id: &str) -> Result<()> {
        let Some((image, silent, trash)) = self.parked(image_id)? else { return Ok(()) };
        // Over by every clock: one that is behind would take the suspect for one that is kept.
        let silent = if trash.until > 0 {
            let over = Trash { until: 0, ..trash };
            let note = Silent { trash: Some(over), ..silent.record.clone() };
            self.catalogue.replace(&image, &silent, note)?
        } else {
            silent
        };
        let suspected = self.suspect(&[self.as_suspect(&image, image_id)]);
        suspected.map_err(Error::after_a_change)?;
        let note = Silent { trash: None, ..silent.record.clone() };
        self.catalogue.replace(&image, &silent, note).map(drop).map_err(Error::after_a_change)
    }

    /// Purges what has been in the trash for its time.
    pub(super) fn purge_expired(&self, silents: Vec<(String, Stored<Silent>)>) -> Result<()> {
        for (image_id, silent) in silents {
            if silent.record.trash.is_some_and(|trash| trash.until <= now()) {
                self.purge(&image_id)?;
            }
        }
        Ok(())
    }

    /// Gives the image its volume's name, and hands the volume out.
    fn return_to_name(&self, image: &str, returning: &Stored<Volume>) -> Result<Stored<Volume>> {
        let returning = self.catalogue.claim(image, returning)?;
        let id = returning.record.image_id.clone().unwrap_or_default();
        // A rename that was killed may have left the old name beside the new one.
        for silent in [names::silent(image), names::silent_with_id(image, &id)] {
            if self.pool.image_id(&silent)?.as_ref() != Some(&id) {
                continue;
            }
            match self.pool.rename_image(&silent, image) {
                // Another tool took the name just now: back into the trash.
                Err(error) if error.errno == Errno::EEXIST => {
                    let note = note_of_parked(&returning.record);
                    self.catalogue.silence(image, &returning, &id, note)?;
                    return Err(error.into());
                }
                other => other?,
            }
        }
        if self.pool.image_id(image)?.as_ref() != Some(&id) {
            return Err(Error::Conflict(format!(
                "another tool has renamed or migrated the image {id}, which {} was",
                self.spec(image)
            )));
        }
        let ready = Volume { state: State::Ready, ..returning.record.clone() };
        self.catalogue.replace(image, &returning, ready)
    }

    /// [`Volumes::take_back`] of one that an earlier attempt has taken out of the trash.
    fn finish_taking_back(&self, image_id: &str) -> Result<Volume> {
        for (image, stored) in self.catalogue.list::<Volume>(&Cursor::default(), 0)?.0 {
            if stored.record.image_id.as_deref() == Some(image_id) {
                return match stored.record.state {
                    State::Ready | State::Returning => Ok(self.returned(&image, stored)?.record),
                    _ => Err(Error::Conflict(format!("{} is at work", self.spec(&image)))),
                };
            }
        }
        Err(Error::NotFound(format!("no volume with the image {image_id} is in the trash")))
    }

    /// The name that the parked image had, its note, and what that says of the trash.
    fn parked(&self, image_id: &str) -> Result<Option<(String, Stored<Silent>, Trash)>> {
        let found = self.silents()?.into_iter().find(|(id, _)| id == image_id);
        Ok(found.and_then(|(_, silent)| {
            let trash = silent.record.trash.clone()?;
            Some((image_of(&silent.record.volume).to_owned(), silent, trash))
        }))
    }

    /// All silent parents, by their images' ids.
    fn silents(&self) -> Result<Vec<(String, Stored<Silent>)>> {
        Ok(self.catalogue.list(&Cursor::default(), 0)?.0)
    }
}

/// The note that parks a volume, whose image has or is to have its silent name.
pub(super) fn note_of_parked(record: &Volume) -> Silent {
    let retention = record.trash_retention.unwrap_or_default();
    let record = Volume { state: State::Ready, published: Vec::new(), ..record.clone() };
    let until = now().saturating_add(i64::try_from(retention).unwrap_or(i64::MAX));
    Silent {
        volume: record.id.clone(),
        deleted: now(),
        trash: Some(Trash { until, record: Box::new(record) }),
        image: None,
        adopted: None,
    }
}

/// The name of a volume's image: its id ends in it.
fn image_of(volume_id: &str) -> &str {
    volume_id.rsplit('/').next().unwrap_or_default()
}
