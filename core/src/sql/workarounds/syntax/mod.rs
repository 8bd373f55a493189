//! Corrects the parser, and rewrites a parsed statement before planning: what the planner misreads, does not
//! support, or plans in a way that no later rule can repair.
//!
//! | file | its one job |
//! |---|---|
//! | `grammar` | operators that the parser reads differently |
//! | `literals` | numbers with exponents or too many digits, intervals |
//! | `patterns` | LIKE with ESCAPE, LIKE ANY |
//! | `quantified` | comparisons with the elements of an array |
//! | `rows` | comparisons of rows |
//! | `grouping` | rows in GROUP BY, grouping sets that repeat an expression |
//! | `windows` | named windows |
//! | `casts` | casts whose column would have the name of their operand |
//!
//! Invariant: a rewrite depends only on the text, not on tables or types, so rewriting once is enough.

mod casts;
pub(in crate::sql) mod grammar;
mod grouping;
mod literals;
mod patterns;
mod quantified;
mod rows;
mod windows;

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    self, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, Ident,
    LimitClause, ObjectName, Query, Select, SetExpr, UnaryOperator, VisitMut, VisitorMut,
};

use self::windows::Windows;
use crate::error::{Error, Result};

/// Rewrites the queries and expressions of a statement.
///
/// # Errors
/// 22003 and 22007 for invalid literals, 22025 for a LIKE pattern that ends with its escape character, 42601
/// for rows of different lengths, 42704 and 42P20 for windows, 0A000 for unsupported forms.
pub(crate) fn rewrite(statement: &mut impl VisitMut) -> Result<()> {
    match statement.visit(&mut Rewriter::default()) {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) => Ok(()),
    }
}

#[derive(Default)]
struct Rewriter {
    /// The windows that can be named in each enclosing query and SELECT.
    windows: Vec<Windows>,
}

impl VisitorMut for Rewriter {
    type Break = Error;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<Error> {
        fetch_as_limit(query);
        // ORDER BY stands outside the SELECT, but can name its windows.
        let mut windows = Ok(Windows::new());
        match &mut *query.body {
            SetExpr::Select(select) => {
                casts::name_apart(select, query.order_by.as_mut());
                windows = windows::of(select);
            }
            other => casts::name_apart_within(other),
        }
        self.enter(windows)
    }

    fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<Error> {
        self.windows.pop();
        ControlFlow::Continue(())
    }

