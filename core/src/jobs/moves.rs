//! Flushes and compactions: hot rows become cold, and segments are compacted, by policy or on request.
//!
//! One of them runs at a time, so that background work takes at most one thread, the memory of one segment
//! being written, and the keys of the segments that await their commit. A flush writes segments from a
//! snapshot and syncs them. One commit adds them and marks the rows that changed meanwhile. Then small
//! commits delete the stored rows. A crash before the commit leaves unknown files; a crash after it leaves
//! stored rows that are ignored. The next start removes both. A compaction works the same way; its old
//! segments are removed when no snapshot has them any more.
//!
//! Invariant: readers see every row once, before, during and after.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::hot_size::HotCounter;
use super::publish::{self, fold, publish_table};
use super::record::{JobKind, JobStatus};
use super::store::{JobStore, Queued};
use super::waiting::Waiting;
use crate::cold_storage::{ColdChange, Segment, SegmentStore};
use crate::commit::{ColdWrite, Committer, Snapshot, WriteSet};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::ids::{Epoch, SegmentId, Seq, TableId, UserId};
use crate::schema_registry::{SchemaRegistry, TableDefinition};
use crate::storage::keys::table_prefix;
use crate::storage::{KeyRange, blocking};
use crate::tables::Control;
use crate::tables::compact::{Compacted, compact};
use crate::tables::flush::{Files, flush, flushed_keys, gone_of};

/// The most retries of a flush or compaction that fails for a transient reason.
const RETRIES_MAX: u16 = 5;

/// Segments with fewer rows are small.
const SMALL_ROWS: u32 = 128 << 10;
/// A table with this many small segments is compacted.
const SMALL_SEGMENTS_MAX: usize = 8;
/// Segments with at least this many bytes are not small, however few rows they have.
const SMALL_BYTES: u64 = 64 << 20;
/// The limits of one compaction.
const MERGE_ROWS_MAX: u64 = 4 << 20;
const MERGE_BYTES_MAX: u64 = 512 << 20;
const MERGE_SEGMENTS_MAX: usize = 16;
/// How long policies skip a table after a flush or compaction of it failed.
const PAUSE_US: i64 = 60_000_000;
/// The same for a flush, while hot rows are close to their limit, where writers may have to wait.
const SHORT_PAUSE_US: i64 = 5_000_000;
/// Tables with fewer hot rows are not flushed at shutdown: reading them again costs less than a segment.
const SHUTDOWN_ROWS_MIN: u64 = 1_000;
/// A storage is skipped for this many times as long as it took to fail.
const SILENCE_FACTOR: i64 = 10;
/// How often all tables are checked for segments to compact. One table is also checked after its flush.
const MERGE_CHECK_INTERVAL_US: i64 = 60_000_000;

/// A requested flush or compaction.
pub(super) struct MoveRequest {
    pub(super) kind: JobKind,
    pub(super) table: TableId,
    pub(super) job: Queued,
}

pub(super) struct Moves {
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
    last_merge_check: i64,
    /// Until when policies skip a table after a failed flush or compaction.
    paused: HashMap<(JobKind, TableId), i64>,
    /// The last commit that changed a table's segments, as of the table's last check for a compaction.
    looked_at: HashMap<TableId, Seq>,
    /// Until when a storage that failed is skipped.
    silent: HashMap<Arc<str>, i64>,
}

