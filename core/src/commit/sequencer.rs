//! The thread that orders all commits.
//!
//! Per group: validate, number, write once, sync once, install, publish, answer. A refused set does not
//! affect the others of its group. Answers to refused sets wait for the write too, because they may mention
//! rows that the group wrote. Publishing comes before answering, so a client that has its answer finds the
//! commit in the feed. Publishing never blocks.
//!
//! Sets that make the store grow are refused when the disk has too little free space.
//!
//! Invariant: after a failed write nothing is written until a reopening: what reached the disk is unknown.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::moves::Moves;
use super::recovery::{EpochHistory, put_last_commit};
use super::redo::redo;
use super::reopening::Backoff;
use super::validation::{LastChanges, Overlay};
use super::{ColdWrite, CommitFeed, LargeInsert, Receipt, Snapshot, WriteSet};
use crate::change_log::{self, CommitRecord, TrimStep};
use crate::clock::Clock;
use crate::cold_storage::{
    ColdChange, Manifest, NewSegment, Place, Segment, marked_after, put_mark, storage_in_use,
};
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::failpoint;
use crate::hot_tier::HotOptions;
use crate::ids::{DatabaseId, SegmentId, Seq, Shard, TableId};
use crate::schema_registry::{Catalog, CatalogChange, Durability, StorageRecord};
use crate::storage::rows::row_seq;
use crate::storage::{
    DataDirectory, DiskSpace, Partition, Room, StorageBackend, StorageSnapshot, WriteBatch,
};

/// The most sets in one group; the others wait for the next group.
const GROUP_LEN_MAX: usize = 4_096;
/// A group of this many bytes takes no more sets.
const GROUP_BYTES_MAX: usize = 16 << 20;

/// A write set in the queue.
pub(super) struct Pending {
    pub(super) prepared: Prepared,
    pub(super) bytes: usize,
    pub(super) answer: oneshot::Sender<Result<Receipt>>,
    /// Its share of the byte budget of the queue, released when the set is done.
    pub(super) _permit: OwnedSemaphorePermit,
}

/// A write set and what was prepared for it before its turn.
pub(super) struct Prepared {
    pub(super) set: WriteSet,
    pub(super) trim: Option<TrimStep>,
    /// As of this seq the inserted keys were free among cold rows, and the segments' keys among all rows.
    pub(super) cold_checked: Seq,
}

/// What the sequencer shares with the committer's handles.
pub(super) struct Installed {
    pub(super) snapshot: ArcSwap<Snapshot>,
    pub(super) epochs: ArcSwap<EpochHistory>,
    /// Whether a write failed and the store has not been reopened since.
    pub(super) poisoned: AtomicBool,
    /// How often the store was reopened.
    pub(super) reopenings: AtomicU64,
    /// `None` for a database in memory.
    pub(super) disk: Option<DiskSpace>,
    pub(super) next_segment: AtomicU32,
    pub(super) feed: CommitFeed,
    pub(super) moves: Moves,
}

pub(super) struct Sequencer {
    pub(super) storage: Arc<dyn StorageBackend>,
    pub(super) directory: Option<Arc<DataDirectory>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) database: DatabaseId,
    pub(super) installed: Arc<Installed>,
    pub(super) last_changes: LastChanges,
    pub(super) backoff: Backoff,
    /// Sizes of the hot tier, which starts empty in every epoch.
    pub(super) hot: HotOptions,
}

/// The group while it is built.
struct Group {
    batch: WriteBatch,
    records: Vec<Arc<CommitRecord>>,
    seq: Seq,
    commit_ts: i64,
    catalog: Arc<Catalog>,
    cold: Arc<Manifest>,
    /// Segments that the group removes from the manifest.
    retired: Vec<Arc<Segment>>,
    log_floor: Seq,
    sync: bool,
}

