//! Cancellation and progress of long-running work.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, Result, SqlState};

/// Shared by the work and its observers.
#[derive(Clone, Debug, Default)]
pub struct Control {
    /// Cancelled to stop the work.
    pub stop: CancellationToken,
    progress: Arc<Mutex<Progress>>,
}

/// The progress of the work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The current phase; empty before the first one.
    pub phase: &'static str,
    /// Rows processed in the phase.
    pub rows: u64,
    /// Bytes processed in the phase.
    pub bytes: u64,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} rows, {} bytes", self.phase, self.rows, self.bytes)
    }
}

impl Control {
    /// Returns the control of work that ends when `stop` is cancelled.
    pub fn new(stop: CancellationToken) -> Self {
        Self { stop, progress: Arc::default() }
    }

    /// Fails when the work was cancelled.
    ///
    /// # Errors
    /// 57014 then.
    pub fn check(&self) -> Result<()> {
        if !self.stop.is_cancelled() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Cancelled, SqlState::QUERY_CANCELED, "the job was cancelled")
            .hint("uncommitted work was discarded"))
    }

    /// Starts the next phase.
    pub fn begin(&self, phase: &'static str) {
        *self.progress.lock() = Progress { phase, rows: 0, bytes: 0 };
    }

    /// Adds to the rows and bytes of the phase.
    pub fn add(&self, rows: usize, bytes: usize) {
        let mut progress = self.progress.lock();
        progress.rows += rows as u64;
        progress.bytes += bytes as u64;
    }

    /// Returns the progress.
    pub fn progress(&self) -> Progress {
        *self.progress.lock()
    }
}
