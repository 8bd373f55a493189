//! Subqueries that aggregate rows with expressions equal to the outer columns. This common kind becomes a
//! LEFT JOIN with the groups of the inner rows and needs no domain.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, JoinType, NullEquality, Result, ScalarValue};
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{
    Aggregate, Expr, Filter, LogicalPlan, LogicalPlanBuilder, Operator, Projection, lit, when,
};

use super::builders::{default_of, first_column, join, named};
use super::outer::{Bindings, bind, has_subquery, is_correlated, outer_columns};
use super::{Input, Rewriter};

/// Outer columns, and the expressions that they equal.
type Keys = Vec<(Column, Expr)>;

/// A subquery that is one aggregation over rows in which some expressions equal the outer columns.
pub(super) struct EqualAggregate {
    pub(super) rows: LogicalPlan,
    /// The outer columns, and the expressions over `rows` that they equal.
    pub(super) keys: Keys,
    pub(super) aggregates: Vec<Expr>,
    /// The subquery's value, over the columns of the aggregation.
    pub(super) value: Expr,
    /// The subquery's value without rows; `None` if that is NULL.
    pub(super) empty_value: Option<Expr>,
}

impl EqualAggregate {
    pub(super) fn of(plan: &LogicalPlan) -> Result<Option<Self>> {
        let mut value = first_column(plan);
        let mut conditions: Vec<Expr> = Vec::new();
        let mut plan = plan;
        let aggregate = loop {
            match plan {
                LogicalPlan::Projection(projection) => {
                    value = through(value, projection)?;
                    conditions = conditions
                        .into_iter()
                        .map(|condition| through(condition, projection))
                        .collect::<Result<_>>()?;
                    plan = &projection.input;
                }
                LogicalPlan::SubqueryAlias(alias) => {
                    let inner = alias.input.schema().columns();
                    let columns: HashMap<Column, Expr> =
                        alias.schema.columns().into_iter().zip(inner.into_iter().map(Expr::Column)).collect();
                    value = replaced(value, &columns)?;
                    conditions =
                        conditions.into_iter().map(|one| replaced(one, &columns)).collect::<Result<_>>()?;
                    plan = &alias.input;
                }
                LogicalPlan::Filter(filter) => {
                    conditions.push(filter.predicate.clone());
                    plan = &filter.input;
                }
                LogicalPlan::Aggregate(aggregate) if aggregate.group_expr.is_empty() => break aggregate,
                _ => return Ok(None),
            }
        };
        let has_outer_above = std::iter::once(&value).chain(&conditions).chain(&aggregate.aggr_expr);
        if has_outer_above.into_iter().any(may_be_correlated) {
            return Ok(None);
        }
        let Some((rows, keys)) = equal_rows(&aggregate.input)? else { return Ok(None) };
        let value = match conjunction(conditions) {
            None => value,
            Some(having) => when(having, value).end()?,
        };
        let defaults: HashMap<Column, Expr> = aggregate
            .schema
            .columns()
            .into_iter()
            .zip(&aggregate.aggr_expr)
            .zip(aggregate.schema.fields())
            .map(|((column, expr), field)| {
                let null = || ScalarValue::try_from(field.data_type()).map(lit);
                Ok((column, default_of(expr, field.data_type()).map_or_else(null, Ok)?))
            })
            .collect::<Result<_>>()?;
        let none = replaced(value.clone(), &defaults)?;
        let is_null = matches!(&none, Expr::Literal(value, _) if value.is_null());
        Ok(Some(Self {
            rows,
            keys,
            aggregates: aggregate.aggr_expr.clone(),
            value,
            empty_value: (!is_null).then_some(none),
        }))
    }
}

impl Rewriter {
    /// Replaces an aggregation over rows equal to the outer columns by a LEFT JOIN with its groups.
    pub(super) fn equal_aggregate(&mut self, shape: &EqualAggregate, input: &mut Input) -> Result<Expr> {
        let (value_name, found_name) = (self.name("value"), self.name("found"));
        let keys: Vec<(Column, Expr, String)> =
            shape.keys.iter().map(|(column, key)| (column.clone(), key.clone(), self.name("key"))).collect();
        let rows = self.plan(shape.rows.clone())?;
        let groups = keys.iter().map(|(_, key, name)| key.clone().alias(name)).collect();
        let grouped = Aggregate::try_new(Arc::new(rows), groups, shape.aggregates.clone())?;
        let mut exprs: Vec<Expr> = keys.iter().map(|(_, _, name)| named(name)).collect();
        exprs.push(shape.value.clone().alias(&value_name));
        exprs.push(lit(true).alias(&found_name));
        let right = LogicalPlanBuilder::from(LogicalPlan::Aggregate(grouped)).project(exprs)?.build()?;
        let on = keys.iter().map(|(column, _, name)| (Expr::Column(column.clone()), named(name))).collect();
        let left = std::mem::take(&mut input.plan);
        input.plan = join(left, right, on, None, JoinType::Left, NullEquality::NullEqualsNothing)?;
        let value = named(&value_name);
        Ok(match &shape.empty_value {
            None => value,
            Some(none) => when(named(&found_name).is_null(), none.clone()).otherwise(value)?,
        })
    }
}

