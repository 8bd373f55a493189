//! Produces the rows of a scan: hot-tier chunks, batches read from the store on blocking threads, and the
//! changed rows between them.
//!
//! Invariant: a row that has expired at the statement's time, or is already in a segment, is never returned.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array};
use arrow::datatypes::SchemaRef;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use bytes::Bytes;

use super::rows::{RowVisibility, is_expired, row_decoder};
use super::scan_handles::Scan;
use super::source::ScanSource;
use crate::error::Result;
use crate::hot_tier::{Decoded, Found, HotScan, Times};
use crate::storage::row_decoder::RowDecoder;
use crate::storage::rows::RowHeader;
use crate::storage::{Direction, KeyRange, Partition, blocking};

/// A batch ends at this many stored bytes.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// A batch ends after this many visited rows, even when none is visible.
const VISITS_MAX: usize = 65_536;
/// Keys in one read. With the largest rows, they are several times the bytes of a batch, not many times.
const POINTS_MAX: usize = 16;
/// Stored bytes that justify a chunk, however few rows they are.
const CHUNK_BYTES_MIN: usize = 64 << 10;

/// Returns the next non-empty batch.
pub(super) async fn next_batch(mut cursor: Cursor) -> Result<Option<(RecordBatch, Cursor)>> {
    loop {
        if let Some(batch) = cursor.next_ready() {
            return Ok(Some((batch, cursor)));
        }
        if cursor.remaining == 0 {
            return Ok(None);
        }
        match cursor.sources.front() {
            None => return Ok(None),
            Some(ScanSource::Batches(_)) => cursor.take_computed()?,
            Some(ScanSource::Stored(_) | ScanSource::Changed { .. }) => {
                if !cursor.take_chunk()? {
                    cursor = blocking(move || {
                        cursor.read_stored()?;
                        Ok(cursor)
                    })
                    .await?;
                }
            }
        }
    }
}

/// The state of a scan.
pub(super) struct Cursor {
    scan: Arc<Scan>,
    schema: SchemaRef,
    /// Positions in the write schema of the requested columns.
    wanted: Vec<usize>,
    direction: Direction,
    hot: Option<HotScan>,
    decoder: RowDecoder,
    /// The decoded columns: the requested ones, and possibly others that the hot tier has.
    decoded: Vec<usize>,
    /// The sources still to be read; the first may be partly read.
    sources: VecDeque<ScanSource>,
    /// The answer of the hot tier for the first source.
    found: Option<Found>,
    /// The end of the last chunk.
    chunk_end: Vec<u8>,
    /// Rows that were read but not returned yet.
    ready: Option<RecordBatch>,
    /// Rows the consumer still wants.
    remaining: usize,
    batch_rows: usize,
}

impl Cursor {
    /// Returns a cursor without sources.
    pub(super) fn new(
        scan: &Arc<Scan>,
        schema: SchemaRef,
        wanted: Vec<usize>,
        direction: Direction,
        hot: Option<HotScan>,
    ) -> Result<Self> {
        Ok(Self {
            scan: Arc::clone(scan),
            schema,
            decoder: row_decoder(&scan.schemas.definition, &wanted)?,
            decoded: wanted.clone(),
            wanted,
            direction,
            hot,
            sources: VecDeque::new(),
            found: None,
            chunk_end: Vec::new(),
            ready: None,
            remaining: 0,
            batch_rows: 1,
        })
    }

    /// Returns the cursor with `sources`, for at most `rows_max` rows in batches of at most `batch_rows`.
    pub(super) fn reading(self, sources: VecDeque<ScanSource>, rows_max: usize, batch_rows: usize) -> Self {
        Self { sources, remaining: rows_max, batch_rows, ..self }
    }

    /// Takes the next batch from the ready rows.
    fn next_ready(&mut self) -> Option<RecordBatch> {
        let batch = self.ready.take()?;
        let rows = batch.num_rows().min(self.batch_rows).min(self.remaining);
        self.remaining -= rows;
        if rows == batch.num_rows() {
            return Some(batch);
        }
        if self.remaining > 0 {
            self.ready = Some(batch.slice(rows, batch.num_rows() - rows));
        }
        Some(batch.slice(0, rows))
    }

    /// Makes `columns` ready if they have rows. The count matters without columns, as in `COUNT(*)`.
    fn make_ready(&mut self, columns: Vec<ArrayRef>, rows: usize) -> Result<()> {
        if rows > 0 {
            let options = RecordBatchOptions::new().with_row_count(Some(rows));
            let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?;
            self.ready = Some(batch);
        }
        Ok(())
    }

