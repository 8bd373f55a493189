//! An open store and its snapshots, which read it.
//!
//! A snapshot holds its store in a slot that can be emptied. To close a store, running reads are told to end,
//! the last of them closes it, and later reads of the snapshots fail.
//!
//! Invariant: until its reads are ended, the store stays open and the data directory locked while any
//! snapshot lives.

use std::convert::Infallible;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Weak};

use ::rocksdb::{
    Cache, ColumnFamily, DB, DBIterator, DBPinnableSlice, ErrorKind as RocksErrorKind, IteratorMode,
    ReadOptions, ReadTier,
};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use self_cell::self_cell;

use super::errors::{read_error, reopening};
use super::options::family_name;
use crate::error::{Error, Result};
use crate::storage::{
    Cached, DataDirectory, Direction, Entries, KeyRange, Partition, StorageSnapshot, Visitor, after_prefix,
    keys,
};

/// From this many keys on, a batched read is cheaper than single reads.
const BATCHED_GET_KEYS_MIN: usize = 4;
/// From this many snapshots on, dropped ones are removed from the list.
const HANDLES_PRUNED_MIN: usize = 64;

/// An open store. Fields are dropped in this order: the store closes before the directory is unlocked.
pub(super) struct Store {
    pub(super) db: DB,
    pub(super) cache: Cache,
    pub(super) directory: Option<Arc<DataDirectory>>,
    /// Tells running reads to end.
    closing: AtomicBool,
    handles: Mutex<SnapshotHandles>,
    _closed: mpsc::Sender<Infallible>,
}

/// The snapshots that can still be read.
struct SnapshotHandles {
    handles: Vec<Weak<SnapshotHandle>>,
    pruned_at: usize,
}

type RocksSnapshot<'a> = ::rocksdb::Snapshot<'a>;

self_cell!(
    /// A snapshot together with its store.
    struct OpenSnapshot {
        owner: Arc<Store>,
        #[covariant]
        dependent: RocksSnapshot,
    }
);

self_cell!(
    /// An iterator together with its snapshot.
    struct OpenEntries {
        owner: Arc<OpenSnapshot>,
        #[not_covariant]
        dependent: DBIterator,
    }
);

/// A snapshot that becomes unreadable when its store is reopened.
pub(super) struct SnapshotHandle {
    open: RwLock<Option<Arc<OpenSnapshot>>>,
}

impl Store {
    /// Returns an open store, and a receiver that disconnects when it has closed.
    pub(super) fn new(
        db: DB,
        cache: Cache,
        directory: Option<Arc<DataDirectory>>,
    ) -> (Arc<Self>, mpsc::Receiver<Infallible>) {
        let (sender, closed) = mpsc::channel();
        let store = Self {
            db,
            cache,
            directory,
            closing: AtomicBool::new(false),
            handles: Mutex::new(SnapshotHandles { handles: Vec::new(), pruned_at: HANDLES_PRUNED_MIN }),
            _closed: sender,
        };
        (Arc::new(store), closed)
    }

    pub(super) fn snapshot(self: &Arc<Self>) -> Arc<SnapshotHandle> {
        let open = Arc::new(OpenSnapshot::new(Arc::clone(self), |store| store.db.snapshot()));
        let handle = Arc::new(SnapshotHandle { open: RwLock::new(Some(open)) });
        let mut handles = self.handles.lock();
        handles.add(&handle);
        if self.closing.load(Ordering::Acquire) {
            handle.open.write().take();
        }
        handle
    }

    /// Tells running reads to end, and makes later ones fail.
    pub(super) fn end_reads(&self) {
        self.closing.store(true, Ordering::Release);
        let handles = std::mem::take(&mut self.handles.lock().handles);
        for handle in handles.iter().filter_map(Weak::upgrade) {
            handle.open.write().take();
        }
    }

    pub(super) fn family(&self, partition: Partition) -> Result<&ColumnFamily> {
        let name = family_name(partition);
        self.db.cf_handle(name).ok_or_else(|| Error::internal(format!("partition \"{name}\" is not open")))
    }

