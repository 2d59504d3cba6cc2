//! What RBD *is*, as the driver needs it: three traits, their value types, and one error.
//!
//! [`Cluster`] is a connection, [`Pool`] one RADOS namespace of one pool reached through it,
//! [`Image`] an open image. There are two implementations: [`ceph`] (librados and librbd) and
//! [`model`] (an in-memory twin with the same observable behaviour). Everything blocks; callers
//! bring their own threads.
//!
//! Promises, kept by both implementations:
//!
//! - Every error names the call and the object, and carries the errno librbd gave ([`Error`]).
//! - Nothing is cached between calls unless its document says so, so two processes see the same
//!   cluster.
//! - An [`Image`] keeps its pool and cluster alive, and is closed when dropped. An image opened
//!   read-only registers no watcher; one opened read-write does, and a watcher makes a removal fail
//!   with `EBUSY`.
//! - A pool at its quota or a full cluster refuses (`EDQUOT`, `ENOSPC`) instead of hanging;
//!   removals, renames of images and snapshots, and omap updates work there (librados' FULL_TRY and
//!   FULL_FORCE, see `ceph`).
//! - Calls may be made from several threads on one handle.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::SystemTime;

pub mod ceph;
mod error;
mod key;
pub(crate) mod keyed_mutex;
#[cfg(debug_assertions)]
mod kill;
pub mod model;
mod observed;
mod release;
mod user;

pub use error::{CLASSES, Class, Error, Result, Tolerate, class};
pub use key::{Key, KeyType};
pub use keyed_mutex::KeyedMutex;
pub use nix::errno::Errno;
pub use observed::observed;
pub use release::Release;
pub(crate) use user::User;

/// A connection to one Ceph cluster as one user.
pub trait Cluster: Send + Sync + std::fmt::Debug {
    /// The cluster's id, a UUID in lower case.
    fn fsid(&self) -> Result<String>;

    /// The monitors of the live monmap, in rank order.
    fn monitors(&self) -> Result<Vec<Monitor>>;

    /// The pool `name`, with every object of it in the RADOS namespace `namespace` ("" is the
    /// default one). `ENOENT` when there is no such pool. Namespaces are not checked here: an
    /// unknown one reads as an empty one.
    fn pool(&self, name: &str, namespace: &str) -> Result<Arc<dyn Pool>>;

    /// Sends a command (one JSON object with a `prefix`) to the monitors and returns its output.
    fn monitor_command(&self, command: &str) -> Result<Vec<u8>>;

    /// This connection's own address as the cluster's blocklist would name it, `IP:PORT/NONCE`.
    fn address(&self) -> Result<String>;

    /// Whether a client's address, as in [`Watcher::address`], is that of a connection of this
    /// process, as whichever user.
    fn is_own(&self, address: &str) -> Result<bool>;

    /// Puts a client, by its address as in [`Watcher::address`], on the cluster's blocklist for
    /// `seconds`. When this returns, this connection has the OSD map with that entry in it, so no
    /// OSD that is asked by it, or by a client that connects from now on, takes another write of
    /// that client afterwards. Its watches are gone soon. `EINVAL` for what is not the address of
    /// one client: Ceph would take a mere host for all its clients. `EPERM` for a user without the
    /// right.
    fn blocklist(&self, address: &str, seconds: u32) -> Result<()>;
}

/// One RADOS namespace of one pool: a directory of images, a trash, and plain RADOS objects with
/// omap.
pub trait Pool: Send + Sync + std::fmt::Debug {
    /// The pool's name.
    fn name(&self) -> &str;

    /// The RADOS namespace, "" for the default one.
    fn namespace(&self) -> &str;

    /// The connection this pool was opened on, to reach parents that live in other pools.
    fn cluster(&self) -> Arc<dyn Cluster>;

    /// Whether a call on this pool or on an image that was opened through it timed out: it can be
    /// on its way to the cluster still.
    fn has_timed_out(&self) -> bool;

    /// Whether the namespace is registered, as `rbd namespace create` does. Images can be created
    /// only in one that is; the default namespace always is.
    fn namespace_exists(&self) -> Result<bool>;

    /// Bytes stored, bytes available and the quota of the whole pool. `EAGAIN` for some seconds
    /// after the pool was made: the figures are the manager's last ones.
    fn stats(&self) -> Result<PoolStats>;

