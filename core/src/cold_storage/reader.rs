//! Finds and reads rows of a segment by key.
//!
//! Rows are sorted by key, and the footer has the first key of each block of [`BLOCK_ROWS`] rows. So a lookup
//! reads the key columns of one block, and only when the key filter says that the key may exist.
//!
//! Invariant: a position returned for a key is the row with exactly that key.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{RowSelection, RowSelector};
use parquet::arrow::async_reader::ParquetRecordBatchStreamBuilder;

use super::layout::ReadSchema;
use super::manifest::Manifest;
use super::segment::{BLOCK_ROWS, Place, Segment};
use super::segment_keys::SegmentKeys;
use super::store::{OpenSegment, SegmentStore, unfit};
use crate::error::{Error, Result};
use crate::ids::{ColumnId, TableId};
use crate::storage::{KeyRange, StorageSnapshot, blocking};

impl Manifest {
    /// Returns the places of the live cold rows with the keys `wanted`, in that order; `None` where there is
    /// none. At most one segment has a live row for a key.
    ///
    /// # Errors
    /// XX001 when a segment is damaged, 58030 when it cannot be read.
    pub async fn find(
        &self,
        storage: &Arc<dyn StorageSnapshot>,
        table: TableId,
        keys: &SegmentKeys,
        wanted: &[Bytes],
    ) -> Result<Vec<Option<Place>>> {
        let mut found = vec![None; wanted.len()];
        for segment in self.segments(table).iter().rev() {
            let positions = self.store().find(storage, segment, keys, wanted).await?;
            let candidates: Vec<(usize, Place)> = positions
                .into_iter()
                .enumerate()
                .filter_map(|(index, position)| {
                    Some((index, Place { segment: segment.id, position: position? }))
                })
                .collect();
            if candidates.is_empty() {
                continue;
            }
            let (manifest, storage) = (self.clone(), Arc::clone(storage));
            let alive = blocking(move || {
                let is_deleted = |place| manifest.is_deleted(&*storage, table, place);
                let checked =
                    candidates.into_iter().map(|(index, place)| Ok((index, place, is_deleted(place)?)));
                checked.collect::<Result<Vec<_>>>()
            });
            for (index, place, _) in alive.await?.into_iter().filter(|(_, _, is_deleted)| !is_deleted) {
                if let Some(slot) = found.get_mut(index) {
                    *slot = Some(place);
                }
            }
        }
        Ok(found)
    }

    /// Returns the live cold row with the key `wanted`: its place, and its columns in `schema`.
    ///
    /// # Errors
    /// As [`Manifest::find`].
    pub async fn find_row(
        &self,
        storage: &Arc<dyn StorageSnapshot>,
        table: TableId,
        keys: &SegmentKeys,
        schema: &Arc<ReadSchema>,
        wanted: &Bytes,
    ) -> Result<Option<(Place, RecordBatch)>> {
        for segment in self.segments(table).iter().rev() {
            let found = self.store().find_row(storage, segment, keys, schema, wanted).await?;
            let Some((position, row)) = found else { continue };
            let place = Place { segment: segment.id, position };
            let (manifest, storage) = (self.clone(), Arc::clone(storage));
            if !blocking(move || manifest.is_deleted(&*storage, table, place)).await? {
                return Ok(Some((place, row)));
            }
        }
        Ok(None)
    }
}

impl SegmentStore {
    /// Returns the positions of the rows whose keys are in `range`.
    ///
    /// # Errors
    /// XX001 when the segment is damaged, 58030 when it cannot be read.
    pub async fn positions(
        self: &Arc<Self>,
        segment: &Arc<Segment>,
        keys: &SegmentKeys,
        range: &KeyRange,
    ) -> Result<Range<u32>> {
        if range.is_empty() || !segment.overlaps(range) {
            return Ok(0..0);
        }
        let start = match range.start <= segment.first_key {
            true => 0,
            false => self.lower_bound(segment, keys, &range.start).await?,
        };
        let end = match &range.end {
            Some(end) if *end <= segment.last_key => self.lower_bound(segment, keys, end).await?,
            _ => segment.rows,
        };
        Ok(start..end)
    }

