//! Metadata that tools read before the first query.

use arrow::array::AsArray;
use arrow::datatypes::Schema;
use arrow_flight::IpcMessage;
use arrow_flight::sql::{
    CommandGetCatalogs, CommandGetCrossReference, CommandGetDbSchemas, CommandGetExportedKeys,
    CommandGetImportedKeys, CommandGetPrimaryKeys, CommandGetSqlInfo, CommandGetTableTypes, CommandGetTables,
    CommandGetXdbcTypeInfo, CommandStatementSubstraitPlan, ProstMessageExt,
};
use arrow_flight::{Criteria, Empty};
use bytes::Bytes;
use futures::TryStreamExt;
use prost::Message;
use tonic::Code;

use crate::fixture::{Client, Fetched, Fixture};

/// Compares GetSchema, FlightInfo and DoGet of a metadata command; returns the result.
async fn fetch(client: &mut Client, command: &impl ProstMessageExt) -> Fetched {
    let schema = client.schema_of(command).await.unwrap();
    let info = client.info(command).await.unwrap().into_inner();
    assert_eq!(info.schema, schema);
    let fetched = client.fetch(&info).await.unwrap();
    assert_eq!(*fetched.schema, Schema::try_from(IpcMessage(schema)).unwrap());
    fetched
}

async fn tables(root: &mut Client) {
    root.update("CREATE NAMESPACE app").await.unwrap();
    root.update("CREATE TABLE app.notes (author TEXT, id BIGINT, text TEXT, PRIMARY KEY (author, id))")
        .await
        .unwrap();
    root.update("CREATE TABLE app.my_log (entry TEXT)").await.unwrap();
}

#[tokio::test]
async fn catalogs_namespaces_and_tables_are_listed() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    tables(&mut root).await;
    assert_eq!(fetch(&mut root, &CommandGetCatalogs {}).await.lines(), ["kalam"]);
    let types = fetch(&mut root, &CommandGetTableTypes {}).await.lines();
    assert_eq!(types, ["SYSTEM TABLE", "TABLE"]);

    let all = fetch(&mut root, &CommandGetDbSchemas::default()).await.lines();
    for name in ["app", "information_schema", "public", "system"] {
        assert!(all.contains(&format!("kalam|{name}")), "{all:?}");
    }
    let filtered = CommandGetDbSchemas { db_schema_filter_pattern: Some("a%".to_owned()), catalog: None };
    assert_eq!(fetch(&mut root, &filtered).await.lines(), ["kalam|app"]);
    let elsewhere =
        CommandGetDbSchemas { catalog: Some("elsewhere".to_owned()), db_schema_filter_pattern: None };
    assert_eq!(fetch(&mut root, &elsewhere).await.rows(), 0);

    let of_app =
        CommandGetTables { db_schema_filter_pattern: Some("app".to_owned()), ..CommandGetTables::default() };
    let lines = fetch(&mut root, &of_app).await.lines();
    assert_eq!(lines, ["kalam|app|my_log|TABLE", "kalam|app|notes|TABLE"]);
    let escaped = CommandGetTables { table_name_filter_pattern: Some("my\\_%".to_owned()), ..of_app.clone() };
    assert_eq!(fetch(&mut root, &escaped).await.rows(), 1);
    let system =
        CommandGetTables { table_types: vec!["SYSTEM TABLE".to_owned()], ..CommandGetTables::default() };
    let lines = fetch(&mut root, &system).await.lines();
    assert!(lines.contains(&"kalam|system|users|SYSTEM TABLE".to_owned()), "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains("|app|")), "{lines:?}");
    fixture.shut_down().await;
}

#[tokio::test]
async fn a_tables_schema_is_the_one_its_queries_have() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    tables(&mut root).await;
    let command = CommandGetTables {
        table_name_filter_pattern: Some("notes".to_owned()),
        include_schema: true,
        ..CommandGetTables::default()
    };
    let fetched = fetch(&mut root, &command).await;
    let bytes = fetched.batches[0].column(4).as_binary::<i32>().value(0).to_vec();
    let info = root.info(&crate::fixture::statement("SELECT * FROM app.notes")).await.unwrap().into_inner();
    assert_eq!(Bytes::from(bytes), info.schema, "the same bytes");
    fixture.shut_down().await;
}

#[tokio::test]
async fn primary_keys_are_listed_and_there_are_no_foreign_ones() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    tables(&mut root).await;
    let (catalog, db_schema, table) = (None, Some("app".to_owned()), "notes".to_owned());
    let keys = CommandGetPrimaryKeys { catalog, db_schema: db_schema.clone(), table: table.clone() };
    let lines = fetch(&mut root, &keys).await.lines();
    assert_eq!(lines, ["kalam|app|notes|author|1|notes_pkey", "kalam|app|notes|id|2|notes_pkey"]);
    let none = CommandGetPrimaryKeys { table: "my_log".to_owned(), ..keys };
    assert_eq!(fetch(&mut root, &none).await.rows(), 0);

    let exported =
        CommandGetExportedKeys { catalog: None, db_schema: db_schema.clone(), table: table.clone() };
    assert_eq!(fetch(&mut root, &exported).await.rows(), 0);
    let imported = CommandGetImportedKeys { catalog: None, db_schema, table: table.clone() };
    assert_eq!(fetch(&mut root, &imported).await.rows(), 0);
    let cross = CommandGetCrossReference { pk_table: table.clone(), fk_table: table, ..Default::default() };
    let fetched = fetch(&mut root, &cross).await;
    assert_eq!((fetched.rows(), fetched.schema.fields().len()), (0, 13));
    fixture.shut_down().await;
}

