//! Turns at an image that several operations of this process want to remove: librbd does not stand two removals of one image at
//! once (one of them may never return, or leave the image's name in the directory).

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, PoisonError};

static TAKEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
static GIVEN_BACK: Condvar = Condvar::new();

/// The turn at one image, given back when dropped.
#[derive(Debug)]
pub(super) struct Turn(String);

impl Turn {
    /// Waits for the turn at the image of that key, which names its cluster, pool and namespace too.
    pub(super) fn at(image: String) -> Turn {
        let taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = GIVEN_BACK
            .wait_while(taken, |taken| taken.contains(&image))
            .unwrap_or_else(PoisonError::into_inner);
        taken.insert(image.clone());
        Turn(image)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        TAKEN.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
        GIVEN_BACK.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn one_at_a_time_has_the_turn_and_others_do_not_wait_for_it() {
        static INSIDE: AtomicUsize = AtomicUsize::new(0);
        let _another = Turn::at("turn test/another".into());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let _turn = Turn::at("turn test/image".into());
                        assert_eq!(INSIDE.fetch_add(1, Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        INSIDE.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
    }
}
