//! Makes a physical plan a guest: puts nodes wherever a plan can work for long, and checks into its
//! expressions.
//!
//! It runs after all rules, so they and EXPLAIN see the plain plan. EXPLAIN ANALYZE runs the guarded plan,
//! and shows it without these nodes.
//!
//! Invariant: the rows stay the same, and so do the properties of every node that was there before.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::physical_expr::ScalarFunctionExpr;
use datafusion::physical_expr::expressions::{Column, Literal};
use datafusion::physical_expr::projection::ProjectionExpr;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::analyze::AnalyzeExec;
use datafusion::physical_plan::execution_plan::{EvaluationType, replace_children_if_necessary};
use datafusion::physical_plan::joins::{HashJoinExec, PiecewiseMergeJoinExec, SortMergeJoinExec};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::recursive_query::RecursiveQueryExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::unnest::UnnestExec;
use datafusion::physical_plan::{ExecutionPlan, PhysicalExpr};

use super::checked::CheckedExpr;
use super::exec::{GuestExec, Job};
use super::joins::guarded_join;
use super::shown::ShownExec;
use super::slices::{Cut, ListCut};
use super::windows::WindowMemory;
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
        let is_shown = node.is::<AnalyzeExec>();
        let inputs = node.children().into_iter().map(|input| guest(Arc::clone(input), control));
        let inputs = inputs.map(|input| if is_shown { ShownExec::of(&input) } else { input }).collect();
        node = replace_children_if_necessary(node, inputs)?;
    }
    Ok(match with_guards(&node, control)? {
        Some(guarded) => GuestExec::with_properties(guarded, properties, Job::Pause(Arc::clone(control))),
        None if works_long(&node) => guest(node, control),
        None => node,
    })
}

fn guest(plan: Arc<dyn ExecutionPlan>, control: &Arc<StatementControl>) -> Arc<dyn ExecutionPlan> {
    if plan.downcast_ref::<GuestExec>().is_some_and(GuestExec::pauses) {
        return plan;
    }
    GuestExec::above(plan, Job::Pause(Arc::clone(control)))
}

/// Whether a node reads rows from outside of the plan, or may work long for a batch.
fn works_long(node: &Arc<dyn ExecutionPlan>) -> bool {
    node.children().is_empty()
        || node.is::<HashJoinExec>()
        || node.is::<SortMergeJoinExec>()
        || node.is::<PiecewiseMergeJoinExec>()
        || node.is::<UnnestExec>()
        || node.is::<SortExec>()
        || node.is::<AggregateExec>()
        || node.is::<RecursiveQueryExec>()
}

/// Returns a node with nodes below and checks in its expressions; `None` if it needs none. Its properties may
/// be other ones: nothing is known of the values of a checked expression.
fn with_guards(
    node: &Arc<dyn ExecutionPlan>,
    control: &Arc<StatementControl>,
) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    if let Some(join) = guarded_join(node, control)? {
        return Ok(Some(join));
    }
    if let Some(unnest) = node.downcast_ref::<UnnestExec>()
        && let Some(lists) = ListCut::of(unnest)
    {
        let slices = GuestExec::above(Arc::clone(unnest.input()), Job::Cut(Arc::new(Cut::Lists(lists))));
        return replace_children_if_necessary(Arc::clone(node), vec![guest(slices, control)]).map(Some);
    }
    if let Some(memory) = WindowMemory::of(node, control)? {
        return guarded_window(node, &memory).map(Some);
    }
    match node.downcast_ref::<ProjectionExec>() {
        Some(projection) => checked_projection(projection, control),
        None => Ok(None),
    }
}

fn guarded_window(
    node: &Arc<dyn ExecutionPlan>,
    memory: &Arc<WindowMemory>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let inputs = node.children().into_iter().map(Arc::clone);
    let inputs = inputs.map(|input| match memory.collects() {
        true => GuestExec::above(input, Job::Collect(Arc::clone(memory))),
        false => input,
    });
    let window = replace_children_if_necessary(Arc::clone(node), inputs.collect())?;
    Ok(GuestExec::above(window, Job::Release(Arc::clone(memory))))
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
