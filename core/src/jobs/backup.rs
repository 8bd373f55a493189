//! Backups, one at a time, beside all other work: flushes and compactions go on while one is written.

use std::sync::Arc;

use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::record::JobKind;
use super::store::{JobStore, Queued};
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::JobId;
use crate::maintenance::{BackupUrl, back_up};

/// Most queued backups; one more is refused.
const REQUESTS_MAX: usize = 16;
/// The most retries of a backup that fails for a transient reason. Each one starts from the beginning.
const RETRIES_MAX: u16 = 3;

/// A requested backup.
struct Request {
    url: BackupUrl,
    job: Queued,
}

/// The handle for requesting backups.
pub(super) struct Backups {
    requests: mpsc::Sender<Request>,
}

/// The task that writes backups.
pub(super) struct BackupTask {
    store: Arc<JobStore>,
    requests: mpsc::Receiver<Request>,
    stop: CancellationToken,
}

impl Backups {
    pub(super) fn new(store: &Arc<JobStore>, stop: &CancellationToken) -> (Self, BackupTask) {
        let (sender, requests) = mpsc::channel(REQUESTS_MAX);
        (Self { requests: sender }, BackupTask { store: Arc::clone(store), requests, stop: stop.clone() })
    }

    /// As [`super::JobManager::back_up`].
    pub(super) async fn request(&self, store: &Arc<JobStore>, url: BackupUrl) -> Result<JobId> {
        // A slot first, so that every job has one in the queue.
        let place = self.requests.clone().try_reserve_owned().map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => too_many(),
            mpsc::error::TrySendError::Closed(_) => Error::shutting_down(),
        })?;
        let parameters = json!({ "by": "statement", "url": url.to_string() });
        store.enqueue_request(JobKind::Backup, None, parameters, place, |job| Request { url, job }).await
    }
}

impl BackupTask {
    /// Runs until told to stop.
    pub(super) async fn run(mut self) {
        while let Some(Some(request)) = self.stop.run_until_cancelled(self.requests.recv()).await {
            let Request { url, job } = request;
            let id = job.id().clone();
            let outcome =
                self.store.run(job, RETRIES_MAX, |control| self.back_up(&url, &id, control.stop)).await;
            if let Err(error) = outcome
                && !self.stop.is_cancelled()
            {
                warn!(job = %id, %error, "the state of a backup job could not be saved");
            }
        }
    }

    async fn back_up(&self, url: &BackupUrl, id: &JobId, stop: CancellationToken) -> Result<String> {
        let backup = back_up(&self.store.committer, url, id, &stop).await?;
        Ok(format!("wrote {} objects of {} bytes as of seq {}", backup.objects, backup.bytes, backup.seq))
    }
}

fn too_many() -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        SqlState::TOO_MANY,
        format!("{REQUESTS_MAX} backups are already queued"),
    )
    .hint("SELECT * FROM system.jobs shows them; KILL JOB cancels one")
}
