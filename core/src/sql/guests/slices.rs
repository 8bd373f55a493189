//! Cuts batches into slices, so that what a join or an unnest makes of each slice at once stays small.
//!
//! A join pairs each row of a batch with all its matches before it asks for the next batch. If it keeps few
//! pairs, or returns rows only at its end, nothing comes out meanwhile. Above the slices there is a pause.
//!
//! Invariant: the slices of a batch, one after the other, are the batch.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, OffsetSizeTrait, RecordBatch};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::unnest::{ListUnnest, UnnestExec};
use futures::{TryStreamExt, stream};

use super::meter::{Built, Meter};
use super::widths;
use crate::error::{Error, ErrorKind, SqlState};
use crate::tables::value_bytes;

/// The pairs of a slice in a hash join.
const HASH_PAIRS_MAX: usize = 16 << 20;
/// The pairs of a slice in a nested loop join. It is faster, but not with slices of few rows.
const NESTED_PAIRS_MAX: usize = 64 << 20;
/// The bytes that are made of a slice at once.
const SLICE_BYTES_MAX: usize = 64 << 20;
/// The bytes that may be made of a single row at once.
const ROW_BYTES_MAX: usize = 512 << 20;

/// Where batches are cut.
#[derive(Debug)]
pub(super) enum Cut {
    /// The probe side of a join.
    Probe(ProbeCut),
    /// The rows whose lists are unnested.
    Lists(ListCut),
}

impl Cut {
    /// Returns the rows of a partition in slices; `batch_rows` is the most rows of a batch.
    pub(super) fn slices(
        self: &Arc<Self>,
        partition: usize,
        batch_rows: usize,
        input: SendableRecordBatchStream,
    ) -> SendableRecordBatchStream {
        let (schema, cut) = (input.schema(), Arc::clone(self));
        let rows_of = move |batch: &RecordBatch| match &*cut {
            Self::Probe(probe) => match probe.meter.built(partition) {
                Some(built) => probe.rows(built, batch_rows, batch),
                None => Ok(usize::MAX),
            },
            Self::Lists(lists) => lists.rows(batch),
        };
        let rows_of: Arc<RowsOf> = Arc::new(rows_of);
        let slices = stream::try_unfold((input, None), move |state| next(Arc::clone(&rows_of), state));
        Box::pin(RecordBatchStreamAdapter::new(schema, slices))
    }
}

/// Returns how many of the first rows of a batch are a slice.
type RowsOf = dyn Fn(&RecordBatch) -> Result<usize> + Send + Sync;

/// The rows that are left: the rest of a batch, and the batches behind it.
type Rest = (SendableRecordBatchStream, Option<RecordBatch>);

async fn next(rows_of: Arc<RowsOf>, rest: Rest) -> Result<Option<(RecordBatch, Rest)>> {
    let (mut input, batch) = rest;
    let batch = match batch {
        Some(batch) => batch,
        None => match input.try_next().await? {
            Some(batch) => batch,
            None => return Ok(None),
        },
    };
    let rows = rows_of(&batch)?.max(1);
    if rows >= batch.num_rows() {
        return Ok(Some((batch, (input, None))));
    }
    let slice = batch.slice(0, rows);
    Ok(Some((slice, (input, Some(batch.slice(rows, batch.num_rows() - rows))))))
}

/// How a join pairs its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pairing {
    /// A row with all rows of the same hash, a batch of pairs at a time.
    Hash,
    /// A row with all rows.
    Nested,
    /// A batch with each row, which is repeated beside it.
    Cross,
}

/// Where the probe side of a join is cut.
#[derive(Debug)]
pub(super) struct ProbeCut {
    pub(super) pairing: Pairing,
    pub(super) meter: Arc<Meter>,
    /// The columns of the probe side that are repeated for each pair.
    pub(super) columns: Vec<usize>,
}

impl ProbeCut {
    fn rows(&self, built: Built, batch_rows: usize, batch: &RecordBatch) -> Result<usize> {
        match self.pairing {
            Pairing::Nested => Ok(NESTED_PAIRS_MAX / built.matches_max.max(1)),
            Pairing::Cross if built.row_bytes_max > ROW_BYTES_MAX => Err(too_large(built.row_bytes_max)),
            Pairing::Cross => Ok(SLICE_BYTES_MAX / built.row_bytes_max.max(1)),
            Pairing::Hash => self.hash_rows(built, batch_rows, batch),
        }
    }

