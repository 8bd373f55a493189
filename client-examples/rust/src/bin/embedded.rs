//! The database inside a program: open a directory, write, follow a query, close, open again.

use std::error::Error;

use arrow::util::pretty::pretty_format_batches;
use futures::StreamExt;
use kalamdb_core::live_query::{FrameBody, SubscribeRequest};
use kalamdb_core::{Config, Database, ScalarValue};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::temp_dir().join(format!("kalamdb-example-{}", std::process::id()));
    let config = Config {
        data_dir: Some(directory.clone()),
        root_password: Some("correct horse battery".to_string()),
        ..Config::default()
    };

    let database = Database::open(config.clone()).await?;
    let root = database.session_for("root")?;
    root.execute("CREATE TABLE scores (player TEXT PRIMARY KEY, points BIGINT NOT NULL)", ()).await?;

    // The subscription starts with the (empty) result; then each commit that changes it is one frame.
    let request = SubscribeRequest::new("SELECT player, points FROM scores WHERE points >= 10");
    let mut frames = root.subscribe(request).await?;
    for (player, points) in [("ann", 12), ("bob", 7), ("cyd", 30)] {
        let params = vec![ScalarValue::from(player), ScalarValue::from(points as i64)];
        let written = root.execute("INSERT INTO scores VALUES ($1, $2)", params).await?.affected()?;
        println!("{player} is durable as commit {}", written.seq.0);
    }
    let mut seen = 0;
    while seen < 2 {
        let frame = frames.next().await.ok_or("the live query ended")??;
        if let FrameBody::Delta(delta) = &frame.body {
            seen += delta.rows;
            println!("{}", pretty_format_batches(&[delta.batch()?])?);
        }
    }
    drop(frames); // unsubscribes
    database.shutdown().await?;
    drop((root, database)); // the directory is free when the last handle is gone

    // Every acknowledged write survives any kind of restart.
    let database = Database::open(config).await?;
    let root = database.session_for("root")?;
    let rows =
        root.execute("SELECT count(*) AS players, sum(points) AS points FROM scores", ()).await?.rows()?;
    let answer = pretty_format_batches(&rows.collect().await?)?.to_string();
    println!("{answer}");
    assert!(answer.contains("| 3       | 49     |"), "{answer}");
    database.shutdown().await?;
    drop((root, database));
    std::fs::remove_dir_all(directory)?;
    Ok(())
}
