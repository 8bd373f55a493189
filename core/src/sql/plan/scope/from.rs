//! Resolves FROM: the columns of its tables, subqueries and functions, and of their joins.

use std::sync::Arc;

use datafusion::sql::sqlparser::ast::{
    self, BinaryOperator, Expr, FunctionArg, FunctionArgExpr, Ident, JoinConstraint, JoinOperator,
    ObjectName, ObjectNamePart, SelectItem, TableAlias, TableFactor, TableWithJoins,
};

use super::level::{Found, Level, Output, Shown, Source};
use super::{Resolver, aliased};
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::failpoint::is_planted;
use crate::sql::syntax_tree::{self, fold};
use crate::sql::text::cursor::qualified;

/// Table functions with one column, and the planner's name for it.
const VALUE_FUNCTIONS: [&str; 2] = ["generate_series", "range"];
const VALUE: &str = "value";

impl Resolver<'_> {
    pub(super) fn from(&mut self, item: &mut TableWithJoins, level: &mut Level<'_>) -> Result<()> {
        let start = level.shown.len();
        self.factor(&mut item.relation, level)?;
        for join in &mut item.joins {
            let right = level.shown.len();
            self.factor(&mut join.relation, level)?;
            self.join(&mut join.join_operator, start, right, level)?;
        }
        Ok(())
    }

    fn factor(&mut self, factor: &mut TableFactor, level: &mut Level<'_>) -> Result<()> {
        match factor {
            TableFactor::Table { name, alias, args: None, .. } => {
                let source = self.table(name, alias, level)?;
                add(level, self.rename_if_hidden(source, alias));
            }
            TableFactor::Table { name, alias, args: Some(args), .. } => {
                self.arguments(&mut args.args, level)?;
                let source = function(name, alias);
                add(level, self.rename_if_hidden(source, alias));
            }
            TableFactor::Function { name, alias, args, .. } => {
                self.arguments(args, level)?;
                let source = function(name, alias);
                add(level, self.rename_if_hidden(source, alias));
            }
            TableFactor::Derived { lateral, subquery, alias, .. } => {
                let outputs = self.query(subquery, if *lateral { Some(level) } else { level.outer })?;
                let named = alias.get_or_insert_with(|| generated_alias(level.sources.len()));
                let source = Source::new(vec![named.name.clone()], aliased(outputs, named));
                add(level, self.rename_if_hidden(source, alias));
            }
            TableFactor::UNNEST { alias, array_exprs, .. } => {
                for expr in array_exprs.iter_mut() {
                    self.expr(expr, level)?;
                }
                let source = self.unnest(alias, array_exprs.len());
                add(level, self.rename_if_hidden(source, alias));
            }
            TableFactor::NestedJoin { table_with_joins, alias } => match alias.take() {
                None => self.from(table_with_joins, level)?,
                Some(alias) => {
                    // Under its alias a join has the columns of `*`.
                    let all = vec![SelectItem::Wildcard(ast::WildcardAdditionalOptions::default())];
                    let from = TableWithJoins::clone(table_with_joins);
                    let subquery = Box::new(syntax_tree::select(all, from, None));
                    *factor =
                        TableFactor::Derived { lateral: false, subquery, alias: Some(alias), sample: None };
                    self.factor(factor, level)?;
                }
            },
            _ => add(level, Source::new(Vec::new(), None)),
        }
        Ok(())
    }

    /// Resolves a common table expression or a table of the database.
    fn table(
        &mut self,
        name: &mut ObjectName,
        alias: &mut Option<TableAlias>,
        level: &Level<'_>,
    ) -> Result<Source> {
        let parts: Vec<Ident> = name.0.iter().filter_map(|part| part.as_ident().cloned()).collect();
        let known = match parts.as_slice() {
            [single] => level.cte(&fold(single)),
            _ => None,
        };
        let Some(cte) = known else {
            let columns = self.names.columns(&qualified(name, "table")?, self.visibility)?;
            let qualifier = alias.as_ref().map_or(parts, |alias| vec![alias.name.clone()]);
            let outputs = columns.names.into_iter().map(Output::plain).collect();
            let outputs = match alias {
                Some(alias) => aliased(Some(outputs), alias),
                None => Some(outputs),
            };
            return Ok(Source { has_hidden: columns.has_hidden, ..Source::new(qualifier, outputs) });
        };
        if cte.internal != cte.name {
            alias.get_or_insert_with(|| alias_named(&cte.name));
            name.0 = vec![ObjectNamePart::Identifier(Ident::with_quote('"', &*cte.internal))];
        }
        let columns = cte.columns.clone();
        Ok(match alias {
            Some(alias) => Source::new(vec![alias.name.clone()], aliased(columns, alias)),
            None => Source::new(parts, columns),
        })
    }

    /// Gives a source an internal name if an inner query has a column of the same name.
    fn rename_if_hidden(&mut self, mut source: Source, alias: &mut Option<TableAlias>) -> Source {
        let name = source.qualifier.last().map(fold).unwrap_or_default();
        if self.hidden.contains(&name) {
            let internal = Ident::with_quote('"', &*self.other_name(&name));
            alias.get_or_insert_with(|| alias_named(&name)).name = internal.clone();
            source.internal = Some(internal);
        }
        source
    }

    fn arguments(&mut self, args: &mut [FunctionArg], level: &Level<'_>) -> Result<()> {
        for arg in args {
            let (FunctionArg::Unnamed(arg)
            | FunctionArg::Named { arg, .. }
            | FunctionArg::ExprNamed { arg, .. }) = arg;
            if let FunctionArgExpr::Expr(expr) = arg {
                self.expr(expr, level)?;
            }
        }
        Ok(())
    }

    /// Without a column list, the column of an array is named like the alias.
    fn unnest(&mut self, alias: &mut Option<TableAlias>, width: usize) -> Source {
        let alias = alias.get_or_insert_with(|| alias_named("unnest"));
        let name: Arc<str> = Arc::from(fold(&alias.name));
        let mut columns: Vec<Output> =
            alias.columns.iter().map(|column| Output::plain(fold(&column.name))).collect();
        while columns.len() < width {
            let internal = (!columns.is_empty()).then(|| self.other_name(&name));
            let output = Output { internal, ..Output::plain(Arc::clone(&name)) };
            let ident = Ident::with_quote('"', &**output.reference());
            alias.columns.push(ast::TableAliasColumnDef { name: ident, data_type: None });
            columns.push(output);
        }
        Source::new(vec![alias.name.clone()], Some(columns))
    }

    /// Joins the parts of `shown` from `right` on to those from `left` on.
    fn join(
        &mut self,
        operator: &mut JoinOperator,
        left: usize,
        right: usize,
        level: &mut Level<'_>,
    ) -> Result<()> {
        let kind = Kind::of(operator);
        let mut names = None;
        let constraint = constraint(operator);
        if let Some(JoinConstraint::On(condition)) = constraint {
            let before = std::mem::replace(&mut level.shown_from, left);
            let resolved = self.expr(condition, level);
            level.shown_from = before;
            resolved?;
        }
        let rights = level.shown.split_off(right);
        let lefts = level.shown.split_off(left);
        let mut sides = Sides { lefts, rights, merged: Vec::new() };
        if let Some(constraint) = constraint {
            match constraint {
                JoinConstraint::Using(columns) => {
                    names = Some(columns.iter().map(using_name).collect::<Result<Vec<_>>>()?)
                }
                JoinConstraint::Natural => names = sides.common_names(level),
                JoinConstraint::On(_) | JoinConstraint::None => {}
            }
            if let Some(names) = names
                && let Some(condition) = sides.merge(level, &names, kind)?
            {
                *constraint = JoinConstraint::On(condition);
            }
        }
        level.shown.append(&mut sides.merged);
        if kind != Kind::OnlyRight {
            level.shown.append(&mut sides.lefts);
        }
        if kind != Kind::OnlyLeft {
            level.shown.append(&mut sides.rights);
        }
        Ok(())
    }
}

