//! The single commit order: every change is a [`WriteSet`] that becomes one commit with one seq.
//!
//! A writer plans against a [`Snapshot`] and submits its write set to the [`Committer`]. One thread, the
//! sequencer, drains the queue. It validates each set against everything committed since the set was planned,
//! assigns a seq, writes the whole group as one batch with one sync, and installs the new snapshot. Only then
//! does it publish to the [`CommitFeed`] and answer. While one group syncs, the next one collects, so all
//! waiting writers share the cost of a sync.
//!
//! After a failed write the sequencer reopens the store by itself, under a new epoch.
//!
//! Invariant: only the installed seq is readable, and a commit is installed only once it is as durable as its
//! set asks. No other code writes to the store.

mod committer;
mod feed;
mod group;
mod hot_limit;
mod large_insert;
mod moves;
mod recovery;
mod redo;
mod reopening;
mod sequencer;
mod state;
#[cfg(test)]
mod tests;
mod unique_key;
mod validation;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::cold_storage::{ColdChange, Manifest, NewSegment, Place};
use crate::hot_tier::HotChunks;
use crate::ids::{Epoch, ScopeId, SegmentId, Seq, TableId, UserId};
use crate::schema_registry::{Catalog, CatalogChange, Durability, SystemTable, TableDefinition};
use crate::storage::StorageSnapshot;

pub use committer::{Committer, CommitterOptions};
pub use feed::CommitFeed;
pub use hot_limit::HotLimit;
pub use large_insert::LargeInsert;
pub use moves::Move;
pub use recovery::EpochHistory;
pub(crate) use recovery::{assign_new_database, inspect, is_state_key};

/// The database as of one commit. A statement reads from exactly one snapshot.
///
/// The session holds the overlay of an open transaction, next to the snapshot the transaction reads.
pub struct Snapshot {
    /// The last commit it contains.
    pub seq: Seq,
    /// The commit time of `seq`, microseconds UTC.
    pub commit_ts: i64,
    /// The epoch in which it was taken.
    pub epoch: Epoch,
    /// Every namespace, table, user and storage.
    pub catalog: Arc<Catalog>,
    /// The rows and the change log.
    pub storage: Arc<dyn StorageSnapshot>,
    /// Rows of `storage` in columnar form, cached by earlier scans. All snapshots of an epoch share it.
    pub hot: Arc<HotChunks>,
    /// The segments of cold rows: all rows of a table up to its `flushed` seq. `storage` may still have them.
    pub cold: Arc<Manifest>,
    /// The change log is trimmed up to and including this seq.
    pub log_floor: Seq,
}

/// Changes that commit as a whole or not at all.
#[derive(Clone, Debug)]
pub struct WriteSet {
    /// The user who commits.
    pub principal: UserId,
    /// The seq of the snapshot the set was planned on.
    pub read_seq: Seq,
    /// The row changes, validated in order: to move a key, delete it before you insert it.
    pub tables: Vec<TableWrite>,
    /// Catalog changes. They apply before the row changes, so one set can create a table and fill it.
    pub catalog: Vec<CatalogChange>,
    /// `Relaxed` only if every table it writes is relaxed, or if losing the set does no harm.
    pub durability: Durability,
    /// Trims the change log up to this seq, or as far as one step goes.
    pub trim_log_to: Option<Seq>,
    /// Inserts rows as segments, or moves rows between hot and cold. Readers cannot observe a move.
    pub cold: Option<ColdWrite>,
}

/// The effect of a write set on cold storage.
#[derive(Clone, Debug)]
pub enum ColdWrite {
    /// New rows, written directly as segments.
    LargeInsert(LargeInsert),
    /// A flush: the hot rows of a table, as of the snapshot of a [`Move`], are now in segments.
    Flush {
        /// The table.
        table: TableId,
        /// The seq of the snapshot.
        through: Seq,
        /// The new segments.
        added: Vec<NewSegment>,
    },
    /// A compaction: segments replace others of the same table, as of the snapshot of a [`Move`].
    Compact {
        /// The table.
        table: TableId,
        /// The seq of the snapshot.
        as_of: Seq,
        /// The replaced segments.
        removed: Vec<SegmentId>,
        /// The new segments.
        added: Vec<NewSegment>,
        /// The new place per old segment and position; `None` for rows that were already deleted.
        places: Arc<HashMap<SegmentId, Vec<Option<Place>>>>,
    },
    /// Deletes stored rows that a flush has put into segments. A key that holds a newer row keeps it.
    DeleteFlushed {
        /// The table.
        table: TableId,
        /// The keys.
        keys: Vec<Bytes>,
    },
    /// Manifest changes that need no work from the sequencer.
    Manifest(Vec<ColdChange>),
}