    /// Creates an image of `size` bytes. `EEXIST` when the name is taken, also by the remains of a
    /// killed create or remove, which open as `ENOENT` (remove it, then create again). `ENOENT`
    /// when the namespace was never registered (`rbd namespace create`).
    fn create_image(&self, name: &str, size: u64, options: &ImageOptions) -> Result<()>;

    /// Opens an image. `ENOENT` when it is not there, or is only the remains of a killed create or
    /// remove. An image in the trash opens by id.
    fn open_image(&self, image: ImageKey<'_>, mode: OpenMode) -> Result<Box<dyn Image>>;

    /// Clones the snapshot `parent` into this pool as `name`. The snapshot must be a user snapshot,
    /// protected when [`ImageOptions::clone_format`] is [`CloneFormat::V1`]. A process killed in
    /// here can leave an image that opens, has the right size and no parent.
    fn clone_image(&self, parent: &SnapshotSpec, name: &str, options: &ImageOptions) -> Result<()>;

    /// Cuts a user snapshot of each of several images here, all at one moment: no snapshot lacks a
    /// write that was acknowledged before a write that another of them holds was sent. Meanwhile
    /// writes wait; none fails.
    ///
    /// `announce` is called with the address of each connection beside this pool's own that works
    /// on this, before that one changes anything. Its error ends the call.
    ///
    /// After an error any of the snapshots may have been cut. `EBUSY` when the writers of all could
    /// not be held off at one time, which was tried for half a minute. `EROFS` when a client that
    /// has an image's exclusive lock will not share it (`rbd map --exclusive`). `EINVAL` when an
    /// image has no exclusive lock. `EEXIST` when a name is taken.
    fn create_snapshots(
        &self,
        snapshots: &[NewSnapshot],
        announce: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<()>;

    /// Removes an image, or finishes a removal of that name that was interrupted. `ENOENT` when
    /// nothing of that name is left, `EBUSY` when it has watchers, `ENOTEMPTY` when it has
    /// snapshots (parked ones without children go along with it). Works in a full pool.
    fn remove_image(&self, name: &str) -> Result<()> {
        self.remove_image_with_progress(name, &mut |_, _| ControlFlow::Continue(()))
    }

    /// [`Pool::remove_image`], telling how far it is. `progress` gets (done, total) in the
    /// implementation's own unit, and may stop it, which gives `ECANCELED` and leaves an
    /// interrupted removal.
    fn remove_image_with_progress(&self, name: &str, progress: Progress<'_>) -> Result<()>;

    /// Renames an image; works while it is open elsewhere, and in a full pool. `EEXIST` when `to`
    /// is taken by another image. Finishes a rename of the same two names that was interrupted.
    fn rename_image(&self, from: &str, to: &str) -> Result<()>;

    /// The id that an image's name stands for, without opening the image: one small read. `None`
    /// when the name is free, or of an image whose removal was interrupted late.
    fn image_id(&self, name: &str) -> Result<Option<String>>;

    /// Every image in the directory, and every removal in progress or interrupted (librbd lists
    /// those here, so a name can come twice). Cost grows with the pool: never on the way of an RPC.
    fn list_images(&self) -> Result<Vec<ImageEntry>>;

    /// The trash entry of the image with this id, if there is one.
    fn trash_get(&self, image_id: &str) -> Result<Option<TrashEntry>>;

    /// Every trash entry but removals, which [`Pool::list_images`] has. Cost grows with the trash:
    /// never on the way of an RPC.
    fn trash_list(&self) -> Result<Vec<TrashEntry>>;

    /// Moves an image to the trash, deferring its removal by `delay_seconds`. Succeeds although
    /// other clients have the image open: check watchers first.
    fn trash_move(&self, name: &str, delay_seconds: u64) -> Result<()>;

    /// Takes an image out of the trash under the name `name`.
    fn trash_restore(&self, image_id: &str, name: &str) -> Result<()>;

    /// Removes an image from the trash; `force` ignores an unexpired deferment. Errors as
    /// [`Pool::remove_image`].
    fn trash_remove(&self, image_id: &str, force: bool) -> Result<()> {
        self.trash_remove_with_progress(image_id, force, &mut |_, _| ControlFlow::Continue(()))
    }

    /// [`Pool::trash_remove`], telling how far it is as [`Pool::remove_image_with_progress`] does.
    fn trash_remove_with_progress(
        &self,
        image_id: &str,
        force: bool,
        progress: Progress<'_>,
    ) -> Result<()>;

    /// The values of `keys` in the omap of `object`; absent keys are absent from the answer. A
    /// missing object is an empty omap.
    fn omap_get(&self, object: &str, keys: &[&str]) -> Result<BTreeMap<String, Vec<u8>>>;

    /// Applies `update` to the omap of `object` in one atomic write, creating the object when
    /// missing. `ECANCELED`, and nothing written, when a guard does not hold. `EINVAL` for an empty
    /// value. Works in a full pool: these are the notes that deletions need.
    fn omap_update(&self, object: &str, update: &OmapUpdate) -> Result<()>;

    /// One page of the omap of `object`: at most `limit` entries whose keys come after `after`, in
    /// key order, and whether more follow. The answer may be shorter than `limit` although more
    /// follow.
    fn omap_list(&self, object: &str, after: &str, limit: u64) -> Result<OmapPage>;

    /// Removes a plain RADOS object and its omap. `ENOENT` when it is not there.
    fn remove_object(&self, object: &str) -> Result<()>;
}

/// An open image. Dropping it closes it.
pub trait Image: Send + Sync + std::fmt::Debug {
    /// The image's name now; in the trash, the name it had.
    fn name(&self) -> Result<String>;

    /// The image's id, which survives renames.
    fn id(&self) -> Result<String>;

    /// Size, layout and features of the head.
    fn info(&self) -> Result<ImageInfo>;

    /// Sets the size of the head in bytes. Shrinking throws the tail away: only when
    /// `allow_shrink`, else `EINVAL`.
    fn resize(&self, size: u64, allow_shrink: bool) -> Result<()>;

    /// All snapshots in all of librbd's namespaces, oldest first.
    fn snapshots(&self) -> Result<Vec<Snapshot>>;

    /// Cuts a user snapshot. Waits for a round of the monitors. `EEXIST` when the name is taken.
    fn create_snapshot(&self, name: &str) -> Result<()>;

    /// Removes a user snapshot. `EBUSY` when protected, and between the first and the last step of
    /// `rbd migration`. With children of format 2 it moves to librbd's trash namespace and goes
    /// with its last child.
    fn remove_snapshot(&self, name: &str) -> Result<()>;

    /// Removes a snapshot of any namespace by id; meant for snapshots parked in librbd's trash
    /// namespace whose last child is gone. `EBUSY` while it has children there, and between the
    /// first and the last step of `rbd migration`.
    fn remove_snapshot_by_id(&self, id: SnapshotId) -> Result<()>;

    /// Protects a user snapshot, which format 1 clones need. `EBUSY` when it is protected already.
    fn protect_snapshot(&self, name: &str) -> Result<()>;

    /// Takes protection off. `EINVAL` when it is not protected, `EBUSY` when it has children of
    /// format 1, and between the first and the last step of `rbd migration`.
    fn unprotect_snapshot(&self, name: &str) -> Result<()>;

    /// Renames a user snapshot. `EEXIST` when `to` is taken.
    fn rename_snapshot(&self, from: &str, to: &str) -> Result<()>;

    /// What the head, or the snapshot `at`, is a clone of.
    fn parent(&self, at: Option<SnapshotId>) -> Result<Option<Parent>>;

    /// The clones of the snapshot `of`, those in the trash included. `None` asks for the clones of
    /// all snapshots that this handle knows: a read-only handle knows those there were when it was
    /// opened.
    fn children(&self, of: Option<SnapshotId>) -> Result<Vec<Child>>;

    /// Copies what the head shares with its parent into the image and cuts the link; with the
    /// deep-flatten feature the snapshots' links too. `EINVAL` when the head has no parent.
    /// `progress` gets (done, total) in the implementation's own unit and may stop it, which gives
    /// `ECANCELED` and leaves the link in place. A flatten that another client does for us, because
    /// it holds the exclusive lock, does not stop.
    fn flatten(&self, progress: Progress<'_>) -> Result<()>;

    /// The value of an image metadata key, if set.
    fn metadata_get(&self, key: &str) -> Result<Option<String>>;

    /// Sets an image metadata key.
    fn metadata_set(&self, key: &str, value: &str) -> Result<()>;

    /// Removes an image metadata key; absent is fine.
    fn metadata_remove(&self, key: &str) -> Result<()>;

    /// All image metadata.
    fn metadata_list(&self) -> Result<BTreeMap<String, String>>;

    /// What keeps every client from changing the image until a person does something about it, if
    /// anything does. librbd waits for a lock of that kind for ever.
    fn hold(&self) -> Result<Option<Hold>>;

    /// The spec of the group (`rbd group`) the image belongs to, if it does. Such an image cannot
    /// be removed (`EMLINK`).
    fn group(&self) -> Result<Option<String>>;

    /// Which clients have this image open for writing, or hold another watch on its header. A
    /// client has one watch, however often it has the image open. This one is left out where this
    /// image is open for writing.
    fn watchers(&self) -> Result<Vec<Watcher>>;

    /// Reads at `offset` bytes of the head, or of the snapshot `at`, into `buffer`. The count is
    /// short only at the end, and 0 beyond it.
    fn read_at(&self, at: Option<SnapshotId>, offset: u64, buffer: &mut [u8]) -> Result<usize>;

    /// Writes all of `data` at `offset` bytes of the head. `EINVAL` beyond the end, and nothing
    /// written.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()>;

    /// Gives `length` bytes at `offset` back to the pool; they read as zeros afterwards. `EINVAL`
    /// beyond the end, and nothing discarded.
    fn discard(&self, offset: u64, length: u64) -> Result<()>;

    /// Makes all acknowledged writes durable.
    fn flush(&self) -> Result<()>;

    /// The extents of `range` in the head, or in the snapshot `query.at`, that differ from the
    /// snapshot `query.since`, or hold data at all when `None`; in order of offset. `visit` may
    /// stop the walk, which is `ECANCELED`.
    fn diff(
        &self,
        query: &Diff,
        visit: &mut (dyn FnMut(Extent) -> ControlFlow<()> + Send),
    ) -> Result<()>;
}

/// How long calls report how far they are: (done, total); `Break` asks to stop. It is called by
/// threads of librbd's while the caller waits, so it must be `Send`, quick, and must not use the
/// image it reports on.
pub type Progress<'a> = &'a mut (dyn FnMut(u64, u64) -> ControlFlow<()> + Send);

/// A librbd snapshot id, unique in its pool.
pub type SnapshotId = u64;

/// By what an image is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKey<'a> {
    /// Its name in the directory.
    Name(&'a str),
    /// Its id, which survives renames and the trash.
    Id(&'a str),
}

/// For what an image is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// No watcher, no lock; `resize`, snapshots and writes fail with `EROFS`. Size, features,
    /// snapshots and parent of the head stay as they were when it was opened (name, data, children,
    /// watchers and metadata do not).
    ReadOnly,
    /// Registers a watcher on the header for as long as the image is open, and sees the changes
    /// others make.
    ReadWrite,
}

/// A user snapshot named for cloning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotSpec {
    /// Pool of the parent image.
    pub pool: String,
    /// RADOS namespace of the parent image.
    pub namespace: String,
    /// Name of the parent image.
    pub image: String,
    /// Name of the snapshot.
    pub snapshot: String,
}

/// A snapshot to cut together with others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSnapshot {
    /// The id of its image.
    pub image_id: String,
    /// Its name.
    pub name: String,
}

/// Which of librbd's two clone formats a clone is made in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CloneFormat {
    /// The snapshot must be protected first; children are found through the pool's children index.
    V1,
    /// No protection needed; a removed snapshot with children is parked in librbd's trash
    /// namespace.
    #[default]
    V2,
}

/// How a new image is laid out. For clones and copies `None` means as the source, else the
/// cluster's default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageOptions {
    /// The feature bits, exactly these.
    pub features: Option<Features>,
    /// log2 of the object size in bytes, 12 to 25.
    pub order: Option<u8>,
    /// Stripe unit in bytes; needs `stripe_count`.
    pub stripe_unit: Option<u64>,
    /// Stripe count; needs `stripe_unit`.
    pub stripe_count: Option<u64>,
    /// Pool for the data objects. `None` means the cluster's default for clones and copies too.
    pub data_pool: Option<String>,
    /// Used by [`Pool::clone_image`] alone.
    pub clone_format: CloneFormat,
}

