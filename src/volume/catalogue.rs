//! The catalogue: what the driver knows of every volume, snapshot and group snapshot, in the pool
//! that holds them.
//!
//! Records live in the omap of a few RADOS objects (`cinderblock.<instance>.catalogue.<shard>`),
//! one key per record, JSON with a version. They are read and written by key, each write guarded by
//! the value that was read, so of two controllers that change one record at once exactly one
//! succeeds ([`Error::Conflict`] for the other).
//!
//! A record is the idempotency check, the list and the redo log in one:
//!
//! - `creating` is written before the first RBD call that makes the object, and names the link to
//!   its source;
//! - `ready` is written after the last one: an image without it was never handed out;
//! - `deleting` is written before the first call that destroys;
//! - the record is removed after the last one;
//! - `returning` is written in place of the note of a volume in the trash, before its image has its
//!   name again;
//! - `restoring` is written before a restore changes the image's bytes, and `ready` again after
//!   they were compared.
//!
//! A record that says `creating` or `deleting` has a [lease](super::lease) while a controller is at
//! work on it. The writes that change the record take the lease and give it back. Another request
//! for the record is told so meanwhile ([`Error::Conflict`]).
//!
//! A group snapshot has a record beside those of its members, and is ready when its own says so.
//!
//! Silent parents have an entry of their own ([`Silent`]), written in the same atomic change that
//! removes the volume's record, or by an [adoption](super::adopt), so that no other images are ever
//! collected.

use super::lease::{self, Lease, Leases};
use super::names;
use super::{Error, Result};
use crate::rbd::{Guard, OmapUpdate, Pool};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

mod publications;
mod records;

pub use publications::StoredNotes;
pub use records::{
    Adopted, CsiJournal, DeleteWithSnapshots, Group, Link, Member, Node, Owner, Publication,
    Record, Silent, Snapshot, Source, State, Trash, Volume,
};

/// The newest version of records that this build writes ([`Record::version`]); it reads no newer
/// ones.
const VERSION: u32 = 3;
/// Objects the records are spread over, so that no omap grows too large for one PG.
const SHARDS: u8 = 16;
/// Keys asked for at once when listing.
const PAGE: u64 = 512;

#[derive(Serialize, Deserialize)]
struct Versioned<R> {
    version: u32,
    #[serde(flatten)]
    record: R,
}

/// A record as it was read or written, which later writes are guarded by.
#[derive(Debug, Clone)]
pub struct Stored<R> {
    /// The record.
    pub record: R,
    key: String,
    /// As it is stored.
    pub(crate) bytes: Vec<u8>,
    /// Its lease, where that is held. It is given back with the last clone of this.
    lease: Option<Arc<Lease>>,
}

impl<R> Stored<R> {
    /// Writes a further client that is to work on the record into its lease. `ECANCELED` when that
    /// is not held any more.
    pub(super) fn add_client(&self, address: &str) -> crate::rbd::Result<()> {
        self.lease.as_ref().map_or(Ok(()), |lease| lease.add_client(address))
    }
}

/// A record, if it is there.
type Found<R> = Option<Stored<R>>;

/// The key of the lease that a backup of the image holds, beside its record.
fn backup_key(image: &str) -> String {
    format!("{}backup/{image}", lease::KIND)
}

fn shard_of(name: &str) -> u8 {
    // Two hexadecimal digits always parse.
    u8::from_str_radix(&names::digest(name)[..2], 16).unwrap_or(0) % SHARDS
}

/// A place in a listing: the last entry seen. `Default` is the beginning.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cursor {
    shard: u8,
    after: String,
}

impl Cursor {
    /// The place right after the record `name` of a volume or snapshot, whether it is there or not.
    pub fn of(name: &str) -> Cursor {
        Cursor { shard: shard_of(name), after: name.to_string() }
    }

    /// The cursor as text that [`Cursor::parse`] reads.
    pub fn token(&self) -> String {
        format!("{}.{}", self.shard, self.after)
    }

    /// Reads [`Cursor::token`]; `None` for anything else.
    pub fn parse(token: &str) -> Option<Cursor> {
        let (shard, after) = token.split_once('.')?;
        let shard = shard.parse().ok().filter(|shard| *shard < SHARDS)?;
        (!after.is_empty()).then(|| Cursor { shard, after: after.to_string() })
    }
}

