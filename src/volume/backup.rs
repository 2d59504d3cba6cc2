//! What keeps a volume while it is backed up: a lease of its own, beside the volume's record.
//!
//! DeleteVolume is told of it ([`Error::Conflict`]), and so is a second backup of the same image.
//! Publishing, growing and snapshots take no notice of it. A backup that was killed is overtaken as
//! any holder of a [lease](super::lease) is.

use super::catalogue::State;
use super::lease::Lease;
use super::{Error, Result, Volumes};
use crate::rbd::OmapUpdate;
use std::sync::Arc;

/// How often the lease is tried to be taken while the volume's record changes.
const ATTEMPTS: usize = 5;

/// The lease of a backup, given back when dropped.
#[derive(Debug)]
pub struct BackupHold(Arc<Lease>);

impl BackupHold {
    /// Makes sure that it is held still. `ESHUTDOWN` or `ECANCELED` when another one has it.
    pub fn renew(&self) -> crate::rbd::Result<()> {
        self.0.change(&OmapUpdate::default(), false)
    }
}

impl Volumes {
    /// Keeps the volume whose image is named `image` from being deleted, and from other backups. An
    /// image that is no volume is kept from other backups alone.
    ///
    /// [`Error::Conflict`] when another backup holds it, [`Error::FailedPrecondition`] when it is
    /// not ready.
    pub fn hold_for_backup(&self, image: &str) -> Result<BackupHold> {
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let (stored, is_backed_up) = self.catalogue.volume_and_backup(image)?;
            if stored.as_ref().is_some_and(|stored| stored.record.state != State::Ready) {
                return Err(Error::FailedPrecondition(format!(
                    "the volume {} is being made, restored or deleted: it cannot be backed up now",
                    self.spec(image)
                )));
            }
            match self.catalogue.hold_for_backup(image, stored.as_ref()) {
                Ok(lease) => return Ok(BackupHold(lease)),
                Err(Error::Conflict(why)) if is_backed_up => {
                    return Err(self.is_backed_up(image, &why));
                }
                // It was published, grown or the like just now.
                Err(error @ Error::Conflict(_)) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| self.catalogue.conflict(image, image)))
    }

    /// Refuses a volume that a backup holds, and ends the hold of one that was killed.
    pub(super) fn refuse_if_backed_up(&self, image: &str) -> Result<()> {
        self.catalogue.end_dead_backup(image).map_err(|error| match error {
            Error::Conflict(why) => self.is_backed_up(image, &why),
            other => other,
        })
    }

    fn is_backed_up(&self, image: &str, why: &str) -> Error {
        Error::Conflict(format!("{} is being backed up: {why}", self.spec(image)))
    }
}
