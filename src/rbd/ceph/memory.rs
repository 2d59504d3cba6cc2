use std::ffi::c_int;

/// Bytes from which on a buffer is a mapping of its own.
const LARGE: c_int = 256 << 10;

/// Heaps that threads share.
const HEAPS: c_int = 2;

/// From now on large buffers of this process, librbd's among them, go back to the system when they
/// are freed. glibc would keep them, in a heap for each of librbd's threads: several times what is
/// in use. For processes that move much data; it costs page faults.
pub fn return_large_buffers() {
    for (parameter, value) in
        [(nix::libc::M_MMAP_THRESHOLD, LARGE), (nix::libc::M_ARENA_MAX, HEAPS)]
    {
        // SAFETY: mallopt takes numbers alone, and locks what it changes.
        unsafe { nix::libc::mallopt(parameter, value) };
    }
}