/// A part of a listing: records with their keys, and where to go on if there are more.
pub type Page<R> = (Vec<(String, Stored<R>)>, Option<Cursor>);

/// The catalogue of one driver instance in one pool and namespace.
#[derive(Debug, Clone)]
pub struct Catalogue {
    pool: Arc<dyn Pool>,
    instance: String,
    leases: Leases,
}

impl Catalogue {
    /// The catalogue of `instance` in `pool`, whose leases are taken among `leases`.
    pub fn new(pool: Arc<dyn Pool>, instance: &str, leases: Leases) -> Catalogue {
        Catalogue { pool, instance: instance.to_string(), leases }
    }

    fn object(&self, shard: u8) -> String {
        format!("cinderblock.{}.catalogue.{shard:02}", self.instance)
    }

    /// The object that holds the records of `name`: a volume's and its silent successor's are in
    /// the same one.
    fn home(&self, name: &str) -> String {
        self.object(shard_of(name))
    }

    /// The volume whose image has this name, if the catalogue knows it.
    pub fn volume(&self, image: &str) -> Result<Option<Stored<Volume>>> {
        self.get(image, image)
    }

    /// The snapshot with this RBD name, if the catalogue knows it.
    pub fn snapshot(&self, snapshot: &str) -> Result<Option<Stored<Snapshot>>> {
        self.get(snapshot, snapshot)
    }

    /// The group snapshot with this key, if the catalogue knows it.
    pub fn group(&self, group: &str) -> Result<Option<Stored<Group>>> {
        self.get(group, group)
    }

    /// What the node with this id has, if volumes there are counted.
    pub fn node(&self, node: &str) -> Result<Option<Stored<Node>>> {
        self.get(node, node)
    }

    /// The silent parent with this id, whose volume's image had the name `image`.
    pub fn silent(&self, image: &str, image_id: &str) -> Result<Option<Stored<Silent>>> {
        self.get(image, image_id)
    }

    /// [`Catalogue::volume`] and [`Catalogue::silent`] of an image that has its volume's name. One
    /// read.
    pub(super) fn volume_and_silent(
        &self,
        image: &str,
        image_id: &str,
    ) -> Result<(Found<Volume>, Found<Silent>)> {
        let object = self.home(image);
        let volume = format!("{}{image}", Volume::KIND);
        let silent = format!("{}{image_id}", Silent::KIND);
        let mut found = self.pool.omap_get(&object, &[&volume, &silent])?;
        let stored_volume = found.remove(&volume);
        let stored_silent = found.remove(&silent);
        Ok((
            stored_volume.map(|bytes| parse(&object, volume, bytes)).transpose()?,
            stored_silent.map(|bytes| parse(&object, silent, bytes)).transpose()?,
        ))
    }

    /// [`Catalogue::volume`], and whether a [backup](super::backup) holds it or did so when it was
    /// killed. One read.
    pub(super) fn volume_and_backup(&self, image: &str) -> Result<(Option<Stored<Volume>>, bool)> {
        let object = self.home(image);
        let (key, backup) = (format!("{}{image}", Volume::KIND), backup_key(image));
        let mut found = self.pool.omap_get(&object, &[&key, &backup])?;
        let is_backed_up = found.contains_key(&backup);
        let stored = found.remove(&key).map(|bytes| parse(&object, key, bytes)).transpose()?;
        Ok((stored, is_backed_up))
    }

    /// The leases on a volume: of who is at work on its record, and of a backup.
    pub(super) fn holders(
        &self,
        image: &str,
    ) -> Result<(Option<lease::Stored>, Option<lease::Stored>)> {
        let record = format!("{}{}{image}", lease::KIND, Volume::KIND);
        let backup = backup_key(image);
        let mut found = self.pool.omap_get(&self.home(image), &[&record, &backup])?;
        let mut read = |key: &str| {
            let bytes = found.remove(key)?;
            Some(lease::parse(&bytes).map_err(|error| {
                Error::FailedPrecondition(format!("the lease {key} cannot be read: {error}"))
            }))
        };
        Ok((read(&record).transpose()?, read(&backup).transpose()?))
    }

