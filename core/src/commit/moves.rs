//! Rows on their way from hot to cold: what is changed while a segment is written.
//!
//! A move begins by registering its table and then taking a snapshot. From then on the sequencer notes for a flush which rows of
//! the table are overwritten or deleted, until the commit that ends the move marks them in the new segments.
//!
//! Invariant: every change of the table in a commit after a flush's snapshot is noted before the flush can be committed.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::Snapshot;
use super::sequencer::Installed;
use crate::change_log::CommitRecord;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::{Seq, TableId};

/// Changed rows that are noted for one move; with more of them it is given up and begun anew later.
const TOUCHED_LEN_MAX: usize = 1_000_000;

/// The moves that are under way.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// Nothing is noted for a merge, which finds what was changed among the marks.
    touched: Mutex<HashMap<TableId, Option<Touched>>>,
}

/// The rows of one table that were overwritten or deleted: their keys, and by which commit last.
#[derive(Debug, Default)]
pub(super) struct Touched {
    keys: HashMap<Bytes, Seq>,
    /// The keys are not all that there are.
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

    /// Notes what a commit changed.
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

    /// Gives up the flushes under way: what was committed meanwhile is not known. A merge finds it in the store.
    pub(super) fn give_up(&self) {
        self.touched.lock().values_mut().flatten().for_each(|touched| touched.overflowed = true);
    }

    /// The keys of the rows of a table that commits after `seq` have changed.
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

/// A move of rows that has begun. Dropping it ends it, whether it was committed or not.
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

    /// The rows that are moved are those of this snapshot.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }
}

impl Drop for Move {
    fn drop(&mut self) {
        self.installed.moves.touched.lock().remove(&self.table);
    }
}
