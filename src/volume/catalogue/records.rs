//! What the catalogue's records hold. They are stored as JSON, so a field that is new has a default,
//! and [`Record::version`] says which drivers may write a record anew.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How far an object is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Being made. What exists of it was never handed out.
    Creating,
    /// Handed out.
    Ready,
    /// Being destroyed.
    Deleting,
    /// Being filled from a backup. It is not handed out until all of it is there, and nothing but a
    /// restore or a deletion ends it.
    Restoring,
    /// Taken out of the trash, and on the way to its old name. It was handed out before.
    Returning,
}

/// A volume's record. Its key is the image's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// How far it is.
    pub state: State,
    /// The volume id it is handed out under.
    pub id: String,
    /// The CSI name it was asked for by.
    pub name: String,
    /// Size in bytes: what was asked for while `creating`, what it has once `ready`.
    pub size: u64,
    /// Seconds since 1970 when the record was first written.
    pub created: i64,
    /// Id of its image, once that is known. An unfinished volume without it may share its name with
    /// a foreign image.
    pub image_id: Option<String>,
    /// What it was made from.
    pub source: Option<Source>,
    /// The link to the parent snapshot that creation makes or made. Later flattening does not touch
    /// it.
    pub link: Option<Link>,
    /// A digest of everything in the request that a repeated request must match, sizes and source
    /// apart.
    pub digest: String,
    /// The attempt that made or makes it. No two attempts write the same record, so a guard never
    /// takes one for another.
    pub attempt: String,
    /// What DeleteVolume does when it still has snapshots.
    pub delete_with_snapshots: DeleteWithSnapshots,
    /// The format its clones are made in, and whether its snapshots are protected.
    pub clone_format: u8,
    /// Context a node needs, handed out with the volume.
    pub context: std::collections::BTreeMap<String, String>,
    /// Where it is attached.
    pub published: Vec<Publication>,
    /// The claim it was made for, as `namespace/name`, where the request said so. For people to
    /// read; a driver that does not know it may drop it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<String>,
    /// For how many seconds DeleteVolume parks it in the trash; `None` deletes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trash_retention: Option<u64>,
    /// Who had it before, if it was [adopted](crate::volume::adopt).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<Adopted>,
}

/// Who had an adopted volume, snapshot or silent parent before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    /// That driver.
    pub from: Owner,
    /// What its journal said of it, which has moved here. A release writes it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<CsiJournal>,
}

/// Who had an image before it was adopted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// ceph-csi.
    CephCsi,
    /// OpenStack Cinder.
    Cinder,
    /// A person or another tool.
    Nobody,
}

/// The entries of ceph-csi's journal about one volume or snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CsiJournal {
    /// The object that lists all volumes, or all snapshots.
    pub directory: String,
    /// Its key there, which ends in the CSI name.
    pub key: String,
    /// The value of that key: the uuid that the object and the handle end in.
    pub uuid: String,
    /// The object that is about it alone.
    pub object: String,
    /// All keys of that object with their values.
    pub entries: std::collections::BTreeMap<String, String>,
}

/// What a volume was made from, as asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The head of another volume, by volume id.
    Volume(String),
    /// A snapshot, by snapshot id.
    Snapshot(String),
    /// A snapshot of a golden image, by its location.
    Image(String),
}

/// Its id or location.
impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Source::Volume(text) | Source::Snapshot(text) | Source::Image(text)) = self;
        formatter.write_str(text)
    }
}

/// A link to a parent snapshot, as the creation of a clone plans it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Pool of the parent.
    pub pool: String,
    /// RADOS namespace of the parent.
    pub namespace: String,
    /// Id of the parent image.
    pub image_id: String,
    /// Name of the snapshot on it.
    pub snapshot: String,
}

/// What DeleteVolume does with a volume that still has snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeleteWithSnapshots {
    /// The volume becomes a silent parent; its snapshots stay listed and restorable.
    #[default]
    Retain,
    /// The request is refused, the seed's VolumeIsBusy.
    Refuse,
}

/// One node a volume is attached to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    /// The node's id.
    pub node: String,
    /// Whether it was asked for read-only.
    pub readonly: bool,
    /// Whether other nodes may have it at the same time.
    pub shared: bool,
    /// A digest of the capability asked for.
    pub capability: String,
    /// Whether it is among what its [`Node`] has, because volumes on nodes were limited when it was
    /// published.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub counted: bool,
    /// The token by which the node [notes](crate::notes) its clients. `None` for what a version
    /// before notes published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// The volumes a node has, where their number is limited. Its key is the node's id.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// When each was counted in, in seconds since 1970, by its image's name. That comes before its
    /// own record says that it is published, so one counted long ago that is not published was left
    /// by a killed request.
    pub volumes: std::collections::BTreeMap<String, i64>,
}

