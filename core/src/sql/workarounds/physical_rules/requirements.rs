//! Projection pushdown can break the order or distribution that a node above needs, after the rule that
//! ensures them has run.
//!
//! A union with a projection pushed below it no longer knows that two of its columns are equal. A window
//! above that sorts by both loses its order, and DataFusion's last check refuses the plan. So the missing
//! requirement is enforced once more.

use std::sync::Arc;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DataFusionError, Result};
use datafusion::physical_expr::{LexOrdering, OrderingRequirements};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::ensure_requirements::EnsureRequirements;
use datafusion::physical_optimizer::output_requirements::OutputRequirements;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};

/// DISTINCT below an unsorted LIMIT stops after enough groups. If its input has an order by now, DataFusion
/// would look for the first groups of an unspecified order, and fail. So the limit is dropped.
fn without_lost_limit(node: Arc<dyn ExecutionPlan>) -> Result<Transformed<Arc<dyn ExecutionPlan>>> {
    let Some(aggregate) = node.downcast_ref::<AggregateExec>() else { return Ok(Transformed::no(node)) };
    let is_lost = aggregate.limit_options().is_some_and(|limit| limit.descending.is_none())
        && aggregate.get_minmax_desc().is_none()
        && !aggregate.is_unordered_unfiltered_group_by_distinct();
    if !is_lost {
        return Ok(Transformed::no(node));
    }
    Ok(Transformed::yes(Arc::new(aggregate.with_new_limit_options(None))))
}

/// Sorts inputs without the order that a node needs; `EnsureRequirements` leaves a merge above them as it is.
fn with_orders(node: Arc<dyn ExecutionPlan>) -> Result<Transformed<Arc<dyn ExecutionPlan>>> {
    let mut is_changed = false;
    let mut children = Vec::new();
    for (child, needed) in node.children().into_iter().zip(node.required_input_ordering()) {
        let mut child = Arc::clone(child);
        if let Some(needed) = needed.map(OrderingRequirements::into_single)
            && !child.equivalence_properties().ordering_satisfy_requirement(needed.clone())?
        {
            child =
                Arc::new(SortExec::new(LexOrdering::from(needed), child).with_preserve_partitioning(true));
            is_changed = true;
        }
        children.push(child);
    }
    if !is_changed {
        return Ok(Transformed::no(node));
    }
    replace_children_if_necessary(node, children).map(Transformed::yes)
}

/// DataFusion's check `SanityCheckPlan`, which repairs a plan before it refuses it.
#[derive(Debug)]
pub(super) struct RepairingCheck(pub(super) Arc<dyn PhysicalOptimizerRule + Send + Sync>);

impl PhysicalOptimizerRule for RepairingCheck {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = plan.transform_up(without_lost_limit)?.data;
        if let Ok(checked) = self.0.optimize(Arc::clone(&plan), config) {
            return Ok(checked);
        }
        // The order of the result is a requirement too; a node at the top stands for it.
        let plan = OutputRequirements::new_add_mode().optimize(plan, config)?;
        let plan = EnsureRequirements::new().optimize(plan, config)?;
        let plan = OutputRequirements::new_remove_mode().optimize(plan, config)?;
        let repaired = plan.transform_up(with_orders)?.data;
        // An invalid plan is not the client's mistake.
        self.0.optimize(repaired, config).map_err(|error| DataFusionError::Internal(error.to_string()))
    }

    fn name(&self) -> &str {
        self.0.name()
    }

    fn schema_check(&self) -> bool {
        self.0.schema_check()
    }
}
