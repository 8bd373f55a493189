//! Parameters in a plan: their types and uses, and the values that fit them.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::expr::{BinaryExpr, Placeholder};
use datafusion::logical_expr::{Expr, LogicalPlan};

use crate::casts;
use crate::error::Result;

/// The types of a plan's parameters; `None` where the plan does not determine one.
pub(crate) type ParameterTypes = HashMap<String, Option<DataType>>;

/// Returns the type to announce a parameter with, one that every driver can set: JDBC writes milliseconds
/// into any declared time type, and knows no views, dictionaries, unsigned or half-width numbers.
pub(crate) fn announced(name: String, planned: Option<&DataType>) -> FieldRef {
    let announced = match planned {
        Some(DataType::Boolean) => DataType::Boolean,
        Some(
            DataType::Int8
            | DataType::Int16
            | DataType::Int32
            | DataType::Int64
            | DataType::UInt8
            | DataType::UInt16
            | DataType::UInt32
            | DataType::UInt64,
        ) => DataType::Int64,
        Some(DataType::Float16 | DataType::Float32 | DataType::Float64) => DataType::Float64,
        Some(DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale)) => {
            DataType::Decimal128(*precision, *scale)
        }
        Some(decimal @ DataType::Decimal128(..)) => decimal.clone(),
        Some(DataType::Date32 | DataType::Date64) => DataType::Date32,
        Some(DataType::Time32(_) | DataType::Time64(_)) => DataType::Time32(TimeUnit::Millisecond),
        Some(DataType::Timestamp(..)) => DataType::Timestamp(TimeUnit::Millisecond, None),
        Some(DataType::Binary | DataType::LargeBinary | DataType::BinaryView) => DataType::Binary,
        Some(DataType::List(item) | DataType::FixedSizeList(item, _)) => DataType::List(Arc::clone(item)),
        _ => DataType::Utf8,
    };
    Arc::new(Field::new(name, announced, true))
}

/// Casts a value to a type, rounded as an assignment does.
///
/// # Errors
/// 22P02, 22007 or 22003 when the value does not fit the type.
pub(crate) fn cast(value: &ScalarValue, to: &DataType) -> Result<ScalarValue> {
    let from = value.data_type();
    if from == *to {
        return Ok(value.clone());
    }
    if value.is_null() {
        return Ok(ScalarValue::try_from(to)?);
    }
    let array = casts::cast(&value.to_array()?, to)?;
    Ok(ScalarValue::try_from_array(&array, 0)?)
}

/// The use of a parameter, where it is more than a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ParameterUse {
    /// It is assigned to a column, and rounded to the column's type.
    Assigned,
    /// It is an operand of arithmetic: 1 / 2 differs from 1 / 2.0.
    Computed,
}

/// Returns the parameters that are operands of arithmetic.
///
/// # Errors
/// Only those of the walk over the plan.
pub(crate) fn computed(plan: &LogicalPlan) -> Result<HashMap<String, ParameterUse>> {
    let mut uses = HashMap::new();
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|part| {
                if let Expr::BinaryExpr(BinaryExpr { left, op, right }) = part
                    && op.is_numerical_operators()
                {
                    for side in [left, right] {
                        if let Expr::Placeholder(parameter) = &**side {
                            uses.insert(parameter.id.clone(), ParameterUse::Computed);
                        }
                    }
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(uses)
}

/// Returns the types of a plan's parameters, each from the first place that has one; `None` where none has.
pub(crate) fn types(plan: &LogicalPlan) -> Result<ParameterTypes> {
    let mut types = ParameterTypes::new();
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|part| {
                if let Expr::Placeholder(Placeholder { id, field }) = part {
                    let known = types.entry(id.clone()).or_default();
                    *known = known.take().or_else(|| field.as_ref().map(|field| field.data_type().clone()));
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(types)
}

/// Converts a value to the type that a plan expects, if it stays the same value; `None` when only a wider
/// type has it, such as 1.5 beside an integer. Text is parsed as that type, and an assigned value is rounded.
///
/// # Errors
/// Those of [`cast`], for text and assigned values.
pub(crate) fn fitting(
    value: &ScalarValue,
    to: &DataType,
    used: Option<ParameterUse>,
) -> Result<Option<ScalarValue>> {
    if used == Some(ParameterUse::Assigned) {
        return cast(value, to).map(Some);
    }
    let from = value.data_type();
    if value.is_null() || casts::is_text(&from) || casts::is_text(to) {
        return cast(value, to).map(Some);
    }
    if used == Some(ParameterUse::Computed) && to.is_integer() && !from.is_integer() {
        return Ok(None);
    }
    let Ok(there) = cast(value, to) else { return Ok(None) };
    // The REAL nearest to 0.1 is not 0.1. Both are compared as DOUBLE, as comparisons in a statement are.
    let exact = if *to == DataType::Float32 && casts::is_decimal(&from) { &DataType::Float64 } else { &from };
    let is_same = cast(&there, exact).is_ok_and(|back| cast(value, exact).is_ok_and(|value| value == back));
    Ok(is_same.then_some(there))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_fits_a_type_that_has_the_same_value() {
        let fits = |value: ScalarValue, to: DataType| fitting(&value, &to, None).unwrap().is_some();
        assert!(fits(ScalarValue::Float64(Some(2.0)), DataType::Int32));
        assert!(!fits(ScalarValue::Float64(Some(2.7)), DataType::Int32));
        assert!(!fits(ScalarValue::Decimal128(Some(1), 2, 1), DataType::Float32));
        assert!(fits(ScalarValue::Decimal128(Some(5), 2, 1), DataType::Float32));
        assert!(fits(ScalarValue::Decimal128(Some(1), 2, 1), DataType::Float64));
    }
}
