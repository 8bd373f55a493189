//! The hot rows of a table into segments.
//!
//! Rows come from the store in key order, which is the order of a segment, so they are written as they come, a block at a time.
//!
//! Invariant: the segments hold exactly the rows of the snapshot that are not in a segment yet, each once.

use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeBinaryArray, Int64Array, RecordBatch};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::source::row_decoder;
use crate::cold_storage::{NewSegment, Segment, SegmentStore, SegmentWriter, WrittenSegment};
use crate::commit::Snapshot;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::{SegmentId, Seq};
use crate::schema_registry::{ScopeKind, TableSchemas};
use crate::storage::keys::{SCOPE_PREFIX_BYTES, table_and_scope, table_prefix};
use crate::storage::rows::RowHeader;
use crate::storage::{Direction, KeyRange, Partition, blocking};

/// Rows decoded and written at once.
const CHUNK_ROWS: usize = 8_192;
/// A chunk is ended when its stored rows have this many bytes.
const CHUNK_BYTES_MAX: usize = 8 << 20;
/// The most rows of a segment; the keys of all of them are in memory until it is committed.
const SEGMENT_ROWS_MAX: usize = 1 << 20;
/// A segment is ended when it has this many bytes.
const SEGMENT_BYTES_MAX: usize = 256 << 20;

/// The segments of one flush.
pub struct Flushed {
    /// Ready to be committed.
    pub segments: Vec<NewSegment>,
    /// Rows in them.
    pub rows: u64,
    /// Their length.
    pub bytes: u64,
}

/// Writes the rows of `snapshot` that are hot to segments, which are then on stable storage and verified. `next_id` numbers them.
///
/// # Errors
/// 57014 when `stop` is cancelled, 58030 when the storage of the segments fails; XX001 for damaged rows, or for a segment that does
/// not read as it was written.
pub async fn flush(
    snapshot: &Arc<Snapshot>,
    schemas: &Arc<TableSchemas>,
    next_id: impl Fn() -> SegmentId + Send + 'static,
    stop: CancellationToken,
    now_us: i64,
) -> Result<Flushed> {
    let store = Arc::clone(snapshot.cold.store());
    let written = {
        let (snapshot, schemas) = (Arc::clone(snapshot), Arc::clone(schemas));
        blocking(move || Writer::new(&snapshot, &schemas, &next_id).write(&stop)).await?
    };
    let mut flushed = Flushed { segments: Vec::new(), rows: 0, bytes: 0 };
    for (id, path, mut written) in written {
        store.publish(&path, &mut written).await?;
        let new = describe(snapshot, schemas, id, path, written, now_us)?;
        store.verify(&new.segment).await?;
        flushed.rows += u64::from(new.segment.rows);
        flushed.bytes += new.segment.bytes;
        flushed.segments.push(new);
    }
    Ok(flushed)
}

fn describe(
    snapshot: &Snapshot,
    schemas: &TableSchemas,
    id: SegmentId,
    path: String,
    written: WrittenSegment,
    now_us: i64,
) -> Result<NewSegment> {
    let keys = Arc::new(written.keys);
    let segment = Segment {
        id,
        table: schemas.definition.id,
        version: schemas.definition.version,
        path,
        rows: u32::try_from(keys.len()).map_err(|_| Error::internal("a segment has too many rows"))?,
        bytes: written.bytes,
        first_key: keys.first().unwrap_or_default().to_vec(),
        last_key: keys.last().unwrap_or_default().to_vec(),
        through: snapshot.seq,
        created_at: now_us,
        checksums: written.checksums,
    };
    Ok(NewSegment { segment: Arc::new(segment), filter: written.filter, keys })
}

struct Writer<'a, F> {
    snapshot: &'a Snapshot,
    schemas: &'a Arc<TableSchemas>,
    next_id: &'a F,
    open: Option<(SegmentId, String, SegmentWriter)>,
    done: Vec<(SegmentId, String, WrittenSegment)>,
}

impl<'a, F: Fn() -> SegmentId> Writer<'a, F> {
    fn new(snapshot: &'a Snapshot, schemas: &'a Arc<TableSchemas>, next_id: &'a F) -> Self {
        Self { snapshot, schemas, next_id, open: None, done: Vec::new() }
    }

