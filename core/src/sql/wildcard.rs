//! `*` and `t.*` without what tables show beyond their columns.
//!
//! A statement that names `_seq` is planned over tables that have it; so its wildcards over tables are written out as the
//! tables' columns first. Wildcards over subqueries and table functions stay: their columns were chosen by their authors.

use std::collections::HashSet;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    self, Expr, Ident, JoinConstraint, JoinOperator, ObjectName, Query, Select, SelectItem,
    SelectItemQualifiedWildcardKind, TableFactor, TableWithJoins, VisitMut, VisitorMut,
    WildcardAdditionalOptions,
};

use super::cursor::{fold, qualified};
use super::execution::Execution;
use super::planner::View;
use crate::error::{Error, Result};

/// Writes out the wildcards of a statement that sees tables as `view` says.
///
/// # Errors
/// 0A000 for a wildcard that cannot be written out, and for NATURAL JOIN where it would join on `_seq` too.
pub(crate) fn expand(statement: &mut ast::Statement, execution: &Execution, view: View) -> Result<()> {
    let mut expander = Expander { execution, view, ctes: Vec::new() };
    match statement.visit(&mut expander) {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) => Ok(()),
    }
}

struct Expander<'a> {
    execution: &'a Execution,
    view: View,
    /// Names of common table expressions, which hide tables; one set for each query around.
    ctes: Vec<HashSet<String>>,
}

impl VisitorMut for Expander<'_> {
    type Break = Error;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<Error> {
        let names = query.with.iter().flat_map(|with| &with.cte_tables).map(|cte| fold(&cte.alias.name));
        self.ctes.push(names.collect());
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<Error> {
        self.ctes.pop();
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<Error> {
        if self.view.names_seq && select.from.iter().any(is_natural) {
            return ControlFlow::Break(
                Error::unsupported("NATURAL JOIN in a statement with _seq")
                    .hint("name the columns to join on with USING (...)"),
            );
        }
        match self.expand_select(select) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error),
        }
    }
}

/// A table or subquery of a FROM clause.
struct Source {
    /// What its columns can be qualified with.
    qualifier: Option<Vec<Ident>>,
    /// Its visible columns, where it is a table of ours.
    columns: Option<Vec<String>>,
    /// Columns a USING join shows once, on the other side.
    merged: HashSet<String>,
}

impl Expander<'_> {
    fn expand_select(&self, select: &mut Select) -> Result<()> {
        let is_wildcard =
            |item: &SelectItem| matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..));
        if !select.projection.iter().any(is_wildcard) {
            return Ok(());
        }
        let sources = self.sources(select)?;
        if sources.iter().all(|source| source.columns.is_none()) {
            return Ok(());
        }
        let mut projection = Vec::with_capacity(select.projection.len());
        for item in select.projection.drain(..) {
            match item {
                SelectItem::Wildcard(options) => {
                    plain(&options)?;
                    for source in &sources {
                        source.write_out(&mut projection, true)?;
                    }
                }
                SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), options) => {
                    match sources.iter().find(|source| source.answers_to(&name)) {
                        Some(source) if source.columns.is_some() => {
                            plain(&options)?;
                            source.write_out(&mut projection, false)?;
                        }
                        _ => projection.push(SelectItem::QualifiedWildcard(
                            SelectItemQualifiedWildcardKind::ObjectName(name),
                            options,
                        )),
                    }
                }
                other => projection.push(other),
            }
        }
        select.projection = projection;
        Ok(())
    }

    fn sources(&self, select: &Select) -> Result<Vec<Source>> {
        let mut sources = Vec::new();
        for from in &select.from {
            self.add(&from.relation, &mut sources)?;
            for join in &from.joins {
                let before = sources.len();
                self.add(&join.relation, &mut sources)?;
                merge(&mut sources, before, constraint(&join.join_operator))?;
            }
        }
        Ok(sources)
    }

    fn add(&self, factor: &TableFactor, sources: &mut Vec<Source>) -> Result<()> {
        let source = match factor {
            TableFactor::Table { name, alias, args: None, .. } => {
                let renamed = alias.as_ref().is_some_and(|alias| !alias.columns.is_empty());
                let columns = if renamed { None } else { self.columns(name)? };
                let qualifier = match alias {
                    Some(alias) => vec![alias.name.clone()],
                    None => name.0.iter().filter_map(|part| part.as_ident().cloned()).collect(),
                };
                Source { qualifier: Some(qualifier), columns, merged: HashSet::new() }
            }
            TableFactor::NestedJoin { table_with_joins, alias: None } => {
                self.add(&table_with_joins.relation, sources)?;
                for join in &table_with_joins.joins {
                    let before = sources.len();
                    self.add(&join.relation, sources)?;
                    merge(sources, before, constraint(&join.join_operator))?;
                }
                return Ok(());
            }
            TableFactor::Table { alias, .. }
            | TableFactor::Derived { alias, .. }
            | TableFactor::TableFunction { alias, .. }
            | TableFactor::Function { alias, .. }
            | TableFactor::UNNEST { alias, .. } => {
                let qualifier = alias.as_ref().map(|alias| vec![alias.name.clone()]);
                Source { qualifier, columns: None, merged: HashSet::new() }
            }
            _ => Source { qualifier: None, columns: None, merged: HashSet::new() },
        };
        sources.push(source);
        Ok(())
    }

    /// The visible columns of a table of ours; `None` for a common table expression and for foreign tables.
    fn columns(&self, name: &ObjectName) -> Result<Option<Vec<String>>> {
        let name = qualified(name, "table")?;
        let is_cte = name.namespace.is_none() && self.ctes.iter().any(|names| names.contains(&name.name));
        if is_cte || self.execution.namespace_of(&name) == super::INFORMATION_SCHEMA {
            return Ok(None);
        }
        let table = self.execution.readable(&name)?;
        Ok(Some(table.columns.iter().map(|column| column.name.to_string()).collect()))
    }
}

