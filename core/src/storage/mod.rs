//! Ordered bytes that survive: four partitions of keys and values, written in atomic batches and read through snapshots.
//!
//! It knows nothing of tables, only of bytes; [`keys`] and [`rows`] say what the bytes of the `Rows` partition mean. Storage is
//! synchronous, and [`blocking`] is the only way from async code into it, a whole batch of work at a time.
//!
//! Invariant: a batch is visible and durable as a whole or not at all, and a snapshot never changes.

#[cfg(test)]
mod arbitrary;
mod columns;
mod directory;
mod disk_space;
pub mod keys;
mod rocksdb;
pub mod row_decoder;
pub mod rows;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Error, Result};

pub(crate) use columns::canonical;
pub use directory::DataDirectory;
pub use disk_space::{DiskSpace, Room};
pub use rocksdb::{RocksStorage, StorageOptions};

/// A separate key space with its own memtable and files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Partition {
    /// The catalog, the state of the commit order, the epochs.
    Meta,
    /// The current rows of all tables.
    Rows,
    /// The change log.
    Log,
    /// What is known of cold rows: segments, filters, marks.
    Cold,
}

impl Partition {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Meta, Self::Rows, Self::Log, Self::Cold];
}

/// A range of keys: `start` is inclusive, `end` exclusive, `None` means to the last key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyRange {
    /// The first key that may be in the range.
    pub start: Vec<u8>,
    /// The first key behind the range.
    pub end: Option<Vec<u8>>,
}

impl KeyRange {
    /// Every key.
    pub fn all() -> Self {
        Self { start: Vec::new(), end: None }
    }

    /// The keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Vec<u8>>) -> Self {
        let start = prefix.into();
        let end = after_prefix(&start);
        Self { start, end }
    }

    /// One key.
    pub fn point(key: impl Into<Vec<u8>>) -> Self {
        let start = key.into();
        let mut end = start.clone();
        end.push(0);
        Self { start, end: Some(end) }
    }

    /// Whether no key can be in the range.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// Whether `key` lies in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= self.start.as_slice() && self.end.as_ref().is_none_or(|end| key < end.as_slice())
    }

    /// The keys that lie in both ranges.
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

/// The first key behind all keys that begin with `prefix`; `None` when there is no such key.
pub fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix.get(..=last)?.to_vec();
    if let Some(byte) = end.last_mut() {
        *byte += 1;
    }
    Some(end)
}

/// In which order a scan visits the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Ascending.
    Forward,
    /// Descending.
    Reverse,
}

/// One change of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteOp {
    /// Sets a key.
    Put {
        /// Where.
        partition: Partition,
        /// The key.
        key: Bytes,
        /// The value.
        value: Bytes,
    },
    /// Removes a key; nothing happens when it is absent.
    Delete {
        /// Where.
        partition: Partition,
        /// The key.
        key: Bytes,
    },
    /// Removes every key of a range.
    DeleteRange {
        /// Where.
        partition: Partition,
        /// The keys.
        range: KeyRange,
    },
}

/// Changes that are applied in order, as a whole or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteBatch {
    ops: Vec<WriteOp>,
    bytes: usize,
}

impl WriteBatch {
    /// An empty batch.
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

    /// Adds the changes of another batch behind those of this one.
    pub fn extend(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.ops.extend(other.ops);
    }

    /// The place up to which [`WriteBatch::truncate`] can take changes back.
    pub(crate) fn mark(&self) -> BatchMark {
        BatchMark { ops: self.ops.len(), bytes: self.bytes }
    }

    /// Takes back every change added after `mark`.
    pub(crate) fn truncate(&mut self, mark: BatchMark) {
        self.ops.truncate(mark.ops);
        self.bytes = mark.bytes;
    }

    /// The changes, in order.
    pub fn ops(&self) -> &[WriteOp] {
        &self.ops
    }

    /// The bytes of all keys and values.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
}

/// A place in a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchMark {
    ops: usize,
    bytes: usize,
}

