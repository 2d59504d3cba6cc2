//! Calls that may never return: they get a thread of their own, and their callers a deadline.

use std::sync::mpsc;
use std::time::Duration;

use super::error::{Error, Result};

/// Runs `work` on a thread of its own. `Unavailable`, naming `what`, when it has no outcome within `patience`; the thread is
/// left behind then and ends when what it waits for does.
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
        .map_err(|error| Error::Unavailable(format!("{what}: no thread is to be had for it: {error}")))?;
    receiver.recv_timeout(patience).unwrap_or_else(|_| {
        Err(Error::Unavailable(format!("{what}: there was no answer within {} s", patience.as_secs())))
    })
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
        let began = Instant::now();
        let late = bounded("looking at it", Duration::from_millis(20), move || {
            let _released = hold.recv();
            Ok(())
        });
        assert!(matches!(&late, Err(Error::Unavailable(text)) if text.contains("looking at it")), "{late:?}");
        assert!(began.elapsed() < second);
        drop(release);
    }
}
