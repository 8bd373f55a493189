//! DataFusion's simplifier combines conditions on one expression and ignores NULL.
//!
//! | condition, `x` NULL | simplified to | correct |
//! |---|---|---|
//! | `x NOT IN (1) OR x NOT IN (2)` | true | NULL |
//! | `x IN (1) AND x IN (2)`, `x IN (1) AND x NOT IN (1)` | false | NULL |
//! | `x # x`, `x # (x # y)` | 0, `y` | NULL |
//!
//! So a function that returns its argument wraps each repetition of an expression, and the simplifier sees
//! different ones. Afterwards the functions are removed: key ranges and segment pruning need plain columns.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchemaRef, Result};
use datafusion::execution::SessionState;
use datafusion::logical_expr::expr::{BinaryExpr, InList, ScalarFunction};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, LogicalPlan, Operator};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};

use super::super::identity::{Claim, claimed, is_distinct};
use crate::error::Error;
use crate::failpoint::is_planted;

type Rule = Arc<dyn OptimizerRule + Send + Sync>;

/// Runs DataFusion's rule on shielded expressions.
#[derive(Debug)]
pub(super) struct ShieldedSimplification(pub(super) Rule);

impl OptimizerRule for ShieldedSimplification {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        self.0.apply_order()
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        if is_planted("simplified_without_null") {
            return self.0.rewrite(plan, config);
        }
        let shielded = plan.map_expressions(shield)?;
        let simplified = self.0.rewrite(shielded.data, config)?;
        if !shielded.transformed {
            return Ok(simplified);
        }
        let is_changed = simplified.transformed;
        let plain = simplified.data.map_expressions(unshield)?.data;
        Ok(Transformed::new_transformed(plain, is_changed))
    }
}

/// Folds constants in an expression over the columns of a schema.
///
/// # Errors
/// The error of a constant part that fails.
pub(crate) fn simplify(expr: Expr, schema: &DFSchemaRef, state: &SessionState) -> crate::error::Result<Expr> {
    let context = SimplifyContext::builder()
        .with_schema(Arc::clone(schema))
        .with_config_options(Arc::clone(state.config_options()))
        .build();
    let simplified = ExprSimplifier::new(context).simplify(shield(expr)?.data)?;
    Ok(unshield(simplified)?.data)
}

/// Makes repeated expressions differ. Equal lists of equal expressions stay equal, so that the simplifier
/// still finds what the sides of an OR share.
fn shield(expr: Expr) -> Result<Transformed<Expr>> {
    if !needs_shield(&expr)? {
        return Ok(Transformed::no(expr));
    }
    let mut tested = HashSet::new();
    let mut numbers: HashMap<InList, Option<usize>> = HashMap::new();
    let mut number = 0;
    expr.transform_up(|expr| match expr {
        Expr::InList(list) => {
            let shield = *numbers.entry(list.clone()).or_insert_with(|| {
                let is_repeated = !tested.insert(list.expr.clone());
                number += usize::from(is_repeated);
                is_repeated.then_some(number)
            });
            let Some(shield) = shield else { return Ok(Transformed::no(Expr::InList(list))) };
            let InList { expr, list, negated } = list;
            let expr = Box::new(claimed(*expr, Claim::Distinct(shield)));
            Ok(Transformed::yes(Expr::InList(InList::new(expr, list, negated))))
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::BitwiseXor, right }) => {
            number += 1;
            let right = Box::new(claimed(*right, Claim::Distinct(number)));
            Ok(Transformed::yes(Expr::BinaryExpr(BinaryExpr::new(left, Operator::BitwiseXor, right))))
        }
        other => Ok(Transformed::no(other)),
    })
}

fn needs_shield(expr: &Expr) -> Result<bool> {
    let mut lists = 0;
    expr.exists(|expr| {
        lists += usize::from(matches!(expr, Expr::InList(_)));
        let is_xor = matches!(expr, Expr::BinaryExpr(BinaryExpr { op: Operator::BitwiseXor, .. }));
        Ok(is_xor || lists > 1)
    })
}

/// Removes the functions again.
fn unshield(expr: Expr) -> Result<Transformed<Expr>> {
    expr.transform_up(|expr| match expr {
        Expr::ScalarFunction(ScalarFunction { func, mut args }) if is_distinct(&func) => match args.pop() {
            Some(arg) => Ok(Transformed::yes(arg)),
            None => Err(Error::internal("a shield has no argument").into()),
        },
        other => Ok(Transformed::no(other)),
    })
}
