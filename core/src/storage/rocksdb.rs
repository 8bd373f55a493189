//! RocksDB behind the storage traits, on disk or in memory. No other file uses RocksDB.
//!
//! Each partition is a column family. `Rows` has Bloom filters over the table and scope prefix and over the
//! whole key, in memtables and files, because every INSERT looks up a key that is almost never there.
//! RocksDB's own checksums cover the write-ahead log, the files and the manifest.
//!
//! RocksDB locks its folder, so a store must be closed before it is reopened. A snapshot therefore holds its
//! store in a slot that [`StorageBackend::reopen`] can empty: running reads are told to end, the last of them
//! closes the store, and later reads of the snapshot fail.
//!
//! Invariant: until a reopen, the store stays open and the data directory locked while any snapshot lives.

use std::convert::Infallible;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::Duration;

use ::rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, CompactOptions, DB, DBCompressionType,
    DBIterator, DBPinnableSlice, DBRecoveryMode, Env, Error as RocksError, ErrorKind as RocksErrorKind,
    IteratorMode, LogLevel, Options, ReadOptions, SliceTransform, WriteBatch as RocksBatch, WriteOptions,
};
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use self_cell::self_cell;

use super::{
    DataDirectory, Direction, Entries, KeyRange, Partition, StorageBackend, StorageMetrics, StorageSnapshot,
    Visitor, WriteBatch, WriteOp, after_prefix, keys,
};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result, SqlState};

/// The limit of the write-ahead log, unless four memtables are larger; a restart reads at most that much.
const WAL_BYTES_MAX: u64 = 192 << 20;
const INFO_LOG_BYTES_MAX: usize = 4 << 20;
const OPEN_FILES_MAX: i32 = 1_000;
/// From this many keys on, a batched read is cheaper than single reads.
const BATCHED_GET_KEYS_MIN: usize = 4;
/// How long closing waits for running reads, which end at their next key.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(10);
/// From this many snapshots on, dropped ones are removed from the list.
const VIEWS_PRUNED_MIN: usize = 64;

/// Memory limits of a store.
#[derive(Clone, Copy, Debug)]
pub struct StorageOptions {
    /// Bytes of uncompressed file blocks in the cache that all partitions share.
    pub block_cache_bytes: usize,
    /// Bytes of a memtable; each partition has one, and up to two more that are being flushed.
    pub write_buffer_bytes: usize,
}

impl Default for StorageOptions {
    fn default() -> Self {
        Self { block_cache_bytes: 32 << 20, write_buffer_bytes: 32 << 20 }
    }
}

impl From<&Config> for StorageOptions {
    fn from(config: &Config) -> Self {
        Self { block_cache_bytes: config.block_cache_bytes, write_buffer_bytes: config.write_buffer_bytes }
    }
}

/// A RocksDB store.
pub struct RocksStorage {
    place: Place,
    /// `None` while it is closed.
    store: ArcSwapOption<Store>,
    /// Disconnects when the store that was opened last has closed.
    closed: Mutex<mpsc::Receiver<Infallible>>,
}

/// The path of a store and the options to open it.
struct Place {
    path: PathBuf,
    database: Options,
    options: StorageOptions,
    /// `None` for an in-memory store.
    directory: Option<Arc<DataDirectory>>,
    read_only: bool,
}

/// Fields are dropped in this order: the store closes before the directory is unlocked.
struct Store {
    db: DB,
    cache: Cache,
    directory: Option<Arc<DataDirectory>>,
    /// Tells running reads to end.
    closing: AtomicBool,
    views: Mutex<Views>,
    _closed: mpsc::Sender<Infallible>,
}

/// The snapshots that can still be read.
struct Views {
    views: Vec<Weak<View>>,
    pruned_at: usize,
}

type RocksSnapshot<'a> = ::rocksdb::Snapshot<'a>;

self_cell!(
    /// A snapshot together with its store.
    struct OpenView {
        owner: Arc<Store>,
        #[covariant]
        dependent: RocksSnapshot,
    }
);

