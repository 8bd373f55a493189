//! Which segments a snapshot has, and what is stored about them in the `Cold` partition:
//!
//! ```text
//! 'F' table u32 BE                      -> flushed seq u64 BE | moved seq u64 BE
//! 'G' segment u32 BE                    -> JSON of a segment that is no more: its object is to be removed
//! 'K' segment u32 BE                    -> the bits of the filter over its keys
//! 'M' segment u32 BE | position u32 BE  -> seq u64 BE, the commit that overwrote or deleted the row
//! 'N'                                   -> u32 BE, the next segment's number
//! 'S' table u32 BE | segment u32 BE     -> JSON of a segment
//! ```
//!
//! Invariant: manifest and rows change in the same batch, so in every snapshot of the store each row has one live place.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;

use super::key_index::KeyIndex;
use super::segment::{Place, Segment};
use super::store::SegmentStore;
use crate::error::{Error, Result};
use crate::ids::{SegmentId, Seq, TableId};
use crate::storage::{Direction, KeyRange, Partition, StorageSnapshot, WriteBatch};

const NEXT_KEY: &[u8] = b"N";

/// The segments of one table.
#[derive(Clone, Debug, Default)]
pub struct TableSegments {
    /// In the order they were made.
    pub segments: Vec<Arc<Segment>>,
    /// Hot rows of commits up to this one are in a segment, or overwritten since: what is still stored of them is ignored.
    pub flushed: Seq,
    /// The last commit that moved rows from one place to another.
    pub moved: Seq,
}

/// The segments of a snapshot. A new one shares everything with the one before that did not change.
#[derive(Clone, Debug)]
pub struct Manifest {
    store: Arc<SegmentStore>,
    tables: OrdMap<TableId, Arc<TableSegments>>,
    /// No segment has this number or a higher one.
    next: SegmentId,
}

/// A segment to add.
#[derive(Clone, Debug)]
pub struct NewSegment {
    /// What is known of it.
    pub segment: Arc<Segment>,
    /// The filter over its keys.
    pub filter: Bytes,
    /// The keys of its rows, by position.
    pub keys: Arc<KeyIndex>,
}

/// A change of the manifest, part of a commit.
#[derive(Clone, Debug)]
pub enum ColdChange {
    /// The hot rows of a table up to a commit are now in segments.
    Flush {
        /// The table.
        table: TableId,
        /// The last commit whose rows are in them.
        through: Seq,
        /// The segments; none when all those rows are gone.
        added: Vec<NewSegment>,
    },
    /// Segments of a table are merged into others.
    Compact {
        /// The table.
        table: TableId,
        /// The old segments.
        removed: Vec<SegmentId>,
        /// The new ones.
        added: Vec<NewSegment>,
    },
    /// A table is no more.
    DropTable(TableId),
    /// The object of a segment that is no more has been removed.
    Removed(SegmentId),
}

impl Manifest {
    /// Of a database without segments.
    pub fn empty(store: Arc<SegmentStore>) -> Self {
        Self { store, tables: OrdMap::new(), next: SegmentId(1) }
    }

    /// Where the objects are.
    pub fn store(&self) -> &Arc<SegmentStore> {
        &self.store
    }

    /// The segments of a table; `None` when it never had any.
    pub fn table(&self, table: TableId) -> Option<&Arc<TableSegments>> {
        self.tables.get(&table)
    }

    /// The number of the next segment.
    pub fn next(&self) -> SegmentId {
        self.next
    }

    /// Hot rows of the table up to this commit are to be ignored.
    pub fn flushed(&self, table: TableId) -> Seq {
        self.table(table).map_or(Seq::ZERO, |segments| segments.flushed)
    }

    /// The last commit that moved rows of the table.
    pub fn moved(&self, table: TableId) -> Seq {
        self.table(table).map_or(Seq::ZERO, |segments| segments.moved)
    }

    /// The segments of a table, in the order they were made.
    pub fn segments(&self, table: TableId) -> &[Arc<Segment>] {
        self.table(table).map_or(&[], |segments| &segments.segments)
    }

    /// The segment of a table that has this number.
    pub fn segment(&self, table: TableId, id: SegmentId) -> Option<&Arc<Segment>> {
        self.segments(table).iter().find(|segment| segment.id == id)
    }

