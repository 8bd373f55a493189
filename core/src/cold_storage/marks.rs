//! Marks: the tombstones of cold rows.
//!
//! Overwriting or deleting a cold row writes a mark, which is cheap to write. Later, marks move into the
//! segment's deletion vector, which is cheap to read. A row is deleted when either has its position.
//!
//! Invariant: a mark has the seq of the commit that overwrote or deleted its row.

use std::ops::ControlFlow;

use super::manifest_records as records;
use super::segment::Place;
use crate::error::Result;
use crate::ids::{SegmentId, Seq};
use crate::storage::{Direction, Partition, StorageSnapshot, WriteBatch};

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
    visit_marks(storage, segment, &mut |position, by| {
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
    visit_marks(storage, segment, &mut |position, _| {
        marks.push(position);
        if marks.len() < count { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(marks)
}

/// Returns whether the row at `place` has a mark.
pub(super) fn is_marked(storage: &dyn StorageSnapshot, place: Place) -> Result<bool> {
    Ok(storage.get(Partition::Cold, &records::mark_key(place))?.is_some())
}

fn visit_marks(
    storage: &dyn StorageSnapshot,
    segment: SegmentId,
    visit: &mut dyn FnMut(u32, Seq) -> ControlFlow<()>,
) -> Result<()> {
    let range = records::mark_keys(segment);
    storage.visit(Partition::Cold, range, Direction::Forward, &mut |key, value| {
        Ok(visit(records::mark_position(key)?, records::seq(value)?))
    })
}
