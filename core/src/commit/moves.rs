//! Moves, which are running flushes and compactions, and the rows that change while they run.
//!
//! A move registers its table and then takes a snapshot. From then on, for a flush, the sequencer records
//! which rows of the table are overwritten or deleted. Its commit marks them in the new segments.
//!
//! Invariant: every change to the table after a flush's snapshot is recorded before the flush can commit.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;

use super::Snapshot;
use crate::change_log::CommitRecord;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::{Seq, TableId};

/// Most changed rows recorded for one flush. Beyond it the flush is abandoned and retried later.
const CHANGED_KEYS_MAX: usize = 1_000_000;

/// The running moves.
#[derive(Debug, Default)]
pub(super) struct RunningMoves {
    /// `None` for a compaction, which finds the changes among the marks.
    by_table: Mutex<HashMap<TableId, Option<ChangedKeys>>>,
}

/// Keys of overwritten or deleted rows of one table, each with the last commit that changed it.
#[derive(Debug, Default)]
pub(super) struct ChangedKeys {
    keys: HashMap<Bytes, Seq>,
    /// Whether `keys` is incomplete.
    overflowed: bool,
}

impl RunningMoves {
    fn begin(&self, table: TableId, changed: Option<ChangedKeys>) -> Result<()> {
        let mut moves = self.by_table.lock();
        if moves.contains_key(&table) {
            return Err(Error::new(
                ErrorKind::Conflict,
                SqlState::OBJECT_IN_USE,
                format!("a flush or compaction of table {table} is already running"),
            ));
        }
        moves.insert(table, changed);
        Ok(())
    }

    /// Records the rows that a commit changed.
    pub(super) fn note(&self, record: &CommitRecord) {
        let mut moves = self.by_table.lock();
        if moves.is_empty() {
            return;
        }
        for changes in &record.tables {
            let Some(Some(changed)) = moves.get_mut(&changes.table) else { continue };
            let keys = changes.rows.iter().filter(|change| change.old.is_some()).map(|change| &change.key);
            for key in keys {
                if changed.keys.len() >= CHANGED_KEYS_MAX {
                    changed.overflowed = true;
                    break;
                }
                changed.keys.insert(Bytes::clone(key), record.seq);
            }
        }
    }

    /// Abandons running flushes: commits since their snapshots are unknown. Compactions find them as marks.
    pub(super) fn abandon_flushes(&self) {
        self.by_table.lock().values_mut().flatten().for_each(|changed| changed.overflowed = true);
    }

    /// Returns the keys of rows of a table that commits after `seq` changed.
    pub(super) fn changed_after(&self, table: TableId, seq: Seq) -> Result<Vec<Bytes>> {
        let moves = self.by_table.lock();
        let changed = moves
            .get(&table)
            .and_then(Option::as_ref)
            .ok_or_else(|| Error::internal(format!("no flush of table {table} is running")))?;
        if changed.overflowed {
            return Err(Error::conflict("the rows changed during the flush are unknown"));
        }
        Ok(changed.keys.iter().filter(|(_, by)| **by > seq).map(|(key, _)| Bytes::clone(key)).collect())
    }
}

/// A running flush or compaction. Dropping it ends it, committed or not.
pub struct Move {
    table: TableId,
    snapshot: Arc<Snapshot>,
    running: Arc<RunningMoves>,
}

impl Move {
    /// Registers the table among the running moves, then takes the installed snapshot.
    pub(super) fn begin(
        table: TableId,
        changed: Option<ChangedKeys>,
        running: &Arc<RunningMoves>,
        installed: &ArcSwap<Snapshot>,
    ) -> Result<Self> {
        running.begin(table, changed)?;
        Ok(Self { table, snapshot: installed.load_full(), running: Arc::clone(running) })
    }

    /// Returns the snapshot whose rows are moved.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }
}

impl Drop for Move {
    fn drop(&mut self) {
        self.running.by_table.lock().remove(&self.table);
    }
}
