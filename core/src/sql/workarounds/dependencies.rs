//! Functional dependencies: which columns determine others.
//!
//! DataFusion records in a plan that a key determines the other columns. It keeps this for the columns of a
//! group even if a join has repeated the key: for `GROUP BY c.id, a.s` over `c JOIN a` it assumes that `c.id`
//! determines `a.s`. It then drops `a.s` when it groups again, as for `count(DISTINCT x)`, and from ORDER BY.
//! Resolving names in a SELECT by dependencies is right; rules that remove columns and joins do not see them.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchemaRef, FunctionalDependencies, Result};
use datafusion::logical_expr::LogicalPlan;
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};

/// Hides functional dependencies from a rule.
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
        let plan = match self.apply_order() {
            None if any_asks(&plan)? => {
                plan.transform_down_with_subqueries(|node| Ok(Transformed::yes(forgetful(node))))?.data
            }
            Some(_) if asks(&plan) => plan.map_children(|input| Ok(Transformed::yes(forgetful(input))))?.data,
            _ => plan,
        };
        self.0.rewrite(plan, config)
    }
}

/// Whether a rule that walks the plan itself reads dependencies at any of its nodes.
fn any_asks(plan: &LogicalPlan) -> Result<bool> {
    let found = plan.apply_with_subqueries(|node| {
        Ok(if asks(node) { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found == TreeNodeRecursion::Stop)
}

/// Whether a rule reads the functional dependencies of this node's inputs, and there are any.
fn asks(plan: &LogicalPlan) -> bool {
    let is_asked = matches!(
        plan,
        LogicalPlan::Aggregate(_) | LogicalPlan::Distinct(_) | LogicalPlan::Join(_) | LogicalPlan::Sort(_)
    );
    is_asked && plan.inputs().iter().any(|input| !input.schema().functional_dependencies().is_empty())
}

/// The plan without the functional dependencies in its own schema, if it has one.
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
