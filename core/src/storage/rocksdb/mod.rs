//! RocksDB behind the storage traits, on disk or in memory. No other folder uses RocksDB.
//!
//! RocksDB locks its folder, so a store must be closed before it is reopened; see `store` for how its
//! snapshots let go of it.
//!
//! Invariant: until a reopen, the store stays open and the data directory locked while any snapshot lives.

mod errors;
mod options;
mod store;

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use ::rocksdb::{Cache, CompactOptions, DB, Env, Options, WriteBatch as RocksBatch, WriteOptions};
use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use self::errors::{open_error, read_error, reopening, unavailable, write_error};
use self::options::{database_options, families};
use self::store::{SnapshotHandle, Store};
use crate::error::{Error, Result};
use crate::storage::{
    DataDirectory, KeyRange, Partition, StorageBackend, StorageMetrics, StorageSnapshot, WriteBatch, WriteOp,
};

pub use options::StorageOptions;

/// How long closing waits for running reads, which end at their next key.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(10);

/// A RocksDB store.
pub struct RocksStorage {
    config: StoreConfig,
    /// `None` while it is closed.
    store: ArcSwapOption<Store>,
    /// Disconnects when the store that was opened last has closed.
    closed: Mutex<mpsc::Receiver<Infallible>>,
}

/// The path of a store and the options to open it.
struct StoreConfig {
    path: PathBuf,
    database: Options,
    options: StorageOptions,
    /// `None` for an in-memory store.
    directory: Option<Arc<DataDirectory>>,
    read_only: bool,
}

impl RocksStorage {
    /// Opens the store of a data directory; creates it when it is new.
    ///
    /// # Errors
    /// `Corruption` when RocksDB finds damage, `Unavailable` when the files cannot be opened.
    pub fn open(directory: Arc<DataDirectory>, options: StorageOptions) -> Result<Self> {
        let (path, database) = (directory.store_path(), database_options(options));
        Self::open_at(StoreConfig { path, database, options, directory: Some(directory), read_only: false })
    }

    /// Opens the store of a data directory read-only: nothing on disk changes, and writes fail.
    ///
    /// # Errors
    /// As [`RocksStorage::open`]; also when there is no store.
    pub(crate) fn open_read_only(directory: Arc<DataDirectory>, options: StorageOptions) -> Result<Self> {
        let (path, database) = (directory.store_path(), database_options(options));
        Self::open_at(StoreConfig { path, database, options, directory: Some(directory), read_only: true })
    }

    /// Creates a store in memory, which is lost on drop.
    ///
    /// # Errors
    /// `Internal` when RocksDB refuses, which happens only when memory runs out.
    pub fn in_memory(options: StorageOptions) -> Result<Self> {
        let env = Env::mem_env().map_err(|error| read_error(error, "could not create a store in memory"))?;
        let mut database = database_options(options);
        database.set_env(&env);
        let path = Path::new("/kalamdb").to_owned();
        Self::open_at(StoreConfig { path, database, options, directory: None, read_only: false })
    }

    fn open_at(config: StoreConfig) -> Result<Self> {
        let (store, closed) = config.open()?;
        Ok(Self { config, store: ArcSwapOption::new(Some(store)), closed: Mutex::new(closed) })
    }

    /// Ends all reads and closes the store.
    fn close(&self) -> Result<()> {
        if let Some(store) = self.store.swap(None) {
            store.end_reads();
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

impl StoreConfig {
    fn open(&self) -> Result<(Arc<Store>, mpsc::Receiver<Infallible>)> {
        let cache = Cache::new_lru_cache(self.options.block_cache_bytes);
        let families = families(self.options, &cache);
        let db = match self.read_only {
            true => DB::open_cf_descriptors_read_only(&self.database, &self.path, families, false),
            false => DB::open_cf_descriptors(&self.database, &self.path, families),
        };
        let db = db.map_err(open_error)?;
        Ok(Store::new(db, cache, self.directory.as_ref().map(Arc::clone)))
    }
}

impl StorageBackend for RocksStorage {
    fn snapshot(&self) -> Arc<dyn StorageSnapshot> {
        match self.store.load_full() {
            Some(store) => store.snapshot(),
            None => Arc::new(SnapshotHandle::closed()),
        }
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
        let (store, closed) = self.config.open()?;
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
