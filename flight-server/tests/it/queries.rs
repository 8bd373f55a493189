//! Queries: one schema on every path, tickets, message sizes, cancelling.

use std::time::Duration;

use arrow::array::RecordBatch;
use arrow_flight::sql::CommandStatementQuery;
use arrow_flight::{CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightDescriptor};
use arrow_flight::{FlightEndpoint, RenewFlightEndpointRequest};
use bytes::Bytes;
use prost::Message;
use tonic::Code;

use crate::fixture::{Client, Fixture, descriptor, eventually, only_ticket, statement};

/// Returns more rows than all buffers between server and client hold.
const ENDLESS: &str =
    "SELECT a.value + b.value AS n FROM generate_series(1, 20000) a CROSS JOIN generate_series(1, 20000) b";

async fn notes(root: &mut Client) {
    root.update("CREATE TABLE notes (id BIGINT PRIMARY KEY, text TEXT, score INTEGER NOT NULL)")
        .await
        .unwrap();
    root.update("INSERT INTO notes VALUES (1, 'one', 10), (2, NULL, 20), (3, 'three', 30)").await.unwrap();
}

#[tokio::test]
async fn flight_info_get_schema_and_batches_have_one_schema() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    notes(&mut root).await;
    for sql in [
        "SELECT * FROM notes",
        "SELECT * FROM notes WHERE id = 2",
        "SELECT * FROM notes WHERE id = 99",
        "SELECT count(*), max(score), min(score) FROM notes",
        "SELECT upper(text), score + 1, id::TEXT FROM notes",
        "SELECT a.id, b.text FROM notes a LEFT JOIN notes b ON a.id = b.id + 1",
        "SELECT arrow_cast(text, 'Dictionary(Int32, Utf8)') AS d, arrow_cast(text, 'Utf8View') AS v FROM notes",
        "SELECT NULL",
        "SHOW TABLES",
        "EXPLAIN SELECT 1",
    ] {
        let command = statement(sql);
        let schema = root.schema_of(&command).await.unwrap_or_else(|status| panic!("{sql}: {status:?}"));
        let info = root.info(&command).await.unwrap().into_inner();
        assert_eq!(info.schema, schema, "{sql}");
        let fetched = root.fetch(&info).await.unwrap();
        assert_eq!(*fetched.schema, info.clone().try_decode_schema().unwrap(), "{sql}");
        for batch in &fetched.batches {
            assert_eq!(batch.schema(), fetched.schema, "{sql}");
        }
        assert!(fetched.seq.is_some(), "{sql}");
        for field in fetched.schema.fields() {
            let name = field.data_type().to_string();
            assert!(!name.contains("View") && !name.contains("Dictionary"), "{sql}: {name}");
        }
    }
    fixture.shut_down().await;
}

#[tokio::test]
async fn a_tables_schema_is_the_memoized_message_and_never_encoded_again() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    notes(&mut root).await;
    root.query("SELECT * FROM notes").await.unwrap();
    let registry = fixture.database.registry_counters();
    let server = fixture.monitor.counters();
    for id in 0..100 {
        let info = root
            .info(&statement(&format!("SELECT * FROM notes WHERE id = {id}")))
            .await
            .unwrap()
            .into_inner();
        let fetched = root.fetch(&info).await.unwrap();
        assert!(
            info.schema.ends_with(&fetched.header),
            "the frame's content and the message are the same bytes"
        );
    }
    assert_eq!(fixture.monitor.counters().schema_encodings, server.schema_encodings);
    let after = fixture.database.registry_counters();
    assert_eq!((after.builds, after.encodings), (registry.builds, registry.encodings));
    fixture.shut_down().await;
}