    /// Returns the positions of the keys `wanted`, in that order; `None` where the segment lacks the key.
    ///
    /// # Errors
    /// As [`SegmentStore::positions`].
    pub async fn find(
        self: &Arc<Self>,
        storage: &Arc<dyn StorageSnapshot>,
        segment: &Arc<Segment>,
        keys: &SegmentKeys,
        wanted: &[Bytes],
    ) -> Result<Vec<Option<u32>>> {
        let mut found = vec![None; wanted.len()];
        let within = |key: &Bytes| **key >= *segment.first_key && **key <= *segment.last_key;
        if !wanted.iter().any(within) {
            return Ok(found);
        }
        let filter = self.filter(storage, segment).await?;
        let open = self.open(segment).await?;
        let mut blocks: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (index, key) in wanted.iter().enumerate() {
            if within(key) && filter.check(&**key) {
                blocks.entry(block_of(&open, key)).or_default().push(index);
            }
        }
        for (block, indexes) in blocks {
            let in_block = self.block_keys(segment, &open, keys, block).await?;
            for index in indexes {
                let position = wanted.get(index).and_then(|key| in_block.binary_search(key).ok());
                if let (Some(place), Some(position)) = (found.get_mut(index), position) {
                    *place = Some(block * BLOCK_ROWS + u32::try_from(position).unwrap_or_default());
                }
            }
        }
        Ok(found)
    }

