//! About how many hot rows each table has, and since when, for flush policies and the limit of hot bytes.
//!
//! Updates count as rows too, because the store reclaims overwritten values only later. Counting begins with
//! a scan when the process starts, and again after missed commits. Its own task follows the commits, so
//! counting goes on during flushes and compactions.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::change_log::CommitRecord;
use crate::clock::Clock;
use crate::commit::{Committer, Snapshot};
use crate::error::Result;
use crate::ids::{Seq, TableId};
use crate::schema_registry::FlushPolicy;
use crate::storage::keys::table_prefix;
use crate::storage::rows::row_seq;
use crate::storage::{Direction, KeyRange, Partition, blocking};

/// How often the limit of hot bytes gets the current number.
const NOTE_INTERVAL: Duration = Duration::from_millis(200);

/// The hot rows of one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct HotRows {
    pub(super) rows: u64,
    pub(super) bytes: u64,
    /// When the first of them was written or scanned, microseconds UTC.
    pub(super) since: Option<i64>,
}

impl HotRows {
    fn add(&mut self, written: Written) {
        if written.rows > 0 {
            self.rows += written.rows;
            self.bytes += written.bytes;
            self.since.get_or_insert(written.at);
        }
    }

    /// Whether a policy requires a flush now.
    pub(super) fn is_due(&self, policy: &FlushPolicy, now_us: i64) -> bool {
        let age_s = self.since.map_or(0, |since| now_us.saturating_sub(since) / 1_000_000);
        let reached = |limit: Option<u64>, value: u64| limit.is_some_and(|limit| value >= limit);
        self.rows > 0
            && (reached(policy.rows, self.rows)
                || reached(policy.bytes, self.bytes)
                || reached(policy.interval_s, u64::try_from(age_s).unwrap_or_default()))
    }
}

/// The hot rows of all tables.
#[derive(Debug)]
struct HotSizes {
    tables: HashMap<TableId, Counted>,
    followed: Seq,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    hot: HotRows,
    /// During a flush of the table: the rows written after the flush's snapshot.
    after_flush: Option<HotRows>,
}

impl Counted {
    fn add(&mut self, written: Written) {
        self.hot.add(written);
        if let Some(after_flush) = &mut self.after_flush {
            after_flush.add(written);
        }
    }
}

/// Rows that were written to a table.
#[derive(Clone, Copy, Debug)]
struct Written {
    rows: u64,
    bytes: u64,
    at: i64,
}

impl HotSizes {
    /// Counts the stored rows. Blocks. If a table has a damaged row, only the rows before it are counted.
    /// Ends early when `stop` is cancelled.
    fn scan(snapshot: &Snapshot, now_us: i64, stop: &CancellationToken) -> Self {
        let mut sizes = Self { tables: HashMap::new(), followed: snapshot.seq };
        for table in snapshot.catalog.tables().filter(|table| table.is_flushed()) {
            let flushed = snapshot.cold.flushed(table.id);
            let mut hot = HotRows::default();
            let range = KeyRange::prefix(table_prefix(table.id));
            let visited =
                snapshot.storage.visit(Partition::Rows, range, Direction::Forward, &mut |key, row| {
                    if row_seq(row)? > flushed {
                        hot.add(Written { rows: 1, bytes: (key.len() + row.len()) as u64, at: now_us });
                    }
                    Ok(if stop.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
                });
            if let Err(error) = visited {
                warn!(table = %table.id, %error, "hot rows could not be counted");
            }
            sizes.tables.insert(table.id, Counted { hot, after_flush: None });
        }
        sizes
    }

    /// Counts a commit.
    fn note(&mut self, record: &CommitRecord) {
        for (table, written) in written(record) {
            self.tables.entry(table).or_default().add(written);
        }
        self.followed = record.seq;
    }
}

/// Returns what a commit writes row by row, by table. Rows of a large INSERT are never hot.
fn written(record: &CommitRecord) -> impl Iterator<Item = (TableId, Written)> {
    let at = record.commit_ts;
    let in_memory = record.tables.iter().map(move |changes| {
        let (rows, bytes) = changes.written();
        (changes.table, Written { rows, bytes, at })
    });
    let stubs = record
        .stubs
        .iter()
        .map(move |stub| (stub.table, Written { rows: stub.written_rows, bytes: stub.written_bytes, at }));
    in_memory.chain(stubs)
}

/// Counts hot rows as they are committed.
pub(super) struct HotCounter {
    committer: Arc<Committer>,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
    /// `None` when a scan is needed.
    sizes: Mutex<Option<HotSizes>>,
}

impl HotCounter {
    pub(super) fn new(
        committer: Arc<Committer>,
        clock: Arc<dyn Clock>,
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self { committer, clock, stop, sizes: Mutex::default() })
    }

