//! LIKE with another escape character than the backslash, and with several patterns.

use datafusion::sql::sqlparser::ast::{self, Array, BinaryOperator, Expr};

use super::super::functions::LIKE_PATTERN;
use super::{call, joined, nested, not, taken, text};
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
        **pattern = call(LIKE_PATTERN, vec![taken(pattern), text(escape)]);
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
    if !*any {
        return Ok(());
    }
    let patterns = match taken(pattern) {
        Expr::Array(Array { elem, .. }) | Expr::Tuple(elem) => elem,
        Expr::Nested(inner) => match *inner {
            Expr::Array(Array { elem, .. }) => elem,
            other => vec![other],
        },
        _ => {
            return Err(Error::unsupported("LIKE ANY of anything but a list")
                .hint("write LIKE ANY (ARRAY['a%', 'b%'])"));
        }
    };
    let one = |pattern: Expr| {
        let (expr, pattern) = (value.clone(), Box::new(pattern));
        if is_like {
            Expr::Like { negated: false, any: false, expr, pattern, escape_char: None }
        } else {
            Expr::ILike { negated: false, any: false, expr, pattern, escape_char: None }
        }
    };
    // Of none there is one that fits nothing.
    let any =
        joined(patterns.into_iter().map(one), &BinaryOperator::Or).unwrap_or_else(|| super::boolean(false));
    *expr = if *negated { not(any) } else { nested(any) };
    Ok(())
}