fn add(level: &mut Level<'_>, source: Source) {
    level.shown.push(Shown::Columns { source: level.sources.len(), without: Vec::new() });
    level.sources.push(source);
}

fn alias_named(name: &str) -> TableAlias {
    TableAlias { explicit: true, name: Ident::with_quote('"', name), columns: Vec::new(), at: None }
}

fn generated_alias(number: usize) -> TableAlias {
    alias_named(&format!("subquery {number} "))
}

fn function(name: &ObjectName, alias: &mut Option<TableAlias>) -> Source {
    let own = name.0.last().and_then(|part| part.as_ident()).map(fold).unwrap_or_default();
    let is_value = VALUE_FUNCTIONS.contains(&own.as_str());
    let alias = alias.get_or_insert_with(|| alias_named(&own));
    let columns = aliased(is_value.then(|| vec![Output::plain(VALUE)]), alias);
    Source { is_value, ..Source::new(vec![alias.name.clone()], columns) }
}

/// The side that a column of USING takes its values from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Left,
    Right,
    Full,
    /// A semi or anti join: the other side has no columns.
    OnlyLeft,
    OnlyRight,
}

impl Kind {
    fn of(operator: &JoinOperator) -> Self {
        if is_planted("using_takes_the_left") {
            return Self::Left;
        }
        match operator {
            JoinOperator::Right(_) | JoinOperator::RightOuter(_) => Self::Right,
            JoinOperator::FullOuter(_) => Self::Full,
            JoinOperator::Semi(_)
            | JoinOperator::LeftSemi(_)
            | JoinOperator::Anti(_)
            | JoinOperator::LeftAnti(_) => Self::OnlyLeft,
            JoinOperator::RightSemi(_) | JoinOperator::RightAnti(_) => Self::OnlyRight,
            _ => Self::Left,
        }
    }
}

