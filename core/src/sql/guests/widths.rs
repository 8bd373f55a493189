//! How many bytes rows take when their values are written out.

use datafusion::arrow::array::{Array, AsArray, OffsetSizeTrait, RecordBatch};
use datafusion::arrow::datatypes::DataType;

use crate::tables::value_bytes;

/// Returns the bytes of all rows in these columns.
pub(super) fn bytes(batch: &RecordBatch, columns: &[usize]) -> usize {
    let columns = columns.iter().filter_map(|column| batch.columns().get(*column));
    columns.map(|column| value_bytes(column)).fold(0, usize::saturating_add)
}

/// Returns an upper bound of the bytes of a row in these columns.
pub(super) fn row_bytes_max(batch: &RecordBatch, columns: &[usize]) -> usize {
    let columns = columns.iter().filter_map(|column| batch.columns().get(*column));
    columns.map(|column| value_bytes_max(column)).fold(0, usize::saturating_add)
}

/// Returns the bytes of the largest value.
fn value_bytes_max(array: &dyn Array) -> usize {
    match array.data_type() {
        DataType::Null => 0,
        DataType::Boolean => 1,
        DataType::Utf8 => longest(array.as_string::<i32>().value_offsets()),
        DataType::LargeUtf8 => longest(array.as_string::<i64>().value_offsets()),
        DataType::Binary => longest(array.as_binary::<i32>().value_offsets()),
        DataType::LargeBinary => longest(array.as_binary::<i64>().value_offsets()),
        other => match other.primitive_width() {
            Some(width) => width,
            None => (0..array.len()).map(|row| value_bytes(&array.slice(row, 1))).max().unwrap_or(0),
        },
    }
}

/// Returns the bytes of the longest value between two offsets, its own offset included.
fn longest<O: OffsetSizeTrait>(offsets: &[O]) -> usize {
    let lengths = offsets.iter().zip(offsets.iter().skip(1)).map(|(start, end)| *end - *start);
    lengths.max().map_or(0, |length| length.as_usize()).saturating_add(size_of::<O>())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::array::{ArrayRef, BooleanArray, Int64Array, ListArray, StringArray};
    use datafusion::arrow::datatypes::Int32Type;

    use super::*;

    fn batch() -> RecordBatch {
        let lists = ListArray::from_iter_primitive::<Int32Type, _, _>([
            Some(vec![Some(1); 2]),
            None,
            Some(vec![Some(1); 100]),
        ]);
        let columns: [(&str, ArrayRef); 4] = [
            ("number", Arc::new(Int64Array::from(vec![1, 2, 3]))),
            ("text", Arc::new(StringArray::from(vec![Some("a"), Some("abcdef"), None]))),
            ("flag", Arc::new(BooleanArray::from(vec![true, false, true]))),
            ("list", Arc::new(lists)),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap()
    }

    #[test]
    fn the_widest_row_is_that_of_the_widest_values() {
        let batch = batch();
        let check = |columns: &[usize], least: usize, most: usize| {
            let found = row_bytes_max(&batch, columns);
            assert!((least..=most).contains(&found), "{columns:?}: {found}");
        };
        check(&[], 0, 0);
        check(&[0], 8, 8);
        check(&[1], 6, 10);
        check(&[2], 1, 1);
        check(&[3], 400, 420);
        check(&[0, 1, 3], 414, 440);
        assert_eq!(row_bytes_max(&batch, &[9]), 0);
        assert_eq!(row_bytes_max(&batch.slice(0, 1), &[1]), 5);
        assert_eq!(row_bytes_max(&batch.slice(0, 0), &[0, 1]), 12);
    }

    #[test]
    fn no_row_is_wider_than_the_bound() {
        let batch = batch();
        let all = [0, 1, 2, 3];
        for row in 0..batch.num_rows() {
            let alone = batch.slice(row, 1);
            // A bitmap of validity and one more offset are counted only in the bytes of all rows.
            assert!(bytes(&alone, &all) <= row_bytes_max(&batch, &all) + 16, "row {row}");
        }
        assert!(bytes(&batch, &all) >= 3 * 8 + 7 + 102 * 4);
    }
}
