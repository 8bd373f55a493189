//! The plan node that streams the hot rows of a table, those of the open transaction among them, or computed
//! rows.
//!
//! At most two batches wait for the consumer. Dropping the stream ends the work after the batch in progress.
//!
//! Invariant: rows come in key order (or its reverse), each once; computed ones in their own order.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use arrow::compute::SortOptions;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::common::Statistics;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result as DataFusionResult;
use datafusion::execution::TaskContext;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::common::spawn_buffered;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, SendableRecordBatchStream,
    SortOrderPushdownResult,
};
use futures::{TryStreamExt, stream};

use super::cursor::{Cursor, next_batch};
use super::description::key_order;
use super::rows::project_schema;
use super::scan_handles::Scan;
use super::source::ScanSource;
use crate::error::{Error, Result};
use crate::schema_registry::FlushPolicy;
use crate::storage::Direction;
use crate::storage::keys::SCOPE_PREFIX_BYTES;

/// The maximum number of rows in a batch.
const BATCH_ROWS_MAX: usize = 8_192;
/// Batches read ahead of the consumer; a full buffer pauses the scan.
const BUFFERED_BATCHES_MAX: usize = 2;

/// Streams the hot rows of a table in one partition.
#[derive(Clone)]
pub struct KalamScanExec {
    scan: Arc<Scan>,
    /// Positions in the write schema; the shown schema is a prefix of it.
    positions: Vec<usize>,
    direction: Direction,
    fetch: Option<usize>,
    /// Estimates for the optimizer, if known.
    statistics: Option<Arc<Statistics>>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl KalamScanExec {
    pub(super) fn new(scan: Arc<Scan>) -> Result<Self> {
        let description = &scan.description;
        let table_schema = description.columns.of(&scan.schemas);
        let schema = project_schema(table_schema, description.projection.as_deref())?;
        let positions = description.positions(&scan.schemas);
        let properties = properties(&scan, &schema, &positions, Direction::Forward);
        let fetch = description.limit;
        Ok(Self {
            scan,
            positions,
            direction: Direction::Forward,
            fetch,
            statistics: None,
            properties: Arc::new(properties),
            metrics: ExecutionPlanMetricsSet::new(),
        })
    }

    /// Returns the same scan with estimates for the optimizer: values distributed like the table's cold rows,
    /// and as many rows as the flush policy leaves hot.
    pub(super) fn with_values_like(self, mut cold: Statistics) -> Self {
        let policy = &self.scan.schemas.definition.options.flush_policy;
        let rows = policy.rows.or(FlushPolicy::default().rows).unwrap_or_default();
        cold.num_rows = Precision::Inexact(usize::try_from(rows).unwrap_or(usize::MAX));
        cold.total_byte_size = Precision::Absent;
        Self { statistics: Some(Arc::new(cold)), ..self }
    }

    fn reversed(&self) -> Self {
        let schema = Arc::clone(self.properties.eq_properties.schema());
        let properties = properties(&self.scan, &schema, &self.positions, Direction::Reverse);
        Self { direction: Direction::Reverse, properties: Arc::new(properties), ..self.clone() }
    }

    /// Returns whether `order` is the reverse of the key order or of a prefix of it.
    fn is_reverse_order(&self, order: &[PhysicalSortExpr]) -> bool {
        let key = sort_columns(&self.scan, &self.positions);
        let is_reverse = order.iter().zip(&key).all(|(wanted, column)| {
            let is_column =
                wanted.expr.downcast_ref::<Column>().is_some_and(|found| found.index() == *column);
            is_column && wanted.options.descending
        });
        is_reverse && !order.is_empty() && order.len() <= key.len()
    }

    fn cursor(&self, batch_rows: usize) -> Result<Cursor> {
        let mut sources: VecDeque<ScanSource> = self.scan.sources().into();
        // Chunks of the hot tier are in key order, and a reverse scan mostly reads few rows.
        let mut hot = self.scan.hot();
        if self.direction == Direction::Reverse {
            sources = sources.into_iter().rev().collect();
            hot = None;
        }
        let rows_max = self.fetch.unwrap_or(usize::MAX);
        let schema = Arc::clone(self.properties.eq_properties.schema());
        let cursor = Cursor::new(&self.scan, schema, self.positions.clone(), self.direction, hot)?;
        Ok(cursor.reading(sources, rows_max, batch_rows))
    }
}

/// Returns the key columns that order the rows, as positions in the output. The order ends before the first
/// key column that is projected away.
fn sort_columns(scan: &Scan, positions: &[usize]) -> Vec<usize> {
    if scan.is_computed() {
        return Vec::new();
    }
    key_order(&scan.schemas.definition, scan.description.pinned)
        .map_while(|position| positions.iter().position(|shown| *shown == position))
        .collect()
}

fn properties(scan: &Scan, schema: &SchemaRef, positions: &[usize], direction: Direction) -> PlanProperties {
    let descending = direction == Direction::Reverse;
    let options = SortOptions { descending, nulls_first: descending };
    let ordering: Vec<PhysicalSortExpr> = sort_columns(scan, positions)
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
    /// Omits the keys: not only the owner of the rows may read the text of a plan.
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
        let description = &self.scan.description;
        match description.ranges.as_slice() {
            _ if self.scan.is_computed() => write!(f, ", rows=computed")?,
            [range] if range.start.len() == SCOPE_PREFIX_BYTES => write!(f, ", keys=all")?,
            ranges if description.has_only_points() => write!(f, ", points={}", ranges.len())?,
            ranges => write!(f, ", ranges={}", ranges.len())?,
        }
        if self.scan.has_changed_rows() {
            write!(f, ", changed rows")?;
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
            || self.scan.is_computed()
            || self.scan.description.has_only_points();
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let batches = stream::try_unfold(cursor, next_batch).map_err(Into::into).inspect_ok(
            move |batch: &RecordBatch| {
                metrics.output_rows().add(batch.num_rows());
            },
        );
        let stream: SendableRecordBatchStream =
            Box::pin(RecordBatchStreamAdapter::new(self.schema(), batches));
        // A batch or two is not worth a separate task.
        Ok(if is_small { stream } else { spawn_buffered(stream, BUFFERED_BATCHES_MAX) })
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn statistics_from_inputs(
        &self,
        _: &[Arc<Statistics>],
        _: &StatisticsArgs,
    ) -> DataFusionResult<Arc<Statistics>> {
        let unknown = || Arc::new(Statistics::new_unknown(self.properties.eq_properties.schema()));
        Ok(self.statistics.as_ref().map_or_else(unknown, Arc::clone))
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
        // A limit already in the scan selected its rows in key order.
        if self.fetch.is_none() && self.direction == Direction::Forward && self.is_reverse_order(order) {
            return Ok(SortOrderPushdownResult::Exact { inner: Arc::new(self.reversed()) });
        }
        Ok(SortOrderPushdownResult::Unsupported)
    }
}
