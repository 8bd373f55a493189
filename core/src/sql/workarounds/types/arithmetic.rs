//! Replaces operators on numbers by checked operations, see [`Operation`].

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::expr::BinaryExpr;
use datafusion::logical_expr::{Expr, Operator};

use super::super::operations::{Operation, checked_call};
use super::super::walk::type_of;
use crate::casts::is_decimal;

/// Replaces quotients of decimals. Runs before type coercion, because the result type changes.
pub(in crate::sql::workarounds) fn quotients(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let Expr::BinaryExpr(BinaryExpr { left, op: Operator::Divide, right }) = expr else {
        return Ok(Transformed::no(expr));
    };
    let types = type_of(&left, schema).zip(type_of(&right, schema));
    let is_exact = types.is_some_and(|(left, right)| {
        let is_number = |ty: &DataType| ty.is_integer() || is_decimal(ty);
        is_number(&left) && is_number(&right) && (is_decimal(&left) || is_decimal(&right))
    });
    if !is_exact {
        return Ok(Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op: Operator::Divide, right })));
    }
    Ok(Transformed::yes(checked_call(Operation::Quotient, vec![*left, *right])))
}

/// Replaces operations by checked ones. Runs after type coercion; the types stay the same.
pub(in crate::sql::workarounds) fn checked(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let ty = type_of(&left, schema);
            let both = ty.as_ref().filter(|ty| Some(*ty) == type_of(&right, schema).as_ref());
            let operation = match (op, both) {
                (Operator::Plus, Some(ty)) if ty.is_integer() => Some(Operation::Sum),
                (Operator::Minus, Some(ty)) if ty.is_integer() => Some(Operation::Difference),
                (Operator::Multiply, Some(ty)) if ty.is_integer() => Some(Operation::Product),
                (Operator::Divide, Some(ty)) if ty.is_floating() => Some(Operation::FloatQuotient),
                (Operator::Modulo, Some(ty)) if ty.is_floating() => Some(Operation::FloatRemainder),
                _ => match digits_needed(op, ty.as_ref(), type_of(&right, schema).as_ref()) {
                    Some((operation, digits)) if digits > 38 => Some(operation),
                    _ => None,
                },
            };
            Ok(match operation {
                Some(operation) => Transformed::yes(checked_call(operation, vec![*left, *right])),
                None => Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right })),
            })
        }
        Expr::Negative(inner) if type_of(&inner, schema).is_some_and(|ty| ty.is_integer()) => {
            Ok(Transformed::yes(checked_call(Operation::Negation, vec![*inner])))
        }
        other => Ok(Transformed::no(other)),
    }
}

/// The checked operation for an operator on decimals, and the precision that its result can need.
fn digits_needed(
    op: Operator,
    left: Option<&DataType>,
    right: Option<&DataType>,
) -> Option<(Operation, u32)> {
    let (Some(DataType::Decimal128(digits, scale)), Some(DataType::Decimal128(more, more_scale))) =
        (left, right)
    else {
        return None;
    };
    let whole = |digits: u8, scale: i8| i32::from(digits) - i32::from(scale);
    let sum = whole(*digits, *scale).max(whole(*more, *more_scale)) + i32::from(*scale.max(more_scale)) + 1;
    match op {
        Operator::Plus => Some((Operation::Sum, sum.unsigned_abs())),
        Operator::Minus => Some((Operation::Difference, sum.unsigned_abs())),
        Operator::Multiply => Some((Operation::Product, u32::from(*digits) + u32::from(*more) + 1)),
        _ => None,
    }
}
