//! Back-pressure on hot rows: near the limit writers wait, longer the closer it is; at the limit they fail.
//!
//! Flushes make rows cold. If flushes fail, or are slower than the writers, the store would grow without
//! bound. Only writes that add rows are held up. Deletes, flushes, expiry, job rows and audit rows go on,
//! because they are the way out. STREAM rows go on because they expire.
//!
//! Invariant: the recorded bytes never exceed the hot rows by much, so refusals end once those are flushed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::{RowWrite, WriteSet};
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::JobId;
use crate::schema_registry::TableKind;

/// The longest wait of a writer.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// The limit, and the bytes of hot rows last recorded.
#[derive(Debug)]
pub struct HotLimit {
    /// 0 for no limit.
    bytes_max: u64,
    bytes: AtomicU64,
    /// The job of the last flush, if it failed.
    failed_flush: Mutex<Option<JobId>>,
}

impl HotLimit {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, bytes: AtomicU64::new(0), failed_flush: Mutex::default() }
    }

    /// Records the bytes of hot rows.
    pub fn note(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Records how the last flush ended: the id of its job if it failed.
    pub fn note_flush(&self, failed: Option<JobId>) {
        *self.failed_flush.lock() = failed;
    }

    /// Returns the bytes recorded last.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether `bytes` reach half of the limit. Then tables are flushed regardless of their policies.
    pub fn is_close(&self, bytes: u64) -> bool {
        self.bytes_max > 0 && bytes >= self.bytes_max / 2
    }

    /// Admits a writer, after a pause if the limit is close.
    ///
    /// # Errors
    /// 53100 for a set that adds rows when the limit is reached.
    pub(super) async fn admit(&self, set: &WriteSet) -> Result<()> {
        match self.pause_at(self.bytes()) {
            Some(Duration::ZERO) => Ok(()),
            _ if !adds_rows(set) => Ok(()),
            Some(pause) => {
                tokio::time::sleep(pause).await;
                Ok(())
            }
            None => Err(self.refusal()),
        }
    }

    /// Returns how long a writer waits; `None` if it is refused.
    fn pause_at(&self, bytes: u64) -> Option<Duration> {
        let slow_from = self.bytes_max / 5 * 4;
        if self.bytes_max == 0 || bytes < slow_from {
            return Some(Duration::ZERO);
        }
        if bytes >= self.bytes_max {
            return None;
        }
        let share = (bytes - slow_from) as f64 / (self.bytes_max - slow_from) as f64;
        Some(PAUSE_MAX.mul_f64(share))
    }

    fn refusal(&self) -> Error {
        let message = format!("{} bytes of hot rows exceed hot_bytes_max ({})", self.bytes(), self.bytes_max);
        let hint = match &*self.failed_flush.lock() {
            Some(job) => format!(
                "the flush with job id {job} failed; system.jobs says why; writes resume after a \
                 successful flush"
            ),
            None => "writes resume once flushes have caught up".to_owned(),
        };
        Error::new(ErrorKind::ResourceExhausted, SqlState::DISK_FULL, message).hint(hint)
    }
}

/// Whether a set adds or replaces rows of USER or SHARED tables.
fn adds_rows(set: &WriteSet) -> bool {
    let tables = set.tables.iter();
    tables
        .filter(|write| matches!(write.table.kind, TableKind::User | TableKind::Shared))
        .any(|write| write.rows.iter().any(|row| !matches!(row, RowWrite::Delete { .. })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_grows_from_four_fifths_of_the_limit_on() {
        let limit = HotLimit::new(1_000);
        let ms = |bytes| limit.pause_at(bytes).map(|pause| pause.as_millis());
        assert_eq!(
            [ms(0), ms(799), ms(800), ms(900), ms(999)],
            [Some(0), Some(0), Some(0), Some(50), Some(99)]
        );
        assert_eq!([ms(1_000), ms(u64::MAX)], [None, None]);
        assert_eq!(HotLimit::new(0).pause_at(u64::MAX), Some(Duration::ZERO));
        assert!(limit.is_close(500) && !limit.is_close(499) && !HotLimit::new(0).is_close(u64::MAX));
    }
}
