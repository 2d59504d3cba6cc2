//! ceph-csi's journal: omap objects in the pool and namespace of the volumes.
//!
//! `csi.volumes.<instance>` and `csi.snaps.<instance>` list the CSI names, each with a uuid, and
//! `csi.volume.<uuid>` or `csi.snap.<uuid>` has the rest. ceph-csi makes the object first and the
//! directory's key second; entries without an image are ordinary leftovers of it.

use super::{CsiJournal, Error, Result, Volumes};
use crate::rbd::{Errno, Guard, OmapUpdate, Tolerate};
use std::collections::BTreeMap;

/// Keys asked for at once.
const PAGE: u64 = 512;

impl Volumes {
    /// All keys of a journal object that are text, with their values. None when it is not there.
    pub(super) fn journal_entries(&self, object: &str) -> Result<BTreeMap<String, String>> {
        let mut found = BTreeMap::new();
        let mut after = String::new();
        loop {
            let page = self.pool.omap_list(object, &after, PAGE)?;
            for (key, value) in page.entries {
                after.clone_from(&key);
                let text = String::from_utf8(value).map_err(|_| {
                    Error::FailedPrecondition(format!(
                        "the key {key} of the RADOS object {object} is no text, so that is no journal of ceph-csi"
                    ))
                })?;
                found.insert(key, text);
            }
            if !page.more {
                return Ok(found);
            }
        }
    }

    /// Whether anything of this is in ceph-csi's hands still.
    pub(super) fn is_in_journal(&self, journal: &CsiJournal) -> Result<bool> {
        let listed = self.pool.omap_get(&journal.directory, &[&journal.key])?;
        if listed.get(&journal.key).is_some_and(|value| value == journal.uuid.as_bytes()) {
            return Ok(true);
        }
        Ok(!self.journal_entries(&journal.object)?.is_empty())
    }

    /// Takes a volume or snapshot out of ceph-csi's hands: its key in the directory, then its
    /// object. Fine when they are gone.
    pub(super) fn take_journal(&self, journal: &CsiJournal) -> Result<()> {
        let CsiJournal { directory, key, uuid, object, .. } = journal;
        let update = OmapUpdate {
            guards: vec![Guard::Equals(key.clone(), uuid.clone().into_bytes())],
            set: vec![],
            remove: vec![key.clone()],
        };
        // Another value is another volume's of the same name.
        self.pool.omap_update(directory, &update).tolerate(Errno::ECANCELED)?;
        Ok(self.pool.remove_object(object).tolerate(Errno::ENOENT)?)
    }

    /// Puts a volume or snapshot back into ceph-csi's hands. Fine when it is there.
    pub(super) fn give_journal(&self, journal: &CsiJournal) -> Result<()> {
        let CsiJournal { directory, key, uuid, object, entries } = journal;
        let set = entries.iter().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
        let update = OmapUpdate { set: set.collect(), ..OmapUpdate::default() };
        self.pool.omap_update(object, &update)?;
        let uuid = uuid.clone().into_bytes();
        let update = OmapUpdate {
            guards: vec![Guard::Absent(key.clone())],
            set: vec![(key.clone(), uuid.clone())],
            remove: vec![],
        };
        match self.pool.omap_update(directory, &update) {
            Err(error) if error.errno == Errno::ECANCELED => {
                let found = self.pool.omap_get(directory, &[key])?;
                if found.get(key) == Some(&uuid) {
                    return Ok(());
                }
                // An object that its directory does not list would pass for ceph-csi's.
                self.pool.remove_object(object).tolerate(Errno::ENOENT)?;
                Err(Error::FailedPrecondition(format!(
                    "ceph-csi has made another volume of that name since: the key {key} of the RADOS object {directory}"
                )))
            }
            other => Ok(other?),
        }
    }
}