    /// Takes the lease of a backup of the image, whose record must still be as it was read.
    /// [`Error::Conflict`] when another backup holds it, or the record has changed.
    pub(super) fn hold_for_backup(
        &self,
        image: &str,
        stored: Option<&Stored<Volume>>,
    ) -> Result<Arc<Lease>> {
        let key = format!("{}{image}", Volume::KIND);
        let as_read = match stored {
            Some(stored) => Guard::Equals(key.clone(), stored.bytes.clone()),
            None => Guard::Absent(key.clone()),
        };
        // Who changes what a volume is has the lease of its record.
        let idle = Guard::Absent(format!("{}{key}", lease::KIND));
        let update = OmapUpdate { guards: vec![as_read, idle], ..OmapUpdate::default() };
        let taken = self.leases.take(&self.pool, &self.home(image), &backup_key(image), &update)?;
        taken.ok_or_else(|| self.conflict(image, &key))
    }

    /// Takes over what a killed backup of the image holds, and gives it back. [`Error::Conflict`]
    /// when that backup lives.
    pub(super) fn end_dead_backup(&self, image: &str) -> Result<()> {
        let (object, key) = (self.home(image), backup_key(image));
        let taken = self.leases.take(&self.pool, &object, &key, &OmapUpdate::default())?;
        // Not by dropping it: a thread that renews it just now would give it back, some time.
        match taken.map(|lease| lease.change(&OmapUpdate::default(), true)) {
            Some(Err(error)) if error.errno == Errno::ECANCELED => Err(self.conflict(image, &key)),
            Some(given_back) => Ok(given_back?),
            None => Ok(()),
        }
    }

    /// [`Catalogue::replace`] of a record that changes, unless a backup holds the volume.
    pub(super) fn replace_unless_backed_up(
        &self,
        image: &str,
        old: &Stored<Volume>,
        record: Volume,
    ) -> Result<Stored<Volume>> {
        let guards = vec![Guard::Absent(backup_key(image))];
        self.replace_with(image, old, record, OmapUpdate { guards, ..OmapUpdate::default() })
    }

    fn get<R: Record>(&self, home: &str, key: &str) -> Result<Option<Stored<R>>> {
        let object = self.home(home);
        let key = format!("{}{key}", R::KIND);
        let mut found = self.pool.omap_get(&object, &[&key])?;
        found.remove(&key).map(|bytes| parse(&object, key, bytes)).transpose()
    }

    /// Writes a record that must not be there yet.
    pub fn insert_volume(&self, image: &str, record: Volume) -> Result<Stored<Volume>> {
        self.insert(image, image, record)
    }

    /// Writes a record that must not be there yet.
    pub fn insert_snapshot(&self, snapshot: &str, record: Snapshot) -> Result<Stored<Snapshot>> {
        self.insert(snapshot, snapshot, record)
    }

    /// Writes a record that must not be there yet. `image` is the name of the volume's image, as in
    /// [`Catalogue::silent`].
    pub(super) fn insert_silent(
        &self,
        image: &str,
        image_id: &str,
        record: Silent,
    ) -> Result<Stored<Silent>> {
        self.insert(image, image_id, record)
    }

    /// Writes, in one atomic change, a snapshot's record and the silent parent that its image is,
    /// which has the same name. Neither may be there yet.
    pub(super) fn insert_snapshot_image(
        &self,
        name: &str,
        snapshot: Snapshot,
        silent: Silent,
    ) -> Result<()> {
        let silent = stored(format!("{}{}", Silent::KIND, snapshot.image_id), silent);
        let snapshot = stored(format!("{}{name}", Snapshot::KIND), snapshot);
        let update = OmapUpdate {
            guards: vec![Guard::Absent(snapshot.key.clone()), Guard::Absent(silent.key.clone())],
            set: vec![(snapshot.key.clone(), snapshot.bytes), (silent.key, silent.bytes)],
            remove: vec![],
        };
        self.change(name, &snapshot.key, None, false, &update).map(drop)
    }

