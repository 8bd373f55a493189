//! The stored text of every kind of catalog record. Frozen: a database has these texts in its store, in its
//! change log and in its backups.

use std::fmt::Debug;

use serde::de::DeserializeOwned;

use super::*;
use crate::access::AccessLevel;
use crate::ids::{ColumnId, SchemaVersion};
use crate::schema_registry::{
    ColumnDefault, ColumnDefinition, Durability, FlushPolicy, RowLayout, ScopeKind, SystemTable, TableKind,
    TableOptions, system_definitions,
};
use crate::types::ColumnType;

/// Checks that `value` is written as `text`, but for its line breaks and indents, and that `text` is read as
/// `value`.
fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T, text: &str) {
    let text: String = text.lines().map(str::trim).collect();
    assert_eq!(serde_json::to_string(value).unwrap(), text);
    assert_eq!(serde_json::from_str::<T>(&text).unwrap(), *value);
}

/// Checks a change as [`check`], and the key of its record.
fn check_change(change: &CatalogChange, key: &str, text: &str) {
    check(change, text);
    assert_eq!(change.record_key(), key);
}

fn column(id: u32, name: &str, ty: ColumnType) -> ColumnDefinition {
    ColumnDefinition::new(ColumnId(id), name, ty, true)
}

#[test]
fn a_namespace_is_frozen() {
    let mut record = NamespaceRecord {
        id: NamespaceId(10),
        name: "app".into(),
        revision: 2,
        options: Some(r#"{"tier": 1}"#.to_owned()),
        created_at: 1_700_000_000_000_000,
    };
    check_change(
        &CatalogChange::PutNamespace(record.clone()),
        "namespace/10",
        r#"{"put_namespace":{
            "id":10,"name":"app","revision":2,"options":"{\"tier\": 1}","created_at":1700000000000000
        }}"#,
    );
    record.options = None;
    check_change(
        &CatalogChange::PutNamespace(record),
        "namespace/10",
        r#"{"put_namespace":{"id":10,"name":"app","revision":2,"created_at":1700000000000000}}"#,
    );
    check_change(&CatalogChange::DropNamespace(NamespaceId(10)), "namespace/10", r#"{"drop_namespace":10}"#);
}

#[test]
fn a_user_is_frozen() {
    let record = UserRecord {
        id: UserId(7),
        username: "ann".into(),
        revision: 3,
        password_hash: Some("$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA".to_owned()),
        role: Role::Service,
        email: Some("ann@example.com".to_owned()),
        created_at: 1,
        updated_at: 2,
        last_login_at: Some(3),
        auth_generation: 4,
        settings: Default::default(),
    };
    check_change(
        &CatalogChange::PutUser(record.clone()),
        "user/7",
        r#"{"put_user":{
            "id":7,"username":"ann","revision":3,
            "password_hash":"$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA",
            "role":"service","email":"ann@example.com",
            "created_at":1,"updated_at":2,"last_login_at":3,
            "auth_generation":4
        }}"#,
    );
    let record = UserRecord { password_hash: None, email: None, last_login_at: None, ..record };
    check_change(
        &CatalogChange::PutUser(record.clone()),
        "user/7",
        r#"{"put_user":{
            "id":7,"username":"ann","revision":3,"role":"service","created_at":1,"updated_at":2,
            "auth_generation":4
        }}"#,
    );
    let settings = BTreeMap::from([("statement_timeout".to_owned(), "5000".to_owned())]);
    check_change(
        &CatalogChange::PutUser(UserRecord { settings, ..record }),
        "user/7",
        r#"{"put_user":{
            "id":7,"username":"ann","revision":3,"role":"service","created_at":1,"updated_at":2,
            "auth_generation":4,"settings":{"statement_timeout":"5000"}
        }}"#,
    );
    check_change(&CatalogChange::DropUser(UserId(7)), "user/7", r#"{"drop_user":7}"#);
    check(&vec![Role::User, Role::Service, Role::Dba, Role::System], r#"["user","service","dba","system"]"#);
}

#[test]
fn a_storage_is_frozen() {
    let options = [("region", "eu"), ("endpoint", "http://localhost:9000")];
    let record = StorageRecord {
        id: "archive".into(),
        revision: 2,
        name: "Archive".to_owned(),
        description: Some("old rows".to_owned()),
        storage_type: "s3".to_owned(),
        base_directory: "s3://bucket/rows".to_owned(),
        credentials: Some("ARCHIVE".to_owned()),
        options: options.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        created_at: 1,
        updated_at: 2,
    };
    check_change(
        &CatalogChange::PutStorage(record),
        "storage/archive",
        r#"{"put_storage":{
            "id":"archive","revision":2,"name":"Archive","description":"old rows",
            "storage_type":"s3","base_directory":"s3://bucket/rows","credentials":"ARCHIVE",
            "options":{"endpoint":"http://localhost:9000","region":"eu"},
            "created_at":1,"updated_at":2
        }}"#,
    );
    check_change(
        &CatalogChange::PutStorage(StorageRecord { description: None, ..StorageRecord::local(5) }),
        "storage/local",
        r#"{"put_storage":{
            "id":"local","revision":1,"name":"Local",
            "storage_type":"filesystem","base_directory":"",
            "created_at":5,"updated_at":5
        }}"#,
    );
    check_change(
        &CatalogChange::DropStorage("archive".into()),
        "storage/archive",
        r#"{"drop_storage":"archive"}"#,
    );
}

