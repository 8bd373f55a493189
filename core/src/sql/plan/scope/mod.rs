//! Resolves the names of columns in a query as PostgreSQL does, before the planner reads it.
//!
//! | case | DataFusion 55 | here |
//! |---|---|---|
//! | a column of USING or NATURAL | the first table's | from the left, the right or both, by join type |
//! | `*` over USING | in the tables' order | the joined columns first |
//! | two result columns of one name | refused | allowed; a reference to the name is ambiguous |
//! | an alias that is also a column, in HAVING and in an expression of ORDER BY | the alias | the column |
//! | a column named like a function without parentheses (`user`) | the function | the column |
//! | a common table expression that hides another | refused | allowed |
//! | `t.id` of an outer table, in a query over a column `t` | a field of the column | the table's column |
//!
//! Columns without an alias get PostgreSQL's names (`count`, `?column?`). Where the planner could not tell
//! two columns apart, they get internal names, which end with a space as no table column's name does;
//! [`Renamed`] maps them to the names in the result.
//!
//! A statement that names `_seq` or writes sees tables with hidden columns, so its wildcards are written out.
//!
//! | file | job |
//! |---|---|
//! | `level` | the columns that can be named at a place |
//! | `from` | FROM: tables, subqueries, joins |
//! | `select` | the select list and the clauses after it |
//! | `naming` | names of expressions without an alias |

mod from;
mod level;
mod naming;
mod select;

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use datafusion::sql::sqlparser::ast::{
    self, Expr, FunctionArgumentClause, FunctionArguments, Ident, LimitClause, OrderByKind, Query, SetExpr,
    SetOperator, VisitMut, VisitorMut,
};

use self::level::{Cte, Found, Level, Output};
use super::names::Names;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::sql::execution::TableVisibility;
use crate::sql::limits::stack::deep;
use crate::sql::syntax_tree::{self, fold};
use crate::sql::workarounds::syntax::function_call;
use crate::sql::workarounds::{FIRST_PART, NEXT_PART};

/// The names of result columns, by the internal names that the planner was given.
pub(crate) type Renamed = HashMap<String, String>;

/// Resolves the names in a query, or in an EXPLAIN of one.
///
/// # Errors
/// 42702 for an ambiguous name, 42703 for a missing column of USING, 42809 for DISTINCT, FILTER or OVER on a
/// function that is no aggregate, and the errors of the tables that are named.
pub(crate) fn resolve(
    statement: &mut ast::Statement,
    names: &Names<'_>,
    visibility: TableVisibility,
) -> Result<Renamed> {
    let mut hidden = HashSet::new();
    loop {
        let mut resolved = statement.clone();
        let mut resolver = Resolver { names, visibility, renamed: Renamed::new(), hidden };
        let known = resolver.hidden.len();
        match &mut resolved {
            ast::Statement::Query(query) => {
                resolver.query(query, None)?;
            }
            ast::Statement::Explain { statement, .. } => {
                if let ast::Statement::Query(query) = &mut **statement {
                    resolver.query(query, None)?;
                }
            }
            _ => {}
        }
        if resolver.hidden.len() == known {
            *statement = resolved;
            return Ok(resolver.renamed);
        }
        // This ends: each round adds names, and all are names of the statement's tables.
        hidden = resolver.hidden;
    }
}

struct Resolver<'a> {
    names: &'a Names<'a>,
    visibility: TableVisibility,
    renamed: Renamed,
    /// Names of tables that are also columns of an inner query, where the planner would read `t.id` as a
    /// field of the column `t`. Such a table gets an internal name.
    hidden: HashSet<String>,
}

/// The columns of a query; `None` where they are not known.
type Outputs = Option<Vec<Output>>;

