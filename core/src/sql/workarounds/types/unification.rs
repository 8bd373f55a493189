//! Chooses the type in which values are compared or combined. Runs before type coercion.
//!
//! | pair | DataFusion 55 | PostgreSQL and here |
//! |---|---|---|
//! | float and decimal | `DECIMAL(30,15)`, which holds few floats exactly | DOUBLE |
//! | REAL and an integer | REAL, which holds integers up to 2^24 | DOUBLE |
//! | a literal above 2^63-1 and anything | an unsigned type, which no column has | `DECIMAL(20,0)` |
//! | BOOLEAN and a string literal | an error | BOOLEAN |
//! | BYTES and text | text | BYTES |
//! | UUID and text | an error | UUID |
//! | REAL and a decimal, in a constant list, CASE or UNION | DOUBLE | REAL |
//! | date, time, interval or number and string literal, in CASE or coalesce | text, or an error | the other |
//! | the value and the default of `lag` | the value's type | a common type |

use std::mem::take;
use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::{BinaryExpr, InSubquery, ScalarFunction, SetComparison};
use datafusion::logical_expr::type_coercion::binary::type_union_coercion;
use datafusion::logical_expr::type_coercion::other::get_coerce_type_for_case_expression;
use datafusion::logical_expr::{Expr, Operator, Subquery};

use super::super::walk::type_of;
use super::casts::{cast_to, converted};
use super::days::date_to_timestamp;
use super::kinds::{INTERVAL, UNIFORM, is_arithmetic, is_comparison, is_span};
use super::sets::{cast_column, common_type};
use crate::casts::{UUID, is_decimal, is_text};

/// Casts the parts of an expression to types that mean the same in DataFusion and in PostgreSQL.
pub(in crate::sql::workarounds) fn unify(mut expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let is_changed = match &mut expr {
        Expr::Literal(value, _) => match value {
            ScalarValue::UInt64(Some(number)) => {
                *value = ScalarValue::Decimal128(Some(i128::from(*number)), 20, 0);
                true
            }
            _ => false,
        },
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if is_comparison(*op) || is_arithmetic(*op) => {
            let is_unified = unify_parts(&mut [left, right], schema, Reals::Widened)?;
            let is_moved = matches!(op, Operator::Plus | Operator::Minus)
                && (date_to_timestamp(left, right, schema) || date_to_timestamp(right, left, schema));
            is_unified || is_moved
        }
        Expr::Between(between) => unify_parts(
            &mut [&mut between.expr, &mut between.low, &mut between.high],
            schema,
            Reals::Widened,
        )?,
        Expr::InList(list) => {
            // Constants form an array. They and the value decide its type; then it is compared.
            let is_array = list.list.len() > 1 && list.list.iter().all(|item| item.column_refs().is_empty());
            let mut value = Expr::clone(&list.expr);
            let mut is_changed = false;
            if is_array {
                let items = std::iter::once(&mut value).chain(&mut list.list);
                is_changed = unify_parts(&mut items.collect::<Vec<_>>(), schema, Reals::Kept)?;
            }
            let mut parts: Vec<&mut Expr> = vec![&mut list.expr];
            parts.extend(&mut list.list);
            unify_parts(&mut parts, schema, Reals::Widened)? || is_changed
        }
        Expr::Case(case) => {
            let (mut whens, mut thens) = (Vec::new(), Vec::new());
            for (when, then) in &mut case.when_then_expr {
                whens.push(when.as_mut());
                thens.push(then.as_mut());
            }
            thens.extend(case.else_expr.as_deref_mut());
            let is_changed =
                unify_parts(&mut thens, schema, Reals::Kept)? | unify_branches(&mut thens, schema);
            match case.expr.as_deref_mut() {
                Some(operand) => {
                    whens.push(operand);
                    unify_parts(&mut whens, schema, Reals::Widened)? || is_changed
                }
                None => is_changed,
            }
        }
        Expr::ScalarFunction(call) if UNIFORM.contains(&call.func.name()) => {
            if call.func.name() == "nullif" {
                return unify_nullif(call.clone(), schema);
            }
            unify_parts(&mut call.args.iter_mut().collect::<Vec<_>>(), schema, Reals::Kept)?
        }
        Expr::WindowFunction(call) if matches!(call.fun.name(), "lag" | "lead") => {
            unify_neighbour(&mut call.params.args, schema)?
        }
        Expr::InSubquery(InSubquery { expr, subquery, .. })
        | Expr::SetComparison(SetComparison { expr, subquery, .. }) => {
            unify_with_subquery(expr, subquery, schema)?
        }
        _ => false,
    };
    Ok(Transformed::new_transformed(expr, is_changed))
}

/// Casts the branches of a CASE to the type that coercion gives them. Before coercion a CASE has the type of
/// its first branch, and a UNION would take it over.
fn unify_branches(branches: &mut [&mut Expr], schema: &DFSchema) -> bool {
    let types: Vec<_> = branches.iter().filter_map(|branch| type_of(branch, schema)).collect();
    if types.len() < branches.len() {
        return false;
    }
    let Some(common) = get_coerce_type_for_case_expression(&types, None) else { return false };
    let mut is_changed = false;
    for (branch, ty) in branches.iter_mut().zip(&types) {
        if *ty != common && *ty != DataType::Null {
            **branch = cast_to(take(branch), common.clone());
            is_changed = true;
        }
    }
    is_changed
}

