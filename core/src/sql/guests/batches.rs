//! How many rows a batch has: fewer than `batch_rows` where rows are wide.
//!
//! Filters, exchanges and joins gather so many rows, whatever their size, and a constant is written out for
//! each row of a batch. No account counts these bytes. So the rows of all nodes are estimated before: from
//! the constants of the optimised plan, the pages of the segments that it reads, and the mean of hot rows.
//!
//! Invariant: the rows of a statement do not depend on it.

use std::any::Any;
use std::sync::Arc;

use datafusion::catalog::default_table_source::source_as_provider;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, DataFusionError, JoinType, Result};
use datafusion::logical_expr::{Expr, LogicalPlan, Operator, TableScan, Unnest};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::FilterExec;

use crate::ids::TableId;
use crate::sql::limits::stack::deep;
use crate::tables::KalamTable;
use crate::types::{fixed_bytes, heap_bytes};

/// The bytes that a batch should have at most.
const BATCH_BYTES_MAX: usize = 16 << 20;

/// Returns the rows of a batch, at most `rows_max`. The plan is optimised, and its tables know what they
/// read: there is a physical plan. `hot_row_bytes` returns the mean size of the hot rows of a table.
pub(in crate::sql) fn batch_rows(
    plan: &LogicalPlan,
    rows_max: usize,
    hot_row_bytes: impl Fn(TableId) -> usize,
) -> Result<usize> {
    let mut estimate = Estimate { batch_rows: rows_max.max(1), hot_row_bytes: &hot_row_bytes };
    estimate.visit(plan)?;
    Ok(estimate.batch_rows)
}

/// Returns the plan with filters that gather at most so many rows. All other nodes ask their task.
pub(in crate::sql) fn with_batch_rows(
    plan: Arc<dyn ExecutionPlan>,
    rows: usize,
) -> Result<Arc<dyn ExecutionPlan>> {
    let limited = plan.transform_up(|node| {
        let filter = node.downcast_ref::<FilterExec>().filter(|filter| filter.batch_size() > rows);
        Ok(match filter.map(|filter| filter.with_batch_size(rows)).transpose()? {
            Some(filter) => Transformed::yes(Arc::new(filter) as Arc<dyn ExecutionPlan>),
            None => Transformed::no(node),
        })
    })?;
    Ok(limited.data)
}

/// What is known of the rows of a node.
struct Rows {
    /// The bytes of a value of each column.
    widths: Vec<usize>,
    /// The most rows that there can be.
    count: usize,
}

impl Rows {
    /// Rows of which nothing is known.
    fn unknown() -> Self {
        Self { widths: Vec::new(), count: usize::MAX }
    }

    /// Returns the bytes of the values of expressions over these rows.
    fn values<'a>(
        &self,
        schema: &DFSchema,
        expressions: impl IntoIterator<Item = &'a Expr>,
    ) -> Result<Vec<usize>> {
        expressions.into_iter().map(|expression| value_bytes(expression, schema, &self.widths)).collect()
    }

    /// Returns these rows and the other ones.
    fn and(self, other: Self) -> Self {
        let widths = self.widths.iter().zip(&other.widths).map(|(one, other)| *one.max(other)).collect();
        Self { widths, count: self.count.saturating_add(other.count) }
    }

    /// Returns the pairs of these rows with the other ones.
    fn beside(self, other: Self) -> Self {
        let count = self.count.max(1).saturating_mul(other.count.max(1));
        Self { widths: [self.widths, other.widths].concat(), count }
    }

    fn unnested(&self, unnest: &Unnest) -> Self {
        // The bytes of a list are those of all its elements.
        let is_list = |column: usize| unnest.list_type_columns.iter().any(|(list, _)| *list == column);
        let width = |column: usize| match is_list(column) {
            true => 0,
            false => self.widths.get(column).copied().unwrap_or_default(),
        };
        let widths = unnest.dependency_indices.iter().map(|column| width(*column)).collect();
        Self { widths, count: usize::MAX }
    }
}

struct Estimate<'a> {
    /// As many as fit, of the widest rows so far.
    batch_rows: usize,
    hot_row_bytes: &'a dyn Fn(TableId) -> usize,
}

