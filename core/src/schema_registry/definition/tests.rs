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
