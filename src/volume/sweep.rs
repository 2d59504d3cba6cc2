//! The sweeper: finishes what other operations left half-done, here or in a controller that is
//! dead.
//!
//! An operation settles what it wrote itself, so its cost does not grow with what others left. The
//! sweeper finds everything else. It reads the whole catalogue and the journal: at start-up, every
//! minute, and for `cinderblock gc`. A record that an operation is at work on has a lease, and is
//! left alone.

use super::catalogue::State;
use super::journal::Entry;
use super::{Error, Result, Volumes, now};
use std::time::Duration;

/// How long after it was cut a group snapshot may wait for the operation that cut it.
const FINISHING: i64 = 60;

impl Volumes {
    /// Purges the trash of what is over. Finishes deletions that were begun, group snapshots that were cut, and creations that were
    /// begun longer ago than `patience`: those are undone, for they were never handed out. Returns
    /// the journal, to be given to [`Volumes::settle`].
    ///
    /// What cannot be finished is logged, and left for the next time. It is finished as it was
    /// read: by the time its turn comes, another operation may have finished it, and made another
    /// of its name.
    pub fn sweep(&self, patience: Duration) -> Result<Vec<Entry>> {
        let unfinished = self.catalogue.unfinished()?;
        let is_due = |state: State, created: i64| {
            // A restore that was killed is run again, or its volume deleted.
            state == State::Deleting
                || !matches!(state, State::Restoring | State::Returning)
                    && u64::try_from(now() - created).is_ok_and(|age| age >= patience.as_secs())
        };
        for (image, stored) in &unfinished.volumes {
            if stored.record.state == State::Returning {
                tell(image, self.returned(image, stored.clone()).map(drop));
            } else if is_due(stored.record.state, stored.record.created) {
                tell(image, self.destroy(image, stored).map(drop));
            }
        }
        tell("the trash", self.purge_expired(unfinished.trash));
        for (name, stored) in &unfinished.groups {
            if is_due(stored.record.state, stored.record.created) {
                tell(name, self.delete_recorded_group(name, stored));
            }
        }
        for (name, stored) in &unfinished.snapshots {
            match &stored.record.group {
                Some(group) => tell(group, self.sweep_group_of(group)),
                None if is_due(stored.record.state, stored.record.created) => {
                    tell(name, self.delete_recorded_snapshot(name, stored));
                }
                None => {}
            }
        }
        self.journal.entries()
    }

    /// Finishes a group snapshot that was cut, but not all of whose members say so.
    fn sweep_group_of(&self, group: &str) -> Result<()> {
        match self.catalogue.group(group)? {
            Some(stored)
                if stored.record.state == State::Ready
                    && now() - stored.record.created > FINISHING =>
            {
                self.finish_group(group, &stored.record)
            }
            _ => Ok(()),
        }
    }

    /// What a controller does once when it starts: counts anew the volumes of each node, which
    /// killed requests may have left counted.
    pub fn recount_nodes(&self) -> Result<()> {
        for node in self.catalogue.unfinished()?.nodes {
            tell(&node, self.recount(&node));
        }
        Ok(())
    }
}

/// Logs what is left for the next time, at `debug` where an operation is at work on it.
fn tell(name: &str, outcome: Result<()>) {
    match outcome {
        Ok(()) => {}
        Err(Error::Conflict(why)) => {
            tracing::debug!(name, why, "left to the operation at work on it");
        }
        Err(error) => tracing::warn!(name, %error, "left half-done until the next time"),
    }
}
