//! Removes repeated ORDER BY expressions in aggregates and DISTINCT ON, at which `first_value()` panics.

use std::collections::HashSet;

use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::expr::Sort;
use datafusion::logical_expr::{Distinct, Expr, LogicalPlan};

/// Removes repeated items from a list; returns whether there were any.
fn dedup<T>(list: &mut Vec<T>, expr: impl Fn(&T) -> &Expr) -> bool {
    let mut seen = HashSet::new();
    let before = list.len();
    list.retain(|item| seen.insert(expr(item).clone()));
    list.len() < before
}

fn sorted_by(sort: &Sort) -> &Expr {
    &sort.expr
}

/// Corrects ORDER BY of an aggregate.
pub(in crate::sql::workarounds) fn of_aggregate(expr: Expr, _: &DFSchema) -> Result<Transformed<Expr>> {
    let Expr::AggregateFunction(mut call) = expr else { return Ok(Transformed::no(expr)) };
    let is_changed = dedup(&mut call.params.order_by, sorted_by);
    Ok(Transformed::new_transformed(Expr::AggregateFunction(call), is_changed))
}

/// Corrects DISTINCT ON and its ORDER BY.
pub(in crate::sql::workarounds) fn of_distinct_on(plan: LogicalPlan) -> Transformed<LogicalPlan> {
    let LogicalPlan::Distinct(Distinct::On(mut on)) = plan else { return Transformed::no(plan) };
    let mut is_changed = dedup(&mut on.on_expr, |expr| expr);
    if let Some(sorts) = &mut on.sort_expr {
        is_changed |= dedup(sorts, sorted_by);
    }
    Transformed::new_transformed(LogicalPlan::Distinct(Distinct::On(on)), is_changed)
}
