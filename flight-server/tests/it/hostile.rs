//! Input that nobody sends by accident: each one fails with an error, and the connection stays usable.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow_flight::sql::{
    Any, CommandPreparedStatementQuery, CommandStatementIngest, CommandStatementUpdate, ProstMessageExt,
};
use arrow_flight::sql::{TableDefinitionOptions, TicketStatementQuery};
use arrow_flight::{Empty, FlightData, FlightDescriptor, Ticket};
use bytes::Bytes;
use futures::stream;
use prost::Message;
use tonic::Code;

use crate::fixture::{Client, Fixture, descriptor, put_messages, statement};
use crate::prepared::prepare;

async fn still_serves(client: &mut Client) {
    assert_eq!(client.query("SELECT 1").await.unwrap().lines(), ["1"]);
}

/// Returns fixed pseudo-random bytes.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..bytes).map(|_| next()).collect()
}

#[tokio::test]
async fn commands_tickets_and_actions_of_any_bytes_are_refused() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    let mut inputs: Vec<Vec<u8>> = (0..60).map(|seed| noise(seed, seed as usize * 7)).collect();
    // Valid wrappers around malformed contents, and around unknown messages.
    let known = statement("SELECT 1").as_any().type_url;
    for (type_url, value) in [
        (known, noise(1, 40)),
        ("type.googleapis.com/arrow.flight.protocol.sql.Nothing".to_owned(), Vec::new()),
        (String::new(), Vec::new()),
    ] {
        inputs.push(Any { type_url, value: value.into() }.encode_to_vec());
    }
    for input in inputs {
        let bytes = Bytes::from(input);
        let command = FlightDescriptor::new_cmd(bytes.clone());
        let expected =
            |code: Code| matches!(code, Code::InvalidArgument | Code::Unimplemented | Code::NotFound);
        let info = root.inner.get_flight_info(root.request(command.clone())).await.unwrap_err();
        assert!(expected(info.code()), "{bytes:?}: {info:?}");
        let schema = root.inner.get_schema(root.request(command)).await.unwrap_err();
        assert!(expected(schema.code()), "{bytes:?}: {schema:?}");
        let get = root.open(Ticket { ticket: bytes.clone() }).await.unwrap_err();
        assert!(expected(get.code()), "{bytes:?}: {get:?}");
        for action in
            ["CreatePreparedStatement", "CancelFlightInfo", "CancelQuery", "RenewFlightEndpoint", "x"]
        {
            if let Err(status) = root.run_action(action, bytes.to_vec()).await {
                assert!(expected(status.code()), "{action} {bytes:?}: {status:?}");
            }
        }
    }
    still_serves(&mut root).await;
    fixture.shut_down().await;
}

#[tokio::test]
async fn every_changed_byte_of_a_ticket_is_noticed() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    let info = root.info(&statement("SELECT 1")).await.unwrap().into_inner();
    let any = Any::decode(info.endpoint[0].ticket.clone().unwrap().ticket).unwrap();
    let sealed = TicketStatementQuery::decode(any.value).unwrap().statement_handle;
    for position in (0..sealed.len()).step_by(3) {
        let mut forged = sealed.to_vec();
        forged[position] ^= 0x40;
        let ticket = TicketStatementQuery { statement_handle: forged.into() }.as_any().encode_to_vec();
        let status = root.open(Ticket { ticket: ticket.into() }).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "{position}: {status:?}");
    }
    fixture.shut_down().await;
}

/// Decodes as a descriptor, or as FlightData after one, except for a field of the wrong type.
#[derive(Clone, PartialEq, prost::Message)]
struct Damaged {
    #[prost(message, optional, tag = "1")]
    descriptor: Option<FlightDescriptor>,
    #[prost(uint64, tag = "2")]
    number: u64,
}

#[tokio::test]
async fn messages_that_are_none_and_methods_there_are_not_have_an_sqlstate() {
    let fixture = Fixture::start().await;
    let root = fixture.root().await;
    let channel =
        tonic::transport::Channel::from_shared(fixture.url().to_owned()).unwrap().connect().await.unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    let update = CommandStatementUpdate { query: "SELECT 1".to_owned(), transaction_id: None };
    let first = Damaged { descriptor: Some(descriptor(&update)), number: 0 };
    let damaged = Damaged { descriptor: None, number: 7 };
    let flight = "/arrow.flight.protocol.FlightService";
    for (method, messages, code, sqlstate) in [
        (format!("{flight}/DoPut"), vec![first.clone(), damaged.clone()], Code::InvalidArgument, "08000"),
        (format!("{flight}/DoPut"), vec![damaged.clone()], Code::InvalidArgument, "08000"),
        (format!("{flight}/GetFlightInfo"), vec![damaged.clone()], Code::Internal, "08000"),
        (format!("{flight}/Nothing"), vec![damaged.clone()], Code::Unimplemented, "0A000"),
        ("/nobody.Knows/This".to_owned(), vec![damaged.clone()], Code::Unimplemented, "0A000"),
        (
            "/kalamdb.live.v1.LiveQuery/Nothing".to_owned(),
            vec![damaged.clone()],
            Code::Unimplemented,
            "0A000",
        ),
        ("/kalamdb.live.v1.LiveQuery/Subscribe".to_owned(), vec![], Code::InvalidArgument, "22023"),
    ] {
        grpc.ready().await.unwrap();
        let path = http::uri::PathAndQuery::try_from(method.as_str()).unwrap();
        let codec: tonic_prost::ProstCodec<Damaged, Empty> = tonic_prost::ProstCodec::default();
        let answer = grpc.streaming(root.request(stream::iter(messages)), path, codec).await;
        let status = match answer {
            Err(status) => status,
            Ok(response) => response.into_inner().message().await.unwrap_err(),
        };
        assert_eq!(status.code(), code, "{method}: {status:?}");
        assert!(status.message().starts_with(&format!("[{sqlstate}] ")), "{method}: {status:?}");
        assert_eq!(status.metadata().get("kalamdb-sqlstate").unwrap(), sqlstate, "{method}: {status:?}");
    }
    fixture.shut_down().await;
}

