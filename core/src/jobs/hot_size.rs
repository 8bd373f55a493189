//! How many hot rows each table has, about, and since when: what flush policies go by.
//!
//! Updates and deletes count as rows too, since what they overwrite is only reclaimed by time. Counts begin at a scan when the
//! process starts, and anew when commits were missed.

use std::collections::HashMap;
use std::ops::ControlFlow;

use tracing::warn;

use crate::change_log::CommitRecord;
use crate::commit::Snapshot;
use crate::ids::{Seq, TableId};
use crate::schema_registry::{FlushPolicy, TableDefinition, TableKind};
use crate::storage::keys::table_prefix;
use crate::storage::rows::row_seq;
use crate::storage::{Direction, KeyRange, Partition};

/// The hot rows of one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct HotRows {
    pub(super) rows: u64,
    pub(super) bytes: u64,
    /// When the first of them was written, microseconds UTC.
    pub(super) since: Option<i64>,
}

impl HotRows {
    fn add(&mut self, bytes: usize, at: i64) {
        self.rows += 1;
        self.bytes += bytes as u64;
        self.since.get_or_insert(at);
    }

    /// Whether a policy says that they are to be flushed now.
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
pub(super) struct HotSizes {
    tables: HashMap<TableId, HotRows>,
    pub(super) followed: Seq,
}

/// Whether rows of a table are flushed at all.
pub(super) fn is_flushed(table: &TableDefinition) -> bool {
    matches!(table.kind, TableKind::User | TableKind::Shared)
}

impl HotSizes {
    /// Counts what is stored. It blocks. Of a table with a damaged row only those before it are counted.
    pub(super) fn scan(snapshot: &Snapshot, now_us: i64) -> Self {
        let mut sizes = Self { tables: HashMap::new(), followed: snapshot.seq };
        for table in snapshot.catalog.tables().filter(|table| is_flushed(table)) {
            let flushed = snapshot.cold.flushed(table.id);
            let mut hot = HotRows::default();
            let range = KeyRange::prefix(table_prefix(table.id));
            let visited =
                snapshot.storage.visit(Partition::Rows, range, Direction::Forward, &mut |key, row| {
                    if row_seq(row)? > flushed {
                        hot.add(key.len() + row.len(), now_us);
                    }
                    Ok(ControlFlow::Continue(()))
                });
            if let Err(error) = visited {
                warn!(table = %table.id, %error, "hot rows could not be counted");
            }
            sizes.tables.insert(table.id, hot);
        }
        sizes
    }

    /// Counts a commit.
    pub(super) fn note(&mut self, record: &CommitRecord) {
        for changes in &record.tables {
            let hot = self.tables.entry(changes.table).or_default();
            for change in &changes.rows {
                if let Some(row) = &change.new {
                    hot.add(change.key.len() + row.len(), record.commit_ts);
                }
            }
        }
        self.followed = record.seq;
    }

    /// Takes away what a flush has moved: `before` is what there was when it began.
    pub(super) fn flushed(&mut self, table: TableId, before: HotRows, now_us: i64) {
        if let Some(hot) = self.tables.get_mut(&table) {
            hot.rows = hot.rows.saturating_sub(before.rows);
            hot.bytes = hot.bytes.saturating_sub(before.bytes);
            hot.since = (hot.rows > 0).then_some(now_us);
        }
    }

    /// Of one table.
    pub(super) fn of(&self, table: TableId) -> HotRows {
        self.tables.get(&table).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
