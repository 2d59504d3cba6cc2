//! A mutex for each thing that several operations of this process would work on at once.
//!
//! It is a courtesy among the operations of one process. Nothing that must be true depends on it:
//! another controller knows nothing of it, and an operation that has waited too long goes ahead.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Mutexes by key. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct KeyedMutex(Arc<Mutex<HashMap<String, Arc<Slot>>>>);

/// The mutex of one key.
#[derive(Debug, Default)]
struct Slot {
    locked: Mutex<bool>,
    unlocked: Condvar,
}

/// The lock on a key, released when dropped.
#[derive(Debug)]
pub(crate) struct KeyGuard(Arc<Slot>);

impl KeyedMutex {
    /// Locks `key`. `None` when it stays locked for as long as `timeout`: an operation must not
    /// hang on a call of another one that hangs.
    pub(crate) fn lock(&self, key: &str, timeout: Duration) -> Option<KeyGuard> {
        let slot = self.slot(key);
        let locked = slot.locked.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut locked, waited) = slot
            .unlocked
            .wait_timeout_while(locked, timeout, |locked| *locked)
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return None;
        }
        *locked = true;
        drop(locked);
        Some(KeyGuard(slot))
    }

    fn slot(&self, key: &str) -> Arc<Slot> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        slots.entry(key.to_string()).or_default().clone()
    }
}

impl Drop for KeyGuard {
    fn drop(&mut self) {
        *self.0.locked.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.unlocked.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_has_the_lock_and_the_next_gets_it() {
        let mutex = KeyedMutex::default();
        let first = mutex.lock("image", Duration::ZERO).unwrap();
        assert!(mutex.lock("image", Duration::ZERO).is_none());
        assert!(mutex.lock("another", Duration::ZERO).is_some());
        let next = std::thread::spawn({
            let mutex = mutex.clone();
            move || mutex.lock("image", Duration::from_mins(1)).is_some()
        });
        drop(first);
        assert!(next.join().unwrap());
        let last = mutex.lock("image", Duration::ZERO).unwrap();
        assert!(mutex.lock("image", Duration::ZERO).is_none());
        drop(last);
    }
}
