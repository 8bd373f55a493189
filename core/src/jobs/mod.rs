//! Background work: expiry of STREAM rows, flushes, trimming of the change log, and the record of jobs in `system.jobs`.
//!
//! Invariant: every task here is owned by the [`JobManager`], ends when told to and is joined at shutdown; everything it changes
//! is a commit like any other.

mod expiry;
mod expiry_queue;

mod hot_size;
mod log_size;
mod moves;
mod record;
mod store;
mod trim;

use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::error;

use self::expiry::Expiry;
use self::hot_size::is_flushed;
use self::moves::{MoveRequest, Moves, not_flushed};
use self::record::JobKind as Kind;
use self::store::JobStore;
use self::trim::{Trim, TrimLimits};
use crate::clock::Clock;
use crate::commit::Committer;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::ids::{JobId, NodeId};
use crate::schema_registry::{SchemaRegistry, TableDefinition};

pub use record::{JobKind, JobStatus};

pub(crate) use record::row;
pub(crate) use store::encode_row;

/// Flushes and merges that were asked for and wait for their turn.
const MOVE_REQUESTS_MAX: usize = 1_024;

/// What a [`JobManager`] is made of.
pub struct JobParts<'a> {
    /// Where everything is committed.
    pub committer: Arc<Committer>,
    /// The schema of `system.jobs`.
    pub registry: Arc<SchemaRegistry>,
    /// Decides what has expired.
    pub clock: Arc<dyn Clock>,
    /// Stands in every job's row.
    pub node_id: NodeId,
    /// Intervals and limits.
    pub config: &'a Config,
}

/// Owner of all background work.
pub struct JobManager {
    store: Arc<JobStore>,
    moves: mpsc::Sender<MoveRequest>,
    stop: CancellationToken,
    tasks: Mutex<Vec<(&'static str, JoinHandle<()>)>>,
}

impl JobManager {
    /// Marks jobs that a former process left unfinished as failed, and starts the background tasks.
    ///
    /// # Errors
    /// Whatever the storage and the commit return.
    pub async fn start(parts: JobParts<'_>) -> Result<Arc<Self>> {
        let JobParts { committer, registry, clock, node_id, config } = parts;
        let stop = CancellationToken::new();
        let store = Arc::new(JobStore::new(committer, Arc::clone(&registry), clock, node_id, stop.clone()));
        store.recover().await?;
        let expiry = Expiry {
            committer: Arc::clone(&store.committer),
            clock: Arc::clone(&store.clock),
            interval_ms: config.expiry_interval_ms,
            stop: stop.clone(),
        };
        let trim = Trim {
            store: Arc::clone(&store),
            interval_ms: config.trim_interval_ms,
            limits: TrimLimits {
                retention_s: config.change_log_retention_s,
                bytes_max: config.change_log_bytes_max,
            },
            stop: stop.clone(),
        };
        let (moves, requests) = mpsc::channel(MOVE_REQUESTS_MAX);
        let flush = Moves {
            store: Arc::clone(&store),
            registry,
            interval_ms: config.flush_check_interval_ms,
            requests,
            stop: stop.clone(),
        };
        let tasks = vec![
            ("expiry", tokio::spawn(expiry.run())),
            ("trim", tokio::spawn(trim.run())),
            ("flush", tokio::spawn(flush.run())),
        ];
        Ok(Arc::new(Self { store, moves, stop, tasks: Mutex::new(tasks) }))
    }

    /// Has the hot rows of a table flushed. The job's row is there when this returns; the work comes when its turn does.
    ///
    /// # Errors
    /// 0A000 for a table that is not flushed, 57P01 while closing, and whatever the commit of the job's row returns.
    pub async fn flush(&self, table: &TableDefinition) -> Result<JobId> {
        self.request(Kind::Flush, table).await
    }

    /// Has the segments of a table merged, as [`JobManager::flush`] has its rows flushed.
    ///
    /// # Errors
    /// As [`JobManager::flush`].
    pub async fn compact(&self, table: &TableDefinition) -> Result<JobId> {
        self.request(Kind::Compact, table).await
    }

    async fn request(&self, kind: Kind, table: &TableDefinition) -> Result<JobId> {
        if !is_flushed(table) {
            return Err(not_flushed(table));
        }
        // A place first, so that no job is made that nobody would do. When none is free the statement waits for one.
        let place = self.moves.reserve().await.map_err(|_| Error::shutting_down())?;
        let job = self.store.enqueue(kind, Some(table), json!({ "by": "statement" })).await?;
        let id = job.id().clone();
        place.send(MoveRequest { kind, table: table.id, job });
        Ok(id)
    }

    /// Asks a running job to end; its row says `cancelled` once it has.
    ///
    /// # Errors
    /// 42704 when no job of this id is running.
    pub fn cancel(&self, id: &JobId) -> Result<()> {
        self.store.cancel(id)
    }

    /// Waits until a job has ended; its row then says how. Returns at once for a job that is not known.
    pub async fn wait(&self, id: &JobId) {
        self.store.wait(id).await;
    }

    /// Jobs that are running.
    pub fn running(&self) -> usize {
        self.store.running()
    }

    /// Ends all background work and waits for it.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for (name, task) in tasks {
            if let Err(failure) = task.await {
                error!(task = name, %failure, "a background task failed");
            }
        }
    }
}

impl Drop for JobManager {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
