//! Kinds of types, operators and functions, as several rewrites tell them apart.

use datafusion::arrow::datatypes::{DataType, IntervalUnit};
use datafusion::logical_expr::Operator;

/// The Arrow type of INTERVAL.
pub(in crate::sql::workarounds) const INTERVAL: DataType = DataType::Interval(IntervalUnit::MonthDayNano);

/// Returns whether a type is an interval or a timestamp difference.
pub(in crate::sql::workarounds) fn is_span(ty: &DataType) -> bool {
    matches!(ty, DataType::Interval(_) | DataType::Duration(_))
}

/// Functions whose arguments are cast to one type.
pub(super) const UNIFORM: [&str; 6] = ["coalesce", "nullif", "nvl", "greatest", "least", "make_array"];

/// Returns whether an operator compares two values.
pub(in crate::sql::workarounds) fn is_comparison(op: Operator) -> bool {
    matches!(
        op,
        Operator::Eq
            | Operator::NotEq
            | Operator::Lt
            | Operator::LtEq
            | Operator::Gt
            | Operator::GtEq
            | Operator::IsDistinctFrom
            | Operator::IsNotDistinctFrom
    )
}

/// Returns whether an operator computes with two numbers.
pub(super) fn is_arithmetic(op: Operator) -> bool {
    matches!(op, Operator::Plus | Operator::Minus | Operator::Multiply | Operator::Divide | Operator::Modulo)
}