#[test]
fn a_table_is_frozen() {
    let mut id = column(1, "id", ColumnType::BigInt);
    id.nullable = false;
    let mut name = column(2, "name", ColumnType::Text);
    name.default = Some(ColumnDefault::Literal("it's".to_owned()));
    name.length_max = Some(20);
    let mut price = column(4, "price", ColumnType::Decimal { precision: 10, scale: 2 });
    price.initial = Some("0.50".to_owned());
    let table = TableDefinition {
        id: TableId(1000),
        version: SchemaVersion(2),
        revision: 1,
        namespace: "app".into(),
        name: "notes".into(),
        kind: TableKind::Stream,
        columns: vec![id, name, price],
        primary_key: vec![ColumnId(1)],
        options: TableOptions {
            storage_id: "local".into(),
            flush_policy: FlushPolicy { rows: Some(100), bytes: None, interval_s: Some(60) },
            ttl_seconds: Some(3_600),
            access_level: AccessLevel::Restricted,
            scope: ScopeKind::User,
            durability: Durability::Relaxed,
        },
        next_column_id: ColumnId(5),
        layout_since: SchemaVersion(2),
        history: vec![RowLayout {
            since: SchemaVersion(1),
            columns: vec![(ColumnId(1), ColumnType::BigInt), (ColumnId(3), ColumnType::Embedding(3))],
        }],
        created_at: 1,
        updated_at: 2,
        created_by: UserId(7),
        comment: Some("a comment".to_owned()),
    };
    check_change(
        &CatalogChange::PutTable(table),
        "table/1000",
        r#"{"put_table":{
            "id":1000,"version":2,"revision":1,"namespace":"app","name":"notes","kind":"stream",
            "columns":[
                {"id":1,"name":"id","ty":"big_int","nullable":false},
                {
                    "id":2,"name":"name","ty":"text","nullable":true,
                    "default":{"literal":"it's"},"length_max":20
                },
                {
                    "id":4,"name":"price","ty":{"decimal":{"precision":10,"scale":2}},"nullable":true,
                    "initial":"0.50"
                }
            ],
            "primary_key":[1],
            "options":{
                "storage_id":"local",
                "flush_policy":{"rows":100,"bytes":null,"interval_s":60},
                "ttl_seconds":3600,
                "access_level":"restricted",
                "scope":"user",
                "durability":"relaxed"
            },
            "next_column_id":5,
            "layout_since":2,
            "history":[{"since":1,"columns":[[1,"big_int"],[3,{"embedding":3}]]}],
            "created_at":1,"updated_at":2,"created_by":7,
            "comment":"a comment"
        }}"#,
    );
    check_change(&CatalogChange::DropTable(TableId(1000)), "table/1000", r#"{"drop_table":1000}"#);
}

#[test]
fn a_table_without_its_optional_parts_is_frozen() {
    let table = TableDefinition {
        id: TableId(1001),
        version: SchemaVersion(1),
        revision: 0,
        namespace: "public".into(),
        name: "lines".into(),
        kind: TableKind::Shared,
        columns: vec![column(1, "body", ColumnType::Text)],
        primary_key: Vec::new(),
        options: TableOptions::defaults_for(TableKind::Shared),
        next_column_id: ColumnId(2),
        layout_since: SchemaVersion(1),
        history: Vec::new(),
        created_at: 5,
        updated_at: 5,
        created_by: UserId(1),
        comment: None,
    };
    check_change(
        &CatalogChange::PutTable(table),
        "table/1001",
        r#"{"put_table":{
            "id":1001,"version":1,"namespace":"public","name":"lines","kind":"shared",
            "columns":[{"id":1,"name":"body","ty":"text","nullable":true}],
            "primary_key":[],
            "options":{
                "storage_id":"local",
                "flush_policy":{"rows":100000,"bytes":67108864,"interval_s":3600},
                "access_level":"private",
                "scope":"shared",
                "durability":"durable"
            },
            "next_column_id":2,
            "layout_since":1,
            "created_at":5,"updated_at":5,"created_by":1
        }}"#,
    );
}

