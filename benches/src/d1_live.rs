//! D1: how soon after the acknowledgement of a durable INSERT does its frame reach a subscriber?
//!
//! One writer sends one INSERT at a time to one subscriber of `SELECT * FROM t`. Acknowledgement and frame
//! are both timed from the moment the INSERT is sent. The floor's writer and reader do the same with a server
//! that stores nothing.

use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use kalamdb_proto::live::v1::frame::Body;
use kalamdb_proto::live::v1::live_query_client::LiveQueryClient;
use kalamdb_proto::live::v1::{Frame, SubscribeRequest};
use tokio::sync::mpsc;
use tonic::{Request, Status};

use crate::b_insert::WireInsert;
use crate::floor::{Floor, LIVE};
use crate::host::Kalam;
use crate::load::Operation;
use crate::report::{Report, Row, Samples, ratio, show};
use crate::wire::channel;
use crate::{Result, Scale};

const INSERT: &str = "INSERT INTO live.t VALUES ($1, $2, $3)";

/// How much later than the acknowledgement a frame may arrive.
const ALLOWED: Duration = Duration::from_micros(300);

/// A frame that takes longer counts as lost.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Both {
    acknowledged: Samples,
    delivered: Samples,
}

pub(crate) async fn run(kalam: &Kalam, floor: &Floor, scale: Scale, report: &mut Report) -> Result<()> {
    kalam
        .execute(&[
            "CREATE NAMESPACE live",
            "CREATE TABLE live.t (id BIGINT PRIMARY KEY, body TEXT, score DOUBLE)",
        ])
        .await?;
    let mut ours = subscribe(kalam).await?;
    let mut floor_reader = floor.connect().await?;
    let mut theirs = arrivals(floor_reader.stream(bytes::Bytes::from_static(LIVE)).await?, |_| true);
    let mut our_writer = WireInsert::new(kalam.connect().await?, INSERT).await?;
    let mut floor_writer = WireInsert::new(floor.connect().await?, INSERT).await?;
    let (mut our_times, mut floor_times, mut warm_up) = (Both::default(), Both::default(), Both::default());
    measure(&mut our_writer, &mut ours, scale.round / 4, &mut warm_up).await?;
    measure(&mut floor_writer, &mut theirs, scale.round / 4, &mut warm_up).await?;
    for _ in 0..scale.rounds {
        measure(&mut our_writer, &mut ours, scale.round, &mut our_times).await?;
        measure(&mut floor_writer, &mut theirs, scale.round, &mut floor_times).await?;
    }
    let (acknowledged, delivered) =
        (our_times.acknowledged.percentile(50), our_times.delivered.percentile(50));
    report.add(Row {
        id: "D1",
        what: "INSERT to frame at one subscriber, durable".to_owned(),
        measured: format!(
            "frame {}; acknowledgement p50 {}",
            our_times.delivered.summary(),
            show(acknowledged)
        ),
        floor: format!(
            "frame {}; acknowledgement p50 {}",
            floor_times.delivered.summary(),
            show(floor_times.acknowledged.percentile(50))
        ),
        ratio: ratio(delivered.as_secs_f64(), (acknowledged + ALLOWED).as_secs_f64()),
        target: "p50 <= acknowledgement + 0.3 ms (the ratio is to that sum)",
        met: Some(delivered <= acknowledged + ALLOWED),
    });
    Ok(())
}

/// Inserts rows one at a time and waits for each row's frame before the next INSERT.
async fn measure(
    writer: &mut WireInsert,
    arrivals: &mut mpsc::Receiver<Instant>,
    length: Duration,
    times: &mut Both,
) -> Result<()> {
    let begin = Instant::now();
    while begin.elapsed() < length {
        let start = Instant::now();
        writer.run().await?;
        times.acknowledged.push(start.elapsed());
        let arrived = tokio::time::timeout(PATIENCE, arrivals.recv())
            .await
            .map_err(|_| "the frame of an INSERT did not come")?
            .ok_or("the live query ended")?;
        times.delivered.push(arrived.saturating_duration_since(start));
    }
    Ok(())
}

/// Starts the live query and waits for the end of its snapshot.
async fn subscribe(kalam: &Kalam) -> Result<mpsc::Receiver<Instant>> {
    let mut client = LiveQueryClient::new(channel(kalam.address()).await?);
    let mut request =
        Request::new(SubscribeRequest { sql: "SELECT * FROM live.t".to_owned(), ..Default::default() });
    request.metadata_mut().insert("authorization", Kalam::authorization().parse()?);
    let mut frames = client.subscribe(request).await?.into_inner();
    while let Some(frame) = frames.message().await? {
        if matches!(frame.body, Some(Body::SnapshotEnd(_))) {
            return Ok(arrivals(frames, |frame: &Frame| matches!(frame.body, Some(Body::Delta(_)))));
        }
    }
    Err("the live query ended before its snapshot was complete".into())
}

/// Sends the arrival time of each wanted message.
fn arrivals<T: Send + 'static>(
    mut stream: impl Stream<Item = std::result::Result<T, Status>> + Send + Unpin + 'static,
    wanted: impl Fn(&T) -> bool + Send + 'static,
) -> mpsc::Receiver<Instant> {
    // Only one INSERT is under way at a time, so a capacity of 1 would do.
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            let now = Instant::now();
            if wanted(&message) && sender.send(now).await.is_err() {
                return;
            }
        }
    });
    receiver
}
