//! A scalar subquery without a row is NULL, even if its column is NOT NULL. DataFusion assumes NOT NULL then,
//! and folds `IS NULL` to false.

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Expr, LogicalPlan};

use super::super::identity::{Claim, claimed};
use super::existence::has_one_row;

/// Marks the scalar subqueries that become columns of a node as nullable.
pub(in crate::sql::workarounds) fn may_be_null(node: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    if !matches!(node, LogicalPlan::Projection(_) | LogicalPlan::Aggregate(_) | LogicalPlan::Window(_)) {
        return Ok(Transformed::no(node));
    }
    let names = NamePreserver::new(&node);
    node.map_expressions(|expr| {
        let name = names.save(&expr);
        let marked = expr.transform_down(|part| match &part {
            Expr::ScalarSubquery(subquery) => {
                let plan = &subquery.subquery;
                let is_lost = !plan.schema().field(0).is_nullable() && !has_one_row(plan);
                let part = if is_lost { claimed(part, Claim::Nullable) } else { part };
                Ok(Transformed::new(part, is_lost, TreeNodeRecursion::Jump))
            }
            _ => Ok(Transformed::no(part)),
        })?;
        Ok(if marked.transformed { marked.update_data(|expr| name.restore(expr)) } else { marked })
    })
}