/// What [`Group::add`] needs besides the set.
struct Context<'a> {
    before: &'a Snapshot,
    database: DatabaseId,
    moves: &'a Moves,
    /// Ends at the last commit before the group.
    feed: &'a CommitFeed,
}

impl Sequencer {
    /// Runs until every sender of the queue is gone and the queue is empty.
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
            if self.is_poisoned() {
                self.reopen_until_it_works(&mut queue);
            }
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
        // Commit times never go back. Expiry is judged by the clock itself, as in queries.
        let now_us = self.clock.now_us();
        let mut group = Group {
            batch: WriteBatch::new(),
            records: Vec::with_capacity(pendings.len()),
            seq: before.seq,
            commit_ts: now_us.max(before.commit_ts),
            catalog: Arc::clone(&before.catalog),
            cold: Arc::clone(&before.cold),
            retired: Vec::new(),
            log_floor: before.log_floor,
            sync: false,
        };
        let mut answers = Vec::with_capacity(pendings.len());
        let installed = &*self.installed;
        let (moves, feed) = (&installed.moves, &installed.feed);
        let context = Context { before: &before, database: self.database, moves, feed };
        let mut overlay = Overlay::new(&*before.storage, &self.last_changes, now_us);
        for pending in pendings {
            // The caller stopped waiting before the set's turn.
            if pending.answer.is_closed() {
                continue;
            }
            let Pending { prepared, answer, _permit, .. } = pending;
            let result = match self.check_room(&prepared.set) {
                Ok(()) => group.add(&mut overlay, prepared, &context),
                Err(error) => Err(error),
            };
            answers.push((answer, result, _permit));
        }
        drop(overlay);
        let written = self.write(&mut group);
        let failed = written.is_err();
        let synced = (group.sync && !failed).then_some(group.seq);
        failpoint::moment("commit::installed");
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
            // If the caller stopped waiting, the commit still stands.
            let _ = answer.send(result);
        }
        failpoint::moment("commit::answered");
        if let (Some(seq), Some(directory)) = (synced, &self.directory) {
            directory.note_synced_seq(before.epoch, seq);
        }
    }

    /// Refuses a set if the disk has no room for it.
    fn check_room(&self, set: &WriteSet) -> Result<()> {
        let Some(disk) = &self.installed.disk else { return Ok(()) };
        match disk.room() {
            Room::Enough => Ok(()),
            Room::Low if set.only_deletes() => Ok(()),
            Room::Low | Room::Reserve if !set.grows() => Ok(()),
            Room::Low | Room::Reserve => Err(disk.full()),
        }
    }

    /// Writes and installs the group.
    fn write(&mut self, group: &mut Group) -> Result<()> {
        if group.records.is_empty() {
            return Ok(());
        }
        put_last_commit(&mut group.batch, group.seq, group.commit_ts);
        let batch = std::mem::take(&mut group.batch);
        if let Some(disk) = &self.installed.disk {
            disk.note_written(batch.bytes());
        }
        let written = failpoint::step("commit::write").and_then(|()| self.storage.write(batch, group.sync));
        if let Err(error) = written {
            self.installed.poisoned.store(true, Ordering::Release);
            let source = std::error::Error::source(&error).map(ToString::to_string);
            tracing::error!(%error, source, seq = group.seq.0, "a write failed; the store is reopened before the next");
            return Err(error);
        }
        failpoint::moment("commit::written");
        let before = self.installed.snapshot.load_full();
        group.records.iter().for_each(|record| before.hot.note(record));
        let snapshot = Snapshot {
            seq: group.seq,
            commit_ts: group.commit_ts,
            epoch: before.epoch,
            catalog: Arc::clone(&group.catalog),
            storage: self.storage.snapshot(),
            hot: Arc::clone(&before.hot),
            cold: Arc::clone(&group.cold),
            log_floor: group.log_floor,
        };
        if group.has_new_storages() {
            let locations = group.catalog.storages().map(StorageRecord::location);
            group.cold.store().set_storages(self.database, locations);
        }
        group.cold.store().retire(group.retired.drain(..));
        self.installed.snapshot.store(Arc::new(snapshot));
        for record in &group.records {
            self.installed.moves.note(record);
            for changes in &record.tables {
                self.last_changes.note(changes.table, changes.scope, record.seq);
            }
        }
        Ok(())
    }
}

