//! Jobs in `system.jobs`: their rows, and the life of a job from its first commit to its last.
//!
//! Invariant: a job that is running has an entry in `running`, and its row is written by nobody else.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::common::ScalarValue;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::record::{Job, JobKind, JobStatus};
use crate::clock::Clock;
use crate::commit::{Committer, RowWrite, Snapshot, TableWrite, WriteSet};
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::failpoint;
use crate::ids::{JobId, NodeId, ScopeId, UserId};
use crate::schema_registry::{SchemaRegistry, SystemTable, TableDefinition, TableSchemas};
use crate::storage::{self, Direction, KeyRange, Partition, keys, rows};
use crate::tables::{RowLimits, RowWriter, images};

pub(super) struct JobStore {
    pub(super) committer: Arc<Committer>,
    pub(super) clock: Arc<dyn Clock>,
    registry: Arc<SchemaRegistry>,
    node: NodeId,
    stop: CancellationToken,
    /// Jobs that wait or run.
    running: Mutex<HashMap<JobId, CancellationToken>>,
    /// Wakes whoever waits for a job's end.
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
        Self { committer, clock, registry, node, stop, running: Mutex::default(), ended: Notify::new() }
    }

    /// Makes a job that waits; its row is there when this returns.
    pub(super) async fn enqueue(
        &self,
        kind: JobKind,
        table: Option<&TableDefinition>,
        parameters: Value,
    ) -> Result<Queued> {
        // The last digits: the first ones are the time, which jobs made together have in common.
        let random = Uuid::now_v7().simple().to_string();
        let id = JobId(format!("{}-{}", kind.prefix(), random.get(20..).unwrap_or(&random)));
        let now = self.clock.now_us();
        let mut job = Job::new(id.clone(), kind, parameters, self.node.clone(), now);
        job.table = table.map(|table| (Arc::clone(&table.namespace), Arc::clone(&table.name)));
        job.become_status(JobStatus::Queued, now);
        self.save(&job).await?;
        let stop = self.stop.child_token();
        self.running.lock().insert(id, stop.clone());
        Ok(Queued { job, stop })
    }

    /// Does a job that waits, and says how it ended, as its row does; an error is returned only when that could not be written. What fails for
    /// a reason that may pass is tried again up to `retries_max` times, after longer and longer pauses.
    pub(super) async fn run<F, W>(&self, queued: Queued, retries_max: u16, work: W) -> Result<JobStatus>
    where
        F: Future<Output = Result<String>>,
        W: Fn(CancellationToken) -> F,
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
        W: Fn(CancellationToken) -> F,
    {
        /// The pause before the first new attempt; it doubles each time.
        const PAUSE_MS: u64 = 200;
        loop {
            let outcome = match stop.is_cancelled() {
                true => Err(cancelled()),
                false => {
                    job.become_status(JobStatus::Running, self.clock.now_us());
                    self.save(job).await?;
                    info!(job = %job.id, kind = job.kind.name(), node = %job.node, "job began");
                    work(stop.clone()).await
                }
            };
            match outcome {
                Err(error) if may_pass(&error) && job.retries < job.retries_max => {
                    warn!(job = %job.id, %error, "job failed and is tried again");
                    job.error = Some(error.to_string());
                    job.become_status(JobStatus::Retrying, self.clock.now_us());
                    self.save(job).await?;
                    let pause = Duration::from_millis(PAUSE_MS << job.retries.min(8));
                    if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
                        job.become_status(JobStatus::Queued, self.clock.now_us());
                        self.save(job).await?;
                    }
                }
                outcome => return self.finish(job, outcome).await,
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
                let cancelled = error.kind() == ErrorKind::Cancelled;
                job.error = Some(error.to_string());
                job.become_status(if cancelled { JobStatus::Cancelled } else { JobStatus::Failed }, now);
            }
        }
        self.save(job).await
    }

    pub(super) fn cancel(&self, id: &JobId) -> Result<()> {
        match self.running.lock().get(id) {
            Some(stop) => {
                stop.cancel();
                Ok(())
            }
            None => Err(Error::new(
                ErrorKind::NotFound,
                SqlState::UNDEFINED_OBJECT,
                format!("no job \"{id}\" is running"),
            )
            .hint("SELECT job_id, status FROM system.jobs lists jobs")),
        }
    }

    pub(super) fn running(&self) -> usize {
        self.running.lock().len()
    }

    async fn save(&self, job: &Job) -> Result<()> {
        let snapshot = self.committer.snapshot();
        let schemas = self.schemas(&snapshot)?;
        let batch = job.batch(&schemas)?;
        self.put(snapshot, schemas, batch).await
    }

    fn schemas(&self, snapshot: &Snapshot) -> Result<Arc<TableSchemas>> {
        let definition = snapshot
            .catalog
            .table_by_id(SystemTable::Jobs.id())
            .ok_or_else(|| Error::corruption("table \"system.jobs\" is missing from the catalog"))?;
        Ok(self.registry.schemas(definition))
    }

    /// Commits rows of `system.jobs`, in its visible schema, in the place of those that have the same id.
    async fn put(
        &self,
        snapshot: Arc<Snapshot>,
        schemas: Arc<TableSchemas>,
        batch: RecordBatch,
    ) -> Result<()> {
        let read_seq = snapshot.seq;
        let table = Arc::clone(&schemas.definition);
        let rows = storage::blocking(move || {
            let mut writes = Vec::with_capacity(batch.num_rows());
            for write in encode_row(&schemas, &batch)? {
                writes.push(match write {
                    RowWrite::Insert { key, row } => match snapshot.storage.get(Partition::Rows, &key)? {
                        None => RowWrite::Insert { key, row },
                        Some(old) => {
                            RowWrite::Update { key, expected: rows::row_seq(&old)?, old, row, place: None }
                        }
                    },
                    other => other,
                });
            }
            Ok(writes)
        })
        .await?;
        let write = TableWrite { table, scope: ScopeId::SHARED, rows };
        self.committer
            .commit(WriteSet { tables: vec![write], ..WriteSet::new(UserId::SYSTEM, read_seq) })
            .await?;
        Ok(())
    }

    /// Marks jobs that did not end before the last shutdown as failed.
    pub(super) async fn recover(&self) -> Result<()> {
        let snapshot = self.committer.snapshot();
        let schemas = self.schemas(&snapshot)?;
        let now = self.clock.now_us();
        let unfinished = {
            let (snapshot, schemas) = (Arc::clone(&snapshot), Arc::clone(&schemas));
            storage::blocking(move || unfinished(&snapshot, &schemas, now)).await?
        };
        if unfinished.num_rows() == 0 {
            return Ok(());
        }
        failpoint::step("recover::jobs")?;
        warn!(jobs = unfinished.num_rows(), "marked jobs that the last shutdown interrupted as failed");
        self.put(snapshot, schemas, unfinished).await
    }
}

