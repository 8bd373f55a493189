//! Compacts segments of a table into fewer ones, without the deleted rows.
//!
//! Segments are sorted and no two have the same row, so a k-way merge by key suffices. The new place of each
//! row is kept until the commit, which marks in the new segments the rows changed meanwhile.
//!
//! Invariant: the new segments contain exactly the old rows that are live in the snapshot and not of a
//! dropped user.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use arrow::compute::interleave_record_batch;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;

use super::control::Control;
use super::files::{CHUNK_BYTES_MAX, CHUNK_ROWS, PublishedSegments, SegmentsWriter, publish_segments};
use crate::cold_storage::{Place, ReadSchema, Segment, SegmentKeys, selection};
use crate::commit::Snapshot;
use crate::error::{Error, Result};
use crate::ids::{ScopeId, SegmentId, UserId};
use crate::schema_registry::TableSchemas;
use crate::storage::blocking;
use crate::storage::keys::table_and_scope;

/// The result of a compaction, and the new place of each row.
pub struct Compacted {
    /// The new segments.
    pub published: PublishedSegments,
    /// For each old segment and position the new place; `None` for rows that were left out.
    pub places: HashMap<SegmentId, Vec<Option<Place>>>,
}

/// Compacts `segments` of the table into new ones, which are on stable storage and verified on return.
///
/// # Errors
/// As `flush`.
pub async fn compact(
    snapshot: &Arc<Snapshot>,
    schemas: &Arc<TableSchemas>,
    segments: &[Arc<Segment>],
    next_id: impl Fn() -> SegmentId + Send + Sync + 'static,
    control: &Control,
    now_us: i64,
) -> Result<Compacted> {
    let mut compaction = Compaction::open(snapshot, schemas, segments).await?;
    let mut writer = SegmentsWriter::new(snapshot, schemas, Arc::new(next_id), control)?;
    let mut places: HashMap<SegmentId, Vec<Option<Place>>> =
        segments.iter().map(|segment| (segment.id, vec![None; segment.rows as usize])).collect();
    while let Some(chunk) = compaction.next_chunk().await? {
        let new_places;
        let old_places = chunk.places;
        (writer, new_places) = blocking(move || {
            let new_places = writer.push(&chunk.batch, &chunk.keys)?;
            Ok((writer, new_places))
        })
        .await?;
        for (old, new) in old_places.into_iter().zip(new_places) {
            let place = places.get_mut(&old.segment).and_then(|places| places.get_mut(old.position as usize));
            if let Some(place) = place {
                *place = Some(new);
            }
        }
    }
    let written = blocking(move || writer.finish()).await?;
    let published = publish_segments(snapshot, schemas, written, control, now_us).await?;
    Ok(Compacted { published, places })
}

/// Rows in key order, with their keys and old places.
struct Chunk {
    batch: RecordBatch,
    keys: Vec<Bytes>,
    places: Vec<Place>,
}

/// The live rows of one segment, in key order.
struct Input {
    segment: SegmentId,
    /// The positions of the remaining rows.
    positions: std::vec::IntoIter<u32>,
    batches: BoxStream<'static, Result<RecordBatch>>,
    /// The current batch, its keys, and the next row.
    batch: RecordBatch,
    keys: Vec<Bytes>,
    at: usize,
    /// The mean size of the batch's rows.
    row_bytes: usize,
}

/// The rows picked for a chunk.
#[derive(Default)]
struct Picks {
    batches: Vec<RecordBatch>,
    /// For each input, the index in `batches` of its current batch.
    sources: HashMap<usize, usize>,
    /// For each row, its batch and its position in the batch.
    rows: Vec<(usize, usize)>,
    keys: Vec<Bytes>,
    places: Vec<Place>,
    bytes: usize,
}

impl Picks {
    /// Picks the current row of an input.
    fn add(&mut self, index: usize, input: &Input, key: Bytes, position: u32) {
        let source = *self.sources.entry(index).or_insert_with(|| {
            self.batches.push(input.batch.clone());
            self.batches.len() - 1
        });
        self.rows.push((source, input.at));
        self.keys.push(key);
        self.places.push(Place { segment: input.segment, position });
        self.bytes += input.row_bytes;
    }

