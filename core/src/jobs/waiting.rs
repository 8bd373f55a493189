//! Flushes and merges that were asked for and whose turn has not come: to ask again for the same is to ask for the same job.
//!
//! Invariant: a job that is given to whoever asks begins after they asked, so it moves every row that was there by then.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::record::JobKind;
use crate::error::Result;
use crate::ids::{JobId, TableId};

/// The job of one table that waits; empty while it is made.
type Place = Arc<OnceCell<JobId>>;

/// The jobs that wait, by what they do to which table.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    jobs: Mutex<HashMap<(JobKind, TableId), Place>>,
}

impl Waiting {
    /// The job that waits, or the one that `make` makes and queues. Of several who ask at once one makes it, and the others wait for it.
    pub(super) async fn get_or_make(
        &self,
        kind: JobKind,
        table: TableId,
        make: impl Future<Output = Result<JobId>>,
    ) -> Result<JobId> {
        let place = Arc::clone(self.jobs.lock().entry((kind, table)).or_default());
        place.get_or_try_init(|| make).await.cloned()
    }

    /// The turn of a job has come.
    pub(super) fn begun(&self, kind: JobKind, table: TableId, id: &JobId) {
        // A place that is still empty may be that of this job: its maker has not come so far.
        self.jobs
            .lock()
            .retain(|of, place| *of != (kind, table) || place.get().is_some_and(|other| other != id));
    }

    /// A job was ended before its turn, perhaps.
    pub(super) fn cancelled(&self, id: &JobId) {
        self.jobs.lock().retain(|_, place| place.get() != Some(id));
    }
}
