//! The one table provider for USER, SHARED, STREAM and SYSTEM tables, stored or computed.
//!
//! Invariant: `schema()` is the registry's own allocation. A provider lives for one statement: it holds the
//! statement's snapshot, scope and time, and shares nothing with other statements.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, Constraint, Constraints, DFSchema};
use datafusion::datasource::TableType;
use datafusion::error::Result as DataFusionResult;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_expr::expressions::Column as PhysicalColumn;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{ExecutionPlan, PhysicalExpr, SendableRecordBatchStream, execute_stream};
use datafusion::prelude::SessionConfig;

use super::cold::{ColdPlan, ColdScan};
use super::description::{ScanDescription, SegmentRows};
use super::key_filter::{KeyFilter, key_filter};
use super::overlay::Overlay;
use super::rows::RowSchema;
use super::scan::KalamScanExec;
use super::scan_handles::Scan;
use super::segment_rows::segment_rows;
use crate::commit::Snapshot;
use crate::error::{Error, Result};
use crate::ids::ScopeId;
use crate::schema_registry::TableSchemas;
use crate::storage::rows::row_seq;
use crate::storage::{Direction, KeyRange, Partition, blocking};

/// A table in one statement.
pub struct KalamTable {
    snapshot: Arc<Snapshot>,
    schemas: Arc<TableSchemas>,
    columns: RowSchema,
    scope: ScopeId,
    now_us: i64,
    /// The changes of the open transaction.
    overlay: Option<Arc<Overlay>>,
    computed: Option<Arc<Vec<RecordBatch>>>,
    constraints: Constraints,
    /// About how many bytes a cold row takes, where rows are widest, in the scans so far.
    cold_row_bytes: AtomicUsize,
}

impl KalamTable {
    /// Returns the stored rows of `scope` in `snapshot`, without those that expired at or before `now_us`.
    /// The scope comes from the session, through `TableDefinition::scope_for`.
    pub fn stored(
        snapshot: Arc<Snapshot>,
        schemas: Arc<TableSchemas>,
        columns: RowSchema,
        scope: ScopeId,
        now_us: i64,
    ) -> Self {
        let key = schemas.definition.key_positions();
        let constraints = if key.is_empty() { Vec::new() } else { vec![Constraint::PrimaryKey(key)] };
        Self {
            snapshot,
            schemas,
            columns,
            scope,
            now_us,
            overlay: None,
            computed: None,
            constraints: Constraints::new_unverified(constraints),
            cold_row_bytes: AtomicUsize::new(0),
        }
    }

    /// Returns the same table as an open transaction has changed it. The overlay belongs to its scope.
    #[must_use]
    pub fn with_overlay(self, overlay: Arc<Overlay>) -> Self {
        Self { overlay: Some(overlay), ..self }
    }

    /// Returns computed rows, in the table's visible schema; their `_seq` is that of `snapshot`.
    ///
    /// # Errors
    /// XX000 when a batch has another schema; 42501 for the write schema: the rows are not stored.
    pub fn computed(
        snapshot: Arc<Snapshot>,
        schemas: Arc<TableSchemas>,
        columns: RowSchema,
        batches: Vec<RecordBatch>,
    ) -> Result<Self> {
        let name = schemas.definition.qualified_name();
        if columns == RowSchema::Write {
            return Err(Error::permission_denied(format!("table \"{name}\" cannot be written"))
                .hint("CREATE, ALTER and DROP statements change it"));
        }
        if batches.iter().any(|batch| batch.schema() != schemas.visible) {
            return Err(Error::internal(format!("the rows of \"{name}\" do not have its schema")));
        }
        let mut table = Self::stored(snapshot, schemas, columns, ScopeId::SHARED, i64::MIN);
        table.computed = Some(Arc::new(batches));
        Ok(table)
    }

    /// Returns the memoized schemas of the table version.
    pub fn schemas(&self) -> &Arc<TableSchemas> {
        &self.schemas
    }

    /// Returns the scope of the rows.
    pub fn scope(&self) -> ScopeId {
        self.scope
    }

