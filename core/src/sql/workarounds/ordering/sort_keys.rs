//! Comparisons in the keys of sorts, windows and ordered aggregates.
//!
//! DataFusion computes the range of every part of a sort key, to find out how the key is ordered. A function,
//! a CASE or an IN has a range of type NULL, and `<` refuses to compare it with a range of another type. Then
//! the key counts as unsorted, even behind its own sort, and the last check of the plan fails.
//!
//! So a function that returns its argument gives each such side of a comparison a range of its own type.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::expr::BinaryExpr;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Expr, LogicalPlan, Operator};

use super::super::identity::{Claim, claimed};
use super::super::walk::type_of;

/// Gives the sides of comparisons in the keys of a node their ranges.
pub(in crate::sql::workarounds) fn with_ranges(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    let is_sort = matches!(plan, LogicalPlan::Sort(_));
    if !is_sort && !matches!(plan, LogicalPlan::Window(_) | LogicalPlan::Aggregate(_)) {
        return Ok(Transformed::no(plan));
    }
    let [input] = plan.inputs()[..] else { return Ok(Transformed::no(plan)) };
    let schema = Arc::clone(input.schema());
    let names = NamePreserver::new(&plan);
    plan.map_expressions(|expr| {
        let name = names.save(&expr);
        let ranged = if is_sort { in_key(expr, &schema) } else { in_calls(expr, &schema) }?;
        Ok(if ranged.transformed { ranged.update_data(|expr| name.restore(expr)) } else { ranged })
    })
}

/// Rewrites the keys of the window and aggregate functions in an expression.
fn in_calls(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    expr.transform_up(|mut expr| {
        let (partitions, sorts) = match &mut expr {
            Expr::WindowFunction(call) => {
                (call.params.partition_by.as_mut_slice(), call.params.order_by.as_mut_slice())
            }
            Expr::AggregateFunction(call) => ([].as_mut_slice(), call.params.order_by.as_mut_slice()),
            _ => return Ok(Transformed::no(expr)),
        };
        let mut is_changed = false;
        for key in partitions.iter_mut().chain(sorts.iter_mut().map(|sort| &mut sort.expr)) {
            let ranged = in_key(std::mem::take(key), schema)?;
            is_changed |= ranged.transformed;
            *key = ranged.data;
        }
        Ok(Transformed::new_transformed(expr, is_changed))
    })
}

fn in_key(key: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    key.transform_up(|expr| match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right })
            if matches!(op, Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq) =>
        {
            let (left, right) = (ranged(*left, schema), ranged(*right, schema));
            let is_changed = left.transformed || right.transformed;
            let comparison = BinaryExpr::new(Box::new(left.data), op, Box::new(right.data));
            Ok(Transformed::new_transformed(Expr::BinaryExpr(comparison), is_changed))
        }
        other => Ok(Transformed::no(other)),
    })
}

/// Wraps everything but columns and literals, whose ranges have their types.
fn ranged(expr: Expr, schema: &DFSchema) -> Transformed<Expr> {
    if matches!(expr, Expr::Column(_) | Expr::Literal(..)) {
        return Transformed::no(expr);
    }
    match type_of(&expr, schema) {
        Some(ty) => Transformed::yes(claimed(expr, Claim::Ranged(ty))),
        None => Transformed::no(expr),
    }
}
