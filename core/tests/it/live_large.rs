//! Live queries over commits that are larger than what is kept for them: they are read in pieces, made when
//! they can be sent, dropped and made again, and still exact.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kalamdb_core::clock::ManualClock;
use kalamdb_core::commit::WriteSet;
use kalamdb_core::ids::{JobId, UserId};
use kalamdb_core::live_query::{
    CloseReason, Frame, FrameBody, LiveCounters, ResetReason, SnapshotMode, SubscribeRequest, Subscription,
};
use kalamdb_core::{Config, Database, ScalarValue, Session};

use crate::live::client::{Client, Row, rows_of};
use crate::session::{rows, run};

/// Opens a database with the tables `t` and `other`. Rows are always logged one by one.
async fn open(config: Config) -> (Database, Session) {
    let config = Config { large_insert_bytes: 0, ..config };
    let database = Database::open(config).await.unwrap();
    let root = database.session_for("root").unwrap();
    for table in ["t", "other"] {
        let create = format!("CREATE TABLE {table} (id BIGINT PRIMARY KEY, v BIGINT, body TEXT)");
        run(&root, &create).await;
    }
    (database, root)
}

fn insert(rows: u64, bytes: u64) -> String {
    format!("INSERT INTO t SELECT value, 0, repeat('x', {bytes}) FROM generate_series(1, {rows})")
}

fn counters(database: &Database) -> LiveCounters {
    database.context().live_queries.counters()
}

async fn next(stream: &mut Subscription) -> Arc<Frame> {
    tokio::time::timeout(Duration::from_secs(60), stream.next()).await.unwrap().unwrap().unwrap()
}

/// Subscribes to changes, and reads the first frame.
async fn follow(session: &Session, request: SubscribeRequest) -> Subscription {
    let mut stream =
        session.subscribe(SubscribeRequest { snapshot: SnapshotMode::Skip, ..request }).await.unwrap();
    assert!(matches!(next(&mut stream).await.body, FrameBody::Started { .. }));
    stream
}

/// Reads up to the last commit. Returns the frames with rows.
async fn read_all(database: &Database, stream: &mut Subscription) -> Vec<Arc<Frame>> {
    let mut frames = Vec::new();
    loop {
        let frame = next(stream).await;
        let is_last = !frame.more && frame.complete_through >= database.seq();
        if matches!(frame.body, FrameBody::Delta(_)) {
            frames.push(frame);
        }
        if is_last {
            return frames;
        }
    }
}

fn rows_in(frame: &Frame) -> usize {
    match &frame.body {
        FrameBody::Snapshot(rows) | FrameBody::Delta(rows) => rows.rows,
        _ => 0,
    }
}

/// Returns the first column of the delivered rows, sorted.
fn ids(frames: &[Arc<Frame>]) -> Vec<String> {
    let mut ids = Vec::new();
    for frame in frames {
        if let FrameBody::Delta(delta) = &frame.body {
            ids.extend(rows_of(delta).into_iter().map(|(_, row)| row[0].clone()));
        }
    }
    ids.sort_unstable();
    ids
}

/// Returns what [`ids`] returns when the numbers up to `last` came once each.
fn each_once(last: i64) -> Vec<String> {
    let mut ids: Vec<_> = (1..=last).map(|id| format!("{:?}", ScalarValue::Int64(Some(id)))).collect();
    ids.sort_unstable();
    ids
}

