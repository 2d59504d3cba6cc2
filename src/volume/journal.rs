//! The journal of suspects: images and snapshots that may have lost their reason to exist.
//!
//! Record before drop, collect after. Whatever is about to cut a link to a parent snapshot writes
//! that link here first, so that a process killed at any later point leaves the knowledge behind;
//! `collect` looks at each suspect and forgets it only when it is settled. An entry that was
//! written for a drop that never happened is harmless: its link still stands, and it is settled
//! when that link goes.
//!
//! Suspects live where their image does, but for foreign ones: entries are keys of one RADOS omap
//! object (`cinderblock.<instance>.journal`) in that pool and namespace, so that a controller that
//! is about to drop a snapshot finds all that is known of it.

use super::Result;
use super::catalogue::Unreadable;
use crate::rbd::{Guard, OmapUpdate, Parent, Pool, SnapshotId};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

const PAGE: u64 = 512;

/// An image, or one snapshot of it, that may be unneeded once a link or a snapshot is gone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Suspect {
    /// Pool of the image.
    pub pool: String,
    /// RADOS namespace of the image.
    pub namespace: String,
    /// Id of the image.
    pub image_id: String,
    /// Name of the image when the entry was written.
    pub image: String,
    /// The snapshot whose child is being dropped; `None` when the image itself is the suspect.
    pub snapshot: Option<SnapshotId>,
    /// The image that drops its link to the snapshot, if it is known.
    pub child: Option<Child>,
    /// Whether the image is not the driver's to change. Then the entry is only there to finish the
    /// flatten of `child`, and lives where that one does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_foreign: bool,
}

/// An image that drops its link to a suspect.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Child {
    /// Its pool.
    pub pool: String,
    /// Its RADOS namespace.
    pub namespace: String,
    /// Its id.
    pub image_id: String,
    /// Whether it drops the link because it is flattened. librbd takes it off the snapshot's list
    /// before it cuts the link: killed in between, the child still needs a snapshot that looks
    /// childless.
    pub flattened: bool,
}

impl Suspect {
    /// The suspect that remains when `child` drops its link to `parent`.
    pub fn link(parent: Parent, child: Child) -> Suspect {
        Suspect {
            pool: parent.pool,
            namespace: parent.namespace,
            image_id: parent.image_id,
            image: parent.image,
            snapshot: Some(parent.snapshot_id),
            child: Some(child),
            is_foreign: false,
        }
    }

    /// The pool and the RADOS namespace that its entry lives in.
    pub(super) fn home(&self) -> (&str, &str) {
        match &self.child {
            Some(child) if self.is_foreign => (&child.pool, &child.namespace),
            _ => (&self.pool, &self.namespace),
        }
    }

    fn key(&self) -> String {
        let snapshot = self.snapshot.map(|id| id.to_string()).unwrap_or_default();
        let child = self.child.as_ref().map_or("", |child| child.image_id.as_str());
        format!("{}@{snapshot}#{child}", self.image_id)
    }
}

/// A suspect as it stands in a journal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    /// The suspect.
    pub suspect: Suspect,
    /// As it is written.
    bytes: Vec<u8>,
}

impl Entry {
    /// An entry to be written.
    pub fn new(suspect: Suspect) -> Entry {
        Entry { bytes: written(&suspect), suspect }
    }

    /// When it was written, in seconds since 1970 by the clock of that controller. `None` for one
    /// of a version that wrote no time.
    pub fn since(&self) -> Option<i64> {
        serde_json::from_slice::<Versioned>(&self.bytes).ok().and_then(|versioned| versioned.since)
    }

    /// The image that it is about: its pool, namespace and id.
    pub fn image(&self) -> (String, String, String) {
        let Suspect { pool, namespace, image_id, .. } = &self.suspect;
        (pool.clone(), namespace.clone(), image_id.clone())
    }
}

#[derive(Serialize, Deserialize)]
struct Versioned {
    version: u32,
    /// Differs between two entries of one suspect, so that settling the first never forgets the
    /// second.
    written: String,
    /// When it was written, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    since: Option<i64>,
    #[serde(flatten)]
    suspect: Suspect,
}

