//! Deletes STREAM rows after their time, so that subscribers see them go and their space is freed.
//!
//! Queries hide an expired row at once, by their own clock. This task deletes it in an ordinary commit, at
//! most a tick later. It learns of rows from the commits it follows, of large ones from the change log, and
//! from a scan of the STREAM tables: at start, after it fell behind the commits, and when more rows wait than
//! its queue holds.
//!
//! Invariant: only the version of a row that was found expired is deleted. Its seq is checked when the delete
//! is planned, and again by the sequencer.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::expiry_queue::{Due, ExpiryQueue};
use crate::change_log::{self, CommitRecord, LogPosition, TableChanges};
use crate::clock::Clock;
use crate::commit::{CommitFeed, Committer, RowWrite, Snapshot, TableWrite, WriteSet};
use crate::error::{ErrorKind, Result};
use crate::failpoint;
use crate::ids::{ScopeId, Seq, TableId, UserId};
use crate::schema_registry::{Catalog, Durability, TableKind};
use crate::storage::rows::RowHeader;
use crate::storage::{self, Direction, KeyRange, Partition, keys};

/// Rows in memory that wait for their time: about 64 bytes plus the key each.
const QUEUE_LEN_MAX: usize = 200_000;
/// Rows deleted per commit.
const ROWS_PER_COMMIT: usize = 2_000;
/// Bytes read from the change log at once.
const PIECE_BYTES: usize = 1 << 20;

pub(super) struct Expiry {
    pub(super) committer: Arc<Committer>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) interval_ms: u64,
    pub(super) stop: CancellationToken,
}

/// The rows found so far, and up to which commit.
struct Known {
    queue: ExpiryQueue,
    followed: Seq,
    /// Followed commits whose rows are only in the change log, with the tables and scopes of these rows.
    unread: Vec<(Seq, (TableId, ScopeId))>,
}