/// What a store says about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StorageMetrics {
    /// Bytes of the files that hold live data, without the write-ahead log.
    pub disk_bytes: u64,
    /// Bytes of all memtables.
    pub memtable_bytes: u64,
    /// Bytes the block cache holds.
    pub cache_bytes: u64,
    /// Compactions that run now.
    pub compactions_running: u64,
    /// Memtable flushes that run now.
    pub flushes_running: u64,
    /// About how many keys the `Rows` partition has.
    pub rows_estimate: u64,
    /// Bytes of live rows in the `Rows` partition's files and memtables, about; never much less than there are.
    pub row_bytes: u64,
    /// Bytes of the `Log` partition's files and memtables, about.
    pub log_bytes: u64,
}

/// A store of ordered bytes.
pub trait StorageBackend: Send + Sync + 'static {
    /// Fixes the present state for reading. Cheap; a kept snapshot keeps overwritten values from being reclaimed.
    fn snapshot(&self) -> Arc<dyn StorageSnapshot>;

    /// Applies `batch`; with `sync` it is on stable storage when this returns, and so is every batch before it.
    ///
    /// # Errors
    /// After an error the outcome is unknown: the caller writes no more until the store is opened again.
    fn write(&self, batch: WriteBatch, sync: bool) -> Result<()>;

    /// Brings every batch written so far to stable storage.
    ///
    /// # Errors
    /// As [`StorageBackend::write`].
    fn sync(&self) -> Result<()>;

    /// Closes the store and opens it again, after a write has failed: what was synced is there, of later batches the first so many
    /// that reached the disk. From now on snapshots taken before answer with `Unavailable`. It blocks.
    ///
    /// # Errors
    /// `Unavailable` when reads do not end in time or the files cannot be opened, `Corruption` when they are damaged. The store is
    /// closed then, and may be reopened again.
    fn reopen(&self) -> Result<()>;

    /// Takes away what is left of deleted keys in a range, which every scan steps over until then. It may take long; what a kept
    /// snapshot can see stays. Here it does nothing, as where deleting leaves nothing.
    ///
    /// # Errors
    /// When the range has no end.
    fn compact(&self, _partition: Partition, _range: &KeyRange) -> Result<()> {
        Ok(())
    }

    /// Sizes and running work, about.
    fn metrics(&self) -> StorageMetrics;
}

/// Called with each key and value of a scan; says whether to go on.
pub type Visitor<'a> = dyn FnMut(&[u8], &[u8]) -> Result<std::ops::ControlFlow<()>> + 'a;

/// Keys with their values, in the scan's order.
pub type Entries<'a> = Box<dyn Iterator<Item = Result<(Box<[u8]>, Box<[u8]>)>> + 'a>;

/// The state of a store at one moment.
pub trait StorageSnapshot: Send + Sync {
    /// The value of a key.
    ///
    /// # Errors
    /// `Corruption` when a checksum does not fit, `Unavailable` when the files cannot be read.
    fn get(&self, partition: Partition, key: &[u8]) -> Result<Option<Bytes>>;

    /// The values of many keys, in the order of the keys.
    ///
    /// # Errors
    /// As [`StorageSnapshot::get`].
    fn multi_get(&self, partition: Partition, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>>;

    /// The keys of `range` with their values. After an error the iterator ends.
    fn scan<'a>(&'a self, partition: Partition, range: KeyRange, direction: Direction) -> Entries<'a>;

    /// Calls `visit` with each key of `range` and its value, without copying them, until it breaks.
    ///
    /// # Errors
    /// As [`StorageSnapshot::get`], and whatever `visit` returns.
    fn visit(
        &self,
        partition: Partition,
        range: KeyRange,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<()>;
}

/// Runs `work` on a thread that may block. It goes on to its end when the caller gives up, so it should be short or check a flag.
///
/// # Errors
/// What `work` returns; `Internal` when it panicked; `Unavailable` when the runtime is closing.
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