impl Resolver<'_> {
    /// Returns a unique internal name for a column or table called `name`.
    fn other_name(&mut self, name: &str) -> Arc<str> {
        let other = format!("{name}#{} ", self.renamed.len() + 1);
        self.renamed.insert(other.clone(), name.to_owned());
        Arc::from(other)
    }

    fn query(&mut self, query: &mut Query, outer: Option<&Level<'_>>) -> Result<Outputs> {
        deep(|| {
            let mut level = Level::new(outer);
            if let Some(with) = &mut query.with {
                for cte in &mut with.cte_tables {
                    self.common_table_expression(cte, with.recursive, &mut level)?;
                }
            }
            let outputs = match &mut *query.body {
                SetExpr::Select(select) => self.select(select, query.order_by.as_mut(), &level)?,
                body => {
                    let outputs = self.set_expr(body, &level)?;
                    if let Some(OrderByKind::Expressions(exprs)) =
                        query.order_by.as_mut().map(|order| &mut order.kind)
                    {
                        for sort in exprs {
                            match select::output_named(&sort.expr, outputs.as_deref().unwrap_or_default())? {
                                Some(internal) => sort.expr = quoted(&internal),
                                None => self.expr(&mut sort.expr, &level)?,
                            }
                        }
                    }
                    outputs
                }
            };
            match &mut query.limit_clause {
                Some(LimitClause::LimitOffset { limit, offset, .. }) => {
                    for expr in limit.iter_mut().chain(offset.iter_mut().map(|offset| &mut offset.value)) {
                        self.expr(expr, &level)?;
                    }
                }
                Some(LimitClause::OffsetCommaLimit { offset, limit }) => {
                    self.expr(offset, &level)?;
                    self.expr(limit, &level)?;
                }
                None => {}
            }
            Ok(outputs)
        })
    }

    fn common_table_expression(
        &mut self,
        cte: &mut ast::Cte,
        is_recursive: bool,
        level: &mut Level<'_>,
    ) -> Result<()> {
        let name: Arc<str> = Arc::from(fold(&cte.alias.name));
        let mut internal = Arc::clone(&name);
        if level.outer.is_some_and(|outer| outer.cte(&name).is_some()) {
            internal = self.other_name(&name);
            cte.alias.name = Ident::with_quote('"', &*internal);
        }
        if let (true, SetExpr::SetOperation { op: SetOperator::Union, left, right, .. }) =
            (is_recursive, &mut *cte.query.body)
        {
            // The recursive part reads the columns of the first part.
            let outputs = self.set_expr(left, level)?;
            let is_read = reads(right, &name);
            if is_read {
                select::wrap_columns(left, FIRST_PART);
            }
            let columns = aliased(outputs, &cte.alias);
            level.ctes.push(Cte { name, internal, columns });
            self.set_expr(right, level)?;
            if is_read {
                select::wrap_columns(right, NEXT_PART);
            }
            return Ok(());
        }
        let outputs = self.query(&mut cte.query, Some(level))?;
        let columns = aliased(outputs, &cte.alias);
        level.ctes.push(Cte { name, internal, columns });
        Ok(())
    }

    fn set_expr(&mut self, body: &mut SetExpr, level: &Level<'_>) -> Result<Outputs> {
        match body {
            SetExpr::Select(select) => self.select(select, None, level),
            SetExpr::Query(query) => self.query(query, Some(level)),
            SetExpr::SetOperation { left, right, .. } => {
                let outputs = deep(|| self.set_expr(left, level))?;
                self.set_expr(right, level)?;
                Ok(outputs)
            }
            SetExpr::Values(values) => {
                for expr in values.rows.iter_mut().flat_map(|row| &mut row.content) {
                    self.expr(expr, level)?;
                }
                let width = values.rows.first().map_or(0, |row| row.content.len());
                Ok(Some((1..=width).map(|number| Output::plain(format!("column{number}"))).collect()))
            }
            SetExpr::Insert(_)
            | SetExpr::Update(_)
            | SetExpr::Delete(_)
            | SetExpr::Merge(_)
            | SetExpr::Table(_) => Ok(None),
        }
    }

    /// Resolves the names in an expression.
    fn expr(&mut self, expr: &mut Expr, level: &Level<'_>) -> Result<()> {
        self.in_clause(expr, level, &[])
    }

    /// Does the same in a clause that can also name `outputs`; a table's column of the same name comes first.
    fn in_clause(&mut self, expr: &mut Expr, level: &Level<'_>, outputs: &[Output]) -> Result<()> {
        let mut visitor = InExpression { resolver: self, level, outputs, queries: Vec::new() };
        match expr.visit(&mut visitor) {
            ControlFlow::Break(error) => Err(error),
            ControlFlow::Continue(()) => Ok(()),
        }
    }

    fn is_scalar(&self, name: &str) -> bool {
        self.names.is_scalar_function(name)
    }
}

/// Returns the columns under the names of an alias with a column list.
fn aliased(outputs: Outputs, alias: &ast::TableAlias) -> Outputs {
    if alias.columns.is_empty() {
        return outputs;
    }
    let mut columns: Vec<Output> =
        alias.columns.iter().map(|column| Output::plain(fold(&column.name))).collect();
    // Columns beyond the list keep their names.
    columns.extend(outputs?.into_iter().skip(columns.len()));
    Some(columns)
}

fn quoted(name: &str) -> Expr {
    Expr::Identifier(Ident::with_quote('"', name))
}

