//! Jobs in `system.jobs`: their rows, and the life of a job from its first commit to its last.
//!
//! Invariant: a running job has an entry in `running`, and nobody else writes its row.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::common::ScalarValue;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::sync::mpsc::OwnedPermit;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::record::{Job, JobKind, JobStatus};
use super::system_rows::SystemRows;
use crate::clock::Clock;
use crate::commit::Committer;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::failpoint;
use crate::ids::{JobId, NodeId};
use crate::schema_registry::{Durability, SchemaRegistry, SystemTable, TableDefinition, TableSchemas};
use crate::segments::{Control, Progress};

/// How often a running job shows its progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

pub(super) struct JobStore {
    pub(super) committer: Arc<Committer>,
    pub(super) clock: Arc<dyn Clock>,
    rows: SystemRows,
    node: NodeId,
    stop: CancellationToken,
    /// Queued and running jobs.
    running: Mutex<HashMap<JobId, CancellationToken>>,
    /// Wakes those who wait for a job's end.
    ended: Notify,
}

impl JobStore {
    pub(super) fn new(
        committer: Arc<Committer>,
        registry: Arc<SchemaRegistry>,
        clock: Arc<dyn Clock>,
        node: NodeId,
        stop: CancellationToken,
    ) -> Self {
        let rows = SystemRows { committer: Arc::clone(&committer), registry, table: SystemTable::Jobs };
        Self { committer, clock, rows, node, stop, running: Mutex::default(), ended: Notify::new() }
    }

    /// Creates a queued job; its row exists when this returns.
    pub(super) async fn enqueue(
        &self,
        kind: JobKind,
        table: Option<&TableDefinition>,
        parameters: Value,
    ) -> Result<Queued> {
        // The last digits, because the first ones are the time, which jobs created together share.
        let random = Uuid::now_v7().simple().to_string();
        let id = JobId(format!("{}-{}", kind.prefix(), random.get(20..).unwrap_or(&random)));
        let now = self.clock.now_us();
        let mut job = Job::new(id.clone(), kind, parameters, self.node.clone(), now);
        job.table = table.map(|table| (Arc::clone(&table.namespace), Arc::clone(&table.name)));
        job.become_status(JobStatus::Queued, now);
        self.save(&job, Durability::Durable).await?;
        let stop = self.stop.child_token();
        self.running.lock().insert(id, stop.clone());
        Ok(Queued { job, stop })
    }