self_cell!(
    /// An iterator together with its snapshot.
    struct OpenEntries {
        owner: Arc<OpenView>,
        #[not_covariant]
        dependent: DBIterator,
    }
);

/// A snapshot that becomes unreadable when its store is reopened.
struct View {
    open: RwLock<Option<Arc<OpenView>>>,
}

impl RocksStorage {
    /// Opens the store of a data directory; creates it when it is new.
    ///
    /// # Errors
    /// `Corruption` when RocksDB finds damage, `Unavailable` when the files cannot be opened.
    pub fn open(directory: Arc<DataDirectory>, options: StorageOptions) -> Result<Self> {
        let (path, database) = (directory.store_path(), database_options(options));
        Self::open_at(Place { path, database, options, directory: Some(directory), read_only: false })
    }

    /// Opens the store of a data directory read-only: nothing on disk changes, and writes fail.
    ///
    /// # Errors
    /// As [`RocksStorage::open`]; also when there is no store.
    pub(crate) fn open_read_only(directory: Arc<DataDirectory>, options: StorageOptions) -> Result<Self> {
        let (path, database) = (directory.store_path(), database_options(options));
        Self::open_at(Place { path, database, options, directory: Some(directory), read_only: true })
    }

    /// Creates a store in memory, which is lost on drop.
    ///
    /// # Errors
    /// `Internal` when RocksDB refuses, which happens only when memory runs out.
    pub fn in_memory(options: StorageOptions) -> Result<Self> {
        let env = Env::mem_env().map_err(|error| read_error(error, "could not make a store in memory"))?;
        let mut database = database_options(options);
        database.set_env(&env);
        let path = Path::new("/kalamdb").to_owned();
        Self::open_at(Place { path, database, options, directory: None, read_only: false })
    }

    fn open_at(place: Place) -> Result<Self> {
        let (store, closed) = place.open()?;
        Ok(Self { place, store: ArcSwapOption::new(Some(store)), closed: Mutex::new(closed) })
    }

    /// Ends all reads and closes the store.
    fn close(&self) -> Result<()> {
        if let Some(store) = self.store.swap(None) {
            store.closing.store(true, Ordering::Release);
            let views = std::mem::take(&mut store.views.lock().views);
            for view in views.iter().filter_map(Weak::upgrade) {
                view.open.write().take();
            }
        }
        match self.closed.lock().recv_timeout(CLOSE_WAIT_MAX) {
            Err(RecvTimeoutError::Disconnected) => Ok(()),
            Err(RecvTimeoutError::Timeout) => Err(unavailable("the store is still being read")),
            Ok(never) => match never {},
        }
    }

    fn opened(&self) -> Result<Arc<Store>> {
        self.store.load_full().ok_or_else(reopening)
    }
}

impl Place {
    fn open(&self) -> Result<(Arc<Store>, mpsc::Receiver<Infallible>)> {
        let cache = Cache::new_lru_cache(self.options.block_cache_bytes);
        let families = families(self.options, &cache);
        let db = match self.read_only {
            true => DB::open_cf_descriptors_read_only(&self.database, &self.path, families, false),
            false => DB::open_cf_descriptors(&self.database, &self.path, families),
        };
        let db = db.map_err(open_error)?;
        let (sender, closed) = mpsc::channel();
        let store = Store {
            db,
            cache,
            directory: self.directory.as_ref().map(Arc::clone),
            closing: AtomicBool::new(false),
            views: Mutex::new(Views { views: Vec::new(), pruned_at: VIEWS_PRUNED_MIN }),
            _closed: sender,
        };
        Ok((Arc::new(store), closed))
    }
}

fn database_options(options: StorageOptions) -> Options {
    let mut database = Options::default();
    database.create_if_missing(true);
    database.create_missing_column_families(true);
    database.set_paranoid_checks(true);
    database.set_track_and_verify_wals_in_manifest(true);
    database.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    database.set_max_total_wal_size(WAL_BYTES_MAX.max(4 * options.write_buffer_bytes as u64));
    database.set_max_background_jobs(4);
    database.set_max_open_files(OPEN_FILES_MAX);
    database.set_log_level(LogLevel::Warn);
    database.set_max_log_file_size(INFO_LOG_BYTES_MAX);
    database.set_keep_log_file_num(2);
    database.set_stats_dump_period_sec(0);
    database
}

