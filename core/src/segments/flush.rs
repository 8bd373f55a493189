//! Writes the hot rows of a table to segments.
//!
//! The store returns rows in the key order of segments, so they are written as they come, in chunks.
//!
//! Invariant: the segments contain exactly the rows of the snapshot that are not in a segment yet, each once.

use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::RecordBatch;
use bytes::Bytes;

use super::control::Control;
use super::files::{
    CHUNK_BYTES_MAX, CHUNK_ROWS, PublishedSegments, SegmentsWriter, WrittenSegments, publish_segments,
};
use crate::commit::Snapshot;
use crate::error::Result;
use crate::ids::{SegmentId, Seq};
use crate::schema_registry::TableSchemas;
use crate::storage::keys::table_prefix;
use crate::storage::rows::RowHeader;
use crate::storage::{Direction, KeyRange, Partition, blocking};
use crate::tables::row_decoder;

/// Writes the hot rows of `snapshot` to segments, which are durable and verified on return; `next_id` gives
/// their ids.
///
/// # Errors
/// 57014 when cancelled, 58030 when the storage fails, XX001 for damaged rows or segments.
pub async fn flush(
    snapshot: &Arc<Snapshot>,
    schemas: &Arc<TableSchemas>,
    next_id: impl Fn() -> SegmentId + Send + Sync + 'static,
    control: &Control,
    now_us: i64,
) -> Result<PublishedSegments> {
    let writer = SegmentsWriter::new(snapshot, schemas, Arc::new(next_id), control)?;
    let written = blocking(move || write_hot(writer)).await?;
    publish_segments(snapshot, schemas, written, control, now_us).await
}

fn write_hot(mut writer: SegmentsWriter) -> Result<WrittenSegments> {
    let mut rest = Some(KeyRange::prefix(table_prefix(writer.schemas.definition.id)));
    while let Some(range) = rest {
        rest = write_range(&mut writer, range)?;
    }
    writer.finish()
}

/// Writes the first hot rows of a key range; returns the rest of the range.
fn write_range(writer: &mut SegmentsWriter, range: KeyRange) -> Result<Option<KeyRange>> {
    writer.control.check()?;
    let flushed = writer.snapshot.cold.flushed(writer.schemas.definition.id);
    let shown: Vec<usize> = (0..writer.schemas.full.fields().len()).collect();
    let mut decoder = row_decoder(&writer.schemas.definition, &shown)?;
    let (mut keys, mut bytes, mut visits) = (Vec::new(), 0, 0);
    let mut stopped_at = None;
    let end = range.end.clone();
    writer.snapshot.storage.visit(Partition::Rows, range, Direction::Forward, &mut |key, row| {
        visits += 1;
        let (header, _) = RowHeader::read(row)?;
        if header.seq > flushed {
            decoder.push(key, row)?;
            keys.push(Bytes::copy_from_slice(key));
            bytes += row.len();
        }
        if keys.len() >= CHUNK_ROWS || bytes >= CHUNK_BYTES_MAX || visits >= 8 * CHUNK_ROWS {
            stopped_at = Some([key, &[0]].concat());
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    if !keys.is_empty() {
        let mut columns = decoder.finish()?;
        columns.extend(writer.system_columns(&keys)?);
        let batch = RecordBatch::try_new(Arc::clone(writer.schemas.segment()?.schema()), columns)?;
        writer.push(&batch, &keys)?;
    }
    Ok(stopped_at.map(|start| KeyRange { start, end }))
}

/// Returns keys of stored rows in `range` that are already in segments, and the rest of the range.
///
/// # Errors
/// XX001 for damaged rows, and any error of the storage.
pub fn flushed_keys(
    snapshot: &Snapshot,
    range: KeyRange,
    flushed: Seq,
) -> Result<(Vec<Bytes>, Option<KeyRange>)> {
    /// Rows that one commit removes.
    const KEYS_MAX: usize = 4_096;
    /// Rows visited for one commit.
    const VISITS_MAX: usize = 65_536;
    let (mut keys, mut visits, mut stopped_at) = (Vec::new(), 0, None);
    let end = range.end.clone();
    snapshot.storage.visit(Partition::Rows, range, Direction::Forward, &mut |key, row| {
        visits += 1;
        if RowHeader::read(row)?.0.seq <= flushed {
            keys.push(Bytes::copy_from_slice(key));
        }
        if keys.len() >= KEYS_MAX || visits >= VISITS_MAX {
            stopped_at = Some([key, &[0]].concat());
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok((keys, stopped_at.map(|start| KeyRange { start, end })))
}
