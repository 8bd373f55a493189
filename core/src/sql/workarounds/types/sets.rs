//! Chooses the types of the columns of VALUES, UNION, INTERSECT and EXCEPT, and of the keys of joins.
//!
//! DataFusion makes floats beside decimals `DECIMAL(30,15)`, which holds few floats exactly; here they stay
//! floats. INTERSECT and EXCEPT are joins.

use std::mem::take;
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{Column, DFSchema, Result};
use datafusion::logical_expr::type_coercion::binary::type_union_coercion;
use datafusion::logical_expr::{Expr, Join, LogicalPlan, LogicalPlanBuilder, Projection, Union};

use super::super::walk::type_of;
use super::casts::{cast_to, converted};
use crate::casts::{is_decimal, is_text};

/// Makes VALUES columns of floats and decimals floats; the planner has already cast them to decimals.
pub(in crate::sql::workarounds) fn unify_values(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    let LogicalPlan::Values(values) = &plan else { return Ok(Transformed::no(plan)) };
    let empty = DFSchema::empty();
    let float = |expr: &Expr| match expr {
        Expr::Cast(cast) if type_of(expr, &empty).as_ref().is_some_and(is_decimal) => {
            type_of(&cast.expr, &empty).filter(DataType::is_floating)
        }
        _ => None,
    };
    let mut rows = values.values.clone();
    let mut is_changed = false;
    for position in 0..values.schema.fields().len() {
        let floats: Vec<DataType> =
            rows.iter().filter_map(|row| row.get(position)).filter_map(float).collect();
        if floats.is_empty() {
            continue;
        }
        let is_double = floats.contains(&DataType::Float64);
        let common = if is_double { DataType::Float64 } else { DataType::Float32 };
        for value in rows.iter_mut().filter_map(|row| row.get_mut(position)) {
            let written = match take(value) {
                Expr::Cast(cast) if type_of(&cast.expr, &empty).is_some_and(|ty| ty.is_numeric()) => {
                    *cast.expr
                }
                other => other,
            };
            *value = converted(written, &common)?;
        }
        is_changed = true;
    }
    if !is_changed {
        return Ok(Transformed::no(plan));
    }
    LogicalPlanBuilder::values(rows)?.build().map(Transformed::yes)
}

/// Unifies the columns of a UNION by position, and the keys of joins.
pub(in crate::sql::workarounds) fn unify_sets(plan: LogicalPlan) -> Result<LogicalPlan> {
    plan.transform_up_with_subqueries(|node| match node {
        LogicalPlan::Union(union) => unify_union(union),
        LogicalPlan::Join(join) => unify_keys(join),
        other => Ok(Transformed::no(other)),
    })
    .map(|rewritten| rewritten.data)
}

fn unify_union(union: Union) -> Result<Transformed<LogicalPlan>> {
    let mut inputs = union.inputs.clone();
    let width = inputs.iter().map(|input| input.schema().fields().len()).min().unwrap_or_default();
    let mut is_changed = false;
    for position in 0..width {
        is_changed |= type_texts(&mut inputs, position)?;
        let types: Vec<DataType> =
            inputs.iter().map(|input| input.schema().field(position).data_type().clone()).collect();
        let Some(common) = common_of_union(&types) else { continue };
        for (input, ty) in inputs.iter_mut().zip(&types) {
            if *ty != common {
                *input = Arc::new(cast_column(input, position, &common)?);
            }
        }
        is_changed = true;
    }
    // The types of the inputs may also have changed below.
    let derived = Union::try_new_with_loose_types(inputs)?;
    let is_stale = derived
        .schema
        .fields()
        .iter()
        .zip(union.schema.fields())
        .any(|(derived, known)| derived.data_type() != known.data_type());
    if is_changed || is_stale {
        return Ok(Transformed::yes(LogicalPlan::Union(derived)));
    }
    Ok(Transformed::no(LogicalPlan::Union(union)))
}