fn families(options: StorageOptions, cache: &Cache) -> [ColumnFamilyDescriptor; 4] {
    Partition::ALL.map(|partition| {
        ColumnFamilyDescriptor::new(family_name(partition), family_options(partition, options, cache))
    })
}

fn family_options(partition: Partition, options: StorageOptions, cache: &Cache) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_bloom_filter(10.0, false);
    blocks.set_whole_key_filtering(true);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    blocks.set_optimize_filters_for_memory(true);
    blocks.set_block_size(16 << 10);
    blocks.set_format_version(6);

    let mut family = Options::default();
    family.set_write_buffer_size(match partition {
        Partition::Meta | Partition::Cold => options.write_buffer_bytes.min(4 << 20),
        Partition::Rows | Partition::Log => options.write_buffer_bytes,
    });
    family.set_max_write_buffer_number(3);
    family.set_compression_type(DBCompressionType::Lz4);
    family.set_level_compaction_dynamic_level_bytes(true);
    if partition == Partition::Rows {
        family.set_prefix_extractor(SliceTransform::create_fixed_prefix(keys::SCOPE_PREFIX_BYTES));
        family.set_memtable_prefix_bloom_ratio(0.05);
        family.set_memtable_whole_key_filtering(true);
    }
    family.set_block_based_table_factory(&blocks);
    family
}

fn family_name(partition: Partition) -> &'static str {
    match partition {
        Partition::Meta => "meta",
        Partition::Rows => "rows",
        Partition::Log => "log",
        Partition::Cold => "cold",
    }
}

impl Store {
    fn family(&self, partition: Partition) -> Result<&ColumnFamily> {
        let name = family_name(partition);
        self.db.cf_handle(name).ok_or_else(|| Error::internal(format!("partition \"{name}\" is not open")))
    }

    fn number(&self, property: &str, partition: Partition) -> u64 {
        self.family(partition)
            .ok()
            .and_then(|family| self.db.property_int_value_cf(family, property).ok().flatten())
            .unwrap_or(0)
    }

    fn sum(&self, property: &str) -> u64 {
        Partition::ALL.iter().map(|partition| self.number(property, *partition)).sum()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.db.cancel_all_background_work(true);
    }
}

impl Views {
    fn add(&mut self, view: &Arc<View>) {
        if self.views.len() >= self.pruned_at {
            self.views.retain(|view| view.strong_count() > 0);
            self.pruned_at = VIEWS_PRUNED_MIN.max(2 * self.views.len());
        }
        self.views.push(Arc::downgrade(view));
    }
}

impl StorageBackend for RocksStorage {
    fn snapshot(&self) -> Arc<dyn StorageSnapshot> {
        let Some(store) = self.store.load_full() else {
            return Arc::new(View { open: RwLock::new(None) });
        };
        let open = Arc::new(OpenView::new(Arc::clone(&store), |store| store.db.snapshot()));
        let view = Arc::new(View { open: RwLock::new(Some(open)) });
        let mut views = store.views.lock();
        views.add(&view);
        if store.closing.load(Ordering::Acquire) {
            view.open.write().take();
        }
        view
    }

    fn write(&self, batch: WriteBatch, sync: bool) -> Result<()> {
        let store = self.opened()?;
        // RocksDB adds a tag, a family number and two lengths to each operation.
        let mut rocks = RocksBatch::with_capacity_bytes(batch.bytes() + 16 * batch.ops().len() + 16);
        for op in batch.ops() {
            match op {
                WriteOp::Put { partition, key, value } => rocks.put_cf(store.family(*partition)?, key, value),
                WriteOp::Delete { partition, key } => rocks.delete_cf(store.family(*partition)?, key),
                WriteOp::DeleteRange { partition, range } => {
                    let Some(end) = &range.end else {
                        return Err(Error::internal("a range to the last key cannot be removed"));
                    };
                    if !range.is_empty() {
                        rocks.delete_range_cf(store.family(*partition)?, &range.start, end);
                    }
                }
            }
        }
        let mut write_options = WriteOptions::default();
        write_options.set_sync(sync);
        store.db.write_opt(rocks, &write_options).map_err(write_error)
    }

