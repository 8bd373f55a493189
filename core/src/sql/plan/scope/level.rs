//! The columns that can be named at a place in a query.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::sync::Arc;

use datafusion::sql::sqlparser::ast::{Expr, Ident};

use super::ambiguous;
use crate::error::Result;
use crate::sql::syntax_tree::fold;

/// A column of a query or a table.
#[derive(Clone, Debug)]
pub(super) struct Output {
    pub(super) name: Arc<str>,
    /// The planner's name, where it differs.
    pub(super) internal: Option<Arc<str>>,
    /// An earlier column has the same name and the same expression.
    pub(super) is_repeated: bool,
}

impl Output {
    pub(super) fn plain(name: impl Into<Arc<str>>) -> Self {
        Self { name: name.into(), internal: None, is_repeated: false }
    }

    pub(super) fn reference(&self) -> &Arc<str> {
        self.internal.as_ref().unwrap_or(&self.name)
    }
}

/// A common table expression.
pub(super) struct Cte {
    pub(super) name: Arc<str>,
    /// The planner's name.
    pub(super) internal: Arc<str>,
    pub(super) columns: Option<Vec<Output>>,
}

/// A table, subquery or function of a FROM clause.
pub(super) struct Source {
    /// The qualifier of its columns.
    pub(super) qualifier: Vec<Ident>,
    /// The planner's name, where it differs.
    pub(super) internal: Option<Ident>,
    /// `None` where they are not known.
    pub(super) columns: Option<Vec<Output>>,
    /// The planner's table has more columns, which no wildcard shows.
    pub(super) has_hidden: bool,
    /// A function with one column, which the function's alias can name too.
    pub(super) is_value: bool,
    pub(super) by_name: OnceCell<HashMap<Arc<str>, Position>>,
}

/// The position of a column name.
#[derive(Clone, Copy)]
pub(super) enum Position {
    At(usize),
    Several,
}

impl Source {
    pub(super) fn new(qualifier: Vec<Ident>, columns: Option<Vec<Output>>) -> Self {
        Self {
            qualifier,
            internal: None,
            columns,
            has_hidden: false,
            is_value: false,
            by_name: OnceCell::new(),
        }
    }

    fn position(&self, name: &str) -> Option<Position> {
        let columns = self.columns.as_ref()?;
        let by_name = self.by_name.get_or_init(|| {
            let mut by_name = HashMap::with_capacity(columns.len());
            for (position, column) in columns.iter().enumerate() {
                by_name
                    .entry(Arc::clone(&column.name))
                    .and_modify(|known| *known = Position::Several)
                    .or_insert(Position::At(position));
            }
            by_name
        });
        by_name.get(name).copied()
    }

    fn column(&self, position: usize) -> Option<&Output> {
        self.columns.as_ref()?.get(position)
    }

    /// Returns a column with its table, as the planner knows it.
    pub(super) fn reference(&self, column: &Output) -> Expr {
        let mut parts = self.planned_qualifier();
        parts.push(Ident::with_quote('"', &**column.reference()));
        Expr::CompoundIdentifier(parts)
    }

    /// Returns the qualifier of the planner's columns.
    pub(super) fn planned_qualifier(&self) -> Vec<Ident> {
        self.internal.as_ref().map_or_else(|| self.qualifier.clone(), |internal| vec![internal.clone()])
    }

    /// Whether `qualifier` in front of a column means this source.
    pub(super) fn answers_to(&self, qualifier: &[Ident]) -> bool {
        let own: Vec<String> = self.qualifier.iter().map(fold).collect();
        let wanted: Vec<String> = qualifier.iter().map(fold).collect();
        own.ends_with(&wanted)
    }
}

/// A part of the columns that `*` shows.
#[derive(Clone)]
pub(super) enum Shown {
    /// A column of USING.
    Merged { name: Arc<str>, expr: Box<Expr> },
    /// The columns of a source, without those of USING.
    Columns { source: usize, without: Vec<Arc<str>> },
}

/// The meaning of a bare name.
pub(super) enum Found {
    Missing,
    /// One column, which the planner finds by that name.
    ByName,
    /// One column, which the planner finds by this expression.
    Rewritten(Box<Expr>),
    Ambiguous,
    /// Possibly a column of a source whose columns are not known.
    Unknown,
}

/// A query or a SELECT, inside its outer levels.
pub(super) struct Level<'o> {
    pub(super) outer: Option<&'o Level<'o>>,
    pub(super) ctes: Vec<Cte>,
    pub(super) sources: Vec<Source>,
    pub(super) shown: Vec<Shown>,
    /// The index in `shown` from which parts can be named: in ON only those of the join can be.
    pub(super) shown_from: usize,
}

impl<'o> Level<'o> {
    pub(super) fn new(outer: Option<&'o Level<'o>>) -> Self {
        Self { outer, ctes: Vec::new(), sources: Vec::new(), shown: Vec::new(), shown_from: 0 }
    }

    pub(super) fn cte(&self, name: &str) -> Option<&Cte> {
        self.ctes
            .iter()
            .rev()
            .find(|cte| *cte.name == *name)
            .or_else(|| self.outer.and_then(|outer| outer.cte(name)))
    }

    /// Returns the meaning of a bare name, here or in an outer level.
    pub(super) fn find(&self, name: &str) -> Found {
        let mut inner = Vec::new();
        let mut level = Some(self);
        while let Some(at) = level {
            match at.find_here(name) {
                Found::Missing => {
                    inner.push(at);
                    level = at.outer;
                }
                // For the planner a name of two outer levels is a name of none.
                Found::ByName if !inner.is_empty() && at.outer.is_some_and(|outer| outer.knows(name)) => {
                    return at.qualified(name, &inner).unwrap_or(Found::ByName);
                }
                found => return found,
            }
        }
        Found::Missing
    }

