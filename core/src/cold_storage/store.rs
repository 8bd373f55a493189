//! The objects that segments are: made on stable storage, opened, removed.
//!
//! ```text
//! DATA_DIR/segments/TABLE/EPOCH-SEGMENT.parquet     numbers, the last two in hexadecimal
//! ```
//!
//! A name has the epoch in which the segment was made, so what a process that died left behind is never written again.
//!
//! Invariant: a segment is on stable storage, and reads as it was written, before a commit may name it; its object is removed only
//! when no snapshot has it.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::RuntimeEnv;
use futures::FutureExt;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parking_lot::Mutex;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::bloom_filter::Sbbf;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::checked_reader::CheckedReader;
use super::key_index::KeyIndex;
use super::manifest::filter_key;
use super::segment::Segment;
use super::writer::{FENCES_KEY, FORMAT, FORMAT_KEY, WrittenSegment, read_fences};
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::failpoint;
use crate::ids::{Epoch, SegmentId, TableId};
use crate::storage::{Partition, StorageSnapshot, blocking};

/// Bytes read from the end of a segment first: mostly the whole footer.
const FOOTER_BYTES: usize = 64 << 10;
/// About how many segments the caches are laid out for.
const CACHED_SEGMENTS: usize = 1_024;

/// Where segments are.
pub struct SegmentStore {
    objects: Arc<dyn ObjectStore>,
    /// When the objects are files.
    folder: Option<PathBuf>,
    opened: Cache<SegmentId, Arc<OpenSegment>, OpenedBytes>,
    filters: Cache<SegmentId, Arc<Sbbf>, FilterBytes>,
    /// Segments that no newer snapshot has.
    retired: Mutex<Vec<Arc<Segment>>>,
}

/// A segment's footer.
pub(super) struct OpenSegment {
    pub(super) metadata: ArrowReaderMetadata,
    /// The keys of the rows 0, 2048, ...
    pub(super) fences: KeyIndex,
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

/// Where a new segment's bytes go.
pub enum Sink {
    /// A file that is renamed to its name when it is whole.
    File(BufWriter<File>),
    /// An object in memory.
    Memory(Vec<u8>),
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.write(bytes),
            Self::Memory(buffer) => buffer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.flush(),
            Self::Memory(_) => Ok(()),
        }
    }
}

impl std::fmt::Debug for SegmentStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SegmentStore").field("objects", &self.objects).finish_non_exhaustive()
    }
}

impl SegmentStore {
    /// The segments in a folder, which is made when it is not there. At most `cache_bytes` of footers and filters are kept.
    ///
    /// # Errors
    /// 58030 when the folder cannot be made or read.
    pub fn in_folder(folder: &FilePath, cache_bytes: usize) -> Result<Arc<Self>> {
        let unusable = |error: Box<dyn std::error::Error + Send + Sync>| {
            Error::new(
                ErrorKind::Unavailable,
                SqlState::IO_ERROR,
                "the folder of the segments cannot be used",
            )
            .hint("check that the data directory is writable")
            .source(error)
        };
        let made = fs::create_dir_all(folder).and_then(|()| match folder.parent() {
            // The folder's name is durable once its parent is.
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        });
        made.map_err(|error| unusable(error.into()))?;
        let objects = LocalFileSystem::new_with_prefix(folder).map_err(|error| unusable(error.into()))?;
        Ok(Self::new(Arc::new(objects), Some(folder.to_owned()), cache_bytes))
    }

    /// Segments that are gone with the process.
    pub fn in_memory(cache_bytes: usize) -> Arc<Self> {
        Self::new(Arc::new(InMemory::new()), None, cache_bytes)
    }

    fn new(objects: Arc<dyn ObjectStore>, folder: Option<PathBuf>, cache_bytes: usize) -> Arc<Self> {
        let half = (cache_bytes / 2) as u64;
        Arc::new(Self {
            objects,
            folder,
            opened: Cache::with_weighter(CACHED_SEGMENTS, half, OpenedBytes),
            filters: Cache::with_weighter(CACHED_SEGMENTS, half, FilterBytes),
            retired: Mutex::default(),
        })
    }

    /// The objects themselves, for scans.
    pub fn objects(&self) -> &Arc<dyn ObjectStore> {
        &self.objects
    }

