use std::fmt;
use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};

/// What an operation is doing now, for those who wait for it: a step, and how far it is in per cent when that is known.
#[derive(Debug, Default)]
pub struct Activity(Mutex<(String, Option<u8>)>);

impl Activity {
    /// Says which step begins.
    pub fn begin(&self, step: impl Into<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (step.into(), None);
    }

    /// Says how far the step is, in the form [`crate::rbd::Progress`] wants. Never asks to stop.
    pub fn progress(&self) -> impl FnMut(u64, u64) -> ControlFlow<()> + Send + '_ {
        |done, total| {
            let percent = done.saturating_mul(100).checked_div(total).unwrap_or(0).min(100);
            self.0.lock().unwrap_or_else(PoisonError::into_inner).1 = u8::try_from(percent).ok();
            ControlFlow::Continue(())
        }
    }
}

impl fmt::Display for Activity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            (step, _) if step.is_empty() => write!(formatter, "waiting for Ceph"),
            (step, None) => write!(formatter, "{step}"),
            (step, Some(percent)) => write!(formatter, "{step} ({percent} %)"),
        }
    }
}