    fn sync(&self) -> Result<()> {
        let store = self.opened()?;
        // In memory there is nothing to sync to, and RocksDB's in-memory files refuse a sync.
        if store.directory.is_none() {
            return Ok(());
        }
        store.db.flush_wal(true).map_err(write_error)
    }

    fn reopen(&self) -> Result<()> {
        self.close()?;
        let (store, closed) = self.place.open()?;
        *self.closed.lock() = closed;
        self.store.store(Some(store));
        Ok(())
    }

    fn compact(&self, partition: Partition, range: &KeyRange) -> Result<()> {
        let Some(end) = &range.end else {
            return Err(Error::internal("a range to the last key cannot be compacted"));
        };
        let mut options = CompactOptions::default();
        // RocksDB's automatic compactions may run at the same time.
        options.set_exclusive_manual_compaction(false);
        let store = self.opened()?;
        let family = store.family(partition)?;
        store.db.compact_range_cf_opt(family, Some(&range.start), Some(end), &options);
        Ok(())
    }

    fn metrics(&self) -> StorageMetrics {
        let Some(store) = self.store.load_full() else { return StorageMetrics::default() };
        StorageMetrics {
            disk_bytes: store.sum("rocksdb.live-sst-files-size"),
            memtable_bytes: store.sum("rocksdb.cur-size-all-mem-tables"),
            cache_bytes: store.cache.get_usage() as u64,
            compactions_running: store.number("rocksdb.num-running-compactions", Partition::Rows),
            flushes_running: store.number("rocksdb.num-running-flushes", Partition::Rows),
            rows_estimate: store.number("rocksdb.estimate-num-keys", Partition::Rows),
            row_bytes: store.number("rocksdb.estimate-live-data-size", Partition::Rows)
                + store.number("rocksdb.cur-size-all-mem-tables", Partition::Rows),
            log_bytes: store.number("rocksdb.live-sst-files-size", Partition::Log)
                + store.number("rocksdb.cur-size-all-mem-tables", Partition::Log),
        }
    }
}

impl OpenView {
    fn read_options(&self) -> ReadOptions {
        let mut options = ReadOptions::default();
        options.set_snapshot(self.borrow_dependent());
        options
    }

    fn check_open(&self) -> Result<()> {
        match self.borrow_owner().closing.load(Ordering::Relaxed) {
            false => Ok(()),
            true => Err(reopening()),
        }
    }
}

impl Iterator for OpenEntries {
    type Item = Result<(Box<[u8]>, Box<[u8]>)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.with_dependent_mut(|view, entries| {
            let entry = entries.next()?;
            Some(match view.check_open() {
                Ok(()) => entry.map_err(|error| read_error(error, "could not scan the store")),
                Err(error) => Err(error),
            })
        })
    }
}

impl View {
    fn open(&self) -> Result<Arc<OpenView>> {
        self.open.read().as_ref().map(Arc::clone).ok_or_else(reopening)
    }
}

impl StorageSnapshot for View {
    fn get(&self, partition: Partition, key: &[u8]) -> Result<Option<Bytes>> {
        let view = self.open()?;
        let store = view.borrow_owner();
        let found = store
            .db
            .get_pinned_cf_opt(store.family(partition)?, key, &view.read_options())
            .map_err(|error| read_error(error, "could not read from the store"))?;
        Ok(found.map(copied))
    }

