//! `x op ANY (array)` and `x op ALL (array)`: the planner makes some of them searches that ignore NULL.

use datafusion::sql::sqlparser::ast::{Array, BinaryOperator, Expr};

use super::super::functions::{ALL_OF, ANY_OF};
use super::{boolean, function_call, rows, taken, text};
use crate::error::Result;

/// Rewrites a comparison with an array. One with a subquery stays; `= ANY` and `<> ALL` of a row become IN.
pub(super) fn rewrite(expr: &mut Expr) -> Result<()> {
    let (left, op, right, is_any) = match expr {
        Expr::AnyOp { left, compare_op, right, .. } => (left, compare_op, right, true),
        Expr::AllOp { left, compare_op, right } => (left, compare_op, right, false),
        _ => return Ok(()),
    };
    let mut array = taken(right);
    while let Expr::Nested(inner) = array {
        array = *inner;
    }
    if let Expr::Subquery(subquery) = array {
        let is_membership =
            matches!((is_any, &*op), (true, BinaryOperator::Eq) | (false, BinaryOperator::NotEq));
        if is_membership && matches!(**left, Expr::Tuple(_)) {
            *expr = Expr::InSubquery { expr: Box::new(taken(left)), subquery, negated: !is_any };
            return rows::rewrite(expr);
        }
        **right = Expr::Subquery(subquery);
        return Ok(());
    }
    let value = taken(left);
    *expr = match (array, is_any, &op) {
        // Over an empty array, ANY is false and ALL is true.
        (Expr::Array(Array { elem, .. }), _, _) if elem.is_empty() => boolean(!is_any),
        // A list can use a key lookup.
        (Expr::Array(Array { elem, .. }), true, BinaryOperator::Eq) => {
            Expr::InList { expr: Box::new(value), list: elem, negated: false }
        }
        (Expr::Array(Array { elem, .. }), false, BinaryOperator::NotEq) => {
            Expr::InList { expr: Box::new(value), list: elem, negated: true }
        }
        (array, _, op) => {
            function_call(if is_any { ANY_OF } else { ALL_OF }, vec![text(op.to_string()), value, array])
        }
    };
    Ok(())
}
