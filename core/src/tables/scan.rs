//! Reading a table: the plan node that streams its rows.
//!
//! Storage is read in chunks of one batch on threads that may block; at most two batches wait for the consumer, and dropping
//! the stream ends the work after the chunk that is being read.
//!
//! Invariant: rows come in key order (or its reverse), each once; a row whose `expires_at` is not after the statement's time
//! does not come at all, nor does one that is in a segment by now.

use std::collections::VecDeque;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array};
use arrow::compute::SortOptions;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use bytes::Bytes;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result as DataFusionResult;
use datafusion::execution::TaskContext;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::common::spawn_buffered;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, SendableRecordBatchStream,
    SortOrderPushdownResult,
};
use futures::{TryStreamExt, stream};

use super::source::{RowSchema, ScanSource, project_schema, row_decoder};
use crate::commit::Snapshot;
use crate::error::{Error, Result};
use crate::ids::Seq;
use crate::schema_registry::TableSchemas;
use crate::storage::keys::SCOPE_PREFIX_BYTES;
use crate::storage::row_decoder::RowDecoder;
use crate::storage::rows::RowHeader;
use crate::storage::{Direction, KeyRange, Partition, blocking};
use crate::types::ColumnType;

/// The most rows of a batch.
pub(super) const BATCH_ROWS_MAX: usize = 8_192;
/// A batch is ended when its stored rows have this many bytes.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// A chunk is ended after this many rows even if none of them is shown.
const CHUNK_ROWS_MAX: usize = 65_536;
/// Single keys asked for at once: with the largest rows they are a batch's bytes several times over, not many times.
const POINTS_MAX: usize = 16;
/// Batches read ahead of the consumer; a full buffer stops the reading.
const BUFFERED_BATCHES_MAX: usize = 2;

/// What is read, whatever the projection.
pub(super) struct Scan {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) schemas: Arc<TableSchemas>,
    pub(super) columns: RowSchema,
    pub(super) now_us: i64,
    /// Read one after the other.
    pub(super) sources: Vec<ScanSource>,
    /// How many of the first key columns have one value in all sources; `None` when the rows have no order.
    pub(super) pinned: Option<usize>,
}

impl Scan {
    fn shown(&self) -> Shown {
        let flushed = self.snapshot.cold.flushed(self.schemas.definition.id);
        Shown { now_us: self.now_us, flushed }
    }
}

