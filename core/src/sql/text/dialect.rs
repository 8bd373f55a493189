//! PostgreSQL's dialect with a limit on the work of parsing. The parser tries several readings of text it
//! does not understand, each with all readings of the text inside: sixty bytes could keep it busy for years.
//!
//! Invariant: apart from the limit, from argument names that are expressions, and from the corrections in
//! [`grammar`], the grammar is that of [`PostgreSqlDialect`]; a test compares the two.

use std::any::TypeId;
use std::cell::Cell;

use datafusion::sql::sqlparser::ast::Expr;
use datafusion::sql::sqlparser::dialect::{Dialect, PostgreSqlDialect, Precedence};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError, ParserOptions};
use datafusion::sql::sqlparser::tokenizer::TokenWithSpan;

use crate::sql::workarounds::grammar;

/// Attempts to parse an expression, for any statement.
const ATTEMPTS_MIN: usize = 100_000;
/// Further attempts per token; one reading of a plain list takes one or two per token.
const ATTEMPTS_PER_TOKEN: usize = 20;
/// The recursion limit of the SQL parser; the guard has already bounded the nesting.
const RECURSION_MAX: usize = 192;

/// The dialect of one statement.
#[derive(Debug)]
pub(super) struct BoundedDialect {
    postgres: PostgreSqlDialect,
    attempts_left: Cell<usize>,
    queries: grammar::QueriesInParentheses,
}

impl BoundedDialect {
    /// Returns a dialect for one parse of `tokens`.
    pub(super) fn new(tokens: &[TokenWithSpan]) -> Self {
        let attempts = ATTEMPTS_MIN.saturating_add(tokens.len().saturating_mul(ATTEMPTS_PER_TOKEN));
        Self {
            postgres: PostgreSqlDialect {},
            attempts_left: Cell::new(attempts),
            queries: grammar::QueriesInParentheses::of(tokens),
        }
    }

    /// Counts an attempt. With none left, fails with the one error after which the parser stops trying.
    fn attempt(&self) -> Result<(), ParserError> {
        match self.attempts_left.get().checked_sub(1) {
            Some(left) => {
                self.attempts_left.set(left);
                Ok(())
            }
            None => Err(ParserError::RecursionLimitExceeded),
        }
    }
}

/// Returns an SQL parser over tokens that passed the guard, with a dialect made for them.
pub(super) fn parser<'a>(tokens: &[TokenWithSpan], dialect: &'a BoundedDialect) -> Parser<'a> {
    Parser::new(dialect as &dyn Dialect)
        .with_recursion_limit(RECURSION_MAX)
        .with_options(ParserOptions::new())
        .with_tokens_with_locations(tokens.to_vec())
}

impl Dialect for BoundedDialect {
    fn dialect(&self) -> TypeId {
        self.postgres.dialect()
    }

    fn parse_prefix(&self, parser: &mut Parser<'_>) -> Option<Result<Expr, ParserError>> {
        match self.attempt() {
            Ok(()) => grammar::prefix(parser, &self.queries),
            Err(error) => Some(Err(error)),
        }
    }

    fn parse_infix(
        &self,
        parser: &mut Parser<'_>,
        left: &Expr,
        precedence: u8,
    ) -> Option<Result<Expr, ParserError>> {
        grammar::infix(parser, left, precedence, &self.queries)
    }

    fn get_next_precedence(&self, parser: &Parser<'_>) -> Option<Result<u8, ParserError>> {
        match self.attempt() {
            Ok(()) => {
                grammar::precedence(parser).map(Ok).or_else(|| self.postgres.get_next_precedence(parser))
            }
            Err(error) => Some(Err(error)),
        }
    }

    // An argument's name is an identifier. If it could be any expression, the parser would read every
    // argument twice, and an innermost one 2^depth times.
    fn supports_named_fn_args_with_expr_name(&self) -> bool {
        false
    }

    fn identifier_quote_style(&self, identifier: &str) -> Option<char> {
        self.postgres.identifier_quote_style(identifier)
    }

    fn is_delimited_identifier_start(&self, ch: char) -> bool {
        self.postgres.is_delimited_identifier_start(ch)
    }

    fn is_identifier_start(&self, ch: char) -> bool {
        self.postgres.is_identifier_start(ch)
    }

    fn is_identifier_part(&self, ch: char) -> bool {
        self.postgres.is_identifier_part(ch)
    }

    fn is_reserved_for_identifier(&self, keyword: Keyword) -> bool {
        self.postgres.is_reserved_for_identifier(keyword)
    }

    fn is_custom_operator_part(&self, ch: char) -> bool {
        self.postgres.is_custom_operator_part(ch)
    }

