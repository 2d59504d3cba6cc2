//! ControllerPublishVolume and ControllerUnpublishVolume: who has a volume is in its record.
//!
//! Each is one guarded write, so two controllers cannot hand a single-writer volume to two nodes.
//! The write that publishes a volume gives the node a token to [note](crate::notes) its clients
//! with; the one that unpublishes it takes token and notes away. Where the number of volumes on a
//! node is limited, they are counted in a record per node, each before its own record says that it
//! is published. What a killed request leaves counted is not published, and is left out when the
//! limit is reached.

use super::catalogue::{Node, Publication, StoredNotes};
use super::fence::Leaving;
use super::{Error, Result, Volumes, now};
use crate::notes::{Notes, Place};

/// Seconds after which a volume that was counted, but is not published, is not about to be either.
const SETTLED: i64 = 600;
/// How often a node's record is tried to be written while others write it too.
const ATTEMPTS: usize = 20;

/// A request to attach a volume to a node.
#[derive(Debug, Clone)]
pub struct PublishVolume {
    /// Name of the volume's image.
    pub image: String,
    /// What is to be recorded, without a token.
    pub publication: Publication,
    /// The capability's digest as a version before would have recorded it.
    pub older_capability: String,
    /// How many volumes of this pool and namespace the node may have, if that is limited.
    pub limit: Option<u32>,
    /// Whether clients may be fenced.
    pub fence: bool,
}

impl PublishVolume {
    /// Whether the volume was published as this asks for.
    fn is_repeated_for(&self, publication: &Publication) -> bool {
        let wanted = &self.publication;
        (&publication.node, publication.readonly, publication.shared)
            == (&wanted.node, wanted.readonly, wanted.shared)
            && [&wanted.capability, &self.older_capability].contains(&&publication.capability)
    }
}

impl Volumes {
    /// Records the node and returns where it notes its clients; `None` when a version before notes
    /// published the volume to it.
    ///
    /// [`Error::NotFound`] when there is no such volume, [`Error::AlreadyExists`] when this node
    /// has it under another capability, [`Error::InUse`] naming the node that has it when it may
    /// not be shared, or the clients that have its image open for writing, [`Error::Exhausted`]
    /// when the node has as many volumes as it may.
    pub fn publish(&self, request: &PublishVolume) -> Result<Option<Place>> {
        let spec = self.spec(&request.image);
        let stored = self.handed_out(&request.image)?;
        let wanted = &request.publication;
        for publication in &stored.record.published {
            if request.is_repeated_for(publication) {
                let place = |token: &String| {
                    self.catalogue.notes_place(&request.image, &wanted.node, token)
                };
                return Ok(publication.token.as_ref().map(place));
            }
            if publication.node == wanted.node {
                return Err(Error::AlreadyExists(format!(
                    "{spec} is published to node {} already, with another capability or readonly flag: unpublish it first",
                    wanted.node
                )));
            }
            if !(publication.shared && wanted.shared) {
                return Err(Error::InUse(format!(
                    "{spec} is published to node {} and its access mode allows one node at a time: unpublish it there first",
                    publication.node
                )));
            }
        }
        let left = self.left_behind(&request.image, &stored.record.published, request.fence)?;
        if !wanted.shared {
            self.refuse_if_written_to(&request.image)?;
        }
        if let Some(limit) = request.limit {
            self.count_in(&wanted.node, &request.image, limit)?;
        }
        let token = uuid::Uuid::new_v4().to_string();
        let mut record = stored.record.clone();
        record.published.push(Publication {
            counted: request.limit.is_some(),
            token: Some(token.clone()),
            ..wanted.clone()
        });
        let notes = Notes::new(&wanted.node, &token);
        self.catalogue.publish(&request.image, &stored, record, &notes, &left)?;
        Ok(Some(self.catalogue.notes_place(&request.image, &wanted.node, &token)))
    }

