//! LIKE with an escape character other than the backslash, and LIKE with several patterns.

use datafusion::sql::sqlparser::ast::{
    self, Array, BinaryOperator, Expr, FunctionArg, FunctionArgExpr, FunctionArguments,
};

use super::super::functions::LIKE_PATTERN;
use super::{function_call, joined, nested, taken, text};
use crate::error::{Error, ErrorKind, Result, SqlState};

/// Rewrites `x [NOT] [I]LIKE pattern`.
pub(super) fn rewrite(expr: &mut Expr) -> Result<()> {
    let is_like = matches!(expr, Expr::Like { .. });
    let (Expr::Like { negated, any, expr: value, pattern, escape_char }
    | Expr::ILike { negated, any, expr: value, pattern, escape_char }) = expr
    else {
        return Ok(());
    };
    if let Some(escape) = escape_char.take() {
        let escape = match escape.value {
            ast::Value::SingleQuotedString(escape) | ast::Value::EscapedStringLiteral(escape) => escape,
            other => {
                return Err(
                    Error::unsupported(format!("ESCAPE {other}")).hint("write the character in quotes")
                );
            }
        };
        **pattern = function_call(LIKE_PATTERN, vec![taken(pattern), text(escape)]);
    } else if let Expr::Value(literal) = &**pattern
        && let ast::Value::SingleQuotedString(literal) = &literal.value
        && literal.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1
    {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            SqlState::INVALID_ESCAPE_SEQUENCE,
            "the pattern of LIKE ends with its escape character",
        ));
    }
    let Some((is_any, patterns)) = quantified(*any, pattern)? else { return Ok(()) };
    let one = |pattern: Expr| {
        let (negated, expr, pattern) = (*negated, value.clone(), Box::new(pattern));
        if is_like {
            Expr::Like { negated, any: false, expr, pattern, escape_char: None }
        } else {
            Expr::ILike { negated, any: false, expr, pattern, escape_char: None }
        }
    };
    let op = if is_any { BinaryOperator::Or } else { BinaryOperator::And };
    // LIKE ANY of no patterns is false, LIKE ALL is true.
    let whole = joined(patterns.into_iter().map(one), &op).unwrap_or_else(|| super::boolean(!is_any));
    *expr = nested(whole);
    Ok(())
}

/// The patterns after ANY, or after ALL, which sqlparser reads as a function; `None` for a single pattern.
/// The flag tells whether one match is enough.
///
/// # Errors
/// 0A000 for anything but a list.
fn quantified(is_any: bool, pattern: &mut Expr) -> Result<Option<(bool, Vec<Expr>)>> {
    let list = match pattern {
        _ if is_any => taken(pattern),
        Expr::Function(function) if function.name.to_string().eq_ignore_ascii_case("all") => {
            match &mut function.args {
                FunctionArguments::List(list) => match list.args.as_mut_slice() {
                    [FunctionArg::Unnamed(FunctionArgExpr::Expr(list))] => taken(list),
                    _ => return Err(no_list()),
                },
                _ => return Err(no_list()),
            }
        }
        _ => return Ok(None),
    };
    let list = if let Expr::Nested(inner) = list { *inner } else { list };
    match list {
        Expr::Array(Array { elem, .. }) | Expr::Tuple(elem) => Ok(Some((is_any, elem))),
        _ => Err(no_list()),
    }
}

fn no_list() -> Error {
    Error::unsupported("LIKE ANY or LIKE ALL with anything but a list")
        .hint("write LIKE ANY (ARRAY['a%', 'b%'])")
}
