//! What each commit changed: pure redo for recovery, and the source every subscriber reads.
//!
//! Keys and values of the `Log` partition, drawn in `codec`:
//!
//! ```text
//! 'H' | seq u64 BE                                                a header for every commit
//! 'C' | table u32 BE | scope u64 BE | seq u64 BE | part u32 BE    its changes, apart by table and scope
//! ```
//!
//! So one user's catch-up reads that user's changes and nothing else. Everything up to the *floor* has been trimmed.
//!
//! Invariant: the changes of a commit are written in the same batch as the rows they describe, or as the manifest's entries of the
//! segments that have them, and never change; a reader checks the floor in the snapshot it reads from.

mod codec;
mod columns;
mod reader;
#[cfg(test)]
mod tests;

use bytes::Bytes;

use crate::error::Result;
use crate::ids::{DatabaseId, Epoch, SchemaVersion, ScopeId, Seq, Shard, TableId, UserId};
use crate::schema_registry::CatalogChange;
use crate::storage::WriteBatch;

pub use codec::{CommitHeader, TableSummary};
pub(crate) use columns::encode as columns_part;
pub use reader::{LogSlice, floor, header, headers, last_header, read, read_record};

pub(crate) use reader::{TrimStep, is_floor_key, put_floor, trim};

/// Changes of one table and scope in one commit are cut into parts of about this size; a larger row has a part of its own.
/// Rows of a large INSERT are cut where its writer cuts them, by memory and not by encoded bytes.
pub const PART_BYTES_MAX: usize = 4 << 20;

/// One commit: everything it changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitRecord {
    /// Its place in the one order.
    pub seq: Seq,
    /// When it was committed, microseconds UTC; never less than that of the commit before.
    pub commit_ts: i64,
    /// The epoch it was written in.
    pub epoch: Epoch,
    /// The part of the database it belongs to.
    pub shard: Shard,
    /// Who committed it.
    pub principal: UserId,
    /// What it changed in the catalog, in order; applied before the rows.
    pub catalog: Vec<CatalogChange>,
    /// The rows it changed; a table and scope stands here once.
    pub tables: Vec<TableChanges>,
    /// Rows it inserted as segments, into a table and scope that is not in `tables`. The record does not have them; the log does.
    pub large_insert: Option<LoggedInsert>,
}

/// A large INSERT, as far as a record has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoggedInsert {
    /// The table and scope, and how many rows.
    pub summary: TableSummary,
    /// The bytes of its parts in the log.
    pub bytes: u64,
}

/// The rows of one table and scope that one commit changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableChanges {
    /// The table.
    pub table: TableId,
    /// The version of its definition the new rows are written with.
    pub version: SchemaVersion,
    /// Whose rows.
    pub scope: ScopeId,
    /// The changes, in the order they apply.
    pub rows: Vec<RowChange>,
}

/// What happened to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowOp {
    /// It was not there and is now.
    Insert,
    /// It was there and has new values.
    Update,
    /// It was there and is gone.
    Delete,
}

/// One changed row, with its stored bytes before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowChange {
    /// What happened.
    pub op: RowOp,
    /// The row's key.
    pub key: Bytes,
    /// The stored row before; for `Update` and `Delete`.
    pub old: Option<Bytes>,
    /// The stored row after; for `Insert` and `Update`.
    pub new: Option<Bytes>,
}

impl RowChange {
    /// The bytes of key and images.
    pub fn bytes(&self) -> usize {
        let image = |row: &Option<Bytes>| row.as_ref().map_or(0, Bytes::len);
        self.key.len() + image(&self.old) + image(&self.new)
    }
}

impl CommitRecord {
    /// The memory the record takes, about.
    pub fn bytes(&self) -> usize {
        let row = |change: &RowChange| change.bytes() + size_of::<RowChange>();
        let table =
            |changes: &TableChanges| size_of::<TableChanges>() + changes.rows.iter().map(row).sum::<usize>();
        // A definition of a table is the largest change of the catalog; a few KiB is what a wide one takes.
        size_of::<Self>() + self.catalog.len() * 2_048 + self.tables.iter().map(table).sum::<usize>()
    }

    /// The bytes the record takes in the log, about.
    pub fn logged_bytes(&self) -> u64 {
        self.bytes() as u64 + self.large_insert.map_or(0, |insert| insert.bytes)
    }

    /// The changes of one table and scope.
    pub fn changes_of(&self, table: TableId, scope: ScopeId) -> Option<&TableChanges> {
        self.tables.iter().find(|changes| changes.table == table && changes.scope == scope)
    }
}

/// Adds the log entries of `record` to `batch`; `parts` are those of its segments, made by [`columns_part`].
///
/// # Errors
/// `Internal` when a change of the catalog cannot be written as JSON.
pub(crate) fn append(
    batch: &mut WriteBatch,
    database: DatabaseId,
    record: &CommitRecord,
    parts: &[Bytes],
) -> Result<()> {
    codec::append(batch, database, record, parts)
}
