//! ControllerPublishVolume and ControllerUnpublishVolume: who has a volume is in its record.
//!
//! Each is one guarded write, so two controllers cannot hand a single-writer volume to two nodes.

use super::catalogue::{Publication, State, Volume};
use super::{Error, Result, Volumes};

/// A request to attach a volume to a node.
#[derive(Debug, Clone)]
pub struct PublishVolume {
    /// Name of the volume's image.
    pub image: String,
    /// What is to be recorded.
    pub publication: Publication,
}

impl Volumes {
    /// Records the node and returns the volume's record.
    ///
    /// [`Error::NotFound`] when there is no such volume, [`Error::AlreadyExists`] when this node has it under another
    /// capability, [`Error::FailedPrecondition`] naming the node that has it when it may not be shared.
    pub fn publish(&self, request: &PublishVolume) -> Result<Volume> {
        let spec = self.spec(&request.image);
        let stored = self
            .catalogue
            .volume(&request.image)?
            .filter(|stored| stored.record.state == State::Ready)
            .ok_or_else(|| Error::NotFound(format!("the volume {spec} does not exist")))?;
        let wanted = &request.publication;
        for publication in &stored.record.published {
            if publication == wanted {
                return Ok(stored.record);
            }
            if publication.node == wanted.node {
                return Err(Error::AlreadyExists(format!(
                    "{spec} is published to node {} already, with another capability or readonly flag: unpublish it first",
                    wanted.node
                )));
            }
            if !(publication.shared && wanted.shared) {
                return Err(Error::FailedPrecondition(format!(
                    "{spec} is published to node {} and its access mode allows one node at a time: unpublish it there first",
                    publication.node
                )));
            }
        }
        let mut record = stored.record.clone();
        record.published.push(wanted.clone());
        Ok(self.catalogue.replace(&request.image, &stored, record)?.record)
    }

    /// Forgets that `node` has the volume, or that any node has when `None`. Fine when it, or the volume, is gone.
    pub fn unpublish(&self, image: &str, node: Option<&str>) -> Result<()> {
        let Some(stored) = self.catalogue.volume(image)? else {
            return Ok(());
        };
        let mut record = stored.record.clone();
        record.published.retain(|publication| node.is_some_and(|node| publication.node != node));
        self.catalogue.replace(image, &stored, record)?;
        Ok(())
    }
}