    /// The address under which a scan's runtime knows the objects.
    ///
    /// # Errors
    /// XX000, never: the address is a constant.
    pub fn url() -> Result<ObjectStoreUrl> {
        Ok(ObjectStoreUrl::parse("kalamdb://segments")?)
    }

    /// Makes the objects known to the scans of a runtime.
    pub fn register(&self, runtime: &RuntimeEnv) {
        if let Ok(url) = Self::url() {
            runtime.register_object_store(url.as_ref(), Arc::clone(&self.objects));
        }
    }

    /// The name of a new segment's object.
    pub fn path(table: TableId, epoch: Epoch, segment: SegmentId) -> String {
        format!("{table}/{:08x}-{:08x}.parquet", epoch.0, segment.0)
    }

    /// Begins an object. It blocks.
    ///
    /// # Errors
    /// 58030 when its file cannot be made.
    pub fn create(&self, path: &str) -> Result<Sink> {
        failpoint::step("segment::create")?;
        let Some(folder) = &self.folder else { return Ok(Sink::Memory(Vec::new())) };
        let file = unfinished(folder, path);
        let made = file.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| File::create(&file));
        made.map(|file| Sink::File(BufWriter::with_capacity(1 << 20, file)))
            .map_err(|error| failed(path, error))
    }

    /// Brings a written object to stable storage under its name.
    ///
    /// # Errors
    /// 58030 when that does not succeed; the object then does not exist.
    pub async fn publish(&self, path: &str, written: &mut WrittenSegment) -> Result<()> {
        let sink = std::mem::replace(&mut written.sink, Sink::Memory(Vec::new()));
        match (sink, &self.folder) {
            (Sink::File(file), Some(folder)) => {
                let (folder, path) = (folder.clone(), path.to_owned());
                blocking(move || sync_into_place(&folder, &path, file).map_err(|error| failed(&path, error)))
                    .await
            }
            (Sink::Memory(bytes), _) => {
                let put = self.objects.put(&Path::from(path), Bytes::from(bytes).into()).await;
                put.map(|_| ()).map_err(|error| failed(path, io::Error::other(error)))
            }
            (Sink::File(_), None) => Err(Error::internal("a segment in memory was written to a file")),
        }
    }

    /// The footer of a segment.
    ///
    /// # Errors
    /// XX001 when it is damaged or missing, 58030 when it cannot be read.
    pub(super) async fn open(self: &Arc<Self>, segment: &Arc<Segment>) -> Result<Arc<OpenSegment>> {
        self.opened
            .get_or_insert_async(&segment.id, async {
                let mut reader = CheckedReader { store: Arc::clone(self), segment: Arc::clone(segment) };
                let metadata = ParquetMetaDataReader::new()
                    .with_page_index_policy(PageIndexPolicy::Required)
                    .with_prefetch_hint(Some(FOOTER_BYTES))
                    .load_and_finish(&mut reader, segment.bytes)
                    .await?;
                let metadata = ArrowReaderMetadata::try_new(Arc::new(metadata), ArrowReaderOptions::new())?;
                let fences = fences_of(segment, &metadata)?;
                Ok(Arc::new(OpenSegment { metadata, fences }))
            })
            .await
    }

    /// The footer of a segment, with its row groups.
    ///
    /// # Errors
    /// XX001 when it is damaged or missing, 58030 when it cannot be read.
    pub async fn row_groups(self: &Arc<Self>, segment: &Arc<Segment>) -> Result<Arc<ParquetMetaData>> {
        Ok(Arc::clone(self.open(segment).await?.metadata.metadata()))
    }

    /// Reads a whole segment and compares it with its checksums.
    ///
    /// # Errors
    /// XX001 when it does not fit, 58030 when it cannot be read.
    pub async fn verify(self: &Arc<Self>, segment: &Arc<Segment>) -> Result<()> {
        /// Bytes read at once.
        const PIECE_BYTES: u64 = 4 << 20;
        let mut reader = CheckedReader { store: Arc::clone(self), segment: Arc::clone(segment) };
        let mut start = 0;
        while start < segment.bytes {
            let end = (start + PIECE_BYTES).min(segment.bytes);
            reader.get_bytes(start..end).await?;
            start = end;
        }
        self.open(segment).await.map(|_| ())
    }

    /// The filter over a segment's keys, which is stored in `storage`.
    ///
    /// # Errors
    /// XX001 when it is missing.
    pub(super) async fn filter(
        &self,
        storage: &Arc<dyn StorageSnapshot>,
        segment: &Segment,
    ) -> Result<Arc<Sbbf>> {
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

    /// Notes segments that no newer snapshot has.
    pub fn retire(&self, segments: impl IntoIterator<Item = Arc<Segment>>) {
        self.retired.lock().extend(segments);
    }

    /// Retired segments that no snapshot has any more.
    pub fn removable(&self) -> Vec<Arc<Segment>> {
        let retired = self.retired.lock();
        retired.iter().filter(|segment| Arc::strong_count(segment) == 1).map(Arc::clone).collect()
    }

    /// Removes what there is of an object that no commit names. What cannot be removed is swept at the next start.
    pub fn discard(&self, path: &str) {
        let failed = match &self.folder {
            Some(folder) => [unfinished(folder, path), folder.join(path)]
                .into_iter()
                .filter_map(|file| fs::remove_file(file).err())
                .find(|error| error.kind() != io::ErrorKind::NotFound),
            None => {
                // Memory answers at once.
                drop(self.objects.delete(&Path::from(path)).now_or_never());
                None
            }
        };
        if let Some(error) = failed {
            tracing::warn!(path, %error, "an unused segment could not be removed");
        }
    }

    /// The names of all retired segments.
    pub fn retired_paths(&self) -> Vec<String> {
        self.retired.lock().iter().map(|segment| segment.path.clone()).collect()
    }

    /// Removes the object of a retired segment. That it is not there is no error: an earlier attempt may have got so far.
    ///
    /// # Errors
    /// 58030 when the storage refuses.
    pub async fn remove(&self, segment: &Segment) -> Result<()> {
        match self.objects.delete(&Path::from(segment.path.as_str())).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {
                self.opened.remove(&segment.id);
                self.filters.remove(&segment.id);
                Ok(())
            }
            Err(error) => Err(failed(&segment.path, io::Error::other(error))),
        }
    }

    /// Forgets a retired segment whose object is gone.
    pub fn forget(&self, id: SegmentId) {
        self.retired.lock().retain(|segment| segment.id != id);
    }

    /// Removes the files that are no segment of `known`: what a process left that died before its commit. It blocks.
    ///
    /// # Errors
    /// 58030 when the folder cannot be read.
    pub fn sweep(&self, known: &dyn Fn(&str) -> bool) -> Result<usize> {
        let Some(folder) = &self.folder else { return Ok(0) };
        let swept = sweep_folder(folder, known);
        swept.map_err(|error| failed("segments", error))
    }
}

