//! Finds the cold rows of key ranges: their positions in segments.
//!
//! Segments are sorted by key, so key ranges become position ranges, without the deleted rows. A range costs
//! as much as its own deleted rows, not as those of the whole segment.
//!
//! Invariant: the positions are exactly the live rows of the ranges in the snapshot, so a filter that became
//! a range need not be evaluated again. The rows that an overlay replaces count as deleted.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::description::SegmentRows;
use super::overlay::Overlay;
use crate::cold_storage::{Segment, SegmentKeys};
use crate::commit::Snapshot;
use crate::error::Result;
use crate::ids::TableId;
use crate::schema_registry::TableDefinition;
use crate::storage::{KeyRange, blocking};

/// Returns the cold rows of `ranges`, which are ascending and disjoint; only of segments that have some.
///
/// # Errors
/// XX001 when a segment is damaged, 58030 when it cannot be read.
pub(super) async fn segment_rows(
    snapshot: &Snapshot,
    definition: &TableDefinition,
    ranges: &[KeyRange],
    overlay: Option<&Overlay>,
) -> Result<Vec<SegmentRows>> {
    let overlaps = |segment: &&Arc<Segment>| ranges.iter().any(|range| segment.overlaps(range));
    let segments: Vec<Arc<Segment>> =
        snapshot.cold.segments(definition.id).iter().filter(overlaps).map(Arc::clone).collect();
    if segments.is_empty() {
        return Ok(Vec::new());
    }
    let keys = definition.segment_keys()?;
    let mut rows = Vec::with_capacity(segments.len());
    for segment in &segments {
        let selected = positions(snapshot, segment, &keys, ranges).await?;
        if !selected.is_empty() {
            rows.push(SegmentRows { segment: segment.id, selected, deleted: Vec::new() });
        }
    }
    let mut rows = find_deleted(snapshot, definition.id, rows).await?;
    if let Some(overlay) = overlay {
        for rows in &mut rows {
            rows.deleted = overlay.unite_deleted(rows.segment, std::mem::take(&mut rows.deleted));
        }
    }
    Ok(rows)
}

/// Adds the positions of the deleted rows among the selected ones.
async fn find_deleted(
    snapshot: &Snapshot,
    table: TableId,
    mut rows: Vec<SegmentRows>,
) -> Result<Vec<SegmentRows>> {
    if rows.is_empty() {
        return Ok(rows);
    }
    let (cold, storage) = (Arc::clone(&snapshot.cold), Arc::clone(&snapshot.storage));
    blocking(move || {
        for rows in &mut rows {
            rows.deleted = cold.deleted_in(&*storage, table, rows.segment, &rows.selected)?;
        }
        Ok(rows)
    })
    .await
}

/// Returns the positions of the ranges in a segment, ascending; no empty ranges.
async fn positions(
    snapshot: &Snapshot,
    segment: &Arc<Segment>,
    keys: &SegmentKeys,
    ranges: &[KeyRange],
) -> Result<Vec<Range<u32>>> {
    if ranges.iter().any(|range| segment.is_within(range)) {
        return Ok(vec![segment.positions()]);
    }
    let store = snapshot.cold.store();
    let (points, ranges): (Vec<&KeyRange>, Vec<&KeyRange>) =
        ranges.iter().filter(|range| segment.overlaps(range)).partition(|range| range.is_point());
    let wanted: Vec<Bytes> = points.iter().map(|range| Bytes::copy_from_slice(&range.start)).collect();
    let found = store.find(&snapshot.storage, segment, keys, &wanted).await?;
    let mut positions: Vec<Range<u32>> =
        found.into_iter().flatten().map(|position| position..position + 1).collect();
    for range in ranges {
        positions.push(store.positions(segment, keys, range).await?);
    }
    positions.retain(|range| !range.is_empty());
    positions.sort_by_key(|range| range.start);
    Ok(positions)
}
