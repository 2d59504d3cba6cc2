//! Times, and how much is measured.

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How much is measured.
pub(crate) struct Settings {
    /// Times each RPC is measured alone.
    pub(crate) rounds: usize,
    /// Callers at a time.
    pub(crate) callers: Vec<usize>,
    /// The most that is asked for of each kind, by all callers of a kind.
    pub(crate) most: usize,
    /// For how long at most they ask.
    pub(crate) at_most: Duration,
    /// Volumes there are when RPCs are measured again.
    pub(crate) volumes: Vec<usize>,
    /// The page whose figures are written anew.
    pub(crate) page: Option<PathBuf>,
}

impl Settings {
    /// From the environment: `BENCH_QUICK` for a run of four minutes, `BENCH_PAGE` for the page.
    pub(crate) fn from_environment() -> Settings {
        let quick = std::env::var_os("BENCH_QUICK").is_some();
        Settings {
            rounds: if quick { 5 } else { 30 },
            callers: vec![1, 8, 64],
            most: if quick { 64 } else { 512 },
            at_most: Duration::from_secs(if quick { 2 } else { 8 }),
            volumes: if quick { vec![0, 200] } else { vec![0, 1000, 10_000] },
            page: std::env::var_os("BENCH_PAGE").map(PathBuf::from),
        }
    }
}

/// Times of one kind of work.
#[derive(Debug, Clone, Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// The time that `part` of them do not exceed; `None` when there are none.
    pub(crate) fn quantile(&self, part: f64) -> Option<Duration> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "a handful of times, and a part between 0 and 1"
        )]
        let index = (part * (sorted.len().saturating_sub(1)) as f64).round() as usize;
        sorted.get(index).copied()
    }

    pub(crate) fn median(&self) -> Option<Duration> {
        self.quantile(0.5)
    }
}

/// Milliseconds with a decimal place or two.
pub(crate) fn milliseconds(time: Option<Duration>) -> String {
    match time.map(|time| time.as_secs_f64() * 1000.0) {
        None => String::new(),
        Some(time) if time < 10.0 => format!("{time:.2}"),
        Some(time) => format!("{time:.0}"),
    }
}

/// How long `work` takes.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let begun = Instant::now();
    let result = work();
    (begun.elapsed(), result)
}

/// How long `work` takes.
pub(crate) async fn timed_rpc<T>(work: impl Future<Output = T>) -> (Duration, T) {
    let begun = Instant::now();
    let result = work.await;
    (begun.elapsed(), result)
}
