//! Turns: work that several operations of this process would do to the same thing at once, done by
//! one after the other.
//!
//! A courtesy among the operations of one process, which nothing that must be true depends on:
//! another controller knows nothing of it, and who has waited for long goes ahead.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Who has a turn at what. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Turns(Arc<Mutex<HashMap<String, Arc<Place>>>>);

#[derive(Debug, Default)]
struct Place {
    taken: Mutex<bool>,
    free: Condvar,
}

/// A turn, over when dropped.
#[derive(Debug)]
pub(crate) struct Turn(Arc<Place>);

impl Turns {
    /// Waits for the turn at `what`, and takes it. `None` when it did not come for as long as
    /// `patience`: no operation is to hang on another one's call that does.
    pub(crate) fn take(&self, what: &str, patience: Duration) -> Option<Turn> {
        let place = self.at(what);
        let taken = place.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut taken, waited) = place
            .free
            .wait_timeout_while(taken, patience, |taken| *taken)
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return None;
        }
        *taken = true;
        drop(taken);
        Some(Turn(place))
    }

    fn at(&self, what: &str) -> Arc<Place> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(|_, place| Arc::strong_count(place) > 1);
        places.entry(what.to_string()).or_default().clone()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.free.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_has_the_turn_and_the_next_gets_it() {
        let turns = Turns::default();
        let first = turns.take("image", Duration::ZERO).unwrap();
        assert!(turns.take("image", Duration::ZERO).is_none());
        assert!(turns.take("another", Duration::ZERO).is_some());
        let next = std::thread::spawn({
            let turns = turns.clone();
            move || turns.take("image", Duration::from_mins(1)).is_some()
        });
        drop(first);
        assert!(next.join().unwrap());
        let last = turns.take("image", Duration::ZERO).unwrap();
        assert!(turns.take("image", Duration::ZERO).is_none());
        drop(last);
    }
}
