//! EXISTS, and what is known about the rows of a subquery without running it.

use std::sync::Arc;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{JoinType, Result};
use datafusion::functions_aggregate::count::count_udaf;
use datafusion::logical_expr::expr::{InSubquery, SetComparison};
use datafusion::logical_expr::{
    Aggregate, Distinct, Expr, FetchType, LogicalPlan, LogicalPlanBuilder, Projection, SkipType, lit,
};

use super::builders::aggregate;
use super::outer::{has_column, has_subquery, is_correlated, outer_columns, subquery_of};
use super::{Input, Rewriter};

impl Rewriter {
    /// Whether a subquery has rows.
    pub(super) fn exists(&mut self, plan: &LogicalPlan, input: &mut Input) -> Result<Expr> {
        let plan = if is_correlated(plan)? {
            plan.clone()
        } else {
            // One row is enough to know.
            LogicalPlanBuilder::from(plan.clone()).limit(0, Some(1))?.build()?
        };
        let count = aggregate(count_udaf(), lit(1_i64));
        let name = self.name("count");
        let counted = Aggregate::try_new(Arc::new(plan), Vec::new(), vec![count.alias(name)])?;
        let count = self.scalar_of(&LogicalPlan::Aggregate(counted), input)?;
        Ok(count.gt(lit(0_i64)))
    }
}

/// What is known about whether a subquery has rows.
pub(super) enum Existence {
    Known(bool),
    /// Rows exist if this plan has rows.
    Of(LogicalPlan),
}

/// Removes operators that do not affect whether rows exist.
pub(super) fn existence(plan: &LogicalPlan) -> Result<Existence> {
    match plan {
        LogicalPlan::Sort(sort) => match sort.fetch {
            Some(0) => Ok(Existence::Known(false)),
            _ => existence(&sort.input),
        },
        LogicalPlan::SubqueryAlias(alias) => existence(&alias.input),
        LogicalPlan::Distinct(Distinct::All(input)) => existence(input),
        LogicalPlan::Projection(projection) if !projection.expr.iter().any(has_unnest) => {
            existence(&projection.input)
        }
        LogicalPlan::Limit(limit) => match (limit.get_skip_type()?, limit.get_fetch_type()?) {
            (_, FetchType::Literal(Some(0))) => Ok(Existence::Known(false)),
            (SkipType::Literal(0), FetchType::Literal(_)) => existence(&limit.input),
            _ => Ok(Existence::Of(plan.clone())),
        },
        LogicalPlan::Aggregate(aggregate) if aggregate.group_expr.is_empty() => Ok(Existence::Known(true)),
        LogicalPlan::EmptyRelation(empty) => Ok(Existence::Known(empty.produce_one_row)),
        LogicalPlan::Values(values) => Ok(Existence::Known(!values.values.is_empty())),
        other => Ok(Existence::Of(other.clone())),
    }
}

fn has_unnest(expr: &Expr) -> bool {
    expr.exists(|part| Ok(matches!(part, Expr::Unnest(_)))).unwrap_or(true)
}

/// Whether a plan returns exactly one row, whatever its tables contain.
pub(super) fn has_one_row(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Aggregate(aggregate) => aggregate.group_expr.is_empty(),
        LogicalPlan::EmptyRelation(empty) => empty.produce_one_row,
        LogicalPlan::Values(values) => values.values.len() == 1,
        LogicalPlan::Projection(projection) => {
            !projection.expr.iter().any(has_unnest) && has_one_row(&projection.input)
        }
        LogicalPlan::SubqueryAlias(alias) => has_one_row(&alias.input),
        LogicalPlan::Sort(sort) => sort.fetch != Some(0) && has_one_row(&sort.input),
        _ => false,
    }
}

/// Whether a subquery is a plain SELECT with outer columns only in WHERE, so that one join replaces it.
pub(super) fn is_plain_correlation(plan: &LogicalPlan, outer: &LogicalPlan) -> Result<bool> {
    let mut below = plan;
    while let LogicalPlan::Projection(Projection { input, expr, .. }) = below {
        if expr.iter().any(|expr| expr.contains_outer() || has_subquery(expr).unwrap_or(true)) {
            return Ok(false);
        }
        below = input;
    }
    let mut is_plain = is_correlated(plan)?;
    while let LogicalPlan::Filter(filter) = below {
        let schema = filter.input.schema();
        filter.predicate.apply(|part| {
            if let Expr::InSubquery(InSubquery { expr, .. })
            | Expr::SetComparison(SetComparison { expr, .. }) = part
            {
                is_plain &= !expr.contains_outer();
            }
            if let Some(subquery) = subquery_of(part) {
                // A nested subquery may reference only columns of this one.
                let inner = outer_columns(&subquery.subquery)?;
                is_plain &= inner.iter().all(|inner| has_column(schema, &inner.column));
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        below = &filter.input;
    }
    is_plain &= !is_correlated(below)?;
    below.apply(|node| {
        is_plain &= matches!(
            node,
            LogicalPlan::Projection(_)
                | LogicalPlan::SubqueryAlias(_)
                | LogicalPlan::TableScan(_)
                | LogicalPlan::Filter(_)
        ) || matches!(node, LogicalPlan::Join(join) if join.join_type == JoinType::Inner);
        Ok(if is_plain { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    })?;
    let known = outer_columns(plan)?.iter().all(|column| has_column(outer.schema(), &column.column));
    Ok(is_plain && known)
}
