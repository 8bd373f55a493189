//! Measures the arguments of a function, for limits that are checked before the call.

use std::ops::Range;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, OffsetSizeTrait};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Int64Type, IntervalMonthDayNanoType};
use datafusion::common::Result as DataFusionResult;
use datafusion::logical_expr::ColumnarValue;

use crate::casts::{DAY_NS, is_text};

/// The assumed size of a value whose type has no fixed width.
const UNKNOWN_BYTES: u64 = 16;

/// An argument, for estimates of a result's size and of a call's work.
pub(super) struct Argument {
    /// The values as numbers, for integer and temporal types.
    numbers: Option<ArrayRef>,
    array: ArrayRef,
    constant: bool,
}

impl Argument {
    pub(super) fn new(value: &ColumnarValue) -> DataFusionResult<Self> {
        let (array, constant) = match value {
            ColumnarValue::Array(array) => (ArrayRef::clone(array), false),
            ColumnarValue::Scalar(scalar) => (scalar.to_array()?, true),
        };
        let numbers = if array.data_type().is_integer() || array.data_type().is_temporal() {
            cast(&array, &DataType::Int64).ok()
        } else {
            None
        };
        Ok(Self { numbers, array, constant })
    }

    pub(super) fn data_type(&self) -> &DataType {
        self.array.data_type()
    }

    pub(super) fn is_null(&self, row: usize) -> bool {
        let row = self.rows(row).start;
        row < self.array.len() && self.array.is_null(row)
    }

    /// Returns a row's value as a number; 0 when it is NULL or not a number.
    pub(super) fn number(&self, row: usize) -> i64 {
        let row = self.rows(row).start;
        let numbers = self.numbers.as_ref().map(|numbers| numbers.as_primitive::<Int64Type>());
        numbers
            .filter(|numbers| row < numbers.len() && numbers.is_valid(row))
            .map_or(0, |numbers| numbers.value(row))
    }

    /// Returns the shortest time a row's interval can last, in nanoseconds; `None` for any other type.
    pub(super) fn interval_ns(&self, row: usize) -> Option<i128> {
        let row = self.rows(row).start;
        let intervals = self.array.as_primitive_opt::<IntervalMonthDayNanoType>()?;
        if row >= intervals.len() || intervals.is_null(row) {
            return None;
        }
        let interval = intervals.value(row);
        let days = i128::from(interval.months) * 28 + i128::from(interval.days);
        Some((days * DAY_NS + i128::from(interval.nanoseconds)).abs().max(1))
    }

    /// Returns a row's value if it is text.
    pub(super) fn text(&self, row: usize) -> Option<&str> {
        let row = self.rows(row).start;
        if row >= self.array.len() || self.array.is_null(row) {
            return None;
        }
        match self.array.data_type() {
            DataType::Utf8 => Some(self.array.as_string::<i32>().value(row)),
            DataType::LargeUtf8 => Some(self.array.as_string::<i64>().value(row)),
            DataType::Utf8View => Some(self.array.as_string_view().value(row)),
            _ => None,
        }
    }

    /// Whether all rows have the same value.
    pub(super) fn is_constant(&self) -> bool {
        self.constant
    }

    /// Returns the bytes of a row's value, at least 1.
    pub(super) fn bytes(&self, row: usize) -> u64 {
        self.bytes_in(row..row + 1)
    }

    /// Returns the bytes of the values in `rows`, or those of the constant once; at least 1.
    pub(super) fn bytes_in(&self, rows: Range<usize>) -> u64 {
        value_size(&self.array, self.places(rows)).bytes.max(1)
    }

    /// Returns the bytes of the values in the first `rows` rows.
    pub(super) fn all_bytes(&self, rows: usize) -> u64 {
        if self.constant {
            return self.bytes(0).saturating_mul(rows as u64);
        }
        value_size(&self.array, 0..rows).bytes
    }

    /// Returns the number of leaf values in a row's list, counted through all nested lists.
    pub(super) fn leaves(&self, row: usize) -> u64 {
        value_size(&self.array, self.rows(row)).leaves
    }

