//! RocksDB behind the storage traits, on disk or in memory. No other file names it.
//!
//! One column family a partition. Rows have a bloom filter over their table and scope prefix and over the whole key, in memory
//! and in the files, because every INSERT asks for a key that is almost never there. RocksDB's own checksums cover the log,
//! the files and the manifest.
//!
//! Invariant: the store, and with it the lock of the data directory, stays open as long as any snapshot of it lives.

use std::ops::ControlFlow;
use std::sync::Arc;

use ::rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBPinnableSlice,
    DBRecoveryMode, Env, Error as RocksError, ErrorKind as RocksErrorKind, IteratorMode, LogLevel, Options,
    ReadOptions, SliceTransform, WriteBatch as RocksBatch, WriteOptions,
};
use bytes::Bytes;
use self_cell::self_cell;

use super::{
    DataDirectory, Direction, Entries, KeyRange, Partition, StorageBackend, StorageMetrics, StorageSnapshot,
    Visitor, WriteBatch, WriteOp, after_prefix, keys,
};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result, SqlState};

/// The write-ahead log is bounded, so that a restart reads at most this much.
const WAL_BYTES_MAX: u64 = 192 << 20;
const INFO_LOG_BYTES_MAX: usize = 4 << 20;
const OPEN_FILES_MAX: i32 = 1_000;
/// From this many keys on a batched read is cheaper than single ones.
const BATCHED_GET_KEYS_MIN: usize = 4;

/// Memory of a store.
#[derive(Clone, Copy, Debug)]
pub struct StorageOptions {
    /// Bytes of file blocks kept uncompressed in memory, for all partitions together.
    pub block_cache_bytes: usize,
    /// Bytes of a memtable; each partition has one, and up to two more that are being written to files.
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
    store: Arc<Store>,
}

/// The fields are dropped in this order: first the store closes, then the directory is given back.
struct Store {
    db: DB,
    cache: Cache,
    /// `None` for a store in memory.
    directory: Option<Arc<DataDirectory>>,
}

type View<'a> = ::rocksdb::Snapshot<'a>;

self_cell!(
    struct OwnedView {
        owner: Arc<Store>,
        #[covariant]
        dependent: View,
    }
);

impl RocksStorage {
    /// Opens the store of a data directory, creating it when it is new.
    ///
    /// # Errors
    /// `Corruption` when RocksDB finds damage, `Unavailable` when the files cannot be opened.
    pub fn open(directory: Arc<DataDirectory>, options: StorageOptions) -> Result<Self> {
        let path = directory.store_path();
        let database_options = database_options(options);
        Self::open_with(&path, &database_options, options, Some(directory))
    }

    /// A store in memory, gone when it is dropped.
    ///
    /// # Errors
    /// `Internal` when RocksDB refuses, which it does only without memory.
    pub fn in_memory(options: StorageOptions) -> Result<Self> {
        let env = Env::mem_env().map_err(|error| read_error(error, "could not make a store in memory"))?;
        let mut database_options = database_options(options);
        database_options.set_env(&env);
        Self::open_with(std::path::Path::new("/kalamdb"), &database_options, options, None)
    }

