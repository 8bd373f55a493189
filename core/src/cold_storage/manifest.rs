//! The segments of a snapshot, and their entries in the `Cold` partition:
//!
//! ```text
//! 'D' segment u32 BE                    -> deletion vector, in Roaring's portable format
//! 'F' table u32 BE                      -> flushed seq u64 BE | moved seq u64 BE
//! 'G' segment u32 BE                    -> JSON of a retired segment, whose object must be removed
//! 'K' segment u32 BE                    -> the bits of its key filter
//! 'M' segment u32 BE | position u32 BE  -> mark: seq u64 BE of the commit that overwrote or deleted the row
//! 'N'                                   -> u32 BE, the id of the next segment
//! 'P' table u32 BE                      -> seq u64 BE | storage: publish the manifest there, of seq or later
//! 'S' table u32 BE | segment u32 BE     -> JSON of a segment
//! ```
//!
//! Overwriting or deleting a cold row writes a mark, its tombstone, which is cheap to write. Later, marks
//! move into the segment's deletion vector, which is cheap to read. A row is deleted when either has its
//! position.
//!
//! Invariant: manifest and rows change in the same batch, so in every snapshot each row has one live place.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;
use roaring::RoaringBitmap;

use super::key_index::KeyIndex;
use super::segment::{Place, STORAGE_LOCAL, Segment};
use super::store::SegmentStore;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::{SegmentId, Seq, TableId};
use crate::storage::{Direction, KeyRange, Partition, StorageSnapshot, WriteBatch};

const NEXT_KEY: &[u8] = b"N";

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