/// RBD image features as librbd's bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Features(pub u64);

impl Features {
    /// Copy-on-write clones.
    pub const LAYERING: Features = Features(1);
    /// Striping other than by object.
    pub const STRIPING: Features = Features(2);
    /// One writer at a time, handed over on request.
    pub const EXCLUSIVE_LOCK: Features = Features(4);
    /// A map of the objects that exist; needs exclusive-lock.
    pub const OBJECT_MAP: Features = Features(8);
    /// Quick differences between snapshots; needs object-map.
    pub const FAST_DIFF: Features = Features(16);
    /// A flatten also cuts the links of the image's snapshots.
    pub const DEEP_FLATTEN: Features = Features(32);
    /// A journal for mirroring; needs exclusive-lock.
    pub const JOURNALING: Features = Features(64);
    /// Data objects in another pool.
    pub const DATA_POOL: Features = Features(128);
    /// Between the first and the last step of `rbd migration`.
    pub const MIGRATING: Features = Features(512);
    /// Mirrored by snapshots, and not primary here.
    pub const NON_PRIMARY: Features = Features(1024);
    /// What new images get: all that today's krbd maps.
    pub const DEFAULT: Features = Features(1 | 4 | 8 | 16 | 32);

    /// Whether all bits of `other` are set.
    pub fn contains(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits of both.
    #[must_use]
    pub fn union(self, other: Features) -> Features {
        Features(self.0 | other.0)
    }
}

/// Head of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// Size in bytes.
    pub size: u64,
    /// log2 of the object size in bytes.
    pub order: u8,
    /// Feature bits.
    pub features: Features,
    /// Stripe unit in bytes.
    pub stripe_unit: u64,
    /// Stripe count.
    pub stripe_count: u64,
}

