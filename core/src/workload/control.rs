//! The control of one statement: whether it must stop, and why. Everything that works for the statement
//! checks it, and whoever waits for the statement waits for it too.
//!
//! Invariant: the first reason to stop is the one that everybody is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::busy::Step;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result, SqlState};

/// Why a statement must stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum StopReason {
    /// Nobody waits for its result any more.
    ClientGone = 1,
    /// It has held its snapshot for too long.
    SnapshotAge = 2,
    /// It has kept a thread busy for too long without a pause.
    StepTooLong = 3,
}

/// In place of a reason: the statement goes on.
const GOES_ON: u8 = 0;

/// The control of one statement.
#[derive(Debug)]
pub(crate) struct StatementControl {
    /// [`GOES_ON`], or a [`StopReason`].
    reason: AtomicU8,
    stopped: CancellationToken,
    snapshot_age_max: Duration,
    /// The most processor time of a step; zero sets no limit.
    step_cpu_max: Duration,
}

impl StatementControl {
    pub(crate) fn new(config: &Config) -> Arc<Self> {
        Arc::new(Self {
            reason: AtomicU8::new(GOES_ON),
            stopped: CancellationToken::new(),
            snapshot_age_max: Duration::from_secs(config.snapshot_age_max_s),
            step_cpu_max: Duration::from_millis(config.step_cpu_ms_max),
        })
    }

    /// Returns how long the statement may hold its snapshot.
    pub(crate) fn snapshot_age_max(&self) -> Duration {
        self.snapshot_age_max
    }

    /// Tells the statement to stop, unless it was told already.
    pub(crate) fn stop(&self, reason: StopReason) {
        let first =
            self.reason.compare_exchange(GOES_ON, reason as u8, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if first {
            self.stopped.cancel();
        }
    }

    /// Returns the reason to stop, if there is one.
    pub(crate) fn reason(&self) -> Option<StopReason> {
        match self.reason.load(Ordering::Relaxed) {
            GOES_ON => None,
            1 => Some(StopReason::ClientGone),
            2 => Some(StopReason::SnapshotAge),
            _ => Some(StopReason::StepTooLong),
        }
    }

    /// Checks that the statement may go on. Costs some tens of nanoseconds.
    ///
    /// # Errors
    /// The error of the reason to stop; 54000 if the current step has taken too much processor time.
    pub(crate) fn check(&self) -> Result<()> {
        if self.reason().is_none()
            && !self.step_cpu_max.is_zero()
            && let Some(step) = Step::current()
            // The thread may have waited for a processor: only the slower clock of the thread knows.
            && step.elapsed() > self.step_cpu_max
            && step.cpu() > self.step_cpu_max
        {
            self.stop(StopReason::StepTooLong);
        }
        match self.reason() {
            None => Ok(()),
            Some(_) => Err(self.error()),
        }
    }

    /// Waits until the statement must stop.
    pub(crate) async fn stopped(&self) {
        self.stopped.cancelled().await;
    }

    /// [`StatementControl::stopped`] as a future that owns what it needs.
    pub(crate) fn stopped_owned(&self) -> WaitForCancellationFutureOwned {
        self.stopped.clone().cancelled_owned()
    }

    /// Returns the error of a statement that must stop.
    pub(crate) fn error(&self) -> Error {
        match self.reason() {
            Some(StopReason::SnapshotAge) => Error::new(
                ErrorKind::ResourceExhausted,
                SqlState::LIMIT_EXCEEDED,
                format!(
                    "the query exceeded the maximum snapshot age of {} s",
                    self.snapshot_age_max.as_secs()
                ),
            )
            .hint("read the rows faster or select fewer, or raise snapshot_age_max_s"),
            Some(StopReason::StepTooLong) => Error::new(
                ErrorKind::ResourceExhausted,
                SqlState::PROGRAM_LIMIT_EXCEEDED,
                format!(
                    "a step of the statement took more than {} ms of processor time",
                    self.step_cpu_max.as_millis()
                ),
            )
            .hint("combine fewer rows at a time, or raise step_cpu_ms_max"),
            Some(StopReason::ClientGone) | None => {
                Error::new(ErrorKind::Cancelled, SqlState::QUERY_CANCELED, "the statement was cancelled")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::busy::Busy;
    use super::*;

    fn control(step_cpu_ms_max: u64) -> Arc<StatementControl> {
        StatementControl::new(&Config { step_cpu_ms_max, ..Config::in_memory() })
    }

    #[tokio::test]
    async fn the_first_reason_is_told_to_all() {
        let control = control(0);
        control.check().unwrap();
        control.stop(StopReason::SnapshotAge);
        control.stop(StopReason::ClientGone);
        control.stopped().await;
        control.stopped_owned().await;
        assert_eq!(control.reason(), Some(StopReason::SnapshotAge));
        assert_eq!(control.check().unwrap_err().sqlstate(), SqlState::LIMIT_EXCEEDED);
    }

    #[test]
    fn every_reason_is_kept() {
        for reason in [StopReason::ClientGone, StopReason::SnapshotAge, StopReason::StepTooLong] {
            let control = control(0);
            control.stop(reason);
            assert_eq!(control.reason(), Some(reason));
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_step_may_take_only_so_much_processor_time() {
        let (limited, unlimited) = (control(5), control(0));
        limited.check().unwrap();
        let _busy = Busy::enter();
        let step = Step::current().unwrap();
        let mut sum = 0_u64;
        while step.cpu() < Duration::from_millis(10) || step.elapsed() < Duration::from_millis(10) {
            sum = std::hint::black_box(sum + 1);
        }
        unlimited.check().unwrap();
        assert_eq!(limited.check().unwrap_err().sqlstate(), SqlState::PROGRAM_LIMIT_EXCEEDED);
        assert_eq!(limited.reason(), Some(StopReason::StepTooLong));
    }
}