    fn prec_value(&self, precedence: Precedence) -> u8 {
        self.postgres.prec_value(precedence)
    }

    fn supports_unicode_string_literal(&self) -> bool {
        self.postgres.supports_unicode_string_literal()
    }

    fn supports_filter_during_aggregation(&self) -> bool {
        self.postgres.supports_filter_during_aggregation()
    }

    fn supports_group_by_expr(&self) -> bool {
        self.postgres.supports_group_by_expr()
    }

    fn allow_extract_custom(&self) -> bool {
        self.postgres.allow_extract_custom()
    }

    fn allow_extract_single_quotes(&self) -> bool {
        self.postgres.allow_extract_single_quotes()
    }

    fn supports_create_index_with_clause(&self) -> bool {
        self.postgres.supports_create_index_with_clause()
    }

    fn supports_explain_with_utility_options(&self) -> bool {
        self.postgres.supports_explain_with_utility_options()
    }

    fn supports_listen_notify(&self) -> bool {
        self.postgres.supports_listen_notify()
    }

    fn supports_factorial_operator(&self) -> bool {
        self.postgres.supports_factorial_operator()
    }

    fn supports_bitwise_shift_operators(&self) -> bool {
        self.postgres.supports_bitwise_shift_operators()
    }

    fn supports_comment_on(&self) -> bool {
        self.postgres.supports_comment_on()
    }

    fn supports_load_extension(&self) -> bool {
        self.postgres.supports_load_extension()
    }

    fn supports_named_fn_args_with_colon_operator(&self) -> bool {
        self.postgres.supports_named_fn_args_with_colon_operator()
    }

    fn supports_empty_projections(&self) -> bool {
        self.postgres.supports_empty_projections()
    }

    fn supports_nested_comments(&self) -> bool {
        self.postgres.supports_nested_comments()
    }

    fn supports_string_escape_constant(&self) -> bool {
        self.postgres.supports_string_escape_constant()
    }

    fn supports_numeric_literal_underscores(&self) -> bool {
        self.postgres.supports_numeric_literal_underscores()
    }

    fn supports_array_typedef_with_brackets(&self) -> bool {
        self.postgres.supports_array_typedef_with_brackets()
    }

    fn supports_geometric_types(&self) -> bool {
        self.postgres.supports_geometric_types()
    }

    fn supports_set_names(&self) -> bool {
        self.postgres.supports_set_names()
    }

    fn supports_alter_column_type_using(&self) -> bool {
        self.postgres.supports_alter_column_type_using()
    }

    fn supports_notnull_operator(&self) -> bool {
        self.postgres.supports_notnull_operator()
    }

    fn supports_interval_options(&self) -> bool {
        self.postgres.supports_interval_options()
    }

    fn supports_insert_table_alias(&self) -> bool {
        self.postgres.supports_insert_table_alias()
    }

    fn supports_create_table_like_parenthesized(&self) -> bool {
        self.postgres.supports_create_table_like_parenthesized()
    }

    fn supports_select_wildcard_with_alias(&self) -> bool {
        self.postgres.supports_select_wildcard_with_alias()
    }

    fn supports_comma_separated_trim(&self) -> bool {
        self.postgres.supports_comma_separated_trim()
    }

    fn supports_xml_expressions(&self) -> bool {
        self.postgres.supports_xml_expressions()
    }

    fn supports_comment_optimizer_hint(&self) -> bool {
        self.postgres.supports_comment_optimizer_hint()
    }
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::ast::Statement;
    use datafusion::sql::sqlparser::tokenizer::Tokenizer;

    use super::*;
    use crate::sql::limits::stack::deep;

    fn parsed(dialect: &dyn Dialect, sql: &str) -> Result<Vec<Statement>, ParserError> {
        let parser = Parser::new(dialect).with_recursion_limit(192);
        deep(|| parser.try_with_sql(sql)?.parse_statements())
    }

    fn bounded(sql: &str) -> Result<Vec<Statement>, ParserError> {
        let tokens = Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize_with_location()?;
        parsed(&BoundedDialect::new(&tokens), sql)
    }

