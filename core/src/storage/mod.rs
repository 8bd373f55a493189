//! Durable ordered bytes: four partitions, written in atomic batches and read through snapshots.
//!
//! This module knows bytes, not tables; [`keys`] and [`rows`] define the bytes of the `Rows` partition.
//! Storage is synchronous. Async code enters it only through [`blocking`], once per batch of work, except for
//! single keys in memory, see [`StorageSnapshot::get_cached`].
//!
//! Invariant: a batch becomes visible and durable as a whole or not at all, and a snapshot never changes.

#[cfg(test)]
mod arbitrary;
mod columns;
mod directory;
mod disk_space;
mod format;
pub mod keys;
mod rocksdb;
pub mod row_decoder;
pub mod rows;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

pub(crate) use columns::canonical;
pub use directory::DataDirectory;
pub use disk_space::{DiskSpace, Room};
pub use format::Features;
pub(crate) use format::check_known;
pub use rocksdb::{RocksStorage, StorageOptions};

/// A separate key space with its own memtable and files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Partition {
    /// The catalog, the state of the commit order and the epochs.
    Meta,
    /// The hot rows of all tables, and flushed rows until their removal.
    Rows,
    /// The change log.
    Log,
    /// Metadata of cold rows: segments, key filters and marks.
    Cold,
}

impl Partition {
    /// All partitions.
    pub const ALL: [Self; 4] = [Self::Meta, Self::Rows, Self::Log, Self::Cold];
}

/// A range of keys: `start` is inclusive, `end` exclusive, `None` means to the last key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyRange {
    /// The first key that may be in the range.
    pub start: Vec<u8>,
    /// The first key after the range.
    pub end: Option<Vec<u8>>,
}

impl KeyRange {
    /// Returns the range of all keys.
    pub fn all() -> Self {
        Self { start: Vec::new(), end: None }
    }

    /// Returns the range of the keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Vec<u8>>) -> Self {
        let start = prefix.into();
        let end = after_prefix(&start);
        Self { start, end }
    }

    /// Returns the range of one key.
    pub fn point(key: impl Into<Vec<u8>>) -> Self {
        let start = key.into();
        let mut end = start.clone();
        end.push(0);
        Self { start, end: Some(end) }
    }

    /// Returns whether the range is that of one key; see [`KeyRange::point`].
    pub fn is_point(&self) -> bool {
        match &self.end {
            Some(end) => end.strip_suffix(&[0]).is_some_and(|start| start == self.start),
            None => false,
        }
    }

    /// Returns whether the range contains no key.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// Returns whether the range contains `key`.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= self.start.as_slice() && self.end.as_ref().is_none_or(|end| key < end.as_slice())
    }

    /// Returns the keys that are in both ranges.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        let end = match (&self.end, &other.end) {
            (Some(left), Some(right)) => Some(left.min(right).clone()),
            (Some(end), None) | (None, Some(end)) => Some(end.clone()),
            (None, None) => None,
        };
        Self { start: self.start.clone().max(other.start.clone()), end }
    }
}

/// Returns the first key after all keys that begin with `prefix`; `None` when there is no such key.
pub fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix.get(..=last)?.to_vec();
    if let Some(byte) = end.last_mut() {
        *byte += 1;
    }
    Some(end)
}

/// The order in which a scan visits the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Ascending.
    Forward,
    /// Descending.
    Reverse,
}

/// One operation of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteOp {
    /// Sets a key.
    Put {
        /// The partition.
        partition: Partition,
        /// The key.
        key: Bytes,
        /// The value.
        value: Bytes,
    },
    /// Removes a key; does nothing when the key is absent.
    Delete {
        /// The partition.
        partition: Partition,
        /// The key.
        key: Bytes,
    },
    /// Removes every key of a range.
    DeleteRange {
        /// The partition.
        partition: Partition,
        /// The keys.
        range: KeyRange,
    },
}

/// Operations that are applied in order, as a whole or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteBatch {
    ops: Vec<WriteOp>,
    bytes: usize,
}

impl WriteBatch {
    /// Returns an empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a key.
    pub fn put(&mut self, partition: Partition, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        let (key, value) = (key.into(), value.into());
        self.bytes += key.len() + value.len();
        self.ops.push(WriteOp::Put { partition, key, value });
    }

    /// Removes a key.
    pub fn delete(&mut self, partition: Partition, key: impl Into<Bytes>) {
        let key = key.into();
        self.bytes += key.len();
        self.ops.push(WriteOp::Delete { partition, key });
    }

    /// Removes every key of a range.
    pub fn delete_range(&mut self, partition: Partition, range: KeyRange) {
        self.bytes += range.start.len() + range.end.as_ref().map_or(0, Vec::len);
        self.ops.push(WriteOp::DeleteRange { partition, range });
    }

    /// Appends the operations of another batch.
    pub fn extend(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.ops.extend(other.ops);
    }

    /// Returns the current end of the batch, for [`WriteBatch::truncate`].
    pub(crate) fn mark(&self) -> BatchMark {
        BatchMark { ops: self.ops.len(), bytes: self.bytes }
    }

