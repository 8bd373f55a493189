//! Tests of the catalog: what it accepts and refuses.

use std::sync::Arc;

use super::*;
use crate::access::Role;
use crate::ids::ColumnId;
use crate::schema_registry::{ColumnDefinition, TableOptions};
use crate::types::ColumnType;

fn namespace(id: u32, name: &str) -> CatalogChange {
    CatalogChange::PutNamespace(NamespaceRecord {
        id: NamespaceId(id),
        name: Arc::from(name),
        revision: 1,
        options: None,
        created_at: 1,
    })
}

fn definition(id: TableId, namespace: &str, name: &str) -> TableDefinition {
    TableDefinition::create(
        id,
        namespace.into(),
        name.into(),
        TableKind::Shared,
        vec![ColumnDefinition::new(ColumnId(0), "id", ColumnType::BigInt, false)],
        &[0],
        TableOptions::defaults_for(TableKind::Shared),
        UserId::ROOT,
        1,
    )
    .unwrap()
}

fn table(id: u32, namespace: &str, name: &str) -> CatalogChange {
    CatalogChange::PutTable(definition(TableId(id), namespace, name))
}

fn user(id: u64, name: &str, revision: u32) -> CatalogChange {
    CatalogChange::PutUser(UserRecord {
        id: UserId(id),
        username: name.into(),
        revision,
        password_hash: Some("secret".to_owned()),
        role: Role::User,
        email: None,
        created_at: 1,
        updated_at: 1,
        last_login_at: None,
        auth_generation: 7,
        settings: Default::default(),
    })
}

fn grow(changes: &[CatalogChange]) -> Catalog {
    changes.iter().fold(Catalog::initial(1), |catalog, change| catalog.apply(change).unwrap())
}

#[test]
fn a_new_database_has_its_system_tables() {
    let catalog = Catalog::initial(5);
    let names: Vec<_> = catalog.tables_in("system").map(|table| table.name.to_string()).collect();
    let expected = [
        "audit_logs",
        "jobs",
        "live_queries",
        "namespaces",
        "queries",
        "sessions",
        "stats",
        "storages",
        "tables",
        "users",
    ];
    assert_eq!(names, expected);
    assert!(catalog.namespace("public").is_some());
    assert!(catalog.storage("local").is_some());
    assert_eq!(catalog.next_table_id(), TableId::FIRST_USER_TABLE);
}

#[test]
fn an_old_catalog_stays_as_it_was() {
    let before = grow(&[namespace(10, "app")]);
    let after = before.apply(&table(1000, "app", "notes")).unwrap();
    assert!(before.table("app", "notes").is_none());
    assert!(after.table("app", "notes").is_some());
    assert_eq!(after.next_table_id(), TableId(1001));
}

#[test]
fn what_cannot_be_is_refused() {
    let catalog = grow(&[namespace(10, "app"), table(1000, "app", "notes"), user(1, "root", 1)]);
    let check = |change: CatalogChange, sqlstate: SqlState| {
        let error = catalog.apply(&change).unwrap_err();
        assert_eq!(error.sqlstate(), sqlstate, "{change:?}: {error}");
    };
    check(namespace(11, "app"), SqlState::DUPLICATE_SCHEMA);
    check(namespace(10, "app"), SqlState::SERIALIZATION_FAILURE);
    check(namespace(11, "system"), SqlState::RESERVED_NAME);
    check(namespace(9, "other"), SqlState::SERIALIZATION_FAILURE);
    check(table(1001, "app", "notes"), SqlState::DUPLICATE_TABLE);
    check(table(1001, "nowhere", "notes"), SqlState::INVALID_SCHEMA_NAME);
    check(table(1001, "system", "mine"), SqlState::INSUFFICIENT_PRIVILEGE);
    check(table(1000, "app", "notes"), SqlState::SERIALIZATION_FAILURE);
    check(table(999, "app", "other"), SqlState::SERIALIZATION_FAILURE);
    check(CatalogChange::DropTable(TableId(1)), SqlState::INSUFFICIENT_PRIVILEGE);
    check(CatalogChange::DropTable(TableId(1001)), SqlState::SERIALIZATION_FAILURE);
    check(CatalogChange::DropNamespace(NamespaceId(10)), SqlState::DEPENDENT_OBJECTS_EXIST);
    check(CatalogChange::DropNamespace(PUBLIC_ID), SqlState::DEPENDENT_OBJECTS_EXIST);
    check(user(2, "root", 1), SqlState::DUPLICATE_OBJECT);
    check(user(1, "other", 2), SqlState::FEATURE_NOT_SUPPORTED);
    check(user(1, "root", 1), SqlState::SERIALIZATION_FAILURE);
    check(CatalogChange::DropUser(UserId(7)), SqlState::SERIALIZATION_FAILURE);
    check(CatalogChange::DropStorage("local".into()), SqlState::DEPENDENT_OBJECTS_EXIST);
    check(CatalogChange::DropStorage("s3".into()), SqlState::UNDEFINED_OBJECT);
}