    fn knows(&self, name: &str) -> bool {
        !matches!(self.find(name), Found::Missing)
    }

    /// Returns a column of this level with its table, unless a level in `inner` hides the table.
    fn qualified(&self, name: &str, inner: &[&Level<'_>]) -> Option<Found> {
        let shown = self.shown.get(self.shown_from..).unwrap_or_default();
        let reference = self.reference_in(name, shown).ok()??;
        let Expr::CompoundIdentifier(parts) = &reference else { return None };
        let (_, qualifier) = parts.split_last()?;
        let first = fold(qualifier.first()?);
        let hides = |source: &Source| source.answers_to(qualifier) || source.position(&first).is_some();
        let is_hidden = inner.iter().any(|level| level.sources.iter().any(hides));
        (!is_hidden).then(|| Found::Rewritten(Box::new(reference)))
    }

    pub(super) fn find_here(&self, name: &str) -> Found {
        let shown = self.shown.get(self.shown_from..).unwrap_or_default();
        match self.find_in(name, shown) {
            Found::Missing => {
                let by_alias = self.sources.iter().find(|source| {
                    source.is_value && source.qualifier.last().is_some_and(|alias| fold(alias) == name)
                });
                match by_alias.and_then(|source| source.column(0).map(|column| source.reference(column))) {
                    Some(value) => Found::Rewritten(Box::new(value)),
                    None => Found::Missing,
                }
            }
            found => found,
        }
    }

    /// Returns the meaning of a bare name among the parts in `shown`.
    pub(super) fn find_in(&self, name: &str, shown: &[Shown]) -> Found {
        let mut found = Found::Missing;
        let mut is_unknown = false;
        for part in shown {
            let here = match part {
                Shown::Merged { name: merged, expr } if **merged == *name => Found::Rewritten(expr.clone()),
                Shown::Merged { .. } => continue,
                Shown::Columns { source, without } => {
                    let Some(source) = self.sources.get(*source) else { continue };
                    is_unknown |= source.columns.is_none();
                    if without.iter().any(|other| **other == *name) {
                        continue;
                    }
                    match source.position(name) {
                        None => continue,
                        Some(Position::Several) => Found::Ambiguous,
                        Some(Position::At(position)) => match source.column(position) {
                            Some(column) if column.internal.is_some() => {
                                Found::Rewritten(Box::new(source.reference(column)))
                            }
                            _ => Found::ByName,
                        },
                    }
                }
            };
            found = if matches!(found, Found::Missing) { here } else { Found::Ambiguous };
        }
        if matches!(found, Found::Missing) && is_unknown { Found::Unknown } else { found }
    }

    /// Returns the expression behind a name in `shown`: `None` for no column, 42702 for several.
    pub(super) fn reference_in(&self, name: &str, shown: &[Shown]) -> Result<Option<Expr>> {
        match self.find_in(name, shown) {
            Found::Rewritten(expr) => Ok(Some(*expr)),
            Found::Ambiguous => Err(ambiguous(name)),
            Found::Missing | Found::Unknown => Ok(None),
            Found::ByName => {
                let source = shown.iter().find_map(|part| match part {
                    Shown::Columns { source, without } if !without.iter().any(|other| **other == *name) => {
                        let source = self.sources.get(*source)?;
                        source.position(name).map(|_| source)
                    }
                    _ => None,
                });
                Ok(source.map(|source| source.reference(&Output::plain(name))))
            }
        }
    }

    /// Gives a qualified column the planner's name. Returns the name of its table if the planner would find
    /// an inner column of that name first.
    pub(super) fn qualify(&self, parts: &mut Vec<Ident>) -> Result<Option<String>> {
        let Some((column, qualifier)) = parts.split_last() else { return Ok(None) };
        let Some(first) = qualifier.first().map(fold) else { return Ok(None) };
        let mut is_hidden = false;
        let mut level = Some(self);
        while let Some(at) = level {
            let Some(source) = at.sources.iter().find(|source| source.answers_to(qualifier)) else {
                is_hidden |= at.sources.iter().any(|source| source.position(&first).is_some());
                level = at.outer;
                continue;
            };
            let name = fold(column);
            let internal = match source.position(&name) {
                Some(Position::Several) => return Err(ambiguous(&name)),
                Some(Position::At(position)) => {
                    source.column(position).and_then(|column| column.internal.as_ref())
                }
                None => None,
            };
            let column = internal.map_or_else(|| column.clone(), |name| Ident::with_quote('"', &**name));
            if source.internal.is_some() {
                *parts = source.planned_qualifier();
                parts.push(column);
                return Ok(None);
            }
            if let Some(last) = parts.last_mut() {
                *last = column;
            }
            return Ok(is_hidden.then(|| source.qualifier.last().map(fold)).flatten());
        }
        Ok(None)
    }

    /// Returns the columns of the parts in `shown`, each with its expression; `None` where one is not known.
    pub(super) fn columns(&self, shown: &[Shown]) -> Option<Vec<(Output, Expr)>> {
        let mut columns = Vec::new();
        for part in shown {
            match part {
                Shown::Merged { name, expr } => {
                    columns.push((Output::plain(Arc::clone(name)), Expr::clone(expr)))
                }
                Shown::Columns { source, without } => {
                    let source = self.sources.get(*source)?;
                    let own =
                        source.columns.as_ref()?.iter().filter(|column| !without.contains(&column.name));
                    columns.extend(own.map(|column| (column.clone(), source.reference(column))));
                }
            }
        }
        Some(columns)
    }
}
