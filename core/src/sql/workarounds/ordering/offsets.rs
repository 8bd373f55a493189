//! `ORDER BY ... OFFSET n` without LIMIT: DataFusion removes the sort if no node above needs the order.
//!
//! The OFFSET becomes a condition on the row number in that order, which the optimizer cannot drop.

use std::sync::Arc;

use datafusion::common::tree_node::Transformed;
use datafusion::common::{Column, Result};
use datafusion::functions_window::row_number::row_number_udwf;
use datafusion::logical_expr::expr::{Sort as SortExpr, WindowFunction};
use datafusion::logical_expr::{
    Distinct, DistinctOn, Expr, Limit, LogicalPlan, LogicalPlanBuilder, SkipType, Sort, lit,
};

use crate::failpoint::is_planted;

/// Rewrites a plan and its subqueries.
pub(in crate::sql::workarounds) fn keep_sorts(plan: LogicalPlan) -> Result<LogicalPlan> {
    if is_planted("offset_forgets_order") {
        return Ok(plan);
    }
    plan.transform_up_with_subqueries(|node| {
        let LogicalPlan::Limit(limit) = &node else { return Ok(Transformed::no(node)) };
        match (limit.fetch.is_none(), limit.get_skip_type()?) {
            (true, SkipType::Literal(skip)) if skip > 0 => match numbered(limit, skip)? {
                Some(plan) => Ok(Transformed::yes(plan)),
                None => Ok(Transformed::no(node)),
            },
            _ => Ok(Transformed::no(node)),
        }
    })
    .map(|rewritten| rewritten.data)
}

/// `None` if the rows are not sorted directly below.
fn numbered(limit: &Limit, skip: usize) -> Result<Option<LogicalPlan>> {
    match &*limit.input {
        LogicalPlan::Sort(sort) if sort.fetch.is_none() => rows_after(sort, skip).map(Some),
        LogicalPlan::Distinct(Distinct::On(distinct)) => first_rows_after(distinct, skip),
        LogicalPlan::Projection(projection) => {
            let inner = Limit { input: Arc::clone(&projection.input), ..limit.clone() };
            let Some(input) = numbered(&inner, skip)? else { return Ok(None) };
            let mut projection = projection.clone();
            projection.input = Arc::new(input);
            Ok(Some(LogicalPlan::Projection(projection)))
        }
        _ => Ok(None),
    }
}

/// DISTINCT ON returns rows in the order of its ON expressions, which need not be in its result.
fn first_rows_after(distinct: &DistinctOn, skip: usize) -> Result<Option<LogicalPlan>> {
    let Some(sorts) = &distinct.sort_expr else { return Ok(None) };
    let key = |number: usize| format!("__on{number}");
    let keys = distinct.on_expr.iter().enumerate().map(|(number, expr)| expr.clone().alias(key(number)));
    let select = distinct.select_expr.iter().cloned().chain(keys).collect();
    let input = Arc::clone(&distinct.input);
    let wide = DistinctOn::try_new(distinct.on_expr.clone(), select, Some(sorts.clone()), input)?;
    let order = sorts.iter().take(distinct.on_expr.len()).enumerate().map(|(number, sort)| {
        let expr = Expr::Column(Column::new_unqualified(key(number)));
        SortExpr::new(expr, sort.asc, sort.nulls_first)
    });
    let wide = LogicalPlan::Distinct(Distinct::On(wide));
    let columns = wide.schema().columns().into_iter().take(distinct.select_expr.len()).map(Expr::Column);
    let columns: Vec<Expr> = columns.collect();
    let sort = Sort { expr: order.collect(), input: Arc::new(wide), fetch: None };
    let rows = rows_after(&sort, skip)?;
    LogicalPlanBuilder::from(rows).project(columns)?.build().map(Some)
}

fn rows_after(sort: &Sort, skip: usize) -> Result<LogicalPlan> {
    const NUMBER: &str = "__row_number";
    let columns: Vec<Expr> = sort.input.schema().columns().into_iter().map(Expr::Column).collect();
    let order: Vec<SortExpr> = sort.expr.clone();
    let mut number = WindowFunction::new(row_number_udwf(), Vec::new());
    number.params.order_by = order.clone();
    number.params.window_frame = datafusion::logical_expr::WindowFrame::new(Some(true));
    let number = Expr::WindowFunction(Box::new(number)).alias(NUMBER);
    let skip = u64::try_from(skip).unwrap_or(u64::MAX);
    LogicalPlanBuilder::from(LogicalPlan::clone(&sort.input))
        .window([number])?
        .filter(Expr::Column(Column::new_unqualified(NUMBER)).gt(lit(skip)))?
        .project(columns)?
        .sort(order)?
        .build()
}