/// A suspect in the form it is written in.
pub(crate) fn written(suspect: &Suspect) -> Vec<u8> {
    let written = uuid::Uuid::new_v4().simple().to_string();
    let since = Some(super::now());
    let versioned = Versioned { version: 1, written, since, suspect: suspect.clone() };
    #[expect(clippy::expect_used, reason = "a plain struct of strings always serialises")]
    serde_json::to_vec(&versioned).expect("a suspect serialises")
}

/// Reads a suspect.
pub(crate) fn parse(bytes: &[u8]) -> serde_json::Result<Suspect> {
    serde_json::from_slice::<Versioned>(bytes).map(|versioned| versioned.suspect)
}

/// The journal of one driver instance in one pool and namespace.
#[derive(Debug, Clone)]
pub struct Journal {
    pool: Arc<dyn Pool>,
    object: String,
}

impl Journal {
    /// The journal of `instance` in `pool`.
    pub fn new(pool: Arc<dyn Pool>, instance: &str) -> Journal {
        Journal { pool, object: format!("cinderblock.{instance}.journal") }
    }

    /// Whether this is the journal of that pool and namespace.
    pub fn is_of(&self, pool: &str, namespace: &str) -> bool {
        self.pool.name() == pool && self.pool.namespace() == namespace
    }

    /// The key of an entry here. A copy of another journal's entry is never found by the image's
    /// id.
    fn key(&self, suspect: &Suspect) -> String {
        let Suspect { pool, namespace, .. } = suspect;
        if self.is_of(pool, namespace) {
            suspect.key()
        } else {
            format!("{pool}/{namespace}/{}", suspect.key())
        }
    }

    /// Whether the user may write here.
    pub fn is_writable(&self) -> Result<bool> {
        match self.pool.omap_update(&self.object, &OmapUpdate::default()) {
            Err(error) if error.errno == Errno::EPERM => Ok(false),
            other => other.map(|()| true).map_err(Into::into),
        }
    }

    /// Writes the entries down, all or none. Nothing is written for none.
    pub fn add(&self, entries: &[Entry]) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let set =
            entries.iter().map(|entry| (self.key(&entry.suspect), entry.bytes.clone())).collect();
        Ok(self.pool.omap_update(&self.object, &OmapUpdate { set, ..OmapUpdate::default() })?)
    }

    /// All entries that can be read. There are as many as operations in flight, and a few more
    /// after a crash.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        Ok(self.list("")?.0)
    }

    /// The entries that cannot be read.
    pub(super) fn unreadable(&self) -> Result<Vec<Unreadable>> {
        Ok(self.list("")?.1)
    }

    /// The entries about one snapshot of one image.
    pub fn entries_of(&self, image_id: &str, snapshot: SnapshotId) -> Result<Vec<Entry>> {
        Ok(self.list(&format!("{image_id}@{snapshot}#"))?.0)
    }

    /// The entries whose keys begin with `prefix`, and those of them that cannot be read.
    fn list(&self, prefix: &str) -> Result<(Vec<Entry>, Vec<Unreadable>)> {
        let (mut entries, mut unreadable) = (Vec::new(), Vec::new());
        let mut after = prefix.to_string();
        loop {
            let page = self.pool.omap_list(&self.object, &after, PAGE)?;
            for (key, bytes) in page.entries {
                if !key.starts_with(prefix) {
                    return Ok((entries, unreadable));
                }
                after.clone_from(&key);
                match parse(&bytes) {
                    Ok(suspect) => entries.push(Entry { suspect, bytes }),
                    // Left alone for the driver that wrote it: unknown is never treated as absent.
                    Err(error) => {
                        if unreadable.is_empty() {
                            tracing::warn!(
                                key,
                                %error,
                                "journal entries, this one and perhaps others, cannot be read and are left alone"
                            );
                        }
                        unreadable.push(Unreadable {
                            object: self.object.clone(),
                            key,
                            why: error.to_string(),
                        });
                    }
                }
            }
            if !page.more {
                return Ok((entries, unreadable));
            }
        }
    }

    /// Forgets an entry, unless it has been written anew since it was read.
    pub fn forget(&self, entry: &Entry) -> Result<()> {
        let key = self.key(&entry.suspect);
        let update = OmapUpdate {
            guards: vec![Guard::Equals(key.clone(), entry.bytes.clone())],
            set: vec![],
            remove: vec![key],
        };
        match self.pool.omap_update(&self.object, &update) {
            Err(error) if error.errno == Errno::ECANCELED => Ok(()),
            other => Ok(other?),
        }
    }
}
