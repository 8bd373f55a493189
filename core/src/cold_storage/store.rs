//! The segments of all storages: opens, caches and removes them.
//!
//! Invariants: a segment is durable and verified before a commit may name it, and its object is removed only
//! when no snapshot contains it. Nobody waits for another who loads a segment.

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, Statistics};
use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::RuntimeEnv;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::bloom_filter::Sbbf;
use parquet::file::metadata::ParquetMetaData;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::checked_reader::CheckedReader;
use super::key_index::KeyIndex;
use super::layout::{FileColumns, ReadSchema, SegmentLayout};
use super::location::StorageLocation;
use super::manifest_records::filter_key;
use super::object_storage::ObjectStorage;
use super::segment::{STORAGE_LOCAL, Segment};
use super::storages::Storages;
use super::widths::value_bytes;
use super::writer::{FENCES_KEY, FORMAT, FORMAT_KEY, read_fences};
use crate::error::{Error, Result};
use crate::ids::{DatabaseId, Epoch, SegmentId, TableId};
use crate::storage::{Partition, StorageSnapshot, blocking};
use crate::types::heap_bytes;

/// The expected number of cached segments.
const CACHED_SEGMENTS: usize = 1_024;
/// The layouts that are kept for a segment: those for the newest version, and for versions of older
/// snapshots.
const LAYOUTS_MAX: usize = 4;

/// Opens and caches the segments of all storages.
pub struct SegmentStore {
    storages: Arc<Storages>,
    opened: Cache<SegmentId, Arc<OpenSegment>, OpenedBytes>,
    filters: Cache<SegmentId, Arc<Sbbf>, FilterBytes>,
    /// Segments that the newest snapshot no longer contains.
    retired: Mutex<Vec<Arc<Segment>>>,
}

/// The parsed footer of a segment, and what was made from it. It never changes, because the cache must not
/// see its size change: [`SegmentStore::extend`] puts a larger one in its place.
#[derive(Clone)]
pub(super) struct OpenSegment {
    pub(super) metadata: ArrowReaderMetadata,
    /// Its columns, by which `metadata` reads it.
    pub(super) columns: Arc<FileColumns>,
    /// The keys of rows 0, 2048, ...
    pub(super) fences: Arc<KeyIndex>,
    /// The bytes of a value of each column.
    widths: Arc<[usize]>,
    /// The statistics of its columns, after the first call of [`SegmentStore::statistics`].
    statistics: Option<Arc<Statistics>>,
    /// Latest last.
    layouts: Vec<Arc<SegmentLayout>>,
    /// The memory that all this takes.
    bytes: u64,
}

impl OpenSegment {
    fn new(segment: &Segment, metadata: Arc<ParquetMetaData>) -> Result<Self> {
        let metadata = ArrowReaderMetadata::try_new(metadata, ArrowReaderOptions::new())?;
        let fences = Arc::new(fences_of(segment, &metadata)?);
        let columns = FileColumns::of(metadata.schema().fields());
        let columns = Arc::new(columns.map_err(|problem| unfit(segment, &problem))?);
        let options = ArrowReaderOptions::new().with_schema(Arc::clone(columns.schema()));
        let metadata = ArrowReaderMetadata::try_new(Arc::clone(metadata.metadata()), options)?;
        let widths = Arc::from(value_bytes(metadata.metadata(), columns.schema()));
        let open =
            Self { metadata, columns, fences, widths, statistics: None, layouts: Vec::new(), bytes: 0 };
        Ok(open.weighed())
    }

    fn weighed(self) -> Self {
        let footer = self.metadata.metadata().memory_size() + self.fences.bytes();
        // The reader has its own form of the columns, of about the same size.
        let columns = 2 * self.columns.bytes() + size_of_val(&*self.widths);
        let statistics = self.statistics.as_deref().map_or(0, statistics_bytes);
        let layouts: usize = self.layouts.iter().map(|layout| layout.bytes()).sum();
        let bytes = size_of::<Self>() + footer + columns + statistics + layouts;
        Self { bytes: bytes as u64, ..self }
    }
}

fn statistics_bytes(statistics: &Statistics) -> usize {
    let column_bytes = |column: &ColumnStatistics| {
        let values = [&column.min_value, &column.max_value, &column.sum_value];
        let values = values.into_iter().filter_map(Precision::get_value);
        size_of::<ColumnStatistics>() + values.map(heap_bytes).sum::<usize>()
    };
    size_of::<Statistics>() + statistics.column_statistics.iter().map(column_bytes).sum::<usize>()
}

