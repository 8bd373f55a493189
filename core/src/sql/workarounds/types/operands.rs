//! Types the string literal beside an operator while the operator is planned: the planner asks for the type
//! of the result right then, and fails for some pairs.

use std::mem::take;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::Expr;
use datafusion::sql::sqlparser::ast::BinaryOperator;

use super::super::walk::type_of;
use super::casts::converted;
use super::days::date_to_timestamp;
use super::kinds::{INTERVAL, is_span};
use crate::casts::{UUID, is_text};

/// Gives a string literal beside BOOLEAN, BYTES, UUID or an interval that type; the planner fails for some.
pub(super) fn type_literal(left: &mut Expr, right: &mut Expr, schema: &DFSchema) -> Result<()> {
    each_literal(left, right, schema, |_, other| match other {
        DataType::Boolean | DataType::Binary => Some(other.clone()),
        ty if is_span(ty) => Some(INTERVAL),
        ty if *ty == UUID => Some(UUID),
        _ => None,
    })
}

/// Types a string literal beside other operators: BYTES beside `||` and BYTES, an interval beside `+` and a
/// time, a number beside a number in arithmetic.
pub(super) fn type_operand(
    op: &BinaryOperator,
    left: &mut Expr,
    right: &mut Expr,
    schema: &DFSchema,
) -> Result<()> {
    if matches!(op, BinaryOperator::Plus | BinaryOperator::Minus) {
        // Now, because the enclosing expression asks for the sum's type.
        let _ = date_to_timestamp(left, right, schema) || date_to_timestamp(right, left, schema);
    }
    each_literal(left, right, schema, |side, other| match (op, side, other) {
        (BinaryOperator::StringConcat, _, DataType::Binary) => Some(DataType::Binary),
        (BinaryOperator::Plus | BinaryOperator::Minus, _, ty) if is_span(ty) => Some(INTERVAL),
        (BinaryOperator::Plus, _, DataType::Timestamp(..) | DataType::Time64(_)) => Some(INTERVAL),
        (BinaryOperator::Plus | BinaryOperator::Minus, _, ty) if ty.is_numeric() => Some(other.clone()),
        (BinaryOperator::Multiply | BinaryOperator::Divide | BinaryOperator::Modulo, _, ty)
            if ty.is_numeric() =>
        {
            Some(other.clone())
        }
        (BinaryOperator::Minus, Side::Right, DataType::Timestamp(..) | DataType::Date32) => {
            Some(other.clone())
        }
        _ => None,
    })
}

/// The side of an operand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

fn each_literal(
    left: &mut Expr,
    right: &mut Expr,
    schema: &DFSchema,
    to: impl Fn(Side, &DataType) -> Option<DataType>,
) -> Result<()> {
    let (Some(one), Some(other)) = (type_of(left, schema), type_of(right, schema)) else { return Ok(()) };
    for (side, part, own, other) in [(Side::Left, left, &one, &other), (Side::Right, right, &other, &one)] {
        if is_text(own)
            && matches!(part, Expr::Literal(..))
            && let Some(ty) = to(side, other)
        {
            *part = converted(take(part), &ty)?;
        }
    }
    Ok(())
}
