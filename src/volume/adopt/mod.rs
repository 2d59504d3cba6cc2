//! Taking over in place what another driver made, and giving it back ([`release`]).
//!
//! Adoption writes records. No data is copied, and every image keeps its name. What another driver
//! keeps beside its volumes becomes a silent parent of this one, so that it goes when nothing needs
//! it. Of ceph-csi's these are snapshots' images, `-temp` images and what it moved to the trash
//! ([`ceph_csi`]); of Cinder's, the `.deleted` images ([`cinder`]).
//!
//! A volume has one owner. What ceph-csi's journal says of a volume moves into the volume's record:
//! from then on a request to ceph-csi that names the volume finds nothing, and deletes nothing.
//!
//! Crash points: the record is written first, whole, in one atomic change (a snapshot's with the
//! silent parent that its image is). Then the key in ceph-csi's directory goes, then the journal
//! object. A run that was killed leaves each volume with its former owner, with both, or with this
//! driver; the next run finishes what has both. A release goes the same way back: the journal is
//! written first, the record goes last.

use super::catalogue::{self, Adopted, CsiJournal, Owner, Silent, Snapshot, State, Volume};
use super::collect::is_collectable;
use super::{DeleteWithSnapshots, Error, Result, Volumes, names, now};
use crate::rbd::{self, Image, ImageKey, OpenMode};
use std::collections::BTreeMap;

mod ceph_csi;
mod cinder;
mod item;
mod journal;
pub mod release;

use item::Planned;
pub use item::{Item, Kind, Verdict};

/// Makes the volume id of an image here. `None` when the image has a name, or is in a place, that
/// no volume id can have.
pub type VolumeIds<'a> = dyn Fn(&str) -> Option<String> + 'a;

impl Volumes {
    /// Any image, to be known by the CSI name `name`. Its snapshots stay other tools'.
    pub fn plan_image(&self, image: &str, name: &str, ids: &VolumeIds<'_>) -> Result<Item> {
        let owner = Adopted { from: Owner::Nobody, journal: None };
        let mut item = Item::new(Kind::Volume, image, name, Verdict::Adopt);
        let reserved = image.ends_with(names::SILENT_SUFFIX)
            || super::temporary::is_temporary(image)
            || name.is_empty();
        if reserved {
            item.refuse("its name says that it is no volume: rename it first".to_owned());
            return Ok(item);
        }
        let uuid = image.get(image.len().saturating_sub(36)..).unwrap_or_default();
        if !self.journal_entries(&format!("csi.volume.{uuid}"))?.is_empty() {
            item.refuse("ceph-csi has it in its journal: adopt it with --from ceph-csi".to_owned());
            return Ok(item);
        }
        self.plan_volume(&mut item, owner, 2, ids)?;
        Ok(item)
    }

    /// Looks at the image of a volume, and plans its record.
    fn plan_volume(
        &self,
        item: &mut Item,
        owner: Adopted,
        clone_format: u8,
        ids: &VolumeIds<'_>,
    ) -> Result<()> {
        let image = item.image.clone();
        if let Some(stored) = self.catalogue.volume(&image)? {
            self.plan_of_known(item, stored.record, &owner);
            return Ok(());
        }
        let Some(opened) = self.open_to_adopt(&image)? else {
            item.verdict = Verdict::Lost("its image is not there".to_owned());
            return Ok(());
        };
        let Some(id) = ids(&image) else {
            item.refuse("no volume id can have the name of its image or pool".to_owned());
            return Ok(());
        };
        item.image_id = opened.id()?;
        item.size = opened.info()?.size;
        if let Some(why) = self.obstacle(&*opened)? {
            item.refuse(why);
        }
        let is_protected = opened.snapshots()?.iter().any(|snapshot| snapshot.protected);
        item.record = Some(Planned::Volume(Volume {
            claim: None,
            trash_retention: None,
            state: State::Ready,
            id,
            name: item.name.clone(),
            size: item.size,
            created: now(),
            image_id: Some(item.image_id.clone()),
            source: None,
            link: None,
            digest: "adopted".to_owned(),
            attempt: uuid::Uuid::new_v4().simple().to_string(),
            delete_with_snapshots: DeleteWithSnapshots::default(),
            clone_format: if is_protected { 1 } else { clone_format },
            context: BTreeMap::new(),
            published: Vec::new(),
            adopted: Some(owner),
        }));
        Ok(())
    }