fn may_be_correlated(expr: &Expr) -> bool {
    expr.contains_outer() || has_subquery(expr).unwrap_or(true)
}

/// Removes the correlation from the rows below an aggregation; returns them and what the outer columns equal.
/// `None` for any other correlation.
fn equal_rows(plan: &LogicalPlan) -> Result<Option<(LogicalPlan, Keys)>> {
    let wanted = outer_columns(plan)?;
    match plan {
        LogicalPlan::Filter(filter) => {
            let (rows, mut keys) = if is_correlated(&filter.input)? {
                let Some(below) = equal_rows(&filter.input)? else { return Ok(None) };
                below
            } else {
                (LogicalPlan::clone(&filter.input), Vec::new())
            };
            let mut bindings: Bindings = keys.iter().cloned().collect();
            let mut rest = Vec::new();
            for condition in split_conjunction_owned(filter.predicate.clone()) {
                match equality(&condition) {
                    Some((column, key)) if !bindings.contains_key(&column) => {
                        bindings.insert(column.clone(), key.clone());
                        rest.push(key.clone().is_not_null());
                        keys.push((column, key));
                    }
                    _ => rest.push(condition),
                }
            }
            if wanted.iter().any(|outer| !bindings.contains_key(&outer.column)) {
                return Ok(None);
            }
            let rest = rest
                .into_iter()
                .map(|one| bind(one, &bindings, rows.schema()))
                .collect::<Result<Vec<_>>>()?;
            let rows = match conjunction(rest) {
                Some(predicate) => LogicalPlan::Filter(Filter::try_new(predicate, Arc::new(rows))?),
                None => rows,
            };
            Ok(Some((rows, keys)))
        }
        LogicalPlan::Projection(projection) if !projection.expr.iter().any(may_be_correlated) => {
            let Some((rows, keys)) = equal_rows(&projection.input)? else { return Ok(None) };
            let mut exprs = projection.expr.clone();
            let mut shown = Vec::with_capacity(keys.len());
            for (position, (column, key)) in keys.into_iter().enumerate() {
                let name = format!("__key_below_{position}_{}", projection.expr.len());
                exprs.push(key.alias(&name));
                shown.push((column, named(&name)));
            }
            let rows = LogicalPlanBuilder::from(rows).project(exprs)?.build()?;
            Ok(Some((rows, shown)))
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let Some((rows, keys)) = equal_rows(&alias.input)? else { return Ok(None) };
            let inner = alias.input.schema().columns();
            if rows.schema().columns() != inner {
                return Ok(None);
            }
            let columns: HashMap<Column, Expr> =
                inner.into_iter().zip(alias.schema.columns().into_iter().map(Expr::Column)).collect();
            let keys = keys
                .into_iter()
                .map(|(column, key)| Ok((column, replaced(key, &columns)?)))
                .collect::<Result<Vec<_>>>()?;
            let rows = LogicalPlanBuilder::from(rows).alias(alias.alias.clone())?.build()?;
            Ok(Some((rows, keys)))
        }
        _ => Ok(None),
    }
}

/// Splits `inner = outer` or `outer = inner`: the outer side is one outer column, the inner side has none.
fn equality(condition: &Expr) -> Option<(Column, Expr)> {
    let Expr::BinaryExpr(binary) = condition else { return None };
    if binary.op != Operator::Eq {
        return None;
    }
    let pair = |outer: &Expr, inner: &Expr| match outer {
        Expr::OuterReferenceColumn(_, column)
            if !inner.contains_outer() && !has_subquery(inner).unwrap_or(true) && !inner.is_volatile() =>
        {
            Some((column.clone(), inner.clone()))
        }
        _ => None,
    };
    pair(&binary.left, &binary.right).or_else(|| pair(&binary.right, &binary.left))
}

/// Rewrites an expression over a projection's columns as one over its input's columns.
fn through(expr: Expr, projection: &Projection) -> Result<Expr> {
    let exprs = projection.expr.iter().cloned().map(Expr::unalias);
    replaced(expr, &projection.schema.columns().into_iter().zip(exprs).collect())
}

fn replaced(expr: Expr, columns: &HashMap<Column, Expr>) -> Result<Expr> {
    let replaced = expr.transform_up(|part| match &part {
        Expr::Column(column) => Ok(match columns.get(column) {
            Some(value) => Transformed::yes(value.clone()),
            None => Transformed::no(part),
        }),
        _ => Ok(Transformed::no(part)),
    })?;
    Ok(replaced.data)
}