/// Returns the error for a segment that does not have the columns of its table.
pub(super) fn unfit(segment: &Segment, problem: &str) -> Error {
    Error::corruption(format!("segment \"{}\" {problem}", segment.path))
        .hint("restore it from a backup; other tables are not affected")
}

#[derive(Clone)]
struct OpenedBytes;

impl Weighter<SegmentId, Arc<OpenSegment>> for OpenedBytes {
    fn weight(&self, _: &SegmentId, open: &Arc<OpenSegment>) -> u64 {
        open.bytes
    }
}

#[derive(Clone)]
struct FilterBytes;

impl Weighter<SegmentId, Arc<Sbbf>> for FilterBytes {
    fn weight(&self, _: &SegmentId, filter: &Arc<Sbbf>) -> u64 {
        32 * filter.num_blocks() as u64
    }
}

impl std::fmt::Debug for SegmentStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SegmentStore").field("local", self.storages.local()).finish_non_exhaustive()
    }
}

impl SegmentStore {
    /// Opens the segments of a data directory, with the storage `local` in `folder`. Uploads are spooled
    /// below `spool`, which is emptied. At most `cache_bytes` of footers and filters are cached.
    ///
    /// # Errors
    /// 58030 when the folder cannot be created or read.
    pub fn in_directory(folder: &FilePath, spool: &FilePath, cache_bytes: usize) -> Result<Arc<Self>> {
        ObjectStorage::sweep_spool(spool);
        let local = ObjectStorage::in_folder(Arc::from(STORAGE_LOCAL), folder)?;
        Ok(Self::new(local, Some(spool.to_owned()), cache_bytes))
    }

    /// Opens the segments of a data directory for reading only.
    ///
    /// # Errors
    /// 58030 when the folder cannot be read.
    pub fn in_folder(folder: &FilePath, cache_bytes: usize) -> Result<Arc<Self>> {
        Ok(Self::new(ObjectStorage::in_folder(Arc::from(STORAGE_LOCAL), folder)?, None, cache_bytes))
    }

    /// Returns a store in memory, which is lost with the process.
    pub fn in_memory(cache_bytes: usize) -> Arc<Self> {
        Self::new(ObjectStorage::in_memory(Arc::from(STORAGE_LOCAL)), None, cache_bytes)
    }

    fn new(local: ObjectStorage, spool: Option<PathBuf>, cache_bytes: usize) -> Arc<Self> {
        let half = (cache_bytes / 2) as u64;
        Arc::new(Self {
            storages: Arc::new(Storages::new(local, spool)),
            opened: Cache::with_weighter(CACHED_SEGMENTS, half, OpenedBytes),
            filters: Cache::with_weighter(CACHED_SEGMENTS, half, FilterBytes),
            retired: Mutex::default(),
        })
    }

    /// Connects the new and changed storages of a catalog. One that cannot be connected fails on use.
    pub fn set_storages(&self, database: DatabaseId, locations: impl IntoIterator<Item = StorageLocation>) {
        self.storages.set(database, locations);
    }

    /// Returns the storage with `id`.
    ///
    /// # Errors
    /// 42704 when it does not exist; 22023 or 58030 when it cannot be connected.
    pub fn storage(&self, id: &str) -> Result<Arc<ObjectStorage>> {
        self.storages.get(id)
    }

    /// Returns the ids of all storages.
    pub fn storage_ids(&self) -> Vec<Arc<str>> {
        self.storages.ids()
    }

    /// Returns the URL that scans use for the objects.
    ///
    /// # Errors
    /// XX000, but never: the URL is a constant.
    pub fn url() -> Result<ObjectStoreUrl> {
        Ok(ObjectStoreUrl::parse("kalamdb://segments")?)
    }

    /// Registers the objects with a runtime. Their bytes come through [`super::CheckedReaderFactory`].
    pub fn register(&self, runtime: &RuntimeEnv) {
        if let Ok(url) = Self::url() {
            runtime.register_object_store(url.as_ref(), Arc::clone(self.storages.local().objects()));
        }
    }

    /// Returns the name of a new segment's object.
    pub fn path(table: TableId, epoch: Epoch, segment: SegmentId) -> String {
        format!("{table}/{:08x}-{:08x}.parquet", epoch.0, segment.0)
    }

    /// Returns the epoch in which the object was started, from its name.
    pub fn epoch(path: &str) -> Option<Epoch> {
        let (_, name) = path.rsplit_once('/')?;
        let (epoch, _) = name.split_once('-')?;
        u32::from_str_radix(epoch, 16).ok().map(Epoch)
    }

