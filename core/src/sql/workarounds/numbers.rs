//! Which type two values are compared and put together in. Runs before type coercion, which then finds them equal already.
//!
//! | pair | DataFusion 55 | PostgreSQL and here |
//! |---|---|---|
//! | float and decimal | `DECIMAL(30,15)`, in which few floats have their value | DOUBLE |
//! | REAL and an integer | REAL, which holds integers up to 2^24 | DOUBLE |
//! | a literal above 2^63-1 and anything | BIGINT after all, where it becomes NULL | `DECIMAL(20,0)` |
//! | BOOLEAN and a literal text | an error | BOOLEAN |
//! | BYTES and text | text | BYTES |
//! | UUID and text | an error | UUID |

use std::mem::take;
use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{Column, DFSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::{BinaryExpr, InSubquery, SetComparison};
use datafusion::logical_expr::{Expr, Join, LogicalPlan, LogicalPlanBuilder, Operator, Subquery, Union};

use super::casts::cast_to;
use super::walk::type_of;
use crate::casts::{UUID, cast, is_decimal, is_text};

/// Functions whose arguments are brought to one type.
pub(super) const UNIFORM: [&str; 6] = ["coalesce", "nullif", "nvl", "greatest", "least", "make_array"];

/// Brings the parts of one expression to types that mean the same to DataFusion and to PostgreSQL.
pub(super) fn unify(mut expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let is_changed = match &mut expr {
        Expr::Literal(value, _) => match value {
            ScalarValue::UInt64(Some(number)) => {
                *value = ScalarValue::Decimal128(Some(i128::from(*number)), 20, 0);
                true
            }
            _ => false,
        },
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if is_comparison(*op) || is_arithmetic(*op) => {
            unify_parts(&mut [left, right], schema, Reals::Widened)?
        }
        Expr::Between(between) => unify_parts(
            &mut [&mut between.expr, &mut between.low, &mut between.high],
            schema,
            Reals::Widened,
        )?,
        Expr::InList(list) => {
            let mut parts: Vec<&mut Expr> = vec![&mut list.expr];
            parts.extend(&mut list.list);
            unify_parts(&mut parts, schema, Reals::Widened)?
        }
        Expr::Case(case) => {
            let (mut whens, mut thens) = (Vec::new(), Vec::new());
            for (when, then) in &mut case.when_then_expr {
                whens.push(when.as_mut());
                thens.push(then.as_mut());
            }
            thens.extend(case.else_expr.as_deref_mut());
            let is_changed = unify_parts(&mut thens, schema, Reals::Kept)?;
            match case.expr.as_deref_mut() {
                Some(operand) => {
                    whens.push(operand);
                    unify_parts(&mut whens, schema, Reals::Widened)? || is_changed
                }
                None => is_changed,
            }
        }
        Expr::ScalarFunction(call) if UNIFORM.contains(&call.func.name()) => {
            unify_parts(&mut call.args.iter_mut().collect::<Vec<_>>(), schema, Reals::Kept)?
        }
        Expr::InSubquery(InSubquery { expr, subquery, .. })
        | Expr::SetComparison(SetComparison { expr, subquery, .. }) => {
            unify_with_subquery(expr, subquery, schema)?
        }
        _ => false,
    };
    Ok(Transformed::new_transformed(expr, is_changed))
}

/// What becomes of REAL beside an integer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reals {
    Kept,
    /// To DOUBLE, as for a comparison.
    Widened,
}

/// Brings expressions that meet to one kind of type; says whether anything was changed.
fn unify_parts(parts: &mut [&mut Expr], schema: &DFSchema, reals: Reals) -> Result<bool> {
    let types: Vec<Option<DataType>> = parts.iter().map(|part| type_of(part, schema)).collect();
    let has = |is: fn(&DataType) -> bool| types.iter().flatten().any(is);
    let mut is_changed = false;
    let mut each = |is: &dyn Fn(&Expr, &DataType) -> bool, to: &DataType| -> Result<()> {
        for (part, ty) in parts.iter_mut().zip(&types) {
            if ty.as_ref().is_some_and(|ty| is(part, ty)) {
                **part = converted(take(*part), to)?;
                is_changed = true;
            }
        }
        Ok(())
    };
    let has_float = has(DataType::is_floating);
    let widens = reals == Reals::Widened && has(|ty| *ty == DataType::Float32) && has(DataType::is_integer);
    if has_float && (widens || has(is_decimal)) {
        each(&|_, ty| is_decimal(ty) || *ty == DataType::Float32, &DataType::Float64)?;
    }
    if has(|ty| *ty == DataType::Boolean) {
        each(&|part, ty| is_text(ty) && matches!(part, Expr::Literal(..)), &DataType::Boolean)?;
    }
    for ty in [DataType::Binary, UUID] {
        if types.iter().flatten().any(|other| *other == ty) {
            each(&|_, ty| is_text(ty), &ty)?;
        }
    }
    Ok(is_changed)
}