    fn write(mut self, stop: &CancellationToken) -> Result<Vec<(SegmentId, String, WrittenSegment)>> {
        let table = self.schemas.definition.id;
        let mut rest = Some(KeyRange::prefix(table_prefix(table)));
        while let Some(range) = rest {
            if stop.is_cancelled() {
                return Err(Error::new(
                    ErrorKind::Cancelled,
                    SqlState::QUERY_CANCELED,
                    "the flush was ended",
                )
                .hint("the rows stay where they are"));
            }
            rest = self.write_chunk(range)?;
        }
        self.end_segment()?;
        Ok(self.done)
    }

    /// Writes the first rows of a range, and gives what is left of it.
    fn write_chunk(&mut self, range: KeyRange) -> Result<Option<KeyRange>> {
        let flushed = self.snapshot.cold.flushed(self.schemas.definition.id);
        let shown: Vec<usize> = (0..self.schemas.full.fields().len()).collect();
        let mut decoder = row_decoder(&self.schemas.definition, &shown)?;
        let (mut keys, mut bytes, mut visits) = (Vec::new(), 0, 0);
        let mut stopped_at = None;
        let end = range.end.clone();
        self.snapshot.storage.visit(Partition::Rows, range, Direction::Forward, &mut |key, row| {
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
            columns.extend(self.system_columns(&keys)?);
            let batch = RecordBatch::try_new(Arc::clone(&self.schemas.segment), columns)?;
            self.push(&batch, &keys)?;
        }
        Ok(stopped_at.map(|start| KeyRange { start, end }))
    }

    /// The columns a segment has beside those of the full schema.
    fn system_columns(&self, keys: &[Bytes]) -> Result<Vec<ArrayRef>> {
        let definition = &self.schemas.definition;
        let damaged = || Error::corruption("a stored row key is damaged");
        let mut columns: Vec<ArrayRef> = Vec::new();
        if definition.options.scope == ScopeKind::User {
            let owners = keys.iter().map(|key| {
                let (_, scope) = table_and_scope(key).ok_or_else(damaged)?;
                i64::try_from(scope.0).map_err(|_| damaged())
            });
            columns.push(Arc::new(Int64Array::from(owners.collect::<Result<Vec<_>>>()?)));
        }
        if !definition.has_key() {
            let ids = keys.iter().map(|key| key.get(SCOPE_PREFIX_BYTES..).unwrap_or_default());
            columns.push(Arc::new(FixedSizeBinaryArray::try_from_iter(ids)?));
        }
        Ok(columns)
    }

    fn push(&mut self, batch: &RecordBatch, keys: &[Bytes]) -> Result<()> {
        if self.open.is_none() {
            let id = (self.next_id)();
            let path = SegmentStore::path(self.schemas.definition.id, self.snapshot.epoch, id);
            let sink = self.snapshot.cold.store().create(&path)?;
            let writer = SegmentWriter::new(sink, Arc::clone(&self.schemas.segment))?;
            self.open = Some((id, path, writer));
        }
        let Some((_, _, writer)) = &mut self.open else { return Ok(()) };
        writer.push(batch, keys)?;
        if writer.rows() >= SEGMENT_ROWS_MAX || writer.bytes() >= SEGMENT_BYTES_MAX {
            self.end_segment()?;
        }
        Ok(())
    }

    fn end_segment(&mut self) -> Result<()> {
        if let Some((id, path, writer)) = self.open.take() {
            self.done.push((id, path, writer.finish()?));
        }
        Ok(())
    }
}

/// The keys of stored rows of a table that are in segments by now, from `start` on, and where to go on looking.
///
/// # Errors
/// XX001 for damaged rows, and whatever the storage returns.
pub fn flushed_keys(
    snapshot: &Snapshot,
    range: KeyRange,
    flushed: Seq,
) -> Result<(Vec<Bytes>, Option<KeyRange>)> {
    /// Rows one commit removes.
    const KEYS_MAX: usize = 4_096;
    /// Rows looked at for one.
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