#[tokio::test]
async fn a_ticket_is_good_again_on_another_connection_and_after_a_restart() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    notes(&mut root).await;
    let info = root.info(&statement("SELECT text FROM notes WHERE id = 3")).await.unwrap().into_inner();
    assert!(info.endpoint[0].expiration_time.is_some());
    assert_eq!(root.fetch(&info).await.unwrap().lines(), ["three"]);
    assert_eq!(root.fetch(&info).await.unwrap().lines(), ["three"], "a second time");
    let mut other = fixture.root().await;
    assert_eq!(other.fetch(&info).await.unwrap().lines(), ["three"], "on another connection");

    let fixture = Fixture::over(fixture.shut_down().await, &[]).await;
    let mut root = fixture.root().await;
    assert_eq!(root.fetch(&info).await.unwrap().lines(), ["three"], "after a restart");

    let request = RenewFlightEndpointRequest { endpoint: Some(info.endpoint[0].clone()) };
    let renewed = root.run_action("RenewFlightEndpoint", request.encode_to_vec()).await.unwrap();
    let endpoint = FlightEndpoint::decode(renewed[0].clone()).unwrap();
    let mut info = info;
    info.endpoint = vec![endpoint];
    assert_eq!(root.fetch(&info).await.unwrap().lines(), ["three"], "renewed");
    fixture.shut_down().await;
}

#[tokio::test]
async fn a_ticket_whose_table_changed_is_refused() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    notes(&mut root).await;
    let info = root.info(&statement("SELECT * FROM notes")).await.unwrap().into_inner();
    root.update("DROP TABLE notes").await.unwrap();
    root.update("CREATE TABLE notes (id TEXT PRIMARY KEY)").await.unwrap();
    let status = root.fetch(&info).await.unwrap_err();
    assert!(matches!(status.code(), Code::Aborted | Code::NotFound | Code::Unimplemented), "{status:?}");
    fixture.shut_down().await;
}

#[tokio::test]
async fn large_results_come_in_messages_a_plain_client_takes() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    let sql = "SELECT value, repeat('x', 1000) AS text FROM generate_series(1, 20000)";
    let info = root.info(&statement(sql)).await.unwrap().into_inner();
    // 4 MiB is the default limit of a client.
    root.inner = root.inner.clone().max_decoding_message_size(4 << 20);
    let fetched = root.fetch(&info).await.unwrap();
    assert_eq!(fetched.rows(), 20_000);
    assert!(fetched.batches.len() > 5);
    fixture.shut_down().await;
}

#[tokio::test]
async fn a_stream_that_is_dropped_ends_its_query() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    let info = root.info(&statement(ENDLESS)).await.unwrap().into_inner();
    let mut stream = root.open(only_ticket(&info)).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    assert_eq!(fixture.monitor.counters().running_queries, 1);
    drop(stream);
    eventually("the query ends", || fixture.monitor.counters().running_queries == 0).await;
    fixture.shut_down().await;
}

#[tokio::test]
async fn a_query_is_cancelled_from_another_connection_by_its_owner_only() {
    let fixture = Fixture::start().await;
    let mut alice = fixture.user("alice").await;
    let mut bob = fixture.user("bob").await;
    let info = alice.info(&statement(ENDLESS)).await.unwrap().into_inner();
    let mut stream = alice.open(only_ticket(&info)).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();

    let request = CancelFlightInfoRequest { info: Some(info.clone()) }.encode_to_vec();
    let status = bob.run_action("CancelFlightInfo", request.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    let answer = fixture
        .login("alice", "password-of-alice")
        .await
        .run_action("CancelFlightInfo", request)
        .await
        .unwrap();
    let answer = CancelFlightInfoResult::decode(answer[0].clone()).unwrap();
    assert_eq!(answer.status(), CancelStatus::Cancelled);

    let status = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended as if complete"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Cancelled, "{status:?}");
    assert!(status.message().contains("[57014]"), "{status:?}");
    fixture.shut_down().await;
}

#[tokio::test]
async fn a_deadline_ends_a_stream() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    let info = root.info(&statement(ENDLESS)).await.unwrap().into_inner();
    let mut request = root.request(only_ticket(&info));
    request.set_timeout(Duration::from_secs(3));
    let mut stream = root.inner.do_get(request).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    // The client's timer ends only its side; the server must end the query even for a client without one.
    eventually("the query ends", || fixture.monitor.counters().running_queries == 0).await;
    fixture.shut_down().await;
}

#[tokio::test]
async fn polling_answers_at_once() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    let request = root.request(descriptor(&statement("SELECT 1")));
    let poll = root.inner.poll_flight_info(request).await.unwrap().into_inner();
    assert_eq!(poll.flight_descriptor, None);
    assert_eq!(poll.progress, Some(1.0));
    assert_eq!(root.fetch(&poll.info.unwrap()).await.unwrap().lines(), ["1"]);
    fixture.shut_down().await;
}

