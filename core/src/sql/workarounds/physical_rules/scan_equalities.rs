//! A scan that prunes row groups by `expression = literal` declares both equal everywhere above it.
//!
//! The sort keys above then have the expression in place of equal literals. A window that needs the order as
//! written does not find it, and the plan is refused. DataFusion prevents this for filters, but not for
//! scans. Two inequalities prune the same row groups and make nothing equal.
//!
//! Invariant: an equality in the filter of a scan has a column on one side.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::datasource::memory::DataSourceExec;
use datafusion::datasource::physical_plan::{FileScanConfigBuilder, FileSource, ParquetSource};
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::expressions::{BinaryExpr, Column};
use datafusion::physical_expr::{conjunction, split_conjunction};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::{ExecutionPlan, PhysicalExpr};

/// Runs after filter pushdown, and before sorts are added.
#[derive(Debug)]
pub(super) struct ScanEqualities;

impl PhysicalOptimizerRule for ScanEqualities {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let rewritten = plan.transform_up(|node| {
            Ok(match with_inequalities(&node) {
                Some(scan) => Transformed::yes(scan),
                None => Transformed::no(node),
            })
        })?;
        Ok(rewritten.data)
    }

    fn name(&self) -> &'static str {
        "kalam_scan_equalities"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn with_inequalities(node: &Arc<dyn ExecutionPlan>) -> Option<Arc<dyn ExecutionPlan>> {
    let (config, source) =
        node.downcast_ref::<DataSourceExec>()?.downcast_to_file_source::<ParquetSource>()?;
    let filter = source.filter()?;
    let conditions = split_conjunction(&filter);
    if !conditions.iter().any(|condition| equality_without_column(condition).is_some()) {
        return None;
    }
    let conditions = conditions.into_iter().flat_map(|condition| match equality_without_column(condition) {
        None => vec![Arc::clone(condition)],
        Some(equal) => [Operator::GtEq, Operator::LtEq]
            .into_iter()
            .map(|op| -> Arc<dyn PhysicalExpr> {
                Arc::new(BinaryExpr::new(Arc::clone(equal.left()), op, Arc::clone(equal.right())))
            })
            .collect(),
    });
    let source = source.clone().with_predicate(conjunction(conditions));
    let config = FileScanConfigBuilder::from(config.clone()).with_source(Arc::new(source)).build();
    Some(DataSourceExec::from_data_source(config))
}

fn equality_without_column(condition: &Arc<dyn PhysicalExpr>) -> Option<&BinaryExpr> {
    condition.downcast_ref::<BinaryExpr>().filter(|binary| {
        *binary.op() == Operator::Eq && !binary.left().is::<Column>() && !binary.right().is::<Column>()
    })
}
