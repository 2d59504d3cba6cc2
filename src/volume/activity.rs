use std::fmt;
use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long nothing may be heard of an operation before it counts as hung. The longest call that
/// tells nothing of its progress is the walk over an image of many terabytes without an object map.
const GIVEN_UP: Duration = Duration::from_mins(10);

/// What an operation is doing now, for those who wait for it: a step, and how far it is in per cent
/// when that is known.
#[derive(Default)]
pub struct Activity {
    state: Mutex<State>,
    /// What it does before its heavy work begins.
    when_heavy: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

#[derive(Debug)]
struct State {
    step: String,
    /// Why an image is flattened, while one is.
    why: Option<String>,
    percent: Option<u8>,
    changed: Instant,
    /// It waits for another operation of this driver, for however long that takes.
    waits: bool,
    given_up: bool,
}

impl Default for State {
    fn default() -> State {
        State {
            step: String::new(),
            why: None,
            percent: None,
            changed: Instant::now(),
            waits: false,
            given_up: false,
        }
    }
}

impl fmt::Debug for Activity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Activity").field(&*self.lock()).finish()
    }
}

impl Activity {
    /// Says which step begins.
    pub fn begin(&self, step: impl Into<String>) {
        self.set(step.into(), None);
    }

    /// Says that it waits for other operations of this driver from now on, for however long that
    /// takes.
    pub fn begin_waiting(&self, step: impl Into<String>) {
        self.begin(step);
        self.lock().waits = true;
    }

    /// Says that the image `spec` is flattened from now on, and why.
    pub fn begin_flattening(&self, spec: &str, why: &str) {
        self.set(format!("flattening {spec}"), Some(why.to_string()));
    }

    /// Sets what is called before heavy work begins, and may block until there is room for that.
    pub fn when_heavy(&self, act: impl FnOnce() + Send + 'static) {
        *self.when_heavy.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(act));
    }

    /// Says that the work begins which may take long: a flatten, or the removal of a large image.
    /// Blocks until there is room for it. The operation counts as heavy from then on, to its end.
    pub fn begin_heavy(&self) {
        let act = self.when_heavy.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(act) = act {
            self.begin_waiting("waiting for other flattens and removals in this pool");
            act();
            self.begin("");
        }
    }

    fn set(&self, step: String, why: Option<String>) {
        let mut state = self.lock();
        *state = State { step, why, given_up: state.given_up, ..State::default() };
    }

    /// What it is doing, if that is flattening an image.
    pub fn flattening(&self) -> Option<String> {
        let state = self.lock();
        state.why.is_some().then(|| state.to_string())
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

    /// How far the step is, when that is known.
    pub fn percent(&self) -> Option<u8> {
        self.lock().percent
    }

    /// For how long nothing was heard of it: no step begun, no progress made. Zero while it waits
    /// for other operations of this driver.
    pub fn quiet_for(&self) -> Duration {
        let state = self.lock();
        if state.waits { Duration::ZERO } else { state.changed.elapsed() }
    }

    /// Has it count as hung.
    pub fn give_up(&self) {
        self.lock().given_up = true;
    }

    /// Whether a call of it counts as hung, for ever perhaps. Its connection was set aside long
    /// before. Its leases are not renewed any more, so that the same request can be carried out on
    /// another connection, which fences this one first.
    pub fn is_given_up(&self) -> bool {
        let quiet = self.quiet_for();
        let mut state = self.lock();
        state.given_up |= quiet >= GIVEN_UP;
        state.given_up
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
