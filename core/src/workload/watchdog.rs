//! The watchdog: a thread that ends statements which do not let go of their threads.
//!
//! It is the last net. A statement asks its control after each pause and within long steps; the watchdog sees
//! those that never ask.
//!
//! Invariant: it waits for no statement and for no thread of the engine.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use tracing::warn;

use super::admission::Admission;
use super::busy::BusyThreads;
use super::control::StatementState;
use super::threads::EngineThreads;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result, SqlState};

/// How often the threads are looked at.
const INTERVAL: Duration = Duration::from_millis(250);

/// Looks at the threads of an engine until it is dropped.
#[derive(Debug)]
pub(crate) struct Watchdog {
    /// Nothing is sent: the thread ends when the sender is dropped.
    ends: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Starts the thread, unless steps have no limit.
    ///
    /// # Errors
    /// 58030 when the operating system refuses.
    pub(crate) fn start(
        config: &Config,
        threads: &EngineThreads,
        admission: &Arc<Admission>,
    ) -> Result<Self> {
        let cpu_max = Duration::from_millis(config.step_cpu_ms_max);
        if cpu_max.is_zero() {
            return Ok(Self { ends: None, thread: None });
        }
        let (threads, admission) = (Arc::clone(threads.busy_threads()), Arc::clone(admission));
        let (ends, end) = mpsc::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("kalam-watchdog".to_owned())
            .spawn(move || {
                while end.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                    look(&threads, &admission, cpu_max);
                }
            })
            .map_err(|error| {
                Error::new(ErrorKind::Unavailable, SqlState::IO_ERROR, "the watchdog cannot be started")
                    .hint("raise the limit of threads")
                    .source(error)
            })?;
        Ok(Self { ends: Some(ends), thread: Some(thread) })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.ends.take());
        if let Some(thread) = self.thread.take() {
            // It is in the middle of a look at most.
            let _panicked = thread.join();
        }
    }
}

/// Stops statements, and takes the slots of those whose threads are given up.
fn look(threads: &BusyThreads, admission: &Admission, cpu_max: Duration) {
    for control in threads.look(cpu_max) {
        control.set_state(StatementState::GivenUp);
        admission.give_up(&control);
        warn!(
            query = control.id().0,
            user = control.session().username(),
            kind = control.kind(),
            given_up = threads.given_up(),
            "a statement does not let go of its thread, which is given up until it does"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::workload::control::StatementControl;

    #[tokio::test]
    async fn a_statement_that_never_pauses_loses_its_slot_and_its_caller_is_told() {
        let config = Config {
            statements_running_max: 1,
            query_partitions: 1,
            step_cpu_ms_max: 10,
            ..Config::in_memory()
        };
        let (threads, admission) = (EngineThreads::start(&config).unwrap(), Admission::new(&config));
        let watchdog = Watchdog::start(&config, &threads, &admission).unwrap();
        let [stuck, next] = [(); 2].map(|()| StatementControl::new(&config));
        let ends = Arc::new(AtomicBool::new(false));
        let never_pauses = {
            let (slot, ends) = (admission.enter(&stuck).await.unwrap(), Arc::clone(&ends));
            async move {
                while !ends.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
                drop(slot);
                Ok(())
            }
        };
        let told = threads.run(&stuck, never_pauses).await.unwrap_err();
        assert_eq!(told.sqlstate(), SqlState::PROGRAM_LIMIT_EXCEEDED);
        let mut others = Vec::new();
        for _ in 0..3 {
            // One slot and two reserved ones: the third needs that of the stuck statement.
            others.push(admission.enter(&next).await.unwrap());
        }
        assert_eq!((threads.given_up(), stuck.state()), (1, StatementState::GivenUp));
        assert_eq!(threads.run(&next, async { Ok(1) }).await.unwrap(), 1, "there are threads left");
        ends.store(true, Ordering::Relaxed);
        while threads.given_up() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(others);
        assert_eq!(admission.counters().running, 0);
        drop(watchdog);
    }

    #[test]
    fn without_a_limit_there_is_no_watchdog() {
        let config = Config { statements_running_max: 1, step_cpu_ms_max: 0, ..Config::in_memory() };
        let (threads, admission) = (EngineThreads::start(&config).unwrap(), Admission::new(&config));
        assert!(Watchdog::start(&config, &threads, &admission).unwrap().thread.is_none());
    }
}
