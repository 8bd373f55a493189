//! Tests of the schema memo: one build per version, one allocation, few bytes.

use super::*;
use crate::ids::{ColumnId, UserId};
use crate::schema_registry::{Catalog, ColumnDefinition, SystemTable, TableKind, TableOptions};
use crate::types::ColumnType;

fn table(id: u32, kind: TableKind, columns: usize) -> Arc<TableDefinition> {
    let types = [
        ColumnType::BigInt,
        ColumnType::Text,
        ColumnType::Json,
        ColumnType::Embedding(3),
        ColumnType::TimestampTz,
    ];
    let columns = (0..columns)
        .map(|i| ColumnDefinition::new(ColumnId(0), format!("column_{i}"), types[i % types.len()], true))
        .collect();
    let mut options = TableOptions::defaults_for(kind);
    options.ttl_seconds = (kind == TableKind::Stream).then_some(60);
    let name = format!("table_{id}");
    let created = TableDefinition::create(
        TableId(id),
        "app".into(),
        name.into(),
        kind,
        columns,
        &[0],
        options,
        UserId::ROOT,
        1,
    );
    Arc::new(created.unwrap())
}

#[test]
fn every_kind_of_table_has_one_allocation_a_schema() {
    let registry = SchemaRegistry::new();
    let catalog = Catalog::initial(1);
    let system = SystemTable::ALL.map(|table| Arc::clone(catalog.table_by_id(table.id()).unwrap()));
    let kinds = [TableKind::User, TableKind::Shared, TableKind::Stream];
    let tables = system.into_iter().chain((2000..).zip(kinds).map(|(id, kind)| table(id, kind, 5)));
    let tables: Vec<_> = tables.collect();
    assert_eq!(tables.len(), 13);
    for table in &tables {
        let first = registry.schemas(table);
        for _ in 0..1_000 {
            let again = registry.schemas(table);
            assert!(Arc::ptr_eq(&first.visible, &again.visible));
            assert!(Arc::ptr_eq(&first.full, &again.full));
            assert!(Arc::ptr_eq(first.write(), again.write()));
            assert_eq!(first.visible_ipc().as_ptr(), again.visible_ipc().as_ptr());
        }
        assert_eq!(first.visible.fields().len(), table.columns.len());
    }
    let counters = registry.counters();
    assert_eq!((counters.builds, counters.misses, counters.encodings), (13, 13, 13));
    assert_eq!(counters.hits, 13_000);
}

#[test]
fn concurrent_first_lookups_build_once() {
    let registry = SchemaRegistry::new();
    let table = table(1000, TableKind::Shared, 5);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| registry.schemas(&table).visible_ipc());
        }
    });
    assert_eq!(registry.counters().builds, 1);
    assert_eq!(registry.counters().encodings, 1);
}

#[test]
fn a_new_version_is_built_once_and_leaves_others_alone() {
    let registry = SchemaRegistry::new();
    let (one, other) = (table(1000, TableKind::Shared, 5), table(1001, TableKind::Shared, 5));
    let (before, other_before) = (registry.schemas(&one), registry.schemas(&other));
    let two = one.next_version(2, |table| {
        table.columns.pop();
        Ok(())
    });
    let two = Arc::new(two.unwrap());
    registry.invalidate(one.id);
    let after = registry.schemas(&two);
    assert!(Arc::ptr_eq(&after, &registry.schemas(&two)));
    assert_eq!(before.visible.fields().len(), after.visible.fields().len() + 1);
    assert!(Arc::ptr_eq(&other_before, &registry.schemas(&other)));
    assert_eq!(registry.counters().builds, 3);
    assert_eq!(registry.counters().entries, 2);
}

#[test]
fn other_options_keep_every_allocation() {
    let registry = SchemaRegistry::new();
    let one = table(1000, TableKind::Stream, 5);
    let before = registry.schemas(&one);
    let options = TableOptions { ttl_seconds: Some(7), ..one.options.clone() };
    let other = Arc::new(one.with_options(2, options).unwrap());
    let after = registry.schemas(&other);
    assert_eq!(after.definition.options.ttl_seconds, Some(7));
    assert!(Arc::ptr_eq(&before.visible, &after.visible) && Arc::ptr_eq(&before.full, &after.full));
    assert!(Arc::ptr_eq(before.write(), after.write()));
    assert!(Arc::ptr_eq(before.segment().unwrap(), after.segment().unwrap()));
    assert_eq!(before.visible_ipc().as_ptr(), after.visible_ipc().as_ptr());
    assert!(Arc::ptr_eq(&registry.schemas(&other), &after));
    assert_eq!((registry.counters().builds, registry.counters().encodings), (1, 1));
}

#[test]
fn a_plan_that_lost_does_not_leave_its_columns_behind() {
    let registry = SchemaRegistry::new();
    let (lost, won) = (table(1000, TableKind::Shared, 3), table(1000, TableKind::Shared, 4));
    assert_eq!(registry.schemas(&lost).visible.fields().len(), 3);
    assert_eq!(registry.schemas(&won).visible.fields().len(), 4);
    assert_eq!(registry.schemas(&won).visible.fields().len(), 4);
    assert_eq!(registry.counters().builds, 2);
}

#[test]
fn only_the_visible_schema_matches() {
    let registry = SchemaRegistry::new();
    let table = table(1000, TableKind::Shared, 5);
    let schemas = registry.schemas(&table);
    let copy = Schema::new(schemas.visible.fields().to_vec());
    assert!(Arc::ptr_eq(&registry.match_visible(&copy, &table).unwrap(), &schemas));
    assert!(registry.match_visible(&schemas.full, &table).is_none());
    let projected = copy.project(&[1, 0, 2, 3, 4]).unwrap();
    assert!(registry.match_visible(&projected, &table).is_none());
}

#[test]
fn the_encoded_message_is_read_back_as_the_schema() {
    let registry = SchemaRegistry::new();
    let schemas = registry.schemas(&table(1000, TableKind::Shared, 5));
    let message = schemas.visible_ipc();
    assert_eq!(&message[..4], &[0xff; 4]);
    let reader = arrow::ipc::reader::StreamReader::try_new(&message[..], None).unwrap();
    assert_eq!(reader.schema(), schemas.visible);
}

#[test]
fn a_thousand_tables_stay_below_two_megabytes() {
    let registry = SchemaRegistry::new();
    for id in 1000..2000 {
        registry.schemas(&table(id, TableKind::Shared, 20));
    }
    let bytes = registry.counters().bytes;
    assert!(bytes < 2_000_000, "{bytes} bytes");
}
