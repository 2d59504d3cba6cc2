//! Who writes to an image, and keeping a node that was lost from writing to it ever again.
//!
//! A node that lets go of a volume in good order has closed its image, so nobody watches it then. One that was lost may be
//! frozen, or cut off, with writes in flight: it is let go only when the cluster refuses it. What is refused are the
//! clients that watch this image, by address; nothing else of the node, and nobody who has another image alone. The
//! entries stay: a client taken off the blocklist could go on writing where it stopped.
//!
//! A client whose watch has ended (after half a minute without a sign of life) is not seen here any more. Its exclusive lock, if it
//! has it, is broken by the next client that writes, and that puts it on the blocklist.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Error, Result, Volumes};
use crate::rbd::{Errno, ImageKey, OpenMode};

/// How long a fenced client stays on the blocklist, in seconds: five years. Ceph has no "for ever".
const SECONDS: u32 = 5 * 365 * 24 * 3600;

/// How long clients may take to close an image before they are fenced: the time of a snapshot that another controller
/// happens to cut, or of a note that the node makes.
const GRACE: Duration = Duration::from_secs(2);

/// Clients that have a volume open which the nodes it is published to were to let go of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lingering {
    /// The ids of the nodes.
    pub nodes: BTreeSet<String>,
    /// The addresses of the clients.
    pub addresses: BTreeSet<String>,
}

impl Volumes {
    /// The addresses of the clients that have the image open for writing, this connection's left out. None when there is no
    /// such image.
    pub(super) fn writers(&self, image: &str) -> Result<BTreeSet<String>> {
        let own = self.cluster().address()?;
        let watchers = match self.pool.open_image(ImageKey::Name(image), OpenMode::ReadOnly) {
            Ok(image) => image.watchers()?,
            Err(error) if error.errno == Errno::ENOENT => return Ok(BTreeSet::new()),
            Err(error) => return Err(error.into()),
        };
        Ok(watchers.into_iter().map(|watcher| watcher.address).filter(|address| *address != own).collect())
    }

    /// Who still has the image open that `node`, or any node when `None`, was to let go of, once they had the time to close it.
    /// `None` when nobody has, or the volume is not published there. Where several nodes have the volume, nobody can say whose
    /// client is whose, and none is named.
    pub fn lingering(&self, image: &str, node: Option<&str>) -> Result<Option<Lingering>> {
        let Some(stored) = self.catalogue.volume(image)? else { return Ok(None) };
        let nodes: BTreeSet<_> =
            stored.record.published.into_iter().map(|published| published.node).collect();
        if nodes.is_empty() || node.is_some_and(|node| nodes.iter().any(|published| published != node)) {
            return Ok(None);
        }
        let before = self.writers(image)?;
        if before.is_empty() {
            return Ok(None);
        }
        self.activity.begin(format!("waiting for the clients of {} to let go", self.spec(image)));
        std::thread::sleep(GRACE);
        let addresses: BTreeSet<_> = self.writers(image)?.intersection(&before).cloned().collect();
        Ok((!addresses.is_empty()).then_some(Lingering { nodes, addresses }))
    }

    /// Keeps these clients from writing to anything. Whoever opens the volume from then on sees no later write of theirs.
    pub fn fence(&self, lingering: &Lingering) -> Result<()> {
        for address in &lingering.addresses {
            self.activity.begin(format!("fencing {address}"));
            self.cluster().blocklist(address, SECONDS)?;
        }
        Ok(())
    }

    /// Refuses a volume for one node that somebody has open for writing, whatever the catalogue says.
    pub(super) fn refuse_if_written_to(&self, image: &str) -> Result<()> {
        let writers = self.writers(image)?;
        let Some(first) = writers.first() else { return Ok(()) };
        let all: Vec<_> = writers.iter().map(String::as_str).collect();
        Err(Error::InUse(format!(
            "{} is open for writing at {}, and its access mode allows one node at a time: detach it there. A client that died \
             lets go after 30 seconds. One on a node that is lost is kept from writing by a controller with --fence, or by \
             hand: ceph osd blocklist add {first} {SECONDS}",
            self.spec(image),
            all.join(", ")
        )))
    }
}