impl Group {
    /// Makes `set` the next commit of the group; on an error the group stays as it was.
    fn add(
        &mut self,
        overlay: &mut Overlay<'_>,
        prepared: Prepared,
        context: &Context<'_>,
    ) -> Result<Receipt> {
        let Prepared { set, trim, cold_checked } = prepared;
        let seq = self.seq.next();
        // Rows are checked against the set's own catalog changes, so a set can create a table and fill it.
        let mut catalog = Arc::clone(&self.catalog);
        for change in &set.catalog {
            catalog = Arc::new(catalog.apply(change)?);
        }
        let large_insert = set.large_insert();
        if let Some(insert) = large_insert {
            overlay.check_large(insert, &catalog, &self.cold, cold_checked, context.feed)?;
        }
        let large_insert = large_insert.map(LargeInsert::logged);
        let tables = overlay.apply(set.tables, &catalog, &self.cold, (set.read_seq, cold_checked), seq)?;
        let record = CommitRecord {
            seq,
            commit_ts: self.commit_ts,
            epoch: context.before.epoch,
            shard: Shard(0),
            principal: set.principal,
            catalog: set.catalog,
            tables,
            large_insert,
        };
        let start = self.batch.mark();
        match self.redo(overlay, &record, set.cold, context) {
            Ok(Redone { catalog, cold, retired }) => {
                (self.catalog, self.cold) = (catalog, cold);
                self.retired.extend(retired);
            }
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

    /// Adds the writes of one commit to the batch; on an error the caller truncates the batch.
    fn redo(
        &mut self,
        overlay: &Overlay<'_>,
        record: &CommitRecord,
        cold: Option<ColdWrite>,
        context: &Context<'_>,
    ) -> Result<Redone> {
        let catalog = redo(&mut self.batch, record, &self.catalog)?;
        let parts = match &cold {
            Some(ColdWrite::LargeInsert(insert)) => insert.log.as_slice(),
            _ => &[],
        };
        change_log::append(&mut self.batch, context.database, record, parts)?;
        for place in overlay.new_marks() {
            put_mark(&mut self.batch, *place, record.seq);
        }
        let mut changes = Vec::new();
        for change in &record.catalog {
            match change {
                CatalogChange::DropTable(table) => changes.push(ColdChange::DropTable(*table)),
                CatalogChange::DropStorage(id) => self.check_unneeded(id)?,
                _ => {}
            }
        }
        match cold {
            None => {}
            Some(ColdWrite::LargeInsert(insert)) => {
                let added = insert.of_commit(record.seq);
                changes.push(ColdChange::Insert { table: insert.table.id, added });
            }
            Some(ColdWrite::Flush { table, through, added }) => {
                self.mark_touched(table, through, &added, record.seq, context)?;
                changes.push(ColdChange::Flush { table, through, added });
            }
            Some(ColdWrite::Compact { table, as_of, removed, added, places }) => {
                self.check_table(table)?;
                remark(&mut self.batch, &*context.before.storage, overlay, as_of, record.seq, &places)?;
                changes.push(ColdChange::Compact { table, removed, added });
            }
            Some(ColdWrite::Clean { table, keys }) => {
                clean(&mut self.batch, &*context.before.storage, overlay, self.cold.flushed(table), &keys)?;
            }
            Some(ColdWrite::Manifest(own)) => changes.extend(own),
        }
        let (mut cold, mut retired) = (Arc::clone(&self.cold), Vec::new());
        for change in &changes {
            let (after, gone) = cold.apply(change, record.seq, &mut self.batch)?;
            cold = Arc::new(after);
            retired.extend(gone);
        }
        Ok(Redone { catalog, cold, retired })
    }

    fn has_new_storages(&self) -> bool {
        let mut changes = self.records.iter().flat_map(|record| &record.catalog);
        changes.any(|change| matches!(change, CatalogChange::PutStorage(_) | CatalogChange::DropStorage(_)))
    }

    /// Fails while a storage holds objects of dropped tables, or a manifest is due to be published there.
    fn check_unneeded(&self, storage: &str) -> Result<()> {
        let is_retired = self.retired.iter().any(|segment| *segment.storage == *storage);
        match is_retired || self.cold.needs(storage) {
            true => Err(storage_in_use(storage)),
            false => Ok(()),
        }
    }

    fn check_table(&self, table: TableId) -> Result<()> {
        match self.catalog.table_by_id(table) {
            Some(_) => Ok(()),
            None => Err(Error::conflict("the table was dropped while its rows were moved")),
        }
    }

    /// Marks the rows of new segments that changed after the snapshot of the flush.
    fn mark_touched(
        &mut self,
        table: TableId,
        through: Seq,
        added: &[NewSegment],
        seq: Seq,
        context: &Context<'_>,
    ) -> Result<()> {
        self.check_table(table)?;
        let mut touched = context.moves.touched_after(table, through)?;
        let in_group = self.records.iter().flat_map(|record| &record.tables);
        for changes in in_group.filter(|changes| changes.table == table) {
            let changed = changes.rows.iter().filter(|change| change.old.is_some());
            touched.extend(changed.map(|change| bytes::Bytes::clone(&change.key)));
        }
        for key in &touched {
            let found = added
                .iter()
                .find_map(|new| Some(Place { segment: new.segment.id, position: new.keys.position(key)? }));
            if let Some(place) = found {
                put_mark(&mut self.batch, place, seq);
            }
        }
        Ok(())
    }
}

/// Copies the marks that old segments got after they were read to the new segments.
fn remark(
    batch: &mut WriteBatch,
    storage: &dyn StorageSnapshot,
    overlay: &Overlay<'_>,
    as_of: Seq,
    seq: Seq,
    places: &HashMap<SegmentId, Vec<Option<Place>>>,
) -> Result<()> {
    for (segment, places) in places {
        let in_group = overlay.marked_in(*segment).map(|position| (position, seq));
        for (position, by) in marked_after(storage, *segment, as_of)?.into_iter().chain(in_group) {
            if let Some(Some(place)) = places.get(position as usize) {
                put_mark(batch, *place, by);
            }
        }
    }
    Ok(())
}

/// The state after one commit of the group.
struct Redone {
    catalog: Arc<Catalog>,
    cold: Arc<Manifest>,
    retired: Vec<Arc<Segment>>,
}

/// Deletes the stored rows of `keys` that a flush has put into segments.
fn clean(
    batch: &mut WriteBatch,
    storage: &dyn StorageSnapshot,
    overlay: &Overlay<'_>,
    flushed: Seq,
    keys: &[bytes::Bytes],
) -> Result<()> {
    for (key, row) in keys.iter().zip(storage.multi_get(Partition::Rows, keys)?) {
        let Some(row) = row else { continue };
        if row_seq(&row)? <= flushed && !overlay.has_changed(key) {
            batch.delete(Partition::Rows, bytes::Bytes::clone(key));
        }
    }
    Ok(())
}

/// Returns the error for writes while the store is not reopened yet.
pub(super) fn poisoned() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        SqlState::IO_ERROR,
        "the database takes no writes because an earlier write to disk failed",
    )
    .hint("the store is being reopened, which is tried until it works; then writes go on")
}

pub(super) fn outcome_unknown() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        SqlState::OUTCOME_UNKNOWN,
        "the write to disk failed, so it is not known whether the change was made",
    )
    .hint("look whether it was made once the store has been reopened, which happens by itself")
}
