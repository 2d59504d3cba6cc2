use nix::errno::Errno;

/// What librbd, librados or the model answered: the errno, the call that gave it, and the object it
/// was about.
///
/// The message never holds a key: objects are pools, images, snapshots, omap objects and addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call} on {object}: {} ({errno:?})", errno.desc())]
pub struct Error {
    /// The errno, positive as in `errno.h`.
    pub errno: Errno,
    /// The C function, or the step of ours, that failed.
    pub call: &'static str,
    /// What it was about, as an image spec where there is one (`pool/namespace/image@snapshot`).
    pub object: String,
}

/// What every call of the `rbd` traits returns.
pub type Result<T> = std::result::Result<T, Error>;

/// What an errno means to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The cluster does not know the user, or the key is another.
    Unauthenticated,
    /// The user lacks capabilities.
    Forbidden,
    /// The object is not there.
    Gone,
    /// Another client is at work on the object.
    Contended,
    /// There is no room.
    Full,
    /// It is refused until a person does something about the object.
    Refused,
    /// The cluster, or a part of it, cannot be reached or cannot answer.
    Away,
    /// Any other errno.
    Unknown,
}

/// The one table of what errnos mean.
pub const CLASSES: &[(Errno, Class)] = &[
    (Errno::EACCES, Class::Unauthenticated),
    (Errno::EPERM, Class::Forbidden),
    (Errno::ENOENT, Class::Gone),
    (Errno::EBUSY, Class::Contended),
    (Errno::ECANCELED, Class::Contended),
    (Errno::EEXIST, Class::Contended),
    (Errno::ENOSPC, Class::Full),
    (Errno::EDQUOT, Class::Full),
    (Errno::EROFS, Class::Refused),
    (Errno::EMLINK, Class::Refused),
    (Errno::ENOTEMPTY, Class::Refused),
    (Errno::ETIMEDOUT, Class::Away),
    (Errno::ESHUTDOWN, Class::Away),
    (Errno::ENOTCONN, Class::Away),
    (Errno::ECONNREFUSED, Class::Away),
    (Errno::ECONNRESET, Class::Away),
    (Errno::EHOSTUNREACH, Class::Away),
    (Errno::ENETUNREACH, Class::Away),
    (Errno::EAGAIN, Class::Away),
    (Errno::EINTR, Class::Away),
    (Errno::EMFILE, Class::Away),
    (Errno::EIO, Class::Away),
];

impl Class {
    /// Whether the same request may succeed later although no administrator does anything about it.
    pub fn may_pass(self) -> bool {
        matches!(self, Class::Gone | Class::Contended | Class::Away)
    }
}

impl Error {
    /// What the errno means.
    pub fn class(&self) -> Class {
        class(self.errno)
    }

    /// An error of `call` about `object`.
    pub fn new(errno: Errno, call: &'static str, object: impl Into<String>) -> Error {
        Error { errno, call, object: object.into() }
    }
}

/// What `errno` means.
pub fn class(errno: Errno) -> Class {
    CLASSES.iter().find(|(known, _)| *known == errno).map_or(Class::Unknown, |(_, class)| *class)
}

/// Treats one errno as "already in the wanted state".
pub trait Tolerate {
    /// `Ok(())` when this is `Ok` or failed with `errno`.
    fn tolerate(self, errno: Errno) -> Result<()>;
}

impl Tolerate for Result<()> {
    fn tolerate(self, errno: Errno) -> Result<()> {
        match self {
            Err(error) if error.errno == errno => Ok(()),
            other => other,
        }
    }
}
