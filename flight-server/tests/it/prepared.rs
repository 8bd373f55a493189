//! Prepared statements and their parameters, as JDBC and ADBC use them.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, DictionaryArray, Float64Array, Int64Array, NullArray, RecordBatch, StringArray,
};
use arrow::datatypes::{DataType, Int32Type, Schema};
use arrow_flight::IpcMessage;
use arrow_flight::encode::{DictionaryHandling, FlightDataEncoderBuilder};
use arrow_flight::sql::{
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, Any,
    CommandPreparedStatementQuery, CommandPreparedStatementUpdate, DoPutPreparedStatementResult,
};
use bytes::Bytes;
use futures::TryStreamExt;
use prost::Message;
use tonic::{Code, Status};

use crate::fixture::{Client, Fixture, any, descriptor, only_ticket, put_messages};

/// The result of CreatePreparedStatement with the field that arrow-flight lacks.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Prepared {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) prepared_statement_handle: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) dataset_schema: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) parameter_schema: Bytes,
    #[prost(bool, optional, tag = "4")]
    pub(crate) is_update: Option<bool>,
}

pub(crate) async fn prepare(client: &mut Client, sql: &str) -> Result<Prepared, Status> {
    let request = ActionCreatePreparedStatementRequest { query: sql.to_owned(), transaction_id: None };
    let results = client.run_action("CreatePreparedStatement", any(&request)).await?;
    let [result] = results.as_slice() else { panic!("one result") };
    let result = Any::decode(result.clone()).unwrap();
    assert!(result.type_url.ends_with(".ActionCreatePreparedStatementResult"), "{}", result.type_url);
    Ok(Prepared::decode(result.value).unwrap())
}

pub(crate) fn query(handle: &Bytes) -> CommandPreparedStatementQuery {
    CommandPreparedStatementQuery { prepared_statement_handle: handle.clone() }
}

fn schema(ipc: &Bytes) -> Schema {
    Schema::try_from(IpcMessage(ipc.clone())).expect("an encapsulated schema")
}

/// Builds one batch of parameters with ADBC's column names.
fn parameters(columns: Vec<ArrayRef>) -> RecordBatch {
    let named =
        columns.into_iter().enumerate().map(|(position, column)| (position.to_string(), column, true));
    RecordBatch::try_from_iter_with_nullable(named).unwrap()
}

async fn bind(client: &mut Client, handle: &Bytes, row: RecordBatch) -> Result<Bytes, Status> {
    let (metadata, _) = client.put_raw(put_messages(&query(handle), vec![row]).await).await?;
    let result = DoPutPreparedStatementResult::decode(metadata).unwrap();
    Ok(result.prepared_statement_handle.expect("a handle, always"))
}

async fn table(root: &mut Client) {
    root.update("CREATE TABLE t (id BIGINT PRIMARY KEY, text TEXT, score DOUBLE)").await.unwrap();
    root.update("INSERT INTO t VALUES (1, 'one', 1.5), (2, 'two', 2.5), (3, NULL, NULL)").await.unwrap();
}

#[tokio::test]
async fn queries_and_updates_are_told_apart_in_both_ways() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    table(&mut root).await;
    for sql in ["SELECT * FROM t", "SHOW TABLES", "SELECT 1", "EXPLAIN SELECT 1"] {
        let prepared = prepare(&mut root, sql).await.unwrap();
        assert_eq!(prepared.is_update, Some(false), "{sql}");
        assert!(!schema(&prepared.dataset_schema).fields().is_empty(), "{sql}");
    }
    for sql in [
        "INSERT INTO t VALUES (9, '', 0)",
        "DELETE FROM t",
        "CREATE TABLE u (id INT)",
        "DROP TABLE IF EXISTS u",
    ] {
        let prepared = prepare(&mut root, sql).await.unwrap();
        assert_eq!(prepared.is_update, Some(true), "{sql}");
        assert!(prepared.dataset_schema.is_empty(), "{sql}");
        assert!(schema(&prepared.parameter_schema).fields().is_empty(), "{sql}");
    }
    assert_eq!(prepare(&mut root, "SELEC").await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(root.query("SELECT count(*) FROM t").await.unwrap().lines(), ["3"]);
    fixture.shut_down().await;
}

