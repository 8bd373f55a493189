//! INTERSECT ALL keeps min(m, n) of m left and n right rows that are equal; EXCEPT ALL keeps max(m - n, 0).
//!
//! DataFusion plans them as semi joins and anti joins, which keep all m or none. The joins are right once
//! equal rows are numbered from 1 on both sides and the number is a further key.

use std::sync::Arc;

use datafusion::common::tree_node::Transformed;
use datafusion::common::{Column, JoinConstraint, JoinType, NullEquality, Result};
use datafusion::functions_window::row_number::row_number_udwf;
use datafusion::logical_expr::expr::WindowFunction;
use datafusion::logical_expr::{Distinct, Expr, Join, LogicalPlan, LogicalPlanBuilder, WindowFrame};

/// Columns with the number of a row among its equals, on each side.
const NUMBERS: [&str; 2] = ["__number_of_left_row", "__number_of_right_row"];

/// Corrects a set operation. Runs before other rewrites make joins of this kind.
pub(super) fn count_rows(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    let LogicalPlan::Join(join) = plan else { return Ok(Transformed::no(plan)) };
    // Without ALL, the left side is distinct.
    if !is_set_operation(&join) || matches!(*join.left, LogicalPlan::Distinct(Distinct::All(_))) {
        return Ok(Transformed::no(LogicalPlan::Join(join)));
    }
    let columns: Vec<Expr> = join.left.schema().columns().into_iter().map(Expr::Column).collect();
    let left = numbered(&join.left, NUMBERS[0])?;
    let right = numbered(&join.right, NUMBERS[1])?;
    let mut on = join.on;
    on.push((number_of(&left), number_of(&right)));
    let counted = Join::try_new(
        Arc::new(left),
        Arc::new(right),
        on,
        join.filter,
        join.join_type,
        JoinConstraint::On,
        join.null_equality,
        false,
    )?;
    let plan = LogicalPlanBuilder::from(LogicalPlan::Join(counted)).project(columns)?.build()?;
    Ok(Transformed::yes(plan))
}

/// Returns whether a join is INTERSECT or EXCEPT. The planner makes no other joins of this kind.
pub(super) fn is_set_operation(join: &Join) -> bool {
    join.null_equality == NullEquality::NullEqualsNull
        && matches!(join.join_type, JoinType::LeftSemi | JoinType::LeftAnti)
}

fn number_of(plan: &LogicalPlan) -> Expr {
    let (relation, field) = plan.schema().qualified_field(plan.schema().fields().len() - 1);
    Expr::Column(Column::from((relation, field)))
}

fn numbered(plan: &LogicalPlan, name: &str) -> Result<LogicalPlan> {
    let mut number = WindowFunction::new(row_number_udwf(), Vec::new());
    number.params.partition_by = plan.schema().columns().into_iter().map(Expr::Column).collect();
    number.params.window_frame = WindowFrame::new(None);
    let number = Expr::WindowFunction(Box::new(number)).alias(name);
    LogicalPlanBuilder::from(plan.clone()).window([number])?.build()
}