    /// Returns the snapshot of the statement.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Returns whether the ranges certainly contain no stored row that is hot, as after a flush without later
    /// writes.
    async fn has_no_hot_rows(&self, ranges: &[KeyRange]) -> Result<bool> {
        /// Rows to visit. After a flush, most stored rows are in segments already but not removed yet.
        const VISITS_MAX: usize = 256;
        /// More ranges than this are scanned without this check.
        const RANGES_MAX: usize = 16;
        if ranges.len() > RANGES_MAX {
            return Ok(false);
        }
        let flushed = self.snapshot.cold.flushed(self.schemas.definition.id);
        let (snapshot, ranges) = (Arc::clone(&self.snapshot), ranges.to_vec());
        blocking(move || {
            let mut visits = 0;
            let mut is_empty = true;
            for range in ranges {
                snapshot.storage.visit(Partition::Rows, range, Direction::Forward, &mut |_, row| {
                    visits += 1;
                    is_empty &= row_seq(row)? <= flushed && visits <= VISITS_MAX;
                    Ok(if is_empty { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
                })?;
                if !is_empty {
                    break;
                }
            }
            Ok(is_empty)
        })
        .await
    }

    /// Returns which schema the table shows.
    pub fn columns(&self) -> RowSchema {
        self.columns
    }

    /// Returns the same table with another schema, for instance when a statement names `_seq`.
    #[must_use]
    pub fn with_columns(&self, columns: RowSchema) -> Self {
        Self {
            snapshot: Arc::clone(&self.snapshot),
            schemas: Arc::clone(&self.schemas),
            columns,
            scope: self.scope,
            now_us: self.now_us,
            overlay: self.overlay.as_ref().map(Arc::clone),
            computed: self.computed.as_ref().map(Arc::clone),
            constraints: self.constraints.clone(),
            cold_row_bytes: AtomicUsize::new(0),
        }
    }

    /// Returns about how many bytes a cold row takes in the columns that the scans planned so far read, where
    /// rows are widest.
    pub fn cold_row_bytes(&self) -> usize {
        self.cold_row_bytes.load(Ordering::Relaxed)
    }
}

impl KalamTable {
    /// Streams all rows outside of a statement, in reading order.
    ///
    /// # Errors
    /// Any error of planning and reading.
    pub async fn stream(&self) -> Result<SendableRecordBatchStream> {
        let mut config = SessionConfig::new().with_target_partitions(1);
        config.options_mut().execution.parquet.schema_force_view_types = false;
        let state = SessionStateBuilder::new().with_config(config).build();
        self.snapshot.cold.store().register(state.runtime_env());
        let plan = self.scan(&state, None, &[], None).await?;
        Ok(execute_stream(plan, state.task_ctx())?)
    }
}

impl fmt::Debug for KalamTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KalamTable")
            .field("table", &self.schemas.definition.qualified_name())
            .field("version", &self.schemas.definition.version)
            .field("columns", &self.columns)
            .field("scope", &self.scope)
            .field("seq", &self.snapshot.seq)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl TableProvider for KalamTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(self.columns.of(&self.schemas))
    }

