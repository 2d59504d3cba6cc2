use std::ffi::c_int;

/// Bytes from which on a buffer is a mapping of its own, and goes back to the system when it is
/// freed.
const LARGE: c_int = 1 << 20;

/// From now on this process, librbd's threads among it, keeps little memory that it does not use:
/// all threads take small buffers from one heap, and large ones are given back. glibc would have a
/// heap for each thread, and each would keep several large buffers. For processes that move much
/// data.
pub fn keep_little_memory() {
    for (parameter, value) in [(nix::libc::M_ARENA_MAX, 1), (nix::libc::M_MMAP_THRESHOLD, LARGE)] {
        // SAFETY: mallopt takes numbers alone, and locks what it changes.
        unsafe { nix::libc::mallopt(parameter, value) };
    }
}