/// A snapshot of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Unique in the pool.
    pub id: SnapshotId,
    /// The name; in the trash namespace librbd's own.
    pub name: String,
    /// Size in bytes of the image when it was cut.
    pub size: u64,
    /// Which of librbd's namespaces it is in.
    pub kind: SnapshotKind,
    /// Whether it is protected (format 1), or taking the protection off was interrupted: then it
    /// cannot be cloned.
    pub protected: bool,
    /// When it was cut.
    pub created: SystemTime,
}

/// librbd's snapshot namespaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotKind {
    /// Made by a person or a driver, addressed by name.
    User,
    /// Part of a group snapshot.
    Group,
    /// Removed while it had format 2 children; goes with the last of them.
    Trash {
        /// The name it had.
        original_name: String,
    },
    /// Made by mirroring.
    Mirror,
    /// In a namespace that only a later librbd knows: librbd's own.
    Unknown,
}

/// What an image or a snapshot is a clone of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// Pool of the parent image.
    pub pool: String,
    /// RADOS namespace of the parent image.
    pub namespace: String,
    /// Id of the parent image.
    pub image_id: String,
    /// Name of the parent image when this image was opened; in the trash, the name it had.
    pub image: String,
    /// Whether the parent is in the trash.
    pub in_trash: bool,
    /// Id of the snapshot on the parent.
    pub snapshot_id: SnapshotId,
    /// Name of the snapshot on the parent; in librbd's trash namespace its own.
    pub snapshot: String,
}

