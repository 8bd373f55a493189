//! The size of an array's values with every value written out.
//!
//! An array may be a small slice of large buffers. In a dictionary or view array, few bytes may stand for
//! many values. So neither its buffers nor its length give its size on the wire or in the table's own types.
//!
//! Invariant: without dictionaries, views and run ends, this is the size of the encoded, unpadded buffers.

use arrow::array::{Array, ArrayRef, AsArray, OffsetSizeTrait};
use arrow::compute::cast;
use arrow::datatypes::{ArrowNativeType, ByteArrayType, DataType, UInt64Type};
use arrow::record_batch::RecordBatch;

/// Returns the bytes of the rows of `batch` alone, with every value written out.
pub fn batch_value_bytes(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(|column| value_bytes(column)).fold(0, usize::saturating_add)
}

/// Returns the bytes of the values of `array` alone, with every value written out.
pub fn value_bytes(array: &dyn Array) -> usize {
    let rows = array.len();
    let validity = if array.null_count() > 0 && array.nulls().is_some() { rows.div_ceil(8) } else { 0 };
    let values = match array.data_type() {
        DataType::Null => 0,
        DataType::Boolean => rows.div_ceil(8),
        DataType::Utf8 => offset_bytes::<i32>(rows) + spanned(array.as_string::<i32>().value_offsets()),
        DataType::LargeUtf8 => offset_bytes::<i64>(rows) + spanned(array.as_string::<i64>().value_offsets()),
        DataType::Binary => offset_bytes::<i32>(rows) + spanned(array.as_binary::<i32>().value_offsets()),
        DataType::LargeBinary => {
            offset_bytes::<i64>(rows) + spanned(array.as_binary::<i64>().value_offsets())
        }
        DataType::Utf8View => {
            offset_bytes::<i32>(rows) + sum(array.as_string_view().iter().flatten().map(str::len))
        }
        DataType::BinaryView => {
            offset_bytes::<i32>(rows) + sum(array.as_binary_view().iter().flatten().map(<[u8]>::len))
        }
        DataType::FixedSizeBinary(width) => rows.saturating_mul(usize::try_from(*width).unwrap_or_default()),
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            offset_bytes::<i32>(rows) + part_bytes(list.values(), list.value_offsets())
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            offset_bytes::<i64>(rows) + part_bytes(list.values(), list.value_offsets())
        }
        DataType::FixedSizeList(..) => value_bytes(array.as_fixed_size_list().values()),
        DataType::Map(..) => {
            let map = array.as_map();
            let entries = map.entries();
            let (start, length) = span(map.value_offsets(), entries.len());
            offset_bytes::<i32>(rows) + value_bytes(&entries.slice(start, length))
        }
        DataType::Struct(_) => sum(array.as_struct().columns().iter().map(|column| value_bytes(column))),
        DataType::Dictionary(..) => dictionary_bytes(array),
        other => match other.primitive_width() {
            Some(width) => rows.saturating_mul(width),
            None => array.to_data().get_slice_memory_size().unwrap_or_else(|_| array.get_array_memory_size()),
        },
    };
    values.saturating_add(validity)
}

fn offset_bytes<O: OffsetSizeTrait>(rows: usize) -> usize {
    (rows + 1).saturating_mul(size_of::<O>())
}

/// Returns the start and number of the elements between the first and last offset, within `available`.
fn span<O: OffsetSizeTrait>(offsets: &[O], available: usize) -> (usize, usize) {
    let start = offsets.first().map_or(0, |offset| offset.as_usize()).min(available);
    let end = offsets.last().map_or(0, |offset| offset.as_usize()).clamp(start, available);
    (start, end - start)
}

fn spanned<O: OffsetSizeTrait>(offsets: &[O]) -> usize {
    span(offsets, usize::MAX).1
}

fn part_bytes<O: OffsetSizeTrait>(values: &ArrayRef, offsets: &[O]) -> usize {
    let (start, length) = span(offsets, values.len());
    value_bytes(&values.slice(start, length))
}