/// Streams the hot rows of a table in one partition.
#[derive(Clone)]
pub struct KalamScanExec {
    scan: Arc<Scan>,
    /// Positions in the write schema, of which the shown schema is a beginning.
    positions: Vec<usize>,
    direction: Direction,
    fetch: Option<usize>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl KalamScanExec {
    pub(super) fn new(scan: Arc<Scan>, projection: Option<&[usize]>, fetch: Option<usize>) -> Result<Self> {
        let table_schema = scan.columns.of(&scan.schemas);
        let schema = project_schema(table_schema, projection)?;
        let positions =
            projection.map_or_else(|| (0..table_schema.fields().len()).collect(), <[usize]>::to_vec);
        let properties = properties(&scan, &schema, &positions, Direction::Forward);
        Ok(Self {
            scan,
            positions,
            direction: Direction::Forward,
            fetch,
            properties: Arc::new(properties),
            metrics: ExecutionPlanMetricsSet::new(),
        })
    }

    fn reversed(&self) -> Self {
        let schema = Arc::clone(self.properties.eq_properties.schema());
        let properties = properties(&self.scan, &schema, &self.positions, Direction::Reverse);
        Self { direction: Direction::Reverse, properties: Arc::new(properties), ..self.clone() }
    }

    /// Whether `order` is the reverse of the key's order, at least as far as keys differ.
    fn is_reverse_order(&self, order: &[PhysicalSortExpr]) -> bool {
        let key = sort_columns(&self.scan, &self.positions);
        let mut wanted = order.iter();
        let is_reverse = key.columns.iter().zip(&mut wanted).all(|(column, wanted)| {
            let is_column =
                wanted.expr.downcast_ref::<Column>().is_some_and(|found| found.index() == *column);
            is_column && wanted.options.descending
        });
        // What is asked for beyond the key makes no difference when no two rows have the same key.
        is_reverse
            && !order.is_empty()
            && !key.columns.is_empty()
            && (wanted.next().is_none() || key.is_unique)
    }

    fn cursor(&self, batch_rows: usize) -> Result<Cursor> {
        let mut sources: VecDeque<ScanSource> = self.scan.sources.iter().cloned().collect();
        if self.direction == Direction::Reverse {
            sources = sources.into_iter().rev().collect();
        }
        Ok(Cursor {
            scan: Arc::clone(&self.scan),
            schema: Arc::clone(self.properties.eq_properties.schema()),
            positions: self.positions.clone(),
            direction: self.direction,
            decoder: row_decoder(&self.scan.schemas.definition, &self.positions)?,
            sources,
            remaining: self.fetch.unwrap_or(usize::MAX),
            batch_rows,
        })
    }
}

/// The key columns that order the rows, as positions in the output.
struct SortColumns {
    columns: Vec<usize>,
    /// Whether no two rows agree in all of them.
    is_unique: bool,
}

/// Columns with one value order nothing and are left out. The order is known up to the first key column that is projected
/// away, or whose stored order is not that of its comparison (NaN and the two zeros).
fn sort_columns(scan: &Scan, positions: &[usize]) -> SortColumns {
    let definition = &scan.schemas.definition;
    let Some(pinned) = scan.pinned else {
        return SortColumns { columns: Vec::new(), is_unique: false };
    };
    let key = definition.key_positions();
    let ordering = key.get(pinned..).unwrap_or_default();
    let columns: Vec<usize> = ordering
        .iter()
        .map_while(|position| {
            let column = definition.columns.get(*position)?;
            let is_ordered = !matches!(column.ty, ColumnType::Real | ColumnType::Double);
            if is_ordered { positions.iter().position(|shown| shown == position) } else { None }
        })
        .collect();
    let is_unique = definition.has_key() && columns.len() == ordering.len();
    SortColumns { columns, is_unique }
}

fn properties(scan: &Scan, schema: &SchemaRef, positions: &[usize], direction: Direction) -> PlanProperties {
    let descending = direction == Direction::Reverse;
    let options = SortOptions { descending, nulls_first: descending };
    let ordering: Vec<PhysicalSortExpr> = sort_columns(scan, positions)
        .columns
        .into_iter()
        .filter_map(|column| {
            let name = schema.fields().get(column)?.name();
            Some(PhysicalSortExpr::new(Arc::new(Column::new(name, column)), options))
        })
        .collect();
    let orderings = if ordering.is_empty() { Vec::new() } else { vec![ordering] };
    PlanProperties::new(
        EquivalenceProperties::new_with_orderings(Arc::clone(schema), orderings),
        Partitioning::UnknownPartitioning(1),
        EmissionType::Incremental,
        Boundedness::Bounded,
    )
}

impl fmt::Debug for KalamScanExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KalamScanExec")
            .field("table", &self.scan.schemas.definition.qualified_name())
            .field("positions", &self.positions)
            .field("direction", &self.direction)
            .field("fetch", &self.fetch)
            .finish_non_exhaustive()
    }
}

impl DisplayAs for KalamScanExec {
    /// Keys are not shown: a plan's text is read by others than the owner of the rows.
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let definition = &self.scan.schemas.definition;
        let names: Vec<&str> = self
            .properties
            .eq_properties
            .schema()
            .fields()
            .iter()
            .map(|field| field.name().as_str())
            .collect();
        write!(f, "KalamScanExec: table={}, columns=[{}]", definition.qualified_name(), names.join(", "))?;
        match self.scan.sources.as_slice() {
            [ScanSource::Batches(_)] => write!(f, ", rows=computed")?,
            [ScanSource::Stored(range)] if range.start.len() == SCOPE_PREFIX_BYTES => {
                write!(f, ", keys=all")?
            }
            sources if sources.iter().all(is_point_source) => write!(f, ", points={}", sources.len())?,
            sources => write!(f, ", ranges={}", sources.len())?,
        }
        if self.direction == Direction::Reverse {
            write!(f, ", reverse")?;
        }
        match self.fetch {
            Some(fetch) => write!(f, ", fetch={fetch}"),
            None => Ok(()),
        }
    }
}

