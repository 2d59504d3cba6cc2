//! Why a node operation did not succeed.

use std::fmt;
use std::path::Path;

/// The result of a node operation.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a node operation did not succeed. The variant is what a caller acts on, the text is for
/// people: what was done to which object, why it failed, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request itself is wrong; asking again changes nothing.
    #[error("{0}")]
    InvalidArgument(String),
    /// The image is not there, or the volume is not at the path it was asked about.
    #[error("{0}")]
    NotFound(String),
    /// The volume is there already, with other arguments.
    #[error("{0}")]
    AlreadyExists(String),
    /// The state of the node or of the volume forbids it; the caller or an administrator has to act
    /// first. Nothing was changed.
    #[error("{0}")]
    FailedPrecondition(String),
    /// The asked for size cannot be had.
    #[error("{0}")]
    OutOfRange(String),
    /// Ceph does not know the user, or the key is wrong.
    #[error("{0}")]
    Unauthenticated(String),
    /// The operation stopped half-way and left work behind: ask again.
    #[error("{0}")]
    Busy(String),
    /// Something the operation needs does not answer: ask again later.
    #[error("{0}")]
    Unavailable(String),
    /// The node does not behave as it must.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// An [`Error::Internal`] for a failed system call: `what` was tried on `path`.
    pub(super) fn io(what: &str, path: &Path, error: impl fmt::Display) -> Self {
        Error::Internal(format!("cannot {what} {}: {error}", path.display()))
    }

    /// The [`Error::FailedPrecondition`] for a path where something else than the volume is
    /// mounted.
    pub(super) fn foreign_mount(path: &Path) -> Self {
        Error::FailedPrecondition(format!(
            "something that is not this volume is mounted at {}: unmount it first",
            path.display()
        ))
    }

    /// The error to give when `self` happened and undoing the work failed with `undo`. It says that
    /// work may be left over, so that the caller neither forgets the volume nor takes the answer
    /// for final.
    pub(super) fn with_failed_undo(self, undo: &Error) -> Self {
        Error::Busy(format!("{self}; and what was done so far could not be undone: {undo}"))
    }
}
