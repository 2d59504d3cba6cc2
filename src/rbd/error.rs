use nix::errno::Errno;

/// What librbd, librados or the model answered: the errno, the call that gave it, and the object it was about.
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

impl Error {
    /// An error of `call` about `object`.
    pub fn new(errno: Errno, call: &'static str, object: impl Into<String>) -> Error {
        Error { errno, call, object: object.into() }
    }
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