    fn multi_get(&self, partition: Partition, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>> {
        if keys.len() < BATCHED_GET_KEYS_MIN {
            return keys.iter().map(|key| self.get(partition, key)).collect();
        }
        let view = self.open()?;
        let store = view.borrow_owner();
        let sorted = keys.is_sorted();
        store
            .db
            .batched_multi_get_cf_opt(store.family(partition)?, keys, sorted, &view.read_options())
            .into_iter()
            .map(|found| match found {
                Ok(found) => Ok(found.map(copied)),
                Err(error) => Err(read_error(error, "could not read from the store")),
            })
            .collect()
    }

    fn scan<'a>(&'a self, partition: Partition, range: KeyRange, direction: Direction) -> Entries<'a> {
        if range.is_empty() {
            return Box::new(std::iter::empty());
        }
        let entries = self.open().and_then(|view| {
            OpenEntries::try_new(view, |view| {
                let family = view.borrow_owner().family(partition)?;
                let mode = match direction {
                    Direction::Forward => IteratorMode::Start,
                    Direction::Reverse => IteratorMode::End,
                };
                let options = scan_options(partition, range, direction);
                Ok(view.borrow_dependent().iterator_cf_opt(family, options, mode))
            })
        });
        match entries {
            Ok(entries) => Box::new(entries),
            Err(error) => Box::new(std::iter::once(Err(error))),
        }
    }

    fn visit(
        &self,
        partition: Partition,
        range: KeyRange,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let view = self.open()?;
        let family = view.borrow_owner().family(partition)?;
        let options = scan_options(partition, range, direction);
        let mut entries = view.borrow_dependent().raw_iterator_cf_opt(family, options);
        match direction {
            Direction::Forward => entries.seek_to_first(),
            Direction::Reverse => entries.seek_to_last(),
        }
        while let Some((key, value)) = entries.item() {
            view.check_open()?;
            if let ControlFlow::Break(()) = visit(key, value)? {
                return Ok(());
            }
            match direction {
                Direction::Forward => entries.next(),
                Direction::Reverse => entries.prev(),
            }
        }
        entries.status().map_err(|error| read_error(error, "could not scan the store"))
    }
}

fn copied(value: DBPinnableSlice<'_>) -> Bytes {
    Bytes::copy_from_slice(&value)
}

/// `Rows` has a prefix extractor: only a forward scan within one table and scope may use the prefix filter.
fn scan_options(partition: Partition, range: KeyRange, direction: Direction) -> ReadOptions {
    let mut options = ReadOptions::default();
    let within_prefix = partition == Partition::Rows
        && direction == Direction::Forward
        && range.start.get(..keys::SCOPE_PREFIX_BYTES).is_some_and(|prefix| {
            match (&range.end, after_prefix(prefix)) {
                (Some(end), Some(limit)) => *end <= limit,
                (_, None) => true,
                (None, Some(_)) => false,
            }
        });
    options.set_total_order_seek(!within_prefix);
    options.set_iterate_lower_bound(range.start);
    if let Some(end) = range.end {
        options.set_iterate_upper_bound(end);
    }
    options
}

fn open_error(error: RocksError) -> Error {
    match error.kind() {
        RocksErrorKind::Corruption | RocksErrorKind::NotFound | RocksErrorKind::InvalidArgument => {
            Error::corruption("the store is damaged and cannot be opened")
                .hint("restore the data directory from a backup")
                .source(error)
        }
        _ => Error::new(ErrorKind::Unavailable, SqlState::IO_ERROR, "the store cannot be opened")
            .hint("see the log of the server for the reason the operating system gave")
            .source(error),
    }
}

fn read_error(error: RocksError, what: &str) -> Error {
    match error.kind() {
        RocksErrorKind::Corruption => Error::corruption("stored data failed its checksum").source(error),
        _ => unavailable(what).source(error),
    }
}

fn unavailable(what: &str) -> Error {
    Error::new(ErrorKind::Unavailable, SqlState::IO_ERROR, what)
}

/// The error of reads and writes while their store is closed.
fn reopening() -> Error {
    unavailable("the store is being reopened because a write to disk failed").hint("run the statement again")
}

fn write_error(error: RocksError) -> Error {
    Error::new(ErrorKind::Unavailable, SqlState::OUTCOME_UNKNOWN, "the store could not be written")
        .source(error)
}
