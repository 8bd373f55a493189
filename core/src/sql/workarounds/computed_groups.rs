//! Grouping sets of computed expressions.
//!
//! DataFusion names a group after its expression and finds it again by the expression. It loses a group if a
//! rewrite changes the name or the form: a cast, a function, a comparison with a literal. It also treats a
//! constant among grouping sets as a constant of the result, and drops it from ORDER BY.
//!
//! Invariant: grouping sets contain only columns; expressions are computed below them.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, Result};
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::grouping_set_to_exprlist;
use datafusion::logical_expr::{Aggregate, Expr, LogicalPlan, Projection};

/// Moves the expressions of grouping sets into a projection below them. Columns keep their names.
pub(super) fn below_sets(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    let LogicalPlan::Aggregate(aggregate) = plan else { return Ok(Transformed::no(plan)) };
    if !matches!(aggregate.group_expr.as_slice(), [Expr::GroupingSet(_)]) {
        return Ok(Transformed::no(LogicalPlan::Aggregate(aggregate)));
    }
    let schema = aggregate.input.schema();
    let mut computed: Vec<(Expr, Column)> = Vec::new();
    for expr in grouping_set_to_exprlist(&aggregate.group_expr)? {
        let is_known = computed.iter().any(|(known, _)| known == expr);
        if !is_known && !matches!(expr, Expr::Column(_)) {
            computed.push((expr.clone(), Column::new_unqualified(expr.schema_name().to_string())));
        }
    }
    let is_taken = |(_, column): &(Expr, Column)| schema.has_column_with_unqualified_name(&column.name);
    if computed.is_empty() || computed.iter().any(is_taken) {
        return Ok(Transformed::no(LogicalPlan::Aggregate(aggregate)));
    }
    let as_column = |expr: Expr| {
        expr.transform_down(|part| {
            let known = computed.iter().find(|(expr, _)| *expr == part);
            Ok(match known {
                Some((_, column)) => Transformed::yes(Expr::Column(column.clone())),
                None => Transformed::no(part),
            })
        })
    };
    let names = NamePreserver::new_for_projection();
    let group_expr = aggregate.group_expr.iter().cloned().map(|expr| Ok(as_column(expr)?.data));
    let aggr_expr = aggregate.aggr_expr.iter().cloned().map(|expr| {
        let name = names.save(&expr);
        let named = expr.transform_up(|part| match part {
            Expr::AggregateFunction(AggregateFunction { func, mut params }) if func.name() == "grouping" => {
                for arg in &mut params.args {
                    *arg = as_column(std::mem::take(arg))?.data;
                }
                Ok(Transformed::yes(Expr::AggregateFunction(AggregateFunction { func, params })))
            }
            other => Ok(Transformed::no(other)),
        })?;
        Ok(name.restore(named.data))
    });
    let (group_expr, aggr_expr) = (group_expr.collect::<Result<_>>()?, aggr_expr.collect::<Result<_>>()?);
    let columns = schema.columns().into_iter().map(Expr::Column);
    let below = computed.iter().map(|(expr, column)| expr.clone().alias(column.name.clone()));
    let below = Projection::try_new(columns.chain(below).collect(), aggregate.input)?;
    let input = Arc::new(LogicalPlan::Projection(below));
    Ok(Transformed::yes(LogicalPlan::Aggregate(Aggregate::try_new(input, group_expr, aggr_expr)?)))
}
