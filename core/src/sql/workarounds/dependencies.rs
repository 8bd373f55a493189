//! Which columns determine others.
//!
//! DataFusion keeps with a plan that a key determines the other columns. It says so also of a group's columns where a join has repeated the
//! key: of `GROUP BY c.id, a.s` over `c JOIN a` it takes `c.id` to determine `a.s`, and leaves `a.s` out of the groups when they are
//! grouped again, as for `count(DISTINCT x)`, and out of ORDER BY. Names in a SELECT are resolved by it, which is right; the rules that take columns and joins
//! away by it are not told.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchemaRef, FunctionalDependencies, Result};
use datafusion::logical_expr::LogicalPlan;
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};

/// A rule that sees no dependencies between columns.
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
        let is_asked = match self.apply_order() {
            None => {
                let mut is_asked = false;
                plan.apply_with_subqueries(|node| {
                    is_asked |= asks(node);
                    Ok(if is_asked { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
                })?;
                is_asked
            }
            Some(_) => asks(&plan),
        };
        if !is_asked {
            return self.0.rewrite(plan, config);
        }
        let plan = match self.apply_order() {
            None => plan.transform_down_with_subqueries(|node| Ok(Transformed::yes(forgetful(node))))?.data,
            Some(_) => plan.map_children(|input| Ok(Transformed::yes(forgetful(input))))?.data,
        };
        self.0.rewrite(plan, config)
    }
}

/// Whether a rule asks at this node what the columns of its inputs determine, and is told something.
fn asks(plan: &LogicalPlan) -> bool {
    let is_asked = matches!(
        plan,
        LogicalPlan::Aggregate(_) | LogicalPlan::Distinct(_) | LogicalPlan::Join(_) | LogicalPlan::Sort(_)
    );
    is_asked && plan.inputs().iter().any(|input| !input.schema().functional_dependencies().is_empty())
}

/// The plan without what its columns determine, as far as one of its own schemas says it.
fn forgetful(plan: LogicalPlan) -> LogicalPlan {
    match plan {
        LogicalPlan::Projection(mut node) => {
            forget(&mut node.schema);
            LogicalPlan::Projection(node)
        }
        LogicalPlan::Aggregate(mut node) => {
            forget(&mut node.schema);
            LogicalPlan::Aggregate(node)
        }
        LogicalPlan::Join(mut node) => {
            forget(&mut node.schema);
            LogicalPlan::Join(node)
        }
        LogicalPlan::Window(mut node) => {
            forget(&mut node.schema);
            LogicalPlan::Window(node)
        }
        LogicalPlan::SubqueryAlias(mut node) => {
            forget(&mut node.schema);
            LogicalPlan::SubqueryAlias(node)
        }
        LogicalPlan::TableScan(mut node) => {
            forget(&mut node.projected_schema);
            LogicalPlan::TableScan(node)
        }
        // These have the schema of their input.
        LogicalPlan::Filter(mut node) => {
            node.input = Arc::new(forgetful(Arc::unwrap_or_clone(node.input)));
            LogicalPlan::Filter(node)
        }
        LogicalPlan::Sort(mut node) => {
            node.input = Arc::new(forgetful(Arc::unwrap_or_clone(node.input)));
            LogicalPlan::Sort(node)
        }
        LogicalPlan::Limit(mut node) => {
            node.input = Arc::new(forgetful(Arc::unwrap_or_clone(node.input)));
            LogicalPlan::Limit(node)
        }
        other => other,
    }
}

fn forget(schema: &mut DFSchemaRef) {
    if schema.functional_dependencies().is_empty() {
        return;
    }
    let bare = schema.as_ref().clone().with_functional_dependencies(FunctionalDependencies::empty());
    if let Ok(bare) = bare {
        *schema = Arc::new(bare);
    }
}
