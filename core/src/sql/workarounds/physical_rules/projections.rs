//! A projection that computes stays above a filter.
//!
//! DataFusion moves a projection with fewer columns than it reads below the filter. Then
//! `SELECT b, a / b FROM t WHERE b <> 0` divides by zero. Plain columns may move: the filter carries fewer.

use std::fmt;
use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::{ProjectionExec, try_embed_projection};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PhysicalExpr, PlanProperties};

use crate::error::Error;

/// Runs the projection pushdown rule with a fence above each filter.
#[derive(Debug)]
pub(super) struct FencedProjections(pub(super) Arc<dyn PhysicalOptimizerRule + Send + Sync>);

impl PhysicalOptimizerRule for FencedProjections {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let fenced = plan.transform_up(|node| {
            Ok(match node.is::<FilterExec>() {
                true => Transformed::yes(Arc::new(Fence { filter: node }) as _),
                false => Transformed::no(node),
            })
        })?;
        let plan = self.0.optimize(fenced.data, config)?;
        if !fenced.transformed {
            return Ok(plan);
        }
        let open = plan.transform_up(|node| {
            Ok(match node.downcast_ref::<Fence>() {
                Some(fence) => Transformed::yes(Arc::clone(&fence.filter)),
                None => Transformed::no(node),
            })
        })?;
        Ok(open.data)
    }

    fn name(&self) -> &str {
        self.0.name()
    }

    fn schema_check(&self) -> bool {
        self.0.schema_check()
    }
}

/// Stands above a filter while projections are moved.
#[derive(Debug)]
struct Fence {
    filter: Arc<dyn ExecutionPlan>,
}

impl DisplayAs for Fence {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fence")
    }
}

impl ExecutionPlan for Fence {
    fn name(&self) -> &'static str {
        "Fence"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.filter.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.filter]
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let filter = children.into_iter().next().ok_or_else(|| Error::internal("a fence has no filter"))?;
        Ok(Arc::new(Self { filter }))
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn try_swapping_with_projection(
        &self,
        projection: &ProjectionExec,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let Some(filter) = self.filter.downcast_ref::<FilterExec>() else { return Ok(None) };
        if projection.expr().iter().all(|column| column.expr.is::<Column>()) {
            return filter.try_swapping_with_projection(projection);
        }
        // Columns that the projection does not read leave the filter.
        try_embed_projection(projection, filter)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.filter.execute(partition, context)
    }
}
