//! What the driver does with volumes and snapshots, as plain blocking Rust over the
//! [`rbd`](crate::rbd) traits.
//!
//! [`Volumes`] is one RADOS namespace of one pool as one driver instance sees it; its operations
//! are spread over this room's files, named as the RPCs are: `create`, `delete`, `snapshot`,
//! `group`, `grow`, `publish`.
//!
//! What every operation promises (`docs/lineage.md` explains it):
//!
//! - It is idempotent, and may be stopped by a kill at any call to Ceph: the same request, sent
//!   again to this or another controller, continues it and comes to one result. What was begun is
//!   in the catalogue and in the journal.
//! - A refused request has changed nothing.
//! - An image without a `ready` record was never handed out. An image the catalogue does not know
//!   is never deleted, and never adopted unless an administrator says so ([`adopt`]).
//! - Before a link to a parent snapshot is dropped, it is in the journal. What lost its reason to
//!   exist by that is removed, all the way up, by [`Volumes::settle`] after the operation, or by
//!   [`Volumes::sweep`].
//!
//! Two controllers may be at work on one volume at the same time: each sidecar elects a leader of
//! its own, and an old leader's operation may go on for an hour. A controller that makes or
//! destroys something holds its [lease]. Another one is told so until the work is done. It takes
//! the work over when the first is dead, or was silent for half a minute, and puts the first one's
//! connection on Ceph's blocklist before that. So no call of an overtaken controller lands, however
//! long its threads stood still, and a call by name needs no look at the record before it.
//!
//! It knows no gRPC, no async runtime and no Kubernetes, so tests can stop it at every step.

use crate::rbd::{self, Cluster, Errno, KeyedMutex, Pool};
use std::sync::{Arc, Mutex};
use std::time::Duration;

mod activity;
pub mod adopt;
mod backup;
pub mod catalogue;
mod clone;
mod collect;
mod create;
mod delete;
mod deletion;
mod error;
mod fence;
mod flattens;
mod golden;
mod group;
mod grow;
pub mod journal;
pub(crate) mod lease;
pub mod leftovers;
mod lineage;
mod location;
mod migration;
mod modify;
pub mod names;
mod obstacles;
pub mod overview;
mod publish;
mod restore;
mod snapshot;
mod source;
pub mod survey;
mod sweep;
pub mod temporary;
pub mod trash;
pub mod why;

pub use activity::Activity;
pub use backup::BackupHold;
pub use catalogue::{Catalogue, DeleteWithSnapshots, State};
pub use create::{CreateVolume, DEFAULT_SIZE, SECTOR, Sizes, largest};
pub use delete::Retained;
pub use error::{Error, Result};
pub use fence::Leaving;
pub use flattens::Flattens;
pub use group::{CreateGroup, GroupSource};
pub use journal::{Entry, Journal, Suspect};
pub use lease::Leases;
pub use location::ImageLocation;
pub use publish::PublishVolume;
pub use restore::{RestoreVolume, Restoring};
pub use snapshot::CreateSnapshot;
pub use source::VolumeSource;

/// The record of what a request asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made<T> {
    /// This request made it.
    Created(T),
    /// An earlier request had made it.
    Existing(T),
}

impl<T> Made<T> {
    /// Whether this request made it.
    pub fn is_new(&self) -> bool {
        matches!(self, Made::Created(_))
    }

    /// The record.
    pub fn into_record(self) -> T {
        match self {
            Made::Created(record) | Made::Existing(record) => record,
        }
    }
}

/// Which image a clone is rid of its ancestors by, when the chain is as deep as it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FlattenTarget {
    /// The source when nothing is attached to it (one flatten then serves all later clones), else
    /// the new clone.
    #[default]
    Auto,
    /// The source, also while it is attached.
    Source,
    /// The new clone; the source is never changed.
    Clone,
}

/// How lineages are kept in bounds. From the StorageClass, else the cluster's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Ancestors a volume may have once it is handed out; 0 makes every clone a full copy.
    pub max_clone_depth: u32,
    /// What is flattened at that depth.
    pub flatten_target: FlattenTarget,
    /// Whether a volume restored from a snapshot is flattened before it is handed out.
    pub flatten_on_restore: bool,
    /// Snapshots an image may have, in all of librbd's namespaces, before its oldest clones are
    /// flattened.
    pub max_snapshots: usize,
}

