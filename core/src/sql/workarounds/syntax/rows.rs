//! Rewrites row comparisons, `(a, b) = (c, d)` and `(a, b) IN (SELECT ...)`, as comparisons of values.
//!
//! A row comparison is NULL only if the deciding value is NULL (SQL standard): `(1, NULL) = (2, 2)` is false.

use datafusion::sql::sqlparser::ast::helpers::attached_token::AttachedToken;
use datafusion::sql::sqlparser::ast::{
    self, BinaryOperator, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Query,
};

use super::{boolean, joined, not, null};
use crate::error::{Error, Result};
use crate::sql::syntax_tree::written_query;

/// The alias of the searched rows, which no query uses.
const ROWS: &str = "__rows";

/// `ROW(a, b)` is `(a, b)`.
pub(super) fn constructor(function: &mut Function) -> Option<Expr> {
    let [ast::ObjectNamePart::Identifier(name)] = function.name.0.as_slice() else { return None };
    if name.quote_style.is_some() || !name.value.eq_ignore_ascii_case("row") {
        return None;
    }
    let FunctionArguments::List(list) = &mut function.args else { return None };
    let values = list.args.drain(..).map(|arg| match arg {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(value)) => Some(value),
        _ => None,
    });
    values.collect::<Option<Vec<_>>>().map(Expr::Tuple)
}

/// Rewrites one expression.
pub(super) fn rewrite(expr: &mut Expr) -> Result<()> {
    match expr {
        Expr::BinaryOp { left, op, right } => {
            if let (Some(left), Some(right)) = (row(left), row(right))
                && let Some(compared) = compared(&left, op, &right)?
            {
                *expr = compared;
            }
        }
        Expr::IsDistinctFrom(left, right) => {
            if let (Some(left), Some(right)) = (row(left), row(right)) {
                *expr = distinct(&left, &right)?;
            }
        }
        Expr::IsNotDistinctFrom(left, right) => {
            if let (Some(left), Some(right)) = (row(left), row(right)) {
                *expr = not(distinct(&left, &right)?);
            }
        }
        Expr::IsNull(value) => {
            if let Some(values) = row(value) {
                *expr = all(values.into_iter().map(|value| Expr::IsNull(Box::new(value))));
            }
        }
        Expr::IsNotNull(value) => {
            if let Some(values) = row(value) {
                *expr = all(values.into_iter().map(|value| Expr::IsNotNull(Box::new(value))));
            }
        }
        Expr::Between { expr: value, negated, low, high } => {
            if let (Some(value), Some(low), Some(high)) = (row(value), row(low), row(high)) {
                let above = compared(&value, &BinaryOperator::GtEq, &low)?;
                let below = compared(&value, &BinaryOperator::LtEq, &high)?;
                let within = all([above, below].into_iter().flatten());
                *expr = if *negated { not(within) } else { within };
            }
        }
        Expr::InList { expr: value, list, negated } => {
            if let Some(value) = row(value) {
                let equal = list
                    .iter()
                    .map(|other| match row(other) {
                        Some(other) => equal(&value, &other),
                        None => Err(different_lengths()),
                    })
                    .collect::<Result<Vec<_>>>()?;
                let within = joined(equal, &BinaryOperator::Or).unwrap_or_else(|| boolean(false));
                *expr = if *negated { not(within) } else { within };
            }
        }
        Expr::InSubquery { expr: value, subquery, negated } => {
            if let Some(value) = row(value) {
                let within = looked_up(&value, subquery)?;
                *expr = if *negated { not(within) } else { within };
            }
        }
        _ => {}
    }
    Ok(())
}

fn row(expr: &Expr) -> Option<Vec<Expr>> {
    match expr {
        Expr::Tuple(values) if values.len() > 1 => Some(values.clone()),
        Expr::Nested(inner) => row(inner),
        _ => None,
    }
}

fn different_lengths() -> Error {
    Error::syntax("the compared rows have different lengths")
}