    #[test]
    fn the_grammar_is_that_of_postgres() {
        for sql in [
            "SELECT a, \"B\", 'c', E'\\n', U&'\\0061', $1, 1_000, x'ff' \
             FROM t AS u WHERE a = ANY(ARRAY[1, 2])",
            "SELECT a -> 'b' ->> 'c' #> '{d}', a @> b, a ? b, a || b, a ^ 2, a # b, a << 1, a !~* 'x', 5 !",
            "SELECT a COLLATE \"C\", a NOTNULL, a IS NOT NULL, NOT a ILIKE 'b%' ESCAPE 'x', a::int[], a[1:2]",
            "SELECT INTERVAL '1 day', DATE '2024-01-01', CAST(a AS NUMERIC(10, 2)), \
             EXTRACT(CENTURY FROM a), interval",
            "SELECT f(a, *), count(*) FILTER (WHERE a > 0) \
             OVER (PARTITION BY b ORDER BY c ROWS UNBOUNDED PRECEDING)",
            "SELECT TRIM(BOTH 'x' FROM a), SUBSTRING(a FROM 1 FOR 2), POSITION('a' IN b), \
             OVERLAY(a PLACING b FROM 1)",
            "SELECT a FROM t GROUP BY CUBE (a, b), ROLLUP (c), GROUPING SETS ((a), ())",
            "SELECT FROM t; SELECT t.* FROM t LEFT JOIN LATERAL (SELECT 1) u ON true; SELECT point '(1,2)'",
            "WITH RECURSIVE r AS MATERIALIZED (SELECT 1 UNION ALL SELECT 2) \
             SELECT * FROM r FETCH FIRST 1 ROW ONLY",
            "INSERT INTO t AS u (a) VALUES (1), (DEFAULT) ON CONFLICT (a) DO UPDATE SET a = 2 RETURNING *",
            "UPDATE t SET a = 1, b = DEFAULT FROM u WHERE t.a = u.a RETURNING a",
            "DELETE FROM t USING u WHERE t.a = u.a",
            "CREATE TABLE t (a INT PRIMARY KEY DEFAULT 1 NOT NULL, b TEXT[] CHECK (b <> '{}'), LIKE u)",
            "EXPLAIN (ANALYZE, VERBOSE) SELECT 1 /* a /* nested */ comment */ -- and another",
            "COMMENT ON TABLE t IS 'x'; SET NAMES 'utf8'; LISTEN a; NOTIFY a; LOAD 'x'",
            "CREATE INDEX i ON t (a) WITH (fillfactor = 70); \
             ALTER TABLE t ALTER COLUMN a TYPE INT USING a::int",
            "SELECT `a`",
            "SELECT CASE WHEN",
            "SELEC 1",
        ] {
            let postgres = parsed(&PostgreSqlDialect {}, sql);
            assert_eq!(bounded(sql).ok(), postgres.ok(), "{sql}");
        }
    }

    #[test]
    fn every_reading_comes_to_an_end() {
        let shapes = [
            "CAST(",
            "CEIL(",
            "SUBSTRING(",
            "POSITION(",
            "OVERLAY(",
            "CONVERT(",
            "ARRAY[",
            "ARRAY(SELECT ",
            "NOT (",
            "INTERVAL (",
            "INTERVAL ",
            "f(",
            "f(a => ",
            "f(x ORDER BY ",
            "a.f(",
            "(1, ",
            "(",
            "[",
            "{",
            "a[",
            "1 IN (",
            "1 = ANY (",
            "CASE WHEN ",
            "CASE WHEN (",
            "f() OVER (ORDER BY ",
            "STRUCT(",
            "MAP {",
            "DATE (",
            "a::numeric(",
            "EXISTS(SELECT ",
            "f(CAST(a[",
            "a.",
            "- (",
            "TRIM(",
            "EXTRACT(YEAR FROM ",
            "xmlelement(",
        ];
        for shape in shapes {
            for (head, tail) in
                [("SELECT ", ""), ("SELECT ", "1"), ("SELECT * FROM t WHERE ", "1 AS"), ("VALUES (", "x")]
            {
                let sql = format!("{head}{}{tail}", shape.repeat(120));
                drop(bounded(&sql));
            }
        }
        for shape in
            ["(", "(t JOIN ", "LATERAL (SELECT * FROM ", "f(", "(SELECT * FROM ", "UNNEST(", "(VALUES ("]
        {
            for tail in ["", "t", "SELECT 1 x y"] {
                let sql = format!("SELECT * FROM {}{tail}", shape.repeat(120));
                drop(bounded(&sql));
            }
        }
    }

    #[test]
    fn long_and_deep_statements_are_read() {
        let rows = vec!["(-1, 'a' || 'b', f(2 * 3), NULL)"; 20_000].join(", ");
        assert!(bounded(&format!("INSERT INTO t VALUES {rows}")).is_ok());
        let deep = format!("SELECT {}a{}", "f(".repeat(60), ")".repeat(60));
        assert!(bounded(&deep).is_ok());
        let parentheses = format!("SELECT {}a{}", "(".repeat(60), ")".repeat(60));
        assert!(bounded(&parentheses).is_ok());
    }
}