    /// Plans for an image that has a record.
    fn plan_of_known(&self, item: &mut Item, record: Volume, owner: &Adopted) {
        let is_it = record.adopted.as_ref().is_some_and(|adopted| is_same(adopted, owner));
        if is_it && record.state == State::Ready {
            item.image_id = record.image_id.clone().unwrap_or_default();
            item.size = record.size;
            item.record = Some(Planned::Volume(record));
            item.verdict = Verdict::Finish;
        } else {
            item.refuse(format!(
                "the catalogue of instance {} has a volume with that image already",
                self.instance
            ));
        }
    }

    fn open_to_adopt(&self, image: &str) -> Result<Option<Box<dyn Image>>> {
        match self.pool.open_image(ImageKey::Name(image), OpenMode::ReadOnly) {
            Ok(opened) => Ok(Some(opened)),
            Err(error) if error.errno == rbd::Errno::ENOENT => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Why an image cannot be adopted as it is, if it cannot.
    fn obstacle(&self, image: &dyn Image) -> Result<Option<String>> {
        if is_encrypted(image)? {
            return Ok(Some("it is encrypted, and this driver does not open it".to_owned()));
        }
        if let Some(watcher) = image.watchers()?.first() {
            return Ok(Some(format!(
                "it is open at {}: stop what uses it; a client that died lets go after 30 seconds",
                watcher.address
            )));
        }
        match self.refuse_unremovable(image) {
            Ok(()) => Ok(None),
            Err(Error::FailedPrecondition(why) | Error::Conflict(why)) => Ok(Some(why)),
            Err(error) => Err(error),
        }
    }

    /// Adopts an item that is not refused, or finishes that. What turns out to be unneeded is
    /// suspect; the caller settles it.
    ///
    /// [`Error::InUse`] when it was opened since the plan was made, [`Error::Conflict`] when
    /// another controller has adopted it meanwhile.
    pub fn adopt(&self, item: &Item) -> Result<()> {
        let Some(planned) = item.record.as_ref().filter(|_| item.is_adoptable()) else {
            return Ok(());
        };
        let is_new = item.verdict == Verdict::Adopt;
        if is_new && item.kind != Kind::Parent {
            self.look_again(item)?;
        }
        if item.verdict == Verdict::Finish && !self.is_adopted_still(item, planned)? {
            let spec = self.spec(&item.image);
            return Err(Error::Conflict(format!("{spec} was released just now")));
        }
        let adopted = match planned {
            Planned::Volume(record) => {
                if is_new {
                    self.catalogue.insert_volume(&item.image, record.clone())?;
                }
                &record.adopted
            }
            Planned::Snapshot(record, silent) => {
                let name = item.snapshot.as_deref().unwrap_or(&item.image);
                match silent {
                    Some(silent) if is_new => {
                        self.catalogue.insert_snapshot_image(
                            name,
                            record.clone(),
                            silent.clone(),
                        )?;
                    }
                    None if is_new => {
                        self.catalogue.insert_snapshot(name, record.clone())?;
                    }
                    _ => {}
                }
                &record.adopted
            }
            Planned::Parent(silent) => {
                if is_new {
                    if self.catalogue.volume(&item.image)?.is_some() {
                        let spec = self.spec(&item.image);
                        return Err(Error::Conflict(format!("{spec} is a volume by now")));
                    }
                    let volume = names::before_silence(&item.image, &item.image_id);
                    self.catalogue.insert_silent(volume, &item.image_id, silent.clone())?;
                }
                &silent.adopted
            }
        };
        if let Some(journal) = adopted.as_ref().and_then(|adopted| adopted.journal.as_ref()) {
            self.take_journal(journal).map_err(Error::after_a_change)?;
        }
        // The snapshots of an image that no driver had are other tools', whatever their names.
        if adopted.as_ref().is_some_and(|adopted| adopted.from == Owner::Nobody) {
            return Ok(());
        }
        self.suspect_unneeded(item).map_err(Error::after_a_change)
    }

    /// The filesystem that the whole of an image holds, as far as its first bytes say. `None` for a
    /// disk with partitions, and for anything else.
    pub fn filesystem(&self, image: &str) -> Result<Option<&'static str>> {
        let Some(opened) = self.open_to_adopt(image)? else { return Ok(None) };
        let mut beginning = [0; EXT_MAGIC_AT + 2];
        let read = opened.read_at(None, 0, &mut beginning)?;
        let is_whole = read == beginning.len();
        Ok(if is_whole && beginning.starts_with(b"XFSB") {
            Some("xfs")
        } else if is_whole && beginning[EXT_MAGIC_AT..] == [0x53, 0xef] {
            Some("ext4")
        } else {
            None
        })
    }

    /// Whether the record that an adoption to be finished has written is there. Without it the
    /// journal is the former driver's.
    fn is_adopted_still(&self, item: &Item, planned: &Planned) -> Result<bool> {
        Ok(match planned {
            Planned::Volume(record) => self
                .catalogue
                .volume(&item.image)?
                .is_some_and(|stored| stored.record.adopted == record.adopted),
            Planned::Snapshot(record, _) => {
                let name = item.snapshot.as_deref().unwrap_or(&item.image);
                let stored = self.catalogue.snapshot(name)?;
                stored.is_some_and(|stored| stored.record.adopted == record.adopted)
            }
            // These have no journal.
            Planned::Parent(_) => true,
        })
    }

    /// Refuses an item whose image was opened, or replaced, since the plan was made.
    fn look_again(&self, item: &Item) -> Result<()> {
        let spec = self.spec(&item.image);
        match self.open_to_adopt(&item.image)? {
            Some(image) if image.id()? == item.image_id => match image.watchers()?.first() {
                None => Ok(()),
                Some(watcher) => {
                    Err(Error::InUse(format!("{spec} was opened at {} just now", watcher.address)))
                }
            },
            _ => Err(Error::Conflict(format!("{spec} is another image than it was just now"))),
        }
    }

    /// Writes down what may be unneeded already: snapshots that were cut for clones, and parents.
    fn suspect_unneeded(&self, item: &Item) -> Result<()> {
        let image = match self.pool.open_image(ImageKey::Id(&item.image_id), OpenMode::ReadOnly) {
            Ok(image) => image,
            Err(error) if error.errno == rbd::Errno::ENOENT => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let mut suspects = Vec::new();
        for snapshot in image.snapshots()? {
            if is_collectable(&snapshot)
                && self.clones(&*image, &item.image_id, snapshot.id)?.is_empty()
            {
                let snapshot = Some(snapshot.id);
                let suspect = self.as_suspect(&item.image, &item.image_id);
                suspects.push(super::Suspect { snapshot, ..suspect });
            }
        }
        if item.kind == Kind::Parent {
            suspects.push(self.as_suspect(&item.image, &item.image_id));
        }
        self.suspect(&suspects)
    }
}

/// In the order they are adopted and shown in.
fn sorted(mut items: Vec<Item>) -> Vec<Item> {
    items.sort_by(|a, b| (a.kind, &a.image, &a.snapshot).cmp(&(b.kind, &b.image, &b.snapshot)));
    items
}

/// Whether two notes are about the same thing of the same owner. The journal's entries may have
/// changed.
fn is_same(one: &Adopted, other: &Adopted) -> bool {
    let uuid = |adopted: &Adopted| adopted.journal.as_ref().map(|journal| journal.uuid.clone());
    one.from == other.from && uuid(one) == uuid(other)
}

/// The keys of image metadata by which ceph-csi, today's and earlier ones, says that an image is
/// encrypted.
const ENCRYPTED: [&str; 2] = ["rbd.csi.ceph.com/encrypted", ".rbd.csi.ceph.com/encrypted"];
/// Where the superblock of ext2, ext3 and ext4 has its magic number.
const EXT_MAGIC_AT: usize = 1024 + 56;
/// How a LUKS header begins; its version follows.
const LUKS: &[u8] = b"LUKS\xba\xbe\x00";

/// Whether the image is encrypted by its former driver.
fn is_encrypted(image: &dyn Image) -> Result<bool> {
    for key in ENCRYPTED {
        if image.metadata_get(key)?.is_some() {
            return Ok(true);
        }
    }
    let mut beginning = [0; LUKS.len()];
    let read = image.read_at(None, 0, &mut beginning)?;
    Ok(read == LUKS.len() && beginning == LUKS)
}
