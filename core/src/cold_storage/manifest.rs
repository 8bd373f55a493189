//! The segments of a snapshot, how commits change them, and how they are loaded from the store.
//!
//! Invariant: manifest and rows change in the same batch, so in every snapshot each row has one live place.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;
use roaring::RoaringBitmap;

use super::key_index::KeyIndex;
use super::manifest_records::{self as records, Tag, Unpublished};
use super::marks::{is_marked, marked_after, marked_in};
use super::segment::{Place, Segment};
use super::store::SegmentStore;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::{SegmentId, Seq, TableId};
use crate::storage::{Direction, KeyRange, Partition, StorageSnapshot, WriteBatch, blocking};

/// The segments of one table.
#[derive(Clone, Debug, Default)]
pub struct TableSegments {
    /// Oldest first.
    pub segments: Vec<Arc<Segment>>,
    /// Stored rows of commits up to this one are ignored: they are in a segment or were overwritten since.
    pub flushed: Seq,
    /// The last commit that moved rows to another place or added segments of new rows.
    pub moved: Seq,
    /// The deletion vectors of the segments that have one.
    deleted: HashMap<SegmentId, Arc<RoaringBitmap>>,
}

/// The segments of a snapshot. Successive manifests share unchanged parts.
#[derive(Clone, Debug)]
pub struct Manifest {
    store: Arc<SegmentStore>,
    tables: OrdMap<TableId, Arc<TableSegments>>,
    unpublished: OrdMap<TableId, Unpublished>,
    /// Greater than the id of every segment.
    next: SegmentId,
}

/// A segment to add.
#[derive(Clone, Debug)]
pub struct NewSegment {
    /// Its metadata.
    pub segment: Arc<Segment>,
    /// The filter over the keys of its rows.
    pub filter: Bytes,
    /// The keys of its rows, by position.
    pub keys: Arc<KeyIndex>,
}

/// A change of the manifest as part of a commit.
#[derive(Clone, Debug)]
pub enum ColdChange {
    /// Adds segments with new rows.
    Insert {
        /// The table.
        table: TableId,
        /// The segments.
        added: Vec<NewSegment>,
    },
    /// Replaces the hot rows of a table up to a commit by segments.
    Flush {
        /// The table.
        table: TableId,
        /// The last commit whose rows are in the segments.
        through: Seq,
        /// The segments; none when all those rows are deleted.
        added: Vec<NewSegment>,
    },
    /// Replaces segments of a table by compacted ones.
    Compact {
        /// The table.
        table: TableId,
        /// The old segments.
        removed: Vec<SegmentId>,
        /// The new segments.
        added: Vec<NewSegment>,
    },
    /// Moves marks of a segment into its deletion vector.
    ApplyMarks {
        /// The table.
        table: TableId,
        /// The segment.
        segment: SegmentId,
        /// The marked positions.
        positions: RoaringBitmap,
    },
    /// Records that the manifest of a table was published, as of a commit or later.
    Published {
        /// The table.
        table: TableId,
        /// The commit.
        seq: Seq,
    },
    /// Drops a table.
    DropTable(TableId),
    /// Records that the object of a retired segment was removed.
    Removed(SegmentId),
}

impl Manifest {
    /// Returns the manifest of a database without segments.
    pub fn empty(store: Arc<SegmentStore>) -> Self {
        Self { store, tables: OrdMap::new(), unpublished: OrdMap::new(), next: SegmentId(1) }
    }

    /// Returns the store of the objects.
    pub fn store(&self) -> &Arc<SegmentStore> {
        &self.store
    }

    /// Returns the segments of a table; `None` when it never had any.
    pub fn table(&self, table: TableId) -> Option<&Arc<TableSegments>> {
        self.tables.get(&table)
    }

    /// Returns the id of the next segment.
    pub fn next(&self) -> SegmentId {
        self.next
    }

    /// Returns the last commit whose stored rows of the table are ignored.
    pub fn flushed(&self, table: TableId) -> Seq {
        self.table(table).map_or(Seq::ZERO, |segments| segments.flushed)
    }

    /// Returns the last commit that moved rows of the table or added segments of new rows.
    pub fn moved(&self, table: TableId) -> Seq {
        self.table(table).map_or(Seq::ZERO, |segments| segments.moved)
    }

    /// Returns the segments of a table, oldest first.
    pub fn segments(&self, table: TableId) -> &[Arc<Segment>] {
        self.table(table).map_or(&[], |segments| &segments.segments)
    }

    /// Returns the segments of all tables.
    pub fn all_segments(&self) -> impl Iterator<Item = &Arc<Segment>> {
        self.tables.values().flat_map(|table| &table.segments)
    }

