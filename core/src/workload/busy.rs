//! Which statement each thread of the engine works for, and since when.
//!
//! A thread in a step cannot be interrupted. If a step uses too much processor time, its statement is told to
//! stop; if that does not help either, the thread is *given up*: nobody counts on it until its step ends.
//!
//! Invariant: a thread is given up from the moment that it counts as such until its step ends.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tracing::info;

use super::control::StatementControl;
use super::reason::StopReason;
use super::step::Step;
use crate::platform::ThreadClock;

/// Processor time that a statement has to end its step after it was told to stop.
const GRACE: Duration = Duration::from_secs(1);

thread_local! {
    /// `None` unless the thread is one of the engine.
    static THREAD: RefCell<Option<Arc<BusyThread>>> = const { RefCell::new(None) };
}

/// Keeps the current thread in a step of a statement until it is dropped. Within a step it does nothing.
#[derive(Debug)]
pub(crate) struct Busy {
    is_outermost: bool,
    /// The guard must be dropped on its thread.
    _not_send: PhantomData<*const ()>,
}

impl Busy {
    /// Begins a step of the statement, unless the thread is in one.
    pub(crate) fn enter(control: &Arc<StatementControl>) -> Self {
        let step = Step::begin();
        if let Some(step) = step {
            on_thread(|thread| thread.begin(step, control));
        }
        Self { is_outermost: step.is_some(), _not_send: PhantomData }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if self.is_outermost {
            on_thread(BusyThread::end);
            Step::end();
        }
    }
}

fn on_thread(what: impl FnOnce(&BusyThread)) {
    THREAD.with_borrow(|thread| {
        if let Some(thread) = thread {
            what(thread);
        }
    });
}

/// The threads of an engine.
#[derive(Debug, Default)]
pub(super) struct BusyThreads {
    threads: Mutex<Vec<Arc<BusyThread>>>,
    given_up: Arc<AtomicUsize>,
    steps: Arc<AtomicU64>,
}

impl BusyThreads {
    /// Adds the current thread.
    pub(super) fn add_current(&self) {
        let thread = Arc::new(BusyThread {
            clock: ThreadClock::of_current(),
            work: Mutex::new(None),
            given_up: Arc::clone(&self.given_up),
            steps: Arc::clone(&self.steps),
        });
        THREAD.set(Some(Arc::clone(&thread)));
        self.threads.lock().push(thread);
    }

    /// Removes the current thread.
    pub(super) fn remove_current(&self) {
        if let Some(current) = THREAD.take() {
            self.threads.lock().retain(|thread| !Arc::ptr_eq(thread, &current));
        }
    }

    /// Returns the number of threads that are given up.
    pub(super) fn given_up(&self) -> usize {
        self.given_up.load(Ordering::Relaxed)
    }

    /// Returns the number of steps that have ended.
    pub(super) fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// Tells the statements to stop whose steps have used more than `cpu_max`. Gives those threads up whose
    /// steps go on for all that, and returns their statements.
    pub(super) fn look(&self, cpu_max: Duration) -> Vec<Arc<StatementControl>> {
        let threads = self.threads.lock().clone();
        threads.iter().filter_map(|thread| thread.look(cpu_max)).collect()
    }
}

/// A thread of an engine.
#[derive(Debug)]
struct BusyThread {
    clock: ThreadClock,
    /// `None` between two steps.
    work: Mutex<Option<Work>>,
    /// Of all threads of the engine.
    given_up: Arc<AtomicUsize>,
    /// Of all threads of the engine.
    steps: Arc<AtomicU64>,
}

/// What a thread works on.
#[derive(Debug)]
struct Work {
    control: Arc<StatementControl>,
    step: Step,
    is_given_up: bool,
}

impl BusyThread {
    fn begin(&self, step: Step, control: &Arc<StatementControl>) {
        *self.work.lock() = Some(Work { control: Arc::clone(control), step, is_given_up: false });
    }

    /// Ends the step of this thread, which is the current one.
    fn end(&self) {
        let Some(Work { control, step, is_given_up }) = self.work.lock().take() else { return };
        self.steps.fetch_add(1, Ordering::Relaxed);
        control.add_cpu(u64::try_from(step.cpu().as_micros()).unwrap_or(u64::MAX));
        if is_given_up {
            self.given_up.fetch_sub(1, Ordering::Relaxed);
            info!(query = %control.id(), "a thread that was given up is back");
        }
    }

