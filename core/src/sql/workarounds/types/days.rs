//! Date arithmetic, computed in days.
//!
//! DataFusion turns days into an interval, which ends at 292 years. To estimate a filter's selectivity it
//! takes the difference of dates for a duration: `WHERE d - DATE '2024-01-01' > 5` is an internal error over
//! large tables. DATE + TIME has nanoseconds, which no column has; windows cannot sort by them. DATE and an
//! interval with a time of day are a DATE without these hours.

use std::mem::take;

use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::BinaryExpr;
use datafusion::logical_expr::{Expr, Operator, binary_expr};

use super::super::walk::type_of;
use super::casts::{cast_to, converted};
use super::kinds::{INTERVAL, is_span};

/// Computes with days and microseconds. Runs before type coercion.
pub(in crate::sql::workarounds) fn compute(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::Plus | Operator::Minus), right }) = expr
    else {
        return Ok(Transformed::no(expr));
    };
    let timestamp = || DataType::Timestamp(TimeUnit::Microsecond, None);
    let types = type_of(&left, schema).zip(type_of(&right, schema));
    let result = match (types, op) {
        (Some((DataType::Date32, DataType::Date32)), Operator::Minus) => Some(DataType::Int64),
        (Some((DataType::Date32, number)), _) if number.is_integer() => Some(DataType::Date32),
        (Some((number, DataType::Date32)), Operator::Plus) if number.is_integer() => Some(DataType::Date32),
        (
            Some((DataType::Date32, DataType::Time64(_)) | (DataType::Time64(_), DataType::Date32)),
            Operator::Plus,
        ) => Some(timestamp()),
        _ => None,
    };
    let Some(result) = result else {
        return Ok(Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right })));
    };
    let has_time = result == timestamp();
    let number = |part: Expr| match type_of(&part, schema) {
        Some(DataType::Date32) if has_time => cast_to(cast_to(part, timestamp()), DataType::Int64),
        Some(DataType::Int64) => part,
        _ => cast_to(part, DataType::Int64),
    };
    let sum = binary_expr(number(*left), op, number(*right));
    Ok(Transformed::yes(if result == DataType::Int64 { sum } else { cast_to(sum, result) }))
}

/// Casts a date to a timestamp unless the interval added to it is known to have whole days.
pub(super) fn date_to_timestamp(date: &mut Expr, interval: &Expr, schema: &DFSchema) -> bool {
    let is_interval = |ty: DataType| is_span(&ty) && !is_whole_days(interval);
    let is_moved =
        type_of(date, schema) == Some(DataType::Date32) && type_of(interval, schema).is_some_and(is_interval);
    if is_moved {
        *date = cast_to(take(date), DataType::Timestamp(TimeUnit::Microsecond, None));
    }
    is_moved
}

/// Whether an interval is a literal, or a sum of literals, without a time of day.
fn is_whole_days(interval: &Expr) -> bool {
    match interval {
        Expr::Literal(ScalarValue::IntervalMonthDayNano(value), _) => {
            value.is_none_or(|value| value.nanoseconds == 0)
        }
        Expr::Negative(inner) => is_whole_days(inner),
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Plus | Operator::Minus, right }) => {
            is_whole_days(left) && is_whole_days(right)
        }
        Expr::Cast(cast) if matches!(*cast.expr, Expr::Literal(..)) => {
            converted(Expr::clone(&cast.expr), &INTERVAL).is_ok_and(|interval| is_whole_days(&interval))
        }
        _ => false,
    }
}
