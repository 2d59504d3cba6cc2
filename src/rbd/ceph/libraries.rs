//! Which librados and librbd the process runs on, and what they lack.

use std::ffi::{CStr, c_char, c_int};
use std::ptr::null_mut;
use std::sync::LazyLock;

use super::newer::{self, DIFF_ITERATE3};
use super::sys::{rados, rbd_version};
use crate::rbd::{Errno, Release};

/// librados and librbd as they are loaded. Both are of one release: each demands the same
/// `libceph-common`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Libraries {
    /// Ceph's version, such as `20.2.4`; its first number alone when the libraries do not tell
    /// more.
    pub ceph: String,
    /// The release that `ceph` is of.
    pub release: Release,
    /// librbd's own version, such as `1.20.0`.
    pub librbd: String,
    /// librados' own version, such as `3.0.0`.
    pub librados: String,
    /// What a newer release has, each with what follows from it. Empty when nothing is missing.
    pub lacks: Vec<&'static str>,
}

impl Libraries {
    /// The first three numbers of Ceph's version, if the libraries tell it.
    pub(super) fn numbers(&self) -> Option<[u32; 3]> {
        let mut numbers = self.ceph.split(['.', '-']).map(|number| number.parse().ok());
        Some([numbers.next()??, numbers.next()??, numbers.next()??])
    }
}

/// The libraries of this process. Costs some milliseconds the first time; nothing is connected to.
pub fn libraries() -> &'static Libraries {
    static LIBRARIES: LazyLock<Libraries> = LazyLock::new(|| Libraries {
        ceph: newer::ceph_version().unwrap_or_else(|| release().0.to_string()),
        release: release(),
        librbd: version(rbd_version),
        librados: version(rados::rados_version),
        lacks: lacks(),
    });
    &LIBRARIES
}

/// The release of the libraries. librbd's own version is 1, the release, 0.
pub(super) fn release() -> Release {
    static RELEASE: LazyLock<Release> =
        LazyLock::new(|| Release(u32::try_from(numbers(rbd_version)[1]).unwrap_or(0)));
    *RELEASE
}

fn lacks() -> Vec<&'static str> {
    let mut lacks = Vec::new();
    // Those options of a release that are about types of keys came with the types.
    if knows_option(c"mon_auth_emergency_allowed_ciphers") == Some(false) {
        lacks.push(
            "keys of the type aes256k, which Ceph 20.2.4 makes unless told otherwise: the driver's users need keys of the type aes",
        );
    }
    if DIFF_ITERATE3.is_none() {
        lacks.push("rbd_diff_iterate3: snapshots are compared by name");
    }
    lacks
}

/// Whether librados has an option, if that can be told.
fn knows_option(option: &CStr) -> Option<bool> {
    let mut cluster = null_mut();
    // SAFETY: `cluster` is a place for the handle; the names are NUL-terminated.
    if unsafe {
        rados::rados_create2(&raw mut cluster, c"ceph".as_ptr(), c"client.admin".as_ptr(), 0)
    } < 0
    {
        return None;
    }
    let mut value: [c_char; 256] = [0; 256];
    // SAFETY: the handle is valid, the name NUL-terminated; the buffer has the length given.
    let code =
        unsafe { rados::rados_conf_get(cluster, option.as_ptr(), value.as_mut_ptr(), value.len()) };
    // SAFETY: made above, and used by no other code.
    unsafe { rados::rados_shutdown(cluster) };
    Some(code != -(Errno::ENOENT as c_int))
}

type Version = unsafe extern "C" fn(*mut c_int, *mut c_int, *mut c_int);

fn numbers(function: Version) -> [c_int; 3] {
    let [mut major, mut minor, mut extra] = [0; 3];
    // SAFETY: three places for the answer.
    unsafe { function(&raw mut major, &raw mut minor, &raw mut extra) };
    [major, minor, extra]
}

fn version(function: Version) -> String {
    numbers(function).map(|number| number.to_string()).join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_say_which_they_are() {
        let libraries = libraries();
        let release = libraries.ceph.split('.').next().unwrap();
        assert_eq!(release, libraries.release.0.to_string());
        assert!(libraries.release >= Release::PACIFIC, "{libraries:?}");
        assert_eq!(libraries.librbd, format!("1.{release}.0"));
        assert_eq!(libraries.numbers().map(|numbers| numbers[0]), Some(libraries.release.0));
        // The functions came with releases, so a misspelt name shows where they are.
        let lacks_functions = libraries.lacks.iter().any(|lacks| lacks.starts_with("rbd_"));
        assert_eq!(lacks_functions, libraries.release < Release::REEF, "{libraries:?}");
    }
}
