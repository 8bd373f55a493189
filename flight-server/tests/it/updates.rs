//! Statements that write: they run once on each path that drivers use.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use arrow_flight::sql::{
    CommandPreparedStatementQuery, CommandPreparedStatementUpdate, CommandStatementUpdate,
};
use arrow_flight::{FlightData, FlightDescriptor, PutResult};
use futures::stream;
use tonic::Code;

use crate::fixture::{Fixture, descriptor, put_messages, statement};
use crate::prepared::prepare;

#[tokio::test]
async fn an_update_on_the_query_path_runs_once_however_often_it_is_fetched() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    root.update("CREATE TABLE log (entry TEXT)").await.unwrap();
    let response = root.info(&statement("INSERT INTO log VALUES ('once'), ('twice')")).await.unwrap();
    let seq = crate::fixture::seq_of(response.metadata()).expect("kalamdb-seq");
    let info = response.into_inner();
    assert_eq!(info.total_records, 2, "drivers show it as the row count");
    for _ in 0..3 {
        let fetched = root.fetch(&info).await.unwrap();
        assert_eq!((fetched.rows(), fetched.schema.fields().len(), fetched.seq), (0, 0, Some(seq)));
        let json: serde_json::Value = serde_json::from_slice(&fetched.metadata[0]).unwrap();
        assert_eq!((json["rows"].as_i64(), json["kalamdb-seq"].as_u64()), (Some(2), Some(seq)));
    }
    assert_eq!(root.query("SELECT count(*) FROM log").await.unwrap().lines(), ["2"]);
    fixture.shut_down().await;
}

#[tokio::test]
async fn asking_for_a_schema_runs_nothing() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    root.update("CREATE TABLE log (entry TEXT)").await.unwrap();
    root.schema_of(&statement("INSERT INTO log VALUES ('never')")).await.unwrap();
    prepare(&mut root, "INSERT INTO log VALUES ('never')").await.unwrap();
    assert_eq!(root.query("SELECT count(*) FROM log").await.unwrap().lines(), ["0"]);
    fixture.shut_down().await;
}

#[tokio::test]
async fn a_prepared_update_on_the_query_path_runs_once_per_execution() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    root.update("CREATE TABLE log (entry TEXT)").await.unwrap();
    let handle = prepare(&mut root, "INSERT INTO log VALUES ('x')").await.unwrap().prepared_statement_handle;
    let command = CommandPreparedStatementQuery { prepared_statement_handle: handle };
    for executions in 1..=2 {
        let info = root.info(&command).await.unwrap().into_inner();
        root.fetch(&info).await.unwrap();
        root.fetch(&info).await.unwrap();
        let count = root.query("SELECT count(*) FROM log").await.unwrap().lines();
        assert_eq!(count, [executions.to_string()]);
    }
    fixture.shut_down().await;
}

#[tokio::test]
async fn do_put_of_an_update_takes_every_form_drivers_send() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    root.update("CREATE TABLE log (entry TEXT)").await.unwrap();
    let sql = "INSERT INTO log VALUES ('x')";

    // Only a descriptor, as Go's driver sends it.
    assert_eq!(root.update(sql).await.unwrap(), 1);
    // A schema without columns and no batch, as JDBC sends it.
    let command = CommandStatementUpdate { query: sql.to_owned(), transaction_id: None };
    let nothing = RecordBatch::new_empty(Arc::new(Schema::empty()));
    let (rows, seq) = root.put(put_messages(&command, vec![nothing.clone()]).await).await.unwrap();
    assert_eq!((rows, seq), (1, Some(fixture.database.seq().0)));
    // The same for a prepared statement.
    let handle = prepare(&mut root, sql).await.unwrap().prepared_statement_handle;
    let command = CommandPreparedStatementUpdate { prepared_statement_handle: handle };
    assert_eq!(root.put(put_messages(&command, vec![nothing]).await).await.unwrap().0, 1);
    let alone = FlightData { flight_descriptor: Some(descriptor(&command)), ..FlightData::default() };
    assert_eq!(root.put(vec![alone]).await.unwrap().0, 1);
    assert_eq!(root.query("SELECT count(*) FROM log").await.unwrap().lines(), ["4"]);
    fixture.shut_down().await;
}

#[tokio::test]
async fn ddl_and_session_statements_are_updates_of_no_rows() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    assert_eq!(root.update("CREATE NAMESPACE app").await.unwrap(), 0);
    assert_eq!(root.update("CREATE TABLE app.t (id BIGINT PRIMARY KEY)").await.unwrap(), 0);
    let info = root.info(&statement("DROP TABLE app.t")).await.unwrap().into_inner();
    assert_eq!(root.fetch(&info).await.unwrap().rows(), 0);
    assert_eq!(root.query("SELECT * FROM app.t").await.unwrap_err().code(), Code::NotFound);
    fixture.shut_down().await;
}

#[tokio::test]
async fn a_query_as_an_update_runs_and_counts_nothing() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    assert_eq!(root.update("SELECT 1").await.unwrap(), -1);
    assert_eq!(root.update("SELECT 1/0").await.unwrap_err().code(), Code::InvalidArgument);
    fixture.shut_down().await;
}

#[tokio::test]
async fn a_failed_update_says_why_and_changes_nothing() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    root.update("CREATE TABLE t (id BIGINT PRIMARY KEY, text TEXT NOT NULL)").await.unwrap();
    root.update("INSERT INTO t VALUES (1, 'a')").await.unwrap();
    for (sql, code, sqlstate) in [
        ("INSERT INTO t VALUES (2, 'b'), (1, 'c')", Code::AlreadyExists, "23505"),
        ("INSERT INTO t VALUES (3, NULL)", Code::InvalidArgument, "23502"),
        ("INSERT INTO t VALUES ('x', 'd')", Code::InvalidArgument, "22P02"),
    ] {
        let status = root.update(sql).await.unwrap_err();
        assert_eq!(status.code(), code, "{sql}: {status:?}");
        assert!(status.message().starts_with(&format!("[{sqlstate}] ")), "{sql}: {status:?}");
        assert_eq!(status.metadata().get("kalamdb-sqlstate").unwrap(), sqlstate);
    }
    assert_eq!(root.query("SELECT id FROM t").await.unwrap().lines(), ["1"]);
    fixture.shut_down().await;
}

#[tokio::test]
async fn do_put_of_what_is_no_put_is_refused() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    let select =
        FlightData { flight_descriptor: Some(descriptor(&statement("SELECT 1"))), ..FlightData::default() };
    let path = FlightData {
        flight_descriptor: Some(FlightDescriptor::new_path(vec!["t".to_owned()])),
        ..FlightData::default()
    };
    for messages in [vec![FlightData::default()], vec![select], vec![path]] {
        let answer = root.inner.do_put(root.request(stream::iter(messages))).await;
        let status = match answer {
            Err(status) => status,
            Ok(response) => {
                let first: Result<Option<PutResult>, _> = response.into_inner().message().await;
                first.unwrap_err()
            }
        };
        assert!(matches!(status.code(), Code::InvalidArgument | Code::Unimplemented), "{status:?}");
    }
    fixture.shut_down().await;
}