fn unfinished(folder: &FilePath, path: &str) -> PathBuf {
    folder.join(format!("{path}.new"))
}

fn sync_into_place(folder: &FilePath, path: &str, file: BufWriter<File>) -> io::Result<()> {
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    failpoint::step("segment::synced").map_err(io::Error::other)?;
    let place = folder.join(path);
    fs::rename(unfinished(folder, path), &place)?;
    failpoint::step("segment::renamed").map_err(io::Error::other)?;
    // A name is durable once its folder is, and the folder's own name once its parent is.
    for folder in place.ancestors().skip(1).take_while(|parent| parent.starts_with(folder)) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

fn sweep_folder(folder: &FilePath, known: &dyn Fn(&str) -> bool) -> io::Result<usize> {
    let mut swept = 0;
    for table in fs::read_dir(folder)? {
        let table = table?;
        if !table.file_type()?.is_dir() {
            continue;
        }
        for file in fs::read_dir(table.path())? {
            let file = file?;
            let path =
                format!("{}/{}", table.file_name().to_string_lossy(), file.file_name().to_string_lossy());
            if !known(&path) {
                failpoint::step("sweep::remove").map_err(io::Error::other)?;
                fs::remove_file(file.path())?;
                swept += 1;
            }
        }
    }
    Ok(swept)
}

fn fences_of(segment: &Segment, metadata: &ArrowReaderMetadata) -> Result<KeyIndex> {
    let damaged = || Error::corruption(format!("segment \"{}\" is not one of this program's", segment.path));
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

fn failed(path: &str, error: io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, SqlState::IO_ERROR, format!("object \"{path}\" cannot be written"))
        .hint("check the free space and the rights of the folder of the segments")
        .source(error)
}
