use crate::rbd;
use nix::errno::Errno;

/// Why an operation on volumes did not end in success.
///
/// Every variant's message is written for the person who reads the event on their PVC: what, which
/// object, why, and what to do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The volume, snapshot or source is not there.
    #[error("{0}")]
    NotFound(String),
    /// The name is taken by something that differs from what was asked for.
    #[error("{0}")]
    AlreadyExists(String),
    /// The request can never be fulfilled as it is.
    #[error("{0}")]
    Invalid(String),
    /// The size asked for is outside what can be had.
    #[error("{0}")]
    OutOfRange(String),
    /// The caller or an administrator must act first, for example take another client's image out
    /// of the way.
    #[error("{0}")]
    FailedPrecondition(String),
    /// The volume is in use: published to a node, or open somewhere.
    #[error("{0}")]
    InUse(String),
    /// The volume may not be deleted with the snapshots it has.
    #[error(
        "{volume} still has the snapshots {}: delete its snapshots first, or use deleteWithSnapshots=retain",
        snapshots.join(", ")
    )]
    HasSnapshots {
        /// Its image spec.
        volume: String,
        /// The id of its image.
        image_id: String,
        /// The RBD names of the snapshots.
        snapshots: Vec<String>,
    },
    /// No room is left, and what was begun has been undone.
    #[error("{0}")]
    Exhausted(String),
    /// Another operation is at work on the same object at the same time. Nothing is lost; try
    /// again.
    #[error("{0}; try again")]
    Conflict(String),
    /// Ceph failed before anything was changed, or after everything begun was undone.
    #[error("{0}")]
    Rbd(#[from] rbd::Error),
    /// The user may not read a golden image, or not add a clone to its list.
    #[error("the user may not clone the image {image}: {cause}")]
    MayNotClone {
        /// Its spec, with its snapshot.
        image: String,
        /// Its pool.
        pool: String,
        /// Its RADOS namespace, "" for the default one.
        namespace: String,
        /// What Ceph said.
        cause: Box<rbd::Error>,
        /// Whether something was begun that could not be undone.
        is_begun: bool,
    },
    /// Another controller has begun the work and is gone, and the user may not fence it.
    #[error(
        "another controller that is gone has begun this, and to take its work over it is put on Ceph's blocklist: {0}"
    )]
    MayNotFence(rbd::Error),
    /// Ceph failed half-way. What was begun is recorded, and the same request continues it.
    #[error("not finished, and the same request will continue it: {0}")]
    Unfinished(rbd::Error),
}

/// What operations on volumes return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// This error, said of work that had already begun to change things.
    #[must_use]
    pub fn after_a_change(self) -> Error {
        match self {
            Error::Rbd(error) => Error::Unfinished(error),
            other => other,
        }
    }

    /// Whether no retry of the same request could end differently, so that the caller may give up.
    /// What had begun must be undone before such an error is returned.
    pub fn is_final(&self) -> bool {
        match self {
            Error::Conflict(_) | Error::Unfinished(_) | Error::MayNotFence(_) => false,
            Error::Rbd(cause) => !cause.class().may_pass(),
            Error::MayNotClone { is_begun, .. } => !is_begun,
            _ => true,
        }
    }

    /// This error as the answer to a request that left nothing behind: a lack of room says so.
    #[must_use]
    pub fn after_an_undo(self) -> Error {
        match self {
            Error::Rbd(cause) if cause.class() == rbd::Class::Full => {
                Error::Exhausted(format!("there is no room, and nothing was left behind: {cause}"))
            }
            other => other,
        }
    }

    /// Whether Ceph answered with this errno.
    pub fn is(&self, errno: Errno) -> bool {
        matches!(
            self,
            Error::Rbd(error) | Error::Unfinished(error) | Error::MayNotFence(error) if error.errno == errno
        )
    }
}
