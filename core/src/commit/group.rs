//! A group of commits while it is built: an accepted set gets the next seq and adds its writes to the batch.
//!
//! Invariant: a refused set leaves the group as it was.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::redo::redo;
use super::state::{CommitState, PreparedSet};
use super::validation::GroupState;
use super::{ColdWrite, LargeInsert, Receipt, Snapshot};
use crate::change_log::{self, CommitRecord};
use crate::cold_storage::{
    ColdChange, Manifest, NewSegment, Place, Segment, marked_after, put_mark, storage_in_use,
};
use crate::error::{Error, Result};
use crate::ids::{SegmentId, Seq, Shard, TableId};
use crate::schema_registry::{Catalog, CatalogChange, Durability};
use crate::storage::rows::row_seq;
use crate::storage::{Partition, StorageSnapshot, WriteBatch};

/// A group while it is built.
pub(super) struct CommitGroup {
    pub(super) batch: WriteBatch,
    pub(super) records: Vec<Arc<CommitRecord>>,
    pub(super) seq: Seq,
    pub(super) commit_ts: i64,
    pub(super) catalog: Arc<Catalog>,
    pub(super) cold: Arc<Manifest>,
    /// Segments that the group removes from the manifest.
    pub(super) retired: Vec<Arc<Segment>>,
    pub(super) log_floor: Seq,
    pub(super) sync: bool,
}

/// What [`CommitGroup::add`] needs besides the set.
pub(super) struct GroupContext<'a> {
    /// The snapshot before the group.
    pub(super) before: &'a Snapshot,
    /// The shared state, whose feed ends at the last commit before the group.
    pub(super) state: &'a CommitState,
}

impl CommitGroup {
    /// Returns an empty group that follows the snapshot `before`.
    pub(super) fn after(before: &Snapshot, now_us: i64, sets: usize) -> Self {
        Self {
            batch: WriteBatch::new(),
            records: Vec::with_capacity(sets),
            seq: before.seq,
            // Commit times never go back.
            commit_ts: now_us.max(before.commit_ts),
            catalog: Arc::clone(&before.catalog),
            cold: Arc::clone(&before.cold),
            retired: Vec::new(),
            log_floor: before.log_floor,
            sync: false,
        }
    }

