//! Calls that may never return: they get a thread of their own, and their callers a deadline.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use super::error::{Error, Result};

/// Runs `work` on a thread of its own. `Unavailable`, naming `what`, when it has no outcome within
/// `patience`; the thread is left behind then and ends when what it waits for does.
pub(super) fn bounded<T: Send + 'static>(
    what: &str,
    patience: Duration,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = mpsc::channel();
    std::thread::Builder::new()
        .name("bounded".to_owned())
        // The caller listens no more when the answer comes too late.
        .spawn(move || drop(sender.send(work())))
        .map_err(|error| {
            Error::Unavailable(format!("{what}: no thread is to be had for it: {error}"))
        })?;
    receiver.recv_timeout(patience).unwrap_or_else(|_| {
        Err(Error::Unavailable(format!(
            "{what}: there was no answer within {} s",
            patience.as_secs()
        )))
    })
}

/// Looks at things that may not answer, one look at each thing at a time: what hangs keeps one
/// thread, however often it is asked about.
#[derive(Debug, Default)]
pub(super) struct Looks(Arc<UnderWay>);

/// What is being looked at.
#[derive(Debug, Default)]
struct UnderWay {
    things: Mutex<BTreeSet<String>>,
    /// A look came back.
    back: Condvar,
}

impl Looks {
    /// [`bounded`], after an earlier look at `what` has come back. `Unavailable` when that one does
    /// not within `patience` either.
    pub(super) fn look<T: Send + 'static>(
        &self,
        what: &str,
        patience: Duration,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let is_out = |things: &mut BTreeSet<String>| things.contains(what);
        let (mut things, waited) = self
            .0
            .back
            .wait_timeout_while(self.0.lock(), patience, is_out)
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() && things.contains(what) {
            return Err(Error::Unavailable(format!(
                "{what}: it has not answered since it was last asked"
            )));
        }
        things.insert(what.to_owned());
        drop(things);
        let back = Back { under_way: Arc::clone(&self.0), what: what.to_owned() };
        bounded(what, patience, move || {
            let outcome = work();
            drop(back);
            outcome
        })
    }
}

/// Notes that a look came back, also when it panicked or never began.
struct Back {
    under_way: Arc<UnderWay>,
    what: String,
}

impl Drop for Back {
    fn drop(&mut self) {
        self.under_way.lock().remove(&self.what);
        self.under_way.back.notify_all();
    }
}

impl UnderWay {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.things.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn an_outcome_in_time_is_returned_and_a_late_one_is_not_waited_for() {
        let second = Duration::from_secs(1);
        assert_eq!(bounded("counting", second, || Ok(3)).unwrap(), 3);
        let refused = bounded::<()>("asking", second, || Err(Error::NotFound("gone".into())));
        assert!(matches!(refused, Err(Error::NotFound(_))));
        let (release, hold) = mpsc::channel::<()>();
        let late = bounded("looking at it", Duration::from_millis(20), move || {
            let _released = hold.recv();
            Ok(())
        });
        assert!(
            matches!(&late, Err(Error::Unavailable(text)) if text.contains("looking at it")),
            "{late:?}"
        );
        drop(release); // which a call that had waited would never have come to
    }

    #[test]
    fn a_look_waits_for_an_earlier_one_that_comes_back() {
        let looks = Looks::default();
        let long = Duration::from_mins(5);
        let (release, hold) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let (begun, has_begun) = mpsc::channel();
            let first = scope.spawn(|| {
                looks.look("this", long, move || {
                    begun.send(()).unwrap();
                    let _released = hold.recv();
                    Ok(1)
                })
            });
            has_begun.recv().unwrap();
            let second = scope.spawn(|| looks.look("this", long, || Ok(2)));
            looks.look("that", long, || Ok(())).unwrap();
            assert!(!second.is_finished());
            drop(release);
            assert_eq!(first.join().unwrap().unwrap(), 1);
            assert_eq!(second.join().unwrap().unwrap(), 2);
        });
    }

    #[test]
    fn what_hangs_keeps_one_thread_and_answers_again_later() {
        let looks = Looks::default();
        let (release, hold) = mpsc::channel::<()>();
        let hang = move || {
            let _released = hold.recv();
            Ok(())
        };
        let soon = Duration::from_millis(20);
        assert!(matches!(looks.look("this", soon, hang), Err(Error::Unavailable(_))));
        let again = looks.look("this", soon, || Ok(()));
        assert!(
            matches!(&again, Err(Error::Unavailable(text)) if text.contains("last asked")),
            "{again:?}"
        );
        looks.look("that", soon, || Ok(())).unwrap();
        drop(release);
        let deadline = Instant::now() + Duration::from_mins(5);
        while looks.look("this", Duration::from_secs(1), || Ok(())).is_err() {
            assert!(Instant::now() < deadline);
        }
    }
}