    /// Returns the segment of a table with an id.
    pub fn segment(&self, table: TableId, id: SegmentId) -> Option<&Arc<Segment>> {
        self.segments(table).iter().find(|segment| segment.id == id)
    }

    /// Returns the manifests that must still be published.
    pub fn unpublished(&self) -> &OrdMap<TableId, Unpublished> {
        &self.unpublished
    }

    /// Returns whether a storage still has retired segments, or a manifest must be published there.
    pub fn needs(&self, storage: &str) -> bool {
        self.store.has_retired(storage) || self.unpublished.values().any(|due| *due.storage == *storage)
    }

    /// Returns whether the row at `place` is deleted.
    ///
    /// # Errors
    /// Any error of the storage.
    pub fn is_deleted(&self, storage: &dyn StorageSnapshot, table: TableId, place: Place) -> Result<bool> {
        let deleted = self.deletion_vector(table, place.segment);
        Ok(deleted.is_some_and(|deleted| deleted.contains(place.position)) || is_marked(storage, place)?)
    }

    /// Returns the positions of the deleted rows of a segment.
    ///
    /// # Errors
    /// XX001 when a mark is damaged, and any error of the storage.
    pub fn deleted(
        &self,
        storage: &dyn StorageSnapshot,
        table: TableId,
        segment: SegmentId,
    ) -> Result<RoaringBitmap> {
        let mut deleted =
            self.deletion_vector(table, segment).map_or_else(RoaringBitmap::new, RoaringBitmap::clone);
        deleted.extend(marked_after(storage, segment, Seq::ZERO)?.into_iter().map(|(position, _)| position));
        Ok(deleted)
    }

    /// Returns the positions of the deleted rows of a segment in `ranges`, ascending. The ranges are
    /// ascending and disjoint. Deleted rows outside of them cost nothing.
    ///
    /// # Errors
    /// As [`Manifest::deleted`].
    pub fn deleted_in(
        &self,
        storage: &dyn StorageSnapshot,
        table: TableId,
        segment: SegmentId,
        ranges: &[Range<u32>],
    ) -> Result<Vec<u32>> {
        let mut deleted = marked_in(storage, segment, ranges)?;
        if let Some(vector) = self.deletion_vector(table, segment) {
            let ranges = ranges.iter().filter(|range| !range.is_empty());
            deleted.extend(ranges.flat_map(|range| vector.range(range.clone())));
        }
        // The list consists of a few ascending runs, which the stable sort merges.
        deleted.sort();
        deleted.dedup();
        Ok(deleted)
    }

    /// Returns for each segment the positions of its deleted rows, ascending.
    ///
    /// # Errors
    /// As [`Manifest::deleted`].
    pub async fn deleted_positions(
        &self,
        storage: &Arc<dyn StorageSnapshot>,
        segments: &[Arc<Segment>],
    ) -> Result<Vec<Vec<u32>>> {
        let (manifest, storage) = (self.clone(), Arc::clone(storage));
        let ids: Vec<_> = segments.iter().map(|segment| (segment.table, segment.id)).collect();
        let deleted_in =
            move |(table, segment)| Ok(manifest.deleted(&*storage, table, segment)?.into_iter().collect());
        blocking(move || ids.into_iter().map(deleted_in).collect()).await
    }

    fn deletion_vector(&self, table: TableId, segment: SegmentId) -> Option<&RoaringBitmap> {
        self.table(table)?.deleted.get(&segment).map(|deleted| &**deleted)
    }