/// A clone of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    /// Pool of the clone.
    pub pool: String,
    /// RADOS namespace of the clone.
    pub namespace: String,
    /// Id of the clone.
    pub image_id: String,
    /// Name of the clone; in the trash, the name it had.
    pub image: String,
    /// Whether the clone is in the trash. A removal in progress or interrupted is not, but has a
    /// trash entry.
    pub in_trash: bool,
}

/// An entry of a pool's image directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageEntry {
    /// The image's name.
    pub name: String,
    /// The image's id.
    pub id: String,
}

/// An entry of a pool's trash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrashEntry {
    /// The image's id.
    pub id: String,
    /// The name it had.
    pub name: String,
    /// Whether this is a removal in progress, or the remains of an interrupted one.
    pub removing: bool,
    /// Whether `rbd migration` put it here and reads from it until its last step.
    pub migrating: bool,
}

/// What keeps every client from changing an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hold {
    /// A lock that an administrator took by hand, or another tool took (`rbd lock add`). The
    /// exclusive lock, which librbd and krbd hand to each other, is none.
    Lock {
        /// The name it was given.
        id: String,
        /// Who took it, as in `client.4123`.
        client: String,
        /// The address of that client then.
        address: String,
    },
    /// It is mirrored, and not primary in this cluster.
    Mirrored,
}

