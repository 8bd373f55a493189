//! Another user beside the guests: logs in, reads a row, writes a row, receives its live frame, asks for
//! health.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow_flight::error::FlightError;
use futures::TryStreamExt;
use kalamdb_proto::live::v1::frame::Body;
use kalamdb_proto::live::v1::live_query_client::LiveQueryClient;
use kalamdb_proto::live::v1::{Frame, SubscribeRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Request, Streaming};

use crate::fixture::{self, BYSTANDER, Fixture, FlightClient, NOTES};
use crate::promises::Promise;
use crate::report::Report;
use crate::{is_whole, limit};

/// A call that takes longer is given up, has no answer, and counts as this long.
const GIVE_UP: Duration = Duration::from_secs(10);
/// The pause between two calls of the same kind.
const PAUSE: Duration = Duration::from_millis(20);
/// Nobody may ever wait longer for another user.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(1);

/// What the bystander does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Call {
    Login,
    Read,
    Insert,
    Frame,
    Health,
}

impl Call {
    const ALL: [Self; 5] = [Self::Login, Self::Read, Self::Insert, Self::Frame, Self::Health];
}

/// How long a call took, and what went wrong.
type Timed = (Duration, Option<String>);

/// How long the calls took.
#[derive(Default)]
pub(crate) struct Figures {
    times: BTreeMap<Call, Vec<Duration>>,
    /// What the calls without an answer said.
    pub(crate) failures: Vec<String>,
}

pub(crate) struct Bystander {
    address: String,
    http: String,
    reader: FlightClient,
    writer: Writer,
}

struct Writer {
    client: FlightClient,
    frames: Streaming<Frame>,
    /// The id of the newest row.
    last_id: u64,
    /// Changed rows that arrived.
    seen: u64,
    /// Rows that were written since the subscription began.
    written: u64,
}

impl Bystander {
    pub(crate) async fn of(fixture: &Fixture) -> Self {
        let address = fixture.server.address.clone();
        let token = fixture::log_in(&address, BYSTANDER).await.expect("log in");
        let client = async || fixture::client(&address, &token).await.expect("connect");
        let (reader, writing) = (client().await, client().await);
        let channel = fixture::connect(&address).await.expect("connect");
        let frames = subscribe(LiveQueryClient::new(channel), &token).await;
        let writer = Writer { client: writing, frames, last_id: NOTES, seen: 0, written: 0 };
        Self { address, http: fixture.http.clone(), reader, writer }
    }

    /// Makes each call once, all at the same time.
    pub(crate) async fn once(&mut self) -> Figures {
        let Self { address, http, reader, writer } = self;
        let (login, read, (insert, frame), health) =
            tokio::join!(timed(log_in(address)), timed(read(reader)), writer.write(), timed(health(http)));
        let mut figures = Figures::default();
        for (call, took) in Call::ALL.into_iter().zip([login, read, insert, frame, health]) {
            figures.add(call, took);
        }
        figures
    }

    /// Makes calls until `stop`, each kind in a loop of its own.
    pub(crate) async fn watch(&mut self, stop: &CancellationToken) -> Figures {
        let Self { address, http, reader, writer } = self;
        let (logins, reads, writes, checks) = tokio::join!(
            watch_logins(address, stop),
            watch_reads(reader, stop),
            watch_writes(writer, stop),
            watch_health(http, stop),
        );
        let mut all = Figures::default();
        for figures in [logins, reads, writes, checks] {
            all.times.extend(figures.times);
            all.failures.extend(figures.failures);
        }
        all
    }

    /// Makes calls for some time.
    pub(crate) async fn watch_for(&mut self, time: Duration) -> Figures {
        let stop = CancellationToken::new();
        let timer = async {
            tokio::time::sleep(time).await;
            stop.cancel();
        };
        tokio::join!(self.watch(&stop), timer).0
    }
}

/// Waits for the next call; `false` after `stop`.
async fn goes_on(stop: &CancellationToken) -> bool {
    tokio::select! {
        () = stop.cancelled() => false,
        () = tokio::time::sleep(PAUSE) => true,
    }
}

async fn watch_logins(address: &str, stop: &CancellationToken) -> Figures {
    let mut figures = Figures::default();
    while goes_on(stop).await {
        figures.add(Call::Login, timed(log_in(address)).await);
    }
    figures
}

async fn watch_reads(client: &mut FlightClient, stop: &CancellationToken) -> Figures {
    let mut figures = Figures::default();
    while goes_on(stop).await {
        figures.add(Call::Read, timed(read(client)).await);
    }
    figures
}

async fn watch_writes(writer: &mut Writer, stop: &CancellationToken) -> Figures {
    let mut figures = Figures::default();
    while goes_on(stop).await {
        let (insert, frame) = writer.write().await;
        figures.add(Call::Insert, insert);
        figures.add(Call::Frame, frame);
    }
    figures
}

async fn watch_health(address: &str, stop: &CancellationToken) -> Figures {
    let mut figures = Figures::default();
    while goes_on(stop).await {
        figures.add(Call::Health, timed(health(address)).await);
    }
    figures
}

/// Runs a call. One that fails counts as one that was given up.
async fn timed(call: impl Future<Output = Result<(), String>>) -> Timed {
    let began = Instant::now();
    match tokio::time::timeout(GIVE_UP, call).await {
        Ok(Ok(())) => (began.elapsed(), None),
        Ok(Err(said)) => (GIVE_UP, Some(said)),
        Err(_) => (GIVE_UP, Some("no answer".to_owned())),
    }
}