/// The type of a union's column if its inputs mix numbers, or dates and timestamps. Nodes above expect it.
fn common_of_union(types: &[DataType]) -> Option<DataType> {
    let is_one = types.windows(2).all(|pair| pair.first() == pair.last());
    let all = |is: fn(&DataType) -> bool| types.iter().all(is);
    if is_one {
        return None;
    }
    if all(DataType::is_numeric) && types.iter().any(DataType::is_floating) {
        let is_double = types.contains(&DataType::Float64);
        return Some(if is_double { DataType::Float64 } else { DataType::Float32 });
    }
    if all(|ty| ty.is_integer() || is_decimal(ty)) {
        let mut rest = types.iter();
        let first = rest.next()?.clone();
        return rest.try_fold(first, |common, ty| type_union_coercion(&common, ty));
    }
    if all(|ty| matches!(ty, DataType::Date32 | DataType::Timestamp(..))) {
        let zone = types.iter().find_map(|ty| match ty {
            DataType::Timestamp(_, Some(zone)) => Some(Arc::clone(zone)),
            _ => None,
        });
        return Some(DataType::Timestamp(TimeUnit::Microsecond, zone));
    }
    None
}

/// Gives string literals in a union's column the type of the dates and times beside them.
fn type_texts(inputs: &mut [Arc<LogicalPlan>], position: usize) -> Result<bool> {
    let literal = |input: &LogicalPlan| match input {
        LogicalPlan::Projection(projection) => match projection.expr.get(position).map(unaliased) {
            Some(Expr::Literal(value, _)) if is_text(&value.data_type()) => Some(projection.clone()),
            _ => None,
        },
        _ => None,
    };
    let mut types = inputs.iter().filter(|input| literal(input).is_none());
    let Some(common) = types.next().map(|input| input.schema().field(position).data_type().clone()) else {
        return Ok(false);
    };
    if !common.is_temporal() || types.any(|input| *input.schema().field(position).data_type() != common) {
        return Ok(false);
    }
    let mut is_changed = false;
    for input in inputs {
        let Some(mut projection) = literal(input) else { continue };
        if let Some(value) = projection.expr.get_mut(position) {
            let (relation, name) = value.qualified_name();
            *value = converted(unaliased(value).clone(), &common)?.alias_qualified(relation, name);
        }
        *input = Arc::new(LogicalPlan::Projection(Projection::try_new(projection.expr, projection.input)?));
        is_changed = true;
    }
    Ok(is_changed)
}

/// Returns an expression without its aliases.
pub(super) fn unaliased(expr: &Expr) -> &Expr {
    match expr {
        Expr::Alias(alias) => unaliased(&alias.expr),
        other => other,
    }
}

fn unify_keys(mut join: Join) -> Result<Transformed<LogicalPlan>> {
    let mut is_changed = false;
    for (left, right) in &mut join.on {
        let types = type_of(left, join.left.schema()).zip(type_of(right, join.right.schema()));
        let Some(common) = types.and_then(|(left, right)| common_type(&left, &right)) else { continue };
        for key in [left, right] {
            *key = cast_to(take(key), common.clone());
        }
        is_changed = true;
    }
    Ok(Transformed::new_transformed(LogicalPlan::Join(join), is_changed))
}

/// The type to cast two columns to; `None` if DataFusion's choice is right.
pub(super) fn common_type(one: &DataType, other: &DataType) -> Option<DataType> {
    let pair = [one, other];
    let has = |is: fn(&DataType) -> bool| pair.iter().any(|ty| is(ty));
    if has(DataType::is_floating) && has(is_decimal) {
        return Some(DataType::Float64);
    }
    if has(|ty| *ty == DataType::Float32) && has(DataType::is_integer) {
        return Some(DataType::Float64);
    }
    match pair {
        [DataType::Date32, timestamp @ DataType::Timestamp(..)]
        | [timestamp @ DataType::Timestamp(..), DataType::Date32] => Some(timestamp.clone()),
        _ => None,
    }
}

/// Casts one column of `plan`.
pub(super) fn cast_column(plan: &LogicalPlan, position: usize, to: &DataType) -> Result<LogicalPlan> {
    let columns =
        plan.schema().columns().into_iter().enumerate().map(|(place, column)| {
            if place == position { cast_as(column, to) } else { Expr::Column(column) }
        });
    LogicalPlanBuilder::from(plan.clone()).project(columns)?.build()
}

/// Casts a column; it keeps its qualified name.
fn cast_as(column: Column, to: &DataType) -> Expr {
    let (relation, name) = (column.relation.clone(), column.name.clone());
    cast_to(Expr::Column(column), to.clone()).alias_qualified(relation, name)
}