    fn into_chunk(self) -> Result<Option<Chunk>> {
        if self.keys.is_empty() {
            return Ok(None);
        }
        let batches: Vec<&RecordBatch> = self.batches.iter().collect();
        let batch = interleave_record_batch(&batches, &self.rows)?;
        Ok(Some(Chunk { batch, keys: self.keys, places: self.places }))
    }
}

/// A k-way merge of segments.
struct Compaction {
    snapshot: Arc<Snapshot>,
    /// The columns of the new segments, in which the old ones are read.
    schema: Arc<ReadSchema>,
    segment_keys: SegmentKeys,
    inputs: Vec<Input>,
    /// The next key of each input that has one.
    next: BinaryHeap<Reverse<(Bytes, usize)>>,
}

impl Compaction {
    async fn open(
        snapshot: &Arc<Snapshot>,
        schemas: &Arc<TableSchemas>,
        segments: &[Arc<Segment>],
    ) -> Result<Self> {
        let deleted = snapshot.cold.deleted_positions(&snapshot.storage, segments).await?;
        let schema = schemas.segment()?;
        let mut compaction = Self {
            snapshot: Arc::clone(snapshot),
            schema: Arc::clone(schema),
            segment_keys: schemas.definition.segment_keys()?,
            inputs: Vec::with_capacity(segments.len()),
            next: BinaryHeap::new(),
        };
        for (segment, deleted) in segments.iter().zip(deleted) {
            let rows = selection(std::slice::from_ref(&segment.positions()), &deleted, segment.rows);
            let alive: Vec<u32> =
                segment.positions().filter(|position| deleted.binary_search(position).is_err()).collect();
            compaction.inputs.push(Input {
                segment: segment.id,
                positions: alive.into_iter(),
                batches: snapshot.cold.store().stream(segment, schema, rows).await?,
                batch: RecordBatch::new_empty(Arc::clone(schema.schema())),
                keys: Vec::new(),
                at: 0,
                row_bytes: 0,
            });
        }
        for index in 0..compaction.inputs.len() {
            compaction.advance(index).await?;
        }
        Ok(compaction)
    }

    /// Pushes the next key of an input onto the heap; reads the next batch when the current one is used up.
    async fn advance(&mut self, index: usize) -> Result<()> {
        let Some(input) = self.inputs.get_mut(index) else { return Ok(()) };
        while input.at >= input.keys.len() {
            let Some(batch) = input.batches.next().await else { return Ok(()) };
            input.batch = batch?;
            input.keys = self.segment_keys.of_rows(&input.batch, &self.schema)?;
            input.at = 0;
            input.row_bytes = input.batch.get_array_memory_size() / input.batch.num_rows().max(1);
        }
        if let Some(key) = input.keys.get(input.at) {
            self.next.push(Reverse((Bytes::clone(key), index)));
        }
        Ok(())
    }

    /// Returns the next rows; `None` when there are no more.
    async fn next_chunk(&mut self) -> Result<Option<Chunk>> {
        let mut picks = Picks::default();
        while picks.keys.len() < CHUNK_ROWS && picks.bytes < CHUNK_BYTES_MAX {
            let Some(Reverse((key, index))) = self.next.pop() else { break };
            let is_owned = self.is_owned(&key);
            let Some(input) = self.inputs.get_mut(index) else { break };
            let position = input
                .positions
                .next()
                .ok_or_else(|| Error::internal("a segment has more rows than positions"))?;
            if is_owned {
                picks.add(index, input, key, position);
            }
            input.at += 1;
            if input.at >= input.keys.len() {
                picks.sources.remove(&index);
            }
            self.advance(index).await?;
        }
        // Nothing is picked only when no rows are left.
        picks.into_chunk()
    }

    /// Returns whether the owner of the row exists; rows of dropped users are left out.
    fn is_owned(&self, key: &[u8]) -> bool {
        match table_and_scope(key) {
            Some((_, ScopeId::SHARED)) | None => true,
            Some((_, ScopeId(user))) => self.snapshot.catalog.user(UserId(user)).is_some(),
        }
    }
}
