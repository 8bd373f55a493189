//! Queued flushes and compactions, deduplicated: a repeated request gets the job that is already queued.
//!
//! Invariant: a returned job begins after the request for it, so it moves every row written before that.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::record::JobKind;
use crate::error::Result;
use crate::ids::{JobId, TableId};

/// The queued job of one table; empty while it is created.
type JobSlot = Arc<OnceCell<JobId>>;

/// The queued jobs, by kind and table.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    jobs: Mutex<HashMap<(JobKind, TableId), JobSlot>>,
}

impl Waiting {
    /// Returns the queued job, or the one that `make` creates and queues. Of concurrent requests, one creates
    /// it and the others wait for it.
    pub(super) async fn get_or_make(
        &self,
        kind: JobKind,
        table: TableId,
        make: impl Future<Output = Result<JobId>>,
    ) -> Result<JobId> {
        let slot = Arc::clone(self.jobs.lock().entry((kind, table)).or_default());
        slot.get_or_try_init(|| make).await.cloned()
    }

    /// Removes a job whose turn has come.
    pub(super) fn begun(&self, kind: JobKind, table: TableId, id: &JobId) {
        // An empty slot may belong to this job: its creator may not have stored the id yet.
        self.jobs
            .lock()
            .retain(|of, slot| *of != (kind, table) || slot.get().is_some_and(|other| other != id));
    }

    /// Removes a job that was cancelled, if it is still queued.
    pub(super) fn cancelled(&self, id: &JobId) {
        self.jobs.lock().retain(|_, slot| slot.get() != Some(id));
    }
}
