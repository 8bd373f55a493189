//! `SUBSCRIBE TO` as a statement: an endless DoGet.

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, UInt8Type};
use arrow_flight::decode::{DecodedPayload, FlightDataDecoder};
use arrow_flight::error::FlightError;
use futures::{StreamExt, TryStreamExt};
use kalamdb_proto::live::v1 as pb;
use prost::Message;

use crate::fixture::{Fixture, eventually, only_ticket, statement};

/// Returns the next message: its frame's header and its rows.
async fn next(stream: &mut FlightDataDecoder) -> (pb::Frame, Option<RecordBatch>) {
    let message = stream.next().await.expect("the stream goes on").expect("readable");
    let header = pb::Frame::decode(message.app_metadata()).expect("a frame header");
    match message.payload {
        DecodedPayload::RecordBatch(batch) => (header, Some(batch)),
        DecodedPayload::Schema(_) | DecodedPayload::None => (header, None),
    }
}

/// Reads until `wanted` rows have arrived; returns them as (op, id).
async fn rows(stream: &mut FlightDataDecoder, wanted: usize) -> Vec<(u8, i64)> {
    let mut found = Vec::new();
    while found.len() < wanted {
        let (_, Some(batch)) = next(stream).await else { continue };
        let ops = batch.column_by_name("_op").unwrap().as_primitive::<UInt8Type>();
        let ids = batch.column_by_name("id").unwrap().as_primitive::<Int64Type>();
        found.extend(ops.values().iter().copied().zip(ids.values().iter().copied()));
    }
    found
}

#[tokio::test]
async fn commits_arrive_as_they_are_made() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    root.update("CREATE TABLE notes (id BIGINT PRIMARY KEY, text TEXT)").await.unwrap();
    root.update("INSERT INTO notes VALUES (1, 'before')").await.unwrap();

    let command = statement("SUBSCRIBE TO (SELECT * FROM notes)");
    let info = root.info(&command).await.unwrap().into_inner();
    let names: Vec<_> =
        info.clone().try_decode_schema().unwrap().fields().iter().map(|field| field.name().clone()).collect();
    assert_eq!(names, ["_op", "_seq", "id", "text"]);
    let stream = root.open(only_ticket(&info)).await.unwrap().into_inner();
    let mut stream = FlightDataDecoder::new(stream.map_err(FlightError::from));
    assert_eq!(rows(&mut stream, 1).await, [(1, 1)], "the snapshot");

    root.update("INSERT INTO notes VALUES (2, 'after')").await.unwrap();
    assert_eq!(rows(&mut stream, 1).await, [(1, 2)]);
    root.update("UPDATE notes SET text = 'changed' WHERE id = 1").await.unwrap();
    assert_eq!(rows(&mut stream, 1).await, [(3, 1)]);
    root.update("DELETE FROM notes WHERE id = 2").await.unwrap();
    assert_eq!(rows(&mut stream, 1).await, [(2, 2)]);

    assert_eq!(fixture.monitor.counters().running_queries, 1);
    drop(stream);
    eventually("the subscription ends", || fixture.monitor.counters().running_queries == 0).await;
    let left = root.query("SELECT count(*) FROM system.live_queries").await.unwrap().lines();
    assert_eq!(left, ["0"]);
    fixture.shut_down().await;
}

#[tokio::test]
async fn a_server_that_goes_down_ends_subscriptions_at_once() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    root.update("CREATE TABLE notes (id BIGINT PRIMARY KEY)").await.unwrap();
    root.update("INSERT INTO notes VALUES (1)").await.unwrap();
    let info = root.info(&statement("SUBSCRIBE TO (SELECT * FROM notes)")).await.unwrap().into_inner();
    let mut stream = root.open(only_ticket(&info)).await.unwrap().into_inner();
    stream.message().await.unwrap();
    let shutting_down = tokio::spawn(fixture.shut_down());
    let status = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended as if complete"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
    drop((stream, root));
    shutting_down.await.unwrap();
}

/// Reads to the end; returns the close reason of the last frame, and the status.
async fn end_of(stream: &mut FlightDataDecoder) -> (pb::CloseReason, Option<tonic::Status>) {
    let mut reason = None;
    loop {
        match stream.next().await {
            Some(Ok(message)) => {
                let header = pb::Frame::decode(message.app_metadata()).expect("a frame header");
                if let Some(pb::frame::Body::Closed(closed)) = header.body {
                    reason = Some(closed.reason());
                }
            }
            Some(Err(FlightError::Tonic(status))) => return (reason.expect("a closed frame"), Some(*status)),
            Some(Err(error)) => panic!("{error}"),
            None => return (reason.expect("a closed frame"), None),
        }
    }
}