fn all(conditions: impl IntoIterator<Item = Expr>) -> Expr {
    joined(conditions, &BinaryOperator::And).unwrap_or_else(|| boolean(true))
}

fn binary(left: &Expr, op: &BinaryOperator, right: &Expr) -> Expr {
    Expr::BinaryOp { left: Box::new(left.clone()), op: op.clone(), right: Box::new(right.clone()) }
}

fn equal(left: &[Expr], right: &[Expr]) -> Result<Expr> {
    if left.len() != right.len() {
        return Err(different_lengths());
    }
    Ok(all(left.iter().zip(right).map(|(left, right)| binary(left, &BinaryOperator::Eq, right))))
}

fn distinct(left: &[Expr], right: &[Expr]) -> Result<Expr> {
    if left.len() != right.len() {
        return Err(different_lengths());
    }
    let pairs = left.iter().zip(right);
    let distinct =
        pairs.map(|(left, right)| Expr::IsDistinctFrom(Box::new(left.clone()), Box::new(right.clone())));
    Ok(joined(distinct, &BinaryOperator::Or).unwrap_or_else(|| boolean(false)))
}

/// Compares two rows; `None` for operators that do not compare.
fn compared(left: &[Expr], op: &BinaryOperator, right: &[Expr]) -> Result<Option<Expr>> {
    let strict = match op {
        BinaryOperator::Eq => return equal(left, right).map(Some),
        BinaryOperator::NotEq => return equal(left, right).map(|equal| Some(not(equal))),
        BinaryOperator::Lt | BinaryOperator::LtEq => BinaryOperator::Lt,
        BinaryOperator::Gt | BinaryOperator::GtEq => BinaryOperator::Gt,
        _ => return Ok(None),
    };
    if left.len() != right.len() {
        return Err(different_lengths());
    }
    // The first values that differ decide; the last ones use the operator itself.
    let mut pairs = left.iter().zip(right).rev();
    let Some((last_left, last_right)) = pairs.next() else { return Ok(None) };
    let mut whole = binary(last_left, op, last_right);
    for (left, right) in pairs {
        let equal = binary(left, &BinaryOperator::Eq, right);
        let rest = all([equal, whole]);
        whole = joined([binary(left, &strict, right), rest], &BinaryOperator::Or)
            .unwrap_or_else(|| boolean(false));
    }
    Ok(Some(whole))
}

/// Rewrites `(a, b) IN (SELECT ...)` in WHERE, where NULL counts as false, as EXISTS, which becomes a join.
pub(super) fn as_exists(condition: &mut Expr) -> Result<()> {
    match condition {
        Expr::Nested(inner) => as_exists(inner),
        Expr::BinaryOp { left, op: BinaryOperator::And | BinaryOperator::Or, right } => {
            as_exists(left)?;
            as_exists(right)
        }
        Expr::InSubquery { expr, subquery, negated: false } => {
            let Some(value) = row(expr) else { return Ok(()) };
            let mut found = lookup("SELECT 1", &value, subquery)?;
            if let ast::SetExpr::Select(select) = &mut *found.body {
                select.selection = Some(equal_to_rows(&value));
            }
            *condition = Expr::Exists { subquery: Box::new(found), negated: false };
            Ok(())
        }
        _ => Ok(()),
    }
}

