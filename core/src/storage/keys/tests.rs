//! Tests of keys: order, round trips, damaged bytes, and the frozen bytes themselves.

use std::cmp::Ordering;

use proptest::prelude::*;

use super::*;
use crate::storage::arbitrary;

const TABLE: TableId = TableId(1000);
const SCOPE: ScopeId = ScopeId(7);

/// The order of SQL: NULL last, -0.0 = 0.0, one NaN after infinity, texts by bytes.
fn compare(left: &ScalarValue, right: &ScalarValue) -> Ordering {
    match (left.is_null(), right.is_null()) {
        (true, true) => return Ordering::Equal,
        (true, false) => return Ordering::Greater,
        (false, true) => return Ordering::Less,
        (false, false) => {}
    }
    let float = |left: f64, right: f64| match (left.is_nan(), right.is_nan()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Greater,
        (false, true) => Ordering::Less,
        (false, false) => left.partial_cmp(&right).unwrap(),
    };
    match (left, right) {
        (ScalarValue::Float32(Some(left)), ScalarValue::Float32(Some(right))) => {
            float((*left).into(), (*right).into())
        }
        (ScalarValue::Float64(Some(left)), ScalarValue::Float64(Some(right))) => float(*left, *right),
        (ScalarValue::Utf8(Some(left)), ScalarValue::Utf8(Some(right))) => {
            left.as_bytes().cmp(right.as_bytes())
        }
        (left, right) => left.partial_cmp(right).unwrap(),
    }
}

fn compare_rows(left: &[ScalarValue], right: &[ScalarValue]) -> Ordering {
    left.iter()
        .zip(right)
        .map(|(left, right)| compare(left, right))
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}

proptest! {
    #[test]
    fn bytes_sort_as_values_do((types, rows) in arbitrary::rows(arbitrary::key_type(), 1..4, 2..12)) {
        let encoder = KeyEncoder::new(&types).unwrap();
        let keys = encoder.encode(TABLE, SCOPE, &arbitrary::columns(&types, &rows)).unwrap();
        for (left_key, left) in keys.iter().zip(&rows) {
            for (right_key, right) in keys.iter().zip(&rows) {
                prop_assert_eq!(left_key.cmp(right_key), compare_rows(left, right), "{:?} {:?}", left, right);
            }
        }
    }

    #[test]
    fn keys_decode_to_equal_values((types, rows) in arbitrary::rows(arbitrary::key_type(), 1..4, 1..6)) {
        let encoder = KeyEncoder::new(&types).unwrap();
        let keys = encoder.encode(TABLE, SCOPE, &arbitrary::columns(&types, &rows)).unwrap();
        for (key, row) in keys.iter().zip(&rows) {
            let decoded = encoder.decode(key).unwrap();
            prop_assert_eq!(compare_rows(&decoded, row), Ordering::Equal);
            prop_assert_eq!(encoder.encode_values(TABLE, SCOPE, row).unwrap(), key.to_vec());
            prop_assert_eq!(encoder.encode_values(TABLE, SCOPE, &decoded).unwrap(), key.to_vec());
            prop_assert_eq!(table_and_scope(key), Some((TABLE, SCOPE)));
            for values in 0..row.len() {
                let start = encoder.encode_values(TABLE, SCOPE, &row[..values]).unwrap();
                prop_assert!(key.starts_with(&start));
                let column = encoder.encode_column(values, &row[values]).unwrap();
                prop_assert!(key.starts_with(&[start, column].concat()));
            }
        }
    }

    #[test]
    fn damaged_keys_are_errors(types in prop::collection::vec(arbitrary::key_type(), 1..3), key in prop::collection::vec(any::<u8>(), 0..40)) {
        let encoder = KeyEncoder::new(&types).unwrap();
        if let Err(error) = encoder.decode(&key) {
            prop_assert_eq!(error.kind(), ErrorKind::Corruption);
        }
    }

    #[test]
    fn a_cut_off_key_is_an_error((types, rows) in arbitrary::rows(arbitrary::key_type(), 1..3, 1..2), cut in 1_usize..8) {
        let encoder = KeyEncoder::new(&types).unwrap();
        let key = encoder.encode_values(TABLE, SCOPE, &rows[0]).unwrap();
        let cut = &key[..key.len().saturating_sub(cut).max(1)];
        prop_assert_eq!(encoder.decode(cut).unwrap_err().kind(), ErrorKind::Corruption);
    }
}

