//! What each commit changed: a pure redo log, and the source that every subscriber reads.
//!
//! Keys and values of the `Log` partition; `codec` describes their bytes:
//!
//! ```text
//! 'H' | seq u64 BE                                                a header for every commit
//! 'C' | table u32 BE | scope u64 BE | seq u64 BE | part u32 BE    its changes, per table and scope
//! ```
//!
//! So one user's catch-up reads only that user's changes. Everything up to the *floor* has been trimmed.
//!
//! Invariant: log entries never change. They are written in the same batch as the rows they describe, or as
//! the manifest entries of the segments with those rows. A reader checks the floor in its own snapshot.

mod codec;
mod columns;
mod fields;
mod reader;
#[cfg(test)]
mod tests;
mod window;

use bytes::Bytes;

use crate::error::Result;
use crate::ids::{DatabaseId, Epoch, SchemaVersion, ScopeId, Seq, Shard, TableId, UserId};
use crate::schema_registry::CatalogChange;
use crate::storage::WriteBatch;

pub use codec::{CommitHeader, TableSummary};
pub(crate) use columns::encode as columns_part;
pub use reader::{LogPiece, LogPosition, floor, header, headers, last_header, read_piece, read_record};

pub(crate) use reader::{TrimStep, is_floor_key, put_floor, trim};

/// The changes of one commit to one table and scope are split into parts of about this size; a larger row has
/// its own part. The writer of a large INSERT splits its rows by memory, not by encoded bytes.
pub const PART_BYTES_MAX: usize = 4 << 20;

/// One commit and everything it changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitRecord {
    /// The position in the commit order.
    pub seq: Seq,
    /// The commit time, microseconds UTC; never before that of the previous commit.
    pub commit_ts: i64,
    /// The epoch it was written in.
    pub epoch: Epoch,
    /// The shard of the database it belongs to.
    pub shard: Shard,
    /// The user who committed it.
    pub principal: UserId,
    /// The catalog changes, in order. They apply before the row changes.
    pub catalog: Vec<CatalogChange>,
    /// The row changes. Each table and scope appears once.
    pub tables: Vec<TableChanges>,
    /// Rows inserted as segments, into a table and scope not in `tables`. Only the log has the rows.
    pub large_insert: Option<LoggedInsert>,
    /// What [`CommitRecord::stub`] has left of `tables`.
    pub stubs: Vec<ChangesStub>,
}

/// A large INSERT, without its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoggedInsert {
    /// The table, the scope and the number of rows.
    pub summary: TableSummary,
    /// The bytes of its parts in the log.
    pub bytes: u64,
}

/// The row changes of one commit in one table and scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableChanges {
    /// The table.
    pub table: TableId,
    /// The version of the definition that encoded the new rows.
    pub version: SchemaVersion,
    /// The owner of the rows.
    pub scope: ScopeId,
    /// The changes, in the order they apply.
    pub rows: Vec<RowChange>,
}

/// Row changes of one commit in one table and scope, without the rows, which the log has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangesStub {
    /// The table.
    pub table: TableId,
    /// The owner of the rows.
    pub scope: ScopeId,
    /// The bytes that the changes took in memory.
    pub bytes: usize,
    /// The number of inserted and updated rows.
    pub written_rows: u64,
    /// The bytes of keys and new images of these rows.
    pub written_bytes: u64,
}

/// The kind of a row change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowOp {
    /// The row is new.
    Insert,
    /// The row has new values.
    Update,
    /// The row was deleted.
    Delete,
}

/// One changed row, with its stored bytes before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowChange {
    /// The kind of change.
    pub op: RowOp,
    /// The row's key.
    pub key: Bytes,
    /// The stored row before; for `Update` and `Delete`.
    pub old: Option<Bytes>,
    /// The stored row after; for `Insert` and `Update`.
    pub new: Option<Bytes>,
}

impl RowChange {
    /// Returns the bytes of key and images.
    pub fn bytes(&self) -> usize {
        let image = |row: &Option<Bytes>| row.as_ref().map_or(0, Bytes::len);
        self.key.len() + image(&self.old) + image(&self.new)
    }
}

impl TableChanges {
    /// Returns about how many bytes of memory the changes take.
    pub fn bytes(&self) -> usize {
        let row = |change: &RowChange| change.bytes() + size_of::<RowChange>();
        size_of::<Self>() + self.rows.iter().map(row).sum::<usize>()
    }

    /// Returns how many rows are inserted or updated, and the bytes of their keys and new images.
    pub fn written(&self) -> (u64, u64) {
        let bytes = self.rows.iter().filter_map(|change| Some(change.key.len() + change.new.as_ref()?.len()));
        bytes.fold((0, 0), |(rows, sum), bytes| (rows + 1, sum + bytes as u64))
    }

    fn stub(&self) -> ChangesStub {
        let (written_rows, written_bytes) = self.written();
        ChangesStub { table: self.table, scope: self.scope, bytes: self.bytes(), written_rows, written_bytes }
    }
}

impl CommitRecord {
    /// Returns about how many bytes of memory the record takes.
    pub fn bytes(&self) -> usize {
        // The largest catalog change is the definition of a table; a wide one takes a few KiB.
        size_of::<Self>()
            + self.catalog.len() * 2_048
            + self.tables.iter().map(TableChanges::bytes).sum::<usize>()
            + self.stubs.len() * size_of::<ChangesStub>()
    }

    /// Returns about how many bytes the record takes in the log.
    pub fn logged_bytes(&self) -> u64 {
        let left_out: usize = self.stubs.iter().map(|stub| stub.bytes).sum();
        (self.bytes() + left_out) as u64 + self.large_insert.map_or(0, |insert| insert.bytes)
    }

    /// Returns the record without the rows of its changes.
    #[must_use]
    pub fn stub(&self) -> Self {
        let stubs = self.stubs.iter().copied().chain(self.tables.iter().map(TableChanges::stub)).collect();
        Self { catalog: self.catalog.clone(), tables: Vec::new(), stubs, ..*self }
    }

    /// Whether only the log has the rows of this table and scope.
    pub fn is_only_logged(&self, table: TableId, scope: ScopeId) -> bool {
        self.only_logged().any(|place| place == (table, scope))
    }

    /// Returns the tables and scopes whose rows only the log has.
    pub fn only_logged(&self) -> impl Iterator<Item = (TableId, ScopeId)> {
        let inserted = self.large_insert.iter().map(|insert| (insert.summary.table, insert.summary.scope));
        inserted.chain(self.stubs.iter().map(|stub| (stub.table, stub.scope)))
    }

    /// Returns the changes of one table and scope.
    pub fn changes_of(&self, table: TableId, scope: ScopeId) -> Option<&TableChanges> {
        self.tables.iter().find(|changes| changes.table == table && changes.scope == scope)
    }
}

/// Adds the log entries of `record` to `batch`. `parts` are those of its segments, made by [`columns_part`].
///
/// # Errors
/// `Internal` when a catalog change cannot be written as JSON.
pub(crate) fn append(
    batch: &mut WriteBatch,
    database: DatabaseId,
    record: &CommitRecord,
    parts: &[Bytes],
) -> Result<()> {
    codec::append(batch, database, record, parts)
}
