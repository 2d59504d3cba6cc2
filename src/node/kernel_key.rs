//! Ceph keys in the kernel's keyrings, where krbd looks them up by name (`key=NAME`).
//!
//! [`with`] gives a key to one piece of work: to the calling thread and to the processes it starts, through a session keyring
//! of their own. It is readable by nobody else, in no argument and no file, and gone with the thread and those processes.
//! krbd keeps a copy for as long as the image is mapped.

use std::thread;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keyutils::{KeyType, Keyring};
use nix::errno::Errno;
use zeroize::Zeroizing;

use super::error::{Error, Result};
use crate::rbd::Key;

/// The kernel's key type of libceph.
struct CephKey;

impl KeyType for CephKey {
    type Description = str;
    type Payload = [u8];

    fn name() -> &'static str {
        "ceph"
    }
}

/// The kinds of key there are, as the first two bytes of one say: AES, which every kernel knows, and AES with 256 bits.
const AES: u16 = 1;
const AES256K: u16 = 2;

/// The first Linux whose libceph knows keys of AES with 256 bits.
const LINUX_WITH_AES256K: (u32, u32) = (7, 0);

/// A key as the kernel takes it. `Unauthenticated`, without repeating it, when it is none; `FailedPrecondition` when this
/// kernel is too old for its kind.
pub(super) fn payload(key: &Key) -> Result<Zeroizing<Vec<u8>>> {
    let bytes = STANDARD.decode(key.expose()).map(Zeroizing::new).ok();
    // Kind, time of creation, length, and the secret itself.
    let bytes = bytes.filter(|bytes| bytes.len() > 12).ok_or_else(|| {
        Error::Unauthenticated(
            "the Ceph key in the node-stage secret is not one as `ceph auth get-key` prints it".to_owned(),
        )
    })?;
    require_kind(u16::from_le_bytes([bytes[0], bytes[1]]), linux_version())?;
    Ok(bytes)
}

fn require_kind(kind: u16, linux: (u32, u32)) -> Result<()> {
    match kind {
        AES => Ok(()),
        AES256K if linux >= LINUX_WITH_AES256K => Ok(()),
        AES256K => Err(Error::FailedPrecondition(format!(
            "the Ceph key in the node-stage secret is of the kind aes256k, which krbd knows from Linux 7.0 on, and this node has \
             {}.{}: give the volumes' user a key of the kind aes, or set the StorageClass parameter mounter to rbd-nbd",
            linux.0, linux.1
        ))),
        other => Err(Error::FailedPrecondition(format!(
            "the Ceph key in the node-stage secret is of kind {other}, which krbd does not know: give the volumes' user a key \
             of the kind aes"
        ))),
    }
}

/// Version and patch level of this kernel; (0, 0) when it does not say.
pub(super) fn linux_version() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.trim().parse().ok());
    (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default())
}

/// Runs `work` with the key `payload` under `name`. The outer error is the kernel's refusal to keep it; it holds no part of it.
pub(super) fn with<T: Send>(
    name: &str,
    payload: &[u8],
    work: impl FnOnce() -> T + Send,
) -> std::result::Result<T, Errno> {
    // The keyring belongs to the thread, and goes with it.
    thread::scope(|scope| {
        let run = || {
            let mut keyring = Keyring::join_anonymous_session().map_err(|error| Errno::from_raw(error.0))?;
            keyring.add_key::<CephKey, _, _>(name, payload).map_err(|error| Errno::from_raw(error.0))?;
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
    fn kinds_of_keys_are_told_apart() {
        require_kind(AES, (4, 19)).unwrap();
        require_kind(AES256K, (7, 0)).unwrap();
        for (kind, linux) in [(AES256K, (6, 18)), (0, (7, 0)), (3, (9, 0))] {
            assert!(matches!(require_kind(kind, linux), Err(Error::FailedPrecondition(_))), "{kind}");
        }
        assert!(linux_version() > (3, 0));
    }

    #[test]
    fn what_the_work_returns_comes_back_or_the_kernel_says_why_not() {
        // This machine's kernel may know no keys of Ceph's at all.
        match with("test", &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 7], || 7) {
            Ok(result) => assert_eq!(result, 7),
            Err(errno) => {
                assert!(matches!(errno, Errno::ENODEV | Errno::ENOSYS | Errno::EPERM | Errno::EINVAL));
            }
        }
    }
}
