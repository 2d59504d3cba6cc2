use crate::{rbd, volume};

/// Why a transfer did not come to its end. The message is for the person who asked for it: what,
/// which object, why, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was asked for cannot be done as things are, and nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// What came is not what was expected. Nothing is left of it.
    #[error(
        "{what} has the checksum {found}, and {expected} was expected: it is damaged, or another one"
    )]
    Checksum {
        /// Which source or target.
        what: String,
        /// The checksum that it should have.
        expected: String,
        /// The checksum that it has.
        found: String,
    },
    /// A file, an object store or a program failed.
    #[error("{0}")]
    Failed(String),
    /// Ceph failed.
    #[error(transparent)]
    Rbd(#[from] rbd::Error),
    /// A look at the catalogue failed.
    #[error(transparent)]
    Volume(#[from] volume::Error),
    /// The caller asked to stop.
    #[error("stopped")]
    Cancelled,
}

/// What transfers return.
pub type Result<T> = std::result::Result<T, Error>;

/// For `map_err`: an error of a file or stream, said with what was done to which one.
pub(crate) fn failed<E: std::fmt::Display>(
    what: impl std::fmt::Display,
) -> impl FnOnce(E) -> Error {
    move |error| Error::Failed(format!("{what}: {error}"))
}