    /// The notes of nodes that the volume is not published to, with their clients fenced. A version
    /// before notes leaves them when it unpublishes a volume that this one published.
    pub(super) fn left_behind(
        &self,
        image: &str,
        published: &[Publication],
        fence: bool,
    ) -> Result<Vec<StoredNotes>> {
        let mut left = self.catalogue.notes(image)?;
        left.retain(|stored| {
            !published
                .iter()
                .any(|publication| publication.token.as_ref() == Some(&stored.notes.token))
        });
        let clients = left.iter().flat_map(|stored| &stored.notes.clients);
        let addresses: Vec<_> = clients.map(|client| client.address.as_str()).collect();
        if fence {
            self.fence(addresses)?;
        } else if !addresses.is_empty() {
            tracing::warn!(
                image = self.spec(image),
                ?addresses,
                "clients of an earlier publication are not fenced"
            );
        }
        Ok(left)
    }

    /// Forgets that nodes have the volume, and their notes, in one write. [`Error::Conflict`] when
    /// the volume, or what is noted of its clients, is not as it was found.
    pub fn unpublish(&self, leaving: Leaving) -> Result<()> {
        let Leaving { image, nodes, stored, notes, .. } = leaving;
        let mut record = stored.record.clone();
        let gone: Vec<_> = record
            .published
            .extract_if(.., |publication| nodes.contains(&publication.node))
            .collect();
        self.catalogue.unpublish(&image, &stored, record, &notes)?;
        for publication in gone.iter().filter(|publication| publication.counted) {
            self.count_out(&publication.node, &image)?;
        }
        Ok(())
    }

    /// Counts the volume among those of the node, unless it has `limit` already.
    fn count_in(&self, node: &str, image: &str, limit: u32) -> Result<()> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        self.change_node(node, |mut record| {
            if record.volumes.contains_key(image) {
                return Ok(record);
            }
            if record.volumes.len() >= limit {
                record = self.without_leftovers(node, record)?;
            }
            if record.volumes.len() >= limit {
                return Err(Error::Exhausted(format!(
                    "node {node} has {} volumes in {} and may have {limit} (--max-volumes-per-node): unpublish one there first",
                    record.volumes.len(),
                    self.spec("").trim_end_matches('/')
                )));
            }
            record.volumes.insert(image.to_string(), now());
            Ok(record)
        })
    }

    fn count_out(&self, node: &str, image: &str) -> Result<()> {
        self.change_node(node, |mut record| {
            record.volumes.remove(image);
            Ok(record)
        })
    }

    /// Forgets what killed requests left counted on the node.
    pub(super) fn recount(&self, node: &str) -> Result<()> {
        self.change_node(node, |record| self.without_leftovers(node, record))
    }

    /// What the node really has, and what it may be about to have.
    fn without_leftovers(&self, node: &str, mut record: Node) -> Result<Node> {
        for (image, counted) in record.volumes.clone() {
            let stored = self.catalogue.volume(&image)?;
            let published = stored.is_some_and(|stored| {
                stored.record.published.iter().any(|publication| publication.node == node)
            });
            if !published && now() - counted > SETTLED {
                record.volumes.remove(&image);
            }
        }
        Ok(record)
    }

    /// Changes a node's record, which others may be changing too. One without volumes goes.
    fn change_node(&self, node: &str, change: impl Fn(Node) -> Result<Node>) -> Result<()> {
        let mut attempts = 0;
        loop {
            let stored = self.catalogue.node(node)?;
            let record =
                change(stored.as_ref().map(|stored| stored.record.clone()).unwrap_or_default())?;
            let written = match stored {
                Some(stored) if record.volumes.is_empty() => self.catalogue.remove(node, &stored),
                Some(stored) => self.catalogue.replace(node, &stored, record).map(drop),
                None if record.volumes.is_empty() => Ok(()),
                None => self.catalogue.insert_node(node, record).map(drop),
            };
            attempts += 1;
            match written {
                Err(Error::Conflict(_)) if attempts < ATTEMPTS => {}
                other => return other,
            }
        }
    }
}
