//! Compacts segments of a table: which ones, and the commit that replaces them.
//!
//! A compaction works like a flush: it writes segments from a snapshot, and one commit replaces the old ones.
//! These are removed when no snapshot has them any more.
//!
//! Invariant: readers see every row once, before, during and after.

use std::sync::Arc;

use super::flush::commit_segments;
use super::store::JobStore;
use crate::cold_storage::Segment;
use crate::commit::{ColdWrite, Snapshot, WriteSet};
use crate::error::Result;
use crate::failpoint;
use crate::ids::{TableId, UserId};
use crate::schema_registry::SchemaRegistry;
use crate::segments::{Compacted, Control, compact};

/// Segments with fewer rows are small.
const SMALL_ROWS: u32 = 128 << 10;
/// A table with this many small segments is compacted.
const SMALL_SEGMENTS_MAX: usize = 8;
/// Segments with at least this many bytes are not small, however few rows they have.
const SMALL_BYTES: u64 = 64 << 20;
/// The limits of one compaction.
const COMPACTION_ROWS_MAX: u64 = 4 << 20;
const COMPACTION_BYTES_MAX: u64 = 512 << 20;
const COMPACTION_SEGMENTS_MAX: usize = 16;

/// Compacts segments of a table; returns the result of the job.
pub(super) async fn compact_segments(
    jobs: &JobStore,
    registry: &SchemaRegistry,
    table: TableId,
    segments: &[Arc<Segment>],
    control: &Control,
) -> Result<String> {
    let committer = &jobs.committer;
    committer.check_disk_space()?;
    let moving = committer.begin_compaction(table)?;
    let snapshot = moving.snapshot();
    let Some(definition) = snapshot.catalog.table_by_id(table) else {
        return Ok("the table was dropped".to_owned());
    };
    // An earlier attempt of unknown outcome may have compacted them.
    let are_there = segments.iter().all(|segment| snapshot.cold.segment(table, segment.id).is_some());
    if segments.is_empty() || !are_there {
        return Ok("nothing to compact".to_owned());
    }
    let schemas = registry.schemas(definition);
    let ids = Arc::clone(committer);
    let now = jobs.clock.now_us();
    let compacted = compact(snapshot, &schemas, segments, move || ids.new_segment_id(), control, now).await?;
    let Compacted { published, places } = compacted;
    let added = published.segments.len();
    let set = WriteSet {
        cold: Some(ColdWrite::Compact {
            table,
            as_of: snapshot.seq,
            removed: segments.iter().map(|segment| segment.id).collect(),
            added: published.segments,
            places: Arc::new(places),
        }),
        ..WriteSet::new(UserId::SYSTEM, snapshot.seq)
    };
    commit_segments(committer, set, published.objects).await?;
    failpoint::step("compact::committed")?;
    Ok(format!(
        "compacted {} segments into {} with {} rows and {} bytes",
        segments.len(),
        added,
        published.rows,
        published.bytes
    ))
}

/// Which segments of a table are compacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Candidates {
    /// Small ones if there are [`SMALL_SEGMENTS_MAX`] of them, and those with a quarter of their rows
    /// deleted.
    Due,
    /// Small ones if there are two of them, and those with any row deleted.
    All,
}

/// Returns the segments to compact; empty if that would change nothing.
pub(super) async fn segments_to_compact(
    snapshot: &Arc<Snapshot>,
    table: TableId,
    candidates: Candidates,
) -> Result<Vec<Arc<Segment>>> {
    let segments = snapshot.cold.segments(table).to_vec();
    let deleted = snapshot.cold.deleted_positions(&snapshot.storage, &segments).await?;
    let is_small = |segment: &Segment| segment.rows < SMALL_ROWS && segment.bytes < SMALL_BYTES;
    let small = segments.iter().filter(|segment| is_small(segment)).count();
    let small_max = if candidates == Candidates::All { 2 } else { SMALL_SEGMENTS_MAX };
    let (mut rows, mut bytes) = (0, 0);
    let chosen: Vec<_> = segments
        .into_iter()
        .zip(deleted)
        .filter(|(segment, deleted)| {
            let share = if candidates == Candidates::All { segment.rows as usize } else { 4 };
            let has_holes = !deleted.is_empty() && deleted.len() * share >= segment.rows as usize;
            has_holes || (small >= small_max && is_small(segment))
        })
        .map(|(segment, _)| segment)
        .take(COMPACTION_SEGMENTS_MAX)
        .take_while(|segment| {
            rows += u64::from(segment.rows);
            bytes += segment.bytes;
            rows <= COMPACTION_ROWS_MAX && bytes <= COMPACTION_BYTES_MAX
        })
        .collect();
    Ok(chosen)
}