#[tokio::test]
async fn a_query_is_bound_and_run_again_and_again_by_the_handle_it_was_given() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    table(&mut root).await;
    for sql in ["SELECT text FROM t WHERE id = ?", "SELECT text FROM t WHERE id = $1"] {
        let prepared = prepare(&mut root, sql).await.unwrap();
        let handle = prepared.prepared_statement_handle;
        let parameter = schema(&prepared.parameter_schema);
        assert_eq!(parameter.fields().len(), 1, "{sql}");
        assert_eq!(parameter.field(0).data_type(), &DataType::Int64, "{sql}");
        assert!(parameter.field(0).is_nullable());
        for (id, text) in [(1, "one"), (2, "two"), (1, "one")] {
            let answered =
                bind(&mut root, &handle, parameters(vec![Arc::new(Int64Array::from(vec![id]))])).await;
            assert_eq!(answered.unwrap(), handle);
            let info = root.info(&query(&handle)).await.unwrap().into_inner();
            assert_eq!(info.schema, prepared.dataset_schema, "one schema");
            assert_eq!(root.fetch(&info).await.unwrap().lines(), [text], "{sql}");
        }
    }
    fixture.shut_down().await;
}

#[tokio::test]
async fn parameters_are_cast_from_what_the_client_has() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    table(&mut root).await;
    let handle = prepare(&mut root, "SELECT id FROM t WHERE score > $1 AND text = $2").await.unwrap();
    let handle = handle.prepared_statement_handle;
    let row = parameters(vec![Arc::new(Int64Array::from(vec![2])), Arc::new(StringArray::from(vec!["two"]))]);
    bind(&mut root, &handle, row).await.unwrap();
    let info = root.info(&query(&handle)).await.unwrap().into_inner();
    assert_eq!(root.fetch(&info).await.unwrap().lines(), ["2"]);
    fixture.shut_down().await;
}

#[tokio::test]
async fn a_ticket_outlives_its_statement_with_the_parameters_it_had() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    table(&mut root).await;
    let handle =
        prepare(&mut root, "SELECT text FROM t WHERE id = $1").await.unwrap().prepared_statement_handle;
    bind(&mut root, &handle, parameters(vec![Arc::new(Int64Array::from(vec![2]))])).await.unwrap();
    let info = root.info(&query(&handle)).await.unwrap().into_inner();
    bind(&mut root, &handle, parameters(vec![Arc::new(Int64Array::from(vec![1]))])).await.unwrap();
    let close = ActionClosePreparedStatementRequest { prepared_statement_handle: handle.clone() };
    for _ in 0..2 {
        assert!(
            root.run_action("ClosePreparedStatement", any(&close)).await.unwrap().is_empty(),
            "closing twice is no error"
        );
    }
    assert_eq!(root.info(&query(&handle)).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(root.fetch(&info).await.unwrap().lines(), ["two"]);
    // The second fetch has only the ticket.
    assert_eq!(root.fetch(&info).await.unwrap().lines(), ["two"]);
    fixture.shut_down().await;
}

#[tokio::test]
async fn many_rows_of_parameters_are_one_commit() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    table(&mut root).await;
    let handle =
        prepare(&mut root, "INSERT INTO t VALUES (?, ?, ?)").await.unwrap().prepared_statement_handle;
    let command = CommandPreparedStatementUpdate { prepared_statement_handle: handle };
    let rows = |ids: Vec<i64>| {
        let texts: StringArray = ids.iter().map(|id| Some(format!("text {id}"))).collect();
        let scores: Float64Array = ids.iter().map(|id| (id % 2 == 0).then_some(0.5)).collect();
        parameters(vec![Arc::new(Int64Array::from(ids)), Arc::new(texts), Arc::new(scores)])
    };
    let before = fixture.database.seq().0;
    let messages = put_messages(&command, vec![rows((10..60).collect()), rows((60..110).collect())]).await;
    let (count, seq) = root.put(messages).await.unwrap();
    assert_eq!((count, seq), (100, Some(before + 1)));
    // The last key exists, so none of the rows is inserted.
    let status = root.put(put_messages(&command, vec![rows(vec![200, 201, 1])]).await).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists, "{status:?}");
    assert_eq!(root.query("SELECT count(*), count(score) FROM t").await.unwrap().lines(), ["103|52"]);
    // One row, and no row.
    assert_eq!(root.put(put_messages(&command, vec![rows(vec![300])]).await).await.unwrap().0, 1);
    assert_eq!(root.put(put_messages(&command, vec![rows(Vec::new())]).await).await.unwrap().0, 0);
    fixture.shut_down().await;
}