impl Estimate<'_> {
    fn visit(&mut self, plan: &LogicalPlan) -> Result<Rows> {
        let mut inputs = Vec::new();
        for input in plan.inputs() {
            inputs.push(deep(|| self.visit(input))?);
        }
        plan.apply_subqueries(|subquery| {
            deep(|| self.visit(subquery))?;
            Ok(TreeNodeRecursion::Continue)
        })?;
        let mut rows = self.rows(plan, inputs)?;
        rows.widths.resize(plan.schema().fields().len(), 0);
        let bytes = rows.widths.iter().copied().fold(0, usize::saturating_add);
        // A single row is in no batch with others.
        if rows.count > 1 && bytes.saturating_mul(rows.count.min(self.batch_rows)) > BATCH_BYTES_MAX {
            self.batch_rows = (BATCH_BYTES_MAX / bytes).max(1);
        }
        Ok(rows)
    }

    fn rows(&self, plan: &LogicalPlan, inputs: Vec<Rows>) -> Result<Rows> {
        let mut inputs = inputs.into_iter();
        let input = inputs.next().unwrap_or_else(Rows::unknown);
        Ok(match plan {
            LogicalPlan::TableScan(scan) => Rows { widths: self.scanned(scan)?, count: usize::MAX },
            LogicalPlan::EmptyRelation(_) => Rows { widths: Vec::new(), count: 1 },
            LogicalPlan::Values(values) => {
                let none = Rows { widths: vec![0; values.schema.fields().len()], count: 0 };
                values.values.iter().try_fold(none, |all, row| {
                    let widths = Rows::unknown().values(&values.schema, row)?;
                    Ok::<_, DataFusionError>(all.and(Rows { widths, count: 1 }))
                })?
            }
            LogicalPlan::Projection(projection) => {
                let widths = input.values(projection.input.schema(), &projection.expr)?;
                Rows { widths, count: input.count }
            }
            LogicalPlan::Aggregate(aggregate) => {
                let columns = aggregate.group_expr.iter().chain(&aggregate.aggr_expr);
                let widths = input.values(aggregate.input.schema(), columns)?;
                Rows { widths, count: if aggregate.group_expr.is_empty() { 1 } else { input.count } }
            }
            LogicalPlan::Window(window) => {
                let widths = input.values(window.input.schema(), &window.window_expr)?;
                input.beside(Rows { widths, count: 1 })
            }
            LogicalPlan::Unnest(unnest) => input.unnested(unnest),
            LogicalPlan::Union(_) => inputs.fold(input, Rows::and),
            LogicalPlan::Join(join) => {
                let right = inputs.next().unwrap_or_else(Rows::unknown);
                match join.join_type {
                    JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => input,
                    JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => right,
                    _ => input.beside(right),
                }
            }
            LogicalPlan::Filter(_)
            | LogicalPlan::Sort(_)
            | LogicalPlan::Limit(_)
            | LogicalPlan::Distinct(_)
            | LogicalPlan::Subquery(_)
            | LogicalPlan::SubqueryAlias(_) => input,
            _ => Rows { count: usize::MAX, ..input },
        })
    }

    /// Returns the bytes of the columns of a table that are read.
    fn scanned(&self, scan: &TableScan) -> Result<Vec<usize>> {
        let provider = source_as_provider(&scan.source)?;
        let any: &dyn Any = provider.as_ref();
        let row_bytes = any.downcast_ref::<KalamTable>().map_or(0, |table| {
            table.cold_row_bytes().max((self.hot_row_bytes)(table.schemas().definition.id))
        });
        let fields = scan.projected_schema.fields();
        let fixed: Vec<_> = fields.iter().map(|field| fixed_bytes(field.data_type())).collect();
        // It is not known how the others share the rest, so each may have any part of it.
        let others = fixed.iter().filter(|bytes| bytes.is_none()).count().max(1);
        let each = row_bytes.saturating_sub(fixed.iter().flatten().sum()).div_ceil(others);
        Ok(fixed.into_iter().map(|bytes| bytes.unwrap_or(each)).collect())
    }
}