    /// Removes, in one atomic change, what [`Catalogue::insert_snapshot_image`] wrote. Both must
    /// still be as they were read.
    pub(super) fn remove_snapshot_image(
        &self,
        name: &str,
        snapshot: &Stored<Snapshot>,
        silent: &Stored<Silent>,
    ) -> Result<()> {
        let as_read = |key: &String, bytes: &Vec<u8>| Guard::Equals(key.clone(), bytes.clone());
        let update = OmapUpdate {
            guards: vec![
                as_read(&snapshot.key, &snapshot.bytes),
                as_read(&silent.key, &silent.bytes),
            ],
            set: vec![],
            remove: vec![snapshot.key.clone(), silent.key.clone()],
        };
        self.change(name, &snapshot.key, None, false, &update).map(drop)
    }

    /// Writes a record that must not be there yet.
    pub fn insert_group(&self, group: &str, record: Group) -> Result<Stored<Group>> {
        self.insert(group, group, record)
    }

    /// Writes a record that must not be there yet.
    pub fn insert_node(&self, node: &str, record: Node) -> Result<Stored<Node>> {
        self.insert(node, node, record)
    }

    fn insert<R: Record>(&self, home: &str, key: &str, record: R) -> Result<Stored<R>> {
        let new = stored(format!("{}{key}", R::KIND), record);
        let update = OmapUpdate {
            guards: vec![Guard::Absent(new.key.clone())],
            set: vec![(new.key.clone(), new.bytes.clone())],
            remove: vec![],
        };
        let lease = self.change(home, &new.key, None, new.record.is_unfinished(), &update)?;
        Ok(Stored { lease, ..new })
    }

    /// Takes the lease of a record that must still be as it was read, unless it is held.
    /// [`Error::Conflict`] when another operation is at work on it.
    pub fn claim<R: Record>(&self, home: &str, old: &Stored<R>) -> Result<Stored<R>> {
        if old.lease.is_some() {
            return Ok(old.clone());
        }
        let update = OmapUpdate {
            guards: vec![Guard::Equals(old.key.clone(), old.bytes.clone())],
            ..OmapUpdate::default()
        };
        let lease = self.change(home, &old.key, None, true, &update)?;
        Ok(Stored { lease, ..old.clone() })
    }

    /// Replaces a record that must still be as it was read, and takes or gives back its lease as
    /// the new one asks for. Nothing is written when nothing changes.
    pub fn replace<R: Record>(&self, home: &str, old: &Stored<R>, record: R) -> Result<Stored<R>> {
        if old.record == record {
            return if record.is_unfinished() { self.claim(home, old) } else { Ok(old.clone()) };
        }
        self.replace_with(home, old, record, OmapUpdate::default())
    }

    /// [`Catalogue::replace`], together with the change `also` of the same object.
    fn replace_with<R: Record>(
        &self,
        home: &str,
        old: &Stored<R>,
        record: R,
        mut also: OmapUpdate,
    ) -> Result<Stored<R>> {
        let new = stored(old.key.clone(), record);
        also.guards.push(Guard::Equals(old.key.clone(), old.bytes.clone()));
        also.set.push((new.key.clone(), new.bytes.clone()));
        let lease =
            self.change(home, &old.key, old.lease.as_ref(), new.record.is_unfinished(), &also)?;
        Ok(Stored { lease, ..new })
    }

    /// Removes a record that must still be as it was read.
    pub fn remove<R: Record>(&self, home: &str, old: &Stored<R>) -> Result<()> {
        let update = OmapUpdate {
            guards: vec![Guard::Equals(old.key.clone(), old.bytes.clone())],
            set: vec![],
            remove: vec![old.key.clone()],
        };
        self.change(home, &old.key, old.lease.as_ref(), false, &update).map(drop)
    }

    /// Removes a volume's record and notes, in the same atomic change, that its image lives on as a
    /// silent parent.
    pub fn silence(
        &self,
        image: &str,
        old: &Stored<Volume>,
        image_id: &str,
        silent: Silent,
    ) -> Result<()> {
        let silent = stored(format!("{}{image_id}", Silent::KIND), silent);
        let update = OmapUpdate {
            guards: vec![Guard::Equals(old.key.clone(), old.bytes.clone())],
            set: vec![(silent.key, silent.bytes)],
            remove: vec![old.key.clone()],
        };
        self.change(image, &old.key, old.lease.as_ref(), false, &update).map(drop)
    }

