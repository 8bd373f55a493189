//! Conditions with the literal on the left, turned round before filters are pushed down.
//!
//! DataFusion takes two equalities on one column for contradictory unless they are written alike: `x = 1 AND 1 = x` is false to it.
//! Its simplifier turns most of them round, but not where the literal is only found to be one in the same pass, as in
//! `lower('A') = x`.
//!
//! The two zeros of floats are one value, as in PostgreSQL, wherever bits are compared.

use std::mem::take;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::BinaryExpr;
use datafusion::logical_expr::{Expr, LogicalPlan, Operator, lit};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};

use super::walk::type_of;
use crate::failpoint::is_planted;

/// Runs directly before filters are pushed down.
#[derive(Debug)]
pub(super) struct EqualitiesRule;

impl OptimizerRule for EqualitiesRule {
    fn name(&self) -> &str {
        "kalam_equalities"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let has_conditions =
            matches!(plan, LogicalPlan::Filter(_) | LogicalPlan::Join(_) | LogicalPlan::TableScan(_));
        if !has_conditions || is_planted("literals_stay_left") {
            return Ok(Transformed::no(plan));
        }
        plan.map_expressions(|expr| expr.transform_up(|expr| Ok(turned(expr))))
    }
}

fn turned(expr: Expr) -> Transformed<Expr> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let swapped = op.swap().filter(|_| is_literal(&left) && !is_literal(&right) && is_turnable(op));
            match swapped {
                Some(op) => Transformed::yes(Expr::BinaryExpr(BinaryExpr::new(right, op, left))),
                None => Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right })),
            }
        }
        // The two zeros are one value, and would be two literals.
        Expr::Literal(ScalarValue::Float64(Some(zero)), metadata)
            if zero == 0.0 && zero.is_sign_negative() =>
        {
            Transformed::yes(Expr::Literal(ScalarValue::Float64(Some(0.0)), metadata))
        }
        Expr::Literal(ScalarValue::Float32(Some(zero)), metadata)
            if zero == 0.0 && zero.is_sign_negative() =>
        {
            Transformed::yes(Expr::Literal(ScalarValue::Float32(Some(0.0)), metadata))
        }
        other => Transformed::no(other),
    }
}

/// `x IN (...)` looks up the bits of a float among those of the list, and a value that is computed can be -0.0, which columns never hold.
/// Added to 0.0 it is the other zero.
pub(super) fn one_zero(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let Expr::InList(mut list) = expr else { return Ok(Transformed::no(expr)) };
    let zero = match type_of(&list.expr, schema) {
        Some(DataType::Float64) => lit(0.0_f64),
        Some(DataType::Float32) => lit(0.0_f32),
        _ => return Ok(Transformed::no(Expr::InList(list))),
    };
    if !matches!(*list.expr, Expr::Column(_)) {
        list.expr = Box::new(*list.expr + zero);
    }
    for item in &mut list.list {
        *item = turned(take(item)).data;
    }
    Ok(Transformed::yes(Expr::InList(list)))
}

fn is_literal(expr: &Expr) -> bool {
    matches!(expr, Expr::Literal(..))
}

fn is_turnable(op: Operator) -> bool {
    matches!(
        op,
        Operator::Eq | Operator::NotEq | Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq
    )
}
