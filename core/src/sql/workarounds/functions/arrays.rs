//! `x op ANY (array)` and `x op ALL (array)` with NULLs; DataFusion plans some as a search that ignores NULL.
//!
//! `any_of(op, x, array)` is true if `x op e` is true for an element `e`, else NULL if it is NULL for one,
//! else false. `all_of` is false if it is false for an element, else NULL if it is NULL for one, else true.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BooleanArray, BooleanBuilder, UInt32Array};
use datafusion::arrow::compute::kernels::{cmp, comparison};
use datafusion::arrow::compute::{cast, like, take};
use datafusion::arrow::datatypes::{DataType, Field};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::type_coercion::binary::BinaryTypeCoercer;
use datafusion::logical_expr::{
    ColumnarValue, Operator, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::intervals::lengths_of;
use crate::casts::is_decimal;
use crate::error::Error;

/// The names of the functions.
pub(crate) const ANY_OF: &str = "any_of";
pub(crate) const ALL_OF: &str = "all_of";

/// `any_of(op, x, array)`.
pub(super) fn any() -> ScalarUDF {
    quantified(true)
}

/// `all_of(op, x, array)`.
pub(super) fn all() -> ScalarUDF {
    quantified(false)
}

fn quantified(is_any: bool) -> ScalarUDF {
    ScalarUDF::new_from_impl(Quantified { is_any, signature: Signature::user_defined(Volatility::Immutable) })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Quantified {
    is_any: bool,
    signature: Signature,
}

impl ScalarUDFImpl for Quantified {
    fn name(&self) -> &str {
        if self.is_any { ANY_OF } else { ALL_OF }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        Ok(argument_types(types).unwrap_or_else(|_| types.to_vec()))
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        argument_types(types)?;
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let is_constant = args.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let [ops, values, lists] = arrays.as_slice() else {
            return Err(Error::internal("a comparison with an array takes three arguments").into());
        };
        let op = if ops.is_empty() { "=" } else { ops.as_string::<i32>().value(0) };
        let result = self.compare(op, values, lists)?;
        if is_constant && result.len() == 1 {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?));
        }
        Ok(ColumnarValue::Array(Arc::new(result)))
    }
}

fn argument_types(types: &[DataType]) -> Result<Vec<DataType>> {
    let list = |ty: DataType| DataType::List(Arc::new(Field::new_list_field(ty, true)));
    match types {
        [_, value, DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _)] => {
            let item = item.data_type();
            let is_mixed = value.is_floating() && is_decimal(item) || is_decimal(value) && item.is_floating();
            let common = if is_mixed {
                DataType::Float64
            } else {
                BinaryTypeCoercer::new(value, &Operator::Eq, item).get_input_types()?.0
            };
            Ok(vec![DataType::Utf8, common.clone(), list(common)])
        }
        [_, value, DataType::Null] => Ok(vec![DataType::Utf8, value.clone(), list(value.clone())]),
        _ => Err(Error::invalid("op ANY/ALL (array) requires an array on its right side").into()),
    }
}

impl Quantified {
    fn compare(&self, op: &str, values: &ArrayRef, lists: &ArrayRef) -> crate::error::Result<BooleanArray> {
        let lists = lists.as_list::<i32>();
        // Repeat each value for every element of its list.
        let mut rows = Vec::new();
        let mut elements = Vec::new();
        for row in 0..lists.len() {
            let (start, end) = (lists.value_offsets().get(row), lists.value_offsets().get(row + 1));
            let (Some(start), Some(end)) = (start, end) else { continue };
            if lists.is_valid(row) {
                for element in *start..*end {
                    rows.push(u32::try_from(row).unwrap_or(u32::MAX));
                    elements.push(u32::try_from(element).unwrap_or(u32::MAX));
                }
            }
        }
        let left = take(values, &UInt32Array::from(rows.clone()), None)?;
        let right = take(lists.values(), &UInt32Array::from(elements), None)?;
        let outcomes = match left.data_type() {
            DataType::Interval(_) => {
                compared(op, &(Arc::new(lengths_of(&left)?) as _), &(Arc::new(lengths_of(&right)?) as _))?
            }
            _ => compared(op, &left, &right)?,
        };
        let mut builder = BooleanBuilder::with_capacity(lists.len());
        let mut next = 0;
        for row in 0..lists.len() {
            let (mut decided, mut unknown) = (false, false);
            while rows.get(next).is_some_and(|of| usize::try_from(*of).is_ok_and(|of| of == row)) {
                if outcomes.is_null(next) {
                    unknown = true;
                } else if outcomes.value(next) == self.is_any {
                    decided = true;
                }
                next += 1;
            }
            match (lists.is_null(row), decided, unknown) {
                (false, true, _) => builder.append_value(self.is_any),
                (false, false, false) => builder.append_value(!self.is_any),
                _ => builder.append_null(),
            }
        }
        Ok(builder.finish())
    }
}

fn compared(op: &str, left: &ArrayRef, right: &ArrayRef) -> crate::error::Result<BooleanArray> {
    let texts = || -> crate::error::Result<(ArrayRef, ArrayRef)> {
        Ok((cast(left, &DataType::Utf8)?, cast(right, &DataType::Utf8)?))
    };
    Ok(match op {
        "=" => cmp::eq(left, right)?,
        "<>" => cmp::neq(left, right)?,
        "<" => cmp::lt(left, right)?,
        "<=" => cmp::lt_eq(left, right)?,
        ">" => cmp::gt(left, right)?,
        ">=" => cmp::gt_eq(left, right)?,
        "LIKE" => {
            let (left, right) = texts()?;
            like(left.as_string::<i32>(), right.as_string::<i32>())?
        }
        "ILIKE" => {
            let (left, right) = texts()?;
            comparison::ilike(left.as_string::<i32>(), right.as_string::<i32>())?
        }
        other => return Err(Error::unsupported(format!("{other} with ANY or ALL of an array"))),
    })
}