    /// Returns the position of the row with the key `wanted`, and its columns in `schema`; `None` when the
    /// segment lacks it. Reads a small block once, with all columns; reads only the keys of a large one
    /// first.
    async fn find_row(
        self: &Arc<Self>,
        storage: &Arc<dyn StorageSnapshot>,
        segment: &Arc<Segment>,
        keys: &SegmentKeys,
        schema: &Arc<ReadSchema>,
        wanted: &Bytes,
    ) -> Result<Option<(u32, RecordBatch)>> {
        /// The approximate size limit of a small block, uncompressed.
        const SMALL_BLOCK_BYTES: u64 = 512 << 10;
        if **wanted < *segment.first_key || **wanted > *segment.last_key {
            return Ok(None);
        }
        if !self.filter(storage, segment).await?.check(&**wanted) {
            return Ok(None);
        }
        let open = self.open(segment).await?;
        if row_bytes(&open).saturating_mul(u64::from(BLOCK_ROWS)) > SMALL_BLOCK_BYTES {
            let found = self.find(storage, segment, keys, std::slice::from_ref(wanted)).await?;
            return match found.into_iter().flatten().next() {
                Some(position) => Ok(Some((position, self.row(segment, schema, position).await?))),
                None => Ok(None),
            };
        }
        let block = block_rows(segment, block_of(&open, wanted));
        let selected = selection(std::slice::from_ref(&block), &[], segment.rows);
        let layout = self.layout_in(&open, segment, schema)?;
        let mask = layout.mask(open.metadata.parquet_schema());
        let batch = self.read(segment, &open, mask, selected).await?;
        let columns = KeyColumns::of(segment, &open, keys)?;
        let key_place = |id: ColumnId| layout.read_place(columns.position(id)?);
        let (mut low, mut high) = (0, batch.num_rows());
        while low < high {
            let middle = low + (high - low) / 2;
            let row = batch.slice(middle, 1);
            let key = keys.of_columns(1, |id| row.columns().get(key_place(id)?))?.pop().unwrap_or_default();
            match key.cmp(wanted) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => {
                    let position = block.start + u32::try_from(middle).unwrap_or_default();
                    return Ok(Some((position, layout.apply(row, segment.commit)?)));
                }
            }
        }
        Ok(None)
    }

    async fn row(
        self: &Arc<Self>,
        segment: &Arc<Segment>,
        schema: &Arc<ReadSchema>,
        position: u32,
    ) -> Result<RecordBatch> {
        let open = self.open(segment).await?;
        let layout = self.layout_in(&open, segment, schema)?;
        let selected = selection(std::slice::from_ref(&(position..position + 1)), &[], segment.rows);
        let mask = layout.mask(open.metadata.parquet_schema());
        layout.apply(self.read(segment, &open, mask, selected).await?, segment.commit)
    }

    /// Returns the selected rows in the columns of `schema`, ordered by position.
    ///
    /// # Errors
    /// As [`SegmentStore::positions`]; the items of the stream likewise.
    pub async fn stream(
        self: &Arc<Self>,
        segment: &Arc<Segment>,
        schema: &Arc<ReadSchema>,
        rows: RowSelection,
    ) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let open = self.open(segment).await?;
        let layout = self.layout_in(&open, segment, schema)?;
        let stream =
            ParquetRecordBatchStreamBuilder::new_with_metadata(self.reader(segment), open.metadata.clone())
                .with_projection(layout.mask(open.metadata.parquet_schema()))
                .with_row_selection(rows)
                .with_batch_size(batch_rows(&open))
                .build()?;
        let commit = segment.commit;
        Ok(stream.map(move |batch| layout.apply(batch?, commit)).boxed())
    }

    /// Returns the keys of all rows, ordered by position.
    ///
    /// # Errors
    /// As [`SegmentStore::positions`]; the items of the stream likewise.
    pub async fn keys(
        self: &Arc<Self>,
        segment: &Arc<Segment>,
        keys: &SegmentKeys,
    ) -> Result<BoxStream<'static, Result<Vec<Bytes>>>> {
        let open = self.open(segment).await?;
        let columns = KeyColumns::of(segment, &open, keys)?;
        let stream =
            ParquetRecordBatchStreamBuilder::new_with_metadata(self.reader(segment), open.metadata.clone())
                .with_projection(columns.mask(&open))
                .with_batch_size(BLOCK_ROWS as usize)
                .build()?;
        let keys = keys.clone();
        Ok(stream.map(move |batch| columns.keys(&keys, &batch?)).boxed())
    }

    /// Returns the first position whose key is not below `key`.
    async fn lower_bound(
        self: &Arc<Self>,
        segment: &Arc<Segment>,
        keys: &SegmentKeys,
        key: &[u8],
    ) -> Result<u32> {
        let open = self.open(segment).await?;
        let block = block_of(&open, key);
        let in_block = self.block_keys(segment, &open, keys, block).await?;
        let within = in_block.partition_point(|stored| **stored < *key);
        Ok(block * BLOCK_ROWS + u32::try_from(within).unwrap_or_default())
    }

    async fn block_keys(
        self: &Arc<Self>,
        segment: &Arc<Segment>,
        open: &OpenSegment,
        keys: &SegmentKeys,
        block: u32,
    ) -> Result<Vec<Bytes>> {
        let block = block_rows(segment, block);
        let columns = KeyColumns::of(segment, open, keys)?;
        let selected = selection(std::slice::from_ref(&block), &[], segment.rows);
        let batch = self.read(segment, open, columns.mask(open), selected).await?;
        let keys = columns.keys(keys, &batch)?;
        if keys.len() != block.len() || !keys.is_sorted() {
            return Err(Error::corruption(format!(
                "the rows of segment \"{}\" are not sorted by key",
                segment.path
            )));
        }
        Ok(keys)
    }

    async fn read(
        self: &Arc<Self>,
        segment: &Arc<Segment>,
        open: &OpenSegment,
        columns: ProjectionMask,
        rows: RowSelection,
    ) -> Result<RecordBatch> {
        let stream =
            ParquetRecordBatchStreamBuilder::new_with_metadata(self.reader(segment), open.metadata.clone())
                .with_projection(columns)
                .with_row_selection(rows)
                .with_batch_size(BLOCK_ROWS as usize)
                .build()?;
        let schema: SchemaRef = Arc::clone(stream.schema());
        let batches: Vec<RecordBatch> = stream.try_collect().await?;
        Ok(concat_batches(&schema, &batches)?)
    }
}

/// The key columns of a segment, ordered by their position in it.
struct KeyColumns(Vec<(usize, ColumnId)>);

impl KeyColumns {
    /// Finds the key columns.
    ///
    /// # Errors
    /// XX001 when one is missing or has another type.
    fn of(segment: &Segment, open: &OpenSegment, keys: &SegmentKeys) -> Result<Self> {
        let mut columns = Vec::new();
        for (id, ty) in keys.columns() {
            let position = open.columns.key_position(id, &ty);
            columns.push((position.map_err(|problem| unfit(segment, &problem))?, id));
        }
        columns.sort_unstable();
        Ok(Self(columns))
    }

    /// Returns the position of a key column in the segment.
    fn position(&self, wanted: ColumnId) -> Option<usize> {
        self.0.iter().find(|(_, id)| *id == wanted).map(|(position, _)| *position)
    }