fn constraint(operator: &mut JoinOperator) -> Option<&mut JoinConstraint> {
    match operator {
        JoinOperator::Join(constraint)
        | JoinOperator::Inner(constraint)
        | JoinOperator::Left(constraint)
        | JoinOperator::LeftOuter(constraint)
        | JoinOperator::Right(constraint)
        | JoinOperator::RightOuter(constraint)
        | JoinOperator::FullOuter(constraint)
        | JoinOperator::CrossJoin(constraint)
        | JoinOperator::Semi(constraint)
        | JoinOperator::LeftSemi(constraint)
        | JoinOperator::RightSemi(constraint)
        | JoinOperator::Anti(constraint)
        | JoinOperator::LeftAnti(constraint)
        | JoinOperator::RightAnti(constraint)
        | JoinOperator::StraightJoin(constraint) => Some(constraint),
        JoinOperator::CrossApply
        | JoinOperator::OuterApply
        | JoinOperator::AsOf { .. }
        | JoinOperator::ArrayJoin
        | JoinOperator::LeftArrayJoin
        | JoinOperator::InnerArrayJoin => None,
    }
}

fn using_name(name: &ObjectName) -> Result<Arc<str>> {
    match name.0.as_slice() {
        [ObjectNamePart::Identifier(ident)] => Ok(Arc::from(fold(ident))),
        _ => Err(Error::syntax(format!("{name} in USING is not a column name"))),
    }
}

/// The two sides of a join, and their common columns.
struct Sides {
    lefts: Vec<Shown>,
    rights: Vec<Shown>,
    merged: Vec<Shown>,
}

impl Sides {
    /// Returns the common names of a NATURAL join, in left order; `None` where a side is not known.
    fn common_names(&self, level: &Level<'_>) -> Option<Vec<Arc<str>>> {
        level.columns(&self.rights)?;
        let mut names: Vec<Arc<str>> = Vec::new();
        for (column, _) in level.columns(&self.lefts)? {
            let is_common =
                !matches!(level.find_in(&column.name, &self.rights), Found::Missing | Found::Unknown);
            if is_common && !names.contains(&column.name) {
                names.push(column.name);
            }
        }
        Some(names)
    }

    /// Moves the columns out of both sides, and returns the join condition; `None` where a side is not known.
    fn merge(&mut self, level: &Level<'_>, names: &[Arc<str>], kind: Kind) -> Result<Option<Expr>> {
        let mut merged = Vec::with_capacity(names.len());
        let mut conditions = Vec::with_capacity(names.len());
        for name in names {
            let (left, right) =
                (in_using(level, name, &self.lefts, "left")?, in_using(level, name, &self.rights, "right")?);
            let (Some(left), Some(right)) = (left, right) else { return Ok(None) };
            conditions.push(binary(left.clone(), BinaryOperator::Eq, right.clone()));
            let expr = match kind {
                Kind::Left | Kind::OnlyLeft => left,
                Kind::Right | Kind::OnlyRight => right,
                Kind::Full => coalesce(left, right)?,
            };
            merged.push(Shown::Merged { name: Arc::clone(name), expr: Box::new(expr) });
        }
        for side in [&mut self.lefts, &mut self.rights] {
            side.retain(|part| !matches!(part, Shown::Merged { name, .. } if names.contains(name)));
            for part in side {
                if let Shown::Columns { without, .. } = part {
                    without.extend(names.iter().cloned());
                }
            }
        }
        self.merged = merged;
        let all = conditions.into_iter().reduce(|one, other| binary(one, BinaryOperator::And, other));
        Ok(Some(all.unwrap_or_else(|| Expr::value(ast::Value::Boolean(true)))))
    }
}

/// Returns a column of USING on one side; `None` where the side is not known.
fn in_using(level: &Level<'_>, name: &str, side: &[Shown], which: &str) -> Result<Option<Expr>> {
    match level.reference_in(name, side)? {
        Some(expr) => Ok(Some(expr)),
        None if matches!(level.find_in(name, side), Found::Unknown) => Ok(None),
        None => Err(Error::new(
            ErrorKind::NotFound,
            SqlState::UNDEFINED_COLUMN,
            format!("column \"{name}\" of USING does not exist in the {which} table"),
        )),
    }
}

fn binary(left: Expr, op: BinaryOperator, right: Expr) -> Expr {
    Expr::BinaryOp { left: Box::new(left), op, right: Box::new(right) }
}

fn coalesce(left: Expr, right: Expr) -> Result<Expr> {
    let mut written = syntax_tree::expression("coalesce(a, b)")?;
    if let Expr::Function(function) = &mut written
        && let ast::FunctionArguments::List(list) = &mut function.args
    {
        list.args = [left, right].map(|arg| FunctionArg::Unnamed(FunctionArgExpr::Expr(arg))).into();
    }
    Ok(written)
}
