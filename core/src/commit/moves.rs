//! Moves, which are running flushes and compactions, and the rows that change while they run.
//!
//! A move registers its table and then takes a snapshot. From then on, for a flush, the sequencer records
//! which rows of the table are overwritten or deleted. Its commit marks them in the new segments.
//!
//! Invariant: every change to the table after a flush's snapshot is recorded before the flush can commit.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::Snapshot;
use super::sequencer::Installed;
use crate::change_log::CommitRecord;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::{Seq, TableId};

/// Most changed rows recorded for one flush. Beyond it the flush is abandoned and retried later.
const TOUCHED_LEN_MAX: usize = 1_000_000;

/// The running moves.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// `None` for a compaction, which finds the changes among the marks.
    touched: Mutex<HashMap<TableId, Option<Touched>>>,
}

/// Keys of overwritten or deleted rows of one table, each with the last commit that changed it.
#[derive(Debug, Default)]
pub(super) struct Touched {
    keys: HashMap<Bytes, Seq>,
    /// Whether `keys` is incomplete.
    overflowed: bool,
}

impl Moves {
    fn begin(&self, table: TableId, touched: Option<Touched>) -> Result<()> {
        let mut moves = self.touched.lock();
        if moves.contains_key(&table) {
            return Err(Error::new(
                ErrorKind::Conflict,
                SqlState::OBJECT_IN_USE,
                format!("rows of table {table} are being moved already"),
            ));
        }
        moves.insert(table, touched);
        Ok(())
    }

    /// Records the rows that a commit changed.
    pub(super) fn note(&self, record: &CommitRecord) {
        let mut moves = self.touched.lock();
        if moves.is_empty() {
            return;
        }
        for changes in &record.tables {
            let Some(Some(touched)) = moves.get_mut(&changes.table) else { continue };
            let keys = changes.rows.iter().filter(|change| change.old.is_some()).map(|change| &change.key);
            for key in keys {
                if touched.keys.len() >= TOUCHED_LEN_MAX {
                    touched.overflowed = true;
                    break;
                }
                touched.keys.insert(Bytes::clone(key), record.seq);
            }
        }
    }

    /// Abandons running flushes: commits since their snapshots are unknown. Compactions find them as marks.
    pub(super) fn give_up(&self) {
        self.touched.lock().values_mut().flatten().for_each(|touched| touched.overflowed = true);
    }

    /// Returns the keys of rows of a table that commits after `seq` changed.
    pub(super) fn touched_after(&self, table: TableId, seq: Seq) -> Result<Vec<Bytes>> {
        let moves = self.touched.lock();
        let touched = moves
            .get(&table)
            .and_then(Option::as_ref)
            .ok_or_else(|| Error::internal(format!("no rows of table {table} are moved")))?;
        if touched.overflowed {
            return Err(Error::conflict("it is not known which rows were changed while they were moved"));
        }
        Ok(touched.keys.iter().filter(|(_, by)| **by > seq).map(|(key, _)| Bytes::clone(key)).collect())
    }
}

/// A running flush or compaction. Dropping it ends it, committed or not.
pub struct Move {
    table: TableId,
    snapshot: Arc<Snapshot>,
    installed: Arc<Installed>,
}

impl Move {
    pub(super) fn begin(table: TableId, touched: Option<Touched>, installed: Arc<Installed>) -> Result<Self> {
        installed.moves.begin(table, touched)?;
        let snapshot = installed.snapshot.load_full();
        Ok(Self { table, snapshot, installed })
    }

    /// Returns the snapshot whose rows are moved.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }
}

impl Drop for Move {
    fn drop(&mut self) {
        self.installed.moves.touched.lock().remove(&self.table);
    }
}
