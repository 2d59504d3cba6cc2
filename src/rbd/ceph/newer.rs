//! Functions that librados and librbd of the oldest release supported lack. They are looked up in
//! the loaded libraries when they are first used, so one binary runs on all releases.
//!
//! The declarations here are checked against headers that have the functions by `tests/librbd.sh`,
//! as those of `sys` are.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::mem::transmute;
use std::sync::LazyLock;

use super::sys::{diff_callback, rbd_image_t};

pub(super) const RBD_DIFF_ITERATE_FLAG_INCLUDE_PARENT: u32 = 1;
pub(super) const RBD_DIFF_ITERATE_FLAG_WHOLE_OBJECT: u32 = 2;

/// As `rbd_diff_iterate2`, but the older side is the snapshot with the id `from_snap_id`, or
/// nothing when that is 0.
#[allow(non_camel_case_types, reason = "C's name")]
pub(super) type rbd_diff_iterate3 = unsafe extern "C" fn(
    image: rbd_image_t,
    from_snap_id: u64,
    ofs: u64,
    len: u64,
    flags: u32,
    cb: diff_callback,
    arg: *mut c_void,
) -> c_int;

/// `rbd_diff_iterate3`, which Ceph 18 has.
pub(super) static DIFF_ITERATE3: LazyLock<Option<rbd_diff_iterate3>> = LazyLock::new(|| {
    let found = symbol(c"rbd_diff_iterate3")?;
    // SAFETY: the symbol of that name is librbd's function, which librbd's header declares with
    // this type.
    Some(unsafe { transmute::<*mut c_void, rbd_diff_iterate3>(found) })
});

/// Ceph's version, such as `20.2.4`, as Ceph's own programs print it. The function is no part of
/// Ceph's interface, so it may be missing.
pub(super) fn ceph_version() -> Option<String> {
    let found = symbol(c"_Z19ceph_version_to_strv")?;
    // SAFETY: the symbol of that name is `const char *ceph_version_to_str()`, a C++ function
    // outside of all classes: its calling convention is C's.
    let function =
        unsafe { transmute::<*mut c_void, unsafe extern "C" fn() -> *const c_char>(found) };
    // SAFETY: it takes nothing and answers with a constant of the library.
    let version = unsafe { function() };
    if version.is_null() {
        return None;
    }
    // SAFETY: the constant ends in a NUL, and the library is never unloaded.
    unsafe { CStr::from_ptr(version) }.to_str().ok().map(str::to_owned)
}

/// Where the loaded libraries have `name`.
fn symbol(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: the name ends in a NUL.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}