impl Expiry {
    /// Runs until told to stop.
    pub(super) async fn run(self) {
        let feed = self.committer.commits();
        let mut heads = feed.watch();
        let mut ticks = interval(Duration::from_millis(self.interval_ms.clamp(1, 1_000)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut known: Option<Known> = None;
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                _ = ticks.tick() => {}
                changed = heads.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // Only recorded here, while the commits are in memory. The next tick deletes rows.
                    if let Some(known) = &mut known && follow(&feed, &self.committer, known) {
                        continue;
                    }
                }
            }
            if let Err(error) = self.tick(&feed, &mut known).await {
                if self.stop.is_cancelled() {
                    return;
                }
                warn!(%error, "expired rows could not be deleted; retrying");
                known = None;
            }
        }
    }

    async fn tick(&self, feed: &CommitFeed, known: &mut Option<Known>) -> Result<()> {
        let mut current = match known.take() {
            Some(known) => known,
            None => self.scan().await?,
        };
        if !follow(feed, &self.committer, &mut current) {
            current = self.scan().await?;
        }
        current = match self.read_log(current).await? {
            Some(current) => current,
            None => self.scan().await?,
        };
        let now = self.clock.now_us();
        loop {
            let due: Vec<_> =
                std::iter::from_fn(|| current.queue.pop_due(now)).take(ROWS_PER_COMMIT).collect();
            if !due.is_empty() {
                self.delete(due).await?;
            } else if current.queue.needs_scan(now) {
                current = self.scan().await?;
            } else {
                break;
            }
            if self.stop.is_cancelled() {
                break;
            }
        }
        *known = Some(current);
        Ok(())
    }

    /// Scans for all rows that expire.
    async fn scan(&self) -> Result<Known> {
        let snapshot = self.committer.snapshot();
        let stop = self.stop.clone();
        storage::blocking(move || {
            let mut queue = ExpiryQueue::new(QUEUE_LEN_MAX);
            for table in expiring_tables(&snapshot.catalog) {
                let range = KeyRange::prefix(keys::table_prefix(table));
                snapshot.storage.visit(Partition::Rows, range, Direction::Forward, &mut |key, row| {
                    let (header, _) = RowHeader::read(row)?;
                    if let Some(at) = header.expires_at {
                        queue.push(Due { at, seq: header.seq, key: key.into() });
                    }
                    Ok(if stop.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
                })?;
            }
            Ok(Known { queue, followed: snapshot.seq, unread: Vec::new() })
        })
        .await
    }

    /// Records the rows of commits that are only in the change log; `None` when they are not there any more.
    async fn read_log(&self, mut known: Known) -> Result<Option<Known>> {
        if known.unread.is_empty() {
            return Ok(Some(known));
        }
        let snapshot = self.committer.snapshot();
        storage::blocking(move || {
            for (seq, place) in std::mem::take(&mut known.unread) {
                let mut position = LogPosition::after(Seq(seq.0.saturating_sub(1)));
                while position.seq <= seq {
                    let log = snapshot.storage.as_ref();
                    let Some(piece) = change_log::read_piece(log, place, position, seq, PIECE_BYTES)? else {
                        return Ok(None);
                    };
                    piece.changes.iter().for_each(|(seq, changes)| note(*seq, changes, &mut known.queue));
                    position = piece.next;
                }
            }
            Ok(Some(known))
        })
        .await
    }

    /// Deletes those of `due` that have not changed.
    async fn delete(&self, due: Vec<Due>) -> Result<()> {
        let due: Arc<[Due]> = due.into();
        loop {
            let snapshot = self.committer.snapshot();
            let read_seq = snapshot.seq;
            let entries = Arc::clone(&due);
            let tables = storage::blocking(move || deletes(&snapshot, &entries)).await?;
            let rows: usize = tables.iter().map(|write| write.rows.len()).sum();
            if rows == 0 {
                return Ok(());
            }
            let relaxed = tables.iter().all(|write| write.table.options.durability == Durability::Relaxed);
            let writes = WriteSet {
                tables,
                durability: if relaxed { Durability::Relaxed } else { Durability::Durable },
                ..WriteSet::new(UserId::SYSTEM, read_seq)
            };
            failpoint::step("expiry::delete")?;
            match self.committer.commit(writes).await {
                Ok(receipt) => {
                    failpoint::step("expiry::deleted")?;
                    debug!(rows, seq = receipt.seq.0, "deleted expired rows");
                    return Ok(());
                }
                // Another commit deleted a row or its table first: check what is left.
                Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Records the rows that commits since the last call wrote. False when these commits are no longer in memory.
fn follow(feed: &CommitFeed, committer: &Committer, known: &mut Known) -> bool {
    let Some(records) = feed.after(known.followed) else { return false };
    if records.is_empty() {
        return true;
    }
    let catalog = Arc::clone(&committer.snapshot().catalog);
    for record in &records {
        note_record(record, &catalog, known);
        known.followed = record.seq;
    }
    true
}

fn note_record(record: &CommitRecord, catalog: &Catalog, known: &mut Known) {
    // A table missing from the newest catalog has no rows to delete.
    let expires =
        |table: TableId| catalog.table_by_id(table).is_some_and(|table| table.kind == TableKind::Stream);
    for changes in record.tables.iter().filter(|changes| expires(changes.table)) {
        note(record.seq, changes, &mut known.queue);
    }
    for stub in record.stubs.iter().filter(|stub| expires(stub.table) && stub.written_rows > 0) {
        known.unread.push((record.seq, (stub.table, stub.scope)));
    }
}

fn note(seq: Seq, changes: &TableChanges, queue: &mut ExpiryQueue) {
    for change in &changes.rows {
        let Some(Ok((header, _))) = change.new.as_deref().map(RowHeader::read) else { continue };
        if let Some(at) = header.expires_at {
            queue.push(Due { at, seq, key: change.key.as_ref().into() });
        }
    }
}

fn expiring_tables(catalog: &Catalog) -> Vec<TableId> {
    catalog.tables().filter(|table| table.kind == TableKind::Stream).map(|table| table.id).collect()
}

/// Returns the deletes of rows that are stored as `due` says, by table and scope.
fn deletes(snapshot: &Snapshot, due: &[Due]) -> Result<Vec<TableWrite>> {
    let keys: Vec<_> = due.iter().map(|due| Bytes::copy_from_slice(&due.key)).collect();
    let rows = snapshot.storage.multi_get(Partition::Rows, &keys)?;
    let mut writes: Vec<((TableId, ScopeId), TableWrite)> = Vec::new();
    for ((due, key), row) in due.iter().zip(keys).zip(rows) {
        let Some(old) = row else { continue };
        let Some((table, scope)) = keys::table_and_scope(&key) else { continue };
        let (header, _) = RowHeader::read(&old)?;
        if header.seq != due.seq {
            continue;
        }
        let delete = RowWrite::Delete { key, expected: header.seq, old, place: None };
        match writes.iter_mut().rev().find(|(place, _)| *place == (table, scope)) {
            Some((_, write)) => write.rows.push(delete),
            None => {
                let Some(definition) = snapshot.catalog.table_by_id(table) else { continue };
                let write = TableWrite { table: Arc::clone(definition), scope, rows: vec![delete] };
                writes.push(((table, scope), write));
            }
        }
    }
    Ok(writes.into_iter().map(|(_, write)| write).collect())
}
