//! The chunks of all tables, under the lock of [`super::HotChunks`].
//!
//! Invariant: chunks of a table and scope do not overlap; `bytes` and `by_use` describe exactly them.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef};

use super::changes::{Changes, TableScope};
use super::{Decoded, Found, Generation, HotCounters, HotOptions, HotScan, Times};
use crate::ids::{ScopeId, Seq, TableId};
use crate::storage::KeyRange;

/// The maximum number of tables and scopes with chunks. Beyond it, the least recently used one is evicted.
const TABLE_SCOPES_MAX: usize = 4_096;
/// The approximate overhead of a chunk besides its columns and keys.
const CHUNK_OVERHEAD_BYTES: usize = 512;

/// A stored key.
type Key = Arc<[u8]>;
/// The last scan that used a chunk, and the chunk's id.
type Use = (u64, u64);

#[derive(Debug)]
pub(super) struct Chunks {
    options: HotOptions,
    /// The last noted commit.
    noted: Seq,
    changes: Changes,
    table_scopes: HashMap<TableScope, TableChunks>,
    /// The start of every chunk, least recently used first.
    by_use: BTreeMap<Use, (TableScope, Key)>,
    bytes: usize,
    turns: u64,
    next_id: u64,
    hits: u64,
    misses: u64,
}

/// The chunks of a table and scope.
#[derive(Debug)]
struct TableChunks {
    /// The change list covers the commits after this one.
    since: Seq,
    generation: Generation,
    /// By first key.
    chunks: BTreeMap<Key, Chunk>,
}

#[derive(Debug)]
struct Chunk {
    id: u64,
    /// The first key after it.
    end: Key,
    /// The seq of the snapshot it was read in.
    from: Seq,
    times: Times,
    rows: usize,
    /// By position in the full schema; `None` where nobody requested the column.
    columns: Vec<Option<ArrayRef>>,
    bytes: usize,
    /// The last scan that used it.
    used: u64,
}

impl Chunk {
    fn has(&self, positions: &[usize]) -> bool {
        positions.iter().all(|position| matches!(self.columns.get(*position), Some(Some(_))))
    }

    fn positions(&self) -> impl Iterator<Item = usize> {
        self.columns.iter().enumerate().filter(|(_, column)| column.is_some()).map(|(position, _)| position)
    }

    fn is_seen_by(&self, scan: &HotScan) -> bool {
        self.from <= scan.seq && self.times.contain(scan.now_us)
    }
}

impl TableChunks {
    /// Returns the chunk that contains `key`.
    fn covering(&self, key: &[u8]) -> Option<(&Key, &Chunk)> {
        let up_to = (Bound::Unbounded, Bound::Included(key));
        self.chunks.range::<[u8], _>(up_to).next_back().filter(|(_, chunk)| *chunk.end > *key)
    }

    /// Returns the chunks that begin after `key`.
    fn behind(&self, key: &[u8]) -> impl Iterator<Item = (&Key, &Chunk)> {
        self.chunks.range::<[u8], _>((Bound::Excluded(key), Bound::Unbounded))
    }

    /// Returns what to read from the store for a range that begins with no usable chunk. The range ends with
    /// a chunk or before the next one, so that chunk boundaries persist; small chunks in between are read
    /// again and replaced by a larger one.
    fn store_range(&self, range: &KeyRange, wanted: &[usize], chunk_rows_min: usize) -> Found {
        let (start, end) = (range.start.as_slice(), range.end.as_deref());
        let mut positions = wanted.to_vec();
        let stop = match self.covering(start) {
            Some((first, chunk)) => {
                if **first == *start && is_up_to(&chunk.end, end) {
                    positions.extend(chunk.positions());
                }
                Some(&*chunk.end)
            }
            None => self.behind(start).find_map(|(first, chunk)| {
                if chunk.rows >= chunk_rows_min || !is_up_to(&chunk.end, end) {
                    return Some(&**first);
                }
                positions.extend(chunk.positions());
                None
            }),
        };
        positions.sort_unstable();
        positions.dedup();
        let end = stop.filter(|stop| is_up_to(stop, end)).or(end);
        Found::Store { end: end.map(<[u8]>::to_vec), positions }
    }

    /// Returns the gap between chunks that contains `key`.
    fn gap(&self, key: &[u8]) -> Gap {
        let up_to = (Bound::Unbounded, Bound::Included(key));
        let before = self.chunks.range::<[u8], _>(up_to).next_back();
        Gap {
            start: before.map(|(_, chunk)| Arc::clone(&chunk.end)),
            end: self.behind(key).next().map(|(start, _)| Arc::clone(start)),
        }
    }
}

/// A key range without chunks; either side may be unbounded.
struct Gap {
    start: Option<Key>,
    end: Option<Key>,
}

impl Gap {
    fn contains(&self, key: &[u8]) -> bool {
        self.start.as_ref().is_none_or(|start| **start <= *key)
            && self.end.as_ref().is_none_or(|end| *key < **end)
    }
}

