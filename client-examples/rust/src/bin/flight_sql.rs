//! Flight SQL from Rust: log in, create a table, insert a batch through a prepared statement, query.

use std::error::Error;
use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use arrow::util::pretty::pretty_format_batches;
use arrow_flight::sql::client::FlightSqlServiceClient;
use futures::TryStreamExt;
use tonic::transport::Channel;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::var("KALAMDB_URL").unwrap_or_else(|_| "grpc://127.0.0.1:8815".to_string());
    let channel = Channel::from_shared(url.replace("grpc://", "http://"))?.connect().await?;
    let mut client = FlightSqlServiceClient::new(channel);
    client.handshake("root", &std::env::var("KALAMDB_PASSWORD")?).await?;

    for sql in [
        "CREATE NAMESPACE IF NOT EXISTS examples",
        "DROP TABLE IF EXISTS examples.cities",
        "CREATE TABLE examples.cities (id BIGINT PRIMARY KEY, name TEXT NOT NULL)",
    ] {
        client.execute_update(sql.to_string(), None).await?;
    }

    // Each row of the batch is one execution; all of them are one commit.
    let mut insert = client.prepare("INSERT INTO examples.cities VALUES ($1, $2)".to_string(), None).await?;
    insert.set_parameters(RecordBatch::try_from_iter([
        ("1", Arc::new(Int64Array::from(vec![1, 2, 3])) as _),
        ("2", Arc::new(StringArray::from(vec!["Oslo", "Lima", "Accra"])) as _),
    ])?)?;
    assert_eq!(insert.execute_update().await?, 3);
    insert.close().await?;

    let query = "SELECT id, name FROM examples.cities WHERE id > 1 ORDER BY name";
    let info = client.execute(query.to_string(), None).await?;
    let ticket = info.endpoint.into_iter().next().and_then(|endpoint| endpoint.ticket).ok_or("no ticket")?;
    let batches: Vec<RecordBatch> = client.do_get(ticket).await?.try_collect().await?;
    let answer = pretty_format_batches(&batches)?.to_string();
    println!("{answer}");
    assert!(answer.contains("Accra") && answer.contains("Lima") && !answer.contains("Oslo"));
    Ok(())
}