    /// Returns the manifest after `change` in commit `seq`, and the retired segments; adds the writes to
    /// `batch`. The caller passes those segments to [`SegmentStore::retire`] once the batch is written.
    ///
    /// # Errors
    /// 40001 when a segment to change no longer exists, XX000 when a flush goes back before an earlier one.
    pub fn apply(
        &self,
        change: &ColdChange,
        seq: Seq,
        batch: &mut WriteBatch,
    ) -> Result<(Self, Vec<Arc<Segment>>)> {
        let mut after = self.clone();
        let mut retired = Vec::new();
        let known =
            |table: TableId| self.table(table).map(|table| TableSegments::clone(table)).unwrap_or_default();
        match change {
            ColdChange::Insert { table, added } => {
                let mut segments = known(*table);
                after.add(batch, &mut segments, added)?;
                after.put_moved(batch, *table, segments, &[], seq);
            }
            ColdChange::Flush { table, through, added } => {
                let mut segments = known(*table);
                if *through <= segments.flushed {
                    return Err(Error::internal("a flush ends before an earlier one"));
                }
                after.add(batch, &mut segments, added)?;
                segments.flushed = *through;
                after.put_moved(batch, *table, segments, &[], seq);
            }
            ColdChange::Compact { table, removed, added } => {
                let mut segments = known(*table);
                for id in removed {
                    let segment = segments.remove(*id)?;
                    retire(batch, &segment)?;
                    retired.push(segment);
                }
                after.add(batch, &mut segments, added)?;
                after.put_moved(batch, *table, segments, &retired, seq);
            }
            ColdChange::ApplyMarks { table, segment, positions } => {
                let mut segments = known(*table);
                if !segments.segments.iter().any(|known| known.id == *segment) {
                    return Err(Error::conflict("a segment with marks to apply no longer exists"));
                }
                segments.apply_marks(batch, *segment, positions)?;
                after.tables.insert(*table, Arc::new(segments));
            }
            ColdChange::DropTable(table) => {
                if let Some(segments) = after.tables.remove(table) {
                    for segment in &segments.segments {
                        retire(batch, segment)?;
                    }
                    batch.delete(Partition::Cold, records::state_key(*table));
                    retired.extend(segments.segments.iter().map(Arc::clone));
                    // Requests the removal of published manifests. Tables without segments should have none.
                    if let Some(segment) = retired.first() {
                        after.put_unpublished(batch, *table, seq, &segment.storage);
                    }
                }
            }
            ColdChange::Published { table, seq } => {
                if after.unpublished.get(table).is_some_and(|due| due.seq == *seq) {
                    batch.delete(Partition::Cold, records::unpublished_key(*table));
                    after.unpublished.remove(table);
                }
            }
            ColdChange::Removed(segment) => batch.delete(Partition::Cold, records::retired_key(*segment)),
        }
        Ok((after, retired))
    }

    /// Stores the segments of a table after a move. The manifest belongs to the storage of the last segment,
    /// or of the retired ones when none is left.
    fn put_moved(
        &mut self,
        batch: &mut WriteBatch,
        table: TableId,
        mut segments: TableSegments,
        retired: &[Arc<Segment>],
        seq: Seq,
    ) {
        segments.moved = seq;
        let state = records::state_value(segments.flushed, segments.moved);
        batch.put(Partition::Cold, records::state_key(table), state);
        if let Some(segment) = segments.segments.last().or(retired.first()) {
            self.put_unpublished(batch, table, seq, &segment.storage);
        }
        self.tables.insert(table, Arc::new(segments));
    }

    fn put_unpublished(&mut self, batch: &mut WriteBatch, table: TableId, seq: Seq, storage: &Arc<str>) {
        let due = Unpublished { seq, storage: Arc::clone(storage) };
        batch.put(Partition::Cold, records::unpublished_key(table), records::unpublished_value(&due));
        self.unpublished.insert(table, due);
    }

    fn add(
        &mut self,
        batch: &mut WriteBatch,
        segments: &mut TableSegments,
        added: &[NewSegment],
    ) -> Result<()> {
        for new in added {
            let id = new.segment.id;
            let key = records::segment_key(new.segment.table, id);
            batch.put(Partition::Cold, key, records::segment_value(&new.segment)?);
            batch.put(Partition::Cold, records::filter_key(id), new.filter.clone());
            segments.segments.push(Arc::clone(&new.segment));
            self.next = self.next.max(SegmentId(id.0 + 1));
        }
        batch.put(Partition::Cold, records::next_segment_key(), self.next.0.to_be_bytes().to_vec());
        Ok(())
    }
}

impl TableSegments {
    fn remove(&mut self, id: SegmentId) -> Result<Arc<Segment>> {
        let position = self.segments.iter().position(|segment| segment.id == id);
        let position = position.ok_or_else(|| Error::conflict("a segment to compact no longer exists"))?;
        self.deleted.remove(&id);
        Ok(self.segments.remove(position))
    }

    fn apply_marks(
        &mut self,
        batch: &mut WriteBatch,
        segment: SegmentId,
        positions: &RoaringBitmap,
    ) -> Result<()> {
        let before = self.deleted.get(&segment);
        let after = before.map_or_else(|| positions.clone(), |before| &**before | positions);
        batch.put(Partition::Cold, records::deletion_vector_key(segment), records::portable(&after)?);
        for position in positions {
            batch.delete(Partition::Cold, records::mark_key(Place { segment, position }));
        }
        self.deleted.insert(segment, Arc::new(after));
        Ok(())
    }
}

/// Returns the error for a storage that cannot be dropped or moved yet.
pub fn storage_in_use(storage: &str) -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        SqlState::OBJECT_IN_USE,
        format!("storage \"{storage}\" still has objects of tables that were dropped or compacted"),
    )
    .hint("they are removed automatically; try again in a moment")
}

