//! ORDER BY within aggregates and DISTINCT ON, each expression once: `first_value()` panics at the second.

use std::collections::HashSet;

use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::expr::Sort;
use datafusion::logical_expr::{Distinct, Expr, LogicalPlan};

/// Drops what a list has sorted by already.
fn without_doubles(sorts: &mut Vec<Sort>) -> bool {
    let mut seen = HashSet::new();
    let before = sorts.len();
    sorts.retain(|sort| seen.insert(sort.expr.clone()));
    sorts.len() < before
}

/// ORDER BY of an aggregate.
pub(super) fn of_aggregate(expr: Expr, _: &DFSchema) -> Result<Transformed<Expr>> {
    let Expr::AggregateFunction(mut call) = expr else { return Ok(Transformed::no(expr)) };
    let is_changed = without_doubles(&mut call.params.order_by);
    Ok(Transformed::new_transformed(Expr::AggregateFunction(call), is_changed))
}

/// ORDER BY of DISTINCT ON.
pub(super) fn of_distinct_on(plan: LogicalPlan) -> Transformed<LogicalPlan> {
    let LogicalPlan::Distinct(Distinct::On(mut on)) = plan else { return Transformed::no(plan) };
    let is_changed = on.sort_expr.as_mut().is_some_and(without_doubles);
    let mut seen = HashSet::new();
    on.on_expr.retain(|expr| seen.insert(expr.clone()));
    Transformed::new_transformed(LogicalPlan::Distinct(Distinct::On(on)), is_changed)
}
