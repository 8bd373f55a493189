//! Keeps joins with null-safe keys (IS NOT DISTINCT FROM, INTERSECT, rewritten subqueries) apart from others.
//!
//! DataFusion has one setting for all keys of a join, and two of its rules ignore it: one makes `a = b` in
//! the condition a further key; the other takes inner joins apart and puts all their keys under one setting.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{NullEquality, Result};
use datafusion::logical_expr::LogicalPlan;
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};

type Rule = Arc<dyn OptimizerRule + Send + Sync>;

/// Runs the rule that finds keys in conditions, except on joins with null-safe keys.
#[derive(Debug)]
pub(super) struct GuardedKeys(pub(super) Rule);

/// Runs the rule that reorders inner joins, except on plans with null-safe keys.
#[derive(Debug)]
pub(super) struct GuardedOrder(pub(super) Rule);

fn equals_null(plan: &LogicalPlan) -> bool {
    let LogicalPlan::Join(join) = plan else { return false };
    join.null_equality == NullEquality::NullEqualsNull && !join.on.is_empty()
}

impl OptimizerRule for GuardedKeys {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        self.0.apply_order()
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        if equals_null(&plan) { Ok(Transformed::no(plan)) } else { self.0.rewrite(plan, config) }
    }
}

impl OptimizerRule for GuardedOrder {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        self.0.apply_order()
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        if plan.exists(|node| Ok(equals_null(node)))? {
            Ok(Transformed::no(plan))
        } else {
            self.0.rewrite(plan, config)
        }
    }
}
