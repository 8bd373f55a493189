//! The thread that orders all commits.
//!
//! Group by group: validate, number, write once, sync once, install, publish, answer. A set that is refused does not touch the
//! others of its group. Answers to refused sets wait for the write as well, since they may speak of rows the group wrote.
//! Publishing comes before answering, so that whoever has an answer finds the commit in the feed; it never waits.
//!
//! Invariant: after a failed write nothing is written until the store is opened again: what reached the disk is unknown.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::recovery::put_last_commit;
use super::redo::redo;
use super::validation::{LastChanges, Overlay};
use super::{CommitFeed, Receipt, Snapshot, WriteSet};
use crate::change_log::{self, CommitRecord, TrimStep};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::{DatabaseId, Seq, Shard};
use crate::schema_registry::{Catalog, Durability};
use crate::storage::{DataDirectory, StorageBackend, WriteBatch};

/// Sets of one group; more wait for the next.
const GROUP_LEN_MAX: usize = 4_096;
/// Bytes after which a group takes no more sets.
const GROUP_BYTES_MAX: usize = 16 << 20;

/// A write set in the queue.
pub(super) struct Pending {
    pub(super) set: WriteSet,
    pub(super) trim: Option<TrimStep>,
    pub(super) bytes: usize,
    pub(super) answer: oneshot::Sender<Result<Receipt>>,
    /// Its share of the bytes the queue may hold; given back when the set is done.
    pub(super) _permit: OwnedSemaphorePermit,
}

/// What the sequencer shares with the handles.
pub(super) struct Installed {
    pub(super) snapshot: ArcSwap<Snapshot>,
    pub(super) poisoned: AtomicBool,
    pub(super) feed: CommitFeed,
}

pub(super) struct Sequencer {
    pub(super) storage: Arc<dyn StorageBackend>,
    pub(super) directory: Option<Arc<DataDirectory>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) database: DatabaseId,
    pub(super) installed: Arc<Installed>,
    pub(super) last_changes: LastChanges,
}

/// The group while it is put together.
struct Group {
    batch: WriteBatch,
    records: Vec<Arc<CommitRecord>>,
    seq: Seq,
    commit_ts: i64,
    catalog: Arc<Catalog>,
    log_floor: Seq,
    sync: bool,
}

