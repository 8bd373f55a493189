//! Moves literals to the right side of conditions before filter pushdown.
//!
//! DataFusion considers two equalities on one column contradictory unless they are written alike: it takes
//! `x = 1 AND 1 = x` for false. Its simplifier swaps most of them, but not if the same pass first folds the
//! left side to a literal, as in `lower('A') = x`.

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::logical_expr::expr::BinaryExpr;
use datafusion::logical_expr::{Expr, LogicalPlan, Operator};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};

use crate::failpoint::is_planted;

/// Runs directly before filter pushdown.
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
        other => Transformed::no(other),
    }
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
