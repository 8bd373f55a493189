//! Tests of table definitions: what changes keep and what validation refuses.

use datafusion::common::ScalarValue;

use super::*;
use crate::schema_registry::{ColumnDefault, Durability};

fn table(columns: Vec<ColumnDefinition>, key: &[usize]) -> Result<TableDefinition> {
    TableDefinition::create(
        TableId(1000),
        "app".into(),
        "notes".into(),
        TableKind::User,
        columns,
        key,
        TableOptions::defaults_for(TableKind::User),
        UserId::ROOT,
        7,
    )
}

fn column(name: &str, ty: ColumnType) -> ColumnDefinition {
    ColumnDefinition::new(ColumnId(0), name, ty, true)
}

#[test]
fn key_columns_become_not_null() {
    let table = table(vec![column("a", ColumnType::Text), column("id", ColumnType::BigInt)], &[1]).unwrap();
    assert!(!table.columns[1].nullable);
    assert_eq!(table.key_types(), [ColumnType::BigInt]);
    assert_eq!(table.key_positions(), [1]);
    assert_eq!(table.scope_for(UserId(9)), ScopeId(9));
}

#[test]
fn wrong_definitions_are_refused() {
    let check = |result: Result<TableDefinition>, sqlstate: SqlState| {
        assert_eq!(result.unwrap_err().sqlstate(), sqlstate);
    };
    let text = || column("a", ColumnType::Text);
    check(table(vec![], &[]), SqlState::INVALID_TABLE_DEFINITION);
    check(table(vec![text(), text()], &[]), SqlState::DUPLICATE_COLUMN);
    check(table(vec![column("_seq", ColumnType::Text)], &[]), SqlState::INVALID_NAME);
    check(table(vec![column("j", ColumnType::Json)], &[0]), SqlState::INVALID_TABLE_DEFINITION);
    check(table(vec![text()], &[0, 0]), SqlState::INVALID_TABLE_DEFINITION);
    let mut wrong = text();
    wrong.default = Some(ColumnDefault::SnowflakeId);
    check(table(vec![wrong], &[]), SqlState::DATATYPE_MISMATCH);
    let mut wrong = column("n", ColumnType::Integer);
    wrong.default = Some(ColumnDefault::Literal("many".to_owned()));
    check(table(vec![wrong], &[]), SqlState::INVALID_TEXT_REPRESENTATION);
}

#[test]
fn rows_of_every_version_keep_their_layout() {
    let one = table(vec![column("id", ColumnType::BigInt), column("a", ColumnType::Text)], &[0]).unwrap();
    let two = one.next_version(8, |table| {
        table.comment = Some("words".to_owned());
        Ok(())
    });
    let two = two.unwrap();
    let three = two.next_version(9, |table| {
        let mut added = ColumnDefinition::new(table.next_column_id, "n", ColumnType::Integer, false);
        added.initial = Some("5".to_owned());
        table.next_column_id = ColumnId(4);
        table.columns.push(added);
        table.columns.remove(1);
        Ok(())
    });
    let three = three.unwrap();
    let ids = |version: u32| {
        let layout = three.layout(SchemaVersion(version)).unwrap();
        layout.columns.iter().map(|(id, _)| id.0).collect::<Vec<_>>()
    };
    assert_eq!(ids(1), [1, 2]);
    assert_eq!(ids(2), [1, 2]);
    assert_eq!(ids(3), [1, 3]);
    assert_eq!(three.layout(SchemaVersion(4)), None);
    assert_eq!(three.history.len(), 1, "a comment is no new layout");
    assert_eq!(three.columns[1].initial_value().unwrap(), ScalarValue::Int32(Some(5)));
    let text = serde_json::to_string(&three).unwrap();
    assert_eq!(serde_json::from_str::<TableDefinition>(&text).unwrap(), three);
}

/// Returns the version after `table`, with its columns changed.
fn changed(
    table: &TableDefinition,
    change: impl FnOnce(&mut Vec<ColumnDefinition>),
) -> Result<TableDefinition> {
    table.next_version(8, |table| {
        change(&mut table.columns);
        Ok(())
    })
}

#[test]
fn a_type_only_becomes_wider_and_that_of_a_key_never_changes() {
    use ColumnType::{BigInt, Bytes, Double, Integer, Json, Real, SmallInt, Text};
    let decimal = |precision, scale| ColumnType::Decimal { precision, scale };
    let one = |ty| table(vec![column("id", Integer), column("v", ty)], &[0]).unwrap();
    for (from, to) in [
        (SmallInt, Integer),
        (SmallInt, BigInt),
        (Integer, BigInt),
        (Real, Double),
        (decimal(10, 2), decimal(12, 2)),
    ] {
        let two = changed(&one(from), |columns| columns[1].ty = to).unwrap();
        assert_eq!(two.layout(SchemaVersion(1)).unwrap().columns[1].1, from);
        assert_eq!(two.layout(SchemaVersion(2)).unwrap().columns[1].1, to);
        let error = changed(&two, |columns| columns[1].ty = from).unwrap_err();
        assert_eq!(error.sqlstate(), SqlState::FEATURE_NOT_SUPPORTED, "{to} to {from}");
    }
    for (from, to) in [
        (BigInt, Integer),
        (BigInt, Double),
        (Integer, decimal(20, 0)),
        (decimal(10, 2), decimal(12, 3)),
        (Integer, Text),
        (Text, Bytes),
        // They have one Arrow type, but not every text is JSON.
        (Text, Json),
    ] {
        let error = changed(&one(from), |columns| columns[1].ty = to).unwrap_err();
        assert_eq!(error.sqlstate(), SqlState::FEATURE_NOT_SUPPORTED, "{from} to {to}");
        let expected =
            format!("changing column \"v\" of table \"app.notes\" from {from} to {to} is not supported");
        assert_eq!(error.message(), expected);
        assert!(error.hint_text().unwrap().contains("wider"), "{error}");
    }
    let error = changed(&one(Text), |columns| columns[0].ty = BigInt).unwrap_err();
    assert_eq!(error.sqlstate(), SqlState::FEATURE_NOT_SUPPORTED);
    let expected = "changing the type of key column \"id\" of table \"app.notes\" is not supported";
    assert_eq!(error.message(), expected);
}