    /// Puts the record of a volume that is brought back from the trash in place of its note, in one
    /// atomic change. [`Error::Conflict`] when the name has a record, or the note has changed or is
    /// being worked on.
    pub fn unsilence(
        &self,
        image: &str,
        silent: &Stored<Silent>,
        record: Volume,
    ) -> Result<Stored<Volume>> {
        let new = stored(format!("{}{image}", Volume::KIND), record);
        let update = OmapUpdate {
            guards: vec![
                Guard::Equals(silent.key.clone(), silent.bytes.clone()),
                Guard::Absent(format!("{}{}", lease::KIND, silent.key)),
                Guard::Absent(new.key.clone()),
            ],
            set: vec![(new.key.clone(), new.bytes.clone())],
            remove: vec![silent.key.clone()],
        };
        let lease = self.change(image, &new.key, None, new.record.is_unfinished(), &update)?;
        Ok(Stored { lease, ..new })
    }

    /// Changes the record `key` by `update`, under the lease `held` if there is one. `unfinished`
    /// says whether it has a lease afterwards, which is returned.
    fn change(
        &self,
        home: &str,
        key: &str,
        held: Option<&Arc<Lease>>,
        unfinished: bool,
        update: &OmapUpdate,
    ) -> Result<Option<Arc<Lease>>> {
        let object = self.home(home);
        let changed = match held {
            Some(lease) => {
                lease.change(update, !unfinished).map(|()| unfinished.then(|| Arc::clone(lease)))
            }
            None if unfinished => {
                let key = format!("{}{key}", lease::KIND);
                let taken = self.leases.take(&self.pool, &object, &key, update)?;
                return taken.map(Some).ok_or_else(|| self.conflict(home, &key));
            }
            None => self.pool.omap_update(&object, update).map(|()| None),
        };
        match changed {
            Err(error) if error.errno == Errno::ECANCELED => Err(self.conflict(home, key)),
            other => Ok(other?),
        }
    }

    pub(super) fn conflict(&self, home: &str, key: &str) -> Error {
        let object = self.home(home);
        Error::Conflict(format!(
            "another controller changed the record {key} in {object} at the same time"
        ))
    }

    /// What is not ready, and what cannot be read: each object is read once.
    pub(super) fn unfinished(&self) -> Result<Unfinished> {
        let mut found = Unfinished::default();
        for shard in 0..SHARDS {
            let object = self.object(shard);
            let mut after = String::new();
            loop {
                let page = self.pool.omap_list(&object, &after, PAGE)?;
                for (key, bytes) in page.entries {
                    after.clone_from(&key);
                    if let Err(error) = found.add(&object, &key, bytes) {
                        tracing::warn!(%error, "a record is left alone");
                        found.unreadable.push(Unreadable {
                            object: object.clone(),
                            key,
                            why: error.to_string(),
                        });
                    }
                }
                if !page.more {
                    break;
                }
            }
        }
        Ok(found)
    }

    /// At most `limit` records (0: as many as there are) after `cursor`, each with its key, in a
    /// stable order; and where to go on if there are more. Those that cannot be read are logged and
    /// left out. Records that come and go meanwhile neither hide nor repeat others.
    pub fn list<R: Record>(&self, cursor: &Cursor, limit: usize) -> Result<Page<R>> {
        let mut found = Vec::new();
        let mut last = cursor.clone();
        for shard in cursor.shard..SHARDS {
            let object = self.object(shard);
            let mut after =
                if shard == cursor.shard { cursor.after.clone() } else { String::new() };
            loop {
                let page = self.pool.omap_list(&object, &format!("{}{after}", R::KIND), PAGE)?;
                let mut past_the_kind = false;
                for (key, bytes) in page.entries {
                    let Some(name) = key.strip_prefix(R::KIND).map(str::to_string) else {
                        past_the_kind = true;
                        break;
                    };
                    if limit > 0 && found.len() == limit {
                        return Ok((found, Some(last)));
                    }
                    after.clone_from(&name);
                    last = Cursor { shard, after: name.clone() };
                    match parse(&object, key, bytes) {
                        Ok(stored) => found.push((name, stored)),
                        // `gc` tells of it.
                        Err(error) => tracing::warn!(%error, "a record is left out of a listing"),
                    }
                }
                if past_the_kind || !page.more {
                    break;
                }
            }
        }
        Ok((found, None))
    }
}

