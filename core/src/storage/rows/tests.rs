//! Tests of rows: round trips of every type, older layouts, damaged bytes, and the frozen bytes themselves.

use arrow::array::Array;
use datafusion::common::ScalarValue;
use proptest::prelude::*;

use super::*;
use crate::storage::arbitrary;
use crate::storage::columns::canonical;
use crate::storage::row_decoder::{Output, RowDecoder};

const VERSION: SchemaVersion = SchemaVersion(3);

fn layout(types: &[ColumnType]) -> RowLayout {
    RowLayout { since: SchemaVersion(1), columns: (1..).map(ColumnId).zip(types.iter().copied()).collect() }
}

fn output(id: u32, ty: ColumnType) -> Output {
    Output::Column { id: ColumnId(id), ty, absent: ScalarValue::try_from(&ty.arrow()).unwrap() }
}

fn outputs(layout: &RowLayout) -> Vec<Output> {
    layout.columns.iter().map(|(id, ty)| output(id.0, *ty)).collect()
}

proptest! {
    #[test]
    fn rows_come_back_as_they_were(
        (types, rows) in arbitrary::rows(arbitrary::any_type(), 0..12, 1..8),
        expires_at in any::<Option<i64>>(),
        wanted in any::<u16>(),
    ) {
        let columns = arbitrary::columns(&types, &rows);
        let encoded = RowEncoder::new(VERSION, types.clone()).encode(&columns, rows.len(), expires_at).unwrap();
        let layout = layout(&types);
        let picked: Vec<usize> = (0..types.len()).filter(|column| wanted >> column & 1 == 1).rev().collect();
        let mut all = RowDecoder::new(outputs(&layout), VERSION, std::slice::from_ref(&layout));
        let some_outputs = picked.iter().map(|column| outputs(&layout)[*column].clone()).collect();
        let mut some = RowDecoder::new(some_outputs, VERSION, std::slice::from_ref(&layout));
        for (mut row, seq) in encoded.into_iter().zip(1..) {
            prop_assert_eq!(row_seq(&row).unwrap(), Seq::ZERO);
            set_row_seq(&mut row, Seq(seq)).unwrap();
            prop_assert_eq!(row_seq(&row).unwrap(), Seq(seq));
            prop_assert_eq!(row_expires_at(&row).unwrap(), expires_at);
            all.push(b"key", &row).unwrap();
            some.push(b"key", &row).unwrap();
        }
        let decoded = all.finish().unwrap();
        for (column, (given, back)) in columns.iter().zip(&decoded).enumerate() {
            prop_assert_eq!(back.data_type(), &types[column].arrow());
            prop_assert_eq!(bits(&canonical(given)), bits(back), "column {}", column);
        }
        for (column, back) in picked.iter().zip(some.finish().unwrap()) {
            prop_assert_eq!(bits(&decoded[*column]), bits(&back));
        }
    }

    #[test]
    fn damaged_rows_are_errors(
        types in prop::collection::vec(arbitrary::any_type(), 0..6),
        body in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let mut row = vec![1, 0, 3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        row.extend(body.iter().skip(1));
        let layout = layout(&types);
        for bytes in [&row, &body] {
            let mut decoder = RowDecoder::new(outputs(&layout), VERSION, std::slice::from_ref(&layout));
            if let Err(error) = decoder.push(b"key", bytes) {
                prop_assert_eq!(error.kind(), ErrorKind::Corruption);
            }
        }
    }

    #[test]
    fn a_cut_off_row_is_an_error((types, rows) in arbitrary::rows(arbitrary::any_type(), 1..6, 1..2), cut in 1_usize..30) {
        let columns = arbitrary::columns(&types, &rows);
        let row = RowEncoder::new(VERSION, types.clone()).encode(&columns, 1, Some(5)).unwrap().remove(0);
        let cut = &row[..row.len().saturating_sub(cut)];
        let layout = layout(&types);
        let mut decoder = RowDecoder::new(outputs(&layout), VERSION, std::slice::from_ref(&layout));
        prop_assert_eq!(decoder.push(b"key", cut).unwrap_err().kind(), ErrorKind::Corruption);
    }
}

/// Returns the values of an array, with floats as bits, so that NaN equals itself.
fn bits(array: &ArrayRef) -> Vec<String> {
    (0..array.len())
        .map(|row| match ScalarValue::try_from_array(array, row).unwrap() {
            ScalarValue::Float32(Some(value)) => format!("{:x}", value.to_bits()),
            ScalarValue::Float64(Some(value)) => format!("{:x}", value.to_bits()),
            ScalarValue::FixedSizeList(list) if list.is_null(0) => "NULL".to_owned(),
            ScalarValue::FixedSizeList(list) => {
                let elements = list.values().as_any().downcast_ref::<arrow::array::Float32Array>().unwrap();
                elements.values().iter().map(|element| format!("{:x},", element.to_bits())).collect()
            }
            value => format!("{value:?}"),
        })
        .collect()
}

#[test]
fn the_bytes_are_frozen() {
    let types = vec![
        ColumnType::Boolean,
        ColumnType::SmallInt,
        ColumnType::Integer,
        ColumnType::BigInt,
        ColumnType::Real,
        ColumnType::Double,
        ColumnType::Decimal { precision: 10, scale: 2 },
        ColumnType::Text,
        ColumnType::Bytes,
        ColumnType::Uuid,
        ColumnType::Embedding(2),
        ColumnType::Date,
    ];
    let row = vec![
        ScalarValue::Boolean(Some(true)),
        ScalarValue::Int16(Some(-2)),
        ScalarValue::Int32(None),
        ScalarValue::Int64(Some(258)),
        ScalarValue::Float32(Some(1.0)),
        ScalarValue::Float64(Some(-2.0)),
        ScalarValue::Decimal128(Some(1), 10, 2),
        ScalarValue::Utf8(Some("hi".into())),
        ScalarValue::Binary(Some(vec![])),
        ScalarValue::FixedSizeBinary(16, Some(vec![9; 16])),
        arbitrary::embedding(&[1.0, 0.0]),
        ScalarValue::Date32(None),
    ];
    let encode = |expires_at| {
        let columns = arbitrary::columns(&types, std::slice::from_ref(&row));
        let mut encoded =
            RowEncoder::new(VERSION, types.clone()).encode(&columns, 1, expires_at).unwrap().remove(0);
        set_row_seq(&mut encoded, Seq(0x0102)).unwrap();
        encoded
    };
    let mut columns = vec![0b100, 0b1000];
    columns.extend([1, 0xFE, 0xFF]);
    columns.extend([2, 1, 0, 0, 0, 0, 0, 0]);
    columns.extend([0, 0, 0x80, 0x3F]);
    columns.extend([0, 0, 0, 0, 0, 0, 0, 0xC0]);
    columns.extend([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    columns.extend([2, 0, 0, 0, b'h', b'i']);
    columns.extend([0, 0, 0, 0]);
    columns.extend([9; 16]);
    columns.extend([0, 0, 0x80, 0x3F, 0, 0, 0, 0]);
    assert_eq!(encode(None), [&[1, 0, 3, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0][..], &columns].concat());
    assert_eq!(
        encode(Some(1)),
        [&[1, 1, 3, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0][..], &columns].concat()
    );
}

#[test]
fn the_bytes_of_times_and_documents_are_frozen() {
    let types = [
        ColumnType::Timestamp,
        ColumnType::TimestampTz,
        ColumnType::Time,
        ColumnType::Json,
        ColumnType::File,
    ];
    let row = vec![
        ScalarValue::TimestampMicrosecond(Some(258), None),
        ScalarValue::TimestampMicrosecond(Some(-1), Some("UTC".into())),
        ScalarValue::Time64Microsecond(Some(3)),
        ScalarValue::Utf8(Some("[]".into())),
        ScalarValue::Utf8(None),
    ];
    let expected = [
        &[1, 0][..],               // format, flags
        &[3, 0, 0, 0],             // version
        &[0, 0, 0, 0, 0, 0, 0, 0], // seq
        &[0b10000],                // NULLs
        &[2, 1, 0, 0, 0, 0, 0, 0], // TIMESTAMP
        &[0xFF; 8],                // TIMESTAMPTZ
        &[3, 0, 0, 0, 0, 0, 0, 0], // TIME
        &[2, 0, 0, 0, b'[', b']'], // JSON
    ]
    .concat();
    let columns = arbitrary::columns(&types, &[row]);
    let encoded = RowEncoder::new(VERSION, types.to_vec()).encode(&columns, 1, None).unwrap();
    assert_eq!(encoded, [&*expected]);
    let layout = layout(&types);
    let mut decoder = RowDecoder::new(outputs(&layout), VERSION, std::slice::from_ref(&layout));
    decoder.push(b"key", &expected).unwrap();
    let decoded = decoder.finish().unwrap();
    assert!(columns.iter().zip(&decoded).all(|(given, back)| bits(given) == bits(back)));
}

#[test]
fn rows_of_older_layouts_get_the_value_an_added_column_began_with() {
    let text =
        |texts: &[&str]| std::sync::Arc::new(arrow::array::StringArray::from(texts.to_vec())) as ArrayRef;
    let number =
        |numbers: &[i64]| std::sync::Arc::new(arrow::array::Int64Array::from(numbers.to_vec())) as ArrayRef;
    // Version 1 has (1 text, 2 bigint); version 4 dropped 2 and added 3.
    let layouts = [
        RowLayout {
            since: SchemaVersion(1),
            columns: vec![(ColumnId(1), ColumnType::Text), (ColumnId(2), ColumnType::BigInt)],
        },
        RowLayout {
            since: SchemaVersion(4),
            columns: vec![(ColumnId(3), ColumnType::BigInt), (ColumnId(1), ColumnType::Text)],
        },
    ];
    let old = RowEncoder::new(SchemaVersion(2), vec![ColumnType::Text, ColumnType::BigInt])
        .encode(&[text(&["a", "b"]), number(&[1, 2])], 2, None)
        .unwrap();
    let new = RowEncoder::new(SchemaVersion(5), vec![ColumnType::BigInt, ColumnType::Text])
        .encode(&[number(&[7]), text(&["c"])], 1, None)
        .unwrap();
    let outputs = vec![
        Output::Column { id: ColumnId(3), ty: ColumnType::BigInt, absent: ScalarValue::Int64(Some(-1)) },
        Output::Seq,
        output(1, ColumnType::Text),
        Output::Key,
        Output::Value,
    ];
    let mut decoder = RowDecoder::new(outputs, SchemaVersion(5), &layouts);
    for row in [&old[0], &new[0], &old[1]] {
        decoder.push(b"k", row).unwrap();
    }
    assert_eq!(decoder.len(), 3);
    let columns = decoder.finish().unwrap();
    assert_eq!(*columns[0], *number(&[-1, 7, -1]));
    assert_eq!(*columns[1], *number(&[0, 0, 0]));
    assert_eq!(*columns[2], *text(&["a", "c", "b"]));
    assert_eq!(columns[4].len(), 3);
    assert!(decoder.is_empty());
    decoder.push(b"k", &new[0]).unwrap();
    assert_eq!(*decoder.finish().unwrap()[0], *number(&[7]));

    let newer = RowEncoder::new(SchemaVersion(6), vec![]).encode(&[], 1, None).unwrap();
    assert_eq!(decoder.push(b"k", &newer[0]).unwrap_err().kind(), ErrorKind::Corruption);
}

#[test]
fn values_of_a_narrower_type_are_read_as_the_wider_one() {
    let check = |from: ColumnType, value: ScalarValue, to: ColumnType, expected: Option<ScalarValue>| {
        let columns = arbitrary::columns(&[from, ColumnType::Text], &[vec![value, "after".into()]]);
        let types = vec![from, ColumnType::Text];
        let row = RowEncoder::new(VERSION, types.clone()).encode(&columns, 1, None).unwrap().remove(0);
        let outputs = vec![output(1, to), output(2, ColumnType::Text)];
        let layout = layout(&types);
        let mut decoder = RowDecoder::new(outputs, VERSION, std::slice::from_ref(&layout));
        let decoded = decoder.push(b"k", &row).map(|()| decoder.finish().unwrap());
        match expected {
            None => assert_eq!(decoded.unwrap_err().kind(), ErrorKind::Corruption, "{from} to {to}"),
            Some(expected) => {
                let decoded = decoded.unwrap();
                assert_eq!(ScalarValue::try_from_array(&decoded[0], 0).unwrap(), expected, "{from} to {to}");
                assert_eq!(ScalarValue::try_from_array(&decoded[1], 0).unwrap(), ScalarValue::from("after"));
            }
        }
    };
    let decimal = |precision, scale| ColumnType::Decimal { precision, scale };
    let number = |precision, scale| ScalarValue::Decimal128(Some(-1234), precision, scale);
    check(ColumnType::SmallInt, ScalarValue::Int16(Some(-7)), ColumnType::Integer, Some((-7_i32).into()));
    check(ColumnType::SmallInt, ScalarValue::Int16(Some(-7)), ColumnType::BigInt, Some((-7_i64).into()));
    check(ColumnType::Integer, ScalarValue::Int32(Some(7)), ColumnType::BigInt, Some(7_i64.into()));
    check(ColumnType::Integer, ScalarValue::Int32(None), ColumnType::BigInt, Some(ScalarValue::Int64(None)));
    check(ColumnType::Real, ScalarValue::Float32(Some(1.5)), ColumnType::Double, Some(1.5_f64.into()));
    check(decimal(10, 2), number(10, 2), decimal(12, 2), Some(number(12, 2)));
    check(decimal(10, 2), number(10, 2), decimal(12, 3), None);
    check(ColumnType::BigInt, ScalarValue::Int64(Some(7)), ColumnType::Integer, None);
}

#[test]
fn bytes_behind_a_whole_row_are_damage() {
    let types = vec![ColumnType::Boolean];
    let columns = arbitrary::columns(&types, &[vec![ScalarValue::Boolean(Some(true))]]);
    let mut row = RowEncoder::new(VERSION, types.clone()).encode(&columns, 1, None).unwrap().remove(0);
    row.push(0);
    let layout = layout(&types);
    let mut decoder = RowDecoder::new(outputs(&layout), VERSION, std::slice::from_ref(&layout));
    assert!(decoder.push(b"k", &row).is_err());
}
