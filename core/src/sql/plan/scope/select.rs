//! Resolves the select list and the clauses after it.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use datafusion::sql::sqlparser::ast::{
    self, Distinct, Expr, GroupByExpr, Ident, OrderBy, OrderByKind, Select, SelectItem,
    SelectItemQualifiedWildcardKind, SetExpr, WildcardAdditionalOptions,
};

use super::level::{Found, Level, Output, Shown, Source};
use super::{Outputs, Resolver, ambiguous, naming, quoted};
use crate::error::{Error, Result};
use crate::sql::syntax_tree::fold;
use crate::sql::workarounds::syntax::function_call;

/// A column of the select list.
struct Item {
    expr: Expr,
    name: Arc<str>,
}

/// A part of the select list: a column, or an item that only the planner can expand.
enum Part {
    Item(Box<Item>),
    Wildcard(Box<SelectItem>),
}

impl Part {
    fn item(expr: Expr, name: Arc<str>) -> Self {
        Self::Item(Box::new(Item { expr, name }))
    }

    fn wildcard(item: SelectItem) -> Self {
        Self::Wildcard(Box::new(item))
    }
}

impl Resolver<'_> {
    /// Resolves a SELECT and its ORDER BY.
    pub(super) fn select(
        &mut self,
        select: &mut Select,
        order_by: Option<&mut OrderBy>,
        query: &Level<'_>,
    ) -> Result<Outputs> {
        let mut level = Level::new(Some(query));
        for from in &mut select.from {
            self.from(from, &mut level)?;
        }
        if let Some(condition) = &mut select.selection {
            self.expr(condition, &level)?;
        }
        let names_outputs = order_by.is_some()
            || select.having.is_some()
            || select.qualify.is_some()
            || matches!(select.distinct, Some(Distinct::On(_)))
            || matches!(&select.group_by, GroupByExpr::Expressions(by, _) if !by.is_empty());
        let parts = self.parts(std::mem::take(&mut select.projection), &level)?;
        let outputs = self.list(parts, &level, names_outputs, &mut select.projection);
        let known = outputs.as_deref().unwrap_or_default();
        if let GroupByExpr::Expressions(by, _) = &mut select.group_by {
            for expr in by {
                self.in_clause(expr, &level, known)?;
            }
        }
        for expr in select.having.iter_mut().chain(&mut select.qualify) {
            self.in_clause(expr, &level, known)?;
        }
        let sorts = match order_by.map(|order| &mut order.kind) {
            Some(OrderByKind::Expressions(sorts)) => sorts.as_mut_slice(),
            _ => &mut [],
        };
        let is_distinct = matches!(select.distinct, Some(Distinct::Distinct));
        let on = match &mut select.distinct {
            Some(Distinct::On(exprs)) => exprs.as_mut_slice(),
            _ => &mut [],
        };
        for expr in on.iter_mut().chain(sorts.iter_mut().map(|sort| &mut sort.expr)) {
            // A bare name means a result column first; inside an expression it means a table's column first.
            match output_named(expr, known)? {
                Some(internal) => *expr = quoted(&internal),
                None => self.in_clause(expr, &level, known)?,
            }
            if is_distinct && let Some(name) = listed(expr, &select.projection, &level) {
                *expr = Expr::Identifier(name);
            }
        }
        Ok(outputs)
    }

    /// Returns the select list, with its wildcards written out where that makes a difference.
    fn parts(&mut self, projection: Vec<SelectItem>, level: &Level<'_>) -> Result<Vec<Part>> {
        let mut parts = Vec::with_capacity(projection.len());
        for item in projection {
            match item {
                SelectItem::UnnamedExpr(mut expr) => {
                    let name = Arc::from(naming::of(&expr));
                    self.expr(&mut expr, level)?;
                    parts.push(Part::item(expr, name));
                }
                SelectItem::ExprWithAlias { mut expr, alias } => {
                    self.expr(&mut expr, level)?;
                    parts.push(Part::item(expr, Arc::from(fold(&alias))));
                }
                SelectItem::Wildcard(options) => {
                    let all = level.shown.as_slice();
                    let is_changed = all.iter().any(|part| matches!(part, Shown::Merged { .. }))
                        || level.sources.iter().any(|source| source.has_hidden);
                    match level.columns(all) {
                        Some(columns) if is_plain(&options) => parts.extend(items(columns)),
                        _ if !is_changed => parts.push(Part::wildcard(SelectItem::Wildcard(options))),
                        _ if is_plain(&options) => {
                            for part in all {
                                match level.columns(std::slice::from_ref(part)) {
                                    Some(columns) => parts.extend(items(columns)),
                                    None => parts.push(Part::wildcard(all_of(part, level)?)),
                                }
                            }
                        }
                        _ => return Err(changed_wildcard()),
                    }
                }
                SelectItem::QualifiedWildcard(kind, options) => {
                    let source = match &kind {
                        SelectItemQualifiedWildcardKind::ObjectName(name) => {
                            let qualifier: Vec<Ident> =
                                name.0.iter().filter_map(|part| part.as_ident().cloned()).collect();
                            level.sources.iter().find(|source| source.answers_to(&qualifier))
                        }
                        SelectItemQualifiedWildcardKind::Expr(_) => None,
                    };
                    match source.and_then(|source| source.columns.as_ref().map(|columns| (source, columns))) {
                        Some((source, columns)) if is_plain(&options) => {
                            let columns =
                                columns.iter().map(|column| (column.clone(), source.reference(column)));
                            parts.extend(items(columns.collect()));
                        }
                        _ if source.is_some_and(|source| source.has_hidden) => return Err(changed_wildcard()),
                        _ => {
                            let internal = source.and_then(|source| source.internal.clone());
                            let kind = internal.map_or(kind, |name| {
                                let name = ast::ObjectName::from(vec![name]);
                                SelectItemQualifiedWildcardKind::ObjectName(name)
                            });
                            parts.push(Part::wildcard(SelectItem::QualifiedWildcard(kind, options)));
                        }
                    }
                }
                other @ SelectItem::ExprWithAliases { .. } => parts.push(Part::wildcard(other)),
            }
        }
        Ok(parts)
    }

    /// Gives each column a name that is unique for the planner.
    fn list(
        &mut self,
        parts: Vec<Part>,
        level: &Level<'_>,
        names_outputs: bool,
        projection: &mut Vec<SelectItem>,
    ) -> Outputs {
        // The expressions of the columns of each name.
        let mut taken: HashMap<Arc<str>, Vec<Expr>> = HashMap::with_capacity(parts.len());
        let mut outputs = Some(Vec::with_capacity(parts.len()));
        for part in parts {
            let Item { expr, name } = match part {
                Part::Item(item) => *item,
                Part::Wildcard(item) => {
                    projection.push(*item);
                    outputs = None;
                    continue;
                }
            };
            let own_name = column_name(&expr);
            let is_column = own_name.as_deref() == Some(&*name);
            // In the clauses after the list the planner would confuse the alias with the table's column.
            let hides_column =
                names_outputs && !is_column && !matches!(level.find_here(&name), Found::Missing);
            let same_name = taken.entry(Arc::clone(&name)).or_default();
            let whole = qualified(&expr, level);
            let is_repeated = same_name.contains(&whole);
            let internal =
                if !same_name.is_empty() || hides_column { Some(self.other_name(&name)) } else { None };
            same_name.push(whole);
            let output = Output { name, internal, is_repeated };
            projection.push(if is_column && output.internal.is_none() {
                SelectItem::UnnamedExpr(expr)
            } else {
                SelectItem::ExprWithAlias { expr, alias: Ident::with_quote('"', &**output.reference()) }
            });
            if let Some(outputs) = &mut outputs {
                outputs.push(output);
            }
        }
        outputs
    }
}

