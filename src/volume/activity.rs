use std::fmt;
use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What an operation is doing now, for those who wait for it: a step, and how far it is in per cent when that is known.
#[derive(Debug)]
pub struct Activity(Mutex<State>);

#[derive(Debug)]
struct State {
    step: String,
    /// Why an image is flattened, while one is.
    why: Option<String>,
    percent: Option<u8>,
    changed: Instant,
    tidying: bool,
}

impl Default for Activity {
    fn default() -> Activity {
        Activity(Mutex::new(State {
            step: String::new(),
            why: None,
            percent: None,
            changed: Instant::now(),
            tidying: false,
        }))
    }
}

impl Activity {
    /// Says which step begins.
    pub fn begin(&self, step: impl Into<String>) {
        self.set(step.into(), None);
    }

    /// Says that the image `spec` is flattened from now on, and why.
    pub fn begin_flattening(&self, spec: &str, why: &str) {
        self.set(format!("flattening {spec}"), Some(why.to_string()));
    }

    fn set(&self, step: String, why: Option<String>) {
        let mut state = self.lock();
        *state = State { step, why, percent: None, changed: Instant::now(), tidying: state.tidying };
    }

    /// What it is doing, if that is flattening an image.
    pub fn flattening(&self) -> Option<String> {
        let state = self.lock();
        state.why.is_some().then(|| state.to_string())
    }

    /// Says that what was asked for may be done, and that what it left behind is tidied up.
    pub fn tidies_up(&self) {
        self.lock().tidying = true;
    }

    /// Whether what was asked for may be done.
    pub fn is_tidying_up(&self) -> bool {
        self.lock().tidying
    }

    /// Says how far the step is, in the form [`crate::rbd::Progress`] wants. Never asks to stop.
    pub fn progress(&self) -> impl FnMut(u64, u64) -> ControlFlow<()> + Send + '_ {
        |done, total| {
            let percent = done.saturating_mul(100).checked_div(total).unwrap_or(0).min(100);
            let mut state = self.lock();
            state.percent = u8::try_from(percent).ok();
            state.changed = Instant::now();
            ControlFlow::Continue(())
        }
    }

    /// For how long nothing was heard of it: no step begun, no progress made.
    pub fn quiet_for(&self) -> Duration {
        self.lock().changed.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Activity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lock().fmt(formatter)
    }
}

impl fmt::Display for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.step.as_str(), self.percent) {
            ("", _) => write!(formatter, "waiting for Ceph")?,
            (step, None) => write!(formatter, "{step}")?,
            (step, Some(percent)) => write!(formatter, "{step} ({percent} %)")?,
        }
        match &self.why {
            Some(why) => write!(formatter, ", because {why}"),
            None => Ok(()),
        }
    }
}