    /// Takes the next computed batch.
    fn take_computed(&mut self) -> Result<()> {
        let Some(ScanSource::Batches(batches)) = self.sources.pop_front() else { return Ok(()) };
        let Some((first, rest)) = batches.split_first() else { return Ok(()) };
        self.sources.push_front(ScanSource::Batches(Arc::new(rest.to_vec())));
        let rows = first.num_rows();
        let seq = i64::try_from(self.scan.description.seq.0).unwrap_or(i64::MAX);
        let columns = self.wanted.iter().map(|position| match first.columns().get(*position) {
            Some(column) => Arc::clone(column),
            None => Arc::new(Int64Array::from_value(seq, rows)) as ArrayRef,
        });
        self.make_ready(columns.collect(), rows)
    }

    /// Asks the hot tier about the rest of the first source.
    fn find(&mut self, range: &KeyRange) -> Found {
        match (self.found.take(), &self.hot) {
            (Some(found), _) => found,
            (None, Some(hot)) => self.scan.snapshot.hot.find(hot, range, &self.wanted),
            (None, None) => Found::Store { end: range.end.clone(), positions: self.wanted.clone() },
        }
    }

    /// Takes the chunk at the start of the first source; returns whether there is one.
    fn take_chunk(&mut self) -> Result<bool> {
        let Some(ScanSource::Stored(range)) = self.sources.front() else { return Ok(false) };
        if self.hot.is_none() || range.is_point() {
            return Ok(false);
        }
        let range = range.clone();
        match self.find(&range) {
            Found::Chunk { columns, rows, end } => {
                self.sources.pop_front();
                self.go_on_at(&end, range.end);
                self.chunk_end = end;
                self.make_ready(columns, rows)?;
                Ok(true)
            }
            found @ Found::Store { .. } => {
                self.found = Some(found);
                Ok(false)
            }
        }
    }

    /// Puts the rest of a source back in front.
    fn go_on_at(&mut self, start: &[u8], end: Option<Vec<u8>>) {
        let rest = KeyRange { start: start.to_vec(), end };
        if !rest.is_empty() {
            self.sources.push_front(ScanSource::Stored(rest));
        }
    }

    /// Reads stored and changed rows until a batch is full or a chunk was read, and makes the rows ready.
    /// There may be none although more remains to be read.
    fn read_stored(&mut self) -> Result<()> {
        let batch_rows = match self.hot {
            Some(_) => self.scan.snapshot.hot.options().chunk_rows,
            None => self.batch_rows,
        };
        let mut budget = Budget {
            rows: self.remaining.min(batch_rows),
            bytes: BATCH_BYTES_MAX,
            visits: VISITS_MAX,
            times: Times::ALWAYS,
        };
        while !budget.is_spent() {
            let range = match self.sources.front() {
                Some(ScanSource::Stored(range)) if range.is_point() => {
                    self.read_points(&mut budget)?;
                    continue;
                }
                Some(ScanSource::Changed { .. }) => {
                    self.read_changed(&mut budget)?;
                    continue;
                }
                Some(ScanSource::Stored(range)) => range.clone(),
                Some(ScanSource::Batches(_)) | None => break,
            };
            match self.find(&range) {
                Found::Store { end, positions } => {
                    self.sources.pop_front();
                    if self.read_store(range, end, positions, &mut budget)? {
                        return Ok(());
                    }
                }
                found @ Found::Chunk { .. } => {
                    self.found = Some(found);
                    break;
                }
            }
        }
        let rows = self.decoder.len();
        let columns = self.decoder.finish()?;
        let columns = self.wanted_of(&columns);
        self.make_ready(columns, rows)
    }

    /// Reads a range up to `range_end`, or until the budget is spent. If the batch was empty and the read
    /// is worth keeping, it offers the decoded rows to the hot tier, makes them ready and returns true.
    fn read_store(
        &mut self,
        range: KeyRange,
        range_end: Option<Vec<u8>>,
        positions: Vec<usize>,
        budget: &mut Budget,
    ) -> Result<bool> {
        let is_alone = self.decoder.is_empty();
        if is_alone && positions != self.decoded {
            self.decoder = row_decoder(&self.scan.schemas.definition, &positions)?;
            self.decoded = positions;
        }
        let (visits, bytes) = (budget.visits, budget.bytes);
        budget.times = Times::ALWAYS;
        let rest =
            self.read_range(KeyRange { start: range.start.clone(), end: range_end.clone() }, budget)?;
        let is_whole = rest.is_none();
        let read_to = match rest {
            Some(rest) if self.direction == Direction::Reverse => {
                self.sources.push_front(ScanSource::Stored(rest));
                return Ok(false);
            }
            Some(rest) => Some(rest.start),
            None => range_end,
        };
        let Some(read_to) = read_to else { return Ok(false) };
        self.go_on_at(&read_to, range.end);
        let Some(hot) = self.hot.filter(|_| is_alone) else { return Ok(false) };
        let chunk_rows_min = self.scan.snapshot.hot.options().chunk_rows_min;
        let is_worth_it = visits - budget.visits >= chunk_rows_min
            || bytes - budget.bytes >= CHUNK_BYTES_MIN
            || (is_whole && self.chunk_end == range.start);
        if !is_worth_it {
            return Ok(false);
        }
        let rows = self.decoder.len();
        let mut columns = self.decoder.finish()?;
        columns.iter_mut().for_each(|column| column.shrink_to_fit());
        let decoded = Decoded {
            start: &range.start,
            end: &read_to,
            positions: &self.decoded,
            columns: &columns,
            rows,
            times: budget.times,
        };
        self.scan.snapshot.hot.offer(&hot, &decoded);
        self.chunk_end = read_to;
        let columns = self.wanted_of(&columns);
        self.make_ready(columns, rows)?;
        Ok(true)
    }