impl Chunks {
    pub(super) fn new(options: HotOptions, seq: Seq) -> Self {
        Self {
            options,
            noted: seq,
            changes: Changes::unknown_before(seq),
            table_scopes: HashMap::new(),
            by_use: BTreeMap::new(),
            bytes: 0,
            turns: 0,
            next_id: 0,
            hits: 0,
            misses: 0,
        }
    }

    pub(super) fn begin(&mut self) -> u64 {
        self.turns += 1;
        self.turns
    }

    pub(super) fn counters(&self) -> HotCounters {
        HotCounters { bytes: self.bytes, chunks: self.by_use.len(), hits: self.hits, misses: self.misses }
    }

    pub(super) fn find(&mut self, scan: &HotScan, range: &KeyRange, wanted: &[usize]) -> Found {
        let table_scope = (scan.table, scan.scope);
        // No later statement sees rows as they were before a flush or an ALTER TABLE.
        if self.table_scopes.get(&table_scope).is_some_and(|rows| rows.generation < scan.generation) {
            self.remove_table_scope(table_scope);
        }
        if let Some(found) = self.take(scan, range, wanted) {
            self.hits += 1;
            return found;
        }
        self.misses += 1;
        let rows = self.table_scopes.get(&table_scope).filter(|rows| rows.generation == scan.generation);
        match rows {
            Some(rows) => rows.store_range(range, wanted, self.options.chunk_rows_min),
            None => Found::Store { end: range.end.clone(), positions: wanted.to_vec() },
        }
    }

    /// Returns the columns of the chunk at the start of `range`, if the scan can use it.
    fn take(&mut self, scan: &HotScan, range: &KeyRange, wanted: &[usize]) -> Option<Found> {
        let rows = self.table_scopes.get_mut(&(scan.table, scan.scope))?;
        let is_seen = rows.generation == scan.generation;
        let chunk = rows.chunks.get_mut(range.start.as_slice()).filter(|chunk| {
            is_seen
                && chunk.is_seen_by(scan)
                && is_up_to(&chunk.end, range.end.as_deref())
                && chunk.has(wanted)
        })?;
        if chunk.used < scan.turn
            && let Some(entry) = self.by_use.remove(&(chunk.used, chunk.id))
        {
            chunk.used = scan.turn;
            self.by_use.insert((chunk.used, chunk.id), entry);
        }
        let columns = wanted.iter().filter_map(|position| chunk.columns.get(*position).cloned().flatten());
        Some(Found::Chunk { columns: columns.collect(), rows: chunk.rows, end: chunk.end.to_vec() })
    }

    pub(super) fn offer(&mut self, scan: &HotScan, decoded: &Decoded<'_>) {
        let table_scope = (scan.table, scan.scope);
        self.add_table_scope(table_scope, scan.generation);
        let Some(rows) =
            self.table_scopes.get(&table_scope).filter(|rows| rows.generation == scan.generation)
        else {
            return;
        };
        if scan.seq < rows.since.max(self.changes.known_since())
            || self.changes.touch(table_scope, scan.seq, decoded.start, decoded.end)
        {
            return;
        }
        let behind = rows.behind(decoded.start).take_while(|(start, _)| ***start < *decoded.end);
        let (mut overlapped, mut is_wanted) = (Vec::new(), true);
        for (start, chunk) in rows.covering(decoded.start).into_iter().chain(behind) {
            let is_within = **start >= *decoded.start && *chunk.end <= *decoded.end;
            let has_no_more = chunk.positions().all(|position| decoded.positions.contains(&position));
            is_wanted &= (is_within && has_no_more)
                || chunk.rows < self.options.chunk_rows_min
                || !chunk.times.contain(scan.now_us);
            overlapped.push(Arc::clone(start));
        }
        if !is_wanted {
            return;
        }
        overlapped.iter().for_each(|start| self.remove(table_scope, start));
        self.insert(table_scope, scan, decoded);
    }

    fn insert(&mut self, table_scope: TableScope, scan: &HotScan, decoded: &Decoded<'_>) {
        let mut columns = vec![None; decoded.positions.iter().max().map_or(0, |last| last + 1)];
        let mut bytes = CHUNK_OVERHEAD_BYTES + 2 * decoded.start.len() + decoded.end.len();
        bytes += columns.len() * size_of::<Option<ArrayRef>>();
        for (position, column) in decoded.positions.iter().zip(decoded.columns) {
            bytes += column.get_array_memory_size();
            if let Some(slot) = columns.get_mut(*position) {
                *slot = Some(Arc::clone(column));
            }
        }
        if !self.make_room(bytes, scan.turn) {
            return;
        }
        let Some(rows) = self.table_scopes.get_mut(&table_scope) else { return };
        let (start, id): (Key, _) = (decoded.start.into(), self.next_id);
        self.next_id += 1;
        self.bytes += bytes;
        self.by_use.insert((scan.turn, id), (table_scope, Arc::clone(&start)));
        let chunk = Chunk {
            id,
            end: decoded.end.into(),
            from: scan.seq,
            times: decoded.times,
            rows: decoded.rows,
            columns,
            bytes,
            used: scan.turn,
        };
        rows.chunks.insert(start, chunk);
    }