#[tokio::test]
async fn what_was_committed_before_is_in_the_metadata_of_the_result() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    notes(&mut root).await;
    let fetched = root.query("SELECT * FROM notes").await.unwrap();
    let seq = fetched.seq.unwrap();
    for metadata in &fetched.metadata[..2] {
        let json: serde_json::Value = serde_json::from_slice(metadata).unwrap();
        assert_eq!(json["kalamdb-seq"], seq, "{json}");
        assert_eq!(json["query_id"].as_str().map(str::len), Some(32), "{json}");
    }
    assert_eq!(seq, fixture.database.seq().0);
    fixture.shut_down().await;
}

#[tokio::test]
async fn errors_name_the_object_and_the_way_out() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    for (sql, code, sqlstate) in [
        ("SELECT * FROM nowhere", Code::NotFound, "42P01"),
        ("SELEC 1", Code::InvalidArgument, "42601"),
        ("SELECT nothing FROM system.tables", Code::NotFound, "42703"),
        ("SELECT 1/0", Code::InvalidArgument, "22012"),
        ("", Code::InvalidArgument, "42601"),
    ] {
        let status = root.query(sql).await.unwrap_err();
        assert_eq!(status.code(), code, "{sql}: {status:?}");
        assert!(status.message().starts_with(&format!("[{sqlstate}] ")), "{sql}: {status:?}");
    }
    let transaction =
        CommandStatementQuery { query: "SELECT 1".to_owned(), transaction_id: Some(Bytes::from("t")) };
    assert_eq!(root.info(&transaction).await.unwrap_err().code(), Code::NotFound);
    let status = root.run_action("BeginTransaction", Vec::new()).await.unwrap_err();
    assert!(matches!(status.code(), Code::InvalidArgument | Code::Unimplemented), "{status:?}");
    let begin = crate::fixture::any(&arrow_flight::sql::ActionBeginTransactionRequest {});
    let status = root.run_action("BeginTransaction", begin).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("BeginTransaction"), "{status:?}");
    fixture.shut_down().await;
}

#[tokio::test]
async fn a_server_that_goes_down_lets_a_running_query_end_within_the_drain_time() {
    let fixture = Fixture::start_with(&[("drain_ms", "200")]).await;
    let mut root = fixture.root().await;
    let info = root.info(&statement(ENDLESS)).await.unwrap().into_inner();
    let mut stream = root.open(only_ticket(&info)).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    tokio::time::timeout(Duration::from_secs(5), fixture.shut_down()).await.expect("drained");
}

#[tokio::test]
async fn results_of_no_rows_have_their_columns() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    notes(&mut root).await;
    let fetched = root.query("SELECT id, text FROM notes WHERE score > 1000").await.unwrap();
    assert_eq!(fetched.rows(), 0);
    assert_eq!(fetched.schema.fields().len(), 2);
    assert!(fetched.batches.iter().all(|batch: &RecordBatch| batch.num_columns() == 2));
    fixture.shut_down().await;
}

#[tokio::test]
async fn a_descriptor_of_nothing_is_refused() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    for descriptor in [FlightDescriptor::default(), FlightDescriptor::new_path(Vec::new())] {
        let status = root.inner.get_flight_info(root.request(descriptor)).await.unwrap_err();
        assert!(matches!(status.code(), Code::InvalidArgument | Code::Unimplemented), "{status:?}");
    }
    fixture.shut_down().await;
}

#[tokio::test]
async fn a_caller_reads_at_least_the_seq_it_names() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    notes(&mut root).await;
    let seq = fixture.database.seq().0;
    for (named, readable) in [(seq, true), (seq + 1, false)] {
        let mut request = root.request(descriptor(&statement("SELECT 1")));
        request.metadata_mut().insert("kalamdb-seq", named.to_string().parse().unwrap());
        let answer = root.inner.get_flight_info(request).await;
        assert_eq!(answer.is_ok(), readable, "{answer:?}");
        if let Err(status) = answer {
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        }
    }
    fixture.shut_down().await;
}