/// A job whose row is there and whose work has not begun.
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
    Error::new(ErrorKind::Cancelled, SqlState::QUERY_CANCELED, "the job was ended")
        .hint("the next one goes on where it was")
}

/// Whether what went wrong may be gone at the next attempt.
fn may_pass(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Unavailable | ErrorKind::ResourceExhausted)
}

/// The inserts of rows that the database itself makes, in the visible schema of a system table.
pub(crate) fn encode_row(table: &Arc<TableSchemas>, batch: &RecordBatch) -> Result<Vec<RowWrite>> {
    /// Details and parameters are JSON that statements of limited length lead to.
    const ROW_BYTES_MAX: usize = 16 << 20;
    let writer = RowWriter::new(Arc::clone(table), RowLimits { row_bytes_max: ROW_BYTES_MAX })?;
    writer.inserts(ScopeId::SHARED, batch, 0)
}

/// The unfinished jobs, as they look once they have failed.
fn unfinished(snapshot: &Snapshot, schemas: &TableSchemas, now: i64) -> Result<RecordBatch> {
    let range = KeyRange::prefix(keys::scope_prefix(schemas.definition.id, ScopeId::SHARED));
    let mut stored: Vec<(Bytes, Bytes)> = Vec::new();
    snapshot.storage.visit(Partition::Rows, range, Direction::Forward, &mut |key, row| {
        stored.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(row)));
        Ok(std::ops::ControlFlow::Continue(()))
    })?;
    let full = images::decode(schemas, stored.iter().map(|(key, row)| (key, row)))?;
    let visible: Vec<usize> = (0..schemas.visible.fields().len()).collect();
    let all = full.project(&visible)?;
    let status = schemas.visible.index_of("status")?;
    let mask = all
        .column(status)
        .as_string::<i32>()
        .iter()
        .map(|status| Some(!status.and_then(JobStatus::parse).is_some_and(JobStatus::is_final)))
        .collect();
    let unfinished = datafusion::arrow::compute::filter_record_batch(&all, &mask)?;
    let columns = unfinished
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