    /// Removes every operation added after `mark`.
    pub(crate) fn truncate(&mut self, mark: BatchMark) {
        self.ops.truncate(mark.ops);
        self.bytes = mark.bytes;
    }

    /// Returns the operations, in order.
    pub fn ops(&self) -> &[WriteOp] {
        &self.ops
    }

    /// Returns the total bytes of all keys and values.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns whether the batch has no operations.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
}

/// A position in a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchMark {
    ops: usize,
    bytes: usize,
}

/// Sizes and background work of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StorageMetrics {
    /// Bytes of the files that hold live data, without the write-ahead log.
    pub disk_bytes: u64,
    /// Bytes in all memtables.
    pub memtable_bytes: u64,
    /// Bytes in the block cache.
    pub cache_bytes: u64,
    /// Compactions running now.
    pub compactions_running: u64,
    /// Memtable flushes running now.
    pub flushes_running: u64,
    /// The approximate number of keys in the `Rows` partition.
    pub rows_estimate: u64,
    /// The approximate bytes of live rows in the `Rows` partition; never a large underestimate.
    pub row_bytes: u64,
    /// The approximate bytes in the `Log` partition's files and memtables.
    pub log_bytes: u64,
}

/// A store of ordered bytes.
pub trait StorageBackend: Send + Sync + 'static {
    /// Returns a snapshot of the current state. Cheap, but it keeps overwritten values from being reclaimed.
    fn snapshot(&self) -> Arc<dyn StorageSnapshot>;

    /// Applies `batch`. With `sync`, this batch and all earlier ones are on stable storage on return.
    ///
    /// # Errors
    /// After an error the outcome is unknown: the caller must not write again until the store is reopened.
    fn write(&self, batch: WriteBatch, sync: bool) -> Result<()>;

    /// Brings all batches written so far to stable storage.
    ///
    /// # Errors
    /// As [`StorageBackend::write`].
    fn sync(&self) -> Result<()>;

    /// Closes and reopens the store after a failed write. Synced batches survive; of the later ones, those
    /// before some point survive. Snapshots taken before return `Unavailable` from now on. Blocks.
    ///
    /// # Errors
    /// `Unavailable` when reads do not end in time or the files cannot be opened, `Corruption` when they are
    /// damaged. The store is closed then; the caller may try again.
    fn reopen(&self) -> Result<()>;

    /// Compacts the tombstones of a key range, which every scan skips until then. May take long; keeps
    /// everything that a live snapshot can see. The default does nothing, for backends without tombstones.
    ///
    /// # Errors
    /// `Internal` when the range has no end.
    fn compact(&self, _partition: Partition, _range: &KeyRange) -> Result<()> {
        Ok(())
    }

    /// Returns approximate sizes and the running background work.
    fn metrics(&self) -> StorageMetrics;
}

/// Receives each key and value of a scan; decides whether the scan continues.
pub type Visitor<'a> = dyn FnMut(&[u8], &[u8]) -> Result<std::ops::ControlFlow<()>> + 'a;

/// Keys with their values, in scan order.
pub type Entries<'a> = Box<dyn Iterator<Item = Result<(Box<[u8]>, Box<[u8]>)>> + 'a>;

/// What the memory of a store tells about a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cached {
    /// The value of the key.
    Found(Bytes),
    /// The key is absent.
    Absent,
    /// Only the disk can tell.
    Unknown,
}

/// The state of a store at one moment.
pub trait StorageSnapshot: Send + Sync {
    /// Returns the value of a key.
    ///
    /// # Errors
    /// `Corruption` when a checksum does not match, `Unavailable` when the files cannot be read.
    fn get(&self, partition: Partition, key: &[u8]) -> Result<Option<Bytes>>;

    /// Returns the value of a key from memory alone: it never waits for a disk, so it needs no thread that
    /// may block. The default knows nothing.
    ///
    /// # Errors
    /// As [`StorageSnapshot::get`].
    fn get_cached(&self, _partition: Partition, _key: &[u8]) -> Result<Cached> {
        Ok(Cached::Unknown)
    }

    /// Returns the values of many keys, in the order of `keys`.
    ///
    /// # Errors
    /// As [`StorageSnapshot::get`].
    fn multi_get(&self, partition: Partition, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>>;

    /// Returns the keys of `range` with their values. The iterator ends after an error.
    fn scan<'a>(&'a self, partition: Partition, range: KeyRange, direction: Direction) -> Entries<'a>;

    /// Calls `visit` with each key of `range` and its value, without copying them, until `visit` breaks.
    ///
    /// # Errors
    /// As [`StorageSnapshot::get`], and any error of `visit`.
    fn visit(
        &self,
        partition: Partition,
        range: KeyRange,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<()>;
}

/// Runs `work` on a thread that may block. Work outlives a cancelled caller: keep it short or check a flag.
///
/// # Errors
/// Any error of `work`; `Internal` when it panics; `Unavailable` when the runtime shuts down.
pub async fn blocking<T>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T>
where
    T: Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => {
            tracing::error!(%error, "storage work panicked");
            Err(Error::internal("the storage work failed").source(error))
        }
        Err(_) => Err(Error::shutting_down()),
    }
}
