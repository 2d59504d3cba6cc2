//! What a request for a volume waits for, or is refused for: `cinderblock why`.
//!
//! Nothing is changed. What other processes do can be told as far as they write it down: their
//! leases, publications and notes, and what Ceph knows of the image.

use super::catalogue::State;
use super::{Error, Result, Volumes};
use crate::rbd::{Errno, ImageKey, OpenMode};
use serde::Serialize;

/// Something that stands in the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// What it is: `state`, `lease`, `backup`, `image`, `hold`, `node`, `client` or `journal`.
    pub kind: &'static str,
    /// Who or what, and what to do.
    pub what: String,
}

impl Reason {
    fn new(kind: &'static str, what: impl Into<String>) -> Reason {
        Reason { kind, what: what.into() }
    }
}

impl Volumes {
    /// All that stands in the way of changing, attaching or deleting the volume whose image has the
    /// name `image`. [`Error::NotFound`] when the catalogue knows no such volume.
    pub fn why(&self, image: &str) -> Result<Vec<Reason>> {
        let Some(stored) = self.catalogue.volume(image)? else {
            return Err(Error::NotFound(format!("there is no volume {}", self.spec(image))));
        };
        let record = &stored.record;
        let mut reasons = Vec::new();
        if let Some(what) = in_words(record.state) {
            reasons.push(Reason::new("state", what));
        }
        let (at_work, backup) = self.catalogue.holders(image)?;
        reasons.extend(at_work.map(|lease| {
            Reason::new("lease", format!("an operation is at work on it: {}", lease.describe()))
        }));
        reasons.extend(backup.map(|lease| {
            Reason::new(
                "backup",
                format!("a backup keeps it from being deleted: {}", lease.describe()),
            )
        }));
        for publication in &record.published {
            let what =
                format!("it is published to the node {}: unpublish it there", publication.node);
            reasons.push(Reason::new("node", what));
        }
        for notes in self.catalogue.notes(image)? {
            let notes = notes.notes;
            reasons.extend(notes.clients.into_iter().map(|client| {
                let what =
                    format!("the client {} of the node {} may write", client.address, notes.node);
                Reason::new("client", what)
            }));
        }
        match self.pool.open_image(ImageKey::Name(image), OpenMode::ReadOnly) {
            Ok(opened) => {
                for watcher in opened.watchers()? {
                    let what = format!("the client {} has its image open", watcher.address);
                    reasons.push(Reason::new("client", what));
                }
                match self.refuse_unremovable(&*opened) {
                    Ok(()) => {}
                    Err(Error::FailedPrecondition(what) | Error::Conflict(what)) => {
                        reasons.push(Reason::new("hold", what));
                    }
                    Err(error) => return Err(error),
                }
            }
            Err(error) if error.errno == Errno::ENOENT => {
                let found = self.whereabouts(image, record)?;
                let what = found.unwrap_or_else(|| "its image is not there".to_owned());
                reasons.push(Reason::new("image", what));
            }
            Err(error) => return Err(error.into()),
        }
        let id = record.image_id.as_deref();
        let entries = self.journal.entries()?.into_iter();
        let about_it = entries.filter(|entry| {
            let child = entry.suspect.child.as_ref().map(|child| child.image_id.as_str());
            id.is_some() && (id == Some(entry.suspect.image_id.as_str()) || id == child)
        });
        match about_it.count() {
            0 => {}
            count => reasons.push(Reason::new(
                "journal",
                format!("{count} entries of the journal are about it; a controller settles them, and so does `cinderblock gc --apply`"),
            )),
        }
        Ok(reasons)
    }
}

fn in_words(state: State) -> Option<&'static str> {
    match state {
        State::Ready => None,
        State::Creating => {
            Some("its creation was begun, and is not finished: the same request continues it")
        }
        State::Deleting => {
            Some("its deletion was begun, and is not finished: the sweeper finishes it")
        }
        State::Restoring => {
            Some("it is being filled from a backup: run the same restore again if that was killed")
        }
        State::Returning => Some("it is on the way back from the trash: the sweeper finishes that"),
    }
}