/// Gives a literal text beside a BOOLEAN, BYTES or UUID its value; the planner has no common type for some of these.
pub(super) fn type_literal(left: &mut Expr, right: &mut Expr, schema: &DFSchema) -> Result<()> {
    let (Some(one), Some(other)) = (type_of(left, schema), type_of(right, schema)) else { return Ok(()) };
    for (part, own, other) in [(left, &one, &other), (right, &other, &one)] {
        let takes_type = matches!(other, DataType::Boolean | DataType::Binary) || *other == UUID;
        if takes_type && is_text(own) && matches!(part, Expr::Literal(..)) {
            *part = converted(take(part), other)?;
        }
    }
    Ok(())
}

/// A literal as the value it has in the other type, anything else in a cast.
fn converted(expr: Expr, to: &DataType) -> Result<Expr> {
    match expr {
        Expr::Literal(value, metadata) => {
            let array = cast(&value.to_array()?, to)?;
            Ok(Expr::Literal(ScalarValue::try_from_array(&array, 0)?, metadata))
        }
        other => Ok(cast_to(other, to.clone())),
    }
}

fn unify_with_subquery(expr: &mut Box<Expr>, subquery: &mut Subquery, schema: &DFSchema) -> Result<bool> {
    let inner = subquery.subquery.schema().fields().first().map(|field| field.data_type().clone());
    let (Some(outer), Some(inner)) = (type_of(expr, schema), inner) else { return Ok(false) };
    let Some(common) = common_type(&outer, &inner) else { return Ok(false) };
    if outer != common {
        **expr = converted(take(&mut **expr), &common)?;
    }
    if inner != common {
        let plan = cast_column(&subquery.subquery, 0, &common)?;
        *subquery = subquery.with_plan(Arc::new(plan));
    }
    Ok(true)
}

/// The type two columns are brought to here; `None` where DataFusion's choice is right.
fn common_type(one: &DataType, other: &DataType) -> Option<DataType> {
    let pair = [one, other];
    let has = |is: fn(&DataType) -> bool| pair.iter().any(|ty| is(ty));
    if has(DataType::is_floating) && has(is_decimal) {
        return Some(DataType::Float64);
    }
    if has(|ty| *ty == DataType::Float32) && has(DataType::is_integer) {
        return Some(DataType::Float64);
    }
    None
}

/// `plan` with one column in another type.
fn cast_column(plan: &LogicalPlan, position: usize, to: &DataType) -> Result<LogicalPlan> {
    let columns =
        plan.schema().columns().into_iter().enumerate().map(|(place, column)| {
            if place == position { cast_as(column, to) } else { Expr::Column(column) }
        });
    LogicalPlanBuilder::from(plan.clone()).project(columns)?.build()
}

/// A column in another type, under its own name.
fn cast_as(column: Column, to: &DataType) -> Expr {
    let (relation, name) = (column.relation.clone(), column.name.clone());
    cast_to(Expr::Column(column), to.clone()).alias_qualified(relation, name)
}

/// The same for the columns of set operations, which meet by position: UNION has them in its inputs, INTERSECT and EXCEPT are joins.
pub(super) fn unify_sets(plan: LogicalPlan) -> Result<LogicalPlan> {
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
        let types: Vec<DataType> =
            inputs.iter().map(|input| input.schema().field(position).data_type().clone()).collect();
        let has_float = types.iter().any(DataType::is_floating);
        if !has_float || !types.iter().any(is_decimal) {
            continue;
        }
        for (input, ty) in inputs.iter_mut().zip(&types) {
            if *ty != DataType::Float64 {
                *input = Arc::new(cast_column(input, position, &DataType::Float64)?);
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

pub(super) fn is_comparison(op: Operator) -> bool {
    matches!(
        op,
        Operator::Eq
            | Operator::NotEq
            | Operator::Lt
            | Operator::LtEq
            | Operator::Gt
            | Operator::GtEq
            | Operator::IsDistinctFrom
            | Operator::IsNotDistinctFrom
    )
}

fn is_arithmetic(op: Operator) -> bool {
    matches!(op, Operator::Plus | Operator::Minus | Operator::Multiply | Operator::Divide | Operator::Modulo)
}