    /// Returns a property of a partition.
    pub(super) fn number(&self, property: &str, partition: Partition) -> u64 {
        self.family(partition)
            .ok()
            .and_then(|family| self.db.property_int_value_cf(family, property).ok().flatten())
            .unwrap_or(0)
    }

    /// Returns the sum of a property over all partitions.
    pub(super) fn sum(&self, property: &str) -> u64 {
        Partition::ALL.iter().map(|partition| self.number(property, *partition)).sum()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.db.cancel_all_background_work(true);
    }
}

impl SnapshotHandles {
    fn add(&mut self, handle: &Arc<SnapshotHandle>) {
        if self.handles.len() >= self.pruned_at {
            self.handles.retain(|handle| handle.strong_count() > 0);
            self.pruned_at = HANDLES_PRUNED_MIN.max(2 * self.handles.len());
        }
        self.handles.push(Arc::downgrade(handle));
    }
}

impl OpenSnapshot {
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
        self.with_dependent_mut(|snapshot, entries| {
            let entry = entries.next()?;
            Some(match snapshot.check_open() {
                Ok(()) => entry.map_err(|error| read_error(error, "could not scan the store")),
                Err(error) => Err(error),
            })
        })
    }
}

impl SnapshotHandle {
    /// Returns a snapshot of a closed store, which cannot be read.
    pub(super) fn closed() -> Self {
        Self { open: RwLock::new(None) }
    }

    fn open(&self) -> Result<Arc<OpenSnapshot>> {
        self.open.read().as_ref().map(Arc::clone).ok_or_else(reopening)
    }
}

impl StorageSnapshot for SnapshotHandle {
    fn get(&self, partition: Partition, key: &[u8]) -> Result<Option<Bytes>> {
        let snapshot = self.open()?;
        let store = snapshot.borrow_owner();
        let found = store
            .db
            .get_pinned_cf_opt(store.family(partition)?, key, &snapshot.read_options())
            .map_err(|error| read_error(error, "could not read from the store"))?;
        Ok(found.map(copied))
    }

    fn get_cached(&self, partition: Partition, key: &[u8]) -> Result<Cached> {
        let snapshot = self.open()?;
        let store = snapshot.borrow_owner();
        let mut options = snapshot.read_options();
        // Memtables and the block cache. A read that needs a file is incomplete.
        options.set_read_tier(ReadTier::BlockCache);
        match store.db.get_pinned_cf_opt(store.family(partition)?, key, &options) {
            Ok(Some(value)) => Ok(Cached::Found(copied(value))),
            Ok(None) => Ok(Cached::Absent),
            Err(error) if error.kind() == RocksErrorKind::Incomplete => Ok(Cached::Unknown),
            Err(error) => Err(read_error(error, "could not read from the store")),
        }
    }

    fn multi_get(&self, partition: Partition, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>> {
        if keys.len() < BATCHED_GET_KEYS_MIN {
            return keys.iter().map(|key| self.get(partition, key)).collect();
        }
        let snapshot = self.open()?;
        let store = snapshot.borrow_owner();
        let sorted = keys.is_sorted();
        store
            .db
            .batched_multi_get_cf_opt(store.family(partition)?, keys, sorted, &snapshot.read_options())
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
        let entries = self.open().and_then(|snapshot| {
            OpenEntries::try_new(snapshot, |snapshot| {
                let family = snapshot.borrow_owner().family(partition)?;
                let mode = match direction {
                    Direction::Forward => IteratorMode::Start,
                    Direction::Reverse => IteratorMode::End,
                };
                let options = scan_options(partition, range, direction);
                Ok(snapshot.borrow_dependent().iterator_cf_opt(family, options, mode))
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
        let snapshot = self.open()?;
        let family = snapshot.borrow_owner().family(partition)?;
        let options = scan_options(partition, range, direction);
        let mut entries = snapshot.borrow_dependent().raw_iterator_cf_opt(family, options);
        match direction {
            Direction::Forward => entries.seek_to_first(),
            Direction::Reverse => entries.seek_to_last(),
        }
        while let Some((key, value)) = entries.item() {
            snapshot.check_open()?;
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
