//! Backups: restore points of volumes in a folder or an object store, and volumes made of them.
//!
//! A restore point is full, or an increment to an earlier one. Its objects make a stream that
//! Ceph's own programs restore (`docs/backup.md` shows how), and its manifest tells the rest.
//!
//! [`create`], [`restore`], [`verify`] and the rest promise:
//!
//! - A restore point is there when its manifest is. A kill at any point leaves all earlier ones as
//!   they are, and the next run goes on with what was uploaded.
//! - A target needs no catalogue and no other place: what is in it is all there is to know.
//! - An increment is based on the snapshot that its parent was made of, known by its id and name.
//!   If that is gone, or is the younger one, the restore point is full.
//! - A chain goes as a whole. One that is broken is not restored.
//! - A restored volume has exactly the bytes of the restore point, was compared with it, and is
//!   never formatted.
//! - Memory holds a few objects at a time, and the list of what differs.
//!
//! It is plain blocking Rust over the [`rbd`](crate::rbd) traits and [`volume`](crate::volume), and
//! works on the model as well; the async code of the object store's client stays in `store`.

mod create;
mod diff;
mod list;
mod manifest;
mod parallel;
mod ranges;
mod read;
mod restore;
mod retention;
mod series;
mod store;
mod upload;
mod verify;

pub use create::{Create, Created, create};
pub use list::{Listing, list, show};
pub use manifest::{Chunk, Kubernetes, Layout, Manifest, Parent, Source, Stream, Volume};
pub use restore::{Restore, Restored, restore};
pub use retention::{Keep, Removed, delete, prune};
pub use series::Point;
pub use store::Store;
pub use verify::{Verified, verify};