    /// The manifest after `change`, which is part of commit `seq`, and what it writes into `batch`. Segments that are no more are
    /// given back: the caller retires them once the batch is written.
    ///
    /// # Errors
    /// XX000 for a change that does not fit.
    pub fn apply(
        &self,
        change: &ColdChange,
        seq: Seq,
        batch: &mut WriteBatch,
    ) -> Result<(Self, Vec<Arc<Segment>>)> {
        let mut after = self.clone();
        let mut retired = Vec::new();
        match change {
            ColdChange::Flush { table, through, added } => {
                let mut segments =
                    self.table(*table).map(|table| TableSegments::clone(table)).unwrap_or_default();
                if *through <= segments.flushed {
                    return Err(Error::internal("a flush goes back behind an earlier one"));
                }
                after.add(batch, &mut segments, added)?;
                (segments.flushed, segments.moved) = (*through, seq);
                put_state(batch, *table, &segments);
                after.tables.insert(*table, Arc::new(segments));
            }
            ColdChange::Compact { table, removed, added } => {
                let mut segments =
                    self.table(*table).map(|table| TableSegments::clone(table)).unwrap_or_default();
                for id in removed {
                    let position = segments.segments.iter().position(|segment| segment.id == *id);
                    let position =
                        position.ok_or_else(|| Error::conflict("a segment to merge is no more"))?;
                    let segment = segments.segments.remove(position);
                    retire(batch, &segment)?;
                    retired.push(segment);
                }
                after.add(batch, &mut segments, added)?;
                segments.moved = seq;
                put_state(batch, *table, &segments);
                after.tables.insert(*table, Arc::new(segments));
            }
            ColdChange::DropTable(table) => {
                if let Some(segments) = after.tables.remove(table) {
                    for segment in &segments.segments {
                        retire(batch, segment)?;
                    }
                    batch.delete(Partition::Cold, state_key(*table));
                    retired.extend(segments.segments.iter().map(Arc::clone));
                }
            }
            ColdChange::Removed(segment) => batch.delete(Partition::Cold, tagged(b'G', segment.0)),
        }
        Ok((after, retired))
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

fn retire(batch: &mut WriteBatch, segment: &Segment) -> Result<()> {
    batch.delete(Partition::Cold, segment_key(segment.table, segment.id));
    batch.delete(Partition::Cold, filter_key(segment.id));
    batch.delete_range(Partition::Cold, KeyRange::prefix(tagged(b'M', segment.id.0)));
    batch.put(Partition::Cold, tagged(b'G', segment.id.0), json(segment)?);
    Ok(())
}

/// What the store says of its segments. Those whose objects are still to be removed are retired.
///
/// # Errors
/// XX001 when the stored bytes are damaged.
pub fn restore(storage: &dyn StorageSnapshot, store: Arc<SegmentStore>) -> Result<Manifest> {
    let mut manifest = Manifest::empty(store);
    let mut tables: std::collections::BTreeMap<TableId, TableSegments> = std::collections::BTreeMap::new();
    let mut retired = Vec::new();
    for tag in [b'F', b'G', b'N', b'S'] {
        storage.visit(Partition::Cold, KeyRange::prefix([tag]), Direction::Forward, &mut |key, value| {
            match tag {
                b'F' => {
                    let (flushed, moved) = value.split_at_checked(8).ok_or_else(damaged)?;
                    let table = tables.entry(TableId(number(key.get(1..).unwrap_or_default())?)).or_default();
                    (table.flushed, table.moved) = (seq(flushed)?, seq(moved)?);
                }
                b'G' => retired.push(Arc::new(segment(value)?)),
                b'N' => manifest.next = SegmentId(number(value)?),
                _ => {
                    let segment = segment(value)?;
                    if *key != segment_key(segment.table, segment.id) {
                        return Err(damaged());
                    }
                    tables.entry(segment.table).or_default().segments.push(Arc::new(segment));
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
    }
    manifest.store.retire(retired);
    manifest.tables = tables.into_iter().map(|(table, segments)| (table, Arc::new(segments))).collect();
    Ok(manifest)
}

/// Marks the row at a place as overwritten or deleted by a commit.
pub fn put_mark(batch: &mut WriteBatch, place: Place, by: Seq) {
    batch.put(Partition::Cold, mark_key(place), by.0.to_be_bytes().to_vec());
}

/// Whether the row at a place is gone.
///
/// # Errors
/// Whatever the storage returns.
pub fn is_marked(storage: &dyn StorageSnapshot, place: Place) -> Result<bool> {
    Ok(storage.get(Partition::Cold, &mark_key(place))?.is_some())
}

/// The positions of a segment whose rows are gone, ascending.
///
/// # Errors
/// XX001 when a mark is damaged, and whatever the storage returns.
pub fn marked(storage: &dyn StorageSnapshot, segment: SegmentId) -> Result<Vec<u32>> {
    let marks = marked_after(storage, segment, Seq::ZERO)?;
    Ok(marks.into_iter().map(|(position, _)| position).collect())
}

/// The marks of a segment that commits after `seq` have made: positions, ascending, each with its commit.
///
/// # Errors
/// As [`marked`].
pub fn marked_after(
    storage: &dyn StorageSnapshot,
    segment: SegmentId,
    after: Seq,
) -> Result<Vec<(u32, Seq)>> {
    let mut marks = Vec::new();
    let range = KeyRange::prefix(tagged(b'M', segment.0));
    storage.visit(Partition::Cold, range, Direction::Forward, &mut |key, value| {
        let by = seq(value)?;
        if by > after {
            marks.push((number(key.get(5..).unwrap_or_default())?, by));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(marks)
}

fn tagged(tag: u8, number: u32) -> Vec<u8> {
    [&[tag][..], &number.to_be_bytes()].concat()
}

fn state_key(table: TableId) -> Vec<u8> {
    tagged(b'F', table.0)
}

fn put_state(batch: &mut WriteBatch, table: TableId, segments: &TableSegments) {
    let value = [segments.flushed.0.to_be_bytes(), segments.moved.0.to_be_bytes()].concat();
    batch.put(Partition::Cold, state_key(table), value);
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