    /// Selects the requested columns from the decoded ones.
    fn wanted_of(&self, columns: &[ArrayRef]) -> Vec<ArrayRef> {
        let index = |wanted: &usize| self.decoded.iter().position(|decoded| decoded == wanted);
        self.wanted.iter().filter_map(|wanted| columns.get(index(wanted)?).map(Arc::clone)).collect()
    }

    /// Reads a range; returns its rest when the budget is spent first.
    fn read_range(&mut self, range: KeyRange, budget: &mut Budget) -> Result<Option<KeyRange>> {
        let (decoder, visibility) = (&mut self.decoder, self.scan.visibility());
        let mut stopped_at = None;
        self.scan.snapshot.storage.visit(
            Partition::Rows,
            range.clone(),
            self.direction,
            &mut |key, row| {
                budget.read(decoder, visibility, key, row)?;
                if budget.is_spent() {
                    stopped_at = Some(key.to_vec());
                    return Ok(ControlFlow::Break(()));
                }
                Ok(ControlFlow::Continue(()))
            },
        )?;
        Ok(stopped_at.map(|mut key| match self.direction {
            Direction::Forward => {
                key.push(0);
                KeyRange { start: key, end: range.end }
            }
            Direction::Reverse => KeyRange { start: range.start, end: Some(key) },
        }))
    }

    /// Takes the next row of the open transaction. It has no seq yet, and it is not in a segment.
    fn read_changed(&mut self, budget: &mut Budget) -> Result<()> {
        let Some(ScanSource::Changed { key, row }) = self.sources.pop_front() else { return Ok(()) };
        budget.visits = budget.visits.saturating_sub(1);
        let (header, _) = RowHeader::read(&row)?;
        if !is_expired(&header, self.scan.description.now_us) {
            budget.decode(&mut self.decoder, &key, &row)?;
        }
        Ok(())
    }

    /// Reads the next sources that are single keys with one request, as many as fit.
    fn read_points(&mut self, budget: &mut Budget) -> Result<()> {
        let mut keys = Vec::new();
        while keys.len() < budget.rows.min(POINTS_MAX)
            && let Some(ScanSource::Stored(range)) = self.sources.front_mut()
            && range.is_point()
        {
            keys.push(Bytes::from(std::mem::take(&mut range.start)));
            self.sources.pop_front();
        }
        let rows = match keys.as_slice() {
            [key] => vec![self.scan.snapshot.storage.get(Partition::Rows, key)?],
            keys => self.scan.snapshot.storage.multi_get(Partition::Rows, keys)?,
        };
        for (key, row) in keys.iter().zip(rows) {
            if let Some(row) = row {
                budget.read(&mut self.decoder, self.scan.visibility(), key, &row)?;
            }
        }
        Ok(())
    }
}

/// What a batch may still read.
struct Budget {
    rows: usize,
    bytes: usize,
    visits: usize,
    /// The times at which the rows read since the start of the last range have the same visibility.
    times: Times,
}

impl Budget {
    fn is_spent(&self) -> bool {
        self.rows == 0 || self.bytes == 0 || self.visits == 0
    }

    /// Decodes a row if it is visible, and takes it from the budget.
    fn read(
        &mut self,
        decoder: &mut RowDecoder,
        visibility: RowVisibility,
        key: &[u8],
        row: &[u8],
    ) -> Result<()> {
        self.visits = self.visits.saturating_sub(1);
        let (header, _) = RowHeader::read(row)?;
        if header.seq <= visibility.flushed {
            return Ok(());
        }
        if let Some(expires_at) = header.expires_at {
            self.times.narrow(expires_at, visibility.now_us);
        }
        if is_expired(&header, visibility.now_us) {
            return Ok(());
        }
        self.decode(decoder, key, row)
    }

    /// Decodes a row, and takes it from the budget.
    fn decode(&mut self, decoder: &mut RowDecoder, key: &[u8], row: &[u8]) -> Result<()> {
        decoder.push(key, row)?;
        self.rows = self.rows.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(row.len());
        Ok(())
    }
}