/// The records that an operation is at work on, or was.
#[derive(Debug, Default)]
pub struct Unfinished {
    /// Volumes that are not ready, with their images' names.
    pub volumes: Vec<(String, Stored<Volume>)>,
    /// Snapshots that are not ready, with their RBD names.
    pub snapshots: Vec<(String, Stored<Snapshot>)>,
    /// Group snapshots that are not ready, with their keys.
    pub groups: Vec<(String, Stored<Group>)>,
    /// Volumes in the trash, with their images' ids.
    pub trash: Vec<(String, Stored<Silent>)>,
    /// Ids of the nodes whose volumes are counted.
    pub nodes: Vec<String>,
    /// Records that cannot be read, and are left alone.
    pub unreadable: Vec<Unreadable>,
}

/// Something in an omap that this version cannot read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// The RADOS object.
    pub object: String,
    /// The key.
    pub key: String,
    /// What is wrong with it.
    pub why: String,
}

impl Unfinished {
    /// Takes over one key of the catalogue.
    fn add(&mut self, object: &str, key: &str, bytes: Vec<u8>) -> Result<()> {
        fn take<R: Record>(
            all: &mut Vec<(String, Stored<R>)>,
            object: &str,
            name: &str,
            bytes: Vec<u8>,
            is_ready: impl Fn(&R) -> bool,
        ) -> Result<()> {
            let stored = parse(object, format!("{}{name}", R::KIND), bytes)?;
            if !is_ready(&stored.record) {
                all.push((name.to_string(), stored));
            }
            Ok(())
        }
        if let Some(name) = key.strip_prefix(Volume::KIND) {
            take(&mut self.volumes, object, name, bytes, |volume: &Volume| {
                volume.state == State::Ready
            })
        } else if let Some(name) = key.strip_prefix(Snapshot::KIND) {
            take(&mut self.snapshots, object, name, bytes, |snapshot: &Snapshot| {
                snapshot.state == State::Ready
            })
        } else if let Some(name) = key.strip_prefix(Group::KIND) {
            take(&mut self.groups, object, name, bytes, |group: &Group| group.state == State::Ready)
        } else if let Some(name) = key.strip_prefix(Silent::KIND) {
            take(&mut self.trash, object, name, bytes, |silent: &Silent| silent.trash.is_none())
        } else {
            self.nodes.extend(key.strip_prefix(Node::KIND).map(str::to_string));
            Ok(())
        }
    }
}

/// A record in the form it is written in.
pub(crate) fn stored<R: Record>(key: String, record: R) -> Stored<R> {
    let versioned = Versioned { version: record.version(), record };
    #[expect(
        clippy::expect_used,
        reason = "records are plain structs with string keys, which always serialise"
    )]
    let bytes = serde_json::to_vec(&versioned).expect("a record serialises");
    Stored { record: versioned.record, key, bytes, lease: None }
}

/// Reads a record.
pub(crate) fn parse<R: Record>(object: &str, key: String, bytes: Vec<u8>) -> Result<Stored<R>> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let unreadable = |why: String| {
        Error::FailedPrecondition(format!(
            "the catalogue record {key} in the RADOS object {object} {why}; nothing was changed"
        ))
    };
    let version: Version = serde_json::from_slice(&bytes)
        .map_err(|error| unreadable(format!("cannot be read ({error})")))?;
    if version.version > VERSION {
        return Err(unreadable(format!(
            "has version {}, newer than this driver's {VERSION}: run the newer driver",
            version.version
        )));
    }
    let versioned: Versioned<R> = serde_json::from_slice(&bytes)
        .map_err(|error| unreadable(format!("cannot be read ({error})")))?;
    Ok(Stored { record: versioned.record, key, bytes, lease: None })
}