#[tokio::test]
async fn a_stream_that_ends_before_its_time_says_so_in_its_status() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    fixture.user("guest").await;
    root.update("CREATE NAMESPACE app").await.unwrap();
    let subscribe = "SUBSCRIBE TO (SELECT 10 / n AS ratio FROM app.notes)";
    let cases = [
        ("KILL LIVE QUERY", pb::CloseReason::Killed, tonic::Code::Cancelled, "57014"),
        ("DROP TABLE app.notes", pb::CloseReason::TableDropped, tonic::Code::NotFound, "42P01"),
        ("ALTER USER guest SET ROLE service", pb::CloseReason::AccessChanged, tonic::Code::Aborted, "28000"),
        (
            "ALTER USER guest SET PASSWORD 'password-of-guest'",
            pb::CloseReason::AccessChanged,
            tonic::Code::Aborted,
            "28000",
        ),
        ("INSERT INTO app.notes VALUES (0)", pb::CloseReason::Failed, tonic::Code::InvalidArgument, "22012"),
        ("DROP USER guest", pb::CloseReason::UserDropped, tonic::Code::PermissionDenied, "28000"),
    ];
    for (end, reason, code, sqlstate) in cases {
        root.update("DROP TABLE IF EXISTS app.notes").await.unwrap();
        root.update("CREATE USER TABLE app.notes (n BIGINT PRIMARY KEY)").await.unwrap();
        let mut guest = fixture.login("guest", "password-of-guest").await;
        let info = guest.info(&statement(subscribe)).await.unwrap().into_inner();
        let stream = guest.open(only_ticket(&info)).await.unwrap().into_inner();
        let mut stream = FlightDataDecoder::new(stream.map_err(FlightError::from));
        next(&mut stream).await;
        match end {
            "KILL LIVE QUERY" => {
                let ids = root.query("SELECT live_id FROM system.live_queries").await.unwrap().lines();
                root.update(&format!("KILL LIVE QUERY '{}'", ids[0])).await.unwrap();
            }
            "INSERT INTO app.notes VALUES (0)" => {
                guest.update(end).await.unwrap();
            }
            _ => {
                root.update(end).await.unwrap();
            }
        }
        let (closed, status) = end_of(&mut stream).await;
        let status = status.unwrap_or_else(|| panic!("{end}: the stream ended as if complete"));
        assert_eq!((closed, status.code()), (reason, code), "{end}: {status:?}");
        assert!(status.message().starts_with(&format!("[{sqlstate}] ")), "{end}: {status:?}");
        assert_eq!(status.metadata().get("kalamdb-sqlstate").unwrap(), sqlstate, "{end}: {status:?}");
    }
    // Everything that was requested has been delivered.
    let only = "SUBSCRIBE TO (SELECT n FROM app.notes) WITH (snapshot = 'only')";
    let info = root.info(&statement(only)).await.unwrap().into_inner();
    let stream = root.open(only_ticket(&info)).await.unwrap().into_inner();
    let (closed, status) = end_of(&mut FlightDataDecoder::new(stream.map_err(FlightError::from))).await;
    assert!(closed == pb::CloseReason::Completed && status.is_none(), "{status:?}");
    fixture.shut_down().await;
}

#[tokio::test]
async fn the_rows_have_the_columns_that_were_promised_whatever_their_types() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    root.update("CREATE TABLE notes (id BIGINT PRIMARY KEY, text TEXT)").await.unwrap();
    root.update("INSERT INTO notes VALUES (1, 'one')").await.unwrap();
    let columns = "arrow_cast(id, 'Float16') AS half, arrow_cast(id, 'Decimal32(5, 2)') AS small, \
        arrow_cast(id, 'UInt32') AS whole, arrow_cast(text, 'Utf8View') AS view, \
        arrow_cast(text, 'Dictionary(Int32, Utf8)') AS word, make_array(arrow_cast(text, 'Utf8View')) AS list";
    let select = root.query(&format!("SELECT {columns} FROM notes")).await.unwrap();
    let info = root
        .info(&statement(&format!("SUBSCRIBE TO (SELECT {columns} FROM notes)")))
        .await
        .unwrap()
        .into_inner();
    let promised = info.clone().try_decode_schema().unwrap();
    let types = |schema: &arrow::datatypes::Schema| -> Vec<_> {
        schema.fields().iter().map(|field| field.data_type().clone()).collect()
    };
    assert_eq!(types(&promised)[2..], types(&select.schema), "as a SELECT has them");
    let stream = root.open(only_ticket(&info)).await.unwrap().into_inner();
    let mut stream = FlightDataDecoder::new(stream.map_err(FlightError::from));
    for id in 1..=2 {
        let rows = loop {
            if let (_, Some(rows)) = next(&mut stream).await
                && rows.num_rows() > 0
            {
                break rows;
            }
        };
        assert_eq!(rows.schema().as_ref(), &promised);
        // If the messages did not fit the schema, these values would be wrong.
        let text = rows.column_by_name("view").unwrap().as_string::<i32>().value(0).to_owned();
        let list = rows.column_by_name("list").unwrap().as_list::<i32>().value(0);
        assert_eq!(
            (text.as_str(), list.as_string::<i32>().value(0)),
            (["one", "two"][id - 1], text.as_str())
        );
        if id == 1 {
            root.update("INSERT INTO notes VALUES (2, 'two')").await.unwrap();
        }
    }
    fixture.shut_down().await;
}
