//! Background work: expiry of STREAM rows, flushes, compactions, trims of the change log, backups, and the
//! retention of rows in `system.jobs` and `system.audit_logs`.
//!
//! Invariant: the [`JobManager`] owns every task here. Each task ends when told to and is joined at shutdown.
//! Every change is an ordinary commit.

mod backoff;
mod backup;
mod compact;
mod expiry;
mod expiry_queue;
mod flush;
mod hot_size;
mod log_size;
mod publish;
mod record;
mod recover;
mod retention;
mod retire;
mod schedule;
mod store;
mod system_rows;
#[cfg(test)]
mod tests;
mod trim;
mod waiting;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use self::backup::Backups;
use self::expiry::Expiry;
use self::hot_size::HotCounter;
use self::record::JobKind as Kind;
use self::retention::Retention;
use self::schedule::{FlushScheduler, MoveRequest};
use self::store::JobStore;
use self::system_rows::SystemRows;
use self::trim::{Trim, TrimLimits};
use self::waiting::Waiting;
use crate::clock::Clock;
use crate::commit::Committer;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::ids::{JobId, NodeId, TableId};
use crate::maintenance::BackupUrl;
use crate::schema_registry::{SchemaRegistry, SystemTable, TableDefinition};

pub use record::{JobKind, JobStatus};

pub(crate) use record::row;
pub(crate) use system_rows::encode_row;

/// Most requested flushes and compactions in the queue.
const MOVE_REQUESTS_MAX: usize = 1_024;

/// The arguments of [`JobManager::start`].
pub struct JobParts<'a> {
    /// Commits all changes.
    pub committer: Arc<Committer>,
    /// Has the schema of `system.jobs`.
    pub registry: Arc<SchemaRegistry>,
    /// Decides what has expired.
    pub clock: Arc<dyn Clock>,
    /// Written to every job's row.
    pub node_id: NodeId,
    /// Intervals and limits.
    pub config: &'a Config,
}

/// Owns all background work.
pub struct JobManager {
    store: Arc<JobStore>,
    moves: mpsc::Sender<MoveRequest>,
    waiting: Arc<Waiting>,
    backups: Backups,
    hot: Arc<HotCounter>,
    /// Cancelled first at shutdown, so that rows are flushed once more.
    closing: CancellationToken,
    shutdown_flush: Duration,
    stop: CancellationToken,
    tasks: Mutex<Tasks>,
}

#[derive(Default)]
struct Tasks {
    moves: Option<JoinHandle<()>>,
    others: Vec<(&'static str, JoinHandle<()>)>,
}

impl JobManager {
    /// Marks jobs that an earlier process left unfinished as failed, and starts the background tasks.
    pub async fn start(parts: JobParts<'_>) -> Arc<Self> {
        let JobParts { committer, registry, clock, node_id, config } = parts;
        let stop = CancellationToken::new();
        let store = Arc::new(JobStore::new(committer, Arc::clone(&registry), clock, node_id, stop.clone()));
        if let Err(error) = store.recover().await {
            // The rest of the database works without it.
            warn!(%error, "jobs that the last shutdown interrupted could not be marked as failed");
        }
        let hot = HotCounter::new(Arc::clone(&store.committer), Arc::clone(&store.clock), stop.clone());
        let mut others = vec![("hot rows", tokio::spawn(Arc::clone(&hot).run()))];
        others.extend(spawn_others(&store, &registry, config, &stop));
        let (moves, requests) = mpsc::channel(MOVE_REQUESTS_MAX);
        let (waiting, closing) = (Arc::new(Waiting::default()), CancellationToken::new());
        let scheduler = FlushScheduler {
            store: Arc::clone(&store),
            registry,
            hot: Arc::clone(&hot),
            interval_ms: config.flush_check_interval_ms,
            opened: store.committer.snapshot().epoch,
            requests,
            waiting: Arc::clone(&waiting),
            closing: closing.clone(),
            stop: stop.clone(),
        };
        let (backups, backup) = Backups::new(&store, &stop);
        others.push(("backup", tokio::spawn(backup.run())));
        let tasks = Tasks { moves: Some(tokio::spawn(scheduler.run())), others };
        // A database in memory ends when it is closed: nothing to flush.
        let shutdown_flush_ms = if config.data_dir.is_some() { config.shutdown_flush_ms } else { 0 };
        Arc::new(Self {
            store,
            moves,
            waiting,
            backups,
            hot,
            closing,
            shutdown_flush: Duration::from_millis(shutdown_flush_ms),
            stop,
            tasks: Mutex::new(tasks),
        })
    }

    /// Queues a flush of the hot rows of a table. The job's row exists when this returns; the work begins
    /// when its turn comes. While the job is queued, further requests return the same job.
    ///
    /// # Errors
    /// 0A000 for a table that is not flushed, 57P01 while closing, and any error of committing the job's row.
    pub async fn flush(&self, table: &TableDefinition) -> Result<JobId> {
        self.request(Kind::Flush, table).await
    }

    /// Queues a compaction of the segments of a table, as [`JobManager::flush`] queues a flush.
    ///
    /// # Errors
    /// As [`JobManager::flush`].
    pub async fn compact(&self, table: &TableDefinition) -> Result<JobId> {
        self.request(Kind::Compact, table).await
    }