#[test]
fn the_names_in_definitions_are_frozen() {
    check(
        &vec![
            ColumnType::Boolean,
            ColumnType::SmallInt,
            ColumnType::Integer,
            ColumnType::BigInt,
            ColumnType::Real,
            ColumnType::Double,
            ColumnType::Decimal { precision: 38, scale: 0 },
            ColumnType::Text,
            ColumnType::Bytes,
            ColumnType::Json,
            ColumnType::Timestamp,
            ColumnType::TimestampTz,
            ColumnType::Date,
            ColumnType::Time,
            ColumnType::Uuid,
            ColumnType::Embedding(768),
            ColumnType::File,
        ],
        r#"["boolean","small_int","integer","big_int","real","double",
            {"decimal":{"precision":38,"scale":0}},
            "text","bytes","json","timestamp","timestamp_tz","date","time","uuid",
            {"embedding":768},
            "file"]"#,
    );
    check(
        &vec![
            ColumnDefault::Literal("7".to_owned()),
            ColumnDefault::Now,
            ColumnDefault::SnowflakeId,
            ColumnDefault::UuidV7,
            ColumnDefault::Ulid,
            ColumnDefault::CurrentUser,
        ],
        r#"[{"literal":"7"},"now","snowflake_id","uuid_v7","ulid","current_user"]"#,
    );
    check(
        &vec![TableKind::User, TableKind::Shared, TableKind::Stream, TableKind::System],
        r#"["user","shared","stream","system"]"#,
    );
    check(
        &vec![AccessLevel::Public, AccessLevel::Private, AccessLevel::Restricted, AccessLevel::Dba],
        r#"["public","private","restricted","dba"]"#,
    );
    check(&vec![ScopeKind::Shared, ScopeKind::User], r#"["shared","user"]"#);
    check(&vec![Durability::Durable, Durability::Relaxed], r#"["durable","relaxed"]"#);
}

#[test]
fn the_header_is_frozen() {
    let header = CatalogHeader {
        created_at: 5,
        next_namespace_id: NamespaceId(10),
        next_table_id: TableId(1000),
        next_user_id: UserId(1),
    };
    check(&header, r#"{"created_at":5,"next_namespace_id":10,"next_table_id":1000,"next_user_id":1}"#);
}

/// Their definitions are not stored, but rows are: a column keeps its position and its type.
#[test]
fn the_columns_of_stored_system_tables_are_frozen() {
    for (table, definition) in SystemTable::ALL.into_iter().zip(system_definitions(1)) {
        let expected: &[(&str, ColumnType)] = match table {
            SystemTable::Jobs => &[
                ("job_id", ColumnType::Text),
                ("job_type", ColumnType::Text),
                ("namespace_id", ColumnType::Text),
                ("table_name", ColumnType::Text),
                ("status", ColumnType::Text),
                ("parameters", ColumnType::Json),
                ("result", ColumnType::Text),
                ("trace", ColumnType::Text),
                ("error_message", ColumnType::Text),
                ("idempotency_key", ColumnType::Text),
                ("retry_count", ColumnType::SmallInt),
                ("max_retries", ColumnType::SmallInt),
                ("memory_used", ColumnType::BigInt),
                ("cpu_used", ColumnType::BigInt),
                ("created_at", ColumnType::TimestampTz),
                ("updated_at", ColumnType::TimestampTz),
                ("started_at", ColumnType::TimestampTz),
                ("completed_at", ColumnType::TimestampTz),
                ("node_id", ColumnType::Text),
            ],
            SystemTable::AuditLogs => &[
                ("audit_id", ColumnType::Text),
                ("created_at", ColumnType::TimestampTz),
                ("actor_user_id", ColumnType::Text),
                ("actor_username", ColumnType::Text),
                ("action", ColumnType::Text),
                ("target", ColumnType::Text),
                ("details", ColumnType::Json),
                ("ip_address", ColumnType::Text),
                ("subject_user_id", ColumnType::Text),
                ("node_id", ColumnType::Text),
            ],
            computed => {
                assert!(!computed.is_stored());
                continue;
            }
        };
        let columns: Vec<_> = definition.columns.iter().map(|column| (&*column.name, column.ty)).collect();
        assert_eq!(columns, expected, "{}", definition.name);
        let ids = definition.columns.iter().map(|column| column.id);
        assert!(ids.eq((1..).map(ColumnId).take(expected.len())), "{}", definition.name);
        assert_eq!((definition.version, &*definition.primary_key), (SchemaVersion(1), &[ColumnId(1)][..]));
        assert_eq!(definition.id, TableId(if table == SystemTable::Jobs { 2 } else { 7 }));
    }
}