    /// Runs until told to stop.
    pub(super) async fn run(self: Arc<Self>) {
        let mut heads = self.committer.commits().watch();
        let mut ticks = interval(NOTE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_tick = tokio::select! {
                () = self.stop.cancelled() => return,
                changed = heads.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    false
                }
                _ = ticks.tick() => true,
            };
            if let Err(error) = self.count().await {
                warn!(%error, "hot rows could not be counted");
            }
            if is_tick {
                self.note_total();
            }
        }
    }

    /// Counts up to the last commit. Does nothing if that is done already.
    pub(super) async fn count(&self) -> Result<()> {
        if self.follow() {
            return Ok(());
        }
        let (snapshot, now, stop) = (self.committer.snapshot(), self.clock.now_us(), self.stop.clone());
        let scanned = blocking(move || Ok(HotSizes::scan(&snapshot, now, &stop))).await?;
        *self.sizes.lock() = Some(scanned);
        Ok(())
    }

    /// False when a scan is needed because commits are no longer in memory.
    fn follow(&self) -> bool {
        let mut sizes = self.sizes.lock();
        let Some(known) = &mut *sizes else { return false };
        match self.committer.commits().after(known.followed) {
            Some(records) => records.iter().for_each(|record| known.note(record)),
            None => *sizes = None,
        }
        sizes.is_some()
    }

    /// Returns the hot rows of one table.
    pub(super) fn of(&self, table: TableId) -> HotRows {
        let sizes = self.sizes.lock();
        sizes
            .as_ref()
            .and_then(|sizes| sizes.tables.get(&table))
            .map_or_else(HotRows::default, |table| table.hot)
    }

    /// Passes the total to the limit of hot bytes.
    pub(super) fn note_total(&self) {
        let limit = self.committer.hot_limit();
        let catalog = Arc::clone(&self.committer.snapshot().catalog);
        let counted = {
            let sizes = self.sizes.lock();
            let Some(sizes) = &*sizes else { return };
            let tables = catalog.tables().filter(|table| table.is_flushed());
            tables.filter_map(|table| sizes.tables.get(&table.id)).map(|table| table.hot.bytes).sum::<u64>()
        };
        // Overwritten rows are counted each time. The store knows better, but asking it is slower.
        let bytes = match limit.is_close(counted) {
            true => counted.min(self.committer.storage_metrics().row_bytes),
            false => counted,
        };
        limit.note(bytes);
    }

    /// Records that a flush begins, of the rows of a table as of commit `through`.
    pub(super) fn flush_begun(&self, table: TableId, through: Seq) {
        let mut sizes = self.sizes.lock();
        let Some(sizes) = &mut *sizes else { return };
        let mut after_flush = HotRows::default();
        // Rows already counted that are not part of the flush.
        let records = self.committer.commits().after(through).unwrap_or_default();
        for record in records.iter().filter(|record| record.seq <= sizes.followed) {
            let of_table = written(record).filter(|(written_to, _)| *written_to == table);
            of_table.for_each(|(_, written)| after_flush.add(written));
        }
        sizes.tables.entry(table).or_default().after_flush = Some(after_flush);
    }

    /// Records that a flush was committed: only what came after its snapshot is hot.
    pub(super) fn flushed(&self, table: TableId) {
        let mut sizes = self.sizes.lock();
        let Some(known) = &mut *sizes else { return };
        let counted = known.tables.entry(table).or_default();
        match counted.after_flush.take() {
            Some(after_flush) => counted.hot = after_flush,
            // A scan has counted the rows again meanwhile.
            None => *sizes = None,
        }
        drop(sizes);
        self.note_total();
    }

    /// Records that a flush ended without a commit. Does nothing after a committed one.
    pub(super) fn flush_abandoned(&self, table: TableId) {
        let mut sizes = self.sizes.lock();
        if let Some(counted) = sizes.as_mut().and_then(|sizes| sizes.tables.get_mut(&table)) {
            counted.after_flush = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::change_log::{RowChange, RowOp, TableChanges};
    use crate::ids::{Epoch, SchemaVersion, ScopeId, Shard, UserId};

    #[test]
    fn a_stub_counts_like_its_commit() {
        let row = |op, old: &[u8], new: &[u8]| {
            let image = |bytes: &[u8]| (!bytes.is_empty()).then(|| Bytes::copy_from_slice(bytes));
            RowChange { op, key: Bytes::from_static(b"key"), old: image(old), new: image(new) }
        };
        let table = TableId(1_000);
        let record = CommitRecord {
            seq: Seq(1),
            commit_ts: 7,
            epoch: Epoch(1),
            shard: Shard(0),
            principal: UserId::ROOT,
            catalog: Vec::new(),
            tables: vec![TableChanges {
                table,
                version: SchemaVersion(1),
                scope: ScopeId::SHARED,
                rows: vec![
                    row(RowOp::Insert, b"", b"new"),
                    row(RowOp::Update, b"old", b"newer"),
                    row(RowOp::Delete, b"old", b""),
                ],
            }],
            large_insert: None,
            stubs: Vec::new(),
        };
        for record in [&record, &record.stub()] {
            let mut sizes = HotSizes { tables: HashMap::new(), followed: Seq::ZERO };
            sizes.note(record);
            assert_eq!(sizes.tables[&table].hot, HotRows { rows: 2, bytes: 14, since: Some(7) });
        }
    }

    #[test]
    fn each_part_of_a_policy_counts_alone() {
        let hot = HotRows { rows: 10, bytes: 1_000, since: Some(0) };
        let due =
            |policy: &str, now_s: i64| hot.is_due(&FlushPolicy::parse(policy).unwrap(), now_s * 1_000_000);
        assert!(due("rows:10", 0) && !due("rows:11", 0));
        assert!(due("bytes:1000", 0) && !due("bytes:1001", 0));
        assert!(due("interval:60", 60) && !due("interval:60", 59));
        assert!(due("rows:11,interval:5", 5) && !due("rows:11,bytes:2000,interval:5", 4));
        assert!(!HotRows::default().is_due(&FlushPolicy::parse("interval:1").unwrap(), i64::MAX));
    }
}