/// `nullif` compares its arguments in a common type and returns the first one in its own type. Beside a float
/// an exact number becomes a DOUBLE: PostgreSQL has no operator that compares the two.
fn unify_nullif(mut call: ScalarFunction, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let type_of_first = |call: &ScalarFunction| call.args.first().and_then(|arg| type_of(arg, schema));
    let first = type_of_first(&call);
    let is_changed = unify_parts(&mut call.args.iter_mut().collect::<Vec<_>>(), schema, Reals::Widened)?;
    let common = type_of_first(&call);
    let is_promoted =
        |first: &DataType| !first.is_floating() && common.as_ref().is_some_and(DataType::is_floating);
    let back = first.filter(|first| common.as_ref() != Some(first) && !is_text(first) && !is_promoted(first));
    let call = Expr::ScalarFunction(call);
    Ok(match back {
        Some(first) => Transformed::yes(cast_to(call, first)),
        None => Transformed::new_transformed(call, is_changed),
    })
}

/// Gives the value and default of `lag(value, distance, default)` one type; a NULL distance gives NULL.
fn unify_neighbour(args: &mut Vec<Expr>, schema: &DFSchema) -> Result<bool> {
    if let [value, Expr::Literal(distance, _), ..] = args.as_slice()
        && distance.is_null()
        && let Some(ty) = type_of(value, schema)
    {
        *args = vec![Expr::Literal(ScalarValue::try_from(&ty)?, None)];
        return Ok(true);
    }
    let [value, _, default] = args.as_mut_slice() else { return Ok(false) };
    Ok(unify_parts(&mut [&mut *value, &mut *default], schema, Reals::Kept)? | widen(value, default, schema))
}

/// Casts two values to the type that holds both.
fn widen(one: &mut Expr, other: &mut Expr, schema: &DFSchema) -> bool {
    let (Some(left), Some(right)) = (type_of(one, schema), type_of(other, schema)) else { return false };
    let Some(common) = type_union_coercion(&left, &right).filter(|_| left != right) else { return false };
    for (part, own) in [(one, left), (other, right)] {
        if own != common {
            *part = cast_to(take(part), common.clone());
        }
    }
    true
}

/// Gives the elements of an array one type while they are planned; the planner has no common type for some.
pub(super) fn unify_elements(elements: &mut [Expr], schema: &DFSchema) -> Result<()> {
    unify_parts(&mut elements.iter_mut().collect::<Vec<_>>(), schema, Reals::Kept).map(|_| ())
}

/// How REAL combines with other numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reals {
    /// Other numbers become REAL, as in UNION and CASE.
    Kept,
    /// REAL becomes DOUBLE, as in a comparison.
    Widened,
}

/// Casts expressions to compatible types; returns whether anything changed.
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
    let has_real = has(|ty| *ty == DataType::Float32);
    let widens = reals == Reals::Widened && has_real && has(DataType::is_integer);
    if has(DataType::is_floating) && (widens || has(is_decimal)) {
        let is_double = reals == Reals::Widened || has(|ty| *ty == DataType::Float64);
        let to = if is_double { DataType::Float64 } else { DataType::Float32 };
        each(&|_, ty| (is_decimal(ty) || *ty == DataType::Float32) && *ty != to, &to)?;
    } else if reals == Reals::Kept && has_real && !has(|ty| *ty == DataType::Float64) {
        each(&|_, ty| ty.is_integer(), &DataType::Float32)?;
    }
    // Beside a date the planner would compare in nanoseconds, which reach from 1678 to 2261.
    if let Some(timestamp) = types.iter().flatten().find(|ty| matches!(ty, DataType::Timestamp(..))) {
        each(&|_, ty| *ty == DataType::Date32, timestamp)?;
    }
    if let Some(ty) = type_for_literals(&types, reals) {
        each(&|part, own| is_text(own) && matches!(part, Expr::Literal(..)), &ty)?;
    }
    for ty in [DataType::Binary, UUID] {
        if types.iter().flatten().any(|other| *other == ty) {
            each(&|_, ty| is_text(ty), &ty)?;
        }
    }
    Ok(is_changed)
}

/// The type that string literals take from the values beside them, if the planner would choose none or
/// another. In a comparison it handles dates and integers.
fn type_for_literals(types: &[Option<DataType>], reals: Reals) -> Option<DataType> {
    let others = types.iter().flatten().filter(|ty| !is_text(ty) && **ty != DataType::Null);
    let first = others.clone().next()?;
    let is_one = others.clone().all(|ty| ty == first);
    // In a comparison the planner would choose nanoseconds, which reach from 1678 to 2261.
    let is_day_or_timestamp = |ty: &DataType| matches!(ty, DataType::Timestamp(..) | DataType::Date32);
    if !is_one && others.clone().all(is_day_or_timestamp) || matches!(first, DataType::Timestamp(..)) {
        let with_zone = others.clone().find(|ty| matches!(ty, DataType::Timestamp(_, Some(_))));
        return with_zone
            .or_else(|| others.clone().find(|ty| matches!(ty, DataType::Timestamp(..))))
            .cloned();
    }
    if others.clone().any(is_decimal) && others.clone().all(|ty| ty.is_integer() || is_decimal(ty)) {
        return others.clone().find(|ty| is_decimal(ty)).cloned();
    }
    match first {
        DataType::Boolean => Some(DataType::Boolean),
        ty if is_span(ty) => Some(INTERVAL),
        ty if reals == Reals::Kept && is_one && (ty.is_temporal() || ty.is_numeric()) => Some(ty.clone()),
        _ => None,
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
