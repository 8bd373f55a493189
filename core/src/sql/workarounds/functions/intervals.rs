//! Compares intervals as PostgreSQL does: a month has 30 days, a day 24 hours. Arrow compares months first.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray, Decimal128Array};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, IntervalMonthDayNano, IntervalMonthDayNanoType};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::{
    AggregateFunction, Between, BinaryExpr, InList, InSubquery, ScalarFunction,
};
use datafusion::logical_expr::{
    ColumnarValue, Expr, LogicalPlan, LogicalPlanBuilder, Operator, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature, Subquery, Volatility, binary_expr, when,
};

use super::super::multisets::is_set_operation;
use super::super::types::kinds::{INTERVAL, is_comparison};
use super::super::walk::type_of;
use super::span_part::difference_us;
use crate::casts::DAY_NS;
use crate::error::Error;

/// Compares intervals by length. Runs after type coercion, so that both sides are intervals.
///
/// # Errors
/// 0A000 for `min`, `max`, DISTINCT aggregates, and `greatest` or `least` of more than two intervals.
pub(crate) fn compare(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let is_interval = |expr: &Expr| type_of(expr, schema) == Some(INTERVAL);
    let length = |expr: Expr| length(expr, schema);
    let boxed = |expr: Expr| Box::new(length(expr));
    Ok(match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right })
            if is_comparison(op) && is_interval(&left) && is_interval(&right) =>
        {
            Transformed::yes(Expr::BinaryExpr(BinaryExpr::new(boxed(*left), op, boxed(*right))))
        }
        Expr::Between(Between { expr, negated, low, high })
            if is_interval(&expr) && is_interval(&low) && is_interval(&high) =>
        {
            Transformed::yes(Expr::Between(Between::new(boxed(*expr), negated, boxed(*low), boxed(*high))))
        }
        Expr::InList(InList { expr, list, negated })
            if is_interval(&expr) && list.iter().all(is_interval) =>
        {
            let list = list.into_iter().map(length).collect();
            Transformed::yes(Expr::InList(InList::new(boxed(*expr), list, negated)))
        }
        Expr::InSubquery(InSubquery { expr, subquery, negated }) if is_interval(&expr) => {
            let subquery = lengths(subquery)?;
            Transformed::yes(Expr::InSubquery(InSubquery::new(boxed(*expr), subquery, negated)))
        }
        Expr::SetComparison(mut any) if is_interval(&any.expr) => {
            any.expr = boxed(*any.expr);
            any.subquery = lengths(any.subquery)?;
            Transformed::yes(Expr::SetComparison(any))
        }
        Expr::Case(mut case) if case.expr.as_deref().is_some_and(is_interval) => {
            case.expr = case.expr.map(|operand| boxed(*operand));
            for (value, _) in &mut case.when_then_expr {
                **value = length(std::mem::take(&mut **value));
            }
            Transformed::yes(Expr::Case(case))
        }
        Expr::ScalarFunction(call) if call.args.iter().any(is_interval) => choose(call, schema)?,
        Expr::WindowFunction(mut call) => {
            let params = &mut call.params;
            let orders = params.order_by.iter_mut().map(|sort| &mut sort.expr);
            let mut is_changed = false;
            for key in params.partition_by.iter_mut().chain(orders).filter(|key| is_interval(key)) {
                *key = length(std::mem::take(key));
                is_changed = true;
            }
            Transformed::new_transformed(Expr::WindowFunction(call), is_changed)
        }
        Expr::AggregateFunction(call) if call.params.args.iter().any(is_interval) => {
            refuse_aggregate(&call)?;
            Transformed::no(Expr::AggregateFunction(call))
        }
        other => Transformed::no(other),
    })
}

/// Rewrites `nullif`, `greatest` and `least` of two intervals to a CASE over their lengths.
fn choose(mut call: ScalarFunction, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let op = match call.func.name() {
        "nullif" => Operator::NotEq,
        "greatest" => Operator::GtEq,
        "least" => Operator::LtEq,
        _ => return Ok(Transformed::no(Expr::ScalarFunction(call))),
    };
    let (Some(second), Some(first), true) = (call.args.pop(), call.args.pop(), call.args.is_empty()) else {
        return Err(Error::unsupported(format!("{} of more than two intervals", call.func.name()))
            .hint("nest two calls")
            .into());
    };
    let compared = binary_expr(length(first.clone(), schema), op, length(second.clone(), schema));
    // Beside a NULL, nullif returns the first argument; greatest and least return the one that is not NULL.
    let keeps_first = compared.or(second.clone().is_null());
    let other =
        if op == Operator::NotEq { Expr::Literal(ScalarValue::try_from(&INTERVAL)?, None) } else { second };
    Ok(Transformed::yes(when(keeps_first, first).otherwise(other)?))
}