#[tokio::test]
async fn what_cannot_be_bound_is_refused() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    table(&mut root).await;
    let handle =
        prepare(&mut root, "SELECT text FROM t WHERE id = $1").await.unwrap().prepared_statement_handle;
    // Nothing is bound.
    let status = match root.info(&query(&handle)).await {
        Err(status) => status,
        Ok(info) => root.open(only_ticket(info.get_ref())).await.unwrap_err(),
    };
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    // No row, two rows, and text that is not a number.
    for column in [
        Arc::new(Int64Array::from(Vec::<i64>::new())) as ArrayRef,
        Arc::new(Int64Array::from(vec![1, 2])),
        Arc::new(StringArray::from(vec!["x"])),
    ] {
        let bound = bind(&mut root, &handle, parameters(vec![column])).await;
        let status = match bound {
            Err(status) => status,
            Ok(_) => {
                let info = root.info(&query(&handle)).await;
                match info {
                    Err(status) => status,
                    Ok(info) => root.fetch(info.get_ref()).await.unwrap_err(),
                }
            }
        };
        assert!(matches!(status.code(), Code::InvalidArgument | Code::Unimplemented), "{status:?}");
    }
    fixture.shut_down().await;
}

#[tokio::test]
async fn many_rows_bound_before_are_one_commit_on_the_query_path_too() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    table(&mut root).await;
    let handle =
        prepare(&mut root, "INSERT INTO t (id, text) VALUES (?, ?)").await.unwrap().prepared_statement_handle;
    let update = CommandPreparedStatementUpdate { prepared_statement_handle: handle.clone() };
    let nothing = RecordBatch::new_empty(Arc::new(Schema::empty()));
    let rows = |ids: std::ops::Range<i64>| {
        let texts: StringArray = ids.clone().map(|id| Some(format!("text {id}"))).collect();
        parameters(vec![Arc::new(Int64Array::from_iter_values(ids)), Arc::new(texts)])
    };
    let mut expected = 3;
    for ids in [10..60, 60..61, 61..61] {
        let count = ids.end - ids.start;
        bind(&mut root, &handle, rows(ids.clone())).await.unwrap();
        let before = fixture.database.seq().0;
        let info = root.info(&query(&handle)).await.unwrap().into_inner();
        assert_eq!(info.total_records, count, "{ids:?}");
        assert_eq!(fixture.database.seq().0, before + u64::from(count > 0), "{ids:?}");
        // The update path runs parameters that were bound before in the same way.
        bind(&mut root, &handle, rows(ids.start + 1_000..ids.end + 1_000)).await.unwrap();
        let (updated, _) = root.put(put_messages(&update, vec![nothing.clone()]).await).await.unwrap();
        assert_eq!(updated, count, "{ids:?}");
        expected += 2 * count;
    }
    assert_eq!(root.query("SELECT count(*) FROM t").await.unwrap().lines(), [expected.to_string()]);
    fixture.shut_down().await;
}