    fn open_with(
        path: &std::path::Path,
        database_options: &Options,
        options: StorageOptions,
        directory: Option<Arc<DataDirectory>>,
    ) -> Result<Self> {
        let cache = Cache::new_lru_cache(options.block_cache_bytes);
        let families = Partition::ALL.map(|partition| {
            ColumnFamilyDescriptor::new(family_name(partition), family_options(partition, options, &cache))
        });
        let db = DB::open_cf_descriptors(database_options, path, families).map_err(open_error)?;
        Ok(Self { store: Arc::new(Store { db, cache, directory }) })
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

impl StorageBackend for RocksStorage {
    fn snapshot(&self) -> Arc<dyn StorageSnapshot> {
        Arc::new(OwnedView::new(Arc::clone(&self.store), |store| store.db.snapshot()))
    }

    fn write(&self, batch: WriteBatch, sync: bool) -> Result<()> {
        // Per operation RocksDB adds a tag, a family number and two lengths.
        let mut rocks = RocksBatch::with_capacity_bytes(batch.bytes() + 16 * batch.ops().len() + 16);
        for op in batch.ops() {
            match op {
                WriteOp::Put { partition, key, value } => {
                    rocks.put_cf(self.store.family(*partition)?, key, value)
                }
                WriteOp::Delete { partition, key } => rocks.delete_cf(self.store.family(*partition)?, key),
                WriteOp::DeleteRange { partition, range } => {
                    let Some(end) = &range.end else {
                        return Err(Error::internal("a range to the last key cannot be removed"));
                    };
                    if !range.is_empty() {
                        rocks.delete_range_cf(self.store.family(*partition)?, &range.start, end);
                    }
                }
            }
        }
        let mut write_options = WriteOptions::default();
        write_options.set_sync(sync);
        self.store.db.write_opt(rocks, &write_options).map_err(write_error)
    }

    fn sync(&self) -> Result<()> {
        // There is nothing below memory to sync to, and RocksDB's files in memory refuse to be.
        if self.store.directory.is_none() {
            return Ok(());
        }
        self.store.db.flush_wal(true).map_err(write_error)
    }

    fn metrics(&self) -> StorageMetrics {
        let store = &self.store;
        StorageMetrics {
            disk_bytes: store.sum("rocksdb.live-sst-files-size"),
            memtable_bytes: store.sum("rocksdb.cur-size-all-mem-tables"),
            cache_bytes: store.cache.get_usage() as u64,
            compactions_running: store.number("rocksdb.num-running-compactions", Partition::Rows),
            flushes_running: store.number("rocksdb.num-running-flushes", Partition::Rows),
            rows_estimate: store.number("rocksdb.estimate-num-keys", Partition::Rows),
            log_bytes: store.number("rocksdb.live-sst-files-size", Partition::Log)
                + store.number("rocksdb.cur-size-all-mem-tables", Partition::Log),
        }
    }
}

impl OwnedView {
    fn read_options(&self) -> ReadOptions {
        let mut options = ReadOptions::default();
        options.set_snapshot(self.borrow_dependent());
        options
    }
}

impl StorageSnapshot for OwnedView {
    fn get(&self, partition: Partition, key: &[u8]) -> Result<Option<Bytes>> {
        let store = self.borrow_owner();
        let found = store
            .db
            .get_pinned_cf_opt(store.family(partition)?, key, &self.read_options())
            .map_err(|error| read_error(error, "could not read from the store"))?;
        Ok(found.map(copied))
    }

    fn multi_get(&self, partition: Partition, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>> {
        if keys.len() < BATCHED_GET_KEYS_MIN {
            return keys.iter().map(|key| self.get(partition, key)).collect();
        }
        let store = self.borrow_owner();
        let sorted = keys.is_sorted();
        store
            .db
            .batched_multi_get_cf_opt(store.family(partition)?, keys, sorted, &self.read_options())
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
        let family = match self.borrow_owner().family(partition) {
            Ok(family) => family,
            Err(error) => return Box::new(std::iter::once(Err(error))),
        };
        let mode = match direction {
            Direction::Forward => IteratorMode::Start,
            Direction::Reverse => IteratorMode::End,
        };
        let options = scan_options(partition, range, direction);
        let entries = self.borrow_dependent().iterator_cf_opt(family, options, mode);
        Box::new(entries.map(|entry| entry.map_err(|error| read_error(error, "could not scan the store"))))
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
        let family = self.borrow_owner().family(partition)?;
        let options = scan_options(partition, range, direction);
        let mut entries = self.borrow_dependent().raw_iterator_cf_opt(family, options);
        match direction {
            Direction::Forward => entries.seek_to_first(),
            Direction::Reverse => entries.seek_to_last(),
        }
        while let Some((key, value)) = entries.item() {
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

/// Rows have a prefix extractor: only a forward scan within one table and scope may use the prefix filter.
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
        _ => Error::new(ErrorKind::Unavailable, SqlState::IO_ERROR, what).source(error),
    }
}

fn write_error(error: RocksError) -> Error {
    Error::new(ErrorKind::Unavailable, SqlState::OUTCOME_UNKNOWN, "the store could not be written")
        .source(error)
}
