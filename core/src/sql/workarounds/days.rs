//! Date arithmetic, computed in days.
//!
//! DataFusion turns days into an interval, which ends at 292 years. To estimate a filter's selectivity it
//! takes the difference of dates for a duration: `WHERE d - DATE '2024-01-01' > 5` is an internal error over
//! large tables. DATE + TIME has nanoseconds, which no column has; windows cannot sort by them.

use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::expr::BinaryExpr;
use datafusion::logical_expr::{Expr, Operator, binary_expr};

use super::casts::cast_to;
use super::walk::type_of;

/// Computes with days and microseconds. Runs before type coercion.
pub(super) fn compute(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
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
