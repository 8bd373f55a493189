//! `array_remove(array, element)` removes every equal element, or every NULL if the element is NULL.
//! DataFusion's removes only the first, and returns NULL for a NULL element.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BooleanArray, ListArray, UInt64Array};
use datafusion::arrow::buffer::OffsetBuffer;
use datafusion::arrow::compute::kernels::cmp::distinct;
use datafusion::arrow::compute::{filter, take};
use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{Result, ScalarValue};
use datafusion::functions_nested::remove::{array_remove_all_udf, array_remove_udf};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::bytes::taken_types;
use crate::error::Error;

/// `array_remove(array, element)`.
pub(super) fn remove() -> ScalarUDF {
    let signature = Signature::user_defined(Volatility::Immutable);
    ScalarUDF::new_from_impl(Remove { first: array_remove_udf(), all: array_remove_all_udf(), signature })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Remove {
    /// DataFusion's `array_remove`, which determines the types.
    first: Arc<ScalarUDF>,
    /// DataFusion's `array_remove_all`, for lists that are not compared here.
    all: Arc<ScalarUDF>,
    signature: Signature,
}

impl ScalarUDFImpl for Remove {
    fn name(&self) -> &str {
        "array_remove"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        match types {
            [
                list @ (DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _)),
                element,
            ] if *element == DataType::Null || item.data_type().is_floating() && element.is_numeric() => {
                let list = match list {
                    DataType::FixedSizeList(item, _) => DataType::List(Arc::clone(item)),
                    other => other.clone(),
                };
                Ok(vec![list, item.data_type().clone()])
            }
            _ => taken_types(&self.first, types),
        }
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.first.return_type(types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        self.first.return_field_from_args(args)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let is_constant = args.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let [lists, elements] = arrays.as_slice() else {
            return Err(Error::internal("array_remove() takes two arguments").into());
        };
        let is_known = lists.as_list_opt::<i32>().is_some_and(|lists| {
            lists.value_type() == *elements.data_type() && !elements.data_type().is_nested()
        });
        if !is_known {
            return self.all.invoke_with_args(args);
        }
        let left: ArrayRef = Arc::new(without(lists.as_list(), elements)?);
        if is_constant && left.len() == 1 {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&left, 0)?));
        }
        Ok(ColumnarValue::Array(left))
    }
}

/// Removes from each list the elements that are not distinct from its row of `elements`.
fn without(lists: &ListArray, elements: &ArrayRef) -> crate::error::Result<ListArray> {
    let offsets = lists.value_offsets();
    let (first, last) = (offsets.first().copied().unwrap_or(0), offsets.last().copied().unwrap_or(0));
    let at = |offset: i32| usize::try_from(offset).unwrap_or(0);
    let values = lists.values().slice(at(first), at(last) - at(first));
    let lengths = offsets.windows(2).map(|pair| if let [from, to] = pair { at(*to) - at(*from) } else { 0 });
    let rows: UInt64Array =
        lengths.clone().zip(0_u64..).flat_map(|(length, row)| std::iter::repeat_n(row, length)).collect();
    let is_kept: BooleanArray = distinct(&values, &take(elements, &rows, None)?)?;
    let mut start = 0;
    let kept = lengths.map(|length| {
        let count = is_kept.slice(start, length).true_count();
        start += length;
        count
    });
    let offsets = OffsetBuffer::<i32>::from_lengths(kept.collect::<Vec<_>>());
    let DataType::List(item) = lists.data_type() else {
        return Err(Error::internal("the elements are not in a list"));
    };
    let (item, nulls) = (Arc::clone(item), lists.nulls().cloned());
    Ok(ListArray::try_new(item, offsets, filter(&values, &is_kept)?, nulls)?)
}