fn refuse_aggregate(call: &AggregateFunction) -> Result<()> {
    if !call.params.distinct && !matches!(call.func.name(), "min" | "max") {
        return Ok(());
    }
    Err(refused(&format!(
        "{}{} of intervals",
        call.func.name(),
        if call.params.distinct { "(DISTINCT)" } else { "" }
    ))
    .into())
}

fn refused(what: &str) -> Error {
    Error::unsupported(what).hint("use the length in seconds: extract(epoch FROM ...)")
}

/// A subquery that returns the length of its one column.
fn lengths(subquery: Subquery) -> Result<Subquery> {
    let plan = &subquery.subquery;
    let columns: Vec<Expr> = plan.schema().columns().into_iter().map(Expr::Column).collect();
    let columns = columns.into_iter().map(|column| length(column, plan.schema()));
    let plan = LogicalPlanBuilder::from(LogicalPlan::clone(plan)).project(columns)?.build()?;
    Ok(subquery.with_plan(Arc::new(plan)))
}

/// Sorts intervals by length.
///
/// # Errors
/// 0A000 for a node that would put equal intervals into different groups.
pub(crate) fn order(node: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    let has_intervals =
        |plan: &LogicalPlan| plan.schema().fields().iter().any(|field| *field.data_type() == INTERVAL);
    match &node {
        LogicalPlan::Aggregate(aggregate) => {
            let schema = aggregate.input.schema();
            if aggregate.group_expr.iter().any(|key| type_of(key, schema) == Some(INTERVAL)) {
                return Err(refused("GROUP BY of intervals").into());
            }
        }
        LogicalPlan::Distinct(_) if has_intervals(&node) => {
            return Err(refused("DISTINCT and set operations of intervals").into());
        }
        LogicalPlan::Join(join)
            if is_set_operation(join)
                && join.on.iter().any(|(key, _)| type_of(key, join.left.schema()) == Some(INTERVAL)) =>
        {
            return Err(refused("DISTINCT and set operations of intervals").into());
        }
        _ => {}
    }
    let LogicalPlan::Sort(mut sort) = node else { return Ok(Transformed::no(node)) };
    let schema = Arc::clone(sort.input.schema());
    let mut is_changed = false;
    for key in &mut sort.expr {
        if type_of(&key.expr, &schema) == Some(INTERVAL) {
            key.expr = length(std::mem::take(&mut key.expr), &schema);
            is_changed = true;
        }
    }
    Ok(Transformed::new_transformed(LogicalPlan::Sort(sort), is_changed))
}

fn length(expr: Expr, schema: &DFSchema) -> Expr {
    // A difference of timestamps can exceed the nanoseconds of an interval, so it is not cast to one.
    let expr = match expr {
        Expr::Cast(cast) if matches!(type_of(&cast.expr, schema), Some(DataType::Duration(_))) => *cast.expr,
        other => other,
    };
    let signature = Signature::any(1, Volatility::Immutable);
    let func = Arc::new(ScalarUDF::new_from_impl(Length { signature }));
    Expr::ScalarFunction(ScalarFunction { func, args: vec![expr] })
}

/// Returns the lengths of intervals or timestamp differences, in nanoseconds.
pub(super) fn lengths_of(values: &ArrayRef) -> crate::error::Result<Decimal128Array> {
    let lengths: Decimal128Array = match values.data_type() {
        DataType::Duration(_) => {
            let micros = difference_us(values)?;
            micros.iter().map(|value| value.map(|value| i128::from(value) * 1_000)).collect()
        }
        _ => {
            let intervals = cast(values, &INTERVAL)?;
            let intervals = intervals.as_primitive::<IntervalMonthDayNanoType>().iter();
            intervals.map(|value| value.map(nanoseconds)).collect()
        }
    };
    Ok(lengths.with_precision_and_scale(38, 0)?)
}

/// An interval's length in nanoseconds.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Length {
    signature: Signature,
}

impl ScalarUDFImpl for Length {
    fn name(&self) -> &str {
        "interval_length"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Decimal128(38, 0))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let value =
            args.args.first().ok_or_else(|| Error::internal("interval_length() takes an argument"))?;
        let is_constant = matches!(value, ColumnarValue::Scalar(_));
        let array = value.to_array(if is_constant { 1 } else { args.number_rows })?;
        let lengths = lengths_of(&array)?;
        if is_constant {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&lengths, 0)?));
        }
        Ok(ColumnarValue::Array(Arc::new(lengths)))
    }
}

fn nanoseconds(value: IntervalMonthDayNano) -> i128 {
    let days = i128::from(value.months) * 30 + i128::from(value.days);
    days * DAY_NS + i128::from(value.nanoseconds)
}