/// Wraps each column of a resolved query in a function; the column keeps its name.
pub(super) fn wrap_columns(body: &mut SetExpr, function: &str) {
    match body {
        SetExpr::Select(select) if !matches!(select.distinct, Some(Distinct::On(_))) => {
            for item in &mut select.projection {
                if let SelectItem::UnnamedExpr(expr) = item
                    && let Some(name) = column_name(expr)
                {
                    let alias = Ident::with_quote('"', name);
                    *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias };
                }
                if let SelectItem::ExprWithAlias { expr, .. } = item
                    && !is_unnest(expr)
                {
                    *expr = function_call(function, vec![expr.clone()]);
                }
            }
        }
        // A query with ORDER BY stays as it is: its order names the unwrapped columns.
        SetExpr::Query(query) if query.order_by.is_none() => wrap_columns(&mut query.body, function),
        SetExpr::SetOperation { left, right, .. } => {
            crate::sql::limits::stack::deep(|| {
                wrap_columns(left, function);
                wrap_columns(right, function);
            });
        }
        SetExpr::Values(values) => {
            for expr in values.rows.iter_mut().flat_map(|row| &mut row.content) {
                *expr = function_call(function, vec![expr.clone()]);
            }
        }
        _ => {}
    }
}

/// Whether the expression is UNNEST, which cannot be an argument of a function.
fn is_unnest(expr: &Expr) -> bool {
    matches!(expr, Expr::Function(function) if function.name.to_string().eq_ignore_ascii_case("unnest"))
}

