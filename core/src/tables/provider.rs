//! The one table provider: USER, SHARED, STREAM and SYSTEM tables, stored or computed.
//!
//! Invariant: `schema()` is the registry's own allocation. The provider lives for one statement: it holds the statement's
//! snapshot, scope and time, and nothing of it is shared between statements.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Constraint, Constraints};
use datafusion::datasource::TableType;
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::union::UnionExec;

use super::cold::ColdScan;
use super::key_filter::key_filter;
use super::scan::{KalamScanExec, Scan};
use super::source::{RowSchema, ScanSource};
use crate::commit::Snapshot;
use crate::error::{Error, Result};
use crate::ids::ScopeId;
use crate::schema_registry::TableSchemas;

/// A table of one statement.
pub struct KalamTable {
    snapshot: Arc<Snapshot>,
    schemas: Arc<TableSchemas>,
    columns: RowSchema,
    scope: ScopeId,
    now_us: i64,
    computed: Option<Arc<Vec<RecordBatch>>>,
    constraints: Constraints,
}

impl KalamTable {
    /// The stored rows of `scope` in `snapshot`, without those that expired at or before `now_us`. The scope is that of the
    /// session, by `TableDefinition::scope_for`.
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
            computed: None,
            constraints: Constraints::new_unverified(constraints),
        }
    }

    /// Rows computed now, in the table's visible schema; their `_seq` is that of `snapshot`.
    ///
    /// # Errors
    /// XX000 when a batch has another schema; 42501 for the write schema, since such rows are stored nowhere.
    pub fn computed(
        snapshot: Arc<Snapshot>,
        schemas: Arc<TableSchemas>,
        columns: RowSchema,
        batches: Vec<RecordBatch>,
    ) -> Result<Self> {
        let name = schemas.definition.qualified_name();
        if columns == RowSchema::Write {
            return Err(Error::permission_denied(format!("table \"{name}\" cannot be written"))
                .hint("the statements that create, alter and drop things change it"));
        }
        if batches.iter().any(|batch| batch.schema() != schemas.visible) {
            return Err(Error::internal(format!("the rows of \"{name}\" do not have its schema")));
        }
        let mut table = Self::stored(snapshot, schemas, columns, ScopeId::SHARED, i64::MIN);
        table.computed = Some(Arc::new(batches));
        Ok(table)
    }

    /// The memoized schemas of the table's version.
    pub fn schemas(&self) -> &Arc<TableSchemas> {
        &self.schemas
    }

    /// Whose rows it shows.
    pub fn scope(&self) -> ScopeId {
        self.scope
    }

    /// The snapshot it reads.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Which columns it shows.
    pub fn columns(&self) -> RowSchema {
        self.columns
    }

    /// The same table with other columns, for instance when a statement turns out to name `_seq`.
    #[must_use]
    pub fn with_columns(&self, columns: RowSchema) -> Self {
        Self {
            snapshot: Arc::clone(&self.snapshot),
            schemas: Arc::clone(&self.schemas),
            columns,
            scope: self.scope,
            now_us: self.now_us,
            computed: self.computed.as_ref().map(Arc::clone),
            constraints: self.constraints.clone(),
        }
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
        let projection = projection.map(Vec::as_slice);
        let (sources, pinned, cold) = match &self.computed {
            Some(batches) => (vec![ScanSource::Batches(Arc::clone(batches))], None, None),
            None => {
                let filters: Vec<&Expr> = filters.iter().collect();
                let filter = key_filter(&self.schemas.definition, self.scope, &filters);
                let cold = ColdScan {
                    snapshot: &self.snapshot,
                    schemas: &self.schemas,
                    columns: self.columns,
                    ranges: &filter.ranges,
                    pinned: filter.pinned,
                    projection,
                    limit,
                };
                let cold = cold.plan(state).await?;
                (filter.ranges.into_iter().map(ScanSource::Stored).collect(), Some(filter.pinned), cold)
            }
        };
        let scan = Scan {
            snapshot: Arc::clone(&self.snapshot),
            schemas: Arc::clone(&self.schemas),
            columns: self.columns,
            scope: self.scope,
            now_us: self.now_us,
            sources,
            pinned,
        };
        let hot: Arc<dyn ExecutionPlan> = Arc::new(KalamScanExec::new(Arc::new(scan), projection, limit)?);
        match cold {
            Some(cold) => UnionExec::try_new(vec![hot, cold]),
            None => Ok(hot),
        }
    }
}
