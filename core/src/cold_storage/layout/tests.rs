//! Tests of layouts: columns are found by their ids, and wrong segments are refused.

use arrow::array::{ArrayRef, AsArray, Int32Array, StringArray};
use arrow::datatypes::Int64Type;

use super::*;

fn wanted(columns: &[(&str, DataType, u32, Option<ScalarValue>)]) -> Arc<ReadSchema> {
    let fields = columns.iter().map(|(name, ty, ..)| Field::new(*name, ty.clone(), true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let columns = columns.iter().map(|(_, _, id, absent)| {
        let absent = absent.clone().map(|value| AbsentColumn { since: SchemaVersion(3), value });
        ReadColumn { id: ColumnId(*id), absent }
    });
    Arc::new(ReadSchema::new(schema, columns.collect()).unwrap())
}

/// A segment with the columns `n INTEGER` (1), `t TEXT` (2), `b BYTES` (3), `_seq`.
fn segment() -> FileColumns {
    let columns = wanted(&[
        ("n", DataType::Int32, 1, None),
        ("t", DataType::Utf8, 2, None),
        ("b", DataType::Binary, 3, None),
        ("_seq", DataType::Int64, COLUMN_ID_SEQ.0, None),
    ]);
    FileColumns::of(columns.file_schema().fields()).unwrap()
}

#[test]
fn columns_are_found_cast_and_filled() {
    let later = wanted(&[
        ("t", DataType::Int64, 1, Some(ScalarValue::Int64(None))),
        ("_seq", DataType::Int64, COLUMN_ID_SEQ.0, None),
        ("n", DataType::Int64, 4, Some(ScalarValue::Int64(Some(5)))),
    ]);
    let layout = SegmentLayout::new(&segment(), &later).unwrap();
    assert!(!layout.is_identity() && layout.is_for(&later));
    assert_eq!((layout.read_place(0), layout.read_place(1), layout.read_place(3)), (Some(0), None, Some(1)));
    let numbers: ArrayRef = Arc::new(Int32Array::from(vec![Some(1), None]));
    let seqs: ArrayRef = Arc::new(Int64Array::from(vec![0, 0]));
    let read = RecordBatch::try_from_iter([("n", numbers), ("_seq", seqs)]).unwrap();
    let rows = layout.apply(read, Some(Seq(9))).unwrap();
    assert!(Arc::ptr_eq(rows.schema_ref(), later.schema()));
    let column = |place: usize| rows.column(place).as_primitive::<Int64Type>().iter().collect::<Vec<_>>();
    assert_eq!(column(0), [Some(1), None]);
    assert_eq!(column(1), [Some(9), Some(9)]);
    assert_eq!(column(2), [Some(5), Some(5)]);
}

#[test]
fn the_same_columns_are_left_alone() {
    let same = wanted(&[("n", DataType::Int32, 1, None), ("t", DataType::Utf8, 2, None)]);
    let file = FileColumns::of(same.file_schema().fields()).unwrap();
    let layout = SegmentLayout::new(&file, &same).unwrap();
    assert!(layout.is_identity() && Arc::ptr_eq(layout.scan_schema(), same.schema()));
    let numbers: ArrayRef = Arc::new(Int32Array::from(vec![1]));
    let texts: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
    let rows = RecordBatch::try_new(Arc::clone(same.schema()), vec![numbers, texts]).unwrap();
    assert_eq!(layout.apply(rows.clone(), None).unwrap(), rows);
    // Another column under the name and in the place of an old one.
    let other =
        wanted(&[("n", DataType::Int32, 1, None), ("t", DataType::Utf8, 3, Some(ScalarValue::Utf8(None)))]);
    let layout = SegmentLayout::new(&file, &other).unwrap();
    assert!(!layout.is_identity());
    assert!(layout.scan_schema().fields().iter().all(|field| id_of(field).is_some()));
}

#[test]
fn bytes_under_the_name_of_a_text_are_not_read_as_text() {
    let later = wanted(&[
        ("b", DataType::Utf8, 4, Some(ScalarValue::Utf8(None))),
        ("old", DataType::Binary, 3, None),
    ]);
    let layout = SegmentLayout::new(&segment(), &later).unwrap();
    let scanned = layout.scan_schema().field_with_name("b").unwrap().data_type().clone();
    assert!(matches!(scanned, DataType::Dictionary(..)), "{scanned}");
}

#[test]
fn segments_with_other_columns_are_refused() {
    let check = |columns: &[(&str, DataType, u32, Option<ScalarValue>)], expected: &str| {
        let problem = SegmentLayout::new(&segment(), &wanted(columns)).unwrap_err();
        assert_eq!(problem, expected);
    };
    check(&[("x", DataType::Int64, 9, None)], "lacks the column \"x\"");
    let narrower = "has values of type Int32 in column \"n\", not Int16";
    check(&[("n", DataType::Int16, 1, None)], narrower);
    let without_id: FieldRef = Arc::new(Field::new("n", DataType::Int32, true));
    let with_id: FieldRef = Arc::new(with_id(&without_id, ColumnId(1)));
    let check = |fields: &[FieldRef], expected: &str| {
        assert_eq!(FileColumns::of(fields).unwrap_err(), expected);
    };
    check(&[Arc::clone(&with_id), without_id], "has columns without ids");
    check(&[Arc::clone(&with_id), with_id], "has two columns with the id 1");
}

#[test]
fn only_segments_of_earlier_versions_lack_a_column() {
    let null = Some(ScalarValue::Int64(None));
    let columns = [("n", DataType::Int32, 1, None), ("later", DataType::Int64, 4, null)];
    let layout = SegmentLayout::new(&segment(), &wanted(&columns)).unwrap();
    assert_eq!(layout.check_version(SchemaVersion(2)), Ok(()));
    for version in [3, 4] {
        let problem = layout.check_version(SchemaVersion(version)).unwrap_err();
        assert_eq!(problem, "lacks the column \"later\"");
    }
}

#[test]
fn a_key_column_has_its_one_type() {
    let file = segment();
    assert_eq!(file.key_position(ColumnId(2), &DataType::Utf8), Ok(1));
    let problem = file.key_position(ColumnId(9), &DataType::Utf8).unwrap_err();
    assert_eq!(problem, "lacks the key column with the id 9");
    let problem = file.key_position(ColumnId(1), &DataType::Int64).unwrap_err();
    assert_eq!(problem, "has values of type Int32 in column \"n\", not Int64");
}

#[test]
fn columns_without_ids_are_numbered() {
    let field = |name, ty| -> FieldRef { Arc::new(Field::new(name, ty, false)) };
    let mut fields = vec![
        field("n", DataType::Int64),
        field("key", DataType::FixedSizeBinary(12)),
        field(COLUMN_SEQ, DataType::Int64),
        field("_user_id", DataType::Int64),
        field("_row_id", DataType::FixedSizeBinary(12)),
    ];
    let file = FileColumns::of(&fields).unwrap();
    let expected = [ColumnId(1), ColumnId(2), COLUMN_ID_SEQ, COLUMN_ID_USER, COLUMN_ID_ROW];
    assert_eq!(file.ids, expected);
    fields.remove(3);
    assert_eq!(FileColumns::of(&fields).unwrap().ids[3], COLUMN_ID_ROW);
}