impl WriteSet {
    /// Returns a durable set without changes.
    pub fn new(principal: UserId, read_seq: Seq) -> Self {
        Self {
            principal,
            read_seq,
            tables: Vec::new(),
            catalog: Vec::new(),
            durability: Durability::Durable,
            trim_log_to: None,
            cold: None,
        }
    }

    /// Whether it makes the store grow: it changes rows outside the system tables, inserts segments, or makes
    /// a catalog change that is not a drop. Rows of system tables are small and do not count.
    pub fn grows(&self) -> bool {
        self.catalog.iter().any(|change| !change.is_drop())
            || self.large_insert().is_some()
            || self
                .tables
                .iter()
                .any(|write| SystemTable::from_id(write.table.id).is_none() && !write.rows.is_empty())
    }

    /// Whether it makes no catalog change, inserts no segments, and changes rows only by deleting them.
    pub fn only_deletes(&self) -> bool {
        self.catalog.is_empty()
            && self.large_insert().is_none()
            && self
                .tables
                .iter()
                .flat_map(|write| &write.rows)
                .all(|row| matches!(row, RowWrite::Delete { .. }))
    }

    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.catalog.is_empty()
            && self.trim_log_to.is_none()
            && self.cold.is_none()
            && self.tables.iter().all(|write| write.rows.is_empty())
    }

    /// Returns its size in bytes: all keys and rows, plus the log parts of a large INSERT.
    pub fn bytes(&self) -> usize {
        let rows: usize = self.tables.iter().flat_map(|write| &write.rows).map(RowWrite::bytes).sum();
        rows + self.large_insert().map_or(0, LargeInsert::log_bytes)
    }

    /// Returns the rows it inserts as whole segments.
    pub fn large_insert(&self) -> Option<&LargeInsert> {
        match &self.cold {
            Some(ColdWrite::LargeInsert(insert)) => Some(insert),
            _ => None,
        }
    }
}

/// Row changes of one table and scope.
#[derive(Clone, Debug)]
pub struct TableWrite {
    /// The definition that encoded the rows. The set is refused if the table has another one by then.
    pub table: Arc<TableDefinition>,
    /// The owner of the rows. It comes from the session, through [`TableDefinition::scope_for`].
    pub scope: ScopeId,
    /// The changes, in order.
    pub rows: Vec<RowWrite>,
}

/// One row change. Rows may be encoded with any seq; the sequencer overwrites it.
#[derive(Clone, Debug)]
pub enum RowWrite {
    /// Inserts a row whose key must be free.
    Insert {
        /// Its key.
        key: Bytes,
        /// The encoded row.
        row: Vec<u8>,
    },
    /// Inserts a row into a table without a primary key; the sequencer generates the key.
    Append {
        /// The encoded row.
        row: Vec<u8>,
    },
    /// Replaces a row, which must still be the one the plan read.
    Update {
        /// Its key.
        key: Bytes,
        /// The seq of the row the plan read.
        expected: Seq,
        /// The stored row the plan read.
        old: Bytes,
        /// The encoded new row.
        row: Vec<u8>,
        /// The place of the old row, if the plan read it from cold storage.
        place: Option<Place>,
    },
    /// Deletes a row, which must still be the one the plan read.
    Delete {
        /// Its key.
        key: Bytes,
        /// The seq of the row the plan read.
        expected: Seq,
        /// The stored row the plan read.
        old: Bytes,
        /// The place of the row, if the plan read it from cold storage.
        place: Option<Place>,
    },
}

impl RowWrite {
    /// Returns the bytes of its key and rows.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Insert { key, row } => key.len() + row.len(),
            Self::Append { row } => row.len(),
            Self::Update { key, old, row, .. } => key.len() + old.len() + row.len(),
            Self::Delete { key, old, .. } => key.len() + old.len(),
        }
    }
}

/// The answer to a successful commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The position in the commit order. A set without changes gets the seq of the current snapshot.
    pub seq: Seq,
    /// The commit time, microseconds UTC.
    pub commit_ts: i64,
}
