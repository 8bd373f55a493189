//! A sum of sums has a wider type than the sum.
//!
//! DataFusion groups `sum(m), count(DISTINCT c)` twice and sums the sums of decimals, whose type is wider;
//! conditions above keep the narrower type.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::Transformed;
use datafusion::logical_expr::LogicalPlan;
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};

/// Applies an aggregation rule only if the columns keep their types.
#[derive(Debug)]
pub(super) struct SameTypes(pub(super) Arc<dyn OptimizerRule + Send + Sync>);

impl OptimizerRule for SameTypes {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        self.0.apply_order()
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        if !matches!(plan, LogicalPlan::Aggregate(_)) {
            return self.0.rewrite(plan, config);
        }
        let original = plan.clone();
        let rewritten = self.0.rewrite(plan, config)?;
        let types = |plan: &LogicalPlan| -> Vec<_> {
            plan.schema().fields().iter().map(|field| field.data_type().clone()).collect()
        };
        if rewritten.transformed && types(&rewritten.data) != types(&original) {
            return Ok(Transformed::no(original));
        }
        Ok(rewritten)
    }
}