    fn post_visit_select(&mut self, _: &mut Select) -> ControlFlow<Error> {
        self.windows.pop();
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<Error> {
        grouping::of_having(select);
        grouping::of_positions(select);
        grouping::without_rows(&mut select.group_by);
        grouping::write_out_sets(&mut select.group_by);
        let windows = select
            .selection
            .as_mut()
            .map_or(Ok(()), rows::as_exists)
            .and_then(|()| windows::of(select))
            .inspect(|_| select.named_window.clear());
        self.enter(windows)
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Error> {
        // Before the interval inside is visited: the sign belongs to each of its parts.
        if let Expr::UnaryOp { op: UnaryOperator::Minus, expr: inner } = expr
            && let Expr::Interval(interval) = &mut **inner
        {
            return match literals::interval(interval, -1) {
                Ok(()) => {
                    *expr = std::mem::replace(&mut **inner, null());
                    ControlFlow::Continue(())
                }
                Err(error) => ControlFlow::Break(error),
            };
        }
        // Before the window is visited: a named window is rewritten where it is used.
        if let Expr::Function(function) = expr
            && let Err(error) = windows::write_out(function, self.windows.last().unwrap_or(&Windows::new()))
        {
            return ControlFlow::Break(error);
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Error> {
        match rewritten(expr) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error),
        }
    }
}

impl Rewriter {
    fn enter(&mut self, windows: Result<Windows>) -> ControlFlow<Error> {
        match windows {
            Ok(windows) => {
                self.windows.push(windows);
                ControlFlow::Continue(())
            }
            Err(error) => ControlFlow::Break(error),
        }
    }
}

/// Rewrites an expression whose parts are already rewritten.
fn rewritten(expr: &mut Expr) -> Result<()> {
    match expr {
        Expr::Value(value) => {
            if let ast::Value::Number(text, _) = &value.value
                && let Some(number) = literals::number(text)?
            {
                *expr = number;
            }
        }
        Expr::Interval(interval) => literals::interval(interval, 1)?,
        Expr::AtTimeZone { timestamp, time_zone } => {
            *expr = function_call("timezone", vec![taken(time_zone), taken(timestamp)]);
        }
        Expr::Collate { expr: inner, .. } => *expr = taken(inner),
        Expr::Like { .. } | Expr::ILike { .. } => patterns::rewrite(expr)?,
        Expr::AnyOp { .. } | Expr::AllOp { .. } => quantified::rewrite(expr)?,
        Expr::Function(function) if UNSIGNED.contains(&&*function.name.to_string().to_lowercase()) => {
            *expr = cast(taken(expr), ast::DataType::BigInt(None));
        }
        Expr::Function(function) => rows::constructor(function).map_or((), |row| *expr = row),
        _ => rows::rewrite(expr)?,
    }
    Ok(())
}

/// Functions that return an unsigned number, which no column has. Beside a BIGINT the planner computes it as
/// a decimal, so that `row_number() OVER (...) / 2` has a fraction, and it cannot negate it.
const UNSIGNED: [&str; 15] = [
    "approx_distinct",
    "array_indexof",
    "array_length",
    "array_ndims",
    "array_position",
    "cardinality",
    "dense_rank",
    "list_indexof",
    "list_length",
    "list_ndims",
    "list_position",
    "ntile",
    "rank",
    "regr_count",
    "row_number",
];

/// `FETCH FIRST n ROWS ONLY` is `LIMIT n`.
fn fetch_as_limit(query: &mut Query) {
    let Some(fetch) = query.fetch.take() else { return };
    let count = fetch.quantity.unwrap_or_else(|| number("1"));
    let offset = match query.limit_clause.take() {
        Some(LimitClause::LimitOffset { offset, .. }) => offset,
        _ => None,
    };
    query.limit_clause = Some(LimitClause::LimitOffset { limit: Some(count), offset, limit_by: Vec::new() });
}

/// Takes `expr` and leaves NULL in its place.
fn taken(expr: &mut Expr) -> Expr {
    std::mem::replace(expr, null())
}

fn null() -> Expr {
    Expr::value(ast::Value::Null)
}

fn number(text: &str) -> Expr {
    Expr::value(ast::Value::Number(text.to_owned(), false))
}

fn text(text: impl Into<String>) -> Expr {
    Expr::value(ast::Value::SingleQuotedString(text.into()))
}

fn boolean(value: bool) -> Expr {
    Expr::value(ast::Value::Boolean(value))
}

fn not(expr: Expr) -> Expr {
    Expr::UnaryOp { op: UnaryOperator::Not, expr: Box::new(nested(expr)) }
}

fn nested(expr: Expr) -> Expr {
    Expr::Nested(Box::new(expr))
}

/// Joins `parts` with an operator, from the left. Returns `None` for an empty list.
fn joined(parts: impl IntoIterator<Item = Expr>, op: &ast::BinaryOperator) -> Option<Expr> {
    let all = parts.into_iter().reduce(|left, right| Expr::BinaryOp {
        left: Box::new(left),
        op: op.clone(),
        right: Box::new(right),
    });
    all.map(nested)
}

/// `CAST(expr AS data_type)`.
pub(crate) fn cast(expr: Expr, data_type: ast::DataType) -> Expr {
    Expr::Cast { kind: ast::CastKind::Cast, expr: Box::new(expr), data_type, array: false, format: None }
}

/// Returns a call of the named function.
pub(crate) fn function_call(name: &str, args: Vec<Expr>) -> Expr {
    let args = args.into_iter().map(|arg| FunctionArg::Unnamed(FunctionArgExpr::Expr(arg))).collect();
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new(name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args,
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}
