//! Random columns and values for the property tests of keys and rows.

use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field};
use datafusion::common::ScalarValue;
use proptest::prelude::*;

use crate::types::ColumnType;

pub(super) fn key_type() -> impl Strategy<Value = ColumnType> {
    prop_oneof![
        Just(ColumnType::Boolean),
        Just(ColumnType::SmallInt),
        Just(ColumnType::Integer),
        Just(ColumnType::BigInt),
        Just(ColumnType::Real),
        Just(ColumnType::Double),
        Just(ColumnType::Decimal { precision: 38, scale: 4 }),
        Just(ColumnType::Text),
        Just(ColumnType::Bytes),
        Just(ColumnType::Timestamp),
        Just(ColumnType::TimestampTz),
        Just(ColumnType::Date),
        Just(ColumnType::Time),
        Just(ColumnType::Uuid),
    ]
}

pub(super) fn any_type() -> impl Strategy<Value = ColumnType> {
    prop_oneof![
        14 => key_type(),
        1 => Just(ColumnType::Json),
        1 => Just(ColumnType::File),
        2 => (1_u16..5).prop_map(ColumnType::Embedding),
    ]
}

/// Bytes that often need escaping.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(
        prop_oneof![3 => prop::sample::select(vec![0_u8, 1, 2, 0x61, 0xFE, 0xFF]), 1 => any::<u8>()],
        0..12,
    )
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[\u{0}\u{1}ab]{0,6}", ".{0,8}"]
}

/// Values of `ty`, sometimes NULL.
pub(super) fn value(ty: ColumnType) -> BoxedStrategy<ScalarValue> {
    let null = ScalarValue::try_from(&ty.arrow()).unwrap();
    let some: BoxedStrategy<ScalarValue> = match ty {
        ColumnType::Boolean => any::<bool>().prop_map(ScalarValue::from).boxed(),
        ColumnType::SmallInt => any::<i16>().prop_map(ScalarValue::from).boxed(),
        ColumnType::Integer => any::<i32>().prop_map(ScalarValue::from).boxed(),
        ColumnType::BigInt => any::<i64>().prop_map(ScalarValue::from).boxed(),
        ColumnType::Real => any::<f32>().prop_map(ScalarValue::from).boxed(),
        ColumnType::Double => prop_oneof![
            any::<f64>(),
            prop::sample::select(vec![0.0, -0.0, f64::NAN, -f64::NAN, f64::INFINITY, -1.0, 1.0])
        ]
        .prop_map(ScalarValue::from)
        .boxed(),
        ColumnType::Decimal { precision, scale } => any::<i128>()
            .prop_map(move |value| ScalarValue::Decimal128(Some(value), precision, scale))
            .boxed(),
        ColumnType::Text | ColumnType::Json | ColumnType::File => {
            text().prop_map(|text| ScalarValue::Utf8(Some(text))).boxed()
        }
        ColumnType::Bytes => bytes().prop_map(|bytes| ScalarValue::Binary(Some(bytes))).boxed(),
        ColumnType::Timestamp => {
            any::<i64>().prop_map(|micros| ScalarValue::TimestampMicrosecond(Some(micros), None)).boxed()
        }
        ColumnType::TimestampTz => any::<i64>()
            .prop_map(|micros| ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into())))
            .boxed(),
        ColumnType::Date => any::<i32>().prop_map(|days| ScalarValue::Date32(Some(days))).boxed(),
        ColumnType::Time => {
            any::<i64>().prop_map(|micros| ScalarValue::Time64Microsecond(Some(micros))).boxed()
        }
        ColumnType::Uuid => {
            any::<[u8; 16]>().prop_map(|uuid| ScalarValue::FixedSizeBinary(16, Some(uuid.to_vec()))).boxed()
        }
        ColumnType::Embedding(dimensions) => prop::collection::vec(any::<f32>(), usize::from(dimensions))
            .prop_map(|elements| embedding(&elements))
            .boxed(),
    };
    prop_oneof![4 => some, 1 => Just(null)].boxed()
}

pub(super) fn embedding(elements: &[f32]) -> ScalarValue {
    let list = FixedSizeListArray::try_new(
        Arc::new(Field::new_list_field(DataType::Float32, true)),
        i32::try_from(elements.len()).unwrap(),
        Arc::new(Float32Array::from(elements.to_vec())),
        Some(NullBuffer::new_valid(1)),
    );
    ScalarValue::FixedSizeList(Arc::new(list.unwrap()))
}

/// Column types, and rows with one value per type.
pub(super) fn rows(
    ty: impl Strategy<Value = ColumnType> + 'static,
    columns: std::ops::Range<usize>,
    rows: std::ops::Range<usize>,
) -> impl Strategy<Value = (Vec<ColumnType>, Vec<Vec<ScalarValue>>)> {
    prop::collection::vec(ty, columns).prop_flat_map(move |types| {
        let row: Vec<_> = types.iter().map(|ty| value(*ty)).collect();
        (Just(types), prop::collection::vec(row, rows.clone()))
    })
}

/// Converts rows to Arrow columns.
pub(super) fn columns(types: &[ColumnType], rows: &[Vec<ScalarValue>]) -> Vec<ArrayRef> {
    types
        .iter()
        .enumerate()
        .map(|(column, ty)| match rows.is_empty() {
            true => arrow::array::new_empty_array(&ty.arrow()),
            false => ScalarValue::iter_to_array(rows.iter().map(|row| row[column].clone())).unwrap(),
        })
        .collect()
}