#[tokio::test]
async fn sql_info_and_types_are_complete() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    assert_eq!(fetch(&mut root, &CommandGetSqlInfo { info: Vec::new() }).await.rows(), 91);
    assert_eq!(fetch(&mut root, &CommandGetSqlInfo { info: vec![8] }).await.rows(), 1);
    assert_eq!(fetch(&mut root, &CommandGetXdbcTypeInfo { data_type: None }).await.rows(), 16);
    assert_eq!(fetch(&mut root, &CommandGetXdbcTypeInfo { data_type: Some(4) }).await.rows(), 1);
    fixture.shut_down().await;
}

#[tokio::test]
async fn a_user_does_not_see_what_is_not_theirs_to_see() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    tables(&mut root).await;
    let mut alice = fixture.user("alice").await;
    let lines = fetch(&mut alice, &CommandGetTables::default()).await.lines();
    // Everybody sees their own statements and sessions.
    let own = ["kalam|system|queries|SYSTEM TABLE", "kalam|system|sessions|SYSTEM TABLE"];
    assert_eq!(lines, own);
    fixture.shut_down().await;
}

#[tokio::test]
async fn flights_and_actions_are_listed() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    tables(&mut root).await;
    let flights = root.inner.list_flights(root.request(Criteria::default())).await.unwrap().into_inner();
    let flights: Vec<_> = flights.try_collect().await.unwrap();
    let paths: Vec<_> = flights.iter().map(|flight| flight.flight_descriptor.clone().unwrap().path).collect();
    assert!(paths.contains(&vec!["app".to_owned(), "notes".to_owned()]), "{paths:?}");
    let actions = root.inner.list_actions(root.request(Empty {})).await.unwrap().into_inner();
    let actions: Vec<_> = actions.try_collect().await.unwrap();
    for name in ["CreatePreparedStatement", "CancelFlightInfo", "RenewFlightEndpoint", "SetSessionOptions"] {
        assert!(actions.iter().any(|action| action.r#type == name), "{name}");
    }
    assert!(!actions.iter().any(|action| action.r#type == "BeginTransaction"));
    fixture.shut_down().await;
}

#[tokio::test]
async fn substrait_is_refused_by_name() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    let status = root.info(&CommandStatementSubstraitPlan::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("Substrait"), "{status:?}");
    fixture.shut_down().await;
}

#[derive(Clone, PartialEq, prost::Message)]
struct SessionOptions {
    #[prost(map = "string, message", tag = "1")]
    options: std::collections::HashMap<String, SessionOption>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SessionOption {
    #[prost(string, optional, tag = "1")]
    string_value: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SessionErrors {
    #[prost(map = "string, message", tag = "1")]
    errors: std::collections::HashMap<String, SessionError>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SessionError {
    #[prost(int32, tag = "1")]
    value: i32,
}

pub(crate) async fn set(client: &mut Client, name: &str, value: &str) -> Option<i32> {
    let option = SessionOption { string_value: Some(value.to_owned()) };
    let request = SessionOptions { options: [(name.to_owned(), option)].into() };
    let results = client.run_action("SetSessionOptions", request.encode_to_vec()).await.unwrap();
    let result = SessionErrors::decode(results[0].clone()).unwrap();
    result.errors.get(name).map(|error| error.value)
}

pub(crate) async fn get(client: &mut Client, name: &str) -> Option<String> {
    let results = client.run_action("GetSessionOptions", Vec::new()).await.unwrap();
    let result = SessionOptions::decode(results[0].clone()).unwrap();
    result.options.get(name).and_then(|option| option.string_value.clone())
}

#[tokio::test]
async fn session_options_are_kept_for_the_session_alone() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    tables(&mut root).await;
    let mut other = fixture.root().await;
    assert_eq!(get(&mut root, "catalog").await.as_deref(), Some("kalam"));
    assert_eq!(get(&mut root, "schema").await.as_deref(), Some("public"));

    assert_eq!(set(&mut root, "schema", "app").await, None);
    assert_eq!(set(&mut root, "catalog", "kalam").await, None);
    assert_eq!(get(&mut root, "schema").await.as_deref(), Some("app"));
    assert_eq!(get(&mut other, "schema").await.as_deref(), Some("public"));
    let info = root.info(&crate::fixture::statement("SELECT * FROM notes")).await.unwrap().into_inner();
    assert_eq!(root.fetch(&info).await.unwrap().rows(), 0);
    // The ticket keeps the namespace in which it was made.
    assert_eq!(other.fetch(&info).await.unwrap().rows(), 0);
    assert!(other.query("SELECT * FROM notes").await.is_err());

    assert_eq!(set(&mut root, "schema", "nowhere").await, Some(2));
    assert_eq!(set(&mut root, "catalog", "elsewhere").await, Some(2));
    assert_eq!(set(&mut root, "lol_invalid", "x").await, Some(1));
    root.run_action("CloseSession", Vec::new()).await.unwrap();
    assert_eq!(get(&mut root, "schema").await.as_deref(), Some("public"), "a new session");
    fixture.shut_down().await;
}
