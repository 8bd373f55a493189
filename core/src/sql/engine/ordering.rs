//! Keeps the sort order of cold scans only where the plan uses it.
//!
//! A segment is sorted by key, and DataFusion preserves every order it knows of: below a join or an
//! aggregation it then merges the segment streams row by row, which costs more than the order is worth. So a
//! scan declares its order only where a sort or a window above sees it.
//!
//! Invariant: the rows stay the same; where a required order is not kept, a sort produces it.

use std::sync::Arc;

use datafusion::common::Result as DataFusionResult;
use datafusion::common::config::ConfigOptions;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfig, FileScanConfigBuilder};
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_expr::OrderingRequirements;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::joins::{
    CrossJoinExec, HashJoinExec, NestedLoopJoinExec, SymmetricHashJoinExec,
};
use datafusion::physical_plan::sorts::sort::SortExec;

/// Runs before all other rules: the plan already has its sorts, but no order-preserving operators yet.
#[derive(Debug)]
pub(super) struct OrderRule;

impl PhysicalOptimizerRule for OrderRule {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        config: &ConfigOptions,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        forget_order(plan, config.execution.target_partitions, false)
    }

    fn name(&self) -> &str {
        "order_where_asked_for"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Drops the order of scans that no sort sees; `reached` says whether a sort above sees the order of `plan`.
fn forget_order(
    plan: Arc<dyn ExecutionPlan>,
    partitions: usize,
    reached: bool,
) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
    if let Some(source) = plan.downcast_ref::<DataSourceExec>() {
        return Ok(match source.data_source().downcast_ref::<FileScanConfig>() {
            Some(scan) if !reached && !scan.output_ordering.is_empty() => without_order(scan, partitions),
            _ => plan,
        });
    }
    let sorts = plan.is::<SortExec>() || needs_order(&plan);
    let mixes = plan.is::<AggregateExec>()
        || plan.is::<HashJoinExec>()
        || plan.is::<NestedLoopJoinExec>()
        || plan.is::<CrossJoinExec>()
        || plan.is::<SymmetricHashJoinExec>();
    let reached = sorts || (reached && !mixes);
    let children = plan.children().into_iter().map(Arc::clone);
    let children: Vec<_> =
        children.map(|child| forget_order(child, partitions, reached)).collect::<DataFusionResult<_>>()?;
    replace_children_if_necessary(plan, children)
}

/// Returns the scan without its order. Files that were apart to keep the order now share `partitions`.
fn without_order(scan: &FileScanConfig, partitions: usize) -> Arc<dyn ExecutionPlan> {
    let files = scan.file_groups.iter().flat_map(FileGroup::iter).cloned().enumerate();
    let mut groups = vec![Vec::new(); partitions.clamp(1, scan.file_groups.len().max(1))];
    let count = groups.len();
    for (index, file) in files {
        if let Some(group) = groups.get_mut(index % count) {
            group.push(file);
        }
    }
    let scan = FileScanConfigBuilder::from(scan.clone())
        .with_output_ordering(Vec::new())
        .with_preserve_order(false)
        .with_file_groups(groups.into_iter().map(FileGroup::new).collect())
        .build();
    DataSourceExec::from_data_source(scan)
}

/// Whether the plan requires an input order. Aggregations only prefer one, unless a function has an ORDER BY.
fn needs_order(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let is_hard = |needed: OrderingRequirements| matches!(needed, OrderingRequirements::Hard(_));
    plan.required_input_ordering().into_iter().flatten().any(is_hard)
}
