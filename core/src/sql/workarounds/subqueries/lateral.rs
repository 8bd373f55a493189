//! `FROM t, LATERAL (SELECT ... WHERE q.id = t.id)`.
//!
//! DataFusion pulls conditions on outer columns up through windows and outer joins, which then see other
//! rows, reports unique names as ambiguous, and lacks LATERAL with LIMIT or outer columns in its select list.
//!
//! Invariant: after the rewrite, a left row meets the rows that the subquery returns for its values.

use std::sync::Arc;

use datafusion::common::{Column, JoinType, NullEquality, Result, TableReference};
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, Filter, Join, LogicalPlan, LogicalPlanBuilder};

use super::builders::{join, with_columns};
use super::outer::{has_subquery, outer_columns};
use super::{Input, Rewriter};
use crate::error::Error;

impl Rewriter {
    /// Joins the rows of the subquery, for all values of the outer columns, to the rows of the left side.
    pub(super) fn lateral(
        &mut self,
        node: Join,
        subquery: &LogicalPlan,
        alias: Option<TableReference>,
    ) -> Result<LogicalPlan> {
        if !matches!(node.join_type, JoinType::Inner | JoinType::Left) {
            return Err(Error::unsupported(format!("{} JOIN LATERAL", node.join_type)).into());
        }
        let columns = node.schema.columns();
        let left = self.plan(Arc::unwrap_or_clone(node.left))?;
        let outer = outer_columns(subquery)?;
        let domain = self.domain(&outer, &Input { plan: left.clone(), original: left.clone() })?;
        let mut rows = self.plan(domain.unnest(subquery)?)?;
        if let Some(alias) = &alias {
            rows = LogicalPlanBuilder::from(rows).alias(alias.clone())?.build()?;
        }
        let of_rows = |name: &String| Expr::Column(Column::new(alias.clone(), name));
        let values =
            domain.columns.iter().map(|(column, name)| (Expr::Column(column.clone()), of_rows(name)));
        let equal = node.on.into_iter().map(|(left, right)| left.eq(right));
        let condition = conjunction(equal.chain(node.filter));
        let on = values.collect();
        let equality = NullEquality::NullEqualsNull;
        let joined = match condition {
            Some(condition) if node.join_type == JoinType::Inner => {
                let joined = join(left, rows, on, None, JoinType::Inner, equality)?;
                self.filter_node(Filter::try_new(condition, Arc::new(joined))?)?
            }
            Some(condition) if has_subquery(&condition)? => {
                return Err(Error::unsupported("a subquery in ON of a LEFT JOIN LATERAL")
                    .hint("compute it in the LATERAL subquery")
                    .into());
            }
            condition => join(left, rows, on, condition, node.join_type, equality)?,
        };
        with_columns(joined, columns)
    }
}
