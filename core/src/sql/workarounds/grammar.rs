//! Operators that sqlparser reads differently from PostgreSQL.
//!
//! | SQL | sqlparser 0.62 | here |
//! |---|---|---|
//! | `a IS DISTINCT FROM b AND c` | the right operand is `b AND c` | it ends before AND |
//! | `-2 ^ 2` | minus the square | the square of minus two |
//! | `a = b ~ c`, `a ~ b \|\| c` | `~` binds like `=` | like every other operator |
//! | `TRIM(LEADING FROM a)` | an error | spaces are trimmed |
//! | `a::TEXT COLLATE "C"` | an error | a collation |
//! | `interval + 1` | an interval | the column |
//! | `a ISNULL` | an alias, or an error | IS NULL |
//!
//! Precedence follows <https://www.postgresql.org/docs/15/sql-syntax-lexical.html#SQL-PRECEDENCE>.

use datafusion::sql::sqlparser::ast::{Expr, TrimWhereField, UnaryOperator};
use datafusion::sql::sqlparser::dialect::{Dialect, PostgreSqlDialect, Precedence};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::Token;

/// The precedence of COLLATE in sqlparser's PostgreSQL dialect. A sign binds tighter than COLLATE, but looser
/// than a subscript, a cast and a period.
const COLLATE: u8 = 120;

type Parsed = Result<Expr, ParserError>;

/// Parses an expression that begins here, if it is one of the corrected ones.
pub(in crate::sql) fn prefix(parser: &mut Parser<'_>) -> Option<Parsed> {
    match &parser.peek_token_ref().token {
        Token::Minus => Some(sign(parser, UnaryOperator::Minus)),
        Token::Plus => Some(sign(parser, UnaryOperator::Plus)),
        Token::Word(word) if word.keyword == Keyword::TRIM => {
            let side = trim_side(parser)?;
            Some(trim(parser, side))
        }
        Token::Word(word) if word.keyword == Keyword::INTERVAL && is_column(parser) => {
            Some(parser.parse_identifier().map(Expr::Identifier))
        }
        _ => None,
    }
}

/// Whether INTERVAL is a column name, because no value follows.
fn is_column(parser: &Parser<'_>) -> bool {
    matches!(
        parser.peek_nth_token_ref(1).token,
        Token::Plus
            | Token::Minus
            | Token::Mul
            | Token::Div
            | Token::Mod
            | Token::Eq
            | Token::Neq
            | Token::Lt
            | Token::LtEq
            | Token::Gt
            | Token::GtEq
            | Token::Comma
            | Token::Caret
            | Token::LBracket
            | Token::RBracket
            | Token::RParen
            | Token::DoubleColon
            | Token::StringConcat
            | Token::EOF
    ) || matches!(&parser.peek_nth_token_ref(1).token, Token::Word(word)
        if word.quote_style.is_none() && word.keyword != Keyword::NoKeyword)
}

fn sign(parser: &mut Parser<'_>, op: UnaryOperator) -> Parsed {
    parser.next_token();
    Ok(Expr::UnaryOp { op, expr: Box::new(parser.parse_subexpr(COLLATE)?) })
}

/// The side of `TRIM(side FROM`; `None` for any other TRIM.
fn trim_side(parser: &Parser<'_>) -> Option<TrimWhereField> {
    let keyword = |n: usize| match &parser.peek_nth_token_ref(n).token {
        Token::Word(word) => word.keyword,
        _ => Keyword::NoKeyword,
    };
    if parser.peek_nth_token_ref(1).token != Token::LParen || keyword(3) != Keyword::FROM {
        return None;
    }
    match keyword(2) {
        Keyword::LEADING => Some(TrimWhereField::Leading),
        Keyword::TRAILING => Some(TrimWhereField::Trailing),
        Keyword::BOTH => Some(TrimWhereField::Both),
        _ => None,
    }
}

fn trim(parser: &mut Parser<'_>, side: TrimWhereField) -> Parsed {
    for _ in 0..4 {
        parser.next_token();
    }
    let expr = parser.parse_expr()?;
    parser.expect_token(&Token::RParen)?;
    Ok(Expr::Trim { expr: Box::new(expr), trim_where: Some(side), trim_what: None, trim_characters: None })
}

/// Parses an operator of that precedence after `left`, if it is one of the corrected ones.
pub(in crate::sql) fn infix(parser: &mut Parser<'_>, left: &Expr, precedence: u8) -> Option<Parsed> {
    if is_isnull(parser) {
        parser.next_token();
        return Some(Ok(Expr::IsNull(Box::new(left.clone()))));
    }
    if parser.parse_keyword(Keyword::COLLATE) {
        let expr = Box::new(left.clone());
        return Some(parser.parse_object_name(false).map(|collation| Expr::Collate { expr, collation }));
    }
    let negated = if parser.parse_keywords(&[Keyword::IS, Keyword::DISTINCT, Keyword::FROM]) {
        false
    } else if parser.parse_keywords(&[Keyword::IS, Keyword::NOT, Keyword::DISTINCT, Keyword::FROM]) {
        true
    } else {
        return None;
    };
    let left = Box::new(left.clone());
    Some(parser.parse_subexpr(precedence).map(Box::new).map(|right| match negated {
        false => Expr::IsDistinctFrom(left, right),
        true => Expr::IsNotDistinctFrom(left, right),
    }))
}

/// Whether ISNULL comes next; unquoted, it is never a name.
fn is_isnull(parser: &Parser<'_>) -> bool {
    matches!(&parser.peek_token_ref().token,
        Token::Word(word) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case("isnull"))
}

/// Returns the precedence of the next operator, if it is one of the corrected ones.
pub(in crate::sql) fn precedence(parser: &Parser<'_>) -> Option<u8> {
    if is_isnull(parser) {
        return Some(PostgreSqlDialect {}.prec_value(Precedence::Is));
    }
    if matches!(&parser.peek_token_ref().token, Token::Word(word) if word.keyword == Keyword::COLLATE) {
        return Some(COLLATE);
    }
    let is_match = matches!(
        parser.peek_token_ref().token,
        Token::Tilde
            | Token::TildeAsterisk
            | Token::ExclamationMarkTilde
            | Token::ExclamationMarkTildeAsterisk
            | Token::DoubleTilde
            | Token::DoubleTildeAsterisk
            | Token::ExclamationMarkDoubleTilde
            | Token::ExclamationMarkDoubleTildeAsterisk
    );
    is_match.then(|| PostgreSqlDialect {}.prec_value(Precedence::PgOther))
}