#[test]
fn the_bytes_are_frozen() {
    let check = |ty: ColumnType, value: ScalarValue, expected: &[u8]| {
        let key = KeyEncoder::new(&[ty]).unwrap().encode_values(TABLE, SCOPE, &[value]).unwrap();
        assert_eq!(&key[..12], [0, 0, 3, 0xE8, 0, 0, 0, 0, 0, 0, 0, 7], "{ty}");
        assert_eq!(&key[12..], expected, "{ty}");
    };
    check(ColumnType::Boolean, ScalarValue::Boolean(Some(true)), &[1, 1]);
    check(ColumnType::Boolean, ScalarValue::Boolean(None), &[2]);
    check(ColumnType::SmallInt, ScalarValue::Int16(Some(-2)), &[1, 0x7F, 0xFE]);
    check(ColumnType::Integer, ScalarValue::Int32(Some(1)), &[1, 0x80, 0, 0, 1]);
    check(
        ColumnType::BigInt,
        ScalarValue::Int64(Some(-1)),
        &[1, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF],
    );
    check(ColumnType::Real, ScalarValue::Float32(Some(1.0)), &[1, 0xBF, 0x80, 0, 0]);
    check(ColumnType::Real, ScalarValue::Float32(Some(-1.0)), &[1, 0x40, 0x7F, 0xFF, 0xFF]);
    check(ColumnType::Double, ScalarValue::Float64(Some(-0.0)), &[1, 0x80, 0, 0, 0, 0, 0, 0, 0]);
    check(ColumnType::Double, ScalarValue::Float64(Some(-f64::NAN)), &[1, 0xFF, 0xF8, 0, 0, 0, 0, 0, 0]);
    check(
        ColumnType::Decimal { precision: 10, scale: 2 },
        ScalarValue::Decimal128(Some(258), 10, 2),
        &[1, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2],
    );
    check(ColumnType::Text, ScalarValue::Utf8(Some("a\0b".into())), &[1, b'a', 0, 0xFF, b'b', 0, 1]);
    check(ColumnType::Text, ScalarValue::Utf8(Some(String::new())), &[1, 0, 1]);
    check(ColumnType::Bytes, ScalarValue::Binary(Some(vec![0xFF, 0])), &[1, 0xFF, 0, 0xFF, 0, 1]);
    check(ColumnType::Date, ScalarValue::Date32(Some(0)), &[1, 0x80, 0, 0, 0]);
    check(ColumnType::Time, ScalarValue::Time64Microsecond(Some(1)), &[1, 0x80, 0, 0, 0, 0, 0, 0, 1]);
    check(
        ColumnType::Timestamp,
        ScalarValue::TimestampMicrosecond(Some(1), None),
        &[1, 0x80, 0, 0, 0, 0, 0, 0, 1],
    );
    check(
        ColumnType::TimestampTz,
        ScalarValue::TimestampMicrosecond(Some(-1), Some("UTC".into())),
        &[1, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF],
    );
    check(
        ColumnType::Uuid,
        ScalarValue::FixedSizeBinary(16, Some((0..16).collect())),
        &[1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    );
    assert_eq!(
        hidden_key(TABLE, SCOPE, Seq(258), 3),
        [0, 0, 3, 0xE8, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 3]
    );
    assert_eq!(
        hidden_segment_key(TABLE, SCOPE, 258, 3),
        [0, 0, 3, 0xE8, 0, 0, 0, 0, 0, 0, 0, 7, 0x80, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 3]
    );
}

#[test]
fn a_start_of_text_covers_the_texts_that_begin_with_it() {
    let encoder = KeyEncoder::new(&[ColumnType::BigInt, ColumnType::Text]).unwrap();
    let start = encoder.encode_column_start(1, b"a\0").unwrap();
    let column = |text: &str| encoder.encode_column(1, &text.into()).unwrap();
    assert!(column("a\0").starts_with(&start) && column("a\0b").starts_with(&start));
    assert!(!column("a").starts_with(&start) && !column("b").starts_with(&start));
    assert!(encoder.encode_column_start(0, b"a").is_err());
    assert!(encoder.encode_column_start(2, b"a").is_err());
}

#[test]
fn long_keys_and_unordered_types_are_refused() {
    let encoder = KeyEncoder::new(&[ColumnType::Text]).unwrap();
    let error =
        encoder.encode_values(TABLE, SCOPE, &["x".repeat(KEY_BYTES_MAX).as_str().into()]).unwrap_err();
    assert_eq!(error.sqlstate(), SqlState::PROGRAM_LIMIT_EXCEEDED);
    assert!(KeyEncoder::new(&[ColumnType::Json]).is_err());
    assert!(encoder.encode_values(TABLE, SCOPE, &[ScalarValue::Int64(Some(1))]).is_err());
}