impl Moves {
    /// Runs until told to stop.
    pub(super) async fn run(mut self) {
        let mut ticks = interval(Duration::from_millis(self.interval_ms.max(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut state = State {
            last_merge_check: self.store.clock.now_us(),
            paused: HashMap::new(),
            looked_at: HashMap::new(),
            silent: HashMap::new(),
        };
        self.recover().await;
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
                warn!(%error, "rows could not be moved");
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
                self.merge(state, job, table, |control| async move {
                    let segments = to_merge(&self.store.committer.snapshot(), table, Candidates::All).await?;
                    self.merge_segments(table, &segments, &control).await
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
                warn!(table = %table.id, %error, "rows could not be flushed before the end");
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
            self.merge_if_worth(state, table).await;
        }
        let all = now.saturating_sub(state.last_merge_check) >= MERGE_CHECK_INTERVAL_US;
        if all {
            state.last_merge_check = now;
            state.looked_at.clear();
        }
        for table in snapshot.catalog.tables().filter(|table| table.is_flushed()) {
            // A large INSERT or a compaction may have left segments that are worth compacting.
            let moved = snapshot.cold.moved(table.id);
            let before = state.looked_at.insert(table.id, moved);
            if all || before.is_some_and(|before| before != moved) {
                self.merge_if_worth(state, table).await;
            }
        }
        self.tidy(state).await
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
    async fn merge_if_worth(&self, state: &mut State, table: &TableDefinition) {
        let now = self.store.clock.now_us();
        if self.is_ending() || state.is_paused(JobKind::Compact, table.id, now) {
            return;
        }
        let outcome = async {
            fold(&self.store.committer, table.id).await?;
            let segments = to_merge(&self.store.committer.snapshot(), table.id, Candidates::Worth).await?;
            if segments.is_empty() {
                return Ok(());
            }
            let why = json!({ "by": "policy", "segments": segments.len() });
            let job = self.store.enqueue(JobKind::Compact, Some(table), why).await?;
            let segments = &segments;
            self.merge(state, job, table.id, |control| async move {
                self.merge_segments(table.id, segments, &control).await
            })
            .await
        };
        let outcome: Result<()> = outcome.await;
        if let Err(error) = outcome {
            warn!(table = %table.id, %error, "segments could not be merged");
            state.pause(JobKind::Compact, table.id, now.saturating_add(PAUSE_US));
        }
    }

    /// Runs `work`, which compacts segments of a table.
    async fn merge<F, W>(&self, state: &mut State, job: Queued, table: TableId, work: W) -> Result<()>
    where
        F: Future<Output = Result<String>>,
        W: Fn(Control) -> F,
    {
        let status = self.store.run(job, RETRIES_MAX, work).await?;
        if status != JobStatus::Completed {
            state.pause(JobKind::Compact, table, self.store.clock.now_us().saturating_add(PAUSE_US));
        }
        self.tidy(state).await
    }

    async fn merge_segments(
        &self,
        table: TableId,
        segments: &[Arc<Segment>],
        control: &Control,
    ) -> Result<String> {
        let committer = &self.store.committer;
        committer.check_disk_space()?;
        let moving = committer.begin_merge(table)?;
        let snapshot = moving.snapshot();
        let Some(definition) = snapshot.catalog.table_by_id(table) else {
            return Ok("the table is gone".to_owned());
        };
        // An earlier attempt of unknown outcome may have compacted them.
        let are_there = segments.iter().all(|segment| snapshot.cold.segment(table, segment.id).is_some());
        if segments.is_empty() || !are_there {
            return Ok("there was nothing to merge".to_owned());
        }
        let schemas = self.registry.schemas(definition);
        let ids = Arc::clone(committer);
        let now = self.store.clock.now_us();
        let merged =
            compact(snapshot, &schemas, segments, move || ids.new_segment_id(), control, now).await?;
        let Compacted { flushed, places } = merged;
        let added = flushed.segments.len();
        let set = WriteSet {
            cold: Some(ColdWrite::Compact {
                table,
                as_of: snapshot.seq,
                removed: segments.iter().map(|segment| segment.id).collect(),
                added: flushed.segments,
                places: Arc::new(places),
            }),
            ..WriteSet::new(UserId::SYSTEM, snapshot.seq)
        };
        self.commit(set, flushed.files).await?;
        failpoint::step("compact::committed")?;
        Ok(format!(
            "merged {} segments into {} with {} rows and {} bytes",
            segments.len(),
            added,
            flushed.rows,
            flushed.bytes
        ))
    }

    /// Commits a flush or compaction.
    async fn commit(&self, set: WriteSet, files: Files) -> Result<()> {
        let files = files.keep();
        let outcome = self.store.committer.commit(set).await;
        files.settle(&outcome);
        outcome.map(|_| ())
    }

    async fn flush(&self, state: &mut State, table: TableId, job: Queued, retries_max: u16) -> Result<()> {
        let id = &job.id().clone();
        let work = |control: Control| async move {
            let outcome = self.flush_table(table, control).await;
            let failed = outcome.as_ref().is_err_and(|error| error.kind() != ErrorKind::Cancelled);
            self.store.committer.hot_limit().note_flush(failed.then(|| id.clone()));
            outcome
        };
        let outcome = self.store.run(job, retries_max, work).await;
        self.hot.flush_given_up(table);
        if outcome? != JobStatus::Completed {
            let limit = self.store.committer.hot_limit();
            let pause = if limit.is_close(limit.bytes()) { SHORT_PAUSE_US } else { PAUSE_US };
            state.pause(JobKind::Flush, table, self.store.clock.now_us().saturating_add(pause));
        }
        self.tidy(state).await
    }

    async fn flush_table(&self, table: TableId, control: Control) -> Result<String> {
        let committer = &self.store.committer;
        committer.check_disk_space()?;
        let moving = committer.begin_flush(table)?;
        let snapshot = moving.snapshot();
        self.hot.flush_begun(table, snapshot.seq);
        let Some(definition) = snapshot.catalog.table_by_id(table) else {
            return Ok("the table is gone".to_owned());
        };
        let schemas = self.registry.schemas(definition);
        let ids = Arc::clone(committer);
        let next_id = move || ids.new_segment_id();
        let now = self.store.clock.now_us();
        let flushed = flush(snapshot, &schemas, next_id, &control, now).await?;
        if flushed.rows == 0 && snapshot.cold.flushed(table) == snapshot.seq {
            self.hot.flushed(table);
            return Ok("there was nothing to flush".to_owned());
        }
        let added = flushed.segments.len();
        let set = WriteSet {
            cold: Some(ColdWrite::Flush { table, through: snapshot.seq, added: flushed.segments }),
            ..WriteSet::new(UserId::SYSTEM, snapshot.seq)
        };
        self.commit(set, flushed.files).await?;
        self.hot.flushed(table);
        failpoint::step("flush::committed")?;
        drop(moving);
        control.begin("removing stored rows");
        clean(committer, table, &control).await?;
        fold(committer, table).await?;
        Ok(format!("flushed {} rows into {} segments of {} bytes", flushed.rows, added, flushed.bytes))
    }

    /// Whether no further work may begin.
    fn is_ending(&self) -> bool {
        self.stop.is_cancelled() || self.closing.is_cancelled()
    }

    /// Publishes manifests and removes unneeded objects, which can wait until rows are moved.
    async fn tidy(&self, state: &mut State) -> Result<()> {
        let work = async {
            self.publish(state).await;
            self.remove_retired(state).await
        };
        self.stop.run_until_cancelled(work).await.unwrap_or(Ok(()))
    }

    /// Publishes the manifests that are due. A manifest that cannot be published stays due.
    async fn publish(&self, state: &mut State) {
        let committer = &self.store.committer;
        for (table, due) in committer.snapshot().cold.unpublished().clone() {
            let now = self.store.clock.now_us();
            if state.is_silent(&due.storage, now) {
                continue;
            }
            if let Err(error) = publish_table(committer, table, &due).await {
                warn!(%table, storage = %due.storage, %error, "a manifest could not be published");
                state.silence(&due.storage, now, self.store.clock.now_us());
            }
        }
    }

    /// Removes the objects of segments that no snapshot has any more and no published manifest needs.
    async fn remove_retired(&self, state: &mut State) -> Result<()> {
        let committer = &self.store.committer;
        let snapshot = committer.snapshot();
        let store = Arc::clone(snapshot.cold.store());
        let mut removed: Vec<SegmentId> = Vec::new();
        for segment in store.removable() {
            let now = self.store.clock.now_us();
            let is_published = !snapshot.cold.unpublished().contains_key(&segment.table);
            if !is_published || state.is_silent(&segment.storage, now) {
                continue;
            }
            let removal = async {
                failpoint::step("retire::remove")?;
                store.remove(&segment).await
            };
            match removal.await {
                Ok(()) => removed.push(segment.id),
                Err(error) => {
                    warn!(path = segment.path, %error, "a segment could not be removed");
                    state.silence(&segment.storage, now, self.store.clock.now_us());
                }
            }
        }
        if removed.is_empty() {
            return Ok(());
        }
        failpoint::step("retire::removed")?;
        let changes = ColdWrite::Manifest(removed.iter().copied().map(ColdChange::Removed).collect());
        if publish::commit(committer, changes, committer.seq()).await? {
            removed.into_iter().for_each(|id| store.forget(id));
        }
        Ok(())
    }

    /// Removes what a process left behind that died during a flush or compaction.
    async fn recover(&self) {
        let committer = &self.store.committer;
        let snapshot = committer.snapshot();
        let tables: Vec<TableId> = snapshot.catalog.tables().map(|table| table.id).collect();
        for storage in snapshot.cold.store().storage_ids() {
            match self.stop.run_until_cancelled(sweep(&snapshot, &storage, self.opened)).await {
                None => return,
                Some(Ok(0)) => {}
                Some(Ok(objects)) => {
                    info!(%storage, objects, "removed objects of moves that were not committed")
                }
                Some(Err(error)) => {
                    warn!(%storage, %error, "objects of moves that were not committed could not be removed")
                }
            }
        }
        failpoint::moment("recover::swept");
        for table in tables.into_iter().filter(|table| snapshot.cold.table(*table).is_some()) {
            if let Err(error) = clean(committer, table, &Control::new(self.stop.clone())).await {
                warn!(%table, %error, "stored rows that have been flushed could not be removed");
            }
        }
    }
}

/// Removes the objects of a storage that no segment of any storage has, since two storages may be at one
/// place. Objects of this process, which began with epoch `opened`, stay: a statement may yet commit them.
async fn sweep(snapshot: &Snapshot, storage: &str, opened: Epoch) -> Result<usize> {
    let store = snapshot.cold.store();
    // Retired segments come last: they then include any segment that has left the manifest meanwhile.
    let mut known: HashSet<String> =
        snapshot.cold.all_segments().map(|segment| segment.path.clone()).collect();
    known.extend(store.retired_paths());
    let is_new = |path: &str| SegmentStore::epoch(path).is_some_and(|epoch| epoch >= opened);
    store.storage(storage)?.sweep(&|path| is_new(path) || known.contains(path)).await
}

impl State {
    fn is_silent(&self, storage: &str, now_us: i64) -> bool {
        self.silent.get(storage).is_some_and(|until| now_us < *until)
    }

    /// The slower a storage failed, the longer it is skipped: only slow failures hold up other moves.
    fn silence(&mut self, storage: &Arc<str>, asked_us: i64, failed_us: i64) {
        let pause = failed_us.saturating_sub(asked_us).saturating_mul(SILENCE_FACTOR);
        self.silent.insert(Arc::clone(storage), failed_us.saturating_add(pause));
    }

    fn is_paused(&self, kind: JobKind, table: TableId, now_us: i64) -> bool {
        self.paused.get(&(kind, table)).is_some_and(|until| now_us < *until)
    }

    fn pause(&mut self, kind: JobKind, table: TableId, until_us: i64) {
        self.paused.insert((kind, table), until_us);
    }
}

/// Which segments of a table are compacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Candidates {
    /// Small ones if there are [`SMALL_SEGMENTS_MAX`] of them, and those with a quarter of their rows gone.
    Worth,
    /// Small ones if there are two of them, and those with any row gone.
    All,
}

/// Returns the segments to compact; empty if that would change nothing.
async fn to_merge(
    snapshot: &Arc<Snapshot>,
    table: TableId,
    candidates: Candidates,
) -> Result<Vec<Arc<Segment>>> {
    let segments = snapshot.cold.segments(table).to_vec();
    let gone = gone_of(snapshot, &segments).await?;
    let is_small = |segment: &Segment| segment.rows < SMALL_ROWS && segment.bytes < SMALL_BYTES;
    let small = segments.iter().filter(|segment| is_small(segment)).count();
    let small_max = if candidates == Candidates::All { 2 } else { SMALL_SEGMENTS_MAX };
    let (mut rows, mut bytes) = (0, 0);
    let chosen: Vec<_> = segments
        .into_iter()
        .zip(gone)
        .filter(|(segment, gone)| {
            let share = if candidates == Candidates::All { segment.rows as usize } else { 4 };
            let has_holes = !gone.is_empty() && gone.len() * share >= segment.rows as usize;
            has_holes || (small >= small_max && is_small(segment))
        })
        .map(|(segment, _)| segment)
        .take(MERGE_SEGMENTS_MAX)
        .take_while(|segment| {
            rows += u64::from(segment.rows);
            bytes += segment.bytes;
            rows <= MERGE_ROWS_MAX && bytes <= MERGE_BYTES_MAX
        })
        .collect();
    Ok(chosen)
}

/// Deletes the stored rows of a table that are in segments, in small commits, and compacts the tombstones.
async fn clean(committer: &Arc<Committer>, table: TableId, control: &Control) -> Result<()> {
    /// The tombstones of fewer rows are not worth a compaction.
    const COMPACTED_ROWS_MIN: usize = 4_096;
    /// Tombstones are compacted in ranges of about this many rows. Between ranges the work can end.
    const COMPACTED_ROWS_MAX: usize = 128 << 10;
    let (mut removed, mut in_range, mut compacted): (_, _, Vec<KeyRange>) = (0, 0, Vec::new());
    let mut rest = Some(KeyRange::prefix(table_prefix(table)));
    while let Some(range) = rest {
        if control.stop.is_cancelled() {
            return Ok(());
        }
        let snapshot = committer.snapshot();
        let (flushed, read_seq) = (snapshot.cold.flushed(table), snapshot.seq);
        let (keys, next) = blocking(move || flushed_keys(&snapshot, range, flushed)).await?;
        rest = next;
        if keys.is_empty() {
            continue;
        }
        failpoint::step("flush::clean")?;
        control.add(keys.len(), keys.iter().map(Bytes::len).sum());
        if let (Some(first), Some(last)) = (keys.first(), keys.last()) {
            let end = Some([last, &[0][..]].concat());
            match compacted.last_mut() {
                Some(range) if in_range < COMPACTED_ROWS_MAX => range.end = end,
                _ => {
                    in_range = 0;
                    compacted.push(KeyRange { start: first.to_vec(), end });
                }
            }
        }
        in_range += keys.len();
        removed += keys.len();
        publish::commit(committer, ColdWrite::Clean { table, keys }, read_seq).await?;
    }
    if removed < COMPACTED_ROWS_MIN {
        return Ok(());
    }
    for range in compacted {
        if control.stop.is_cancelled() {
            return Ok(());
        }
        let committer = Arc::clone(committer);
        blocking(move || committer.compact_rows(&range)).await?;
    }
    Ok(())
}

/// Returns the error for a table that is not flushed.
pub(super) fn not_flushed(table: &TableDefinition) -> Error {
    Error::unsupported(format!("flushing table \"{}\"", table.qualified_name()))
        .hint("rows of STREAM tables expire instead, and those of most system tables are not stored")
}
