//! Writes the rows of a large INSERT to segments and, as columns, to the change log.
//!
//! The rows are written once, sorted by key, and never enter the store: they are cold from the beginning.
//! Segments and log are written in parallel, a chunk of rows at a time.
//!
//! Invariant: the segments and the log have the same rows in the same order.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::compute::interleave;
use bytes::Bytes;

use super::control::Control;
use super::files::{
    CHUNK_BYTES_MAX, CHUNK_ROWS, PendingObjects, PublishedSegments, SegmentsWriter, WrittenSegments,
    publish_segments,
};
use crate::change_log::columns_part;
use crate::commit::{LargeInsert, Snapshot};
use crate::error::{Error, Result};
use crate::ids::{ScopeId, SegmentId, Seq};
use crate::schema_registry::TableSchemas;
use crate::storage::blocking;
use crate::storage::keys::hidden_segment_key;
use crate::tables::{RowWriter, batch_value_bytes};

/// Chunks that may wait for the log writer.
const CHUNKS_AHEAD: usize = 2;

/// The rows of one statement for one table and scope.
pub struct NewRows {
    /// Checks the rows and creates their keys.
    pub writer: Arc<RowWriter>,
    /// The owner of the rows.
    pub scope: ScopeId,
    /// The rows, in the visible schema.
    pub batches: Vec<RecordBatch>,
}

/// Writes rows to segments that are on stable storage and verified on return; `next_id` assigns their ids.
/// Keeps `turn` meanwhile, also while a thread writes for a caller that has gone. Returns the insert to
/// commit and its objects, which the caller must keep once a commit may name them.
///
/// # Errors
/// As [`RowWriter::inserts`]; 58030 when the storage of the segments fails.
pub async fn write_segments(
    snapshot: &Arc<Snapshot>,
    schemas: &Arc<TableSchemas>,
    rows: NewRows,
    next_id: impl Fn() -> SegmentId + Send + Sync + 'static,
    now_us: i64,
    turn: impl Send + 'static,
) -> Result<(LargeInsert, PendingObjects)> {
    let control = Control::default();
    let scope = rows.scope;
    let number = next_id();
    let segments = SegmentsWriter::new(snapshot, schemas, Arc::new(next_id), &control)?;
    let table = Arc::clone(schemas);
    let (written, log, turn) = blocking(move || {
        let (written, log) = write(segments, &table, rows, number)?;
        Ok((written, log, turn))
    })
    .await?;
    let PublishedSegments { segments, objects, .. } =
        publish_segments(snapshot, schemas, written, &control, now_us).await?;
    drop(turn);
    Ok((LargeInsert { table: Arc::clone(&schemas.definition), scope, added: segments, log }, objects))
}

fn write(
    segments: SegmentsWriter,
    schemas: &TableSchemas,
    rows: NewRows,
    number: SegmentId,
) -> Result<(WrittenSegments, Vec<Bytes>)> {
    let sorted = Sorted::new(schemas, rows, number)?;
    std::thread::scope(|threads| {
        let (sender, chunks) = sync_channel(CHUNKS_AHEAD);
        let log = threads.spawn(move || write_log(schemas, chunks));
        let segments = sorted.write(segments, schemas, sender);
        let log = log.join().map_err(|_| Error::internal("writing the change log failed"))?;
        Ok((segments?, log?))
    })
}

fn write_log(schemas: &TableSchemas, chunks: Receiver<Chunk>) -> Result<Vec<Bytes>> {
    let definition = &schemas.definition;
    let types: Vec<_> = definition.columns.iter().map(|column| column.ty).collect();
    let part = |(columns, keys): Chunk| columns_part(definition.version, &types, &keys, &columns);
    chunks.into_iter().map(part).collect()
}

/// The columns and keys of some rows.
type Chunk = (Vec<ArrayRef>, Vec<Bytes>);

/// Rows in key order.
struct Sorted {
    batches: Vec<Vec<ArrayRef>>,
    keys: Vec<Vec<Bytes>>,
    /// Batch and row of each row in key order; `None` when the batches are already in order.
    order: Option<Vec<(usize, usize)>>,
    /// Rows of a chunk when `order` is set; otherwise each batch is a chunk.
    chunk_rows: usize,
}