impl ExecutionPlan for KalamScanExec {
    fn name(&self) -> &'static str {
        "KalamScanExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        if children.is_empty() { Ok(self) } else { Err(Error::internal("a scan has no inputs").into()) }
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DataFusionResult<TreeNodeRecursion>,
    ) -> DataFusionResult<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> DataFusionResult<SendableRecordBatchStream> {
        if partition != 0 {
            return Err(Error::internal(format!("a scan has no partition {partition}")).into());
        }
        let batch_rows = context.session_config().batch_size().clamp(1, BATCH_ROWS_MAX);
        let cursor = self.cursor(batch_rows)?;
        let is_small = self.fetch.is_some_and(|fetch| fetch <= batch_rows)
            || self
                .scan
                .sources
                .iter()
                .all(|source| is_point_source(source) || matches!(source, ScanSource::Batches(_)));
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let batches = stream::try_unfold(cursor, next_batch).map_err(Into::into).inspect_ok(
            move |batch: &RecordBatch| {
                metrics.output_rows().add(batch.num_rows());
            },
        );
        let stream: SendableRecordBatchStream =
            Box::pin(RecordBatchStreamAdapter::new(self.schema(), batches));
        // What fits into a batch or two is not worth a task of its own.
        Ok(if is_small { stream } else { spawn_buffered(stream, BUFFERED_BATCHES_MAX) })
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn with_fetch(&self, fetch: Option<usize>) -> Option<Arc<dyn ExecutionPlan>> {
        Some(Arc::new(Self { fetch, ..self.clone() }))
    }

    fn fetch(&self) -> Option<usize> {
        self.fetch
    }

    fn try_pushdown_sort(
        &self,
        order: &[PhysicalSortExpr],
    ) -> DataFusionResult<SortOrderPushdownResult<Arc<dyn ExecutionPlan>>> {
        // A limit that is already here chose its rows in key order.
        if self.fetch.is_none() && self.direction == Direction::Forward && self.is_reverse_order(order) {
            return Ok(SortOrderPushdownResult::Exact { inner: Arc::new(self.reversed()) });
        }
        Ok(SortOrderPushdownResult::Unsupported)
    }
}

pub(super) fn is_point(range: &KeyRange) -> bool {
    match &range.end {
        Some(end) => end.strip_suffix(&[0]).is_some_and(|start| start == range.start),
        None => false,
    }
}

fn is_point_source(source: &ScanSource) -> bool {
    matches!(source, ScanSource::Stored(range) if is_point(range))
}

/// The next batch that is not empty.
async fn next_batch(mut cursor: Cursor) -> Result<Option<(RecordBatch, Cursor)>> {
    while !cursor.is_done() {
        let batch;
        if matches!(cursor.sources.front(), Some(ScanSource::Batches(_))) {
            batch = cursor.next_computed()?;
        } else {
            (batch, cursor) = blocking(move || {
                let batch = cursor.next_stored()?;
                Ok((batch, cursor))
            })
            .await?;
        }
        if batch.num_rows() > 0 {
            return Ok(Some((batch, cursor)));
        }
    }
    Ok(None)
}

/// How far a scan has come.
struct Cursor {
    scan: Arc<Scan>,
    schema: SchemaRef,
    positions: Vec<usize>,
    direction: Direction,
    decoder: RowDecoder,
    /// What is still to be read; of the first one only the rest.
    sources: VecDeque<ScanSource>,
    /// Rows the consumer still wants.
    remaining: usize,
    batch_rows: usize,
}

impl Cursor {
    fn is_done(&self) -> bool {
        self.remaining == 0 || self.sources.is_empty()
    }

