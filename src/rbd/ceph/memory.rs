use std::ffi::c_int;

/// Bytes below which a buffer comes from the heap: more than any has. The most that glibc takes.
const LARGE: c_int = 32 << 20;

/// Bytes at the end of the heap that the process keeps when they are free.
const KEPT: c_int = 128 << 20;

/// From now on all threads of this process, librbd's among them, take memory from one heap, and
/// what one frees another one takes. glibc would have a heap for each thread, and each would keep
/// several large buffers; giving those back to the system each time costs as much as moving the
/// bytes, in page faults. For processes that move much data.
pub fn share_one_heap() {
    for (parameter, value) in [
        (nix::libc::M_ARENA_MAX, 1),
        (nix::libc::M_MMAP_THRESHOLD, LARGE),
        (nix::libc::M_TRIM_THRESHOLD, KEPT),
    ] {
        // SAFETY: mallopt takes numbers alone, and locks what it changes.
        unsafe { nix::libc::mallopt(parameter, value) };
    }
}
