//! What a controller does for a pool when it starts: finish the removals a dead one left half-way.

use super::catalogue::{Cursor, Group, Node, Snapshot, State, Volume};
use super::{Result, Volumes};

impl Volumes {
    /// Finishes every deletion that was begun and every group snapshot that was cut, and settles the journal. Creations are left to their retry: whoever asked
    /// for them asks again, or asks for their deletion.
    ///
    /// Reads the whole catalogue; meant for start-up and `cinderblock gc`, not for the way of an RPC. A volume or snapshot
    /// that cannot be finished is logged and left for its own retry. It is finished as it was listed: by the time its turn
    /// comes, another controller may have finished it, and made another of its name.
    pub fn recover(&self) -> Result<()> {
        for (image, stored) in self.catalogue.list::<Volume>(&Cursor::default(), 0)?.0 {
            if stored.record.state == State::Deleting
                && let Err(error) = self.destroy(&image, &stored)
            {
                tracing::warn!(image, %error, "an interrupted deletion is left for its retry");
            }
        }
        for (name, stored) in self.catalogue.list::<Group>(&Cursor::default(), 0)?.0 {
            let finished = match stored.record.state {
                State::Creating => Ok(()),
                State::Ready => self.finish_group(&name, &stored.record),
                State::Deleting => self.delete_recorded_group(&name, &stored),
            };
            if let Err(error) = finished {
                tracing::warn!(name, %error, "an interrupted group snapshot is left for its retry");
            }
        }
        for (name, stored) in self.catalogue.list::<Snapshot>(&Cursor::default(), 0)?.0 {
            if stored.record.state == State::Deleting
                && stored.record.group.is_none()
                && let Err(error) = self.delete_recorded_snapshot(&name, &stored)
            {
                tracing::warn!(name, %error, "an interrupted deletion is left for its retry");
            }
        }
        for (node, _) in self.catalogue.list::<Node>(&Cursor::default(), 0)?.0 {
            if let Err(error) = self.recount(&node) {
                tracing::warn!(node, %error, "the volumes of a node are counted anew when its limit is reached");
            }
        }
        self.collect()
    }
}
