//! The columns that a subquery takes from the enclosing query.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::datatypes::FieldRef;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, Result, TableReference};
use datafusion::logical_expr::expr::{Exists, InSubquery, SetComparison};
use datafusion::logical_expr::{Expr, Join, LogicalPlan, Subquery};

use super::super::walk::schema_of_inputs;
use crate::error::Error;

/// A column of the enclosing query, and its field.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct OuterColumn {
    pub(super) column: Column,
    pub(super) field: FieldRef,
}

/// Returns the columns that a plan or its subqueries reference and no part of the plan has, each once.
pub(super) fn outer_columns(plan: &LogicalPlan) -> Result<Vec<OuterColumn>> {
    let mut found = Vec::new();
    plan.apply(|node| {
        let join = if let LogicalPlan::Join(join) = node { Some(join) } else { None };
        if let Some(join) = join {
            // The right side may reference columns of the left side, as LATERAL does.
            let within = outer_columns(&join.right)?.into_iter();
            within
                .filter(|inner| !has_column(join.left.schema(), &inner.column))
                .chain(outer_columns(&join.left)?)
                .for_each(|column| note(&mut found, column));
        }
        let mut schema = None;
        node.apply_expressions(|expr| {
            expr.apply(|part| {
                if let Expr::OuterReferenceColumn(field, column) = part {
                    note(&mut found, OuterColumn { column: column.clone(), field: Arc::clone(field) });
                }
                if let Some(subquery) = subquery_of(part) {
                    let schema = match &schema {
                        Some(schema) => schema,
                        None => schema.insert(schema_of_inputs(node)?),
                    };
                    let inner = outer_columns(&subquery.subquery)?.into_iter();
                    inner
                        .filter(|inner| !has_column(schema, &inner.column))
                        .for_each(|inner| note(&mut found, inner));
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })?;
        Ok(if join.is_some() { TreeNodeRecursion::Jump } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}

/// Returns whether a plan references columns of the enclosing query.
pub(super) fn is_correlated(plan: &LogicalPlan) -> Result<bool> {
    Ok(!outer_columns(plan)?.is_empty())
}

/// Returns a join's right side and alias, if it references columns of the left side, as LATERAL does.
pub(super) fn lateral_side(join: &Join) -> Result<Option<(&LogicalPlan, Option<&TableReference>)>> {
    let (plan, alias) = match &*join.right {
        LogicalPlan::Subquery(subquery) => (&*subquery.subquery, None),
        LogicalPlan::SubqueryAlias(alias) => match &*alias.input {
            LogicalPlan::Subquery(subquery) => (&*subquery.subquery, Some(&alias.alias)),
            _ => (&*join.right, None),
        },
        other => (other, None),
    };
    let is_lateral = outer_columns(plan)?.iter().any(|outer| has_column(join.left.schema(), &outer.column));
    Ok(is_lateral.then_some((plan, alias)))
}

fn note(found: &mut Vec<OuterColumn>, column: OuterColumn) {
    if !found.iter().any(|known| known.column == column.column) {
        found.push(column);
    }
}

pub(super) fn has_column(schema: &DFSchema, column: &Column) -> bool {
    schema.maybe_index_of_column(column).is_some()
}

/// Returns the subquery that an expression node itself contains, if any.
pub(super) fn subquery_of(expr: &Expr) -> Option<&Subquery> {
    match expr {
        Expr::Exists(Exists { subquery, .. })
        | Expr::InSubquery(InSubquery { subquery, .. })
        | Expr::SetComparison(SetComparison { subquery, .. })
        | Expr::ScalarSubquery(subquery) => Some(subquery),
        _ => None,
    }
}

/// Returns whether an expression contains a subquery.
pub(super) fn has_subquery(expr: &Expr) -> Result<bool> {
    expr.exists(|part| Ok(subquery_of(part).is_some()))
}

/// Replacements of outer columns: expressions over the columns of a node.
pub(super) type Bindings = HashMap<Column, Expr>;

/// Replaces outer columns in `expr` of a node whose inputs have `schema`, also in subqueries.
pub(super) fn bind(expr: Expr, bindings: &Bindings, schema: &DFSchema) -> Result<Expr> {
    let bound = expr.transform_up(|part| match &part {
        Expr::OuterReferenceColumn(_, column) => match bindings.get(column) {
            Some(value) => Ok(Transformed::yes(value.clone())),
            None => Ok(Transformed::no(part)),
        },
        _ => match subquery_of(&part) {
            Some(subquery) => {
                let plan = bind_within(&subquery.subquery, bindings, schema)?;
                Ok(Transformed::yes(with_plan(part, plan)?))
            }
            None => Ok(Transformed::no(part)),
        },
    })?;
    Ok(bound.data)
}

/// Replaces outer columns in a subquery of a node; columns of `schema`, the node's inputs, stay.
pub(super) fn bind_within(plan: &LogicalPlan, bindings: &Bindings, schema: &DFSchema) -> Result<LogicalPlan> {
    let mut inner = Bindings::new();
    for (column, value) in bindings.iter().filter(|(column, _)| !has_column(schema, column)) {
        inner.insert(column.clone(), as_outer(value.clone(), schema)?);
    }
    if inner.is_empty() {
        return Ok(plan.clone());
    }
    let bound = plan.clone().transform_up(|node| {
        let schema = schema_of_inputs(&node)?;
        let node = node.map_expressions(|expr| bind(expr, &inner, &schema).map(Transformed::yes))?;
        Ok(Transformed::yes(node.data.recompute_schema()?))
    })?;
    Ok(bound.data)
}

/// Rewrites an expression over a node's columns for use in a subquery of the node.
pub(super) fn as_outer(expr: Expr, schema: &DFSchema) -> Result<Expr> {
    let outer = expr.transform_up(|part| match part {
        Expr::Column(column) => {
            let (qualifier, field) = schema.qualified_field(schema.index_of_column(&column)?);
            let column = Column::from((qualifier, field));
            Ok(Transformed::yes(Expr::OuterReferenceColumn(Arc::clone(field), column)))
        }
        other => Ok(Transformed::no(other)),
    })?;
    Ok(outer.data)
}

/// Replaces the plan of an expression's subquery.
pub(super) fn with_plan(expr: Expr, plan: LogicalPlan) -> Result<Expr> {
    let replaced = |subquery: &Subquery| {
        let outer_ref_columns = plan.all_out_ref_exprs();
        Subquery { subquery: Arc::new(plan.clone()), outer_ref_columns, spans: subquery.spans.clone() }
    };
    Ok(match expr {
        Expr::Exists(Exists { subquery, negated }) => {
            Expr::Exists(Exists { subquery: replaced(&subquery), negated })
        }
        Expr::InSubquery(InSubquery { expr, subquery, negated }) => {
            Expr::InSubquery(InSubquery { expr, subquery: replaced(&subquery), negated })
        }
        Expr::SetComparison(comparison) => {
            let subquery = replaced(&comparison.subquery);
            Expr::SetComparison(SetComparison { subquery, ..comparison })
        }
        Expr::ScalarSubquery(subquery) => Expr::ScalarSubquery(replaced(&subquery)),
        other => other,
    })
}

/// Refuses an aggregate of outer columns only, which in SQL belongs to the enclosing query.
///
/// # Errors
/// 0A000.
pub(in crate::sql::workarounds) fn refuse_outer_aggregates(
    expr: Expr,
    _: &DFSchema,
) -> Result<Transformed<Expr>> {
    if let Expr::AggregateFunction(call) = &expr {
        let args = &call.params.args;
        let is_outer = args.iter().any(Expr::contains_outer);
        if is_outer && args.iter().all(|arg| arg.column_refs().is_empty()) {
            return Err(Error::unsupported(format!(
                "{}() over columns of the enclosing query only",
                call.func.name()
            ))
            .hint("compute it in a subquery in FROM of that query")
            .into());
        }
    }
    Ok(Transformed::no(expr))
}