    fn constraints(&self) -> Option<&Constraints> {
        Some(&self.constraints)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> DataFusionResult<Vec<TableProviderFilterPushDown>> {
        if self.computed.is_some() {
            return Ok(vec![TableProviderFilterPushDown::Unsupported; filters.len()]);
        }
        Ok(key_filter(&self.schemas.definition, self.scope, filters).uses)
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let filters: Vec<&Expr> = filters.iter().collect();
        let filter = key_filter(&self.schemas.definition, self.scope, &filters);
        let left: Vec<&Expr> = filters
            .iter()
            .zip(&filter.uses)
            .filter(|(_, used)| self.computed.is_some() || **used != TableProviderFilterPushDown::Exact)
            .map(|(filter, _)| *filter)
            .collect();
        if left.is_empty() {
            return self.scan_ranges(state, projection.map(Vec::as_slice), filter, limit).await;
        }
        self.scan_filtered(state, projection, filter, &left).await
    }
}

impl KalamTable {
    /// Evaluates the filters that the ranges do not cover. The optimizer may pass filters in other forms than
    /// those it asked about, and does not ask again.
    async fn scan_filtered(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filter: KeyFilter,
        left: &[&Expr],
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let schema = self.schema();
        let shown: Vec<usize> = match projection {
            Some(projection) => projection.clone(),
            None => (0..schema.fields().len()).collect(),
        };
        let mut read = shown.clone();
        for column in left.iter().flat_map(|filter| filter.column_refs()) {
            let position = schema.index_of(&column.name)?;
            if !read.contains(&position) {
                read.push(position);
            }
        }
        let rows = self.scan_ranges(state, Some(&read), filter, None).await?;
        let columns = DFSchema::try_from(rows.schema())?;
        let unqualified = |filter: &&Expr| {
            let stripped = Expr::clone(filter).transform_up(|part| match part {
                Expr::Column(column) => {
                    Ok(Transformed::yes(Expr::Column(Column::new_unqualified(column.name))))
                }
                part => Ok(Transformed::no(part)),
            })?;
            DataFusionResult::Ok(stripped.data)
        };
        let left = left.iter().map(unqualified).collect::<DataFusionResult<Vec<_>>>()?;
        let Some(predicate) = conjunction(left) else { return Ok(rows) };
        let predicate = state.create_physical_expr(predicate, &columns)?;
        let filter = FilterExec::try_new(predicate, rows)?.with_batch_size(state.config().batch_size())?;
        let rows: Arc<dyn ExecutionPlan> = Arc::new(filter);
        if read.len() == shown.len() {
            return Ok(rows);
        }
        let columns = rows.schema();
        let kept = shown.iter().enumerate().map(|(place, _)| {
            let name = columns.field(place).name();
            (Arc::new(PhysicalColumn::new(name, place)) as Arc<dyn PhysicalExpr>, name.clone())
        });
        Ok(Arc::new(ProjectionExec::try_new(kept.collect::<Vec<_>>(), rows)?))
    }

    async fn scan_ranges(
        &self,
        state: &dyn Session,
        projection: Option<&[usize]>,
        filter: KeyFilter,
        limit: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let (snapshot, schemas) = (Arc::clone(&self.snapshot), Arc::clone(&self.schemas));
        if let Some(batches) = &self.computed {
            let description = self.describe(filter, Vec::new(), projection, limit);
            let scan = Scan::computed(description, snapshot, schemas, Arc::clone(batches))?;
            return Ok(Arc::new(KalamScanExec::new(Arc::new(scan))?));
        }
        let overlay = self.overlay.as_deref();
        let segments = segment_rows(&snapshot, &schemas.definition, &filter.ranges, overlay).await?;
        let description = self.describe(filter, segments, projection, limit);
        let cold = ColdScan::new(&description, &snapshot, &schemas)?.plan(state).await?;
        if let Some(cold) = &cold {
            self.cold_row_bytes.fetch_max(cold.row_bytes, Ordering::Relaxed);
        }
        if let Some(cold) = &cold
            && !overlay.is_some_and(|overlay| overlay.has_rows_in(&description.ranges))
            && self.has_no_hot_rows(&description.ranges).await?
        {
            return Ok(Arc::clone(&cold.rows));
        }
        let overlay = self.overlay.as_ref().map(Arc::clone);
        let hot = KalamScanExec::new(Arc::new(Scan::stored(description, snapshot, schemas, overlay)?))?;
        match cold {
            Some(ColdPlan { rows, statistics, .. }) => {
                UnionExec::try_new(vec![Arc::new(hot.with_values_like(statistics)), rows])
            }
            None => Ok(Arc::new(hot)),
        }
    }

    /// Describes a scan of this table.
    fn describe(
        &self,
        filter: KeyFilter,
        segments: Vec<SegmentRows>,
        projection: Option<&[usize]>,
        limit: Option<usize>,
    ) -> ScanDescription {
        let definition = &self.schemas.definition;
        ScanDescription {
            table: definition.id,
            version: definition.version,
            scope: self.scope,
            columns: self.columns,
            projection: projection.map(<[usize]>::to_vec),
            ranges: filter.ranges,
            pinned: filter.pinned,
            segments,
            seq: self.snapshot.seq,
            flushed: self.snapshot.cold.flushed(definition.id),
            now_us: self.now_us,
            limit,
        }
    }
}
