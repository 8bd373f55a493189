//! How long the current thread has worked for a statement without a pause.
//!
//! A *step* begins when a task of a statement is polled, and ends when this poll returns. Invariant: polls
//! within a poll belong to its step.

use std::cell::Cell;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

use crate::platform;

thread_local! {
    static STEP: Cell<Option<Step>> = const { Cell::new(None) };
}

/// The step of the current thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    began: Instant,
    /// The processor time of the thread when the step began.
    cpu: Duration,
}

impl Step {
    /// Returns the step that the current thread is in.
    pub(crate) fn current() -> Option<Self> {
        STEP.get()
    }

    /// Returns the time since the step began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Returns the processor time of the step; zero where the system does not count it. A thread that waits
    /// for a processor uses none.
    pub(crate) fn cpu(&self) -> Duration {
        platform::thread_cpu().saturating_sub(self.cpu)
    }
}

/// Keeps the current thread in a step until it is dropped. Within a step it does nothing.
#[derive(Debug)]
pub(crate) struct Busy {
    is_outermost: bool,
    /// The guard must be dropped on its thread.
    _not_send: PhantomData<*const ()>,
}

impl Busy {
    /// Begins a step, unless the thread is in one.
    pub(crate) fn enter() -> Self {
        let is_outermost = STEP.get().is_none();
        if is_outermost {
            STEP.set(Some(Step { began: Instant::now(), cpu: platform::thread_cpu() }));
        }
        Self { is_outermost, _not_send: PhantomData }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if self.is_outermost {
            STEP.set(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_poll_within_a_poll_belongs_to_its_step() {
        assert!(Step::current().is_none());
        let outer = Busy::enter();
        let began = Step::current().unwrap().began;
        drop(Busy::enter());
        assert_eq!(Step::current().unwrap().began, began);
        drop(outer);
        assert!(Step::current().is_none());
    }

    #[cfg(unix)]
    #[test]
    fn only_work_counts_as_processor_time() {
        let _busy = Busy::enter();
        let step = Step::current().unwrap();
        let mut sum = 0_u64;
        while step.cpu() < Duration::from_millis(5) {
            sum = std::hint::black_box(sum + 1);
        }
        // A processor cannot work longer than the clock runs; the two clocks may differ a little.
        assert!(step.elapsed() >= Duration::from_millis(4));
    }
}
