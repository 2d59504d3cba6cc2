//! The right to replay the log of a filesystem that is about to be read.
//!
//! Readers attach an image for reading alone, and there the kernel replays no log. What was fsynced
//! last may be in the log alone: a snapshot of a mounted volume has such a log. So the first node
//! with a reader replays it on the volume's image, and readers mount a whole filesystem.
//!
//! - One client replays at a time. Before it is attached, an entry for the image stands in the omap
//!   of [`OBJECT`], in the image's pool and namespace; before it writes, the entry holds its
//!   address. Each write of an entry is guarded by the entry as it was read.
//! - An entry whose clients do not watch the image any more was left by a node that is gone, or
//!   that stands still. The next node fences those clients before it takes the entry over.
//!
//! Crash point: a node that dies leaves the entry. Its client's watch ends after 30 seconds.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::error::{Error, Result};
use super::kill::step;
use super::mark::Marks;
use crate::notes::FENCED_SECONDS;
use crate::rbd::{self, Errno, Guard, ImageKey, OmapUpdate, OpenMode, Pool};

/// The RADOS object with the entries, by image id.
const OBJECT: &str = "cinderblock.replays";

/// How long one change of an entry may take, fencing included.
const PATIENCE: Duration = Duration::from_mins(1);

/// The version of entries that this build writes and reads.
const VERSION: u32 = 1;

/// Which clients replay the log of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    version: u32,
    /// Tells this entry from every other one.
    token: String,
    /// Their addresses; none before they are attached.
    clients: BTreeSet<String>,
}

impl Entry {
    fn bytes(&self) -> Vec<u8> {
        #[expect(clippy::expect_used, reason = "a plain struct of strings always serialises")]
        serde_json::to_vec(self).expect("an entry serialises")
    }

    fn parse(bytes: &[u8], image_id: &str) -> rbd::Result<Entry> {
        match serde_json::from_slice::<Entry>(bytes) {
            Ok(entry) if entry.version == VERSION => Ok(entry),
            _ => Err(rbd::Error::new(
                Errno::EBADMSG,
                "reading who replays a log",
                format!("{OBJECT}, whose {image_id} this version of the driver cannot read"),
            )),
        }
    }
}

/// The right of this node to replay the log of an image.
pub(super) struct Replay {
    marks: Marks,
    image_id: String,
    entry: Entry,
}

/// What came of one try to write an entry.
enum Written {
    Done(Replay),
    /// Another has it, by this name.
    Taken(String),
}

impl Replay {
    /// Takes the right to replay, from a node that is gone if need be. `Busy` while another has it.
    pub(super) fn begin(marks: &Marks) -> Result<Replay> {
        let name = marks.image().name.clone();
        let kept = marks.clone();
        let written = marks
            .with_pool("cannot claim the log of", PATIENCE, move |pool| begin(pool, &name, kept))?;
        match written {
            Written::Done(replay) => Ok(replay),
            Written::Taken(by) => Err(Error::Busy(format!(
                "{by} replays the log of the image {}: ask again",
                marks.image()
            ))),
        }
    }

    /// Removes the entry of a replay whose node died when the log was replayed already. What cannot
    /// be removed is logged: readers need no entry.
    pub(super) fn forget(marks: &Marks) {
        let name = marks.image().name.clone();
        let is_left = marks.with_pool("cannot ask who replays the log of", PATIENCE, move |pool| {
            let Some(id) = pool.image_id(&name)? else { return Ok(false) };
            Ok(pool.omap_get(OBJECT, &[&id])?.contains_key(&id))
        });
        let forgotten = match is_left {
            Ok(true) => Replay::begin(marks).map(Replay::end),
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = forgotten {
            let image = marks.image();
            tracing::info!(%image, %error, "the entry of a replay that is over may be left");
        }
    }

    /// Says which clients are about to write. `Busy` when another took the right over meanwhile:
    /// they must not write.
    pub(super) fn note(&mut self, clients: BTreeSet<String>) -> Result<()> {
        let new = Entry { clients, ..self.entry.clone() };
        if !self.update(vec![(self.image_id.clone(), new.bytes())], vec![])? {
            return Err(Error::Busy(format!(
                "another node took over to replay the log of the image {}: ask again",
                self.marks.image()
            )));
        }
        self.entry = new;
        step("replay noted");
        Ok(())
    }

    /// Gives the right back. The clients are gone.
    pub(super) fn end(self) {
        if let Err(error) = self.update(vec![], vec![self.image_id.clone()]) {
            let image = self.marks.image();
            tracing::warn!(%image, %error, "the entry of a replay that is over stays");
        }
        step("replay ended");
    }

    /// Changes the entry, unless another has changed it: then this is `false`.
    fn update(&self, set: Vec<(String, Vec<u8>)>, remove: Vec<String>) -> Result<bool> {
        let guards = vec![Guard::Equals(self.image_id.clone(), self.entry.bytes())];
        let update = OmapUpdate { guards, set, remove };
        self.marks.with_pool("cannot note who replays the log of", PATIENCE, move |pool| {
            is_current(pool.omap_update(OBJECT, &update))
        })
    }
}

fn begin(pool: &dyn Pool, name: &str, marks: Marks) -> rbd::Result<Written> {
    let image_id = pool
        .image_id(name)?
        .ok_or_else(|| rbd::Error::new(Errno::ENOENT, "looking for an image", name.to_owned()))?;
    let old = pool.omap_get(OBJECT, &[&image_id])?.remove(&image_id);
    if let Some(bytes) = &old {
        let clients = Entry::parse(bytes, &image_id)?.clients;
        let watchers = pool.open_image(ImageKey::Id(&image_id), OpenMode::ReadOnly)?.watchers()?;
        if let Some(alive) = watchers.into_iter().find(|one| clients.contains(&one.address)) {
            return Ok(Written::Taken(format!("the client {}", alive.address)));
        }
        for address in &clients {
            tracing::info!(name, address, "a client that replayed a log and is gone is fenced");
            pool.cluster().blocklist(address, FENCED_SECONDS)?;
        }
    }
    let entry = Entry {
        version: VERSION,
        token: Uuid::new_v4().simple().to_string(),
        clients: BTreeSet::new(),
    };
    let update = OmapUpdate {
        guards: vec![match old {
            Some(bytes) => Guard::Equals(image_id.clone(), bytes),
            None => Guard::Absent(image_id.clone()),
        }],
        set: vec![(image_id.clone(), entry.bytes())],
        remove: vec![],
    };
    if is_current(pool.omap_update(OBJECT, &update))? {
        step("replay begun");
        Ok(Written::Done(Replay { marks, image_id, entry }))
    } else {
        Ok(Written::Taken("another node".to_owned()))
    }
}

/// Whether the guards of an update held.
fn is_current(updated: rbd::Result<()>) -> rbd::Result<bool> {
    match updated {
        Ok(()) => Ok(true),
        Err(error) if error.errno == Errno::ECANCELED => Ok(false),
        Err(error) => Err(error),
    }
}
