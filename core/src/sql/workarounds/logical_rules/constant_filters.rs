//! Conditions without columns, above an aggregation or a window.
//!
//! DataFusion pushes them down, because all their columns are group columns. But an aggregation of no rows
//! can have a row, and a condition with `random()` applies to the groups, not to the rows in them.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::Transformed;
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{Expr, Filter, LogicalPlan, lit};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};

/// DataFusion's filter pushdown rule, without these conditions.
#[derive(Debug)]
pub(super) struct GuardedPushDown(pub(super) Arc<dyn OptimizerRule + Send + Sync>);

impl OptimizerRule for GuardedPushDown {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        self.0.apply_order()
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        // Merge stacked filters now, before DataFusion merges them.
        let plan = match plan {
            LogicalPlan::Filter(filter) => LogicalPlan::Filter(merged(filter)?),
            other => other,
        };
        let LogicalPlan::Filter(filter) = &plan else { return self.0.rewrite(plan, config) };
        if !matches!(*filter.input, LogicalPlan::Aggregate(_) | LogicalPlan::Window(_)) {
            return self.0.rewrite(plan, config);
        }
        let stays = |condition: &Expr| condition.column_refs().is_empty() || condition.is_volatile();
        let (kept, pushed): (Vec<Expr>, Vec<Expr>) =
            split_conjunction_owned(filter.predicate.clone()).into_iter().partition(stays);
        let Some(kept) = conjunction(kept) else { return self.0.rewrite(plan, config) };
        let Some(pushed) = conjunction(pushed) else { return Ok(Transformed::no(plan)) };
        let below = LogicalPlan::Filter(Filter::try_new(pushed, Arc::clone(&filter.input))?);
        self.0
            .rewrite(below, config)?
            .map_data(|below| Ok(LogicalPlan::Filter(Filter::try_new(kept, Arc::new(below))?)))
    }
}

/// Merges a filter with those directly below it. A condition that is in two of them is kept once.
fn merged(mut filter: Filter) -> Result<Filter> {
    while let LogicalPlan::Filter(below) = &*filter.input {
        let mut conditions = split_conjunction_owned(below.predicate.clone());
        for condition in split_conjunction_owned(filter.predicate) {
            if condition.is_volatile() || !conditions.contains(&condition) {
                conditions.push(condition);
            }
        }
        let predicate = conjunction(conditions).unwrap_or_else(|| lit(true));
        filter = Filter::try_new(predicate, Arc::clone(&below.input))?;
    }
    Ok(filter)
}