impl Sorted {
    fn new(schemas: &TableSchemas, rows: NewRows, number: SegmentId) -> Result<Self> {
        let definition = &schemas.definition;
        let (mut batches, mut keys, mut bytes) = (Vec::with_capacity(rows.batches.len()), Vec::new(), 0);
        let mut ordinal = 0..;
        for batch in rows.batches.into_iter().filter(|batch| batch.num_rows() > 0) {
            bytes += batch_value_bytes(&batch);
            let columns = rows.writer.columns(&batch)?;
            keys.push(if definition.has_key() {
                rows.writer.keys(rows.scope, &columns)?
            } else {
                let hidden =
                    |ordinal| hidden_segment_key(definition.id, rows.scope, number.0, ordinal).into();
                ordinal.by_ref().take(batch.num_rows()).map(hidden).collect()
            });
            batches.push(columns);
        }
        let row_bytes = bytes / keys.iter().map(Vec::len).sum::<usize>().max(1);
        let chunk_rows = (CHUNK_BYTES_MAX / row_bytes.max(1)).clamp(1, CHUNK_ROWS);
        let mut sorted = Self { batches, keys, order: None, chunk_rows };
        if !sorted.keys.iter().flatten().is_sorted_by(|left, right| left < right) {
            sorted.sort(&rows.writer)?;
        }
        Ok(sorted)
    }

    fn sort(&mut self, writer: &RowWriter) -> Result<()> {
        let places = self.keys.iter().enumerate();
        let mut order: Vec<(usize, usize)> =
            places.flat_map(|(batch, keys)| (0..keys.len()).map(move |row| (batch, row))).collect();
        order.sort_unstable_by(|left, right| self.key(*left).cmp(&self.key(*right)));
        let double = order.windows(2).find(|pair| match pair {
            [left, right] => self.key(*left) == self.key(*right),
            _ => false,
        });
        if let Some(key) = double.and_then(|pair| self.key(*pair.first()?)) {
            return Err(writer.duplicate_key(key));
        }
        self.order = Some(order);
        Ok(())
    }

    fn key(&self, (batch, row): (usize, usize)) -> Option<&Bytes> {
        self.keys.get(batch)?.get(row)
    }

    /// Returns chunks of rows in key order.
    fn chunks(&self) -> Box<dyn Iterator<Item = Result<Chunk>> + '_> {
        let Some(order) = &self.order else {
            let batches = self.batches.iter().zip(&self.keys);
            return Box::new(batches.map(|(columns, keys)| Ok((columns.clone(), keys.clone()))));
        };
        Box::new(order.chunks(self.chunk_rows).map(|places| {
            let keys = places.iter().filter_map(|place| self.key(*place).cloned()).collect();
            let width = self.batches.first().map_or(0, Vec::len);
            let columns = (0..width).map(|column| {
                let sources: Vec<_> = self
                    .batches
                    .iter()
                    .filter_map(|columns| columns.get(column))
                    .map(|array| &**array)
                    .collect();
                Ok(interleave(&sources, places)?)
            });
            Ok((columns.collect::<Result<_>>()?, keys))
        }))
    }

    /// Writes the segments, and passes each chunk to the log writer.
    fn write(
        &self,
        mut writer: SegmentsWriter,
        schemas: &TableSchemas,
        log: SyncSender<Chunk>,
    ) -> Result<WrittenSegments> {
        for chunk in self.chunks() {
            let (mut columns, keys) = chunk?;
            // Sending fails only after the log writer failed, whose error is returned later.
            let _ = log.send((columns.clone(), keys.clone()));
            // The manifest entry of the segment has the seq of the commit.
            columns.push(Arc::new(Int64Array::from_value(Seq::ZERO.0.cast_signed(), keys.len())));
            columns.extend(writer.system_columns(&keys)?);
            let batch = RecordBatch::try_new(Arc::clone(schemas.segment()?.schema()), columns)?;
            writer.push(&batch, &keys)?;
        }
        writer.finish()
    }
}
