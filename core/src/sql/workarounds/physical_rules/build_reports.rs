//! Removes the filters of hash joins that could wait forever.
//!
//! A hash join that filters its probe side by its build side waits until every partition has reported that it
//! read the build side. A partition that is never polled never reports. This happens below a join whose
//! partitions each have their own build side: a partition with an empty build side ends without polling its
//! probe side, and the other partitions wait forever. DataFusion solves this only for joins whose own build
//! side is partitioned too (apache/datafusion#21625, #21666). Other joins run without the filter.
//!
//! Invariant: a join with a shared build side and a filter made from it is polled in all partitions or none.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::joins::{HashJoinExec, PartitionMode, SortMergeJoinExec};
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};

/// Runs after the rule that makes the filters.
#[derive(Debug)]
pub(super) struct BuildReports;

impl PhysicalOptimizerRule for BuildReports {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        remove_unsafe_filters(plan, false)
    }

    fn name(&self) -> &'static str {
        "kalam_build_reports"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Removes such filters. `may_skip`: some partitions of the plan may never be polled while others are.
fn remove_unsafe_filters(plan: Arc<dyn ExecutionPlan>, may_skip: bool) -> Result<Arc<dyn ExecutionPlan>> {
    let mut children = Vec::new();
    for (side, child) in plan.children().into_iter().enumerate() {
        children.push(remove_unsafe_filters(Arc::clone(child), may_skip_child(&plan, side, may_skip))?);
    }
    let plan = replace_children_if_necessary(plan, children)?;
    match plan.downcast_ref::<HashJoinExec>() {
        Some(join) if may_skip && waits(join) => join.builder().reset_state().build_exec(),
        _ => Ok(plan),
    }
}

fn waits(join: &HashJoinExec) -> bool {
    *join.partition_mode() == PartitionMode::CollectLeft
        && join.right().output_partitioning().partition_count() > 1
        && !join.dynamic_expressions_produced().is_empty()
}

fn may_skip_child(plan: &Arc<dyn ExecutionPlan>, side: usize, may_skip: bool) -> bool {
    // Each of these polls all its input partitions, in separate tasks.
    let is_exchange = plan.is::<RepartitionExec>()
        || plan.is::<CoalescePartitionsExec>()
        || plan.is::<SortPreservingMergeExec>();
    if is_exchange {
        return false;
    }
    let is_own_build =
        |join: &HashJoinExec| side == 1 && *join.partition_mode() == PartitionMode::Partitioned;
    may_skip
        || plan.is::<SortMergeJoinExec>()
        || plan.downcast_ref::<HashJoinExec>().is_some_and(is_own_build)
}