fn constraint(operator: &JoinOperator) -> Option<&JoinConstraint> {
    match operator {
        JoinOperator::Join(constraint)
        | JoinOperator::Inner(constraint)
        | JoinOperator::Left(constraint)
        | JoinOperator::LeftOuter(constraint)
        | JoinOperator::Right(constraint)
        | JoinOperator::RightOuter(constraint)
        | JoinOperator::FullOuter(constraint) => Some(constraint),
        _ => None,
    }
}

fn is_natural(from: &TableWithJoins) -> bool {
    let nests = |factor: &TableFactor| matches!(factor, TableFactor::NestedJoin { table_with_joins, .. } if is_natural(table_with_joins));
    nests(&from.relation)
        || from.joins.iter().any(|join| {
            nests(&join.relation)
                || matches!(
                    join.join_operator,
                    JoinOperator::Join(JoinConstraint::Natural)
                        | JoinOperator::Inner(JoinConstraint::Natural)
                        | JoinOperator::Left(JoinConstraint::Natural)
                        | JoinOperator::LeftOuter(JoinConstraint::Natural)
                        | JoinOperator::Right(JoinConstraint::Natural)
                        | JoinOperator::RightOuter(JoinConstraint::Natural)
                        | JoinOperator::FullOuter(JoinConstraint::Natural)
                        | JoinOperator::Semi(JoinConstraint::Natural)
                        | JoinOperator::LeftSemi(JoinConstraint::Natural)
                        | JoinOperator::RightSemi(JoinConstraint::Natural)
                        | JoinOperator::Anti(JoinConstraint::Natural)
                        | JoinOperator::LeftAnti(JoinConstraint::Natural)
                        | JoinOperator::RightAnti(JoinConstraint::Natural)
                )
        })
}

fn merge(sources: &mut [Source], right: usize, constraint: Option<&JoinConstraint>) -> Result<()> {
    let shared: HashSet<String> = match constraint {
        Some(JoinConstraint::Using(columns)) => columns
            .iter()
            .filter_map(|column| column.0.last().and_then(|part| part.as_ident()).map(fold))
            .collect(),
        Some(JoinConstraint::Natural) => {
            return Err(Error::unsupported("NATURAL JOIN in a statement with _seq and *")
                .hint("write out the columns"));
        }
        _ => return Ok(()),
    };
    for source in sources.iter_mut().skip(right) {
        source.merged.extend(shared.iter().cloned());
    }
    Ok(())
}

impl Source {
    fn answers_to(&self, name: &ObjectName) -> bool {
        let Some(qualifier) = &self.qualifier else { return false };
        let wanted: Vec<_> = name.0.iter().filter_map(|part| part.as_ident().map(fold)).collect();
        let own: Vec<_> = qualifier.iter().map(fold).collect();
        own.ends_with(&wanted)
    }

    fn write_out(&self, projection: &mut Vec<SelectItem>, of_all: bool) -> Result<()> {
        let qualifier = || self.qualifier.clone().unwrap_or_default();
        let Some(columns) = &self.columns else {
            let qualifier = qualifier();
            if qualifier.is_empty() {
                return Err(Error::unsupported(
                    "* over a subquery without an alias in a statement with _seq",
                )
                .hint("give the subquery an alias"));
            }
            projection.push(SelectItem::QualifiedWildcard(
                SelectItemQualifiedWildcardKind::ObjectName(ObjectName::from(qualifier)),
                WildcardAdditionalOptions::default(),
            ));
            return Ok(());
        };
        for column in columns.iter().filter(|column| !of_all || !self.merged.contains(*column)) {
            let mut parts = qualifier();
            parts.push(Ident::with_quote('"', column));
            projection.push(SelectItem::UnnamedExpr(Expr::CompoundIdentifier(parts)));
        }
        Ok(())
    }
}

/// `* EXCEPT (...)` and its relatives would have to be applied here too.
fn plain(options: &WildcardAdditionalOptions) -> Result<()> {
    let is_plain = options.opt_ilike.is_none()
        && options.opt_exclude.is_none()
        && options.opt_except.is_none()
        && options.opt_replace.is_none()
        && options.opt_rename.is_none();
    if is_plain {
        return Ok(());
    }
    Err(Error::unsupported("* with EXCEPT, REPLACE or RENAME in a statement with _seq")
        .hint("write out the columns"))
}
