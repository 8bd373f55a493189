//! The segments of all storages: opens, caches and removes them.
//!
//! Invariant: a segment is durable and verified before a commit may name it, and its object is removed only
//! when no snapshot contains it.

use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use datafusion::common::Statistics;
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
use super::writer::{FENCES_KEY, FORMAT, FORMAT_KEY, read_fences};
use crate::error::{Error, Result};
use crate::ids::{DatabaseId, Epoch, SegmentId, TableId};
use crate::storage::{Partition, StorageSnapshot, blocking};

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

/// The parsed footer of a segment.
pub(super) struct OpenSegment {
    pub(super) metadata: ArrowReaderMetadata,
    /// Its columns, by which `metadata` reads it.
    pub(super) columns: FileColumns,
    /// The keys of rows 0, 2048, ...
    pub(super) fences: KeyIndex,
    /// The statistics of its columns, after the first call of [`SegmentStore::statistics`].
    statistics: OnceLock<Statistics>,
    /// Latest last.
    layouts: Mutex<Vec<Arc<SegmentLayout>>>,
}

impl OpenSegment {
    fn new(segment: &Segment, metadata: Arc<ParquetMetaData>) -> Result<Self> {
        let metadata = ArrowReaderMetadata::try_new(metadata, ArrowReaderOptions::new())?;
        let fences = fences_of(segment, &metadata)?;
        let columns = FileColumns::of(metadata.schema().fields()).ok_or_else(|| {
            Error::corruption(format!("segment \"{}\" has columns without ids", segment.path))
        })?;
        let options = ArrowReaderOptions::new().with_schema(Arc::clone(columns.schema()));
        let metadata = ArrowReaderMetadata::try_new(Arc::clone(metadata.metadata()), options)?;
        let (statistics, layouts) = (OnceLock::new(), Mutex::default());
        Ok(Self { metadata, columns, fences, statistics, layouts })
    }

    /// Returns where the columns of `schema` are.
    pub(super) fn layout(&self, segment: &Segment, schema: &Arc<ReadSchema>) -> Result<Arc<SegmentLayout>> {
        let mut layouts = self.layouts.lock();
        if let Some(known) = layouts.iter().find(|layout| layout.is_for(schema)) {
            return Ok(Arc::clone(known));
        }
        let made = SegmentLayout::new(&self.columns, schema)
            .map_err(|problem| Error::corruption(format!("segment \"{}\" {problem}", segment.path)))?;
        let made = Arc::new(made);
        if layouts.len() >= LAYOUTS_MAX {
            layouts.remove(0);
        }
        layouts.push(Arc::clone(&made));
        Ok(made)
    }
}

#[derive(Clone)]
struct OpenedBytes;

impl Weighter<SegmentId, Arc<OpenSegment>> for OpenedBytes {
    fn weight(&self, _: &SegmentId, open: &Arc<OpenSegment>) -> u64 {
        open.metadata.metadata().memory_size() as u64
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

    /// Returns the footer of a segment.
    ///
    /// # Errors
    /// XX001 when it is damaged or missing, 58030 when it cannot be read.
    pub(super) async fn open(self: &Arc<Self>, segment: &Arc<Segment>) -> Result<Arc<OpenSegment>> {
        self.opened
            .get_or_insert_async(&segment.id, async {
                let metadata = self.reader(segment).get_metadata(None).await?;
                Ok(Arc::new(OpenSegment::new(segment, metadata)?))
            })
            .await
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
        self.open(segment).await?.layout(segment, schema)
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
        let layout = open.layout(segment, schema)?;
        if open.statistics.get().is_none() {
            let row_groups = open.metadata.metadata();
            let columns = open.columns.schema();
            let made = DFParquetMetadata::statistics_from_parquet_metadata(row_groups, columns)?;
            let _ = open.statistics.set(made);
        }
        let file = open.statistics.get().ok_or_else(|| Error::internal("statistics were just made"))?;
        Ok(layout.statistics(file))
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

    /// Returns the key filter of a segment, from `storage`.
    ///
    /// # Errors
    /// XX001 when it is missing or damaged.
    pub async fn filter(&self, storage: &Arc<dyn StorageSnapshot>, segment: &Segment) -> Result<Arc<Sbbf>> {
        let (id, storage) = (segment.id, Arc::clone(storage));
        self.filters
            .get_or_insert_async(&id, async {
                let bits = blocking(move || storage.get(Partition::Cold, &filter_key(id))).await?;
                let bits = bits.filter(|bits| !bits.is_empty() && bits.len() % 32 == 0).ok_or_else(|| {
                    Error::corruption(format!("the key filter of segment \"{}\" is damaged", segment.path))
                })?;
                Ok(Arc::new(Sbbf::new(&bits)))
            })
            .await
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
