//! Decides when tables are flushed and compacted: by policy, on request, and at shutdown.
//!
//! Invariant: one flush or compaction runs at a time, so that background work takes at most one thread, the
//! memory of one segment being written, and the keys of the segments that await their commit.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::backoff::Backoff;
use super::compact::{Candidates, compact_segments, segments_to_compact};
use super::flush::flush_table;
use super::hot_size::HotCounter;
use super::publish::{apply_marks, publish_due};
use super::record::{JobKind, JobStatus};
use super::recover::recover;
use super::retire::remove_retired;
use super::store::{JobStore, Queued};
use super::waiting::Waiting;
use crate::commit::Snapshot;
use crate::error::{ErrorKind, Result};
use crate::ids::{Epoch, Seq, TableId};
use crate::schema_registry::{SchemaRegistry, TableDefinition};
use crate::segments::Control;

/// The most retries of a flush or compaction that fails for a transient reason.
const RETRIES_MAX: u16 = 5;
/// How long policies skip a table after a flush or compaction of it failed.
const PAUSE_US: i64 = 60_000_000;
/// The same for a flush, while hot rows are close to their limit, where writers may have to wait.
const SHORT_PAUSE_US: i64 = 5_000_000;
/// Tables with fewer hot rows are not flushed at shutdown: reading them again costs less than a segment.
const SHUTDOWN_ROWS_MIN: u64 = 1_000;
/// How often all tables are checked for segments to compact. One table is also checked after its flush.
const COMPACTION_CHECK_INTERVAL_US: i64 = 60_000_000;

/// A requested flush or compaction.
pub(super) struct MoveRequest {
    pub(super) kind: JobKind,
    pub(super) table: TableId,
    pub(super) job: Queued,
}

/// Runs flushes and compactions.
pub(super) struct FlushScheduler {
    pub(super) store: Arc<JobStore>,
    pub(super) registry: Arc<SchemaRegistry>,
    pub(super) hot: Arc<HotCounter>,
    pub(super) interval_ms: u64,
    /// The epoch in which the process began.
    pub(super) opened: Epoch,
    pub(super) requests: mpsc::Receiver<MoveRequest>,
    /// The queued requests.
    pub(super) waiting: Arc<Waiting>,
    /// Cancelled when the database closes. Then the last rows are flushed.
    pub(super) closing: CancellationToken,
    pub(super) stop: CancellationToken,
}

/// What is remembered from one step to the next.
struct State {
    last_compaction_check: i64,
    /// Until when policies skip a table after a failed flush or compaction.
    paused: HashMap<(JobKind, TableId), i64>,
    /// The last commit that changed a table's segments, as of the table's last check for a compaction.
    looked_at: HashMap<TableId, Seq>,
    backoff: Backoff,
}