/// A snapshot's record. Its key is the RBD snapshot's name, which is made from the CSI name alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// How far it is.
    pub state: State,
    /// The CSI name it was asked for by.
    pub name: String,
    /// The volume id of its source, also after that volume is deleted.
    pub source_volume: String,
    /// Id of the image it is on.
    pub image_id: String,
    /// librbd's id of the snapshot; 0 until it is cut.
    pub snapshot_id: u64,
    /// Size in bytes of the volume when it was cut; 0 until then.
    pub size: u64,
    /// Seconds since 1970 when it was cut.
    pub created: i64,
    /// The format clones of its volume are made in.
    pub clone_format: u8,
    /// As in [`Volume`].
    pub attempt: String,
    /// The group snapshot it is a member of, by the key of that one's record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// As in [`Volume`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<Adopted>,
}

/// A group snapshot's record. Its key is made from the CSI name alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// How far it is. `ready` is written when all members are cut, before their own records say so.
    pub state: State,
    /// The CSI name it was asked for by.
    pub name: String,
    /// Its members, by their volumes' ids.
    pub members: Vec<Member>,
    /// Seconds since 1970 when it was cut.
    pub created: i64,
    /// As in [`Volume`].
    pub attempt: String,
}

/// One snapshot of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its RBD name, which is the key of its own record.
    pub snapshot: String,
    /// The volume id of its source.
    pub source_volume: String,
    /// Id of the image it is on.
    pub image_id: String,
    /// librbd's id of it; 0 until it is cut.
    pub snapshot_id: u64,
    /// Size in bytes of the volume when it was cut; 0 until then.
    pub size: u64,
}

/// A silent parent: an image whose volume was deleted while snapshots on it were still needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silent {
    /// The volume id it had.
    pub volume: String,
    /// Seconds since 1970 when its volume was deleted.
    pub deleted: i64,
    /// That the volume can be brought back: nothing collects the image until this is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trash: Option<Trash>,
    /// The name of its image, if it was adopted under a name that does not say that it is silent.
    /// An adopted image keeps its name, so that its former driver finds it after a release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// As in [`Volume`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<Adopted>,
}

/// What is kept of a volume in the trash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trash {
    /// Seconds since 1970 when it is purged.
    pub until: i64,
    /// The volume's record.
    pub record: Box<Volume>,
}

/// A kind of record.
pub trait Record: Serialize + DeserializeOwned + Clone + PartialEq {
    /// What the keys of this kind begin with.
    const KIND: &'static str;

    /// Whether it says that a controller is at work, which holds its lease.
    fn is_unfinished(&self) -> bool {
        false
    }

    /// The version of its form: the first in which a driver that knows no more of it than that
    /// version loses nothing when it writes the record anew. Drivers of earlier versions refuse it.
    fn version(&self) -> u32 {
        1
    }
}

impl Record for Volume {
    const KIND: &'static str = "volume/";

    /// Version 2 has tokens: a driver that dropped one would leave a node unfenced. Version 3 has
    /// the trash, which a driver that does not know it would delete for good, and the journal of
    /// the former driver, without which there is no way back.
    fn version(&self) -> u32 {
        let has_token = |publication: &Publication| publication.token.is_some();
        if self.trash_retention.is_some() || self.adopted.is_some() {
            return 3;
        }
        if self.published.iter().any(has_token) { 2 } else { 1 }
    }

    fn is_unfinished(&self) -> bool {
        self.state != State::Ready
    }
}
impl Record for Snapshot {
    const KIND: &'static str = "snapshot/";

    /// As that of a volume.
    fn version(&self) -> u32 {
        if self.adopted.is_some() { 3 } else { 1 }
    }

    /// Who works on a member holds the lease of its group.
    fn is_unfinished(&self) -> bool {
        self.state != State::Ready && self.group.is_none()
    }
}
impl Record for Group {
    const KIND: &'static str = "group/";

    fn is_unfinished(&self) -> bool {
        self.state != State::Ready
    }
}
impl Record for Node {
    const KIND: &'static str = "node/";
}
impl Record for Silent {
    const KIND: &'static str = "silent/";

    /// Version 3 has the trash: a driver that does not know it would collect the image.
    fn version(&self) -> u32 {
        if self.trash.is_some() { 3 } else { 1 }
    }
}