    async fn request(&self, kind: Kind, table: &TableDefinition) -> Result<JobId> {
        if !table.is_flushed() {
            return Err(not_flushed(table));
        }
        let make = async {
            // A slot first, so that every job has one in the queue. The statement waits until one is free.
            let place = self.moves.clone().reserve_owned().await.map_err(|_| Error::shutting_down())?;
            let id = table.id;
            let request = move |job| MoveRequest { kind, table: id, job };
            self.store.enqueue_request(kind, Some(table), json!({ "by": "statement" }), place, request).await
        };
        self.waiting.get_or_make(kind, table.id, make).await
    }

    /// Queues a backup. The job's row exists when this returns; the snapshot is taken when its turn comes.
    ///
    /// # Errors
    /// 53300 when too many backups are queued, 57P01 while closing, and errors of committing the job's row.
    pub async fn back_up(&self, url: BackupUrl) -> Result<JobId> {
        self.backups.request(&self.store, url).await
    }

    /// Asks a queued or running job to end; its row says `cancelled` once it has.
    ///
    /// # Errors
    /// 42704 when no job with this id is queued or running.
    pub fn cancel(&self, id: &JobId) -> Result<()> {
        self.store.stop_of(id)?.cancel();
        self.waiting.cancelled(id);
        Ok(())
    }

    /// Checks that a job is queued or running.
    ///
    /// # Errors
    /// 42704 when no job with this id is queued or running.
    pub fn check_running(&self, id: &JobId) -> Result<()> {
        self.store.stop_of(id).map(drop)
    }

    /// Waits until a job has ended, when its row says how, or until the database closes. Returns at once for
    /// an unknown job.
    ///
    /// # Examples
    /// ```
    /// use datafusion::arrow::array::AsArray;
    /// use kalamdb_core::ids::JobId;
    /// use kalamdb_core::{Config, Database};
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let database = Database::open(Config::at(folder.path().join("data"))).await?;
    /// # let session = database.session_for("root")?;
    /// # session.execute("CREATE TABLE points (id BIGINT PRIMARY KEY, x BIGINT)", ()).await?;
    /// session.execute("INSERT INTO points SELECT value, 0 FROM generate_series(1, 100)", ()).await?;
    /// let started = session.execute("FLUSH TABLE points", ()).await?.rows()?.collect().await?;
    /// let job = JobId(started[0].column(0).as_string::<i32>().value(0).to_owned());
    /// database.context().jobs.wait(&job).await;
    /// // The rows are in one segment now.
    /// let segments = session.execute("SHOW MANIFEST FOR points", ()).await?.rows()?.collect().await?;
    /// assert_eq!(segments[0].num_rows(), 1);
    /// # database.shutdown().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn wait(&self, id: &JobId) {
        self.store.wait(id).await;
    }

    /// Returns the mean size of the hot rows of a table, in bytes; 0 while it is unknown.
    pub fn hot_row_bytes(&self, table: TableId) -> usize {
        let hot = self.hot.of(table);
        usize::try_from(hot.bytes / hot.rows.max(1)).unwrap_or(usize::MAX)
    }

    /// Returns the number of queued and running jobs.
    pub fn running(&self) -> usize {
        self.store.running()
    }

    /// Flushes the tables worth flushing, at most for the configured time and until `flush_until`. Then ends
    /// all background work and waits for it. An unfinished flush is cut off; its rows stay hot.
    pub async fn shutdown(&self, flush_until: Instant) {
        let Tasks { moves, mut others } = std::mem::take(&mut *self.tasks.lock());
        if let Some(mut moves) = moves {
            self.closing.cancel();
            let deadline = flush_until.min(Instant::now() + self.shutdown_flush);
            match timeout_at(deadline, &mut moves).await {
                Ok(ended) => check_task("flush", ended),
                Err(_) => others.push(("flush", moves)),
            }
        }
        self.stop.cancel();
        for (name, task) in others {
            check_task(name, task.await);
        }
    }
}

/// Starts the tasks that need only the committer and the rows of jobs.
fn spawn_others(
    store: &Arc<JobStore>,
    registry: &Arc<SchemaRegistry>,
    config: &Config,
    stop: &CancellationToken,
) -> [(&'static str, JoinHandle<()>); 3] {
    let system_rows =
        |table| SystemRows { committer: Arc::clone(&store.committer), registry: Arc::clone(registry), table };
    let retention = Retention {
        jobs: system_rows(SystemTable::Jobs),
        audit_logs: system_rows(SystemTable::AuditLogs),
        clock: Arc::clone(&store.clock),
        interval_ms: config.retention_interval_ms,
        job_days: config.job_retention_days,
        audit_days: config.audit_retention_days,
        stop: stop.clone(),
    };
    let expiry = Expiry {
        committer: Arc::clone(&store.committer),
        clock: Arc::clone(&store.clock),
        interval_ms: config.expiry_interval_ms,
        stop: stop.clone(),
    };
    let trim = Trim {
        store: Arc::clone(store),
        interval_ms: config.trim_interval_ms,
        limits: TrimLimits {
            retention_s: config.change_log_retention_s,
            bytes_max: config.change_log_bytes_max,
        },
        stop: stop.clone(),
    };
    [
        ("expiry", tokio::spawn(expiry.run())),
        ("trim", tokio::spawn(trim.run())),
        ("retention", tokio::spawn(retention.run())),
    ]
}

/// Returns the error for a table that is not flushed.
fn not_flushed(table: &TableDefinition) -> Error {
    Error::unsupported(format!("flushing table \"{}\"", table.qualified_name()))
        .hint("rows of STREAM tables expire instead, and those of most system tables are not stored")
}

fn check_task(name: &str, ended: Result<(), JoinError>) {
    if let Err(failure) = ended {
        error!(task = name, %failure, "a background task failed");
    }
}

impl Drop for JobManager {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