/// Connects and logs in.
pub(crate) async fn log_in(address: &str) -> Result<(), String> {
    fixture::log_in(address, BYSTANDER).await.map(drop)
}

async fn read(client: &mut FlightClient) -> Result<(), String> {
    let said = |error: FlightError| error.to_string();
    let sql = "SELECT body FROM app.notes WHERE id = 7".to_owned();
    let info = client.execute(sql, None).await.map_err(said)?;
    let mut rows = 0;
    for ticket in info.endpoint.into_iter().filter_map(|endpoint| endpoint.ticket) {
        let stream = client.do_get(ticket).await.map_err(said)?;
        let batches = stream.try_collect::<Vec<RecordBatch>>().await.map_err(said)?;
        rows += batches.iter().map(RecordBatch::num_rows).sum::<usize>();
    }
    if rows == 1 { Ok(()) } else { Err(format!("{rows} rows instead of one")) }
}

async fn health(address: &str) -> Result<(), String> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: kalamdb\r\nconnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    match ask.await {
        Ok(answer) if answer.starts_with("HTTP/1.1 200") => Ok(()),
        Ok(answer) => Err(answer),
        Err(error) => Err(error.to_string()),
    }
}

/// Subscribes to the bystander's rows and reads the snapshot.
async fn subscribe(mut client: LiveQueryClient<Channel>, token: &str) -> Streaming<Frame> {
    let sql = "SELECT id FROM app.notes".to_owned();
    let mut request = Request::new(SubscribeRequest { sql, ..Default::default() });
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("a header"));
    let mut frames = client.subscribe(request).await.expect("subscribe").into_inner();
    loop {
        match frames.message().await.expect("a frame").expect("the stream goes on").body {
            Some(Body::SnapshotEnd(_)) => return frames,
            Some(Body::Started(_) | Body::Snapshot(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

impl Writer {
    /// Writes a row; returns the times until the acknowledgement and until its frame.
    async fn write(&mut self) -> (Timed, Timed) {
        let Self { client, frames, last_id, seen, written } = self;
        *last_id += 1;
        *written += 1;
        let sql = format!("INSERT INTO app.notes VALUES ({last_id}, 'new')");
        tokio::join!(timed(insert(client, sql)), timed(receive(frames, seen, *written)))
    }
}

async fn insert(client: &mut FlightClient, sql: String) -> Result<(), String> {
    client.execute_update(sql, None).await.map(drop).map_err(|error| error.to_string())
}

/// Waits until `wanted` changed rows have arrived.
async fn receive(frames: &mut Streaming<Frame>, seen: &mut u64, wanted: u64) -> Result<(), String> {
    while *seen < wanted {
        let frame = frames.message().await.map_err(|status| status.to_string())?;
        match frame.ok_or("the stream has ended")?.body {
            Some(Body::Delta(batch)) => *seen += u64::from(batch.rows),
            Some(Body::Progress(_)) => {}
            other => return Err(format!("{other:?}")),
        }
    }
    Ok(())
}

impl Figures {
    fn add(&mut self, call: Call, (took, failure): Timed) {
        self.times.entry(call).or_default().push(took);
        self.failures.extend(failure.map(|said| format!("{call:?}: {said}")));
    }

    /// Returns the longest time of all calls.
    pub(crate) fn longest(&self) -> Duration {
        self.times.values().flatten().copied().max().unwrap_or_default()
    }

    /// Returns the time within which this share of the calls of a kind was answered.
    pub(crate) fn percentile(&self, call: Call, percent: usize) -> Duration {
        let mut times = self.times.get(&call).cloned().unwrap_or_default();
        times.sort_unstable();
        let place = (times.len() * percent).div_ceil(100).saturating_sub(1);
        times.get(place).copied().unwrap_or_default()
    }

    /// Compares the calls beside guests with those of an idle server.
    pub(crate) fn check(&self, report: &mut Report, idle: &Self) {
        for call in Call::ALL {
            let [(idle_p50, idle_p99), (p50, p99)] =
                [idle, self].map(|figures| (figures.percentile(call, 50), figures.percentile(call, 99)));
            let calls = self.times.get(&call).map_or(0, Vec::len);
            report.note(format!("{call:?}, {calls} calls; idle: p50 {idle_p50:.1?}, p99 {idle_p99:.1?}"));
            let factor = if is_whole() { 3 } else { 10 };
            let p50_max = (idle_p50 * factor).max(limit(Duration::from_millis(100), Duration::ZERO));
            report.within(Promise::Turns, format!("{call:?}, p50"), p50, p50_max);
            let p99_max = (idle_p99 * 3).max(limit(WAIT_MAX, Duration::from_millis(25)));
            report.within(Promise::Turns, format!("{call:?}, p99"), p99, p99_max);
        }
        let failures = self.failures.iter().take(5).collect::<Vec<_>>();
        let said = format!("{} calls without an answer {failures:?}", self.failures.len());
        report.check(Promise::RunsApart, self.failures.is_empty(), said);
        report.within(Promise::Turns, "the longest call", self.longest(), limit(GIVE_UP, WAIT_MAX));
    }
}