/// True if a row is equal, else NULL if the comparison with a row is NULL, else false.
///
/// Two lookups search for the rows of the NULL case, so that each needs few rows: one for rows that contain
/// NULL, and one over all rows if the value contains NULL.
fn looked_up(value: &[Expr], subquery: &Query) -> Result<Expr> {
    let exists = |condition: Expr| -> Result<Expr> {
        let mut subquery = subquery.clone();
        let mut found = lookup("SELECT 1", value, &mut subquery)?;
        if let ast::SetExpr::Select(select) = &mut *found.body {
            select.selection = Some(condition);
        }
        Ok(Expr::Exists { subquery: Box::new(found), negated: false })
    };
    let is_null = |expr: Expr| Expr::IsNull(Box::new(expr));
    let any_null = |exprs: &mut dyn Iterator<Item = Expr>| {
        joined(exprs.map(is_null), &BinaryOperator::Or).unwrap_or_else(|| boolean(false))
    };
    let unknown = is_null(equal_to_rows(value));
    let of_rows = any_null(&mut columns(value));
    let of_value = any_null(&mut value.iter().cloned());
    Ok(Expr::Case {
        case_token: AttachedToken::empty(),
        end_token: AttachedToken::empty(),
        operand: None,
        conditions: vec![
            ast::CaseWhen { condition: exists(equal_to_rows(value))?, result: boolean(true) },
            ast::CaseWhen { condition: exists(all([of_rows, unknown.clone()]))?, result: null() },
            ast::CaseWhen { condition: exists(all([of_value, unknown]))?, result: null() },
        ],
        else_result: Some(Box::new(boolean(false))),
    })
}

fn column_name(position: usize) -> String {
    format!("__{}", position + 1)
}

/// The columns of the searched rows.
fn columns(value: &[Expr]) -> impl Iterator<Item = Expr> {
    (0..value.len()).map(|position| {
        Expr::CompoundIdentifier(vec![ast::Ident::new(ROWS), ast::Ident::new(column_name(position))])
    })
}

fn equal_to_rows(value: &[Expr]) -> Expr {
    all(value.iter().zip(columns(value)).map(|(value, column)| binary(value, &BinaryOperator::Eq, &column)))
}

/// Returns `select FROM (subquery) AS __rows (__1, __2, ...)`.
fn lookup(select: &str, value: &[Expr], subquery: &mut Query) -> Result<Query> {
    let names: Vec<String> = (0..value.len()).map(column_name).collect();
    let mut query = written_query(&format!("{select} FROM (SELECT 1) AS {ROWS} ({})", names.join(", ")))?;
    let ast::SetExpr::Select(outer) = &mut *query.body else {
        return Err(Error::internal("the rewritten query is not a SELECT"));
    };
    if let Some(ast::TableFactor::Derived { subquery: place, .. }) =
        outer.from.first_mut().map(|from| &mut from.relation)
    {
        std::mem::swap(&mut **place, subquery);
    }
    Ok(query)
}

#[cfg(test)]
mod tests {
    use super::super::rewrite as rewrite_all;
    use super::*;

    fn rewritten(condition: &str) -> String {
        let mut query = written_query(&format!("SELECT {condition}")).unwrap();
        rewrite_all(&mut query).unwrap();
        query.to_string().trim_start_matches("SELECT ").to_owned()
    }

    #[test]
    fn rows_are_compared_by_their_values() {
        for (condition, expected) in [
            ("(a, b) = (1, 2)", "(a = 1 AND b = 2)"),
            ("(a, b) <> (1, 2)", "NOT ((a = 1 AND b = 2))"),
            ("(a, b) < (1, 2)", "(a < 1 OR (a = 1 AND b < 2))"),
            ("ROW(a, b) >= (1, 2)", "(a > 1 OR (a = 1 AND b >= 2))"),
            ("(a, b) IN ((1, 2), (3, 4))", "((a = 1 AND b = 2) OR (a = 3 AND b = 4))"),
            ("(a, b) IS NOT NULL", "(a IS NOT NULL AND b IS NOT NULL)"),
            ("(a, b) IS DISTINCT FROM (1, 2)", "(a IS DISTINCT FROM 1 OR b IS DISTINCT FROM 2)"),
        ] {
            assert_eq!(rewritten(condition), expected, "{condition}");
        }
        let mut query = written_query("SELECT (a, b) = (1, 2, 3)").unwrap();
        assert!(rewrite_all(&mut query).is_err());
    }
}