    fn mask(&self, open: &OpenSegment) -> ProjectionMask {
        let positions = self.0.iter().map(|(position, _)| *position);
        ProjectionMask::roots(open.metadata.parquet_schema(), positions)
    }

    /// Returns the keys of the rows of a batch that has only these columns.
    fn keys(&self, keys: &SegmentKeys, batch: &RecordBatch) -> Result<Vec<Bytes>> {
        let place = |wanted: ColumnId| self.0.iter().position(|(_, id)| *id == wanted);
        keys.of_columns(batch.num_rows(), |id| batch.columns().get(place(id)?))
    }
}

/// Returns the number of rows in a batch of about 8 MiB, by the mean row size.
fn batch_rows(open: &OpenSegment) -> usize {
    const BATCH_BYTES: u64 = 8 << 20;
    let fitting = BATCH_BYTES / row_bytes(open).max(1);
    usize::try_from(fitting).unwrap_or_default().clamp(1, BLOCK_ROWS as usize)
}

/// Returns the mean size of a row, uncompressed.
fn row_bytes(open: &OpenSegment) -> u64 {
    let metadata = open.metadata.metadata();
    let bytes: i64 = metadata.row_groups().iter().map(|group| group.total_byte_size()).sum();
    u64::try_from(bytes / metadata.file_metadata().num_rows().max(1)).unwrap_or_default()
}

/// Returns the positions of a block.
fn block_rows(segment: &Segment, block: u32) -> Range<u32> {
    let start = block * BLOCK_ROWS;
    start..start.saturating_add(BLOCK_ROWS).min(segment.rows)
}

/// Returns the block that contains `key`, if any does.
fn block_of(open: &OpenSegment, key: &[u8]) -> u32 {
    let begun = open.fences.partition_point(|first| first <= key);
    u32::try_from(begun.saturating_sub(1)).unwrap_or_default()
}

/// Selects, out of `rows` rows, those in `ranges` (ascending, disjoint) but not in `deleted` (ascending).
pub fn selection(ranges: &[Range<u32>], deleted: &[u32], rows: u32) -> RowSelection {
    let mut selectors: Vec<RowSelector> = Vec::new();
    let mut push = |selected: bool, count: u32| {
        if count == 0 {
            return;
        }
        let count = count as usize;
        match selectors.last_mut() {
            Some(last) if last.skip != selected => last.row_count += count,
            _ if selected => selectors.push(RowSelector::select(count)),
            _ => selectors.push(RowSelector::skip(count)),
        }
    };
    let mut at = 0;
    for range in ranges {
        push(false, range.start.saturating_sub(at));
        at = at.max(range.start);
        let first = deleted.partition_point(|position| *position < at);
        for position in deleted.iter().skip(first).take_while(|position| **position < range.end) {
            push(true, position - at);
            push(false, 1);
            at = position + 1;
        }
        push(true, range.end.saturating_sub(at));
        at = at.max(range.end);
    }
    push(false, rows.saturating_sub(at));
    RowSelection::from(selectors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(ranges: &[Range<u32>], deleted: &[u32], rows: u32) -> Vec<u32> {
        let selection = selection(ranges, deleted, rows);
        let mut at = 0;
        let mut positions = Vec::new();
        for selector in selection.iter() {
            let end = at + u32::try_from(selector.row_count).unwrap();
            if !selector.skip {
                positions.extend(at..end);
            }
            at = end;
        }
        assert_eq!(at, rows, "every row is spoken of");
        positions
    }

    #[test]
    fn a_selection_has_the_rows_of_the_ranges_that_are_not_gone() {
        assert_eq!(selected(&[0..2, 2..5], &[], 5), [0, 1, 2, 3, 4]);
        assert_eq!(selected(&[0..2, 2..5], &[0, 4], 5), [1, 2, 3]);
        assert_eq!(selected(&[1..3, 5..6], &[0, 2, 4, 5, 9], 10), [1]);
        assert!(selected(&[], &[1], 3).is_empty());
        assert_eq!(selected(&[2..2, 2..4], &[3], 4), [2]);
        assert!(selected(&[0..1, 1..3], &[0, 1, 2], 3).is_empty());
    }
}
