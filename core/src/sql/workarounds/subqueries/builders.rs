//! Builds expressions and nodes that several of the rewrites need.

use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::{Column, DFSchema, JoinConstraint, JoinType, NullEquality, Result};
use datafusion::logical_expr::expr::{AggregateFunction, Alias};
use datafusion::logical_expr::{
    AggregateUDF, EmptyRelation, Expr, Join, LogicalPlan, LogicalPlanBuilder, Union, Values, lit,
};

/// Returns an unqualified column.
pub(super) fn named(name: &str) -> Expr {
    Expr::Column(Column::new_unqualified(name))
}

/// Gives `new` the name of `old`.
pub(super) fn renamed(old: &Expr, new: Expr) -> Result<Expr> {
    let (relation, name) = old.qualified_name();
    if new.qualified_name() == (relation.clone(), name.clone()) {
        return Ok(new);
    }
    Ok(new.alias_qualified(relation, name))
}

/// Returns the first column of a plan.
pub(super) fn first_column(plan: &LogicalPlan) -> Expr {
    let (relation, field) = plan.schema().qualified_field(0);
    Expr::Column(Column::from((relation, field)))
}

/// Returns a call of an aggregate function.
pub(super) fn aggregate(function: Arc<AggregateUDF>, arg: Expr) -> Expr {
    Expr::AggregateFunction(AggregateFunction::new_udf(function, vec![arg], false, None, Vec::new(), None))
}

/// Returns the value of an aggregate of type `ty` over no rows; `None` if that is NULL.
pub(super) fn default_of(expr: &Expr, ty: &DataType) -> Option<Expr> {
    match expr {
        Expr::Alias(Alias { expr, .. }) => default_of(expr, ty),
        Expr::AggregateFunction(AggregateFunction { func, .. }) => {
            let value = func.default_value(ty).ok()?.cast_to(ty).ok()?;
            (!value.is_null()).then(|| lit(value))
        }
        _ => None,
    }
}

/// Builds a join from its parts.
pub(super) fn join(
    left: LogicalPlan,
    right: LogicalPlan,
    on: Vec<(Expr, Expr)>,
    filter: Option<Expr>,
    join_type: JoinType,
    null_equality: NullEquality,
) -> Result<LogicalPlan> {
    let constraint = JoinConstraint::On;
    let join = Join::try_new(
        Arc::new(left),
        Arc::new(right),
        on,
        filter,
        join_type,
        constraint,
        null_equality,
        false,
    )?;
    Ok(LogicalPlan::Join(join))
}

/// Projects `plan` to these columns.
pub(super) fn with_columns(plan: LogicalPlan, columns: Vec<Column>) -> Result<LogicalPlan> {
    if plan.schema().fields().len() == columns.len() {
        return Ok(plan);
    }
    LogicalPlanBuilder::from(plan).project(columns.into_iter().map(Expr::Column))?.build()
}

/// Rewrites VALUES as a UNION ALL of its rows, for rows that are not constant.
pub(super) fn values_as_union(values: &Values) -> Result<LogicalPlan> {
    let names: Vec<String> = values.schema.fields().iter().map(|field| field.name().clone()).collect();
    let inputs = values
        .values
        .iter()
        .map(|row| {
            let one = EmptyRelation { produce_one_row: true, schema: Arc::new(DFSchema::empty()) };
            let exprs = row.iter().zip(&names).map(|(expr, name)| expr.clone().alias(name));
            let row = LogicalPlanBuilder::from(LogicalPlan::EmptyRelation(one)).project(exprs)?.build()?;
            Ok(Arc::new(row))
        })
        .collect::<Result<Vec<_>>>()?;
    match inputs.as_slice() {
        [one] => Ok(LogicalPlan::clone(one)),
        _ => Ok(LogicalPlan::Union(Union::try_new_with_loose_types(inputs)?)),
    }
}