/// Counts the value of a key each time the key occurs.
fn dictionary_bytes(array: &dyn Array) -> usize {
    let dictionary = array.as_any_dictionary();
    let values = dictionary.values();
    // Keys are integers, and valid keys are positions.
    let Ok(keys) = cast(dictionary.keys(), &DataType::UInt64) else { return usize::MAX };
    let keys = keys.as_primitive::<UInt64Type>().iter().flatten();
    let keys = keys.map(|key| usize::try_from(key).unwrap_or(usize::MAX)).filter(|key| *key < values.len());
    match values.data_type() {
        DataType::Utf8 => sum(keys.map(|key| length_at(values.as_string::<i32>(), key))),
        DataType::Binary => sum(keys.map(|key| length_at(values.as_binary::<i32>(), key))),
        DataType::LargeUtf8 => sum(keys.map(|key| length_at(values.as_string::<i64>(), key))),
        DataType::LargeBinary => sum(keys.map(|key| length_at(values.as_binary::<i64>(), key))),
        other => match other.primitive_width() {
            Some(width) => array.len().saturating_mul(width),
            None => sum(keys.map(|key| value_bytes(&values.slice(key, 1)))),
        },
    }
}

fn length_at<T: ByteArrayType>(array: &arrow::array::GenericByteArray<T>, row: usize) -> usize {
    array.value_length(row).as_usize()
}

fn sum(sizes: impl Iterator<Item = usize>) -> usize {
    sizes.fold(0, usize::saturating_add)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        BinaryViewArray, BooleanArray, DictionaryArray, Float32Array, Int64Array, ListArray, StringArray,
        StringViewArray, StructArray,
    };
    use arrow::buffer::OffsetBuffer;
    use arrow::datatypes::{Field, Int32Type};

    use super::*;

    fn lists(lengths: &[usize]) -> ListArray {
        let total = lengths.iter().sum::<usize>();
        let field = Arc::new(Field::new_list_field(DataType::Float32, true));
        let values = Float32Array::from(vec![1.0; total]);
        ListArray::new(field, OffsetBuffer::from_lengths(lengths.iter().copied()), Arc::new(values), None)
    }

    #[test]
    fn a_part_counts_its_own_values() {
        let check = |array: &dyn Array, expected: usize| {
            assert_eq!(value_bytes(array), expected, "{:?}", array.data_type());
        };
        check(&Int64Array::from_iter_values(0..1_000).slice(10, 2), 16);
        check(&Int64Array::from(vec![Some(1), None, Some(3)]), 24 + 1);
        check(&BooleanArray::from(vec![true; 100]).slice(3, 9), 2);
        check(&StringArray::from(vec!["a", "bcd", "ef"]).slice(1, 1), 8 + 3);
        check(&lists(&[100, 2, 1_000]).slice(1, 1), 8 + 8);
        let inner: ArrayRef = Arc::new(lists(&[100, 2, 1_000]));
        let whole = StructArray::try_from(vec![("list", inner)]).unwrap();
        check(&whole.slice(0, 1), 8 + 400);
    }

    #[test]
    fn what_is_named_often_counts_often() {
        let long = "x".repeat(1_000);
        let keys = vec![Some(long.as_str()); 50];
        let dictionary: DictionaryArray<Int32Type> = keys.iter().copied().collect();
        assert_eq!(value_bytes(&dictionary), 50_000);
        assert_eq!(value_bytes(&dictionary.slice(7, 3)), 3_000);
        let views: StringViewArray = keys.iter().copied().collect();
        assert_eq!(value_bytes(&views), 50_000 + 51 * 4);
        let views: BinaryViewArray = keys.iter().map(|key| key.map(str::as_bytes)).collect();
        assert_eq!(value_bytes(&views.slice(1, 2)), 2_000 + 3 * 4);
    }
}