#[test]
fn of_two_alters_planned_together_one_is_a_conflict() {
    let catalog = grow(&[table(1000, "public", "notes")]);
    let plan = |comment: &str| {
        let old = catalog.table_by_id(TableId(1000)).unwrap();
        let next = old.next_version(2, |table| {
            table.comment = Some(comment.to_owned());
            Ok(())
        });
        CatalogChange::PutTable(next.unwrap())
    };
    let (first, second) = (plan("a"), plan("b"));
    let after = catalog.apply(&first).unwrap();
    assert_eq!(after.apply(&second).unwrap_err().kind(), ErrorKind::Conflict);
}

#[test]
fn a_number_is_never_used_again() {
    let catalog = grow(&[table(1000, "public", "notes"), user(1, "ann", 1)]);
    let catalog = catalog.apply(&CatalogChange::DropTable(TableId(1000))).unwrap();
    let catalog = catalog.apply(&CatalogChange::DropUser(UserId(1))).unwrap();
    assert_eq!(catalog.apply(&table(1000, "public", "notes")).unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(catalog.apply(&user(1, "ann", 1)).unwrap_err().kind(), ErrorKind::Conflict);
    assert!(catalog.apply(&user(2, "ann", 1)).is_ok());
}

#[test]
fn a_rename_frees_the_old_name() {
    let catalog = grow(&[namespace(10, "app"), table(1000, "app", "notes")]);
    let old = Arc::clone(catalog.table_by_id(TableId(1000)).unwrap());
    let renamed = old.next_version(2, |table| {
        table.name = "papers".into();
        Ok(())
    });
    let catalog = catalog.apply(&CatalogChange::PutTable(renamed.unwrap())).unwrap();
    assert!(catalog.table("app", "notes").is_none());
    assert_eq!(catalog.table("app", "papers").unwrap().version, SchemaVersion(2));
    assert!(catalog.apply(&table(1001, "app", "notes")).is_ok());
}

#[test]
fn a_catalog_is_restored_from_its_records() {
    let catalog = grow(&[namespace(10, "app"), table(1000, "app", "notes"), user(1, "root", 1)]);
    let records: Vec<CatalogChange> = catalog
        .records()
        .iter()
        .rev()
        .map(|record| serde_json::from_str(&serde_json::to_string(record).unwrap()).unwrap())
        .collect();
    let restored = Catalog::restore(catalog.header(), records).unwrap();
    assert_eq!(restored.records(), catalog.records());
    assert_eq!(restored.header(), catalog.header());
    assert_eq!(restored.user_by_name("root").unwrap().auth_generation, 7);
}

#[test]
fn no_debug_text_holds_a_password_hash() {
    let catalog = grow(&[user(1, "root", 1)]);
    assert!(!format!("{catalog:?}").contains("secret"));
}
