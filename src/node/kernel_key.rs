//! Ceph keys in the kernel's keyrings, where krbd looks them up by name (`key=NAME`).
//!
//! [`with`] gives a key to one piece of work: to the calling thread and to the processes it starts,
//! through a session keyring of their own. No other process can read it. It is in no argument and
//! no file, and gone with the thread and those processes. krbd keeps a copy for as long as the
//! image is mapped.

use std::thread;

use keyutils::Keyring;
use nix::errno::Errno;
use zeroize::Zeroizing;

use super::attach::Image;
use super::error::{Error, Result};
use crate::rbd::{Key, KeyType};

/// The kernel's key type of libceph.
struct CephKey;

impl keyutils::KeyType for CephKey {
    type Description = str;
    type Payload = [u8];

    fn name() -> &'static str {
        "ceph"
    }
}

/// A key as the kernel takes it. `Unauthenticated`, without repeating it, when it is none.
pub(super) fn payload(key: &Key) -> Result<Zeroizing<Vec<u8>>> {
    key.decode().ok_or_else(|| {
        Error::Unauthenticated(
            "the Ceph key in the node-stage secret is not one as `ceph auth get-key` prints it"
                .to_owned(),
        )
    })
}

/// Refuses a key that krbd will not take. The kernel is asked, and not its version: distributions
/// bring types of keys to older ones. `FailedPrecondition` when it does not know the key's type,
/// `Unauthenticated` when the key is none. Where the kernel keeps no keys for the driver, krbd says
/// so when it maps.
pub(super) fn check(image: &Image, key: &Key) -> Result<()> {
    match with("cinderblock", &payload(key)?, || ()) {
        Err(errno) if is_refusal(errno) => Err(refused(image, key)),
        _ => Ok(()),
    }
}

/// Whether an error of [`with`]'s says that this is no key, or none of a type that the kernel
/// knows.
pub(super) fn is_refusal(errno: Errno) -> bool {
    // The unknown one is ENOTSUPP, which has a name inside the kernel alone.
    matches!(errno, Errno::EINVAL | Errno::UnknownErrno)
}

/// What to say when the kernel does not take `key` for one.
pub(super) fn refused(image: &Image, key: &Key) -> Error {
    let (major, minor) = linux_version();
    let kernel = format!("this node's kernel, Linux {major}.{minor},");
    let user = image.as_user(key.key_type());
    match user.key {
        Some(KeyType::Aes256k) => Error::FailedPrecondition(format!(
            "{}: krbd does from Linux 7.0 on. Set the StorageClass parameter mounter to rbd-nbd or fuse. {}",
            user.has_newer_key(&kernel),
            user.aes_twin()
        )),
        Some(KeyType::Other(_)) => Error::FailedPrecondition(format!(
            "{kernel} does not know the type of the key of client.{}. {}",
            user.name,
            user.aes_twin()
        )),
        Some(KeyType::Aes) | None => Error::Unauthenticated(
            "the kernel does not take the Ceph key in the node-stage secret for one".to_owned(),
        ),
    }
}

/// Version and patch level of this kernel; (0, 0) when it does not say.
pub(super) fn linux_version() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.trim().parse().ok());
    (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default())
}

/// Runs `work` with the key `payload` under `name`. The outer error is the kernel's refusal to keep
/// it; it holds no part of it.
pub(super) fn with<T: Send>(
    name: &str,
    payload: &[u8],
    work: impl FnOnce() -> T + Send,
) -> std::result::Result<T, Errno> {
    // The keyring belongs to the thread, and goes with it.
    thread::scope(|scope| {
        let run = || {
            let mut keyring =
                Keyring::join_anonymous_session().map_err(|error| Errno::from_raw(error.0))?;
            keyring
                .add_key::<CephKey, _, _>(name, payload)
                .map_err(|error| Errno::from_raw(error.0))?;
            Ok(work())
        };
        scope.spawn(run).join().unwrap_or(Err(Errno::EIO))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_none_is_not_repeated() {
        for bad in ["canary", "Y2FuYXJ5", "", "AQBcanary=="] {
            let error = payload(&Key::new(bad)).unwrap_err();
            assert!(
                matches!(error, Error::Unauthenticated(_)) && !error.to_string().contains("canary"),
                "{error}"
            );
        }
        let key = Key::new("AQAxzcBl2vH4KBAAmbGbIL2gcBuzHWBtXExEqw==");
        assert_eq!(payload(&key).unwrap().len(), 28);
    }

    #[test]
    fn a_type_the_kernel_does_not_know_is_told_with_what_to_do() {
        let image = Image {
            pool: "fast".into(),
            namespace: String::new(),
            name: "i".into(),
            monitors: String::new(),
            user: Some("csi".into()),
        };
        let error = refused(&image, &Key::new("AgAxzcBl2vH4KBAAmbGbIL2gcBuzHWBtXExEqw=="));
        let told =
            ["aes256k, as client.csi has one", "mounter to rbd-nbd or fuse", "--key_type aes"];
        assert!(
            matches!(&error, Error::FailedPrecondition(text) if told.iter().all(|part| text.contains(part))),
            "{error}"
        );
        let error = refused(&image, &Key::new("BwAxzcBl2vH4KBAAmbGbIL2gcBuzHWBtXExEqw=="));
        assert!(matches!(error, Error::FailedPrecondition(_)), "{error}");
        let error = refused(&image, &Key::new("AQAxzcBl2vH4KBAAmbGbIL2gcBuzHWBtXExEqw=="));
        assert!(matches!(error, Error::Unauthenticated(_)), "{error}");
        assert!(linux_version() > (3, 0));
    }

    #[test]
    fn what_the_work_returns_comes_back_or_the_kernel_says_why_not() {
        // This machine's kernel may know no keys of Ceph's at all.
        match with("test", &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 7], || 7) {
            Ok(result) => assert_eq!(result, 7),
            Err(errno) => {
                assert!(matches!(
                    errno,
                    Errno::ENODEV | Errno::ENOSYS | Errno::EPERM | Errno::EINVAL
                ));
            }
        }
    }
}
