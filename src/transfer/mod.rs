//! Moving whole disks: from a file, a stream or an object store into an image, and from an image or
//! a snapshot out to one.
//!
//! [`import`] and [`export`] promise:
//!
//! - What has the name that was asked for is whole: an image is filled under another name and
//!   renamed, a file as well, and an object is there once its last part is.
//! - A transfer that fails, or is cancelled through its [`Job`], leaves nothing. What a killed one
//!   leaves goes with the next run, and `cinderblock gc` finds it ([`crate::volume::temporary`]).
//! - Zeros are not written and holes not read, where both sides have holes.
//! - Memory does not grow with the disk.
//! - An export reads a snapshot: of the moment it began, if none is named.
//!
//! The bytes go through `blocks`, whose `Source` and `Target` are what each kind of side
//! implements. It is plain blocking Rust over the [`rbd`](crate::rbd) traits, and works on the
//! model as well; the async code of the object store's client stays in `object`.

mod blocks;
pub mod bounded;
mod checksum;
mod error;
mod export;
mod file;
mod format;
pub mod golden;
mod hold;
mod image;
mod import;
mod job;
mod object;
mod place;
mod qemu;
mod stream;

pub use checksum::{Algorithm, Checksum, Wanted};
pub(crate) use error::failed;
pub use error::{Error, Result};
pub use export::{Export, Exported, Which, export};
pub use format::Format;
pub(crate) use import::check_name;
pub use import::{Import, Imported, import};
pub use job::Job;
pub use object::Object;
pub(crate) use object::{chain, s3};
pub use place::{Opener, Place};
pub use qemu::Tools;
