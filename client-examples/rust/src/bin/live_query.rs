//! A live query from Rust: first the result, then every change to it, each batch as Arrow.

use std::collections::BTreeMap;
use std::error::Error;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, UInt8Type};
use arrow::ipc::reader::StreamReader;
use arrow_flight::sql::client::FlightSqlServiceClient;
use kalamdb_proto::live::v1::frame::Body;
use kalamdb_proto::live::v1::live_query_client::LiveQueryClient;
use kalamdb_proto::live::v1::{Batch, SubscribeRequest};
use tonic::Request;
use tonic::transport::Channel;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::var("KALAMDB_URL").unwrap_or_else(|_| "grpc://127.0.0.1:8815".to_string());
    let channel = Channel::from_shared(url.replace("grpc://", "http://"))?.connect().await?;
    let mut sql = FlightSqlServiceClient::new(channel.clone());
    sql.handshake("root", &std::env::var("KALAMDB_PASSWORD")?).await?;
    for statement in [
        "CREATE NAMESPACE IF NOT EXISTS examples",
        "DROP TABLE IF EXISTS examples.rooms",
        "CREATE TABLE examples.rooms (id BIGINT PRIMARY KEY, guests BIGINT NOT NULL)",
        "INSERT INTO examples.rooms VALUES (1, 2), (2, 0)",
    ] {
        sql.execute_update(statement.to_string(), None).await?;
    }

    // The handshake's token also authorizes live queries.
    let select = "SELECT id, guests FROM examples.rooms WHERE guests > 0";
    let mut request = Request::new(SubscribeRequest { sql: select.to_string(), ..Default::default() });
    let token = sql.token().ok_or("the handshake returned no token")?;
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    let mut frames = LiveQueryClient::new(channel).subscribe(request).await?.into_inner();

    let mut schema = Vec::new();
    let mut occupied = BTreeMap::new();
    while let Some(frame) = frames.message().await? {
        match frame.body {
            Some(Body::Started(started)) => schema = started.schema_ipc.to_vec(),
            Some(Body::Snapshot(batch)) => apply(&mut occupied, &decode(&schema, &batch)?),
            Some(Body::SnapshotEnd(_)) => {
                assert_eq!(occupied, BTreeMap::from([(1, 2)]));
                sql.execute_update("UPDATE examples.rooms SET guests = 3 - id".to_string(), None).await?;
                sql.execute_update("DELETE FROM examples.rooms WHERE id = 1".to_string(), None).await?;
            }
            Some(Body::Delta(batch)) => {
                apply(&mut occupied, &decode(&schema, &batch)?);
                println!("commit {}: {occupied:?}", frame.complete_through);
                if occupied == BTreeMap::from([(2, 1)]) {
                    return Ok(());
                }
            }
            _ => {}
        }
    }
    Err("the stream ended before all changes arrived".into())
}

/// Decodes a batch, which is one Arrow IPC message; with the schema message before it, any Arrow reader can
/// read it.
fn decode(schema: &[u8], batch: &Batch) -> Result<RecordBatch, Box<dyn Error>> {
    let stream = [schema, &batch.ipc].concat();
    Ok(StreamReader::try_new(stream.as_slice(), None)?.next().ok_or("no batch")??)
}

/// Folds `_op` (1 insert, 2 delete, 3 update), `_seq`, `id`, `guests` into the current result.
fn apply(occupied: &mut BTreeMap<i64, i64>, batch: &RecordBatch) {
    let ops = batch.column(0).as_primitive::<UInt8Type>();
    let ids = batch.column(2).as_primitive::<Int64Type>();
    let guests = batch.column(3).as_primitive::<Int64Type>();
    for row in 0..batch.num_rows() {
        if ops.value(row) == 2 {
            occupied.remove(&ids.value(row));
        } else {
            occupied.insert(ids.value(row), guests.value(row));
        }
    }
}
