//! How long the current thread has worked for a statement without a pause.
//!
//! A *step* begins when a task of a statement is polled, and ends when this poll returns.
//!
//! Invariant: polls within a poll belong to its step.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::platform;

thread_local! {
    static STEP: Cell<Option<Step>> = const { Cell::new(None) };
}

/// The step of a thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    began: Instant,
    /// The processor time of the thread when the step began.
    cpu: Duration,
}

impl Step {
    /// Begins a step of the current thread; `None` if it is in one.
    pub(super) fn begin() -> Option<Self> {
        if STEP.get().is_some() {
            return None;
        }
        let step = Self { began: Instant::now(), cpu: platform::thread_cpu() };
        STEP.set(Some(step));
        Some(step)
    }

    /// Ends the step of the current thread.
    pub(super) fn end() {
        STEP.set(None);
    }

    /// Returns the step that the current thread is in.
    pub(crate) fn current() -> Option<Self> {
        STEP.get()
    }

    /// Returns the time since the step began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Returns the processor time of the step, on its own thread; zero where the system does not count it. A
    /// thread that waits for a processor uses none.
    pub(crate) fn cpu(&self) -> Duration {
        self.cpu_until(platform::thread_cpu())
    }

    /// Returns the processor time of the step when its thread has used `used` in all.
    pub(super) fn cpu_until(&self, used: Duration) -> Duration {
        used.saturating_sub(self.cpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_in_one_step_at_most() {
        assert!(Step::current().is_none());
        let step = Step::begin().unwrap();
        assert!(Step::begin().is_none());
        assert_eq!(Step::current().unwrap().began, step.began);
        Step::end();
        assert!(Step::current().is_none());
    }

    #[cfg(unix)]
    #[test]
    fn only_work_counts_as_processor_time() {
        let step = Step::begin().unwrap();
        let mut sum = 0_u64;
        while step.cpu() < Duration::from_millis(5) {
            sum = std::hint::black_box(sum + 1);
        }
        // A processor cannot work longer than the clock runs; the two clocks may differ a little.
        assert!(step.elapsed() >= Duration::from_millis(4));
        Step::end();
    }
}
