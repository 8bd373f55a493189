//! Makes a physical plan a guest: puts a [`GuestExec`] wherever a plan can work for long, and checks into the
//! filters of joins.
//!
//! It runs after all rules, so they and EXPLAIN see the plain plan.
//!
//! Invariant: the rows stay the same, and so do the properties of every node that was there before.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::physical_expr::ScalarFunctionExpr;
use datafusion::physical_expr::expressions::{Column, Literal};
use datafusion::physical_expr::projection::ProjectionExpr;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::execution_plan::{EvaluationType, replace_children_if_necessary};
use datafusion::physical_plan::joins::utils::JoinFilter;
use datafusion::physical_plan::joins::{
    CrossJoinExec, HashJoinExec, NestedLoopJoinExec, NestedLoopJoinExecBuilder, PiecewiseMergeJoinExec,
    SortMergeJoinExec,
};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::recursive_query::RecursiveQueryExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::unnest::UnnestExec;
use datafusion::physical_plan::windows::{BoundedWindowAggExec, WindowAggExec};
use datafusion::physical_plan::{ExecutionPlan, PhysicalExpr};

use super::checked::CheckedExpr;
use super::exec::GuestExec;
use crate::workload::StatementControl;

/// From this many computed columns on, a projection checks before each of them.
const COMPUTED_COLUMNS_MIN: usize = 16;

/// Returns the plan with pauses, which ends when its statement must stop.
pub(in crate::sql) fn guard_plan(
    plan: Arc<dyn ExecutionPlan>,
    control: &Arc<StatementControl>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let guarded = plan.transform_up(|node| guarded(node, control).map(Transformed::yes))?.data;
    Ok(guest(guarded, control))
}

/// Returns a node, the inputs of which are guarded, with its own guards.
fn guarded(
    mut node: Arc<dyn ExecutionPlan>,
    control: &Arc<StatementControl>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let properties = Arc::clone(node.properties());
    // These nodes start tasks, which poll the inputs.
    if properties.evaluation_type == EvaluationType::Eager {
        let inputs = node.children().into_iter().map(|input| guest(Arc::clone(input), control)).collect();
        node = replace_children_if_necessary(node, inputs)?;
    }
    Ok(match with_checks(&node, control)? {
        Some(checked) => Arc::new(GuestExec::new(checked, properties, control)) as _,
        None if works_long(&node) => guest(node, control),
        None => node,
    })
}

fn guest(plan: Arc<dyn ExecutionPlan>, control: &Arc<StatementControl>) -> Arc<dyn ExecutionPlan> {
    if plan.is::<GuestExec>() {
        return plan;
    }
    let properties = Arc::clone(plan.properties());
    Arc::new(GuestExec::new(plan, properties, control))
}

/// Whether a node reads rows from outside of the plan, or may work long for a batch.
fn works_long(node: &Arc<dyn ExecutionPlan>) -> bool {
    node.children().is_empty()
        || node.is::<HashJoinExec>()
        || node.is::<NestedLoopJoinExec>()
        || node.is::<CrossJoinExec>()
        || node.is::<SortMergeJoinExec>()
        || node.is::<PiecewiseMergeJoinExec>()
        || node.is::<UnnestExec>()
        || node.is::<SortExec>()
        || node.is::<WindowAggExec>()
        || node.is::<BoundedWindowAggExec>()
        || node.is::<AggregateExec>()
        || node.is::<RecursiveQueryExec>()
}

/// Returns a node with checks in its expressions; `None` if it needs none. Its properties may be other ones:
/// nothing is known of the values of a checked expression.
fn with_checks(
    node: &Arc<dyn ExecutionPlan>,
    control: &Arc<StatementControl>,
) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let checked = |filter: &JoinFilter| {
        let expression = CheckedExpr::of(filter.expression(), control);
        JoinFilter::new(expression, filter.column_indices().to_vec(), Arc::clone(filter.schema()))
    };
    if let Some(join) = node.downcast_ref::<HashJoinExec>()
        && let Some(filter) = join.filter()
    {
        return join.builder().with_filter(Some(checked(filter))).build_exec().map(Some);
    }
    if let Some(join) = node.downcast_ref::<NestedLoopJoinExec>()
        && let Some(filter) = join.filter()
    {
        let join = NestedLoopJoinExecBuilder::from(join).with_filter(Some(checked(filter))).build()?;
        return Ok(Some(Arc::new(join)));
    }
    match node.downcast_ref::<ProjectionExec>() {
        Some(projection) => checked_projection(projection, control),
        None => Ok(None),
    }
}

fn checked_projection(
    projection: &ProjectionExec,
    control: &Arc<StatementControl>,
) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let mut computed = projection.expr().iter().filter(|column| is_computed(&column.expr));
    let are_few = computed.clone().count() < COMPUTED_COLUMNS_MIN;
    if are_few && !computed.any(|column| calls_function(&column.expr)) {
        return Ok(None);
    }
    let columns = projection.expr().iter().map(|column| ProjectionExpr {
        expr: match is_computed(&column.expr) {
            true => CheckedExpr::of(&column.expr, control),
            false => Arc::clone(&column.expr),
        },
        alias: column.alias.clone(),
    });
    let input = Arc::clone(projection.input());
    let checked = ProjectionExec::try_new_with_schema_metadata(columns, input, &projection.schema())?;
    Ok(Some(Arc::new(checked)))
}

fn is_computed(expr: &Arc<dyn PhysicalExpr>) -> bool {
    !expr.is::<Column>() && !expr.is::<Literal>()
}

fn calls_function(expr: &Arc<dyn PhysicalExpr>) -> bool {
    expr.is::<ScalarFunctionExpr>() || expr.children().into_iter().any(calls_function)
}

#[cfg(test)]
mod tests;
