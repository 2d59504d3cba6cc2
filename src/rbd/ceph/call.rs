//! What every call into C needs: strings in, strings and lists out, and a barrier for panics in
//! callbacks.

use std::any::Any;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};

use super::sys::{librbd_progress_fn_t, size_t};
use crate::rbd::{Errno, Error, Progress, Result};

/// What a callback returns to stop librbd, and what librbd then returns.
pub(super) const STOP: c_int = -(Errno::ECANCELED as c_int);

/// The errno in a negative return value of librados or librbd.
pub(super) fn errno(code: c_int) -> Errno {
    Errno::from_raw(code.wrapping_neg())
}

/// `text` for C. `EINVAL` when it holds a NUL, which no name in Ceph can.
pub(super) fn c_string(text: &str, call: &'static str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::new(Errno::EINVAL, call, format!("{text:?}")))
}

/// A string C owns. What is not UTF-8 is shown with replacement characters: such a name was not
/// made by us, and using it in a later call finds nothing rather than something else.
///
/// # Safety
///
/// `text` is null or points to a NUL-terminated string.
pub(super) unsafe fn owned(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller promises a NUL-terminated string.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Calls `fill` with a buffer and its capacity, larger each time it answers `ERANGE`. `fill` stores
/// in the `usize` the capacity it wants, or the number of items it wrote. Gives the return value
/// and the buffer, cut to that.
pub(super) fn grow<T: Copy>(
    blank: T,
    capacity: usize,
    mut fill: impl FnMut(*mut T, &mut usize) -> c_int,
) -> (c_int, Vec<T>) {
    let mut buffer = vec![blank; capacity];
    loop {
        let mut count = buffer.len();
        let code = fill(buffer.as_mut_ptr(), &mut count);
        if code == -(Errno::ERANGE as c_int) {
            // Not every function says how much it wants, and it may want more by the next call.
            let wanted = count.max(buffer.len() * 2);
            buffer.resize(wanted, blank);
            continue;
        }
        buffer.truncate(if code < 0 { 0 } else { count });
        return (code, buffer);
    }
}

/// The text before the first NUL of a buffer C wrote.
pub(super) fn text(buffer: &[c_char]) -> String {
    let bytes: Vec<u8> =
        buffer.iter().map(|&c| c.cast_unsigned()).take_while(|&b| b != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The strings of a buffer in which each ends in a NUL.
pub(super) fn strings(buffer: &[c_char]) -> Vec<String> {
    buffer.split_inclusive(|&c| c == 0).map(text).collect()
}

/// Items whose strings C allocated, freed together when dropped.
pub(super) struct List<T> {
    items: Vec<T>,
    free: unsafe extern "C" fn(*mut T, size_t),
}

impl<T> List<T> {
    /// # Safety
    ///
    /// `items` were written by the librbd function whose cleanup function `free` is, and are freed
    /// nowhere else.
    pub(super) unsafe fn new(items: Vec<T>, free: unsafe extern "C" fn(*mut T, size_t)) -> List<T> {
        List { items, free }
    }

    pub(super) fn iter(&self) -> std::slice::Iter<'_, T> {
        self.items.iter()
    }
}

impl<T> Drop for List<T> {
    fn drop(&mut self) {
        // SAFETY: `new`'s caller promised that `free` belongs to these items and that no other code
        // frees them.
        unsafe { (self.free)(self.items.as_mut_ptr(), self.items.len()) }
    }
}

/// A closure that C calls back through a function pointer and an argument.
///
/// librbd calls from its own threads, perhaps from several at once, hence the mutex. A panic must
/// not unwind through C: it is kept, the operation is stopped, and the panic continues in
/// [`Callback::finish`].
pub(super) struct Callback<F>(Mutex<State<F>>);

struct State<F> {
    closure: F,
    stopped: bool,
    panic: Option<Box<dyn Any + Send>>,
}

impl<F: Send> Callback<F> {
    pub(super) fn new(closure: F) -> Callback<F> {
        Callback(Mutex::new(State { closure, stopped: false, panic: None }))
    }

    /// What to pass to C beside the function, which hands it to [`Callback::enter`].
    pub(super) fn argument(&self) -> *mut c_void {
        (&raw const *self).cast_mut().cast()
    }

    /// Runs the closure by way of `call`, and says to C whether to go on. After the first stop it
    /// is not run again.
    ///
    /// # Safety
    ///
    /// `argument` came from [`Callback::argument`] of a `Callback<F>` that is still there.
    pub(super) unsafe fn enter(
        argument: *mut c_void,
        call: impl FnOnce(&mut F) -> ControlFlow<()>,
    ) -> c_int {
        // SAFETY: the caller promises what `argument` is.
        let callback = unsafe { &*argument.cast::<Callback<F>>() };
        let mut state = callback.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.stopped {
            return STOP;
        }
        match catch_unwind(AssertUnwindSafe(|| call(&mut state.closure))) {
            Ok(ControlFlow::Continue(())) => return 0,
            Ok(ControlFlow::Break(())) => {}
            Err(panic) => state.panic = Some(panic),
        }
        state.stopped = true;
        STOP
    }

    /// What the call that was given this callback returned: `code`, or `ECANCELED` when it failed
    /// because the closure stopped it (librbd has several codes for that). Continues the closure's
    /// panic, if it had one.
    pub(super) fn finish(self, code: c_int) -> c_int {
        let state = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(panic) = state.panic {
            resume_unwind(panic);
        }
        if state.stopped && code < 0 { STOP } else { code }
    }
}

/// Runs `call` with `progress` in the form C wants it.
pub(super) fn with_progress(
    progress: Progress<'_>,
    call: impl FnOnce(librbd_progress_fn_t, *mut c_void) -> c_int,
) -> c_int {
    let callback = Callback::new(progress);
    let code = call(Some(report), callback.argument());
    callback.finish(code)
}

unsafe extern "C" fn report(done: u64, total: u64, argument: *mut c_void) -> c_int {
    // SAFETY: `with_progress` passes the argument of its callback, which outlives the call.
    unsafe { Callback::<Progress<'_>>::enter(argument, |progress| progress(done, total)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_grow_until_they_suffice() {
        let mut asked = Vec::new();
        let (code, buffer) = grow(0_u8, 2, |_, count| {
            asked.push(*count);
            match *count {
                2 => {
                    *count = 9; // says how much it wants
                    -(Errno::ERANGE as c_int)
                }
                9 => -(Errno::ERANGE as c_int), // does not
                _ => {
                    *count = 5;
                    0
                }
            }
        });
        assert_eq!((code, buffer.len(), asked), (0, 5, vec![2, 9, 18]));
    }

    #[test]
    fn a_failure_gives_no_items() {
        let (code, buffer) = grow(0_u8, 2, |_, _| -(Errno::ENOENT as c_int));
        assert_eq!((errno(code), buffer.len()), (Errno::ENOENT, 0));
    }

    #[test]
    fn text_ends_at_the_first_nul_or_with_the_buffer() {
        let buffer: Vec<c_char> = b"ab\0c".iter().map(|&b| b.cast_signed()).collect();
        assert_eq!((text(&buffer), text(&buffer[..2])), ("ab".to_owned(), "ab".to_owned()));
    }

    #[test]
    fn strings_with_a_nul_are_refused() {
        assert_eq!(c_string("a\0b", "rbd_open").unwrap_err().errno, Errno::EINVAL);
    }

    /// Calls back as librbd does: from another thread, on after the first refusal, and with a code
    /// of its own for it.
    fn from_another_thread(callback: librbd_progress_fn_t, argument: *mut c_void) -> c_int {
        let (callback, argument) = (callback.unwrap(), argument as usize);
        let one = move |done| {
            // SAFETY: `with_progress` gave both, and waits for this function.
            unsafe { callback(done, 10, argument as *mut c_void) }
        };
        let refusals = std::thread::spawn(move || (0..10).filter(|&done| one(done) < 0).count())
            .join()
            .unwrap();
        if refusals > 0 { -(Errno::ERESTART as c_int) } else { 0 }
    }

    #[test]
    fn progress_is_reported() {
        let mut seen = Vec::new();
        let code = with_progress(
            &mut |done, total| {
                seen.push((done, total));
                ControlFlow::Continue(())
            },
            from_another_thread,
        );
        assert_eq!((code, seen), (0, (0..10).map(|done| (done, 10)).collect()));
    }

    #[test]
    fn progress_that_stopped_a_call_is_not_asked_again() {
        let mut seen = 0;
        let code = with_progress(
            &mut |done, _| {
                seen += 1;
                if done < 5 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            },
            from_another_thread,
        );
        assert_eq!((code, seen), (STOP, 6));
    }

    #[test]
    fn a_panic_in_a_callback_comes_out_on_the_calling_thread() {
        let caught = catch_unwind(|| {
            with_progress(&mut |_, _| panic!("in a callback"), from_another_thread);
        });
        assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"in a callback"));
    }
}