impl Sequencer {
    /// Works until every sender of the queue is gone and the queue is empty.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Pending>) {
        while let Some(first) = queue.blocking_recv() {
            let mut bytes = first.bytes;
            let mut group = vec![first];
            while group.len() < GROUP_LEN_MAX && bytes < GROUP_BYTES_MAX {
                let Ok(next) = queue.try_recv() else { break };
                bytes += next.bytes;
                group.push(next);
            }
            self.commit(group);
        }
        if !self.is_poisoned()
            && let Err(error) = self.storage.sync()
        {
            tracing::error!(%error, "could not sync the store while closing");
        }
    }

    fn is_poisoned(&self) -> bool {
        self.installed.poisoned.load(Ordering::Acquire)
    }

    fn commit(&mut self, pendings: Vec<Pending>) {
        let before = self.installed.snapshot.load_full();
        let mut group = Group {
            batch: WriteBatch::new(),
            records: Vec::with_capacity(pendings.len()),
            seq: before.seq,
            commit_ts: self.clock.now_us().max(before.commit_ts),
            catalog: Arc::clone(&before.catalog),
            log_floor: before.log_floor,
            sync: false,
        };
        let mut answers = Vec::with_capacity(pendings.len());
        let mut overlay = Overlay::new(&*before.storage, &self.last_changes, group.commit_ts);
        for pending in pendings {
            // The caller gave up before its turn came.
            if pending.answer.is_closed() {
                continue;
            }
            let Pending { set, trim, answer, _permit, .. } = pending;
            let result = if self.is_poisoned() {
                Err(poisoned())
            } else {
                group.add(&mut overlay, set, trim, before.epoch, self.database)
            };
            answers.push((answer, result, _permit));
        }
        drop(overlay);
        let written = self.write(&mut group);
        let failed = written.is_err();
        let synced = (group.sync && !failed).then_some(group.seq);
        if !failed {
            self.installed.feed.publish(group.records);
        }
        for (answer, result, permit) in answers {
            let result = match result {
                Ok(_) if failed => Err(outcome_unknown()),
                Err(_) if failed => Err(poisoned()),
                result => result,
            };
            drop(permit);
            // Nobody waits any more: the commit stands all the same.
            let _ = answer.send(result);
        }
        if let (Some(seq), Some(directory)) = (synced, &self.directory) {
            directory.note_synced_seq(before.epoch, seq);
        }
    }

    /// Writes and installs the group.
    fn write(&mut self, group: &mut Group) -> Result<()> {
        if group.records.is_empty() {
            return Ok(());
        }
        put_last_commit(&mut group.batch, group.seq, group.commit_ts);
        let batch = std::mem::take(&mut group.batch);
        if let Err(error) = self.storage.write(batch, group.sync) {
            self.installed.poisoned.store(true, Ordering::Release);
            let source = std::error::Error::source(&error).map(ToString::to_string);
            tracing::error!(%error, source, seq = group.seq.0, "a write failed; no more writes until the store is opened again");
            return Err(error);
        }
        let snapshot = Snapshot {
            seq: group.seq,
            commit_ts: group.commit_ts,
            epoch: self.installed.snapshot.load().epoch,
            catalog: Arc::clone(&group.catalog),
            storage: self.storage.snapshot(),
            log_floor: group.log_floor,
        };
        self.installed.snapshot.store(Arc::new(snapshot));
        for record in &group.records {
            for changes in &record.tables {
                self.last_changes.note(changes.table, changes.scope, record.seq);
            }
        }
        Ok(())
    }
}

impl Group {
    /// Makes `set` the next commit of the group, or leaves the group as it was.
    fn add(
        &mut self,
        overlay: &mut Overlay<'_>,
        set: WriteSet,
        trim: Option<TrimStep>,
        epoch: crate::ids::Epoch,
        database: DatabaseId,
    ) -> Result<Receipt> {
        let seq = self.seq.next();
        // Rows are checked against the catalog as the set leaves it, so that a set can create a table and fill it.
        let mut catalog = Arc::clone(&self.catalog);
        for change in &set.catalog {
            catalog = Arc::new(catalog.apply(change)?);
        }
        let tables = overlay.apply(set.tables, &catalog, set.read_seq, seq)?;
        let record = CommitRecord {
            seq,
            commit_ts: self.commit_ts,
            epoch,
            shard: Shard(0),
            principal: set.principal,
            catalog: set.catalog,
            tables,
        };
        let start = self.batch.mark();
        let redone = redo(&mut self.batch, &record, &self.catalog)
            .and_then(|catalog| change_log::append(&mut self.batch, database, &record).map(|()| catalog));
        match redone {
            Ok(catalog) => self.catalog = catalog,
            Err(error) => {
                self.batch.truncate(start);
                overlay.rollback();
                return Err(error);
            }
        }
        if let Some(trim) = trim
            && trim.floor > self.log_floor
        {
            self.log_floor = trim.floor;
            self.batch.extend(trim.batch);
        }
        self.seq = seq;
        self.sync |= set.durability == Durability::Durable;
        self.records.push(Arc::new(record));
        Ok(Receipt { seq, commit_ts: self.commit_ts })
    }
}

/// Why nothing is written any more.
pub(super) fn poisoned() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        SqlState::IO_ERROR,
        "the database takes no writes because an earlier write to disk failed",
    )
    .hint("reads go on; writes work again once the database has been reopened")
}

pub(super) fn outcome_unknown() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        SqlState::OUTCOME_UNKNOWN,
        "the write to disk failed, so it is not known whether the change was made",
    )
    .hint("look whether it was made once the database has been reopened")
}