/// A manifest that must still be published or, after DROP TABLE, removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpublished {
    /// The commit that changed the manifest.
    pub seq: Seq,
    /// The storage of the table's segments.
    pub storage: Arc<str>,
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
    Fold {
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
    pub fn is_gone(&self, storage: &dyn StorageSnapshot, table: TableId, place: Place) -> Result<bool> {
        let deleted = self.deletion_vector(table, place.segment);
        Ok(deleted.is_some_and(|deleted| deleted.contains(place.position))
            || storage.get(Partition::Cold, &mark_key(place))?.is_some())
    }

    /// Returns the positions of the deleted rows of a segment.
    ///
    /// # Errors
    /// XX001 when a mark is damaged, and any error of the storage.
    pub fn gone(
        &self,
        storage: &dyn StorageSnapshot,
        table: TableId,
        segment: SegmentId,
    ) -> Result<RoaringBitmap> {
        let mut gone =
            self.deletion_vector(table, segment).map_or_else(RoaringBitmap::new, RoaringBitmap::clone);
        gone.extend(marked_after(storage, segment, Seq::ZERO)?.into_iter().map(|(position, _)| position));
        Ok(gone)
    }

    /// Returns the positions of the first `count` marks of a segment, ascending.
    ///
    /// # Errors
    /// XX001 when a mark is damaged, and any error of the storage.
    pub fn marks(storage: &dyn StorageSnapshot, segment: SegmentId, count: usize) -> Result<Vec<u32>> {
        let mut marks = Vec::new();
        visit_marks(storage, segment, &mut |position, _| {
            marks.push(position);
            if marks.len() < count { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(marks)
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
                    return Err(Error::internal("a flush goes back behind an earlier one"));
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
            ColdChange::Fold { table, segment, positions } => {
                let mut segments = known(*table);
                if !segments.segments.iter().any(|known| known.id == *segment) {
                    return Err(Error::conflict("a segment to fold the marks of is no more"));
                }
                segments.fold(batch, *segment, positions)?;
                after.tables.insert(*table, Arc::new(segments));
            }
            ColdChange::DropTable(table) => {
                if let Some(segments) = after.tables.remove(table) {
                    for segment in &segments.segments {
                        retire(batch, segment)?;
                    }
                    batch.delete(Partition::Cold, state_key(*table));
                    retired.extend(segments.segments.iter().map(Arc::clone));
                    // Requests the removal of published manifests. Tables without segments should have none.
                    if let Some(segment) = retired.first() {
                        after.put_unpublished(batch, *table, seq, &segment.storage);
                    }
                }
            }
            ColdChange::Published { table, seq } => {
                if after.unpublished.get(table).is_some_and(|due| due.seq == *seq) {
                    batch.delete(Partition::Cold, tagged(b'P', table.0));
                    after.unpublished.remove(table);
                }
            }
            ColdChange::Removed(segment) => batch.delete(Partition::Cold, tagged(b'G', segment.0)),
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
        let value = [segments.flushed.0.to_be_bytes(), segments.moved.0.to_be_bytes()].concat();
        batch.put(Partition::Cold, state_key(table), value);
        if let Some(segment) = segments.segments.last().or(retired.first()) {
            self.put_unpublished(batch, table, seq, &segment.storage);
        }
        self.tables.insert(table, Arc::new(segments));
    }

    fn put_unpublished(&mut self, batch: &mut WriteBatch, table: TableId, seq: Seq, storage: &Arc<str>) {
        let value = [&seq.0.to_be_bytes(), storage.as_bytes()].concat();
        batch.put(Partition::Cold, tagged(b'P', table.0), value);
        self.unpublished.insert(table, Unpublished { seq, storage: Arc::clone(storage) });
    }

    fn add(
        &mut self,
        batch: &mut WriteBatch,
        segments: &mut TableSegments,
        added: &[NewSegment],
    ) -> Result<()> {
        for new in added {
            let id = new.segment.id;
            batch.put(Partition::Cold, segment_key(new.segment.table, id), json(&new.segment)?);
            batch.put(Partition::Cold, filter_key(id), new.filter.clone());
            segments.segments.push(Arc::clone(&new.segment));
            self.next = self.next.max(SegmentId(id.0 + 1));
        }
        batch.put(Partition::Cold, NEXT_KEY, self.next.0.to_be_bytes().to_vec());
        Ok(())
    }
}

impl TableSegments {
    fn remove(&mut self, id: SegmentId) -> Result<Arc<Segment>> {
        let position = self.segments.iter().position(|segment| segment.id == id);
        let position = position.ok_or_else(|| Error::conflict("a segment to merge is no more"))?;
        self.deleted.remove(&id);
        Ok(self.segments.remove(position))
    }

    fn fold(&mut self, batch: &mut WriteBatch, segment: SegmentId, positions: &RoaringBitmap) -> Result<()> {
        let before = self.deleted.get(&segment);
        let after = before.map_or_else(|| positions.clone(), |before| &**before | positions);
        batch.put(Partition::Cold, tagged(b'D', segment.0), portable(&after)?);
        for position in positions {
            batch.delete(Partition::Cold, mark_key(Place { segment, position }));
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
        format!("storage \"{storage}\" still has objects of tables that were dropped or merged"),
    )
    .hint("they are removed by themselves; try again in a moment")
}

/// Returns a deletion vector in Roaring's portable format.
///
/// # Errors
/// XX000, but never: writing to memory does not fail.
pub fn portable(positions: &RoaringBitmap) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(positions.serialized_size());
    positions
        .serialize_into(&mut bytes)
        .map_err(|error| Error::internal("a deletion vector cannot be written").source(error))?;
    Ok(bytes)
}

fn retire(batch: &mut WriteBatch, segment: &Segment) -> Result<()> {
    batch.delete(Partition::Cold, segment_key(segment.table, segment.id));
    batch.delete(Partition::Cold, filter_key(segment.id));
    batch.delete(Partition::Cold, tagged(b'D', segment.id.0));
    batch.delete_range(Partition::Cold, KeyRange::prefix(tagged(b'M', segment.id.0)));
    batch.put(Partition::Cold, tagged(b'G', segment.id.0), json(segment)?);
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
    let mut tables: std::collections::BTreeMap<TableId, TableSegments> = std::collections::BTreeMap::new();
    let mut retired = Vec::new();
    let mut deleted = HashMap::new();
    for tag in [b'D', b'F', b'G', b'N', b'P', b'S'] {
        storage.visit(Partition::Cold, KeyRange::prefix([tag]), Direction::Forward, &mut |key, value| {
            match tag {
                b'D' => {
                    let positions = RoaringBitmap::deserialize_from(value).map_err(|_| damaged())?;
                    let segment = SegmentId(number(key.get(1..).unwrap_or_default())?);
                    deleted.insert(segment, Arc::new(positions));
                }
                b'P' => {
                    let (by, storage) = value.split_at_checked(8).ok_or_else(damaged)?;
                    let storage = Arc::from(std::str::from_utf8(storage).map_err(|_| damaged())?);
                    let table = TableId(number(key.get(1..).unwrap_or_default())?);
                    manifest.unpublished.insert(table, Unpublished { seq: seq(by)?, storage });
                }
                b'F' => {
                    let (flushed, moved) = value.split_at_checked(8).ok_or_else(damaged)?;
                    let table = tables.entry(TableId(number(key.get(1..).unwrap_or_default())?)).or_default();
                    (table.flushed, table.moved) = (seq(flushed)?, seq(moved)?);
                }
                b'G' => retired.push(shared(segment(value)?)),
                b'N' => manifest.next = SegmentId(number(value)?),
                _ => {
                    let segment = segment(value)?;
                    if *key != segment_key(segment.table, segment.id) {
                        return Err(damaged());
                    }
                    let segment = shared(segment);
                    let table = tables.entry(segment.table).or_default();
                    table.deleted.extend(deleted.remove_entry(&segment.id));
                    table.segments.push(segment);
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
    }
    manifest.store.retire(retired);
    manifest.tables = tables.into_iter().map(|(table, segments)| (table, Arc::new(segments))).collect();
    Ok(manifest)
}

/// Returns descriptions of the stored entries that do not fit `manifest`, which was loaded from them.
///
/// # Errors
/// XX001 when an entry is damaged, and any error of the storage.
pub fn misfits(storage: &dyn StorageSnapshot, manifest: &Manifest) -> Result<Vec<String>> {
    let segments: HashMap<SegmentId, &Arc<Segment>> =
        manifest.all_segments().map(|segment| (segment.id, segment)).collect();
    let (mut misfits, mut unknown, mut homeless, mut filters) = (Vec::new(), 0_u64, 0_u64, HashSet::new());
    storage.visit(Partition::Cold, KeyRange::all(), Direction::Forward, &mut |key, _| {
        let named = || number(key.get(1..5).unwrap_or_default()).map(SegmentId);
        match key.first() {
            Some(b'F' | b'G' | b'N' | b'P' | b'S') => {}
            Some(b'K') if segments.contains_key(&named()?) => drop(filters.insert(named()?)),
            Some(b'D' | b'M') if segments.contains_key(&named()?) => {}
            Some(b'D' | b'K' | b'M') => homeless += 1,
            _ => unknown += 1,
        }
        Ok(ControlFlow::Continue(()))
    })?;
    for segment in segments.values().filter(|segment| !filters.contains(&segment.id)) {
        misfits.push(format!("segment \"{}\" has no key filter", segment.path));
    }
    for segment in segments.values().filter(|segment| segment.id >= manifest.next) {
        misfits.push(format!("segment \"{}\" has a number that is still to be given out", segment.path));
    }
    if homeless > 0 {
        misfits.push(format!(
            "{homeless} filters, marks and deletion vectors are of segments that do not exist"
        ));
    }
    if unknown > 0 {
        misfits.push(format!("partition \"cold\" has {unknown} keys that mean nothing"));
    }
    Ok(misfits)
}

/// Assigns the segments of a restored store, whose objects are in the data directory, to the storage `local`,
/// and cancels pending publications.
///
/// # Errors
/// XX001 when a record is damaged, and any error of the storage.
pub fn adopt(storage: &dyn StorageSnapshot, batch: &mut WriteBatch) -> Result<()> {
    let records = KeyRange::prefix([b'S']);
    storage.visit(Partition::Cold, records, Direction::Forward, &mut |key, value| {
        let segment = Segment { storage: Arc::from(STORAGE_LOCAL), ..segment(value)? };
        batch.put(Partition::Cold, key.to_vec(), json(&segment)?);
        Ok(ControlFlow::Continue(()))
    })?;
    batch.delete_range(Partition::Cold, KeyRange::prefix([b'P']));
    Ok(())
}

/// Returns whether a `Cold` key only requests the removal of an object. Copies of the store omit such keys.
pub fn is_removal(key: &[u8]) -> bool {
    key.first() == Some(&b'G')
}

/// Marks the row at `place` as overwritten or deleted by the commit `by`.
pub fn put_mark(batch: &mut WriteBatch, place: Place, by: Seq) {
    batch.put(Partition::Cold, mark_key(place), by.0.to_be_bytes().to_vec());
}

/// Returns the marks of a segment from commits later than `after`: ascending positions and their commits.
///
/// # Errors
/// XX001 when a mark is damaged, and any error of the storage.
pub fn marked_after(
    storage: &dyn StorageSnapshot,
    segment: SegmentId,
    after: Seq,
) -> Result<Vec<(u32, Seq)>> {
    let mut marks = Vec::new();
    visit_marks(storage, segment, &mut |position, by| {
        if by > after {
            marks.push((position, by));
        }
        ControlFlow::Continue(())
    })?;
    Ok(marks)
}

fn visit_marks(
    storage: &dyn StorageSnapshot,
    segment: SegmentId,
    visit: &mut dyn FnMut(u32, Seq) -> ControlFlow<()>,
) -> Result<()> {
    let range = KeyRange::prefix(tagged(b'M', segment.0));
    storage.visit(Partition::Cold, range, Direction::Forward, &mut |key, value| {
        Ok(visit(number(key.get(5..).unwrap_or_default())?, seq(value)?))
    })
}

fn tagged(tag: u8, number: u32) -> Vec<u8> {
    [&[tag][..], &number.to_be_bytes()].concat()
}

fn state_key(table: TableId) -> Vec<u8> {
    tagged(b'F', table.0)
}

pub(super) fn filter_key(segment: SegmentId) -> Vec<u8> {
    tagged(b'K', segment.0)
}

fn segment_key(table: TableId, segment: SegmentId) -> Vec<u8> {
    [tagged(b'S', table.0), segment.0.to_be_bytes().to_vec()].concat()
}

fn mark_key(place: Place) -> Vec<u8> {
    [tagged(b'M', place.segment.0), place.position.to_be_bytes().to_vec()].concat()
}

fn number(bytes: &[u8]) -> Result<u32> {
    Ok(u32::from_be_bytes(bytes.try_into().map_err(|_| damaged())?))
}

fn seq(bytes: &[u8]) -> Result<Seq> {
    Ok(Seq(u64::from_be_bytes(bytes.try_into().map_err(|_| damaged())?)))
}

fn segment(value: &[u8]) -> Result<Segment> {
    serde_json::from_slice(value).map_err(|error| damaged().source(error))
}

fn json(segment: &Segment) -> Result<Vec<u8>> {
    serde_json::to_vec(segment)
        .map_err(|error| Error::internal("a segment's record cannot be written").source(error))
}

fn damaged() -> Error {
    Error::corruption("the manifest of the segments is damaged")
        .hint("restore the data directory from a backup")
}
