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
//! | DATE and an interval with a time of day | DATE, hours are cut off | TIMESTAMP |

use std::mem::take;
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{Column, DFSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::{BinaryExpr, InSubquery, ScalarFunction, SetComparison};
use datafusion::logical_expr::type_coercion::binary::type_union_coercion;
use datafusion::logical_expr::type_coercion::other::get_coerce_type_for_case_expression;
use datafusion::logical_expr::{
    Expr, Join, LogicalPlan, LogicalPlanBuilder, Operator, Projection, Subquery, Union,
};
use datafusion::sql::sqlparser::ast::BinaryOperator;

use super::casts::cast_to;
use super::functions::{INTERVAL, is_span};
use super::walk::type_of;
use crate::casts::{UUID, cast, is_decimal, is_text};

/// Functions whose arguments are cast to one type.
pub(super) const UNIFORM: [&str; 6] = ["coalesce", "nullif", "nvl", "greatest", "least", "make_array"];

/// Casts the parts of an expression to types that mean the same in DataFusion and in PostgreSQL.
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

/// Casts the branches of a CASE to the type that coercion gives them. Before coercion a CASE has the type of its
/// first branch, and a UNION would take it over.
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

/// `nullif` compares its arguments in a common type and returns the first one in its own type. Beside a float an
/// exact number becomes a DOUBLE: PostgreSQL has no operator that compares the two.
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

/// Casts a date to a timestamp unless the interval added to it is known to have whole days.
fn date_to_timestamp(date: &mut Expr, interval: &Expr, schema: &DFSchema) -> bool {
    let is_interval = |ty: DataType| is_span(&ty) && !is_whole_days(interval);
    let is_moved =
        type_of(date, schema) == Some(DataType::Date32) && type_of(interval, schema).is_some_and(is_interval);
    if is_moved {
        *date = cast_to(take(date), DataType::Timestamp(TimeUnit::Microsecond, None));
    }
    is_moved
}

/// Whether an interval is a literal, or a sum of literals, without a time of day.
fn is_whole_days(interval: &Expr) -> bool {
    match interval {
        Expr::Literal(ScalarValue::IntervalMonthDayNano(value), _) => {
            value.is_none_or(|value| value.nanoseconds == 0)
        }
        Expr::Negative(inner) => is_whole_days(inner),
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Plus | Operator::Minus, right }) => {
            is_whole_days(left) && is_whole_days(right)
        }
        Expr::Cast(cast) if matches!(*cast.expr, Expr::Literal(..)) => {
            converted(Expr::clone(&cast.expr), &INTERVAL).is_ok_and(|interval| is_whole_days(&interval))
        }
        _ => false,
    }
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

/// Gives a string literal beside BOOLEAN, BYTES, UUID or an interval that type; the planner fails for some.
pub(super) fn type_literal(left: &mut Expr, right: &mut Expr, schema: &DFSchema) -> Result<()> {
    each_literal(left, right, schema, |_, other| match other {
        DataType::Boolean | DataType::Binary => Some(other.clone()),
        ty if is_span(ty) => Some(INTERVAL),
        ty if *ty == UUID => Some(UUID),
        _ => None,
    })
}

/// Types a string literal beside other operators: BYTES beside `||` and BYTES, an interval beside `+` and a
/// time, a number beside a number in arithmetic.
pub(super) fn type_operand(
    op: &BinaryOperator,
    left: &mut Expr,
    right: &mut Expr,
    schema: &DFSchema,
) -> Result<()> {
    if matches!(op, BinaryOperator::Plus | BinaryOperator::Minus) {
        // Now, because the enclosing expression asks for the sum's type.
        let _ = date_to_timestamp(left, right, schema) || date_to_timestamp(right, left, schema);
    }
    each_literal(left, right, schema, |side, other| match (op, side, other) {
        (BinaryOperator::StringConcat, _, DataType::Binary) => Some(DataType::Binary),
        (BinaryOperator::Plus | BinaryOperator::Minus, _, ty) if is_span(ty) => Some(INTERVAL),
        (BinaryOperator::Plus, _, DataType::Timestamp(..) | DataType::Time64(_)) => Some(INTERVAL),
        (BinaryOperator::Plus | BinaryOperator::Minus, _, ty) if ty.is_numeric() => Some(other.clone()),
        (BinaryOperator::Multiply | BinaryOperator::Divide | BinaryOperator::Modulo, _, ty)
            if ty.is_numeric() =>
        {
            Some(other.clone())
        }
        (BinaryOperator::Minus, Side::Right, DataType::Timestamp(..) | DataType::Date32) => {
            Some(other.clone())
        }
        _ => None,
    })
}

/// The side of an operand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

fn each_literal(
    left: &mut Expr,
    right: &mut Expr,
    schema: &DFSchema,
    to: impl Fn(Side, &DataType) -> Option<DataType>,
) -> Result<()> {
    let (Some(one), Some(other)) = (type_of(left, schema), type_of(right, schema)) else { return Ok(()) };
    for (side, part, own, other) in [(Side::Left, left, &one, &other), (Side::Right, right, &other, &one)] {
        if is_text(own)
            && matches!(part, Expr::Literal(..))
            && let Some(ty) = to(side, other)
        {
            *part = converted(take(part), &ty)?;
        }
    }
    Ok(())
}

/// Converts a literal to its value in the other type, and casts anything else. Text becomes a decimal with
/// the digits that it has, as if unquoted, and a timestamp in microseconds.
fn converted(expr: Expr, to: &DataType) -> Result<Expr> {
    let exact = match (&expr, to) {
        (Expr::Literal(value, _), DataType::Decimal128(..)) => {
            value.try_as_str().flatten().and_then(decimal_of)
        }
        _ => None,
    };
    let to = match to {
        DataType::Timestamp(_, zone) => &DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
        other => exact.as_ref().unwrap_or(other),
    };
    match expr {
        Expr::Literal(value, metadata) => {
            let array = cast(&value.to_array()?, to)?;
            Ok(Expr::Literal(ScalarValue::try_from_array(&array, 0)?, metadata))
        }
        other => Ok(cast_to(other, to.clone())),
    }
}

/// The decimal type that the digits of a number need; `None` if malformed or over 38 digits.
fn decimal_of(text: &str) -> Option<DataType> {
    let (digits, exponent) = text.trim().split_once(['e', 'E']).unwrap_or((text.trim(), "0"));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let exponent = exponent.parse::<i64>().ok()?;
    let count = |part: &str| i64::try_from(part.bytes().filter(u8::is_ascii_digit).count()).ok();
    let scale = count(fraction)?.checked_sub(exponent)?.max(0);
    let precision = count(whole)?.checked_add(exponent)?.max(0).checked_add(scale)?.max(1);
    let (precision, scale) = (u8::try_from(precision).ok()?, i8::try_from(scale).ok()?);
    (precision <= 38).then_some(DataType::Decimal128(precision, scale))
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

/// The type to cast two columns to; `None` if DataFusion's choice is right.
fn common_type(one: &DataType, other: &DataType) -> Option<DataType> {
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
fn cast_column(plan: &LogicalPlan, position: usize, to: &DataType) -> Result<LogicalPlan> {
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

/// Makes VALUES columns of floats and decimals floats; the planner has already cast them to decimals.
pub(super) fn unify_values(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
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

/// Unifies the columns of a UNION by position, and the keys of joins: INTERSECT and EXCEPT are joins.
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

pub(super) fn is_arithmetic(op: Operator) -> bool {
    matches!(op, Operator::Plus | Operator::Minus | Operator::Multiply | Operator::Divide | Operator::Modulo)
}