    /// Reads stored sources until a batch is full. It may be empty although there is more to read.
    fn next_stored(&mut self) -> Result<RecordBatch> {
        let mut budget = Budget {
            rows: self.remaining.min(self.batch_rows),
            bytes: BATCH_BYTES_MAX,
            visits: CHUNK_ROWS_MAX,
        };
        while let Some(ScanSource::Stored(range)) = self.sources.front() {
            if budget.is_spent() {
                break;
            }
            if is_point(range) {
                self.read_points(&mut budget)?;
                continue;
            }
            let range = range.clone();
            self.sources.pop_front();
            if let Some(rest) = self.read_range(range, &mut budget)? {
                self.sources.push_front(ScanSource::Stored(rest));
            }
        }
        let rows = self.decoder.len();
        self.remaining -= rows.min(self.remaining);
        self.batch(rows)
    }

    /// Reads a range; gives what is left of it when the budget ends first.
    fn read_range(&mut self, range: KeyRange, budget: &mut Budget) -> Result<Option<KeyRange>> {
        let (decoder, shown) = (&mut self.decoder, self.scan.shown());
        let mut stopped_at = None;
        self.scan.snapshot.storage.visit(
            Partition::Rows,
            range.clone(),
            self.direction,
            &mut |key, row| {
                shown.push(decoder, key, row, budget)?;
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

    /// Reads as many of the next sources as are single keys and fit, with one request.
    fn read_points(&mut self, budget: &mut Budget) -> Result<()> {
        let mut keys = Vec::new();
        while keys.len() < budget.rows.min(POINTS_MAX)
            && let Some(ScanSource::Stored(range)) = self.sources.front_mut()
            && is_point(range)
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
                self.scan.shown().push(&mut self.decoder, key, &row, budget)?;
            }
        }
        Ok(())
    }

    /// Takes the next computed batch, or as much of it as fits.
    fn next_computed(&mut self) -> Result<RecordBatch> {
        let Some(ScanSource::Batches(batches)) = self.sources.pop_front() else {
            return self.batch(0);
        };
        let Some((first, rest)) = batches.split_first() else {
            return self.batch(0);
        };
        let rows = first.num_rows().min(self.batch_rows).min(self.remaining);
        let mut left: Vec<RecordBatch> = rest.to_vec();
        if rows < first.num_rows() {
            left.insert(0, first.slice(rows, first.num_rows() - rows));
        }
        self.sources.push_front(ScanSource::Batches(Arc::new(left)));
        self.remaining -= rows;
        let seq = i64::try_from(self.scan.snapshot.seq.0).unwrap_or(i64::MAX);
        let columns = self.positions.iter().map(|position| match first.columns().get(*position) {
            Some(column) => column.slice(0, rows),
            None => Arc::new(Int64Array::from_value(seq, rows)) as ArrayRef,
        });
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns.collect(), &options)?)
    }

    /// The decoded rows; the count matters when no column is wanted, as for `COUNT(*)`.
    fn batch(&mut self, rows: usize) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let columns = self.decoder.finish()?;
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?)
    }
}

/// How much a chunk may still read.
struct Budget {
    rows: usize,
    bytes: usize,
    visits: usize,
}

impl Budget {
    fn is_spent(&self) -> bool {
        self.rows == 0 || self.bytes == 0 || self.visits == 0
    }
}

/// Which stored rows a statement sees.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown {
    /// Rows that expire at this time or before are gone.
    pub(super) now_us: i64,
    /// Rows of commits up to this one are cold.
    pub(super) flushed: Seq,
}

impl Shown {
    pub(super) fn has(self, row: &[u8]) -> Result<bool> {
        let (header, _) = RowHeader::read(row)?;
        Ok(header.seq > self.flushed && header.expires_at.is_none_or(|expires_at| expires_at > self.now_us))
    }

    fn push(self, decoder: &mut RowDecoder, key: &[u8], row: &[u8], budget: &mut Budget) -> Result<()> {
        budget.visits = budget.visits.saturating_sub(1);
        if self.has(row)? {
            decoder.push(key, row)?;
            budget.rows = budget.rows.saturating_sub(1);
            budget.bytes = budget.bytes.saturating_sub(row.len());
        }
        Ok(())
    }
}
