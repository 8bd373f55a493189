//! Hot rows as columns in memory: scans leave decoded rows to later scans, until a commit changes them.
//!
//! The rows of one table and scope are split into *chunks*, key ranges with about 8,192 rows. A scan takes
//! existing chunks and reads the key ranges between them from the store; the rows decoded there become
//! chunks. Only requested columns are kept. Only scans fill the tier, so it is empty after a restart and in
//! an idle database.
//!
//! Invariant: a chunk equals the result of a store scan in every snapshot from the one it was read in up to
//! the last noted commit.
//! - A commit is noted before its snapshot is installed; noting it removes the chunks with changed keys. So
//!   no snapshot in use is newer than the last noted commit, and a snapshot never gets a chunk newer than
//!   itself.
//! - A chunk read in snapshot S is accepted only when no commit noted after S changed a key in its range. A
//!   bounded list remembers the changed keys. It starts when a scan first offers a chunk of the table and
//!   scope; chunks of earlier snapshots are refused.
//! - One lock covers both. So a commit is noted either before the offer, and is in the list, or after it, and
//!   removes the chunk.
//! - The visibility of stored rows also depends on the table version, the flushed seq and the time. So a
//!   chunk serves only scans with the same [`Generation`], at times when the same rows are expired.

mod changes;
mod chunks;
#[cfg(test)]
mod tests;

use arrow::array::ArrayRef;
use parking_lot::Mutex;

use crate::change_log::CommitRecord;
use crate::ids::{SchemaVersion, ScopeId, Seq, TableId};
use crate::schema_registry::CatalogChange;
use crate::storage::KeyRange;

use chunks::Chunks;

/// Limits of the hot tier.
#[derive(Clone, Copy, Debug)]
pub struct HotOptions {
    /// Maximum bytes of all chunks; 0 disables the tier.
    pub bytes_max: usize,
    /// Rows after which a scan starts another chunk.
    pub chunk_rows: usize,
    /// A smaller chunk becomes part of a larger one when its neighbourhood is read again.
    pub chunk_rows_min: usize,
}

impl HotOptions {
    /// Returns the default chunk sizes with a memory limit.
    pub fn of_bytes(bytes_max: usize) -> Self {
        Self { bytes_max, chunk_rows: 8_192, chunk_rows_min: 1_024 }
    }
}

/// Decides, besides snapshot and time, which stored rows are visible. Grows from commit to commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation {
    /// The version of the table definition.
    pub version: SchemaVersion,
    /// Rows of commits up to this one are cold.
    pub flushed: Seq,
}

/// The parameters of a scan.
#[derive(Clone, Copy, Debug)]
pub struct HotScan {
    /// The table.
    pub table: TableId,
    /// The owner of the rows.
    pub scope: ScopeId,
    /// The generation of its snapshot.
    pub generation: Generation,
    /// The seq of its snapshot.
    pub seq: Seq,
    /// The time of the statement, microseconds UTC: rows that expire then or earlier are invisible.
    pub now_us: i64,
    /// Its number from [`HotChunks::begin`]. Its chunks may evict those last used by earlier scans.
    pub turn: u64,
}

/// The times, in microseconds UTC, at which the same rows are expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    from: i64,
    until: i64,
}

impl Times {
    /// All times: no row expires.
    pub const ALWAYS: Self = Self { from: i64::MIN, until: i64::MAX };

    /// Keeps the times at which a row with `expires_at` has the same visibility as at `now_us`.
    pub fn narrow(&mut self, expires_at: i64, now_us: i64) {
        if expires_at <= now_us {
            self.from = self.from.max(expires_at);
        } else {
            self.until = self.until.min(expires_at);
        }
    }

    fn contain(self, time_us: i64) -> bool {
        self.from <= time_us && time_us < self.until
    }
}

/// The source of the next rows of a scan.
#[derive(Debug)]
pub enum Found {
    /// A chunk: the requested columns.
    Chunk {
        /// In the requested order.
        columns: Vec<ArrayRef>,
        /// The number of rows, which matters when no columns are requested.
        rows: usize,
        /// The first key after the chunk.
        end: Vec<u8>,
    },
    /// The store.
    Store {
        /// The first key after the range to read.
        end: Option<Vec<u8>>,
        /// The columns to decode: the requested ones, and those of the chunks to replace.
        positions: Vec<usize>,
    },
}

/// The decoded rows of a range read from the store.
#[derive(Debug)]
pub struct Decoded<'a> {
    /// Its first key.
    pub start: &'a [u8],
    /// The first key after it.
    pub end: &'a [u8],
    /// The positions of its columns in the table's full schema.
    pub positions: &'a [usize],
    /// The decoded columns.
    pub columns: &'a [ArrayRef],
    /// The number of visible rows; they are in key order.
    pub rows: usize,
    /// The times at which exactly these rows are visible.
    pub times: Times,
}

/// Counters of the hot tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HotCounters {
    /// Bytes of all chunks.
    pub bytes: usize,
    /// The number of chunks.
    pub chunks: usize,
    /// Chunks that scans took.
    pub hits: u64,
    /// Ranges that scans read from the store.
    pub misses: u64,
}

/// The chunks of all tables; see the module documentation.
#[derive(Debug)]
pub struct HotChunks {
    options: HotOptions,
    chunks: Mutex<Chunks>,
}

impl HotChunks {
    /// Creates an empty tier for a database whose last commit is `seq`.
    pub fn new(options: HotOptions, seq: Seq) -> Self {
        Self { options, chunks: Mutex::new(Chunks::new(options, seq)) }
    }

    /// Returns the limits.
    pub fn options(&self) -> HotOptions {
        self.options
    }

    /// Returns a number for a new scan; `None` when the tier is disabled.
    pub fn begin(&self) -> Option<u64> {
        (self.options.bytes_max > 0).then(|| self.chunks.lock().begin())
    }

    /// Finds the source of the first rows of `range`; `wanted` are positions in the full schema.
    pub fn find(&self, scan: &HotScan, range: &KeyRange, wanted: &[usize]) -> Found {
        self.chunks.lock().find(scan, range, wanted)
    }

    /// Keeps the rows that a scan decoded, unless they changed after the scan's snapshot.
    pub fn offer(&self, scan: &HotScan, decoded: &Decoded<'_>) {
        self.chunks.lock().offer(scan, decoded);
    }

    /// Removes the chunks that a commit changed. The caller must install the commit's snapshot afterwards.
    pub fn note(&self, record: &CommitRecord) {
        let mut chunks = self.chunks.lock();
        for change in &record.catalog {
            match change {
                CatalogChange::DropTable(table) => chunks.remove_table(*table),
                CatalogChange::DropUser(user) => chunks.remove_scope(ScopeId::of(*user)),
                CatalogChange::PutNamespace(_)
                | CatalogChange::DropNamespace(_)
                | CatalogChange::PutTable(_)
                | CatalogChange::PutUser(_)
                | CatalogChange::PutStorage(_)
                | CatalogChange::DropStorage(_) => {}
            }
        }
        for changes in &record.tables {
            let keys = changes.rows.iter().map(|change| &*change.key);
            chunks.change((changes.table, changes.scope), record.seq, keys);
        }
        chunks.noted(record.seq);
    }

    /// Returns the counters.
    pub fn counters(&self) -> HotCounters {
        self.chunks.lock().counters()
    }
}
