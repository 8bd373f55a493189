//! Constant or equal columns of an input need not stay so above a node that adds NULLs.
//!
//! DataFusion takes over what it knows about both inputs of an outer join. For
//! `t LEFT JOIN (SELECT * FROM s WHERE k = 2) x` it assumes that `x.k` is 2 even in rows without a match, and
//! drops it from a sort. Rows then come in any order, and windows and DISTINCT ON are wrong. The same goes
//! for columns that only some grouping sets have.
//!
//! Invariant: a join sees no constants of an input to which it may add NULLs, and an aggregation with several
//! grouping sets sees no properties of its input.

use std::fmt;
use std::sync::Arc;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{JoinType, Result, Statistics};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::joins::{HashJoinExec, NestedLoopJoinExec, SortMergeJoinExec};
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PhysicalExpr, PlanProperties,
};

use crate::error::Error;

/// Runs before the rules that remove sorts.
#[derive(Debug)]
pub(super) struct AddedNulls;

impl PhysicalOptimizerRule for AddedNulls {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| {
            let is_hidden = hides(&node);
            if !is_hidden.contains(&true) {
                return Ok(Transformed::no(node));
            }
            let inputs =
                node.children().into_iter().zip(is_hidden).map(|(input, is_hidden)| match is_hidden {
                    true => Arc::new(NullableExec::of(Arc::clone(input))) as Arc<dyn ExecutionPlan>,
                    false => Arc::clone(input),
                });
            let inputs = inputs.collect();
            Ok(Transformed::yes(replace_children_if_necessary(node, inputs)?))
        })
        .map(|rewritten| rewritten.data)
    }

    fn name(&self) -> &'static str {
        "kalam_added_nulls"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Which inputs of the node must hide their properties.
fn hides(node: &Arc<dyn ExecutionPlan>) -> [bool; 2] {
    if let Some(aggregate) = node.downcast_ref::<AggregateExec>() {
        return [aggregate.group_expr().has_grouping_set(), false];
    }
    let may_be_missing = match join_type(node) {
        Some(JoinType::Left) => [false, true],
        Some(JoinType::Right) => [true, false],
        Some(JoinType::Full) => [true, true],
        _ => [false, false],
    };
    let has_constants =
        |input: &Arc<dyn ExecutionPlan>| !input.equivalence_properties().constants().is_empty();
    let mut inputs = node.children().into_iter();
    may_be_missing.map(|may_be_missing| inputs.next().is_some_and(has_constants) && may_be_missing)
}

fn join_type(plan: &Arc<dyn ExecutionPlan>) -> Option<JoinType> {
    let hash = plan.downcast_ref::<HashJoinExec>().map(|join| *join.join_type());
    let merge = || plan.downcast_ref::<SortMergeJoinExec>().map(SortMergeJoinExec::join_type);
    let nested = || plan.downcast_ref::<NestedLoopJoinExec>().map(|join| *join.join_type());
    hash.or_else(merge).or_else(nested)
}

/// Passes its input's rows through; its properties say nothing about order or values.
#[derive(Debug)]
struct NullableExec {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl NullableExec {
    fn of(input: Arc<dyn ExecutionPlan>) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(input.schema()),
            input.output_partitioning().clone(),
            input.pipeline_behavior(),
            input.boundedness(),
        );
        Self { input, properties: Arc::new(properties) }
    }
}

impl DisplayAs for NullableExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NullableExec")
    }
}

impl ExecutionPlan for NullableExec {
    fn name(&self) -> &'static str {
        "NullableExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = children.into_iter().next().ok_or_else(|| Error::internal("a plan node has no input"))?;
        Ok(Arc::new(Self::of(input)))
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    /// No rule may replace a sort of the output by a sort of the input: the output claims no order.
    fn maintains_input_order(&self) -> Vec<bool> {
        vec![false]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn statistics_from_inputs(
        &self,
        input_stats: &[Arc<Statistics>],
        _: &StatisticsArgs,
    ) -> Result<Arc<Statistics>> {
        input_stats.first().map(Arc::clone).ok_or_else(|| Error::internal("a plan node has no input").into())
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.input.execute(partition, context)
    }
}
