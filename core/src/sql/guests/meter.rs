//! Measures the build side of a join while the join collects it.
//!
//! A hash join is slow where many build rows have the same key. A *sketch* counts hashes in a table of fixed
//! size, so its largest counter is at least the number of rows with the most frequent key.
//!
//! Invariants: the join gets all rows, in their order. What is known of a partition is replaced when the
//! partition is read again, as in a recursive query.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, RecordBatch};
use datafusion::arrow::buffer::NullBuffer;
use datafusion::common::hash_utils::{RandomState, with_hashes};
use datafusion::common::{NullEquality, Result};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_expr::PhysicalExprRef;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{TryStreamExt, stream};
use parking_lot::Mutex;

use super::widths;

/// The hash function differs from that of the join only in its seed.
const SEED: RandomState = RandomState::with_seed(0x51ed_270b_a3c1_77f5);
/// Spreads hashes over the counters.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
const COUNTERS: usize = 1 << 16;
/// So many rows are not worth a sketch: all of them may have one key.
const ROWS_WITHOUT_SKETCH: usize = 1_024;

/// What is known of the build side of a join.
#[derive(Debug)]
pub(super) struct Meter {
    /// The keys of a hash join. Without keys, each row is paired with all rows of the other side.
    keys: Vec<PhysicalExprRef>,
    nulls: NullEquality,
    /// The columns that are repeated for each pair.
    columns: Vec<usize>,
    /// By partition; `None` before its last row.
    built: Vec<Mutex<Option<Built>>>,
}

/// What is known of a partition of a build side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Built {
    /// At least the number of rows that any row of the probe side is paired with.
    pub(super) matches_max: usize,
    /// At least the bytes of any row, in the repeated columns.
    pub(super) row_bytes_max: usize,
    /// The bytes of all rows, in the repeated columns.
    pub(super) bytes: usize,
}

impl Meter {
    pub(super) fn new(
        keys: Vec<PhysicalExprRef>,
        nulls: NullEquality,
        columns: Vec<usize>,
        partitions: usize,
    ) -> Arc<Self> {
        let built = (0..partitions).map(|_| Mutex::new(None)).collect();
        Arc::new(Self { keys, nulls, columns, built })
    }

    /// Returns what is known of the rows that a partition of the probe side is paired with. All partitions
    /// may share one build side.
    pub(super) fn built(&self, partition: usize) -> Option<Built> {
        let partition = if self.built.len() == 1 { 0 } else { partition };
        self.built.get(partition).and_then(|built| *built.lock())
    }

    /// Returns the rows of a partition of the build side, and measures them.
    pub(super) fn measured(
        self: &Arc<Self>,
        partition: usize,
        input: SendableRecordBatchStream,
    ) -> SendableRecordBatchStream {
        self.know(partition, None);
        let (schema, meter) = (input.schema(), Arc::clone(self));
        let rows = stream::try_unfold((input, Measure::default()), move |state| {
            next(Arc::clone(&meter), partition, state)
        });
        Box::pin(RecordBatchStreamAdapter::new(schema, rows))
    }

    pub(super) fn know(&self, partition: usize, built: Option<Built>) {
        if let Some(place) = self.built.get(partition) {
            *place.lock() = built;
        }
    }
}

/// What is left of the rows, and what was measured so far.
type Rest = (SendableRecordBatchStream, Measure);

async fn next(meter: Arc<Meter>, partition: usize, rest: Rest) -> Result<Option<(RecordBatch, Rest)>> {
    let (mut input, mut measure) = rest;
    let Some(batch) = input.try_next().await? else {
        meter.know(partition, Some(measure.built()));
        return Ok(None);
    };
    measure.take(&meter, &batch)?;
    Ok(Some((batch, (input, measure))))
}

/// The measure of the rows so far.
#[derive(Debug, Default)]
struct Measure {
    built: Built,
    /// Rows that are not in the sketch.
    uncounted: usize,
    sketch: Option<Sketch>,
}

impl Measure {
    fn take(&mut self, meter: &Meter, batch: &RecordBatch) -> Result<()> {
        if !meter.columns.is_empty() {
            let bytes = widths::bytes(batch, &meter.columns);
            self.built.bytes = self.built.bytes.saturating_add(bytes);
            let widest = widths::row_bytes_max(batch, &meter.columns);
            self.built.row_bytes_max = self.built.row_bytes_max.max(widest);
        }
        let rows = self.uncounted.saturating_add(batch.num_rows());
        if meter.keys.is_empty() || rows <= ROWS_WITHOUT_SKETCH {
            self.uncounted = rows;
            return Ok(());
        }
        let keys = meter.keys.iter().map(|key| key.evaluate(batch)?.into_array(batch.num_rows()));
        let keys = keys.collect::<Result<Vec<_>>>()?;
        self.sketch.get_or_insert_default().count(&keys, meter.nulls)
    }

    fn built(&self) -> Built {
        let most = self.sketch.as_ref().map_or(0, |sketch| sketch.most as usize);
        Built { matches_max: self.uncounted.saturating_add(most), ..self.built }
    }
}

/// Counts of rows by a hash of their keys.
#[derive(Debug)]
struct Sketch {
    counters: Vec<u32>,
    /// The largest counter.
    most: u32,
}

impl Default for Sketch {
    fn default() -> Self {
        Self { counters: vec![0; COUNTERS], most: 0 }
    }
}

impl Sketch {
    /// Counts rows with these keys. A key with NULL has no pair, unless NULL equals NULL.
    fn count(&mut self, keys: &[ArrayRef], nulls: NullEquality) -> Result<()> {
        let valid = match nulls {
            NullEquality::NullEqualsNull => None,
            NullEquality::NullEqualsNothing => keys.iter().fold(None::<NullBuffer>, |valid, key| {
                NullBuffer::union(valid.as_ref(), key.logical_nulls().as_ref())
            }),
        };
        with_hashes(keys, &SEED, |hashes| {
            for (row, hash) in hashes.iter().enumerate() {
                if valid.as_ref().is_none_or(|valid| valid.is_valid(row)) {
                    self.add(*hash);
                }
            }
            Ok(())
        })
    }

    fn add(&mut self, hash: u64) {
        let place = (hash.wrapping_mul(SPREAD) >> (u64::BITS - COUNTERS.ilog2())) as usize;
        if let Some(counter) = self.counters.get_mut(place) {
            *counter = counter.saturating_add(1);
            self.most = self.most.max(*counter);
        }
    }
}

#[cfg(test)]
mod tests;