fn retire(batch: &mut WriteBatch, segment: &Segment) -> Result<()> {
    batch.delete(Partition::Cold, records::segment_key(segment.table, segment.id));
    batch.delete(Partition::Cold, records::filter_key(segment.id));
    batch.delete(Partition::Cold, records::deletion_vector_key(segment.id));
    batch.delete_range(Partition::Cold, records::mark_keys(segment.id));
    batch.put(Partition::Cold, records::retired_key(segment.id), records::segment_value(segment)?);
    Ok(())
}

/// Loads the manifest, and retires segments whose objects must still be removed. `known` is the manifest
/// before a reopen, whose segments are reused.
///
/// # Errors
/// XX001 when the stored bytes are damaged.
pub fn restore(
    storage: &dyn StorageSnapshot,
    store: Arc<SegmentStore>,
    known: Option<&Manifest>,
) -> Result<Manifest> {
    // All snapshots share one `Arc` per segment, so its count tells when no snapshot contains the segment.
    let shared = |segment: Segment| {
        let known = known.map_or(&[][..], |known| known.segments(segment.table));
        known.iter().find(|known| known.id == segment.id).map_or_else(|| Arc::new(segment), Arc::clone)
    };
    let mut manifest = Manifest::empty(store);
    let mut tables: BTreeMap<TableId, TableSegments> = BTreeMap::new();
    let mut retired = Vec::new();
    let mut deleted = HashMap::new();
    records::visit(storage, Tag::DeletionVector, |key, value| {
        deleted.insert(SegmentId(records::id(key)?), Arc::new(records::deletion_vector(value)?));
        Ok(())
    })?;
    records::visit(storage, Tag::TableState, |key, value| {
        let table = tables.entry(TableId(records::id(key)?)).or_default();
        (table.flushed, table.moved) = records::state(value)?;
        Ok(())
    })?;
    records::visit(storage, Tag::RetiredSegment, |_, value| {
        retired.push(shared(records::segment(value)?));
        Ok(())
    })?;
    records::visit(storage, Tag::NextSegment, |_, value| {
        manifest.next = SegmentId(records::number(value)?);
        Ok(())
    })?;
    records::visit(storage, Tag::Unpublished, |key, value| {
        manifest.unpublished.insert(TableId(records::id(key)?), records::unpublished(value)?);
        Ok(())
    })?;
    records::visit(storage, Tag::Segment, |key, value| {
        let segment = records::segment(value)?;
        if *key != records::segment_key(segment.table, segment.id) {
            return Err(records::damaged());
        }
        let segment = shared(segment);
        let table = tables.entry(segment.table).or_default();
        table.deleted.extend(deleted.remove_entry(&segment.id));
        table.segments.push(segment);
        Ok(())
    })?;
    manifest.store.retire(retired);
    manifest.tables = tables.into_iter().map(|(table, segments)| (table, Arc::new(segments))).collect();
    Ok(manifest)
}

/// Returns descriptions of the stored entries that do not fit `manifest`, which was loaded from them.
///
/// # Errors
/// XX001 when an entry is damaged, and any error of the storage.
pub fn inconsistencies(storage: &dyn StorageSnapshot, manifest: &Manifest) -> Result<Vec<String>> {
    let segments: HashMap<SegmentId, &Arc<Segment>> =
        manifest.all_segments().map(|segment| (segment.id, segment)).collect();
    let (mut inconsistencies, mut unknown, mut homeless, mut filters) =
        (Vec::new(), 0_u64, 0_u64, HashSet::new());
    storage.visit(Partition::Cold, KeyRange::all(), Direction::Forward, &mut |key, _| {
        match Tag::of(key) {
            Some(
                Tag::TableState | Tag::RetiredSegment | Tag::NextSegment | Tag::Unpublished | Tag::Segment,
            ) => {}
            Some(tag @ (Tag::DeletionVector | Tag::KeyFilter | Tag::Mark)) => {
                let segment = SegmentId(records::first_id(key)?);
                if !segments.contains_key(&segment) {
                    homeless += 1;
                } else if tag == Tag::KeyFilter {
                    filters.insert(segment);
                }
            }
            None => unknown += 1,
        }
        Ok(ControlFlow::Continue(()))
    })?;
    for segment in segments.values().filter(|segment| !filters.contains(&segment.id)) {
        inconsistencies.push(format!("segment \"{}\" has no key filter", segment.path));
    }
    for segment in segments.values().filter(|segment| segment.id >= manifest.next) {
        inconsistencies.push(format!("segment \"{}\" has an id that is not allocated yet", segment.path));
    }
    if homeless > 0 {
        inconsistencies.push(format!(
            "{homeless} filters, marks and deletion vectors belong to segments that do not exist"
        ));
    }
    if unknown > 0 {
        inconsistencies.push(format!("partition \"cold\" has {unknown} unknown keys"));
    }
    Ok(inconsistencies)
}

#[cfg(test)]
mod tests;