    /// Makes `set` the next commit of the group; on an error the group stays as it was.
    pub(super) fn add(
        &mut self,
        group_state: &mut GroupState<'_>,
        prepared: PreparedSet,
        context: &GroupContext<'_>,
    ) -> Result<Receipt> {
        let PreparedSet { set, trim, cold_checked } = prepared;
        let seq = self.seq.next();
        // Rows are checked against the set's own catalog changes, so a set can create a table and fill it.
        let mut catalog = Arc::clone(&self.catalog);
        for change in &set.catalog {
            catalog = Arc::new(catalog.apply(change)?);
        }
        let large_insert = set.large_insert();
        if let Some(insert) = large_insert {
            group_state.check_large(insert, &catalog, &self.cold, cold_checked, &context.state.feed)?;
        }
        let large_insert = large_insert.map(LargeInsert::logged);
        let tables =
            group_state.apply(set.tables, &catalog, &self.cold, (set.read_seq, cold_checked), seq)?;
        let record = CommitRecord {
            seq,
            commit_ts: self.commit_ts,
            epoch: context.before.epoch,
            shard: Shard(0),
            principal: set.principal,
            catalog: set.catalog,
            tables,
            large_insert,
            stubs: Vec::new(),
        };
        let start = self.batch.mark();
        match self.redo(group_state, &record, set.cold, context) {
            Ok(Redone { catalog, cold, retired }) => {
                (self.catalog, self.cold) = (catalog, cold);
                self.retired.extend(retired);
            }
            Err(error) => {
                self.batch.truncate(start);
                group_state.rollback();
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
        group_state: &GroupState<'_>,
        record: &CommitRecord,
        cold: Option<ColdWrite>,
        context: &GroupContext<'_>,
    ) -> Result<Redone> {
        let catalog = redo(&mut self.batch, record, &self.catalog)?;
        let parts = match &cold {
            Some(ColdWrite::LargeInsert(insert)) => insert.log.as_slice(),
            _ => &[],
        };
        change_log::append(&mut self.batch, context.state.database, record, parts)?;
        for place in group_state.new_marks() {
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
                self.mark_changed(table, through, &added, record.seq, context)?;
                changes.push(ColdChange::Flush { table, through, added });
            }
            Some(ColdWrite::Compact { table, as_of, removed, added, places }) => {
                self.check_table(table)?;
                remark(&mut self.batch, &*context.before.storage, group_state, as_of, record.seq, &places)?;
                changes.push(ColdChange::Compact { table, removed, added });
            }
            Some(ColdWrite::DeleteFlushed { table, keys }) => {
                delete_flushed_rows(
                    &mut self.batch,
                    &*context.before.storage,
                    group_state,
                    self.cold.flushed(table),
                    &keys,
                )?;
            }
            Some(ColdWrite::Manifest(own)) => changes.extend(own),
        }
        let (mut cold, mut retired) = (Arc::clone(&self.cold), Vec::new());
        for change in &changes {
            let (after, removed) = cold.apply(change, record.seq, &mut self.batch)?;
            cold = Arc::new(after);
            retired.extend(removed);
        }
        Ok(Redone { catalog, cold, retired })
    }

    /// Whether the group created, changed or dropped storages.
    pub(super) fn has_new_storages(&self) -> bool {
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
            None => Err(Error::conflict("the table was dropped during a flush or compaction")),
        }
    }

    /// Marks the rows of new segments that changed after the snapshot of the flush.
    fn mark_changed(
        &mut self,
        table: TableId,
        through: Seq,
        added: &[NewSegment],
        seq: Seq,
        context: &GroupContext<'_>,
    ) -> Result<()> {
        self.check_table(table)?;
        let mut changed_keys = context.state.moves.changed_after(table, through)?;
        let in_group = self.records.iter().flat_map(|record| &record.tables);
        for changes in in_group.filter(|changes| changes.table == table) {
            let changed = changes.rows.iter().filter(|change| change.old.is_some());
            changed_keys.extend(changed.map(|change| Bytes::clone(&change.key)));
        }
        for key in &changed_keys {
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

/// The state after one commit of the group.
struct Redone {
    catalog: Arc<Catalog>,
    cold: Arc<Manifest>,
    retired: Vec<Arc<Segment>>,
}

/// Copies the marks that old segments got after they were read to the new segments.
fn remark(
    batch: &mut WriteBatch,
    storage: &dyn StorageSnapshot,
    group_state: &GroupState<'_>,
    as_of: Seq,
    seq: Seq,
    places: &HashMap<SegmentId, Vec<Option<Place>>>,
) -> Result<()> {
    for (segment, places) in places {
        let in_group = group_state.marked_in(*segment).map(|position| (position, seq));
        for (position, by) in marked_after(storage, *segment, as_of)?.into_iter().chain(in_group) {
            if let Some(Some(place)) = places.get(position as usize) {
                put_mark(batch, *place, by);
            }
        }
    }
    Ok(())
}

/// Deletes the stored rows of `keys` that a flush has put into segments.
fn delete_flushed_rows(
    batch: &mut WriteBatch,
    storage: &dyn StorageSnapshot,
    group_state: &GroupState<'_>,
    flushed: Seq,
    keys: &[Bytes],
) -> Result<()> {
    for (key, row) in keys.iter().zip(storage.multi_get(Partition::Rows, keys)?) {
        let Some(row) = row else { continue };
        if row_seq(&row)? <= flushed && !group_state.has_changed(key) {
            batch.delete(Partition::Rows, Bytes::clone(key));
        }
    }
    Ok(())
}