    /// Returns a reader of the bytes of a segment.
    pub(super) fn reader(&self, segment: &Arc<Segment>) -> CheckedReader {
        CheckedReader { storages: Arc::clone(&self.storages), segment: Arc::clone(segment) }
    }

    /// Returns the footer of a segment. Each caller that does not find it in the cache reads it: another
    /// that has begun may get no thread for long.
    ///
    /// # Errors
    /// XX001 when it is damaged or missing, 58030 when it cannot be read.
    pub(super) async fn open(self: &Arc<Self>, segment: &Arc<Segment>) -> Result<Arc<OpenSegment>> {
        if let Some(open) = self.opened.get(&segment.id) {
            return Ok(open);
        }
        let metadata = self.reader(segment).get_metadata(None).await?;
        let open = Arc::new(OpenSegment::new(segment, metadata)?);
        self.opened.get_or_insert_with(&segment.id, || Ok(open))
    }

    /// Adds to the cached footer of a segment. One that was evicted meanwhile does not come back.
    fn extend(&self, segment: &Segment, add: impl FnOnce(&mut OpenSegment)) {
        if let Some(cached) = self.opened.peek(&segment.id) {
            let mut larger = OpenSegment::clone(&cached);
            add(&mut larger);
            let _ = self.opened.replace(segment.id, Arc::new(larger.weighed()), true);
        }
    }

    /// Returns where the columns of `schema` are in an open segment.
    ///
    /// # Errors
    /// XX001 when the segment has other columns than its table had.
    pub(super) fn layout_in(
        &self,
        open: &OpenSegment,
        segment: &Segment,
        schema: &Arc<ReadSchema>,
    ) -> Result<Arc<SegmentLayout>> {
        if let Some(known) = open.layouts.iter().find(|layout| layout.is_for(schema)) {
            return Ok(Arc::clone(known));
        }
        let layout = SegmentLayout::new(&open.columns, schema).and_then(|layout| {
            layout.check_version(segment.version)?;
            Ok(Arc::new(layout))
        });
        let layout = layout.map_err(|problem| unfit(segment, &problem))?;
        self.extend(segment, |open| {
            open.layouts.retain(|known| !known.is_for(schema));
            open.layouts.push(Arc::clone(&layout));
            if open.layouts.len() > LAYOUTS_MAX {
                open.layouts.remove(0);
            }
        });
        Ok(layout)
    }

    /// Returns the footer of a segment as Parquet metadata.
    ///
    /// # Errors
    /// XX001 when it is damaged or missing, 58030 when it cannot be read.
    pub async fn row_groups(self: &Arc<Self>, segment: &Arc<Segment>) -> Result<Arc<ParquetMetaData>> {
        Ok(Arc::clone(self.open(segment).await?.metadata.metadata()))
    }

    /// Returns where the columns of `schema` are in a segment.
    ///
    /// # Errors
    /// As [`SegmentStore::row_groups`]; XX001 when the segment has other columns than its table had.
    pub async fn layout(
        self: &Arc<Self>,
        segment: &Arc<Segment>,
        schema: &Arc<ReadSchema>,
    ) -> Result<Arc<SegmentLayout>> {
        let open = self.open(segment).await?;
        self.layout_in(&open, segment, schema)
    }

    /// Returns what the footer of a segment says of the columns of `schema`.
    ///
    /// # Errors
    /// As [`SegmentStore::layout`].
    pub async fn statistics(
        self: &Arc<Self>,
        segment: &Arc<Segment>,
        schema: &Arc<ReadSchema>,
    ) -> Result<Statistics> {
        let open = self.open(segment).await?;
        let layout = self.layout_in(&open, segment, schema)?;
        if let Some(known) = &open.statistics {
            return Ok(layout.statistics(known));
        }
        let (row_groups, columns) = (open.metadata.metadata(), open.columns.schema());
        let made = DFParquetMetadata::statistics_from_parquet_metadata(row_groups, columns)?;
        let made = Arc::new(made);
        self.extend(segment, |open| open.statistics = Some(Arc::clone(&made)));
        Ok(layout.statistics(&made))
    }

    /// Returns about how many bytes a row of a segment takes in the columns at `positions` of `schema`, where
    /// rows are widest.
    ///
    /// # Errors
    /// As [`SegmentStore::layout`].
    pub async fn row_bytes(
        self: &Arc<Self>,
        segment: &Arc<Segment>,
        schema: &Arc<ReadSchema>,
        positions: &[usize],
    ) -> Result<usize> {
        let open = self.open(segment).await?;
        Ok(self.layout_in(&open, segment, schema)?.row_bytes(positions, &open.widths))
    }