    /// Creates a requested job and sends `request` of it to `place`, even if the requester leaves meanwhile.
    pub(super) async fn enqueue_request<R: Send + 'static>(
        self: &Arc<Self>,
        kind: JobKind,
        table: Option<&TableDefinition>,
        parameters: Value,
        place: OwnedPermit<R>,
        request: impl FnOnce(Queued) -> R + Send + 'static,
    ) -> Result<JobId> {
        let (store, table) = (Arc::clone(self), table.cloned());
        let made = tokio::spawn(async move {
            let job = store.enqueue(kind, table.as_ref(), parameters).await?;
            let id = job.id().clone();
            place.send(request(job));
            Ok(id)
        });
        made.await.map_err(|_| Error::internal("a job could not be created"))?
    }

    /// Runs a queued job and returns its final status, which its row has too. Fails only if the row could not
    /// be written. Transient failures are retried up to `retries_max` times, after growing pauses.
    pub(super) async fn run<F, W>(&self, queued: Queued, retries_max: u16, work: W) -> Result<JobStatus>
    where
        F: Future<Output = Result<String>>,
        W: Fn(Control) -> F,
    {
        let Queued { mut job, stop } = queued;
        job.retries_max = retries_max;
        let outcome = self.attempts(&mut job, &stop, work).await;
        self.running.lock().remove(&job.id);
        self.ended.notify_waiters();
        outcome.map(|()| job.status)
    }

    /// Waits until a job has ended, or the database closes.
    pub(super) async fn wait(&self, id: &JobId) {
        loop {
            let ended = self.ended.notified();
            if !self.running.lock().contains_key(id) {
                return;
            }
            tokio::select! {
                () = ended => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    async fn attempts<F, W>(&self, job: &mut Job, stop: &CancellationToken, work: W) -> Result<()>
    where
        F: Future<Output = Result<String>>,
        W: Fn(Control) -> F,
    {
        /// The pause before the n-th retry is this times 2^n, with n up to 8.
        const PAUSE_MS: u64 = 200;
        loop {
            let outcome = match stop.is_cancelled() {
                true => Err(cancelled()),
                false => {
                    job.become_status(JobStatus::Running, self.clock.now_us());
                    self.save_with_retry(job).await?;
                    info!(job = %job.id, kind = job.kind.name(), node = %job.node, "job began");
                    let control = Control::new(stop.clone());
                    self.watched(job, work(control.clone()), &control).await
                }
            };
            match outcome {
                Err(error) if is_transient(&error) && job.retries < job.retries_max => {
                    warn!(job = %job.id, %error, "job failed; retrying");
                    job.result = None;
                    job.error = Some(error.to_string());
                    job.become_status(JobStatus::Retrying, self.clock.now_us());
                    self.save_with_retry(job).await?;
                    let pause = Duration::from_millis(PAUSE_MS << job.retries.min(8));
                    if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
                        job.become_status(JobStatus::Queued, self.clock.now_us());
                        self.save_with_retry(job).await?;
                    }
                }
                outcome => return self.finish(job, outcome).await,
            }
        }
    }

    /// Does the work of a job, and shows its progress in its row from time to time.
    async fn watched(
        &self,
        job: &mut Job,
        work: impl Future<Output = Result<String>>,
        control: &Control,
    ) -> Result<String> {
        let mut work = pin!(work);
        let mut ticks = interval_at(Instant::now() + PROGRESS_INTERVAL, PROGRESS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut shown = Progress::default();
        loop {
            tokio::select! {
                biased;
                outcome = &mut work => return outcome,
                _ = ticks.tick() => {}
            }
            let progress = control.progress();
            if progress == shown {
                continue;
            }
            shown = progress;
            job.result = Some(progress.to_string());
            job.updated_at = self.clock.now_us();
            // Losing this write does no harm.
            if let Err(error) = self.save(job, Durability::Relaxed).await {
                warn!(job = %job.id, %error, "the progress of a job could not be saved");
            }
        }
    }

    async fn finish(&self, job: &mut Job, outcome: Result<String>) -> Result<()> {
        let now = self.clock.now_us();
        match outcome {
            Ok(result) => {
                info!(job = %job.id, result, "job completed");
                job.result = Some(result);
                job.error = None;
                job.become_status(JobStatus::Completed, now);
            }
            Err(error) => {
                warn!(job = %job.id, %error, "job failed");
                job.result = None;
                let cancelled = error.kind() == ErrorKind::Cancelled;
                job.error = Some(error.to_string());
                job.become_status(if cancelled { JobStatus::Cancelled } else { JobStatus::Failed }, now);
            }
        }
        self.save_with_retry(job).await
    }

    /// Returns the token that ends a queued or running job.
    pub(super) fn stop_of(&self, id: &JobId) -> Result<CancellationToken> {
        self.running.lock().get(id).cloned().ok_or_else(|| {
            let message = format!("no job \"{id}\" is running");
            Error::new(ErrorKind::NotFound, SqlState::UNDEFINED_OBJECT, message)
                .hint("SELECT job_id, status FROM system.jobs lists jobs")
        })
    }

    pub(super) fn running(&self) -> usize {
        self.running.lock().len()
    }

    /// Saves a job. If the store takes no writes, it is saved once the store does again.
    async fn save_with_retry(&self, job: &Job) -> Result<()> {
        const PAUSE_MIN: Duration = Duration::from_millis(200);
        const PAUSE_MAX: Duration = Duration::from_secs(5);
        let mut pause = PAUSE_MIN;
        loop {
            let error = match self.save(job, Durability::Durable).await {
                Err(error) if is_transient(&error) => error,
                outcome => return outcome,
            };
            warn!(job = %job.id, %error, "the state of a job could not be saved; retrying");
            if self.stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return Err(error);
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn save(&self, job: &Job, durability: Durability) -> Result<()> {
        let schemas = self.rows.schemas(&self.committer.snapshot())?;
        self.rows.put(&job.batch(&schemas)?, durability).await
    }

    /// Marks jobs that had not ended at the last shutdown as failed.
    pub(super) async fn recover(&self) -> Result<()> {
        let schemas = self.rows.schemas(&self.committer.snapshot())?;
        let now = self.clock.now_us();
        let fail = |jobs: &RecordBatch| {
            failpoint::step("recover::jobs")?;
            interrupted(&schemas, jobs, now).map(Some)
        };
        let failed = self.rows.change(is_unfinished, fail).await?;
        if failed > 0 {
            warn!(jobs = failed, "marked jobs that the last shutdown interrupted as failed");
        }
        Ok(())
    }
}

/// A job with a row, whose work has not begun.
pub(super) struct Queued {
    job: Job,
    stop: CancellationToken,
}

impl Queued {
    pub(super) fn id(&self) -> &JobId {
        &self.job.id
    }
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, SqlState::QUERY_CANCELED, "the job was cancelled")
        .hint("the next job continues from there")
}

/// Whether the cause of an error may be gone at the next attempt.
fn is_transient(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Unavailable | ErrorKind::ResourceExhausted)
}

/// Returns which jobs have not ended.
fn is_unfinished(rows: &RecordBatch) -> Result<BooleanArray> {
    let status = rows.column_by_name("status").and_then(|column| column.as_string_opt::<i32>());
    let status = status.ok_or_else(|| Error::internal("rows of jobs lack their status"))?;
    let is_final = |status: &str| JobStatus::parse(status).is_some_and(JobStatus::is_final);
    Ok(status.iter().map(|status| Some(!status.is_some_and(is_final))).collect())
}

/// Returns the jobs as failed, in the visible schema.
fn interrupted(schemas: &TableSchemas, jobs: &RecordBatch, now: i64) -> Result<RecordBatch> {
    let columns = jobs
        .columns()
        .iter()
        .zip(schemas.visible.fields())
        .map(|(column, field)| {
            let value = match field.name().as_str() {
                "status" => ScalarValue::Utf8(Some(JobStatus::Failed.name().to_owned())),
                "error_message" => ScalarValue::Utf8(Some("server restarted".to_owned())),
                "updated_at" | "completed_at" => ScalarValue::TimestampMicrosecond(Some(now), None),
                _ => return Ok(Arc::clone(column)),
            };
            Ok(cast(&value.to_array_of_size(column.len())?, field.data_type())?)
        })
        .collect::<Result<Vec<ArrayRef>>>()?;
    Ok(RecordBatch::try_new(Arc::clone(&schemas.visible), columns)?)
}
