//! The handle of work that takes long: it is told to end, and tells how far it is.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, Result, SqlState};

/// Shared by the work and whoever watches it.
#[derive(Clone, Debug, Default)]
pub struct Control {
    /// Cancelled when the work is to end.
    pub stop: CancellationToken,
    progress: Arc<Mutex<Progress>>,
}

/// How far work is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// What is being done; empty before anything is.
    pub phase: &'static str,
    /// Rows done.
    pub rows: u64,
    /// Bytes done.
    pub bytes: u64,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} rows, {} bytes", self.phase, self.rows, self.bytes)
    }
}

impl Control {
    /// Of work that ends when `stop` is cancelled.
    pub fn new(stop: CancellationToken) -> Self {
        Self { stop, progress: Arc::default() }
    }

    /// Fails when the work is to end.
    ///
    /// # Errors
    /// 57014 then.
    pub fn check(&self) -> Result<()> {
        if !self.stop.is_cancelled() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Cancelled, SqlState::QUERY_CANCELED, "the job was ended")
            .hint("what it had not committed is as it was"))
    }

    /// Begins the next phase.
    pub fn begin(&self, phase: &'static str) {
        *self.progress.lock() = Progress { phase, rows: 0, bytes: 0 };
    }

    /// Counts what the phase has done.
    pub fn add(&self, rows: usize, bytes: usize) {
        let mut progress = self.progress.lock();
        progress.rows += rows as u64;
        progress.bytes += bytes as u64;
    }

    /// How far the work is.
    pub fn progress(&self) -> Progress {
        *self.progress.lock()
    }
}
