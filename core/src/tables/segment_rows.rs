//! Finds the cold rows of key ranges: their positions in segments.
//!
//! Segments are sorted by key, so key ranges become position ranges, without the deleted rows.
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
use crate::schema_registry::TableDefinition;
use crate::storage::KeyRange;

/// Returns the cold rows of `ranges`, which are ascending and disjoint.
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
    let deleted = snapshot.cold.deleted_positions(&snapshot.storage, &segments).await?;
    let mut rows = Vec::with_capacity(segments.len());
    for (segment, deleted) in segments.iter().zip(deleted) {
        let mut deleted = match overlay {
            Some(overlay) => overlay.unite_deleted(segment.id, deleted),
            None => deleted,
        };
        let selected = positions(snapshot, segment, &keys, ranges).await?;
        // Both are ascending. What a scan keeps is what it reads.
        let mut wanted = selected.iter().peekable();
        deleted.retain(|position| {
            while wanted.next_if(|range| range.end <= *position).is_some() {}
            wanted.peek().is_some_and(|range| range.contains(position))
        });
        deleted.shrink_to_fit();
        rows.push(SegmentRows { segment: segment.id, selected, deleted });
    }
    Ok(rows)
}

/// Returns the positions of the ranges in a segment, ascending.
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
    positions.sort_by_key(|range| range.start);
    Ok(positions)
}
