//! Parts of the SQL parser's syntax trees: names as they are stored, and the expressions and queries that the
//! database itself writes.

use datafusion::sql::sqlparser::ast::helpers::attached_token::AttachedToken;
use datafusion::sql::sqlparser::ast::{
    Expr, GroupByExpr, Ident, Query, Select, SelectFlavor, SelectItem, SetExpr, TableWithJoins,
};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};

use crate::error::{Error, Result};

static DIALECT: PostgreSqlDialect = PostgreSqlDialect {};

/// Returns a parsed identifier as it is stored: in lower case unless quoted.
pub(crate) fn fold(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

/// Parses an expression that the database itself wrote.
pub(crate) fn expression(text: &str) -> Result<Expr> {
    Parser::new(&DIALECT).try_with_sql(text).and_then(|mut parser| parser.parse_expr()).map_err(syntax_error)
}

/// Returns a query that has only `body`.
pub(crate) fn query(body: SetExpr) -> Query {
    Query {
        with: None,
        body: Box::new(body),
        order_by: None,
        limit_clause: None,
        fetch: None,
        locks: Vec::new(),
        for_clause: None,
        settings: None,
        format_clause: None,
        pipe_operators: Vec::new(),
    }
}

/// Returns `SELECT projection FROM from WHERE selection`.
pub(crate) fn select(projection: Vec<SelectItem>, from: TableWithJoins, selection: Option<Expr>) -> Query {
    query(SetExpr::Select(Box::new(Select {
        select_token: AttachedToken::empty(),
        optimizer_hints: Vec::new(),
        distinct: None,
        select_modifiers: None,
        top: None,
        top_before_distinct: false,
        projection,
        exclude: None,
        into: None,
        from: vec![from],
        lateral_views: Vec::new(),
        prewhere: None,
        selection,
        connect_by: Vec::new(),
        group_by: GroupByExpr::Expressions(Vec::new(), Vec::new()),
        cluster_by: Vec::new(),
        distribute_by: Vec::new(),
        sort_by: Vec::new(),
        having: None,
        named_window: Vec::new(),
        qualify: None,
        window_before_qualify: false,
        value_table_mode: None,
        flavor: SelectFlavor::Standard,
    })))
}

/// Parses a query that the database itself wrote.
pub(crate) fn written_query(sql: &str) -> Result<Query> {
    let query = Parser::new(&DIALECT).try_with_sql(sql).and_then(|mut parser| parser.parse_query());
    query.map(|query| *query).map_err(syntax_error)
}

/// Converts an error of the SQL parser.
pub(crate) fn syntax_error(error: ParserError) -> Error {
    match error {
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => Error::syntax(text),
        ParserError::RecursionLimitExceeded => {
            Error::syntax("the statement is nested too deeply or cannot be parsed")
        }
    }
}
