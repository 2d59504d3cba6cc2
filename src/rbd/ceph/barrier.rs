//! Several threads that go on together, or not at all.

use std::ops::ControlFlow;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Where a number of threads wait for each other. Once it was decided that they go on, or that they
/// do not, that stands.
#[derive(Debug)]
pub(super) struct Barrier {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    missing: usize,
    decided: Option<ControlFlow<()>>,
}

impl Barrier {
    /// A barrier for `expected` threads.
    pub(super) fn of(expected: usize) -> Barrier {
        Barrier {
            state: Mutex::new(State { missing: expected, decided: None }),
            changed: Condvar::new(),
        }
    }

    /// Comes to the barrier: `Continue` when all have come within `patience` of each other, `Break`
    /// when it was called off, or is now, because a thread is missing.
    pub(super) fn join(&self, patience: Duration) -> ControlFlow<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.missing = state.missing.saturating_sub(1);
        if state.missing == 0 && state.decided.is_none() {
            state.decided = Some(ControlFlow::Continue(()));
            self.changed.notify_all();
        }
        let deadline = Instant::now() + patience;
        loop {
            if let Some(decided) = state.decided {
                return decided;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.decided = Some(ControlFlow::Break(()));
                self.changed.notify_all();
                return ControlFlow::Break(());
            }
            state =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Lets no thread go on, unless all have met already.
    pub(super) fn call_off(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.decided.get_or_insert(ControlFlow::Break(()));
        self.changed.notify_all();
    }

    /// Whether nothing was decided yet.
    pub(super) fn is_open(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).decided.is_none()
    }

    /// Whether it was decided that no thread goes on.
    pub(super) fn is_off(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(state.decided, Some(ControlFlow::Break(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    const LONG: Duration = Duration::from_mins(1);

    #[test]
    fn all_go_on_when_the_last_has_come() {
        let barrier = Barrier::of(3);
        let all = thread::scope(|scope| {
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(|| barrier.join(LONG))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(all, [ControlFlow::Continue(()); 3]);
        barrier.call_off();
        assert!(!barrier.is_off());
    }

    #[test]
    fn none_goes_on_without_the_last() {
        let barrier = Barrier::of(2);
        assert_eq!(barrier.join(Duration::from_millis(1)), ControlFlow::Break(()));
        assert_eq!(barrier.join(LONG), ControlFlow::Break(()));
        assert!(barrier.is_off());
    }

    #[test]
    fn a_barrier_that_is_called_off_lets_all_go() {
        let barrier = Barrier::of(2);
        let early = thread::scope(|scope| {
            let early = scope.spawn(|| barrier.join(LONG));
            barrier.call_off();
            early.join().unwrap()
        });
        assert_eq!(early, ControlFlow::Break(()));
    }
}