/// The rows a client holds.
fn held_by(client: &Client) -> BTreeMap<Row, usize> {
    client.checkpoints.last().unwrap().1.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_readers_of_its_table_take_a_large_commit_from_the_log() {
    let (database, root) = open(Config { commit_ring_bytes: 256 << 10, ..Config::in_memory() }).await;
    let mut large = follow(&root, SubscribeRequest::new("SELECT id FROM t")).await;
    let mut other = follow(&root, SubscribeRequest::new("SELECT id FROM other")).await;
    run(&root, "INSERT INTO other VALUES (1, 1, 'before')").await;
    run(&root, &insert(4_000, 300)).await;
    run(&root, "INSERT INTO other VALUES (2, 1, 'after')").await;
    let frames = read_all(&database, &mut other).await;
    assert_eq!(frames.iter().map(|frame| rows_in(frame)).sum::<usize>(), 2);
    assert_eq!(counters(&database).log_reads, 0, "{:?}", counters(&database));
    let frames = read_all(&database, &mut large).await;
    assert_eq!(frames.iter().map(|frame| rows_in(frame)).sum::<usize>(), 4_000);
    assert!(counters(&database).log_reads > 0 && counters(&database).resets == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_stop_hold_little_and_lose_nothing() {
    const ROWS: i64 = 6_000;
    const HELD_MAX: usize = 1 << 20;
    let config = Config { live_held_per_user_bytes_max: HELD_MAX, ..Config::in_memory() };
    let (database, root) = open(config).await;
    run(&root, &insert(6_000, 500)).await;
    let mut streams = Vec::new();
    for query in 1..=10 {
        let sql = format!("SELECT * FROM t WHERE v < {query}");
        streams.push(follow(&root, SubscribeRequest::new(sql)).await);
    }
    run(&root, "UPDATE t SET v = v + 0, body = body || 'y'").await;
    let mut first = Vec::new();
    for stream in &mut streams {
        let frame = next(stream).await;
        assert!(frame.more, "the commit has several pieces");
        first.push(frame);
    }
    // What was just made may come on top of the limit for a moment.
    while counters(&database).held_bytes > HELD_MAX {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(counters(&database).evictions > 0, "{:?}", counters(&database));
    for (mut stream, first) in streams.into_iter().zip(first) {
        let mut frames = read_all(&database, &mut stream).await;
        frames.insert(0, first);
        assert!(ids(&frames) == each_once(ROWS), "{} frames", frames.len());
        let (last, others) = frames.split_last().unwrap();
        assert!(last.resume_token.is_some() && others.iter().all(|frame| frame.resume_token.is_none()));
    }
}

/// Two readers who take away each other's frames all the time.
#[tokio::test(flavor = "multi_thread")]
async fn frames_that_are_made_again_are_the_same() {
    // The smallest pieces have one frame, so nothing of them is taken away.
    let mut evictions = 0;
    for live_piece_bytes in [500, 10_000, 1 << 20] {
        let config =
            Config { commit_ring_bytes: 0, live_held_bytes_max: 1, live_piece_bytes, ..Config::in_memory() };
        let (database, root) = open(config).await;
        let mut readers = Vec::new();
        for (max_rows, sql) in [(7, "SELECT id, v FROM t"), (5, "SELECT v, body FROM t WHERE id % 3 > 0")] {
            let request = SubscribeRequest { max_rows, ..SubscribeRequest::new(sql) };
            readers.push((root.subscribe(request).await.unwrap(), Client::default(), sql));
        }
        run(&root, &insert(300, 40)).await;
        run(&root, "UPDATE t SET v = id % 10 WHERE id > 100").await;
        run(&root, "DELETE FROM t WHERE id % 2 = 0").await;
        let last = database.seq();
        while readers.iter().any(|(_, client, _)| client.complete_through < last) {
            for (stream, client, _) in &mut readers {
                if client.complete_through < last {
                    client.take(&*next(stream).await).unwrap();
                }
            }
        }
        evictions += counters(&database).evictions;
        for (_, client, sql) in readers {
            let mut expected = rows(&root, sql, ()).await;
            let plain = |value: &String| {
                value.trim_start_matches("Int64(").trim_start_matches("Utf8(").replace(['"', ')'], "")
            };
            let mut held: Vec<String> = held_by(&client)
                .into_iter()
                .flat_map(|(row, count)| vec![row.iter().map(plain).collect::<Vec<_>>().join("|"); count])
                .collect();
            expected.sort_unstable();
            held.sort_unstable();
            assert_eq!(held, expected, "{sql}");
        }
    }
    assert!(evictions > 20, "{evictions}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_frame_of_a_commit_completes_it_wherever_its_rows_are() {
    let (database, root) = open(Config { live_piece_bytes: 2_000, ..Config::in_memory() }).await;
    let conditions = [
        ("id <= 3", 3),
        ("id > 298", 2),
        ("id = 150", 1),
        ("id IN (1, 300)", 2),
        ("id IN (1, 2, 150)", 3),
        ("id BETWEEN 20 AND 280", 261),
        ("id > 1000", 0),
    ];
    for (number, (condition, expected)) in conditions.into_iter().enumerate() {
        run(&root, "DELETE FROM t").await;
        let sql = format!("SELECT id FROM t WHERE {condition}");
        let request = SubscribeRequest { heartbeat: Duration::ZERO, ..SubscribeRequest::new(sql) };
        let mut stream = follow(&root, request).await;
        run(&root, &insert(300, 40)).await;
        run(&root, &format!("INSERT INTO other VALUES ({number}, 1, 'next commit')")).await;
        let frames = read_all(&database, &mut stream).await;
        assert!(frames.iter().all(|frame| rows_in(frame) > 0), "{condition}");
        assert_eq!(frames.iter().map(|frame| rows_in(frame)).sum::<usize>(), expected, "{condition}");
        if let Some((last, others)) = frames.split_last() {
            assert!(!last.more && last.resume_token.is_some(), "{condition}");
            assert!(others.iter().all(|frame| frame.more && frame.resume_token.is_none()), "{condition}");
        }
    }
}

/// Rows of an incomplete commit are void after a RESET, and have no token.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_trimmed_while_it_is_delivered_leads_to_a_reset() {
    let (database, root) = open(Config { live_piece_bytes: 2_000, ..Config::in_memory() }).await;
    let request = SubscribeRequest { max_rows: 10, ..SubscribeRequest::new("SELECT id FROM t") };
    let mut stream = root.subscribe(request).await.unwrap();
    let mut client = Client::default();
    while client.complete_through < database.seq() {
        client.take(&*next(&mut stream).await).unwrap();
    }
    run(&root, &insert(300, 40)).await;
    let first = next(&mut stream).await;
    assert!(first.more && rows_in(&first) > 0);
    client.take(&first).unwrap();
    let committer = &database.context().committer;
    let mut trim = WriteSet::new(UserId::SYSTEM, committer.seq());
    trim.trim_log_to = Some(committer.seq());
    committer.commit(trim).await.unwrap();
    let mut resets = 0;
    while client.complete_through < database.seq() {
        let frame = next(&mut stream).await;
        if let FrameBody::Reset { reason, .. } = &frame.body {
            assert_eq!(*reason, ResetReason::Lag);
            assert!(frame.more && frame.resume_token.is_none());
            resets += 1;
        }
        client.take(&frame).unwrap();
    }
    assert_eq!((resets, held_by(&client).len()), (1, 300));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ends_within_a_commit_says_so() {
    let (_database, root) = open(Config { live_piece_bytes: 2_000, ..Config::in_memory() }).await;
    let mut stream = follow(&root, SubscribeRequest::new("SELECT id FROM t")).await;
    run(&root, &insert(300, 40)).await;
    assert!(next(&mut stream).await.more);
    run(&root, &format!("KILL LIVE QUERY '{}'", stream.id())).await;
    let closed = next(&mut stream).await;
    assert!(matches!(closed.body, FrameBody::Closed { reason: CloseReason::Killed, .. }), "{closed:?}");
    assert!(closed.more && closed.resume_token.is_none(), "{closed:?}");
}

/// Those who were told of the last commit and those who were not read on from the same position.
#[tokio::test(flavor = "multi_thread")]
async fn equal_readers_share_the_pieces_of_a_large_commit() {
    let (database, root) = open(Config { live_piece_bytes: 8_000, ..Config::in_memory() }).await;
    let mut streams = Vec::new();
    for heartbeat in [Duration::ZERO, Duration::from_secs(3_600), Duration::from_secs(3_600)] {
        let request =
            SubscribeRequest { heartbeat, max_rows: 10, ..SubscribeRequest::new("SELECT id FROM t") };
        streams.push(follow(&root, request).await);
    }
    run(&root, "INSERT INTO other VALUES (1, 1, 'another table')").await;
    while next(&mut streams[0]).await.complete_through < database.seq() {}
    run(&root, &insert(200, 100)).await;
    let mut first = Vec::new();
    for stream in &mut streams {
        first.push(next(stream).await);
    }
    assert!(first[0].more && first.iter().all(|frame| Arc::ptr_eq(frame, &first[0])));
    let mut rest = Vec::new();
    for stream in &mut streams {
        rest.push(read_all(&database, stream).await);
    }
    let sizes = |frames: &Vec<Arc<Frame>>| frames.iter().map(|frame| rows_in(frame)).collect::<Vec<_>>();
    assert!(rest.iter().all(|frames| sizes(frames) == sizes(&rest[0])));
    assert_eq!(sizes(&rest[0]).iter().sum::<usize>() + rows_in(&first[0]), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_nobody_asks_for_are_let_go_and_made_again() {
    let (database, root) = open(Config { live_piece_bytes: 8_000, ..Config::in_memory() }).await;
    let request = SubscribeRequest { max_rows: 5, ..SubscribeRequest::new("SELECT id FROM t") };
    let mut stream = follow(&root, request).await;
    run(&root, &insert(200, 100)).await;
    let first = next(&mut stream).await;
    assert!(counters(&database).held_bytes > 0);
    let let_go = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(50));
        while counters(&database).held_bytes > 0 {
            ticks.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), let_go).await.unwrap();
    assert_eq!(counters(&database).evictions, 1);
    let mut frames = read_all(&database, &mut stream).await;
    frames.push(first);
    assert_eq!(ids(&frames), each_once(200));
}

/// Hot rows and several segments are read in the same order again.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_goes_on_where_it_was_when_its_scan_was_dropped() {
    let config = Config { live_held_bytes_max: 1, batch_rows: 50, ..Config::in_memory() };
    let (database, root) = open(config).await;
    for part in 0..4 {
        let (from, to) = (part * 300 + 1, (part + 1) * 300);
        let values = format!("SELECT value * 7919 % 1201, value, 'x' FROM generate_series({from}, {to})");
        run(&root, &format!("INSERT INTO t {values}")).await;
        if part < 3 {
            let job = rows(&root, "STORAGE FLUSH TABLE t", ()).await;
            let job = JobId(job[0].split('|').next().unwrap().to_owned());
            database.context().jobs.wait(&job).await;
        }
    }
    let mut readers = Vec::new();
    for condition in ["v % 2 = 0", "v % 3 > 0", "true"] {
        let sql = format!("SELECT id, v FROM t WHERE {condition}");
        let request = SubscribeRequest { max_rows: 20, ..SubscribeRequest::new(sql.as_str()) };
        readers.push((root.subscribe(request).await.unwrap(), Client::default(), sql));
    }
    let last = database.seq();
    while readers.iter().any(|(_, client, _)| client.complete_through < last) {
        for (stream, client, _) in &mut readers {
            if client.complete_through < last {
                client.take(&*next(stream).await).unwrap();
            }
        }
    }
    assert!(counters(&database).evictions > 20 && counters(&database).resets == 0);
    for (_, client, sql) in readers {
        let expected = rows(&root, &sql, ()).await.len();
        // A row that came twice, or not at all, would show: the client refuses a second insert of a key.
        assert_eq!(held_by(&client).len(), expected, "{sql}");
    }
}

/// The task that deletes expired rows sees only a stub of the commit.
#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_large_commit_to_a_stream_table_expire() {
    const MINUTE_US: i64 = 60_000_000;
    let config = Config { commit_ring_bytes: 8_000, expiry_interval_ms: 10, ..Config::in_memory() };
    let clock = Arc::new(ManualClock::new(1_700_000_000_000_000));
    let database = Database::open_with_clock(config, Arc::clone(&clock) as _).await.unwrap();
    let root = database.session_for("root").unwrap();
    run(&root, "CREATE STREAM TABLE s (id BIGINT PRIMARY KEY) WITH (TTL_SECONDS = 60)").await;
    let mut stream = root.subscribe(SubscribeRequest::new("SELECT id FROM s")).await.unwrap();
    let mut client = Client::default();
    // After the first row has gone, the task follows the commits.
    for rows in [1, 300] {
        run(&root, &format!("INSERT INTO s SELECT value FROM generate_series(1, {rows})")).await;
        let inserted = database.seq();
        while client.complete_through < inserted {
            client.take(&*next(&mut stream).await).unwrap();
        }
        clock.advance(2 * MINUTE_US);
        while !held_by(&client).is_empty() {
            client.take(&*next(&mut stream).await).unwrap();
        }
        assert!(client.complete_through > inserted);
    }
}
