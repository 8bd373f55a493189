//! Hot rows as columns in memory: what scans decoded of a table's stored rows, kept for the next scan as long as it is still so.
//!
//! The rows of one table and scope are cut into *chunks*, ranges of keys with about 8,192 rows. A scan takes the chunks it finds
//! and reads the stretches between them from the store, and what it has decoded of those becomes chunks. Only columns that
//! were asked for are kept. It fills by scans alone, so a restart begins with nothing and an idle database holds nothing.
//!
//! Invariant: a chunk is what a scan of the store would give in every snapshot from that it was read in to the last noted commit.
//! - A commit is noted, which removes the chunks with a changed key, before its snapshot is installed: no snapshot that anybody
//!   holds is later than the last noted commit, and none that is earlier than the chunk is given it.
//! - A chunk read in snapshot S is accepted only when no commit noted after S changed a key in its range. Which keys those
//!   changed is remembered in a bounded list that begins when the first scan offers a chunk of the table and scope; a scan of a
//!   snapshot before the beginning of that list is refused.
//! - Both happen under one lock, so a commit is noted either before a chunk is offered, and is in the list, or after it was
//!   accepted, and removes it.
//! - Which stored rows are shown depends also on the table's version, on the seq up to which its rows are cold, and on the time:
//!   a chunk is given to scans with the same [`Generation`], at times at which the same rows are expired.

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

/// Sizes of the hot tier.
#[derive(Clone, Copy, Debug)]
pub struct HotOptions {
    /// Bytes of all chunks; 0 keeps none.
    pub bytes_max: usize,
    /// Rows after which a scan begins another chunk.
    pub chunk_rows: usize,
    /// Chunks of fewer rows are merged into their neighbours when those are read again.
    pub chunk_rows_min: usize,
}

impl HotOptions {
    /// Chunks of the usual size.
    pub fn of_bytes(bytes_max: usize) -> Self {
        Self { bytes_max, chunk_rows: 8_192, chunk_rows_min: 1_024 }
    }
}

/// What decides which of the stored rows are shown, beside the snapshot and the time. It grows from commit to commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation {
    /// The version of the table's definition.
    pub version: SchemaVersion,
    /// Rows of commits up to this one are cold.
    pub flushed: Seq,
}

/// What a scan reads.
#[derive(Clone, Copy, Debug)]
pub struct HotScan {
    /// The table.
    pub table: TableId,
    /// Whose rows.
    pub scope: ScopeId,
    /// How they are shown.
    pub generation: Generation,
    /// The seq of its snapshot.
    pub seq: Seq,
    /// Rows that expire at this time or before are gone; microseconds UTC.
    pub now_us: i64,
    /// Its place among all scans, by [`HotChunks::begin`]. Chunks that no later scan used make room for those of this one.
    pub turn: u64,
}

/// The times, in microseconds UTC, at which the same rows are expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    from: i64,
    until: i64,
}

impl Times {
    /// Any time: no row expires.
    pub const ALWAYS: Self = Self { from: i64::MIN, until: i64::MAX };

    /// Leaves out the times at which a row that expires then is not shown, or is, as it is at `now_us`.
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

/// Where the next rows of a scan are.
#[derive(Debug)]
pub enum Found {
    /// Here: the columns that were asked for.
    Chunk {
        /// In the order they were asked for.
        columns: Vec<ArrayRef>,
        /// How many rows; it matters when no columns were asked for.
        rows: usize,
        /// The first key behind them.
        end: Vec<u8>,
    },
    /// In the store.
    Stretch {
        /// The first key behind the rows to read.
        end: Option<Vec<u8>>,
        /// The columns to decode: those that were asked for and those that the chunks to be replaced have.
        positions: Vec<usize>,
    },
}

/// A decoded stretch of the key space.
#[derive(Debug)]
pub struct Decoded<'a> {
    /// Its first key.
    pub start: &'a [u8],
    /// The first key behind it.
    pub end: &'a [u8],
    /// Which columns it has, as positions in the table's full schema.
    pub positions: &'a [usize],
    /// Those columns.
    pub columns: &'a [ArrayRef],
    /// Its rows that are shown, in the order of their keys.
    pub rows: usize,
    /// When those are the ones that are shown.
    pub times: Times,
}

/// Numbers about the hot tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HotCounters {
    /// Bytes of all chunks.
    pub bytes: usize,
    /// Chunks.
    pub chunks: usize,
    /// Chunks that scans took from here.
    pub hits: u64,
    /// Stretches that scans read from the store.
    pub misses: u64,
}

/// The chunks of all tables; see the module.
#[derive(Debug)]
pub struct HotChunks {
    options: HotOptions,
    chunks: Mutex<Chunks>,
}

impl HotChunks {
    /// No chunks, in a database whose last commit is `seq`.
    pub fn new(options: HotOptions, seq: Seq) -> Self {
        Self { options, chunks: Mutex::new(Chunks::new(options, seq)) }
    }

    /// Its sizes.
    pub fn options(&self) -> HotOptions {
        self.options
    }

    /// A number for a new scan; `None` when nothing is kept.
    pub fn begin(&self) -> Option<u64> {
        (self.options.bytes_max > 0).then(|| self.chunks.lock().begin())
    }

    /// Where the first rows of `range` are, of which a scan wants the columns at `wanted`, positions in the full schema.
    pub fn find(&self, scan: &HotScan, range: &KeyRange, wanted: &[usize]) -> Found {
        self.chunks.lock().find(scan, range, wanted)
    }

    /// Keeps what a scan has decoded of the store, unless it has changed since the scan's snapshot.
    pub fn offer(&self, scan: &HotScan, decoded: &Decoded<'_>) {
        self.chunks.lock().offer(scan, decoded);
    }

    /// Removes what a commit changed. The caller installs the commit's snapshot afterwards, not before.
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

    /// How much it holds, and of how much use it was.
    pub fn counters(&self) -> HotCounters {
        self.chunks.lock().counters()
    }
}
