//! Large INSERTs: rows that join a table as whole segments instead of row by row.
//!
//! The segments are written, synced and verified before the set is submitted. So a commit of millions of rows
//! is a few manifest entries, plus the rows in columnar form in the change log. Whether the keys are free is
//! checked before the set's turn; the sequencer only checks the changes since.
//!
//! Invariant: when the commit is installed, no key of the segments is live anywhere else.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::Snapshot;
use super::unique_key::{check_not_cold, key_is_taken};
use crate::change_log::{CommitRecord, LoggedInsert, TableSummary};
use crate::cold_storage::{NewSegment, Segment};
use crate::error::{Error, Result};
use crate::ids::{ScopeId, Seq};
use crate::schema_registry::TableDefinition;
use crate::storage::keys::scope_prefix;
use crate::storage::rows::row_seq;
use crate::storage::{Direction, KeyRange, Partition, StorageSnapshot, blocking};

/// Keys looked up among cold rows at once.
const FIND_KEYS_MAX: usize = 65_536;

/// Rows of one table and scope, in segments that hold nothing else.
#[derive(Clone, Debug)]
pub struct LargeInsert {
    /// The definition that encoded the rows. The set is refused if the table has another one by then.
    pub table: Arc<TableDefinition>,
    /// The owner of the rows.
    pub scope: ScopeId,
    /// The segments, ascending by key. The sequencer sets their commit.
    pub added: Vec<NewSegment>,
    /// The rows as the change log stores them: parts made by `change_log::columns_part`.
    pub log: Vec<Bytes>,
}

impl LargeInsert {
    /// Returns the number of rows.
    pub fn rows(&self) -> u64 {
        self.added.iter().map(|new| u64::from(new.segment.rows)).sum()
    }

    /// Returns the bytes of its keys, which stay in memory until the commit.
    pub(super) fn key_bytes(&self) -> usize {
        self.added.iter().map(|new| new.keys.bytes()).sum()
    }

    /// Returns the bytes it adds to the store.
    pub fn log_bytes(&self) -> usize {
        self.log.iter().map(Bytes::len).sum()
    }

    pub(super) fn logged(&self) -> LoggedInsert {
        let summary = TableSummary {
            table: self.table.id,
            scope: self.scope,
            version: self.table.version,
            parts: u32::try_from(self.log.len()).unwrap_or(u32::MAX),
            rows: self.rows(),
        };
        LoggedInsert { summary, bytes: self.log_bytes() as u64 }
    }

    /// Returns the segments as part of commit `seq`.
    pub(super) fn of_commit(&self, seq: Seq) -> Vec<NewSegment> {
        let of_commit = |new: &NewSegment| {
            let segment = Segment { commit: Some(seq), through: seq, ..Segment::clone(&new.segment) };
            NewSegment { segment: Arc::new(segment), ..new.clone() }
        };
        self.added.iter().map(of_commit).collect()
    }

    /// Second isolation check: all keys belong to the table and scope.
    pub(super) fn check_scope(&self) -> Result<()> {
        let prefix = scope_prefix(self.table.id, self.scope);
        let is_own = |new: &NewSegment| {
            new.segment.first_key.starts_with(&prefix) && new.segment.last_key.starts_with(&prefix)
        };
        if !self.added.is_empty() && self.added.iter().all(is_own) {
            return Ok(());
        }
        let name = self.table.qualified_name();
        Err(Error::internal(format!("the segments to insert do not belong to table \"{name}\"")))
    }

    /// Whether one of the rows has this key.
    pub(super) fn has(&self, key: &[u8]) -> bool {
        self.added.iter().any(|new| new.keys.position(key).is_some())
    }

    /// Checks that no row of a snapshot has one of the keys.
    ///
    /// # Errors
    /// 23505 for a taken key, and any error of reading rows.
    pub(super) async fn check_free(&self, snapshot: &Arc<Snapshot>) -> Result<()> {
        if !self.table.has_key() {
            return Ok(());
        }
        let (at, insert) = (Arc::clone(snapshot), self.clone());
        blocking(move || insert.check_free_of_stored(&*at.storage, at.cold.flushed(insert.table.id))).await?;
        for new in &self.added {
            let segment = &new.segment;
            let meets = |other: &Arc<Segment>| {
                other.first_key <= segment.last_key && segment.first_key <= other.last_key
            };
            if !snapshot.cold.segments(self.table.id).iter().any(meets) {
                continue;
            }
            let mut keys = new.keys.iter().map(Bytes::copy_from_slice);
            loop {
                let some: Vec<Bytes> = keys.by_ref().take(FIND_KEYS_MAX).collect();
                if some.is_empty() {
                    break;
                }
                check_not_cold(snapshot, &self.table, &some).await?;
            }
        }
        Ok(())
    }

    /// Checks that `commits`, in their order, left no row with one of the keys.
    ///
    /// # Errors
    /// 23505 for a taken key.
    pub(super) fn check_free_of_commits(&self, commits: &[Arc<CommitRecord>]) -> Result<()> {
        let mut taken: HashSet<&Bytes> = HashSet::new();
        let changes = commits.iter().filter_map(|record| record.changes_of(self.table.id, self.scope));
        for change in changes.flat_map(|changes| &changes.rows).filter(|change| self.has(&change.key)) {
            match &change.new {
                Some(_) => taken.insert(&change.key),
                None => taken.remove(&change.key),
            };
        }
        match taken.into_iter().next() {
            Some(key) => Err(key_is_taken(&self.table, key)),
            None => Ok(()),
        }
    }

    /// Checks the keys against stored rows of commits after `flushed`; earlier rows are in segments.
    fn check_free_of_stored(&self, storage: &dyn StorageSnapshot, flushed: Seq) -> Result<()> {
        for new in &self.added {
            let segment = &new.segment;
            let end = [segment.last_key.as_slice(), &[0]].concat();
            let range = KeyRange { start: segment.first_key.clone(), end: Some(end) };
            storage.visit(Partition::Rows, range, Direction::Forward, &mut |key, row| {
                if new.keys.position(key).is_some() && row_seq(row)? > flushed {
                    return Err(key_is_taken(&self.table, key));
                }
                Ok(ControlFlow::Continue(()))
            })?;
        }
        Ok(())
    }
}