#[test]
fn the_key_and_the_ids_of_columns_stay() {
    let one = table(vec![column("id", ColumnType::BigInt), column("v", ColumnType::Text)], &[0]).unwrap();
    let error = one.next_version(8, |table| {
        table.columns[1].nullable = false;
        table.primary_key.push(ColumnId(2));
        Ok(())
    });
    let error = error.unwrap_err();
    assert_eq!(error.sqlstate(), SqlState::FEATURE_NOT_SUPPORTED);
    assert!(error.message().contains("primary key of table \"app.notes\""), "{error}");
    let error = changed(&one, |columns| drop(columns.remove(0))).unwrap_err();
    assert_eq!(error.sqlstate(), SqlState::INVALID_TABLE_DEFINITION);

    let two = changed(&one, |columns| drop(columns.pop())).unwrap();
    let again = |columns: &mut Vec<ColumnDefinition>| {
        columns.push(ColumnDefinition::new(ColumnId(2), "v", ColumnType::Text, true));
    };
    let error = changed(&two, again).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.message().contains("\"v\" of table \"app.notes\" has the id 2"), "{error}");
    let three = two.next_version(9, |table| {
        table.next_column_id = ColumnId(1);
        Ok(())
    });
    assert_eq!(three.unwrap().next_column_id, ColumnId(3), "no id is given back");
}

#[test]
fn an_initial_value_has_one_form_and_is_cast_when_its_column_becomes_wider() {
    let check = |from: ColumnType, initial: &str, to: ColumnType, expected: &str, value: ScalarValue| {
        let one = table(vec![column("id", ColumnType::BigInt)], &[0]).unwrap();
        let two = one.next_version(8, |table| {
            let mut added = ColumnDefinition::new(table.next_column_id, "v", from, true);
            added.initial = Some(initial.to_owned());
            added.default = Some(ColumnDefault::Literal(initial.to_owned()));
            table.next_column_id = ColumnId(3);
            table.columns.push(added);
            Ok(())
        });
        let two = two.unwrap();
        let three = changed(&two, |columns| columns[1].ty = to).unwrap();
        assert_eq!(three.columns[1].initial.as_deref(), Some(expected));
        assert_eq!(three.columns[1].initial_value().unwrap(), value);
        // New rows get the default in the new type.
        assert_eq!(three.columns[1].default, Some(ColumnDefault::Literal(initial.to_owned())));
        let four = changed(&three, |columns| columns[1].initial = Some("7".to_owned())).unwrap();
        assert_eq!(four.columns[1].initial.as_deref(), Some(expected), "older rows keep their value");
    };
    let (real, double) = (ColumnType::Real, ColumnType::Double);
    let widened = ScalarValue::Float64(Some(f64::from(0.1_f32)));
    check(real, "0.1", double, "0.10000000149011612", widened);
    let widened = ScalarValue::Float64(Some(f64::from(1e30_f32)));
    check(real, "1e30", double, "1.0000000150474662e+30", widened);
    check(ColumnType::SmallInt, "-5", ColumnType::BigInt, "-5", ScalarValue::Int64(Some(-5)));
    let decimal = |precision| ColumnType::Decimal { precision, scale: 2 };
    check(decimal(10), "0.5", decimal(12), "0.50", ScalarValue::Decimal128(Some(50), 12, 2));
    check(double, "-0.0", double, "0", ScalarValue::Float64(Some(0.0)));
    check(ColumnType::Boolean, "t", ColumnType::Boolean, "true", ScalarValue::Boolean(Some(true)));
    let bytes = ScalarValue::Binary(Some(b"a\\b".to_vec()));
    check(ColumnType::Bytes, r"a\\b", ColumnType::Bytes, r"\x615c62", bytes);
}

#[test]
fn other_options_are_no_other_version() {
    let one = table(vec![column("id", ColumnType::BigInt)], &[0]).unwrap();
    let options = TableOptions { durability: Durability::Relaxed, ..one.options.clone() };
    let other = one.with_options(8, options).unwrap();
    assert_eq!((other.version, other.revision, other.updated_at), (one.version, 1, 8));
    assert!(other.follows(&one) && !one.follows(&other) && !one.follows(&one));
    let two = one.next_version(9, |table| {
        table.comment = Some("words".to_owned());
        Ok(())
    });
    let two = two.unwrap();
    assert!(two.follows(&one) && !two.follows(&other), "it was planned before the options changed");
    let text = serde_json::to_string(&other).unwrap();
    assert_eq!(serde_json::from_str::<TableDefinition>(&text).unwrap(), other);
}
