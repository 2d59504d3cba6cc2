//! Calls that may never return: they get a thread of their own, and their callers a deadline.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
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
        // Nobody listens any more when it comes too late.
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
pub(super) struct Looks(Arc<Mutex<BTreeSet<String>>>);

impl Looks {
    /// [`bounded`], and `Unavailable` at once while an earlier look at `what` has not come back.
    pub(super) fn look<T: Send + 'static>(
        &self,
        what: &str,
        patience: Duration,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let out = Arc::clone(&self.0);
        if !lock(&out).insert(what.to_owned()) {
            return Err(Error::Unavailable(format!(
                "{what}: it has not answered since it was last asked"
            )));
        }
        let back = Back { out, what: what.to_owned() };
        bounded(what, patience, move || {
            let outcome = work();
            drop(back);
            outcome
        })
    }
}

/// Notes that a look came back, also when it panicked or never began.
struct Back {
    out: Arc<Mutex<BTreeSet<String>>>,
    what: String,
}

impl Drop for Back {
    fn drop(&mut self) {
        lock(&self.out).remove(&self.what);
    }
}

fn lock(out: &Mutex<BTreeSet<String>>) -> MutexGuard<'_, BTreeSet<String>> {
    out.lock().unwrap_or_else(PoisonError::into_inner)
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