#[tokio::test]
async fn parameters_are_held_to_the_statement_before_values_are_made_of_them() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    let nulls = |columns: usize, rows: usize| {
        parameters((0..columns).map(|_| Arc::new(NullArray::new(rows)) as ArrayRef).collect())
    };
    let refused = |status: Status, code: Code, sqlstate: &str| {
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().starts_with(&format!("[{sqlstate}] ")), "{status:?}");
    };
    // Columns of type Null have no bytes, but as values these would take terabytes.
    let select = prepare(&mut root, "SELECT $1").await.unwrap().prepared_statement_handle;
    let status = bind(&mut root, &select, nulls(1, 8_000_000)).await.unwrap_err();
    refused(status, Code::Unimplemented, "0A000");
    let status = bind(&mut root, &select, nulls(9_000, 1_000_000)).await.unwrap_err();
    refused(status, Code::InvalidArgument, "42P02");
    let none = prepare(&mut root, "SELECT 1").await.unwrap().prepared_statement_handle;
    refused(bind(&mut root, &none, nulls(1, 1)).await.unwrap_err(), Code::InvalidArgument, "42P02");

    let names: Vec<String> = (0..1_000).map(|number| format!("c{number}")).collect();
    root.update(&format!("CREATE TABLE wide ({} INT)", names.join(" INT, "))).await.unwrap();
    let insert = format!("INSERT INTO wide VALUES ({})", vec!["?"; names.len()].join(", "));
    let insert = prepare(&mut root, &insert).await.unwrap().prepared_statement_handle;
    let update = CommandPreparedStatementUpdate { prepared_statement_handle: insert.clone() };
    let status = root.put(put_messages(&update, vec![nulls(1_000, 10_000)]).await).await.unwrap_err();
    refused(status, Code::ResourceExhausted, "54000");
    let status = bind(&mut root, &insert, nulls(1_000, 10_000)).await.unwrap_err();
    refused(status, Code::ResourceExhausted, "54000");
    let status = root.put(put_messages(&update, vec![nulls(999, 1)]).await).await.unwrap_err();
    refused(status, Code::InvalidArgument, "42P02");
    assert_eq!(root.put(put_messages(&update, vec![nulls(1_000, 2)]).await).await.unwrap().0, 2);
    fixture.shut_down().await;
}

#[tokio::test]
async fn a_dictionary_among_parameters_counts_what_it_stands_for() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    table(&mut root).await;
    let handle =
        prepare(&mut root, "INSERT INTO t (text) VALUES (?)").await.unwrap().prepared_statement_handle;
    let long = "x".repeat(1 << 20);
    let texts: DictionaryArray<Int32Type> = std::iter::repeat_n(long.as_str(), 1_000).collect();
    let messages: Vec<_> = FlightDataEncoderBuilder::new()
        .with_dictionary_handling(DictionaryHandling::Resend)
        .with_flight_descriptor(Some(descriptor(&CommandPreparedStatementUpdate {
            prepared_statement_handle: handle,
        })))
        .build(futures::stream::iter([Ok(parameters(vec![Arc::new(texts)]))]))
        .try_collect()
        .await
        .unwrap();
    let status = root.put(messages).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().starts_with("[54000] "), "{status:?}");
    fixture.shut_down().await;
}

#[tokio::test]
async fn a_ticket_without_its_parameters_promises_no_second_use() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    let handle = prepare(&mut root, "SELECT length($1) AS length").await.unwrap().prepared_statement_handle;
    for (bytes, travels) in [(1_000, true), (2 << 20, false)] {
        let text: ArrayRef = Arc::new(StringArray::from(vec!["x".repeat(bytes)]));
        bind(&mut root, &handle, parameters(vec![text])).await.unwrap();
        let info = root.info(&query(&handle)).await.unwrap().into_inner();
        assert_eq!(info.endpoint[0].expiration_time.is_some(), travels, "{bytes}");
        assert_eq!(root.fetch(&info).await.unwrap().lines(), [bytes.to_string()]);
        let again = root.fetch(&info).await;
        if travels {
            assert_eq!(again.unwrap().lines(), [bytes.to_string()]);
            continue;
        }
        let status = again.unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "{status:?}");
        assert!(
            status.message().starts_with("[24000] ") && status.message().contains("run it again"),
            "{status:?}"
        );
        // The statement still has its parameters.
        let info = root.info(&query(&handle)).await.unwrap().into_inner();
        assert_eq!(root.fetch(&info).await.unwrap().lines(), [bytes.to_string()]);
    }
    fixture.shut_down().await;
}