fn batch() -> RecordBatch {
    RecordBatch::try_from_iter([("id", Arc::new(Int64Array::from(vec![1, 2, 3])) as ArrayRef)]).unwrap()
}

fn append() -> CommandStatementIngest {
    CommandStatementIngest {
        table_definition_options: Some(TableDefinitionOptions { if_not_exist: 2, if_exists: 2 }),
        table: "t".to_owned(),
        ..CommandStatementIngest::default()
    }
}

#[tokio::test]
async fn arrow_messages_with_any_byte_changed_never_end_the_server() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    root.update("CREATE TABLE t (id BIGINT)").await.unwrap();
    let good = put_messages(&append(), vec![batch()]).await;
    for which in 0..good.len() {
        for position in 0..good[which].data_header.len() {
            let mut messages = good.clone();
            let mut header = messages[which].data_header.to_vec();
            header[position] ^= 0xff;
            messages[which].data_header = header.into();
            // Some bytes do not matter; then the rows are appended. No other outcome is allowed.
            if let Err(status) = root.put(messages).await {
                let code = status.code();
                let refused = matches!(
                    code,
                    Code::InvalidArgument | Code::Unimplemented | Code::NotFound | Code::ResourceExhausted
                );
                assert!(refused, "message {which} byte {position}: {status:?}");
            }
        }
    }
    still_serves(&mut root).await;
    fixture.shut_down().await;
}

#[tokio::test]
async fn arrow_messages_out_of_order_are_refused() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    root.update("CREATE TABLE t (id BIGINT)").await.unwrap();
    let good = put_messages(&append(), vec![batch()]).await;
    let [schema, rows] = good.as_slice() else { panic!("a schema and a batch") };
    let bare = FlightData { flight_descriptor: Some(descriptor(&append())), ..FlightData::default() };
    let cut = FlightData { data_body: rows.data_body.slice(..8), ..rows.clone() };
    let noise = FlightData { data_header: noise(5, 200).into(), ..FlightData::default() };
    let no_header = FlightData { data_body: Bytes::from("body"), ..FlightData::default() };
    for messages in [
        vec![bare.clone(), rows.clone()],
        vec![schema.clone(), schema.clone()],
        vec![schema.clone(), cut],
        vec![schema.clone(), noise],
        vec![schema.clone(), no_header],
    ] {
        let status = root.put(messages).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains("Arrow data cannot be read"), "{status:?}");
    }
    assert_eq!(root.query("SELECT count(*) FROM t").await.unwrap().lines(), ["0"]);
    fixture.shut_down().await;
}

#[tokio::test]
async fn a_compressed_body_is_refused_before_it_is_opened() {
    use arrow::ipc::CompressionType;
    use arrow::ipc::writer::IpcWriteOptions;
    use arrow_flight::encode::FlightDataEncoderBuilder;
    use futures::TryStreamExt;

    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    root.update("CREATE TABLE t (id BIGINT)").await.unwrap();
    let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME)).unwrap();
    let messages: Result<Vec<FlightData>, _> = FlightDataEncoderBuilder::new()
        .with_options(options)
        .with_flight_descriptor(Some(descriptor(&append())))
        .build(futures::stream::iter([Ok(batch())]))
        .try_collect()
        .await;
    let status = root.put(messages.expect("the codec is compiled in")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
    assert!(status.message().contains("compress"), "{status:?}");
    fixture.shut_down().await;
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_with_the_limit() {
    let fixture = Fixture::start_with(&[("message_bytes_max", "100000")]).await;
    let mut root = fixture.root().await;
    root.update("CREATE TABLE t (id BIGINT)").await.unwrap();
    let large =
        RecordBatch::try_from_iter([("id", Arc::new(Int64Array::from_iter_values(0..50_000)) as ArrayRef)]);
    let status = root.put(put_messages(&append(), vec![large.unwrap()]).await).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("100000"), "{status:?}");
    still_serves(&mut root).await;
    fixture.shut_down().await;
}

#[tokio::test]
async fn statements_known_to_kill_a_process_are_errors() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    for sql in [
        format!("SELECT {}", vec!["1"; 100_000].join("+")),
        format!("SELECT 1 WHERE {}", vec!["1=1"; 100_000].join(" OR ")),
        vec!["SELECT 1"; 20_000].join(" UNION ALL "),
        format!("SELECT {}1{}", "(".repeat(5_000), ")".repeat(5_000)),
        format!("SELECT '{}'", "x".repeat(3 << 20)),
    ] {
        let status = root.query(&sql).await.unwrap_err();
        let refused =
            matches!(status.code(), Code::InvalidArgument | Code::ResourceExhausted | Code::Unimplemented);
        assert!(refused, "{}…: {status:?}", &sql[..40]);
    }
    still_serves(&mut root).await;
    fixture.shut_down().await;
}

#[tokio::test]
async fn parameters_for_an_unknown_handle_are_not_read() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    prepare(&mut root, "SELECT 1").await.unwrap();
    for handle in [Bytes::new(), Bytes::from("x"), Bytes::from(vec![0; 16]), Bytes::from(vec![0; 100_000])] {
        let command = CommandPreparedStatementQuery { prepared_statement_handle: handle };
        let status = root.put(put_messages(&command, vec![batch()]).await).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "{status:?}");
        assert!(status.message().starts_with("[26000] "), "{status:?}");
    }
    fixture.shut_down().await;
}