/// A client that watches an image's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watcher {
    /// Its address as the blocklist would name it, `IP:PORT/NONCE`.
    pub address: String,
    /// Its global client id.
    pub client: u64,
    /// The watch's cookie.
    pub cookie: u64,
}

/// Whether this is the address of one client, `IP:PORT/NONCE`.
fn is_client_address(address: &str) -> bool {
    address.split_once('/').is_some_and(|(socket, nonce)| {
        socket.parse::<SocketAddr>().is_ok() && nonce.parse::<u32>().is_ok()
    })
}

/// A monitor of the live monmap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Monitor {
    /// Its name.
    pub name: String,
    /// Where it speaks msgr2, if it does.
    pub v2: Option<SocketAddr>,
    /// Where it speaks the legacy protocol, if it does.
    pub v1: Option<SocketAddr>,
}

/// Space of a pool, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStats {
    /// Stored by clients, before replication.
    pub stored: u64,
    /// What clients may still store before the fullest OSD is full.
    pub max_available: u64,
    /// The quota in bytes, if there is one.
    pub quota: Option<u64>,
}

impl PoolStats {
    /// Per cent from which a pool is nearly full: where Ceph's own warning begins.
    pub const NEARLY_FULL: u64 = 85;

    /// Bytes the pool still takes: what the fullest OSD leaves, within the quota.
    pub fn room(&self) -> u64 {
        let quota = self.quota.map_or(u64::MAX, |quota| quota.saturating_sub(self.stored));
        self.max_available.min(quota)
    }

    /// How much of what the pool can hold it holds.
    pub fn percent(&self) -> u64 {
        let whole = u128::from(self.stored) + u128::from(self.room());
        let percent = (u128::from(self.stored) * 100).checked_div(whole).unwrap_or(0);
        u64::try_from(percent).unwrap_or(100)
    }
}

/// An atomic change of one object's omap.
#[derive(Debug, Clone, Default)]
pub struct OmapUpdate {
    /// What must hold for the change to happen.
    pub guards: Vec<Guard>,
    /// Keys to set, with their values, which must not be empty.
    pub set: Vec<(String, Vec<u8>)>,
    /// Keys to remove; absent is fine.
    pub remove: Vec<String>,
}

/// A condition on one omap key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guard {
    /// The key is not there.
    Absent(String),
    /// The key has exactly this value, which must not be empty.
    Equals(String, Vec<u8>),
}

impl Guard {
    /// The key it is about.
    pub fn key(&self) -> &str {
        let (Guard::Absent(key) | Guard::Equals(key, _)) = self;
        key
    }

    /// Whether it holds when this is the key's value.
    pub fn holds(&self, found: Option<&[u8]>) -> bool {
        match self {
            Guard::Absent(_) => found.is_none(),
            Guard::Equals(_, value) => found == Some(value),
        }
    }
}

/// One page of an omap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OmapPage {
    /// Entries in key order.
    pub entries: Vec<(String, Vec<u8>)>,
    /// Whether keys follow the last entry.
    pub more: bool,
}

/// What [`Image::diff`] compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Diff {
    /// The newer side: a snapshot, or the head.
    pub at: Option<SnapshotId>,
    /// The older side: a snapshot, or nothing (then: allocated extents).
    pub since: Option<SnapshotId>,
    /// First byte.
    pub offset: u64,
    /// Number of bytes; clamped to the end.
    pub length: u64,
    /// Whether data that is only in the parent counts.
    pub include_parent: bool,
    /// Answer in whole objects, which is quick with fast-diff.
    pub whole_object: bool,
}

/// One extent of a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
    /// Whether it holds data now (`false`: it was discarded).
    pub exists: bool,
}