    /// Evicts the least recently used chunks until `bytes` fit. Chunks used by this scan or a later one stay:
    /// otherwise a scan larger than the tier would evict its own chunks and find none of them the next time.
    fn make_room(&mut self, bytes: usize, turn: u64) -> bool {
        if bytes > self.options.bytes_max {
            return false;
        }
        while self.bytes + bytes > self.options.bytes_max {
            match self.by_use.first_key_value() {
                Some(((used, _), (table_scope, start))) if *used < turn => {
                    let (table_scope, start) = (*table_scope, Arc::clone(start));
                    self.remove(table_scope, &start);
                }
                _ => return false,
            }
        }
        true
    }

    /// Starts to remember the changes of a table and scope.
    fn add_table_scope(&mut self, table_scope: TableScope, generation: Generation) {
        if self.table_scopes.contains_key(&table_scope) {
            return;
        }
        if self.table_scopes.len() >= TABLE_SCOPES_MAX {
            self.table_scopes.retain(|_, rows| !rows.chunks.is_empty());
        }
        if self.table_scopes.len() >= TABLE_SCOPES_MAX
            && let Some((_, (oldest, _))) = self.by_use.first_key_value()
        {
            self.remove_table_scope(*oldest);
        }
        self.table_scopes
            .insert(table_scope, TableChunks { since: self.noted, generation, chunks: BTreeMap::new() });
    }

    fn remove(&mut self, table_scope: TableScope, start: &[u8]) {
        let chunk = self.table_scopes.get_mut(&table_scope).and_then(|rows| rows.chunks.remove(start));
        if let Some(chunk) = chunk {
            self.forget(&chunk);
        }
    }

    fn forget(&mut self, chunk: &Chunk) {
        self.bytes -= chunk.bytes;
        self.by_use.remove(&(chunk.used, chunk.id));
    }

    fn remove_table_scope(&mut self, table_scope: TableScope) {
        if let Some(rows) = self.table_scopes.remove(&table_scope) {
            rows.chunks.values().for_each(|chunk| self.forget(chunk));
        }
    }

    pub(super) fn remove_table(&mut self, table: TableId) {
        self.remove_table_scopes(|(found, _)| found == table);
    }

    pub(super) fn remove_scope(&mut self, scope: ScopeId) {
        self.remove_table_scopes(|(_, found)| found == scope);
    }

    fn remove_table_scopes(&mut self, is_removed: impl Fn(TableScope) -> bool) {
        let table_scopes: Vec<TableScope> =
            self.table_scopes.keys().copied().filter(|table_scope| is_removed(*table_scope)).collect();
        table_scopes.into_iter().for_each(|table_scope| self.remove_table_scope(table_scope));
    }

    /// Removes the chunks with a key that a commit changed.
    pub(super) fn change<'a>(
        &mut self,
        table_scope: TableScope,
        seq: Seq,
        keys: impl ExactSizeIterator<Item = &'a [u8]> + Clone,
    ) {
        if !self.table_scopes.contains_key(&table_scope) {
            return;
        }
        self.changes.add(table_scope, seq, keys.clone());
        // A large commit mostly has its keys in order, with many keys in the same gap.
        let mut gap: Option<Gap> = None;
        for key in keys {
            if gap.as_ref().is_some_and(|gap| gap.contains(key)) {
                continue;
            }
            let Some(rows) = self.table_scopes.get(&table_scope) else { return };
            if let Some(start) = rows.covering(key).map(|(start, _)| Arc::clone(start)) {
                self.remove(table_scope, &start);
            }
            gap = self.table_scopes.get(&table_scope).map(|rows| rows.gap(key));
        }
    }

    /// Records that all commits up to `seq` were noted.
    pub(super) fn noted(&mut self, seq: Seq) {
        self.noted = seq;
    }
}

/// Returns whether a range that ends before `end` also ends within one that ends before `limit`.
fn is_up_to(end: &[u8], limit: Option<&[u8]>) -> bool {
    limit.is_none_or(|limit| end <= limit)
}

#[cfg(test)]
impl Chunks {
    /// Panics when the invariant does not hold.
    pub(super) fn check(&self) {
        let chunks = || self.table_scopes.values().flat_map(|rows| rows.chunks.values());
        assert_eq!(self.bytes, chunks().map(|chunk| chunk.bytes).sum::<usize>());
        assert!(self.bytes <= self.options.bytes_max);
        let by_use = self.by_use.iter().map(|((used, id), (table_scope, start))| {
            let chunk = &self.table_scopes[table_scope].chunks[start];
            assert_eq!((chunk.used, chunk.id), (*used, *id));
        });
        assert_eq!(by_use.count(), chunks().count());
        for rows in self.table_scopes.values() {
            let ends = rows.chunks.values().map(|chunk| &chunk.end);
            assert!(rows.chunks.keys().skip(1).zip(ends).all(|(start, end)| end <= start));
        }
    }
}
