//! Keeping a node that was lost from writing to a volume ever again.
//!
//! A node that lets go of a volume in good order has closed its image and removed its
//! [notes](crate::notes). One that was lost may be frozen, or cut off, with writes in flight, and
//! its watch on the image ends after half a minute. So the notes decide: the clients in them go on
//! Ceph's blocklist, by address, and the volume is released after the OSD map with those entries is
//! there. Nothing else of the node is fenced, and no watcher without a note. The entries stay: a
//! client taken off the blocklist could go on writing where it stopped.
//!
//! What a version before notes published has none. There the clients are fenced that watch the
//! image and do not close it.
//!
//! Crash points: before, between and after the entries of the blocklist. The volume is published
//! until the last write, and the same request fences again what it finds noted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::catalogue::{Stored, StoredNotes, Volume};
use super::{Error, Result, Volumes};
use crate::metrics::metrics;
use crate::notes::FENCED_SECONDS;
use crate::rbd::{Errno, ImageKey, OpenMode};

/// How long clients without notes may take to close an image before they are fenced: the time of a
/// snapshot that another controller happens to cut, or of a mark that the node sets.
const GRACE: Duration = Duration::from_secs(2);

/// A volume that nodes are to release, as it was found.
#[derive(Debug)]
pub struct Leaving {
    /// The clients that may write, by the ids of the nodes they are on. Empty when the nodes let go
    /// in good order.
    pub clients: BTreeMap<String, BTreeSet<String>>,
    pub(super) image: String,
    pub(super) nodes: BTreeSet<String>,
    pub(super) stored: Stored<Volume>,
    pub(super) notes: Vec<StoredNotes>,
}

impl Leaving {
    /// The addresses of all clients that may write.
    pub fn addresses(&self) -> BTreeSet<&str> {
        self.clients.values().flatten().map(String::as_str).collect()
    }
}

impl Volumes {
    /// What `node`, or every node when `None`, is to release of a volume; `None` when the volume is
    /// not published there. With `look`, the clients of publications without a token are those that
    /// watch the image and do not close it.
    pub fn leaving(&self, image: &str, node: Option<&str>, look: bool) -> Result<Option<Leaving>> {
        let Some(stored) = self.catalogue.volume(image)? else { return Ok(None) };
        let found = stored
            .record
            .published
            .iter()
            .filter(|publication| node.is_none_or(|node| publication.node == node));
        let nodes: BTreeSet<_> =
            found.clone().map(|publication| publication.node.clone()).collect();
        if nodes.is_empty() {
            return Ok(None);
        }
        let entries = self.catalogue.notes_of(image, nodes.iter().map(String::as_str))?;
        let addresses = |stored: &StoredNotes| -> BTreeSet<_> {
            stored.notes.clients.iter().map(|client| client.address.clone()).collect()
        };
        let mut clients: BTreeMap<_, _> =
            entries.iter().map(|stored| (stored.notes.node.clone(), addresses(stored))).collect();
        clients.retain(|_, addresses| !addresses.is_empty());
        let has_notes = |token: &String| entries.iter().any(|stored| stored.notes.token == *token);
        let without: Vec<_> = found
            .filter(|publication| !publication.token.as_ref().is_some_and(has_notes))
            .map(|publication| publication.node.clone())
            .collect();
        if !without.is_empty() {
            tracing::warn!(
                image = self.spec(image),
                nodes = ?without,
                "the volume was published by a version of the driver that notes no clients: a lost node whose watch has ended is \
                 not fenced"
            );
            if look && stored.record.published.len() == nodes.len() {
                let lingering = self.lingering(image)?;
                if !lingering.is_empty() {
                    clients.extend(without.into_iter().map(|node| (node, lingering.clone())));
                }
            }
        }
        Ok(Some(Leaving { clients, image: image.to_string(), nodes, stored, notes: entries }))
    }

    /// Keeps these clients from writing to anything. A client that connects afterwards sees no
    /// later write of theirs.
    pub fn fence<'a>(&self, addresses: impl IntoIterator<Item = &'a str>) -> Result<()> {
        for address in addresses {
            self.activity.begin(format!("fencing {address}"));
            self.cluster().blocklist(address, FENCED_SECONDS)?;
            metrics().client_fenced("node");
        }
        Ok(())
    }

    /// Refuses a volume for one node that a client has open for writing, whatever the catalogue
    /// says.
    pub(super) fn refuse_if_written_to(&self, image: &str) -> Result<()> {
        let writers = self.writers(image)?;
        let Some(first) = writers.first() else { return Ok(()) };
        let all: Vec<_> = writers.iter().map(String::as_str).collect();
        Err(Error::InUse(format!(
            "{} is open for writing at {}, which is no client of a node that the volume is published to, and its access mode \
             allows one node at a time: detach it there. A client that died lets go after 30 seconds. One that is lost is \
             kept from writing by: ceph osd blocklist add {first} {FENCED_SECONDS}",
            self.spec(image),
            all.join(", ")
        )))
    }

    /// The addresses of the clients that have the image open for writing, those of this process
    /// left out. None when there is no such image.
    fn writers(&self, image: &str) -> Result<BTreeSet<String>> {
        let watchers = match self.pool.open_image(ImageKey::Name(image), OpenMode::ReadOnly) {
            Ok(image) => image.watchers()?,
            Err(error) if error.errno == Errno::ENOENT => return Ok(BTreeSet::new()),
            Err(error) => return Err(error.into()),
        };
        Ok(self.strangers(&watchers)?.into_iter().collect())
    }

    /// The clients that still have the image open once they had the time to close it.
    fn lingering(&self, image: &str) -> Result<BTreeSet<String>> {
        let before = self.writers(image)?;
        if before.is_empty() {
            return Ok(before);
        }
        self.activity.begin(format!("waiting for the clients of {} to let go", self.spec(image)));
        std::thread::sleep(GRACE);
        Ok(self.writers(image)?.intersection(&before).cloned().collect())
    }
}