    /// Whether the leaf values of the lists, through all nested lists, are texts.
    pub(super) fn has_text_leaves(&self) -> bool {
        is_text(leaf_type(self.array.data_type()))
    }

    /// Returns the number of elements in a row's list.
    pub(super) fn elements(&self, row: usize) -> u64 {
        self.elements_in(row..row + 1)
    }

    /// Returns the number of elements in the lists of `rows`, or in the constant list once.
    pub(super) fn elements_in(&self, rows: Range<usize>) -> u64 {
        items(&self.array, self.places(rows)).map_or(0, |(_, items)| items.len() as u64)
    }

    fn rows(&self, row: usize) -> Range<usize> {
        self.places(row..row + 1)
    }

    fn places(&self, rows: Range<usize>) -> Range<usize> {
        if self.constant { 0..1 } else { rows }
    }
}

fn leaf_type(ty: &DataType) -> &DataType {
    match ty {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            leaf_type(item.data_type())
        }
        other => other,
    }
}

/// The size of a range of values.
#[derive(Clone, Copy, Default)]
struct ValueSize {
    leaves: u64,
    bytes: u64,
}

fn value_size(array: &ArrayRef, rows: Range<usize>) -> ValueSize {
    if let Some((items, range)) = items(array, rows.clone()) {
        return value_size(items, range);
    }
    let leaves = rows.len() as u64;
    let bytes = match array.data_type() {
        DataType::Utf8 => span(array.as_string::<i32>().value_offsets(), &rows),
        DataType::LargeUtf8 => span(array.as_string::<i64>().value_offsets(), &rows),
        DataType::Binary => span(array.as_binary::<i32>().value_offsets(), &rows),
        DataType::LargeBinary => span(array.as_binary::<i64>().value_offsets(), &rows),
        DataType::Utf8View => {
            let views = array.as_string_view();
            rows.map(|row| views.value(row).len() as u64).sum()
        }
        DataType::BinaryView => {
            let views = array.as_binary_view();
            rows.map(|row| views.value(row).len() as u64).sum()
        }
        DataType::Struct(_) => {
            let columns = array.as_struct().columns();
            return columns.iter().map(|column| value_size(column, rows.clone())).fold(
                ValueSize::default(),
                |all, one| ValueSize {
                    leaves: all.leaves.saturating_add(one.leaves),
                    bytes: all.bytes.saturating_add(one.bytes),
                },
            );
        }
        DataType::FixedSizeBinary(width) => leaves.saturating_mul(u64::try_from(*width).unwrap_or(0)),
        other => leaves.saturating_mul(other.primitive_width().map_or(UNKNOWN_BYTES, |width| width as u64)),
    };
    ValueSize { leaves, bytes }
}

/// Returns the elements of the lists at `rows` as a part of one array; `None` for other types.
fn items(array: &ArrayRef, rows: Range<usize>) -> Option<(&ArrayRef, Range<usize>)> {
    let within = |offsets: &[i32]| range(offsets, &rows);
    match array.data_type() {
        DataType::List(_) => {
            let lists = array.as_list::<i32>();
            Some((lists.values(), within(lists.value_offsets())))
        }
        DataType::LargeList(_) => {
            let lists = array.as_list::<i64>();
            Some((lists.values(), range(lists.value_offsets(), &rows)))
        }
        DataType::FixedSizeList(_, len) => {
            let len = usize::try_from(*len).unwrap_or(0);
            let lists = array.as_fixed_size_list();
            Some((lists.values(), rows.start * len..rows.end * len))
        }
        _ => None,
    }
}

fn range<O: OffsetSizeTrait>(offsets: &[O], rows: &Range<usize>) -> Range<usize> {
    let at = |row: usize| offsets.get(row).map_or(0, |offset| offset.as_usize());
    at(rows.start)..at(rows.end)
}

fn span<O: OffsetSizeTrait>(offsets: &[O], rows: &Range<usize>) -> u64 {
    range(offsets, rows).len() as u64
}
