//! Marks: the tombstones of cold rows.
//!
//! Overwriting or deleting a cold row writes a mark, which is cheap to write. Later, marks move into the
//! segment's deletion vector, which is cheap to read. A row is deleted when either has its position.
//!
//! Invariant: a mark has the seq of the commit that overwrote or deleted its row.

use std::ops::{ControlFlow, Range};

use bytes::Bytes;

use super::manifest_records as records;
use super::segment::Place;
use crate::error::Result;
use crate::ids::{SegmentId, Seq};
use crate::storage::{Direction, KeyRange, Partition, StorageSnapshot, WriteBatch};

/// Marks the row at `place` as overwritten or deleted by the commit `by`.
pub fn put_mark(batch: &mut WriteBatch, place: Place, by: Seq) {
    batch.put(Partition::Cold, records::mark_key(place), by.0.to_be_bytes().to_vec());
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
    visit_marks(storage, records::mark_keys(segment), &mut |position, by| {
        if by > after {
            marks.push((position, by));
        }
        ControlFlow::Continue(())
    })?;
    Ok(marks)
}

/// Returns the positions of the first `count` marks of a segment, ascending.
///
/// # Errors
/// XX001 when a mark is damaged, and any error of the storage.
pub fn first_marked(storage: &dyn StorageSnapshot, segment: SegmentId, count: usize) -> Result<Vec<u32>> {
    let mut marks = Vec::new();
    visit_marks(storage, records::mark_keys(segment), &mut |position, _| {
        marks.push(position);
        if marks.len() < count { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(marks)
}

/// Returns the marked positions of a segment in `ranges`, in no order. Marks elsewhere cost nothing.
pub(super) fn marked_in(
    storage: &dyn StorageSnapshot,
    segment: SegmentId,
    ranges: &[Range<u32>],
) -> Result<Vec<u32>> {
    // A query for many keys has many ranges of one position: it asks for those together.
    let (points, ranges): (Vec<&Range<u32>>, Vec<&Range<u32>>) =
        ranges.iter().filter(|range| !range.is_empty()).partition(|range| range.len() == 1);
    let places = points.iter().map(|range| Place { segment, position: range.start });
    let keys: Vec<Bytes> = places.map(|place| Bytes::from(records::mark_key(place))).collect();
    let marks = storage.multi_get(Partition::Cold, &keys)?;
    let marked = points.iter().zip(marks).filter(|(_, mark)| mark.is_some());
    let mut positions: Vec<u32> = marked.map(|(range, _)| range.start).collect();
    for range in ranges {
        visit_marks(storage, records::mark_keys_in(segment, range), &mut |position, _| {
            positions.push(position);
            ControlFlow::Continue(())
        })?;
    }
    Ok(positions)
}

/// Returns whether the row at `place` has a mark.
pub(super) fn is_marked(storage: &dyn StorageSnapshot, place: Place) -> Result<bool> {
    Ok(storage.get(Partition::Cold, &records::mark_key(place))?.is_some())
}

fn visit_marks(
    storage: &dyn StorageSnapshot,
    keys: KeyRange,
    visit: &mut dyn FnMut(u32, Seq) -> ControlFlow<()>,
) -> Result<()> {
    storage.visit(Partition::Cold, keys, Direction::Forward, &mut |key, value| {
        Ok(visit(records::mark_position(key)?, records::seq(value)?))
    })
}
