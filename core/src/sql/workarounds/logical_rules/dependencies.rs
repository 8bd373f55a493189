//! Functional dependencies: which columns determine others.
//!
//! DataFusion records in a plan that a key determines the other columns. It keeps this for the columns of a
//! group even if a join has repeated the key: for `GROUP BY c.id, a.s` over `c JOIN a` it assumes that `c.id`
//! determines `a.s`. It then drops `a.s` when it groups again, as for `count(DISTINCT x)`, and from ORDER BY.
//! Resolving names in a SELECT by dependencies is right; rules that remove columns and joins do not see them.
//!
//! `optimize_projections` still sees those that hold, because it needs them: the planner groups by all
//! columns of a table whose key is in GROUP BY, and this rule removes them again. They hold where rows of
//! tables are only filtered, sorted, renamed and joined.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchemaRef, FunctionalDependencies, JoinType, Result};
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};

use super::super::walk::has_node;

/// Hides functional dependencies from a rule; from `optimize_projections` only those that may not hold.
#[derive(Debug)]
pub(super) struct WithoutDependencies(pub(super) Arc<dyn OptimizerRule + Send + Sync>);

impl OptimizerRule for WithoutDependencies {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        self.0.apply_order()
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        // A rule without an order walks the plan itself.
        let walks = self.apply_order().is_none();
        let is_asked = if walks { has_node(&plan, asks)? } else { asks(&plan) };
        if !is_asked {
            return self.0.rewrite(plan, config);
        }
        if self.name() == "optimize_projections" {
            let plan = plan.transform_down_with_subqueries(|node| {
                Ok(if are_sound(&node) {
                    Transformed::no(node)
                } else {
                    Transformed::yes(without_dependencies(node))
                })
            })?;
            return self.0.rewrite(plan.data, config);
        }
        let forget = |node| Ok(Transformed::yes(without_dependencies(node)));
        let hidden = if walks {
            plan.clone().transform_down_with_subqueries(forget)?
        } else {
            plan.clone().map_children(forget)?
        };
        let rewritten = self.0.rewrite(hidden.data, config)?;
        // A plan that stays as it is keeps its dependencies for the rules that come next.
        Ok(if rewritten.transformed { rewritten } else { Transformed::no(plan) })
    }
}

/// Whether a rule reads the functional dependencies of this node's inputs, and there are any.
fn asks(plan: &LogicalPlan) -> bool {
    let is_asked = matches!(
        plan,
        LogicalPlan::Aggregate(_) | LogicalPlan::Distinct(_) | LogicalPlan::Join(_) | LogicalPlan::Sort(_)
    );
    is_asked && plan.inputs().iter().any(|input| !input.schema().functional_dependencies().is_empty())
}

/// Whether the functional dependencies in the schema of a plan hold. A key determines the columns of its
/// table also where a join repeats the row, or pads it with NULLs; not what is computed or counted above the
/// join.
fn are_sound(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::TableScan(_) => true,
        LogicalPlan::Filter(_)
        | LogicalPlan::Sort(_)
        | LogicalPlan::Limit(_)
        | LogicalPlan::SubqueryAlias(_) => plan.inputs().into_iter().all(are_sound),
        LogicalPlan::Projection(node) => node.expr.iter().all(is_column) && are_sound(&node.input),
        LogicalPlan::Join(join) => match join.join_type {
            JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => {
                are_sound(&join.left) && are_sound(&join.right)
            }
            JoinType::LeftSemi | JoinType::LeftAnti => are_sound(&join.left),
            JoinType::RightSemi | JoinType::RightAnti => are_sound(&join.right),
            JoinType::LeftMark | JoinType::RightMark => false,
        },
        _ => false,
    }
}

fn is_column(expr: &Expr) -> bool {
    match expr {
        Expr::Column(_) => true,
        Expr::Alias(alias) => is_column(&alias.expr),
        _ => false,
    }
}

/// The plan without the functional dependencies in its own schema, if it has one.
fn without_dependencies(plan: LogicalPlan) -> LogicalPlan {
    match plan {
        LogicalPlan::Projection(mut node) => {
            clear_dependencies(&mut node.schema);
            LogicalPlan::Projection(node)
        }
        LogicalPlan::Aggregate(mut node) => {
            clear_dependencies(&mut node.schema);
            LogicalPlan::Aggregate(node)
        }
        LogicalPlan::Join(mut node) => {
            clear_dependencies(&mut node.schema);
            LogicalPlan::Join(node)
        }
        LogicalPlan::Window(mut node) => {
            clear_dependencies(&mut node.schema);
            LogicalPlan::Window(node)
        }
        LogicalPlan::SubqueryAlias(mut node) => {
            clear_dependencies(&mut node.schema);
            LogicalPlan::SubqueryAlias(node)
        }
        LogicalPlan::TableScan(mut node) => {
            clear_dependencies(&mut node.projected_schema);
            LogicalPlan::TableScan(node)
        }
        // These have the schema of their input.
        LogicalPlan::Filter(mut node) => {
            node.input = Arc::new(without_dependencies(Arc::unwrap_or_clone(node.input)));
            LogicalPlan::Filter(node)
        }
        LogicalPlan::Sort(mut node) => {
            node.input = Arc::new(without_dependencies(Arc::unwrap_or_clone(node.input)));
            LogicalPlan::Sort(node)
        }
        LogicalPlan::Limit(mut node) => {
            node.input = Arc::new(without_dependencies(Arc::unwrap_or_clone(node.input)));
            LogicalPlan::Limit(node)
        }
        other => other,
    }
}

fn clear_dependencies(schema: &mut DFSchemaRef) {
    if schema.functional_dependencies().is_empty() {
        return;
    }
    let bare = schema.as_ref().clone().with_functional_dependencies(FunctionalDependencies::empty());
    if let Ok(bare) = bare {
        *schema = Arc::new(bare);
    }
}
