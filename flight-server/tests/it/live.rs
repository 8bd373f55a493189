//! `SUBSCRIBE TO` as a statement: an endless DoGet.

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, UInt8Type};
use arrow_flight::decode::{DecodedPayload, FlightDataDecoder};
use arrow_flight::error::FlightError;
use futures::{StreamExt, TryStreamExt};
use kalamdb_proto::live::v1 as pb;
use prost::Message;

use crate::fixture::{Fixture, eventually, only_ticket, statement};

/// The next message: its frame's header, and its rows.
async fn next(stream: &mut FlightDataDecoder) -> (pb::Frame, Option<RecordBatch>) {
    let message = stream.next().await.expect("the stream goes on").expect("readable");
    let header = pb::Frame::decode(message.app_metadata()).expect("a frame header");
    match message.payload {
        DecodedPayload::RecordBatch(batch) => (header, Some(batch)),
        DecodedPayload::Schema(_) | DecodedPayload::None => (header, None),
    }
}

/// Reads until `wanted` rows have come, as (op, id).
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