/// Returns the planner's name for an expression that is a table's column.
fn column_name(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Identifier(ident) => Some(fold(ident)),
        Expr::CompoundIdentifier(parts) => parts.last().map(fold),
        _ => None,
    }
}

/// Qualifies a column with its table, however it was written; returns any other expression as it is.
fn qualified(expr: &Expr, level: &Level<'_>) -> Expr {
    let reference = match expr {
        Expr::Identifier(ident) => level.reference_in(&fold(ident), &level.shown).ok().flatten(),
        _ => None,
    };
    match reference.as_ref().unwrap_or(expr) {
        Expr::CompoundIdentifier(parts) => {
            Expr::CompoundIdentifier(parts.iter().map(|part| Ident::with_quote('"', fold(part))).collect())
        }
        other => other.clone(),
    }
}

/// Returns the name of the select list's column that is this expression: DISTINCT leaves no other columns.
fn listed(expr: &Expr, projection: &[SelectItem], level: &Level<'_>) -> Option<Ident> {
    if matches!(expr, Expr::Identifier(_) | Expr::Value(_)) {
        return None;
    }
    let with_tables = |expr: &Expr| {
        let mut whole = expr.clone();
        let _ = ast::visit_expressions_mut(&mut whole, |part| {
            *part = qualified(part, level);
            ControlFlow::<()>::Continue(())
        });
        whole
    };
    let wanted = with_tables(expr);
    projection.iter().find_map(|item| match item {
        SelectItem::ExprWithAlias { expr, alias } => (with_tables(expr) == wanted).then(|| alias.clone()),
        _ => None,
    })
}

fn items(columns: Vec<(Output, Expr)>) -> impl Iterator<Item = Part> {
    columns.into_iter().map(|(column, expr)| Part::item(expr, column.name))
}

/// Returns the result column that an expression names, if the expression is a bare name.
///
/// # Errors
/// 42702 when the name is ambiguous.
pub(super) fn output_named(expr: &Expr, outputs: &[Output]) -> Result<Option<Arc<str>>> {
    let Expr::Identifier(ident) = expr else { return Ok(None) };
    let name = fold(ident);
    let mut named = outputs.iter().filter(|output| *output.name == *name && !output.is_repeated);
    match (named.next(), named.next()) {
        (Some(output), None) => Ok(Some(Arc::clone(output.reference()))),
        (Some(_), Some(_)) => Err(ambiguous(&name)),
        (None, _) => Ok(None),
    }
}

/// Returns `*` of one source whose columns only the planner knows.
fn all_of(part: &Shown, level: &Level<'_>) -> Result<SelectItem> {
    let qualifier = match part {
        Shown::Columns { source, .. } => level.sources.get(*source).map(Source::planned_qualifier),
        Shown::Merged { .. } => None,
    };
    match qualifier {
        Some(qualifier) if !qualifier.is_empty() => Ok(SelectItem::QualifiedWildcard(
            SelectItemQualifiedWildcardKind::ObjectName(ast::ObjectName::from(qualifier)),
            WildcardAdditionalOptions::default(),
        )),
        _ => Err(Error::unsupported("* with USING over a function without an alias")
            .hint("give the function an alias")),
    }
}

/// Whether a wildcard has no clause such as EXCEPT, which only the planner expands.
fn is_plain(options: &WildcardAdditionalOptions) -> bool {
    options.opt_ilike.is_none()
        && options.opt_exclude.is_none()
        && options.opt_except.is_none()
        && options.opt_replace.is_none()
        && options.opt_rename.is_none()
        && options.opt_alias.is_none()
}

fn changed_wildcard() -> Error {
    Error::unsupported("* EXCEPT, REPLACE or RENAME together with USING, _seq or a write")
        .hint("write out the columns")
}