    fn hash_rows(&self, built: Built, batch_rows: usize, batch: &RecordBatch) -> Result<usize> {
        let matches = built.matches_max.max(1);
        let by_pairs = HASH_PAIRS_MAX / matches;
        let own = widths::row_bytes_max(batch, &self.columns);
        let pair_bytes = built.row_bytes_max.saturating_add(own);
        if batch_rows.saturating_mul(pair_bytes) <= SLICE_BYTES_MAX {
            return Ok(by_pairs);
        }
        let rows = by_pairs.min(SLICE_BYTES_MAX / matches.saturating_mul(pair_bytes).max(1));
        if rows == 0 {
            let pairs = matches.min(batch_rows);
            // Beside one row, each row of the build side comes once.
            let others = built.row_bytes_max.saturating_mul(pairs).min(built.bytes);
            let own = widths::row_bytes_max(&batch.slice(0, 1), &self.columns).saturating_mul(pairs);
            let bytes = others.saturating_add(own);
            if bytes > ROW_BYTES_MAX {
                return Err(too_large(bytes));
            }
        }
        Ok(rows)
    }
}

/// Where rows are cut whose lists are unnested.
#[derive(Debug)]
pub(super) struct ListCut {
    lists: Vec<ListUnnest>,
    /// The columns whose values are repeated for each element.
    repeated: Vec<usize>,
}

impl ListCut {
    /// Returns where the input of an unnest is cut; `None` if the unnest makes no rows.
    pub(super) fn of(unnest: &UnnestExec) -> Option<Self> {
        let lists = unnest.list_column_indices().to_vec();
        if lists.is_empty() {
            return None;
        }
        // Lists in lists are unnested level by level. Meanwhile the outer ones may be repeated, too.
        let is_nested = lists.iter().any(|list| list.depth > 1);
        let is_list = |column: usize| lists.iter().any(|list| list.index_in_input_schema == column);
        let columns = 0..unnest.input().schema().fields().len();
        let repeated = columns.filter(|column| is_nested || !is_list(*column)).collect();
        Some(Self { lists, repeated })
    }

    fn rows(&self, batch: &RecordBatch) -> Result<usize> {
        if self.bytes(batch) <= SLICE_BYTES_MAX {
            return Ok(batch.num_rows());
        }
        let mut bytes = 0_usize;
        for row in 0..batch.num_rows() {
            let more = self.bytes(&batch.slice(row, 1));
            bytes = bytes.saturating_add(more);
            if row == 0 && bytes > ROW_BYTES_MAX {
                return Err(too_large(bytes));
            }
            if row > 0 && bytes > SLICE_BYTES_MAX {
                return Ok(row);
            }
        }
        Ok(batch.num_rows())
    }

    /// Returns about how many bytes the rows become, at most.
    fn bytes(&self, batch: &RecordBatch) -> usize {
        let lists = self
            .lists
            .iter()
            .filter_map(|list| Some((list, batch.columns().get(list.index_in_input_schema)?)));
        let (rows, bytes) = lists.fold((0_usize, 0_usize), |(rows, bytes), (list, column)| {
            let more = elements(column, list.depth);
            (rows.saturating_add(more), bytes.saturating_add(value_bytes(column)))
        });
        rows.saturating_mul(widths::row_bytes_max(batch, &self.repeated)).saturating_add(bytes)
    }
}

/// Returns the most rows that lists become: one for each element, and one for each list without elements.
fn elements(lists: &ArrayRef, depth: usize) -> usize {
    let items = match lists.data_type() {
        DataType::List(_) => {
            let lists = lists.as_list::<i32>();
            part(lists.values(), lists.value_offsets())
        }
        DataType::LargeList(_) => {
            let lists = lists.as_list::<i64>();
            part(lists.values(), lists.value_offsets())
        }
        DataType::FixedSizeList(..) => ArrayRef::clone(lists.as_fixed_size_list().values()),
        _ => return lists.len(),
    };
    let within = if depth > 1 { elements(&items, depth - 1) } else { items.len() };
    lists.len().saturating_add(within)
}

fn part<O: OffsetSizeTrait>(values: &ArrayRef, offsets: &[O]) -> ArrayRef {
    let at = |offset: Option<&O>| offset.map_or(0, |offset| offset.as_usize()).min(values.len());
    let (start, end) = (at(offsets.first()), at(offsets.last()));
    values.slice(start, end.saturating_sub(start))
}

fn too_large(bytes: usize) -> DataFusionError {
    let message = format!(
        "one row becomes about {} MiB with all its pairs or elements, {} MiB are the most",
        bytes >> 20,
        ROW_BYTES_MAX >> 20
    );
    Error::new(ErrorKind::ResourceExhausted, SqlState::PROGRAM_LIMIT_EXCEEDED, message)
        .hint("select fewer columns with long values, or select some of the rows first")
        .into()
}

#[cfg(test)]
mod tests;