    /// Reads a whole segment and verifies its checksums.
    ///
    /// # Errors
    /// XX001 when a checksum does not match, 58030 when the segment cannot be read.
    pub async fn verify(self: &Arc<Self>, segment: &Arc<Segment>) -> Result<()> {
        self.bytes(segment).try_for_each(|_| std::future::ready(Ok(()))).await?;
        self.open(segment).await.map(|_| ())
    }

    /// Returns the verified bytes of a whole segment, some MiB at a time.
    ///
    /// # Errors
    /// As [`SegmentStore::verify`], in the stream.
    pub fn bytes(self: &Arc<Self>, segment: &Arc<Segment>) -> BoxStream<'static, Result<Bytes>> {
        /// Bytes of one read.
        const PIECE_BYTES: u64 = 4 << 20;
        stream::try_unfold((self.reader(segment), 0), |(mut reader, start)| async move {
            let end = (start + PIECE_BYTES).min(reader.segment.bytes);
            if start == end {
                return Ok(None);
            }
            let piece = reader.get_bytes(start..end).await?;
            Ok(Some((piece, (reader, end))))
        })
        .boxed()
    }

    /// Returns the key filter of a segment, from `storage` if it is not in the cache, as
    /// `SegmentStore::open`.
    ///
    /// # Errors
    /// XX001 when it is missing or damaged.
    pub async fn filter(&self, storage: &Arc<dyn StorageSnapshot>, segment: &Segment) -> Result<Arc<Sbbf>> {
        let id = segment.id;
        if let Some(filter) = self.filters.get(&id) {
            return Ok(filter);
        }
        let storage = Arc::clone(storage);
        let bits = blocking(move || storage.get(Partition::Cold, &filter_key(id))).await?;
        let bits = bits.filter(|bits| !bits.is_empty() && bits.len() % 32 == 0).ok_or_else(|| {
            Error::corruption(format!("the key filter of segment \"{}\" is damaged", segment.path))
        })?;
        self.filters.get_or_insert_with(&id, || Ok(Arc::new(Sbbf::new(&bits))))
    }

    /// Adds segments that the newest snapshot no longer contains.
    pub fn retire(&self, segments: impl IntoIterator<Item = Arc<Segment>>) {
        let mut retired = self.retired.lock();
        for segment in segments {
            if retired.iter().all(|other| other.id != segment.id) {
                retired.push(segment);
            }
        }
    }

    /// Returns the retired segments that no snapshot contains any more.
    pub fn removable(&self) -> Vec<Arc<Segment>> {
        let retired = self.retired.lock();
        retired.iter().filter(|segment| Arc::strong_count(segment) == 1).map(Arc::clone).collect()
    }

    /// Returns the names of all retired segments.
    pub fn retired_paths(&self) -> Vec<String> {
        self.retired.lock().iter().map(|segment| segment.path.clone()).collect()
    }

    /// Returns whether a storage has retired segments.
    pub fn has_retired(&self, storage: &str) -> bool {
        self.retired.lock().iter().any(|segment| *segment.storage == *storage)
    }

    /// Removes the object of a retired segment; not an error when an earlier attempt removed it.
    ///
    /// # Errors
    /// 58030 when the storage refuses.
    pub async fn remove(&self, segment: &Segment) -> Result<()> {
        self.storage(&segment.storage)?.remove(&segment.path).await?;
        self.opened.remove(&segment.id);
        self.filters.remove(&segment.id);
        Ok(())
    }

    /// Forgets a retired segment after its object was removed.
    pub fn forget(&self, id: SegmentId) {
        self.retired.lock().retain(|segment| segment.id != id);
    }
}

fn fences_of(segment: &Segment, metadata: &ArrowReaderMetadata) -> Result<KeyIndex> {
    let damaged =
        || Error::corruption(format!("segment \"{}\" was not written by this program", segment.path));
    let file = metadata.metadata().file_metadata();
    let entry = |key: &str| {
        let entries = file.key_value_metadata()?;
        entries.iter().find(|entry| entry.key == key)?.value.as_deref()
    };
    if entry(FORMAT_KEY) != Some(FORMAT) || file.num_rows() != i64::from(segment.rows) {
        return Err(damaged());
    }
    entry(FENCES_KEY).and_then(read_fences).ok_or_else(damaged)
}

#[cfg(test)]
mod tests;
