//! Bulk loading.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, DictionaryArray, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int32Type, Schema};
use arrow_flight::FlightData;
use arrow_flight::encode::{DictionaryHandling, FlightDataEncoderBuilder};
use arrow_flight::sql::{
    CommandStatementIngest, TableDefinitionOptions, TableExistsOption, TableNotExistOption,
};
use arrow_flight::utils::batches_to_flight_data;
use futures::{StreamExt, TryStreamExt};
use kalamdb_core::{Config, Database};
use tonic::Code;

use crate::fixture::{Fixture, ROOT_PASSWORD, descriptor, put_messages};

pub(crate) fn append_to(table: &str) -> CommandStatementIngest {
    ingest(table, TableNotExistOption::Fail, TableExistsOption::Append)
}

fn ingest(table: &str, not_exist: TableNotExistOption, exists: TableExistsOption) -> CommandStatementIngest {
    CommandStatementIngest {
        table_definition_options: Some(TableDefinitionOptions {
            if_not_exist: not_exist as i32,
            if_exists: exists as i32,
        }),
        table: table.to_owned(),
        ..CommandStatementIngest::default()
    }
}

fn rows(ids: impl Iterator<Item = i64> + Clone) -> RecordBatch {
    let texts: StringArray = ids.clone().map(|id| Some(format!("text {id}"))).collect();
    let columns: Vec<(&str, ArrayRef)> =
        vec![("text", Arc::new(texts)), ("id", Arc::new(Int64Array::from_iter_values(ids)))];
    RecordBatch::try_from_iter(columns).unwrap()
}

#[tokio::test]
async fn batches_are_appended_by_name_in_one_commit() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    root.update("CREATE TABLE t (id BIGINT PRIMARY KEY, kind TEXT DEFAULT 'plain', text TEXT)")
        .await
        .unwrap();
    let before = fixture.database.seq().0;
    let messages = put_messages(&append_to("t"), vec![rows(0..5_000), rows(5_000..10_000)]).await;
    let (count, seq) = root.put(messages).await.unwrap();
    assert_eq!((count, seq), (10_000, Some(before + 1)));
    let fetched = root.query("SELECT count(*), min(text), max(id), min(kind) FROM t").await.unwrap();
    assert_eq!(fetched.lines(), ["10000|text 0|9999|plain"]);
    fixture.shut_down().await;
}

#[tokio::test]
async fn a_batch_that_fails_takes_all_with_it() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    root.update("CREATE TABLE t (id BIGINT PRIMARY KEY, text TEXT)").await.unwrap();
    let messages = put_messages(&append_to("t"), vec![rows(0..100), rows(50..60)]).await;
    assert_eq!(root.put(messages).await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(root.query("SELECT count(*) FROM t").await.unwrap().lines(), ["0"]);
    fixture.shut_down().await;
}

#[tokio::test]
async fn an_ingest_without_rows_writes_nothing() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    root.update("CREATE TABLE t (id BIGINT PRIMARY KEY, text TEXT)").await.unwrap();
    let before = fixture.database.seq();
    // Some drivers send no message, some only the schema, some an empty batch.
    let no_batch = put_messages(&append_to("t"), vec![rows(0..1)]).await.drain(..1).collect();
    for messages in [Vec::new(), no_batch, put_messages(&append_to("t"), vec![rows(0..0)]).await] {
        let count = messages.len();
        assert_eq!(root.put(messages).await.unwrap().0, 0, "{count} messages");
    }
    assert_eq!(fixture.database.seq(), before);
    assert_eq!(root.query("SELECT count(*) FROM t").await.unwrap().lines(), ["0"]);
    // A call that names a target gets the target's error.
    let nowhere = put_messages(&append_to("nowhere"), vec![rows(0..1)]).await.drain(..1).collect();
    assert_eq!(root.put(nowhere).await.unwrap_err().code(), Code::NotFound);
    // An empty message is malformed.
    let status = root.put(vec![FlightData::default()]).await.unwrap_err();
    assert!(status.message().starts_with("[08000] "), "{status:?}");
    fixture.shut_down().await;
}

#[tokio::test]
async fn pandas_categories_and_narrow_numbers_are_cast() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    root.update("CREATE TABLE t (id BIGINT PRIMARY KEY, text TEXT)").await.unwrap();
    let dictionary: DictionaryArray<Int32Type> = vec!["a", "b", "a"].into_iter().collect();
    let columns: Vec<(&str, ArrayRef)> =
        vec![("id", Arc::new(Int32Array::from(vec![1, 2, 3]))), ("text", Arc::new(dictionary))];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    assert!(batch.column(1).as_any().is::<DictionaryArray<Int32Type>>());
    let messages = {
        FlightDataEncoderBuilder::new()
            .with_dictionary_handling(DictionaryHandling::Resend)
            .with_flight_descriptor(Some(descriptor(&append_to("t"))))
            .build(futures::stream::iter([Ok(batch)]))
            .try_collect()
            .await
            .unwrap()
    };
    assert_eq!(root.put(messages).await.unwrap().0, 3);
    assert_eq!(root.query("SELECT text FROM t ORDER BY id").await.unwrap().lines(), ["a", "b", "a"]);
    fixture.shut_down().await;
}

