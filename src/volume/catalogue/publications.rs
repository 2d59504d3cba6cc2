//! Publications and their [notes](crate::notes), which are in the same RADOS object as the volume's
//! record, so that both change in one write.

use super::{Catalogue, PAGE, Stored, Volume};
use crate::notes::{self, Notes, Place};
use crate::rbd::{Guard, OmapUpdate};
use crate::volume::{Error, Result};

/// The notes of one node on one volume as they were read, which later writes are guarded by.
#[derive(Debug, Clone)]
pub struct StoredNotes {
    /// The notes.
    pub notes: Notes,
    key: String,
    bytes: Vec<u8>,
}

impl Catalogue {
    /// Replaces a volume's record, which publishes it to a node that notes its clients from then
    /// on, and removes the notes `old` of others.
    pub fn publish(
        &self,
        image: &str,
        stored: &Stored<Volume>,
        record: Volume,
        new: &Notes,
        old: &[StoredNotes],
    ) -> Result<()> {
        let key = notes::key(image, &new.node);
        let mut also = without(old);
        also.remove.retain(|removed| *removed != key);
        if !old.iter().any(|old| old.key == key) {
            also.guards.push(Guard::Absent(key.clone()));
        }
        also.set.push((key, new.bytes()));
        self.replace_with(image, stored, record, also).map(drop)
    }

    /// Replaces a volume's record, which unpublishes it, and removes `notes`, both in one write.
    /// [`Error::Conflict`] when either has changed since it was read.
    pub fn unpublish(
        &self,
        image: &str,
        stored: &Stored<Volume>,
        record: Volume,
        notes: &[StoredNotes],
    ) -> Result<()> {
        if notes.is_empty() {
            return self.replace(image, stored, record).map(drop);
        }
        self.replace_with(image, stored, record, without(notes)).map(drop)
    }

    /// Where the node `node` notes its clients of a volume.
    pub fn notes_place(&self, image: &str, node: &str, token: &str) -> Place {
        Place { object: self.home(image), key: notes::key(image, node), token: token.to_string() }
    }

    /// The notes of these nodes on a volume, as far as there are any.
    pub fn notes_of<'a>(
        &self,
        image: &str,
        nodes: impl Iterator<Item = &'a str>,
    ) -> Result<Vec<StoredNotes>> {
        let keys: Vec<_> = nodes.map(|node| notes::key(image, node)).collect();
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let object = self.home(image);
        let keys: Vec<_> = keys.iter().map(String::as_str).collect();
        let found = self.pool.omap_get(&object, &keys)?;
        found.into_iter().map(|(key, bytes)| parse_notes(&object, key, bytes)).collect()
    }

    /// All notes on a volume.
    pub fn notes(&self, image: &str) -> Result<Vec<StoredNotes>> {
        let object = self.home(image);
        let prefix = notes::prefix(image);
        let mut found = Vec::new();
        let mut after = prefix.clone();
        loop {
            let page = self.pool.omap_list(&object, &after, PAGE)?;
            for (key, bytes) in page.entries {
                if !key.starts_with(&prefix) {
                    return Ok(found);
                }
                after.clone_from(&key);
                found.push(parse_notes(&object, key, bytes)?);
            }
            if !page.more {
                return Ok(found);
            }
        }
    }
}

/// The change that removes notes which must still be as they were read.
fn without(notes: &[StoredNotes]) -> OmapUpdate {
    OmapUpdate {
        guards: notes.iter().map(|old| Guard::Equals(old.key.clone(), old.bytes.clone())).collect(),
        set: vec![],
        remove: notes.iter().map(|old| old.key.clone()).collect(),
    }
}

fn parse_notes(object: &str, key: String, bytes: Vec<u8>) -> Result<StoredNotes> {
    match Notes::parse(&bytes) {
        Ok(notes) => Ok(StoredNotes { notes, key, bytes }),
        Err(why) => Err(Error::FailedPrecondition(format!(
            "the notes {key} in the RADOS object {object} say which clients may write to a volume, and what is there {why}; \
             nothing was changed"
        ))),
    }
}
