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
//! | `a = ANY ((SELECT 1) UNION (SELECT 2))` | an error | a subquery |
//! | `((SELECT 1) UNION (SELECT 2))` as a value | an error | a subquery |
//!
//! Precedence follows <https://www.postgresql.org/docs/15/sql-syntax-lexical.html#SQL-PRECEDENCE>.

use std::collections::HashSet;

use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr, TrimWhereField, UnaryOperator};
use datafusion::sql::sqlparser::dialect::{Dialect, PostgreSqlDialect, Precedence};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan};

/// The precedence of COLLATE in sqlparser's PostgreSQL dialect. A sign binds tighter than COLLATE, but looser
/// than a subscript, a cast and a period.
const COLLATE: u8 = 120;

type Parsed = Result<Expr, ParserError>;

/// The queries in parentheses that begin with another one: `((SELECT 1) UNION (SELECT 2))`. sqlparser reads
/// them only where nothing but a query can stand.
#[derive(Debug)]
pub(in crate::sql) struct QueriesInParentheses {
    /// Where their first parentheses are.
    starts: HashSet<Location>,
}

impl QueriesInParentheses {
    /// Finds those of a statement.
    pub(in crate::sql) fn of(tokens: &[TokenWithSpan]) -> Self {
        let mut starts = HashSet::new();
        // The open parentheses, and whether each follows directly on the one before.
        let mut open: Vec<(Location, bool)> = Vec::new();
        let mut tokens =
            tokens.iter().filter(|token| !matches!(token.token, Token::Whitespace(_))).peekable();
        let mut follows = false;
        while let Some(token) = tokens.next() {
            match token.token {
                Token::LParen => open.push((token.span.start, follows)),
                Token::RParen => {
                    let is_first_part = open.pop().is_some_and(|(_, follows)| follows)
                        && tokens.peek().is_some_and(|next| continues_query(&next.token));
                    if let Some((start, _)) = open.last()
                        && is_first_part
                    {
                        starts.insert(*start);
                    }
                }
                _ => {}
            }
            follows = token.token == Token::LParen;
        }
        Self { starts }
    }

    /// Whether one of them begins with this token.
    fn begins(&self, token: &TokenWithSpan) -> bool {
        token.token == Token::LParen && self.starts.contains(&token.span.start)
    }
}

/// Whether a token after a query in parentheses belongs to a larger query.
fn continues_query(token: &Token) -> bool {
    let Token::Word(word) = token else { return false };
    matches!(
        word.keyword,
        Keyword::UNION
            | Keyword::INTERSECT
            | Keyword::EXCEPT
            | Keyword::ORDER
            | Keyword::LIMIT
            | Keyword::OFFSET
            | Keyword::FETCH
    )
}

fn query_in_parentheses(parser: &mut Parser<'_>) -> Parsed {
    parser.expect_token(&Token::LParen)?;
    let query = parser.parse_query()?;
    parser.expect_token(&Token::RParen)?;
    Ok(Expr::Subquery(query))
}

/// Parses an expression that begins here, if it is one of the corrected ones.
pub(in crate::sql) fn prefix(parser: &mut Parser<'_>, queries: &QueriesInParentheses) -> Option<Parsed> {
    if queries.begins(parser.peek_token_ref()) {
        return Some(query_in_parentheses(parser));
    }
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
pub(in crate::sql) fn infix(
    parser: &mut Parser<'_>,
    left: &Expr,
    precedence: u8,
    queries: &QueriesInParentheses,
) -> Option<Parsed> {
    if let Some((compare_op, quantifier)) = quantified(parser, queries) {
        parser.next_token();
        parser.next_token();
        let left = Box::new(left.clone());
        return Some(query_in_parentheses(parser).map(Box::new).map(|right| match quantifier {
            Keyword::ALL => Expr::AllOp { left, compare_op, right },
            _ => Expr::AnyOp { left, compare_op, right, is_some: quantifier == Keyword::SOME },
        }));
    }
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

/// The operator and the quantifier before one of `queries`.
fn quantified(parser: &Parser<'_>, queries: &QueriesInParentheses) -> Option<(BinaryOperator, Keyword)> {
    let [operator, quantifier, start] = parser.peek_tokens_ref();
    if !queries.begins(start) {
        return None;
    }
    let operator = match operator.token {
        Token::Eq => BinaryOperator::Eq,
        Token::Neq => BinaryOperator::NotEq,
        Token::Lt => BinaryOperator::Lt,
        Token::LtEq => BinaryOperator::LtEq,
        Token::Gt => BinaryOperator::Gt,
        Token::GtEq => BinaryOperator::GtEq,
        _ => return None,
    };
    match &quantifier.token {
        Token::Word(word) if matches!(word.keyword, Keyword::ANY | Keyword::SOME | Keyword::ALL) => {
            Some((operator, word.keyword))
        }
        _ => None,
    }
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