/// Returns about how many bytes a value of an expression has, at most: those of its constants and columns.
fn value_bytes(expression: &Expr, schema: &DFSchema, widths: &[usize]) -> Result<usize> {
    let mut bytes = 0_usize;
    expression.apply(|part| {
        let more = match part {
            Expr::Literal(value, _) => heap_bytes(value),
            Expr::Column(column) => {
                let place = schema.maybe_index_of_column(column);
                place.and_then(|place| widths.get(place)).copied().unwrap_or_default()
            }
            _ => 0,
        };
        bytes = bytes.saturating_add(more);
        Ok(if is_condition(part) { TreeNodeRecursion::Jump } else { TreeNodeRecursion::Continue })
    })?;
    Ok(bytes)
}

/// Whether an expression is true or false, however long its parts are.
fn is_condition(expression: &Expr) -> bool {
    match expression {
        Expr::BinaryExpr(binary) => matches!(
            binary.op,
            Operator::Eq
                | Operator::NotEq
                | Operator::Lt
                | Operator::LtEq
                | Operator::Gt
                | Operator::GtEq
                | Operator::IsDistinctFrom
                | Operator::IsNotDistinctFrom
                | Operator::And
                | Operator::Or
        ),
        Expr::InList(_) | Expr::Between(_) | Expr::Like(_) | Expr::SimilarTo(_) | Expr::Not(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use datafusion::physical_plan::repartition::RepartitionExec;
    use datafusion::prelude::{SessionConfig, SessionContext};

    use super::*;

    const ROWS_MAX: usize = 8_192;

    async fn rows_of(query: &str) -> usize {
        let context = SessionContext::new();
        let plan = context.sql(query).await.unwrap_or_else(|error| panic!("{query}: {error}"));
        batch_rows(&plan.into_optimized_plan().unwrap(), ROWS_MAX, |_| 0).unwrap()
    }

    #[tokio::test]
    async fn long_constants_make_small_batches() {
        // 16 texts fill a batch.
        const TEXT: &str = "repeat('x', 1000000)";
        for (query, expected) in [
            ("SELECT value, 'short' FROM generate_series(1, 100)", ROWS_MAX),
            ("SELECT {} FROM generate_series(1, 100)", 16),
            ("SELECT {}", ROWS_MAX),
            ("SELECT {} UNION ALL SELECT 'y'", ROWS_MAX),
            ("SELECT {} FROM generate_series(1, 100) UNION ALL SELECT 'y'", 16),
            ("SELECT CASE WHEN value > 5 THEN {} ELSE 'y' END FROM generate_series(1, 100)", 16),
            ("SELECT a.t, b.value FROM (SELECT {} AS t) a CROSS JOIN generate_series(1, 100) b", 16),
            ("SELECT upper({} || value) FROM generate_series(1, 100)", 16),
            ("SELECT value FROM generate_series(1, 100) WHERE 'y' || value <> {}", ROWS_MAX),
            ("SELECT 'y' || value IN ({}, 'z') FROM generate_series(1, 100)", ROWS_MAX),
            ("SELECT unnest(range(1, 5000000))", ROWS_MAX),
            (
                "WITH RECURSIVE r(n, t) AS (SELECT 1, {} UNION ALL SELECT n + 1, t FROM r WHERE n < 9)
                 SELECT n, t FROM r",
                16,
            ),
        ] {
            let query = query.replace("{}", TEXT);
            let found = rows_of(&query).await;
            let is_near = found == expected || (expected == 16 && (8..=16).contains(&found));
            assert!(is_near, "{query}: {found}");
        }
    }

    #[tokio::test]
    async fn filters_gather_no_more_rows_than_a_batch_has() {
        let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(4));
        let query = "SELECT value % 7, count(*) FROM generate_series(1, 100) WHERE value > 5 GROUP BY 1";
        let plan = context.sql(query).await.unwrap().create_physical_plan().await.unwrap();
        let limited = with_batch_rows(plan, 10).unwrap();
        let (mut filters, mut exchanges) = (0, 0);
        limited
            .apply(|node| {
                if let Some(filter) = node.downcast_ref::<FilterExec>() {
                    assert_eq!(filter.batch_size(), 10);
                    filters += 1;
                }
                exchanges += usize::from(node.is::<RepartitionExec>());
                Ok(TreeNodeRecursion::Continue)
            })
            .unwrap();
        assert!(filters == 1 && exchanges > 0, "{filters} filters");
    }
}
