//! Rows on the move: the hot rows of a table become cold, and its segments are merged, by its policy or when asked.
//!
//! One move at a time, so that background work never takes more than a thread and a segment's memory. A flush's steps: segments are
//! written from a snapshot and brought to stable storage; one commit adds them and marks the rows that were changed meanwhile;
//! then the stored rows are removed in small commits. A process that dies before the commit leaves files nobody knows, which are
//! swept at the next start; one that dies after it leaves stored rows that are ignored, which are removed at the next start. A merge
//! of segments goes the same way, and its old segments are removed when no snapshot has them any more.
//!
//! Invariant: readers see every row once, before, during and after.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::hot_size::{HotRows, HotSizes, is_flushed};
use super::record::{JobKind, JobStatus};
use super::store::{JobStore, Queued};
use crate::cold_storage::Segment;
use crate::commit::{ColdWrite, CommitFeed, Committer, Snapshot, WriteSet};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::ids::{SegmentId, TableId, UserId};
use crate::schema_registry::{Durability, SchemaRegistry, TableDefinition};
use crate::storage::keys::table_prefix;
use crate::storage::{KeyRange, blocking};
use crate::tables::compact::{Compacted, compact};
use crate::tables::flush::{Files, flush, flushed_keys, gone_of};

/// How often a flush that fails for a reason that may pass is tried again.
const RETRIES_MAX: u16 = 5;

/// Segments with fewer rows are small.
const SMALL_ROWS: u32 = 128 << 10;
/// So many small segments of a table are merged.
const SMALL_SEGMENTS_MAX: usize = 8;
/// Segments with more bytes are not small, however few their rows.
const SMALL_BYTES: u64 = 64 << 20;
/// What one merge takes at the most.
const MERGE_ROWS_MAX: u64 = 4 << 20;
const MERGE_BYTES_MAX: u64 = 512 << 20;
const MERGE_SEGMENTS_MAX: usize = 16;
/// How long policies leave a table alone whose last move did not succeed.
const PAUSE_US: i64 = 60_000_000;
/// How often it is looked for segments to merge, besides after each flush.
const MERGE_CHECK_INTERVAL_US: i64 = 60_000_000;

/// A move of rows somebody asked for.
pub(super) struct MoveRequest {
    pub(super) kind: JobKind,
    pub(super) table: TableId,
    pub(super) job: Queued,
}

pub(super) struct Moves {
    pub(super) store: Arc<JobStore>,
    pub(super) registry: Arc<SchemaRegistry>,
    pub(super) interval_ms: u64,
    pub(super) requests: mpsc::Receiver<MoveRequest>,
    pub(super) stop: CancellationToken,
}

/// What is known between one step and the next.
struct State {
    /// `None` when it is to be counted anew.
    sizes: Option<HotSizes>,
    last_merge_check: i64,
    /// Until when policies leave a table alone, whose last move did not succeed.
    paused: HashMap<(JobKind, TableId), i64>,
}

