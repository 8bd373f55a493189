//! Live readers that stop reading.

use std::time::Duration;

use kalamdb_proto::live::v1::live_query_client::LiveQueryClient;
use kalamdb_proto::live::v1::{SnapshotMode, SubscribeRequest};
use tonic::Request;

use crate::fixture::{self, Fixture, GUEST};
use crate::process::resident;
use crate::promises::Promise;
use crate::report::Report;
use crate::{size, turn};

const QUERIES: u64 = 10;
/// What the stopped readers may hold together.
const HELD_MAX: u64 = 100 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_stop_hold_no_commit() {
    let _turn = turn().await;
    let mut report = Report::new("readers");
    // The commit is larger than both rings.
    let settings = [("commit_ring_bytes", "1048576"), ("live_ring_bytes", "262144")];
    let mut fixture = Fixture::start(&settings).await;
    let pid = fixture.pid();
    let table = "CREATE USER TABLE app.big (id BIGINT PRIMARY KEY, v BIGINT, body TEXT)";
    fixture.root.run(table).await.expect("create the table");
    let mut guest = fixture.user(GUEST).await;
    let rows = size(20_000, 100_000);
    let insert =
        format!("INSERT INTO app.big SELECT value, 1000, repeat('x', 500) FROM generate_series(1, {rows})");
    let update = "UPDATE app.big SET v = v + 1";
    // The first UPDATE shows what the statement itself needs.
    for sql in [insert.as_str(), update] {
        guest.execute_update(sql.to_owned(), None).await.expect(sql);
    }
    let before = resident(pid);

    let token = fixture::log_in(&fixture.server.address, GUEST).await.expect("log in");
    let channel = fixture::connect(&fixture.server.address).await.expect("connect");
    let mut stopped = Vec::new();
    for query in 0..QUERIES {
        let sql = format!("SELECT * FROM app.big WHERE v > {query}");
        let snapshot = SnapshotMode::Skip.into();
        let mut request = Request::new(SubscribeRequest { sql, snapshot, ..Default::default() });
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("a header"));
        let subscribed = LiveQueryClient::new(channel.clone()).subscribe(request).await;
        let mut frames = subscribed.expect("subscribe").into_inner();
        frames.message().await.expect("a frame").expect("the subscription started");
        stopped.push(frames);
    }
    guest.execute_update(update.to_owned(), None).await.expect(update);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let held = resident(pid);
    report.note(format!("a commit of {rows} rows, {QUERIES} queries, none of which is read"));
    report.bytes(Promise::Readers, "resident memory", held, before + HELD_MAX);
    // They can still be read.
    for mut frames in stopped {
        frames.message().await.expect("a frame").expect("the stream goes on");
    }
    drop((guest, channel));
    fixture.stop(&mut report).await;
    report.finish();
}
