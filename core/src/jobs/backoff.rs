//! Skips storages that failed a while ago, so that a slow one does not hold up the work on others.

use std::collections::HashMap;
use std::sync::Arc;

/// A storage is skipped for this many times as long as it took to fail.
const BACKOFF_FACTOR: i64 = 10;

/// Until when each storage that failed is skipped, microseconds UTC.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    until: HashMap<Arc<str>, i64>,
}

impl Backoff {
    /// Returns whether a storage is skipped now.
    pub(super) fn is_backing_off(&self, storage: &str, now_us: i64) -> bool {
        self.until.get(storage).is_some_and(|until| now_us < *until)
    }

    /// The slower a storage failed, the longer it is skipped: only slow failures hold up other work.
    pub(super) fn back_off(&mut self, storage: &Arc<str>, asked_us: i64, failed_us: i64) {
        let pause = failed_us.saturating_sub(asked_us).saturating_mul(BACKOFF_FACTOR);
        self.until.insert(Arc::clone(storage), failed_us.saturating_add(pause));
    }
}