impl Policy {
    /// The deepest `max_clone_depth`: the kernel's rbd opens at most 16 images in a chain.
    pub const DEEPEST: u32 = 14;
    /// The largest `max_snapshots`: the kernel's rbd maps an image with at most 510 snapshots.
    pub const MOST_SNAPSHOTS: usize = 500;
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            max_clone_depth: 5,
            flatten_target: FlattenTarget::Auto,
            flatten_on_restore: false,
            max_snapshots: 450,
        }
    }
}

/// The volumes of one driver instance in one RADOS namespace of one pool.
#[derive(Debug, Clone)]
pub struct Volumes {
    pool: Arc<dyn Pool>,
    catalogue: Catalogue,
    journal: Journal,
    /// The journal where the operation began, which may be in another pool. It has a copy of all
    /// that the operation suspects elsewhere, so that this pool's sweeper finds it when the
    /// operation is killed.
    origin: Journal,
    instance: String,
    activity: Arc<Activity>,
    /// What this operation wrote into journals and has not settled.
    suspected: Arc<Mutex<Vec<Entry>>>,
    process: Process,
}

/// What the operations of one process share.
#[derive(Debug, Clone)]
pub struct Process {
    /// The leases it holds.
    pub leases: Leases,
    /// The images that it settles or deletes.
    pub images: KeyedMutex,
    /// The images they flatten.
    pub flattens: Flattens,
    /// How long one of them waits for such an image.
    pub patience: Duration,
    /// How many suspects are settled at the same time. Each takes a round of the monitors, which
    /// many can share.
    pub at_once: usize,
}

impl Default for Process {
    fn default() -> Process {
        Process {
            leases: Leases::default(),
            images: KeyedMutex::default(),
            flattens: Flattens::default(),
            patience: Duration::from_secs(20),
            at_once: 24,
        }
    }
}

impl Volumes {
    /// The volumes of `instance` in `pool`, for one operation of `process`. `activity` is told what
    /// long work is doing.
    pub fn new(
        pool: Arc<dyn Pool>,
        instance: &str,
        process: Process,
        activity: Arc<Activity>,
    ) -> Volumes {
        let journal = Journal::new(pool.clone(), instance);
        Volumes {
            catalogue: Catalogue::new(pool.clone(), instance, process.leases.of(&activity)),
            origin: journal.clone(),
            journal,
            pool,
            instance: instance.to_string(),
            activity,
            suspected: Arc::default(),
            process,
        }
    }

    /// The volumes of the same instance in the namespace `namespace` of pool `pool`. `None` when
    /// that pool is gone.
    fn elsewhere(&self, pool: &str, namespace: &str) -> Result<Option<Volumes>> {
        if pool == self.pool.name() && namespace == self.pool.namespace() {
            return Ok(Some(self.clone()));
        }
        match self.pool.cluster().pool(pool, namespace) {
            Ok(pool) => Ok(Some(Volumes {
                origin: self.origin.clone(),
                suspected: self.suspected.clone(),
                ..Volumes::new(pool, &self.instance, self.process.clone(), self.activity.clone())
            })),
            Err(error) if error.errno == Errno::ENOENT => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The pool these volumes are in.
    pub fn pool(&self) -> &Arc<dyn Pool> {
        &self.pool
    }

    /// The catalogue of these volumes.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// The journal of suspects among these images.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// What the operation is doing.
    pub fn activity(&self) -> &Activity {
        &self.activity
    }

    fn cluster(&self) -> Arc<dyn Cluster> {
        self.pool.cluster()
    }

    /// [`Pool::remove_image`], which may take hours: it tells how far it is.
    fn remove_image(&self, name: &str) -> rbd::Result<()> {
        self.activity.begin(format!("removing {}", self.spec(name)));
        self.pool.remove_image_with_progress(name, &mut self.activity.progress())
    }

    /// The image spec of `image` here, as `rbd` writes it.
    fn spec(&self, image: &str) -> String {
        image_spec(self.pool.name(), self.pool.namespace(), image)
    }
}

/// `pool/image` or `pool/namespace/image`, as `rbd` writes it.
pub fn image_spec(pool: &str, namespace: &str, image: &str) -> String {
    match namespace {
        "" => format!("{pool}/{image}"),
        namespace => format!("{pool}/{namespace}/{image}"),
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}
