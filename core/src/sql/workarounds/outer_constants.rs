//! What is constant on the side of an outer join that may be missing is not constant behind the join.
//!
//! DataFusion takes over what it knows of both sides: in `t LEFT JOIN (SELECT * FROM s WHERE k = 2) x` it takes `x.k` for 2 also where
//! there is no `x`, leaves it out of a sort, and rows come in any order, with windows and DISTINCT ON that are wrong by it.
//!
//! Invariant: no join sees a constant in an input for which it may put NULLs.

use std::fmt;
use std::sync::Arc;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{JoinType, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::joins::{HashJoinExec, NestedLoopJoinExec, SortMergeJoinExec};
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PhysicalExpr, PlanProperties,
};

use crate::error::Error;

/// Comes before the rules that leave out sorts.
#[derive(Debug)]
pub(super) struct OuterConstants;

impl PhysicalOptimizerRule for OuterConstants {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| {
            let Some(join_type) = join_type(&node) else { return Ok(Transformed::no(node)) };
            let may_be_missing = match join_type {
                JoinType::Left => [false, true],
                JoinType::Right => [true, false],
                JoinType::Full => [true, true],
                _ => return Ok(Transformed::no(node)),
            };
            let mut is_changed = false;
            let inputs = node.children().into_iter().zip(may_be_missing).map(|(input, may_be_missing)| {
                if !may_be_missing || input.equivalence_properties().constants().is_empty() {
                    return Arc::clone(input);
                }
                is_changed = true;
                Arc::new(NullableExec::of(Arc::clone(input))) as Arc<dyn ExecutionPlan>
            });
            let inputs: Vec<_> = inputs.collect();
            Ok(Transformed::new_transformed(replace_children_if_necessary(node, inputs)?, is_changed))
        })
        .map(|rewritten| rewritten.data)
    }

    fn name(&self) -> &'static str {
        "kalam_outer_constants"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn join_type(plan: &Arc<dyn ExecutionPlan>) -> Option<JoinType> {
    let hash = plan.downcast_ref::<HashJoinExec>().map(|join| *join.join_type());
    let merge = || plan.downcast_ref::<SortMergeJoinExec>().map(SortMergeJoinExec::join_type);
    let nested = || plan.downcast_ref::<NestedLoopJoinExec>().map(|join| *join.join_type());
    hash.or_else(merge).or_else(nested)
}

/// The rows of its input. Its properties say nothing of their order and values.
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
        let input = children.into_iter().next().ok_or_else(|| Error::internal("rows have an input"))?;
        Ok(Arc::new(Self::of(input)))
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    /// Nobody may sort the input instead of the output, which says nothing of an order.
    fn maintains_input_order(&self) -> Vec<bool> {
        vec![false]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.input.execute(partition, context)
    }
}