fn ambiguous(name: &str) -> Error {
    Error::new(ErrorKind::InvalidSql, SqlState::AMBIGUOUS_COLUMN, format!("column \"{name}\" is ambiguous"))
        .hint("qualify it with its table")
}

/// Visits one expression, and hands its subqueries to the resolver.
struct InExpression<'v, 'a, 'l> {
    resolver: &'v mut Resolver<'a>,
    level: &'v Level<'l>,
    outputs: &'v [Output],
    /// Resolved subqueries; an empty query stands in place of each.
    queries: Vec<Query>,
}

impl InExpression<'_, '_, '_> {
    fn resolve(&mut self, expr: &mut Expr) -> Result<()> {
        match expr {
            Expr::Identifier(ident) => {
                let name = fold(ident);
                match self.level.find(&name) {
                    Found::Rewritten(other) => *expr = *other,
                    Found::Ambiguous => return Err(ambiguous(&name)),
                    Found::ByName | Found::Unknown => {}
                    Found::Missing => {
                        if let Some(internal) = select::output_named(expr, self.outputs)? {
                            *expr = quoted(&internal);
                        }
                    }
                }
            }
            // In an array literal the planner knows no outer columns.
            Expr::Array(array) if self.level.outer.is_some() && array.elem.iter().any(names_column) => {
                *expr = function_call("make_array", std::mem::take(&mut array.elem));
            }
            Expr::CompoundIdentifier(parts) => {
                if let Some(hidden) = self.level.qualify(parts)? {
                    self.resolver.hidden.insert(hidden);
                }
            }
            Expr::Function(function) => {
                let Some(name) = function
                    .name
                    .0
                    .first()
                    .and_then(|part| part.as_ident())
                    .filter(|_| function.name.0.len() == 1)
                else {
                    return Ok(());
                };
                let name = fold(name);
                if matches!(function.args, FunctionArguments::None) {
                    match self.level.find(&name) {
                        Found::Rewritten(other) => *expr = *other,
                        Found::ByName => *expr = quoted(&name),
                        Found::Ambiguous => return Err(ambiguous(&name)),
                        Found::Unknown | Found::Missing => {}
                    }
                } else if let Some(clause) = aggregate_clause(function)
                    && self.resolver.is_scalar(&name)
                {
                    return Err(Error::new(
                        ErrorKind::InvalidSql,
                        SqlState::WRONG_OBJECT_TYPE,
                        format!("{clause} after \"{name}\", which is not an aggregate function"),
                    ));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Whether a query reads `table`, as a recursive part reads its own query.
fn reads(body: &SetExpr, table: &str) -> bool {
    let found = ast::visit_relations(body, |name| match name.0.as_slice() {
        [only] if only.as_ident().is_some_and(|ident| fold(ident) == table) => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    found.is_break()
}

/// Whether an expression names a column.
fn names_column(expr: &Expr) -> bool {
    let found = ast::visit_expressions(expr, |part| match part {
        Expr::Identifier(_) | Expr::CompoundIdentifier(_) => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    found.is_break()
}

/// Returns a clause of the call that only aggregates and window functions take.
fn aggregate_clause(function: &ast::Function) -> Option<&'static str> {
    let FunctionArguments::List(list) = &function.args else { return None };
    if list.duplicate_treatment.is_some() {
        return Some("DISTINCT or ALL");
    }
    if list.clauses.iter().any(|clause| matches!(clause, FunctionArgumentClause::OrderBy(_))) {
        return Some("ORDER BY");
    }
    match function {
        _ if function.over.is_some() => Some("OVER"),
        _ if function.filter.is_some() => Some("FILTER"),
        _ if !function.within_group.is_empty() => Some("WITHIN GROUP"),
        _ if function.null_treatment.is_some() || !list.clauses.is_empty() => Some("a clause"),
        _ => None,
    }
}

impl VisitorMut for InExpression<'_, '_, '_> {
    type Break = Error;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<Error> {
        match self.resolver.query(query, Some(self.level)) {
            Ok(_) => {
                // No expression inside the subquery belongs to this level.
                let empty = syntax_tree::query(SetExpr::Values(ast::Values {
                    explicit_row: false,
                    value_keyword: false,
                    rows: Vec::new(),
                }));
                self.queries.push(std::mem::replace(query, empty));
                ControlFlow::Continue(())
            }
            Err(error) => ControlFlow::Break(error),
        }
    }

    fn post_visit_query(&mut self, query: &mut Query) -> ControlFlow<Error> {
        if let Some(resolved) = self.queries.pop() {
            *query = resolved;
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Error> {
        match self.resolve(expr) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error),
        }
    }
}