    /// Returns the statement if the thread is given up now.
    fn look(&self, cpu_max: Duration) -> Option<Arc<StatementControl>> {
        let mut work = self.work.lock();
        let work = work.as_mut().filter(|work| !work.is_given_up && work.step.elapsed() > cpu_max)?;
        // Where the system does not tell the processor time, the thread counts as working all the time.
        let used = self.clock.read().map_or_else(|| work.step.elapsed(), |used| work.step.cpu_until(used));
        if used > cpu_max {
            work.control.stop(StopReason::StepTooLong);
        }
        if used <= cpu_max.saturating_add(GRACE) {
            return None;
        }
        work.is_given_up = true;
        self.given_up.fetch_add(1, Ordering::Relaxed);
        Some(Arc::clone(&work.control))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::thread::{park_timeout, spawn};

    use super::*;
    use crate::config::Config;

    const CPU_MAX: Duration = Duration::from_millis(10);

    fn control() -> Arc<StatementControl> {
        StatementControl::new(&Config::in_memory())
    }

    #[test]
    fn a_thread_works_for_the_statement_of_its_outermost_poll() {
        let threads = BusyThreads::default();
        threads.add_current();
        let works_for = |control: &Arc<StatementControl>| {
            let thread = Arc::clone(&threads.threads.lock()[0]);
            let work = thread.work.lock();
            work.as_ref().is_some_and(|work| Arc::ptr_eq(&work.control, control))
        };
        let (outer, inner) = (control(), control());
        let busy = Busy::enter(&outer);
        drop(Busy::enter(&inner));
        assert!(works_for(&outer) && Step::current().is_some());
        assert_eq!(threads.steps(), 0);
        drop(busy);
        assert!(!works_for(&outer) && Step::current().is_none());
        assert_eq!(threads.steps(), 1);
        threads.remove_current();
        assert!(threads.threads.lock().is_empty());
    }

    #[test]
    fn a_thread_that_does_not_pause_is_given_up_until_its_step_ends() {
        let (threads, control) = (Arc::new(BusyThreads::default()), control());
        let ends = Arc::new(AtomicBool::new(false));
        let worker = spawn({
            let (threads, control, ends) = (Arc::clone(&threads), Arc::clone(&control), Arc::clone(&ends));
            move || {
                threads.add_current();
                let _busy = Busy::enter(&control);
                while !ends.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            }
        });
        let given_up = loop {
            let given_up = threads.look(CPU_MAX);
            if !given_up.is_empty() {
                break given_up;
            }
            assert_eq!(threads.given_up(), 0);
            park_timeout(Duration::from_millis(5));
        };
        assert!(given_up.len() == 1 && Arc::ptr_eq(&given_up[0], &control));
        assert_eq!(control.reason(), Some(StopReason::StepTooLong));
        assert_eq!(threads.given_up(), 1);
        assert!(threads.look(CPU_MAX).is_empty(), "it is given up only once");
        ends.store(true, Ordering::Relaxed);
        worker.join().unwrap();
        assert_eq!(threads.given_up(), 0);
        #[cfg(unix)]
        assert!(control.cpu_us() >= 1_000_000, "{} us", control.cpu_us());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_that_waits_is_not_given_up() {
        let (threads, control) = (Arc::new(BusyThreads::default()), control());
        let (ends, end) = std::sync::mpsc::channel::<()>();
        let (begins, began) = std::sync::mpsc::channel();
        let worker = spawn({
            let (threads, control) = (Arc::clone(&threads), Arc::clone(&control));
            move || {
                threads.add_current();
                let _busy = Busy::enter(&control);
                begins.send(Step::current().unwrap()).unwrap();
                end.recv().is_err()
            }
        });
        let step = began.recv().unwrap();
        while step.elapsed() < CPU_MAX * 5 {
            park_timeout(CPU_MAX);
            assert!(threads.look(CPU_MAX).is_empty());
        }
        assert_eq!((control.reason(), threads.given_up()), (None, 0));
        drop(ends);
        assert!(worker.join().unwrap());
    }
}