impl Moves {
    /// Runs until told to stop.
    pub(super) async fn run(mut self) {
        let feed = self.store.committer.commits();
        let mut heads = feed.watch();
        let mut ticks = interval(Duration::from_millis(self.interval_ms.max(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut state =
            State { sizes: None, last_merge_check: self.store.clock.now_us(), paused: HashMap::new() };
        self.recover().await;
        loop {
            let request = tokio::select! {
                () = self.stop.cancelled() => return,
                changed = heads.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // Only noted, so that the commits are counted while they are in memory.
                    follow(&feed, &mut state.sizes);
                    continue;
                }
                Some(request) = self.requests.recv() => Some(request),
                _ = ticks.tick() => None,
            };
            let outcome = match request {
                Some(request) => self.serve(&mut state, request).await,
                None => self.step(&feed, &mut state).await,
            };
            if let Err(error) = outcome
                && !self.stop.is_cancelled()
            {
                warn!(%error, "rows could not be moved");
            }
        }
    }

    /// Does what was asked for, whatever the policies say and whatever state other tables are in.
    async fn serve(&self, state: &mut State, request: MoveRequest) -> Result<()> {
        let MoveRequest { kind, table, job } = request;
        match kind {
            JobKind::Compact => self.merge(state, job, table, Candidates::All).await,
            _ => self.flush(state, table, job).await,
        }
    }

    async fn step(&self, feed: &CommitFeed, state: &mut State) -> Result<()> {
        follow(feed, &mut state.sizes);
        if state.sizes.is_none() {
            let (snapshot, now) = (self.store.committer.snapshot(), self.store.clock.now_us());
            state.sizes = Some(blocking(move || Ok(HotSizes::scan(&snapshot, now))).await?);
        }
        let snapshot = self.store.committer.snapshot();
        let now = self.store.clock.now_us();
        for table in snapshot.catalog.tables().filter(|table| is_flushed(table)) {
            let hot = state.sizes.as_ref().map_or_else(HotRows::default, |sizes| sizes.of(table.id));
            let is_due = hot.is_due(&table.options.flush_policy, now);
            if self.stop.is_cancelled() || !is_due || state.is_paused(JobKind::Flush, table.id, now) {
                continue;
            }
            let why = json!({ "by": "policy", "rows": hot.rows, "bytes": hot.bytes });
            let job = self.store.enqueue(JobKind::Flush, Some(table), why).await?;
            self.flush(state, table.id, job).await?;
            self.merge_if_worth(state, table).await;
        }
        if now.saturating_sub(state.last_merge_check) >= MERGE_CHECK_INTERVAL_US {
            state.last_merge_check = now;
            for table in snapshot.catalog.tables().filter(|table| is_flushed(table)) {
                self.merge_if_worth(state, table).await;
            }
        }
        self.remove_retired().await
    }

    /// A table whose segments cannot be looked at does not keep others from being merged.
    async fn merge_if_worth(&self, state: &mut State, table: &TableDefinition) {
        let now = self.store.clock.now_us();
        if self.stop.is_cancelled() || state.is_paused(JobKind::Compact, table.id, now) {
            return;
        }
        let outcome = async {
            let segments = to_merge(&self.store.committer.snapshot(), table.id, Candidates::Worth).await?;
            if segments.is_empty() {
                return Ok(());
            }
            let why = json!({ "by": "policy", "segments": segments.len() });
            let job = self.store.enqueue(JobKind::Compact, Some(table), why).await?;
            self.merge(state, job, table.id, Candidates::Worth).await
        };
        let outcome: Result<()> = outcome.await;
        if let Err(error) = outcome {
            warn!(table = %table.id, %error, "segments could not be merged");
            state.pause(JobKind::Compact, table.id, now);
        }
    }

    async fn merge(
        &self,
        state: &mut State,
        job: Queued,
        table: TableId,
        candidates: Candidates,
    ) -> Result<()> {
        let status =
            self.store.run(job, RETRIES_MAX, |stop| self.merge_segments(table, candidates, stop)).await?;
        if status != JobStatus::Completed {
            state.pause(JobKind::Compact, table, self.store.clock.now_us());
        }
        self.remove_retired().await
    }

    async fn merge_segments(
        &self,
        table: TableId,
        candidates: Candidates,
        stop: CancellationToken,
    ) -> Result<String> {
        let committer = &self.store.committer;
        let moving = committer.begin_move(table)?;
        let snapshot = moving.snapshot();
        let Some(definition) = snapshot.catalog.table_by_id(table) else {
            return Ok("the table is gone".to_owned());
        };
        let segments = to_merge(snapshot, table, candidates).await?;
        if segments.is_empty() {
            return Ok("there was nothing to merge".to_owned());
        }
        let schemas = self.registry.schemas(definition);
        let ids = Arc::clone(committer);
        let now = self.store.clock.now_us();
        let merged = compact(snapshot, &schemas, &segments, move || ids.new_segment_id(), stop, now).await?;
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

    /// Commits a move. Only what was refused is known not to be part of the database; for the rest the next start looks.
    async fn commit(&self, set: WriteSet, files: Files) -> Result<()> {
        let outcome = self.store.committer.commit(set).await;
        if outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::Conflict) {
            drop(files);
        } else {
            files.keep();
        }
        outcome.map(|_| ())
    }

    async fn flush(&self, state: &mut State, table: TableId, job: Queued) -> Result<()> {
        let before = state.sizes.as_ref().map(|sizes| sizes.of(table));
        let status = self.store.run(job, RETRIES_MAX, |stop| self.flush_table(table, stop)).await?;
        let now = self.store.clock.now_us();
        match (status, &mut state.sizes, before) {
            (JobStatus::Completed, Some(sizes), Some(before)) => sizes.flushed(table, before, now),
            (JobStatus::Completed, ..) => {}
            _ => state.pause(JobKind::Flush, table, now),
        }
        Ok(())
    }

    async fn flush_table(&self, table: TableId, stop: CancellationToken) -> Result<String> {
        let committer = &self.store.committer;
        let moving = committer.begin_move(table)?;
        let snapshot = moving.snapshot();
        let Some(definition) = snapshot.catalog.table_by_id(table) else {
            return Ok("the table is gone".to_owned());
        };
        let schemas = self.registry.schemas(definition);
        let ids = Arc::clone(committer);
        let next_id = move || ids.new_segment_id();
        let now = self.store.clock.now_us();
        let flushed = flush(snapshot, &schemas, next_id, stop.clone(), now).await?;
        if flushed.rows == 0 && snapshot.cold.flushed(table) == snapshot.seq {
            return Ok("there was nothing to flush".to_owned());
        }
        let added = flushed.segments.len();
        let set = WriteSet {
            cold: Some(ColdWrite::Flush { table, through: snapshot.seq, added: flushed.segments }),
            ..WriteSet::new(UserId::SYSTEM, snapshot.seq)
        };
        self.commit(set, flushed.files).await?;
        failpoint::step("flush::committed")?;
        drop(moving);
        clean(committer, table, &stop).await?;
        Ok(format!("flushed {} rows into {} segments of {} bytes", flushed.rows, added, flushed.bytes))
    }

    /// Removes the objects of segments that no snapshot has any more.
    async fn remove_retired(&self) -> Result<()> {
        let committer = &self.store.committer;
        let store = Arc::clone(committer.snapshot().cold.store());
        let mut removed: Vec<SegmentId> = Vec::new();
        for segment in store.removable() {
            // One that cannot be removed is tried again at the next step, and does not hold up the others.
            let removal = async {
                failpoint::step("retire::remove")?;
                store.remove(&segment).await
            };
            match removal.await {
                Ok(()) => removed.push(segment.id),
                Err(error) => warn!(path = segment.path, %error, "a segment could not be removed"),
            }
        }
        if removed.is_empty() {
            return Ok(());
        }
        failpoint::step("retire::removed")?;
        let set = WriteSet {
            cold: Some(ColdWrite::Removed(removed.clone())),
            durability: Durability::Relaxed,
            ..WriteSet::new(UserId::SYSTEM, committer.seq())
        };
        committer.commit(set).await?;
        removed.into_iter().for_each(|id| store.forget(id));
        Ok(())
    }

    /// Takes away what a process that died in the middle of a move left.
    async fn recover(&self) {
        let committer = &self.store.committer;
        let snapshot = committer.snapshot();
        let tables: Vec<TableId> = snapshot.catalog.tables().map(|table| table.id).collect();
        let store = Arc::clone(snapshot.cold.store());
        // Retired ones are asked for last: a segment that leaves the manifest meanwhile is then among them.
        let mut known: HashSet<String> = tables
            .iter()
            .flat_map(|table| snapshot.cold.segments(*table))
            .map(|segment| segment.path.clone())
            .collect();
        known.extend(store.retired_paths());
        match blocking(move || store.sweep(&|path| known.contains(path))).await {
            Ok(0) => {}
            Ok(files) => info!(files, "removed files of moves that were not committed"),
            Err(error) => warn!(%error, "files of moves that were not committed could not be removed"),
        }
        failpoint::moment("recover::swept");
        for table in tables.into_iter().filter(|table| snapshot.cold.table(*table).is_some()) {
            if let Err(error) = clean(committer, table, &self.stop).await {
                warn!(%table, %error, "stored rows that have been flushed could not be removed");
            }
        }
    }
}

impl State {
    fn is_paused(&self, kind: JobKind, table: TableId, now_us: i64) -> bool {
        self.paused.get(&(kind, table)).is_some_and(|until| now_us < *until)
    }

    fn pause(&mut self, kind: JobKind, table: TableId, now_us: i64) {
        self.paused.insert((kind, table), now_us.saturating_add(PAUSE_US));
    }
}

/// Which segments of a table are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Candidates {
    /// Those of which there are too many small ones, or that have too many rows that are gone.
    Worth,
    /// Every small one, and every one with rows that are gone.
    All,
}

/// The segments to merge: none when it would not change anything.
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

/// Counts the commits since the last call; forgets the counts when those are no longer in memory.
fn follow(feed: &CommitFeed, sizes: &mut Option<HotSizes>) {
    let Some(known) = sizes else { return };
    match feed.after(known.followed) {
        Some(records) => records.iter().for_each(|record| known.note(record)),
        None => *sizes = None,
    }
}

/// Removes the stored rows of a table that are in segments, some at a time.
async fn clean(committer: &Arc<Committer>, table: TableId, stop: &CancellationToken) -> Result<()> {
    let mut rest = Some(KeyRange::prefix(table_prefix(table)));
    while let Some(range) = rest {
        if stop.is_cancelled() {
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
        let set = WriteSet {
            cold: Some(ColdWrite::Clean { table, keys }),
            durability: Durability::Relaxed,
            ..WriteSet::new(UserId::SYSTEM, read_seq)
        };
        match committer.commit(set).await {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Why a table is not flushed.
pub(super) fn not_flushed(table: &TableDefinition) -> Error {
    Error::unsupported(format!("flushing table \"{}\"", table.qualified_name()))
        .hint("USER and SHARED tables are flushed; rows of STREAM tables expire instead")
}