impl FlushScheduler {
    /// Runs until told to stop.
    pub(super) async fn run(mut self) {
        let mut ticks = interval(Duration::from_millis(self.interval_ms.max(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut state = State {
            last_compaction_check: self.store.clock.now_us(),
            paused: HashMap::new(),
            looked_at: HashMap::new(),
            backoff: Backoff::default(),
        };
        recover(&self.store.committer, self.opened, &self.stop).await;
        loop {
            let request = tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.closing.cancelled() => return self.close(&mut state).await,
                Some(request) = self.requests.recv() => Some(request),
                _ = ticks.tick() => None,
            };
            let outcome = match request {
                Some(request) => self.serve(&mut state, request).await,
                None => self.step(&mut state).await,
            };
            if let Err(error) = outcome
                && !self.stop.is_cancelled()
            {
                warn!(%error, "a flush or compaction could not be run");
            }
        }
    }

    /// Serves a request, whatever the policies say and whatever state other tables are in.
    async fn serve(&self, state: &mut State, request: MoveRequest) -> Result<()> {
        let MoveRequest { kind, table, job } = request;
        // Before the move takes its snapshot: later requests may be about rows that are not in it.
        self.waiting.begun(kind, table, job.id());
        match kind {
            JobKind::Compact => {
                self.run_compaction(state, job, table, |control| async move {
                    let segments =
                        segments_to_compact(&self.store.committer.snapshot(), table, Candidates::All).await?;
                    compact_segments(&self.store, &self.registry, table, &segments, &control).await
                })
                .await
            }
            _ => self.flush(state, table, job, RETRIES_MAX).await,
        }
    }

    /// Flushes tables with many hot rows, the fewest first, so that at most one flush is cut off.
    async fn close(&self, state: &mut State) {
        if self.store.committer.is_poisoned() {
            return;
        }
        let snapshot = self.store.committer.snapshot();
        if let Err(error) = self.hot.count().await {
            warn!(%error, "hot rows could not be counted");
            return;
        }
        let now = self.store.clock.now_us();
        let tables = snapshot.catalog.tables().map(|table| (self.hot.of(table.id).rows, table));
        let mut tables: Vec<_> = tables
            .filter(|(rows, table)| {
                let is_paused = state.is_paused(JobKind::Flush, table.id, now);
                table.is_flushed() && *rows >= SHUTDOWN_ROWS_MIN && !is_paused
            })
            .collect();
        tables.sort_unstable_by_key(|(rows, _)| *rows);
        for (rows, table) in tables {
            if self.stop.is_cancelled() {
                return;
            }
            let why = json!({ "by": "shutdown", "rows": rows });
            let flushed = async {
                let job = self.store.enqueue(JobKind::Flush, Some(table), why).await?;
                self.flush(state, table.id, job, 0).await
            };
            if let Err(error) = flushed.await {
                warn!(table = %table.id, %error, "rows could not be flushed at shutdown");
            }
        }
    }

    async fn step(&self, state: &mut State) -> Result<()> {
        self.hot.count().await?;
        let snapshot = self.store.committer.snapshot();
        let now = self.store.clock.now_us();
        let largest = self.largest_when_close(&snapshot, state, now);
        for table in snapshot.catalog.tables().filter(|table| table.is_flushed()) {
            let hot = self.hot.of(table.id);
            let is_due = hot.is_due(&table.options.flush_policy, now) || largest == Some(table.id);
            if self.is_ending() || !is_due || state.is_paused(JobKind::Flush, table.id, now) {
                continue;
            }
            let why = json!({ "by": "policy", "rows": hot.rows, "bytes": hot.bytes });
            let job = self.store.enqueue(JobKind::Flush, Some(table), why).await?;
            self.flush(state, table.id, job, RETRIES_MAX).await?;
            self.compact_if_due(state, table).await;
        }
        let all = now.saturating_sub(state.last_compaction_check) >= COMPACTION_CHECK_INTERVAL_US;
        if all {
            state.last_compaction_check = now;
            state.looked_at.clear();
        }
        for table in snapshot.catalog.tables().filter(|table| table.is_flushed()) {
            // A large INSERT or a compaction may have left segments that are worth compacting.
            let moved = snapshot.cold.moved(table.id);
            let before = state.looked_at.insert(table.id, moved);
            if all || before.is_some_and(|before| before != moved) {
                self.compact_if_due(state, table).await;
            }
        }
        self.publish_and_remove(state).await
    }

    /// Returns the table with the most hot bytes, which is due whatever its policy, if the limit is close.
    fn largest_when_close(&self, snapshot: &Snapshot, state: &State, now_us: i64) -> Option<TableId> {
        self.hot.note_total();
        let limit = self.store.committer.hot_limit();
        if !limit.is_close(limit.bytes()) {
            return None;
        }
        let is_free = |table: &&Arc<TableDefinition>| !state.is_paused(JobKind::Flush, table.id, now_us);
        let tables = snapshot.catalog.tables().filter(|table| table.is_flushed()).filter(is_free);
        tables.max_by_key(|table| self.hot.of(table.id).bytes).map(|table| table.id)
    }

    /// Compacts a table if it is worth it. A failure does not keep other tables from being compacted.
    async fn compact_if_due(&self, state: &mut State, table: &TableDefinition) {
        let now = self.store.clock.now_us();
        if self.is_ending() || state.is_paused(JobKind::Compact, table.id, now) {
            return;
        }
        let outcome = async {
            apply_marks(&self.store.committer, table.id).await?;
            let segments =
                segments_to_compact(&self.store.committer.snapshot(), table.id, Candidates::Due).await?;
            if segments.is_empty() {
                return Ok(());
            }
            let why = json!({ "by": "policy", "segments": segments.len() });
            let job = self.store.enqueue(JobKind::Compact, Some(table), why).await?;
            let segments = &segments;
            self.run_compaction(state, job, table.id, |control| async move {
                compact_segments(&self.store, &self.registry, table.id, segments, &control).await
            })
            .await
        };
        let outcome: Result<()> = outcome.await;
        if let Err(error) = outcome {
            warn!(table = %table.id, %error, "segments could not be compacted");
            state.pause(JobKind::Compact, table.id, now.saturating_add(PAUSE_US));
        }
    }

    /// Runs `work`, which compacts segments of a table.
    async fn run_compaction<F, W>(
        &self,
        state: &mut State,
        job: Queued,
        table: TableId,
        work: W,
    ) -> Result<()>
    where
        F: Future<Output = Result<String>>,
        W: Fn(Control) -> F,
    {
        let status = self.store.run(job, RETRIES_MAX, work).await?;
        if status != JobStatus::Completed {
            state.pause(JobKind::Compact, table, self.store.clock.now_us().saturating_add(PAUSE_US));
        }
        self.publish_and_remove(state).await
    }

    async fn flush(&self, state: &mut State, table: TableId, job: Queued, retries_max: u16) -> Result<()> {
        let id = &job.id().clone();
        let work = |control: Control| async move {
            let outcome = flush_table(&self.store, &self.registry, &self.hot, table, &control).await;
            let failed = outcome.as_ref().is_err_and(|error| error.kind() != ErrorKind::Cancelled);
            self.store.committer.hot_limit().note_flush(failed.then(|| id.clone()));
            outcome
        };
        let outcome = self.store.run(job, retries_max, work).await;
        self.hot.flush_abandoned(table);
        if outcome? != JobStatus::Completed {
            let limit = self.store.committer.hot_limit();
            let pause = if limit.is_close(limit.bytes()) { SHORT_PAUSE_US } else { PAUSE_US };
            state.pause(JobKind::Flush, table, self.store.clock.now_us().saturating_add(pause));
        }
        self.publish_and_remove(state).await
    }

    /// Whether no further work may begin.
    fn is_ending(&self) -> bool {
        self.stop.is_cancelled() || self.closing.is_cancelled()
    }

    /// Publishes manifests and removes unneeded objects, which can wait until rows are moved.
    async fn publish_and_remove(&self, state: &mut State) -> Result<()> {
        let work = async {
            publish_due(&self.store, &mut state.backoff).await;
            remove_retired(&self.store, &mut state.backoff).await
        };
        self.stop.run_until_cancelled(work).await.unwrap_or(Ok(()))
    }
}

impl State {
    fn is_paused(&self, kind: JobKind, table: TableId, now_us: i64) -> bool {
        self.paused.get(&(kind, table)).is_some_and(|until| now_us < *until)
    }

    fn pause(&mut self, kind: JobKind, table: TableId, until_us: i64) {
        self.paused.insert((kind, table), until_us);
    }
}
