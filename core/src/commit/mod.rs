//! The one commit order: every change of the database is a [`WriteSet`] that becomes a commit with one seq.
//!
//! A writer plans against a [`Snapshot`] and hands its write set to the [`Committer`]. One thread, the sequencer, drains the
//! queue: it validates each set against everything committed since it was planned, gives it its seq, writes the whole group as
//! one batch with one sync, installs the new snapshot, and only then publishes to the [`CommitFeed`] and answers. While a group
//! syncs, the next one gathers, so the cost of a sync is shared by whoever is waiting.
//!
//! After a failed write the sequencer reopens the store by itself, under a new epoch.
//!
//! Invariant: the only readable seq is the installed one, and nothing is installed before it is as durable as its set asks. No
//! other code writes to the store.

mod committer;
mod feed;
mod hot_limit;
mod large_insert;
mod moves;
mod recovery;
mod redo;
mod reopening;
mod sequencer;
#[cfg(test)]
mod tests;
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
pub(crate) use recovery::{adopt, inspect, is_state_key};

/// The database as of one commit. A statement takes one and never another.
///
/// The overlay of an open transaction is kept with the session, beside the snapshot it reads.
pub struct Snapshot {
    /// The last commit it contains.
    pub seq: Seq,
    /// When that was committed, microseconds UTC.
    pub commit_ts: i64,
    /// The epoch of the process that took it.
    pub epoch: Epoch,
    /// Every namespace, table, user and storage.
    pub catalog: Arc<Catalog>,
    /// The rows and the change log.
    pub storage: Arc<dyn StorageSnapshot>,
    /// Rows of `storage` as columns, as far as scans have left them there. It is the same for all snapshots of an epoch.
    pub hot: Arc<HotChunks>,
    /// The segments of cold rows. Stored rows of a table up to its `flushed` seq are in them, whatever `storage` still has.
    pub cold: Arc<Manifest>,
    /// The seq up to which the change log has been trimmed.
    pub log_floor: Seq,
}

/// Changes that are committed as a whole or not at all.
#[derive(Clone, Debug)]
pub struct WriteSet {
    /// Who commits.
    pub principal: UserId,
    /// The seq of the snapshot it was planned on.
    pub read_seq: Seq,
    /// The rows to change. Rows are validated in order, so a key that moves is deleted before it is inserted.
    pub tables: Vec<TableWrite>,
    /// Changes of the catalog; they come before the rows, so a set can create a table and fill it.
    pub catalog: Vec<CatalogChange>,
    /// `Relaxed` only when every table it writes is, or when losing it is of no consequence.
    pub durability: Durability,
    /// Trims the change log up to this seq, or as far as one step goes.
    pub trim_log_to: Option<Seq>,
    /// Inserts rows as segments, or moves rows between hot and cold; of a move nobody who reads can tell.
    pub cold: Option<ColdWrite>,
}

/// What a write set does to cold storage.
#[derive(Clone, Debug)]
pub enum ColdWrite {
    /// New rows that are in segments from the beginning.
    LargeInsert(LargeInsert),
    /// The hot rows of a table as of the snapshot of a [`Move`] are in segments.
    Flush {
        /// The table.
        table: TableId,
        /// The seq of the snapshot.
        through: Seq,
        /// The segments.
        added: Vec<NewSegment>,
    },
    /// The rows of segments of a table are in others, as of the snapshot of a [`Move`].
    Compact {
        /// The table.
        table: TableId,
        /// The seq of the snapshot.
        as_of: Seq,
        /// The old segments.
        removed: Vec<SegmentId>,
        /// The new ones.
        added: Vec<NewSegment>,
        /// For each old segment and position the new place; `None` for rows that were gone.
        places: Arc<HashMap<SegmentId, Vec<Option<Place>>>>,
    },
    /// Removes stored rows that are in segments by now. Keys that have another row by then keep it.
    Clean {
        /// The table.
        table: TableId,
        /// The keys.
        keys: Vec<Bytes>,
    },
    /// Changes of the manifest that need nothing from the sequencer.
    Manifest(Vec<ColdChange>),
}

impl WriteSet {
    /// A durable set that changes nothing yet.
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

    /// Whether the store grows by it: it writes rows, or more of the catalog than drops. The database's own records of what it
    /// does are small, and do not count.
    pub fn grows(&self) -> bool {
        self.catalog.iter().any(|change| !change.is_drop())
            || self.large_insert().is_some()
            || self
                .tables
                .iter()
                .any(|write| SystemTable::from_id(write.table.id).is_none() && !write.rows.is_empty())
    }

    /// Whether it deletes rows and does nothing else.
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

    /// The bytes of all keys and rows, and of the log entries of segments.
    pub fn bytes(&self) -> usize {
        let rows: usize = self.tables.iter().flat_map(|write| &write.rows).map(RowWrite::bytes).sum();
        rows + self.large_insert().map_or(0, LargeInsert::log_bytes)
    }

    /// The rows it inserts as whole segments.
    pub fn large_insert(&self) -> Option<&LargeInsert> {
        match &self.cold {
            Some(ColdWrite::LargeInsert(insert)) => Some(insert),
            _ => None,
        }
    }
}

/// Rows of one table and scope to change.
#[derive(Clone, Debug)]
pub struct TableWrite {
    /// The definition the rows were encoded with; the set is refused when the table has another by then.
    pub table: Arc<TableDefinition>,
    /// Whose rows; it comes from the session, by [`TableDefinition::scope_for`].
    pub scope: ScopeId,
    /// The changes, in order.
    pub rows: Vec<RowWrite>,
}

/// One row to change. Rows come encoded with any seq; the sequencer sets it.
#[derive(Clone, Debug)]
pub enum RowWrite {
    /// Adds a row whose key must be free.
    Insert {
        /// Its key.
        key: Bytes,
        /// The encoded row.
        row: Vec<u8>,
    },
    /// Adds a row to a table without a primary key; the sequencer makes the key.
    Append {
        /// The encoded row.
        row: Vec<u8>,
    },
    /// Replaces a row that must still be the one the plan saw.
    Update {
        /// Its key.
        key: Bytes,
        /// The seq of the row the plan saw.
        expected: Seq,
        /// The stored row the plan saw.
        old: Bytes,
        /// The encoded new row.
        row: Vec<u8>,
        /// Where the plan saw the old row, when it was cold.
        place: Option<Place>,
    },
    /// Removes a row that must still be the one the plan saw.
    Delete {
        /// Its key.
        key: Bytes,
        /// The seq of the row the plan saw.
        expected: Seq,
        /// The stored row the plan saw.
        old: Bytes,
        /// Where the plan saw it, when it was cold.
        place: Option<Place>,
    },
}

impl RowWrite {
    /// The bytes of its key and rows.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Insert { key, row } => key.len() + row.len(),
            Self::Append { row } => row.len(),
            Self::Update { key, old, row, .. } => key.len() + old.len() + row.len(),
            Self::Delete { key, old, .. } => key.len() + old.len(),
        }
    }
}

/// What a successful commit answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Its place in the one order. A set that changes nothing answers with the seq of the snapshot at that time.
    pub seq: Seq,
    /// When it was committed, microseconds UTC.
    pub commit_ts: i64,
}