#[tokio::test]
async fn other_modes_and_targets_are_refused_by_name() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    root.update("CREATE TABLE t (id BIGINT PRIMARY KEY, text TEXT)").await.unwrap();
    let temporary = CommandStatementIngest { temporary: true, ..append_to("t") };
    let catalog = CommandStatementIngest { catalog: Some("elsewhere".to_owned()), ..append_to("t") };
    let nothing_said = CommandStatementIngest { table_definition_options: None, ..append_to("t") };
    let column =
        RecordBatch::try_from_iter([("nothing", Arc::new(Int64Array::from(vec![1])) as ArrayRef)]).unwrap();
    for (command, batch, code) in [
        (ingest("u", TableNotExistOption::Create, TableExistsOption::Fail), rows(0..1), Code::Unimplemented),
        (
            ingest("t", TableNotExistOption::Create, TableExistsOption::Replace),
            rows(0..1),
            Code::Unimplemented,
        ),
        (temporary, rows(0..1), Code::Unimplemented),
        (nothing_said, rows(0..1), Code::InvalidArgument),
        (catalog, rows(0..1), Code::NotFound),
        (append_to("nowhere"), rows(0..1), Code::NotFound),
        (append_to("t"), column, Code::NotFound),
    ] {
        let status = root.put(put_messages(&command, vec![batch]).await).await.unwrap_err();
        assert_eq!(status.code(), code, "{command:?}: {status:?}");
        assert!(status.message().starts_with('['), "{status:?}");
    }
    fixture.shut_down().await;
}

/// Builds messages without rows: a dictionary that no batch uses.
async fn idle_messages(command: &CommandStatementIngest, text_bytes: usize) -> Vec<FlightData> {
    let text = "x".repeat(text_bytes);
    let dictionary: DictionaryArray<Int32Type> = vec![text.as_str()].into_iter().collect();
    let batch = RecordBatch::try_from_iter([("text", Arc::new(dictionary) as ArrayRef)]).unwrap();
    let mut messages: Vec<FlightData> = FlightDataEncoderBuilder::new()
        .with_dictionary_handling(DictionaryHandling::Resend)
        .with_flight_descriptor(Some(descriptor(command)))
        .build(futures::stream::iter([Ok(batch)]))
        .try_collect()
        .await
        .unwrap();
    // Keeps the schema and the dictionary, and drops the batch with its rows.
    messages.truncate(2);
    messages
}

#[tokio::test]
async fn every_message_counts_whether_or_not_it_has_rows() {
    let config = Config {
        root_password: Some(ROOT_PASSWORD.to_owned()),
        statement_bytes_max: 1 << 20,
        ..Config::in_memory()
    };
    let fixture = Fixture::over(Database::open(config).await.unwrap(), &[]).await;
    let mut root = fixture.root().await;
    root.update("CREATE TABLE t (id BIGINT PRIMARY KEY, text TEXT)").await.unwrap();
    let mut dictionaries = idle_messages(&append_to("t"), 100_000).await;
    let dictionary = dictionaries.last().unwrap().clone();
    dictionaries.extend(std::iter::repeat_n(dictionary, 20));

    let columns = (0..200).map(|number| Field::new(format!("c{number}"), DataType::Utf8, true));
    let nothing = RecordBatch::new_empty(Arc::new(Schema::new(columns.collect::<Vec<_>>())));
    let mut empty = batches_to_flight_data(&nothing.schema(), vec![nothing]).unwrap();
    empty[0].flight_descriptor = Some(descriptor(&append_to("t")));
    let batch = empty.last().unwrap().clone();
    assert!(batch.data_header.len() > 5_000, "{}", batch.data_header.len());
    empty.extend(std::iter::repeat_n(batch, 200));

    for messages in [dictionaries, empty] {
        let status = root.put(messages).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(status.message().starts_with("[54000] "), "{status:?}");
    }
    fixture.shut_down().await;
}

#[tokio::test]
async fn rows_nobody_may_write_are_not_read() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    root.update("CREATE SHARED TABLE t (id BIGINT PRIMARY KEY, text TEXT)").await.unwrap();
    let mut guest = fixture.user("guest").await;
    // The stream does not end: an answer arrives only if the server does not read to the end.
    for (table, code) in [("t", Code::PermissionDenied), ("nowhere", Code::NotFound)] {
        let messages = put_messages(&append_to(table), vec![rows(0..10)]).await;
        let endless = futures::stream::iter(messages).chain(futures::stream::pending());
        let put = guest.inner.do_put(guest.request(endless));
        let status =
            tokio::time::timeout(Duration::from_secs(10), put).await.expect("an answer").unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
    }
    fixture.shut_down().await;
}

#[tokio::test]
async fn all_that_clients_send_at_a_time_has_a_limit() {
    let fixture = Fixture::start_with(&[("inbound_bytes_max", "300000")]).await;
    let mut root = fixture.root().await;
    root.update("CREATE TABLE t (id BIGINT PRIMARY KEY, text TEXT)").await.unwrap();
    let status = root.put(put_messages(&append_to("t"), vec![rows(0..20_000)]).await).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(
        status.message().starts_with("[53200] ") && status.message().contains("inbound_bytes_max"),
        "{status:?}"
    );
    // The charged bytes are released with the answer, or when a call is dropped.
    for start in [0, 5_000] {
        let messages = put_messages(&append_to("t"), vec![rows(start..start + 5_000)]).await;
        assert_eq!(root.put(messages).await.unwrap().0, 5_000);
    }
    fixture.shut_down().await;
}
