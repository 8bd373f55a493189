//! Single live queries: which frames a stream has, what it costs, why it ends and what it refuses.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use datafusion::common::ScalarValue;
use futures::StreamExt;
use kalamdb_core::ids::Seq;
use kalamdb_core::live_query::{
    CloseReason, Frame, FrameBody, OP_DELETE, OP_INSERT, OP_UPDATE, SnapshotMode, SubscribeRequest,
    SubscribeStart, Subscription,
};
use kalamdb_core::sql::Session;
use kalamdb_core::{Config, Database, ErrorKind};

use crate::live::client::rows_of;

/// Opens an in-memory database with a shared table `app.t`.
async fn with_table() -> (Database, Session) {
    with_table_and(Config::in_memory()).await
}

async fn with_table_and(config: Config) -> (Database, Session) {
    let config = Config { root_password: Some("correct horse".to_owned()), ..config };
    let database = Database::open(config).await.expect("open");
    let root = database.session_for("root").expect("root");
    for sql in [
        "CREATE NAMESPACE app",
        "CREATE SHARED TABLE app.t (id BIGINT PRIMARY KEY, a INT, b TEXT, c DOUBLE PRECISION) WITH (ACCESS_LEVEL='public')",
    ] {
        root.execute(sql, ()).await.expect(sql);
    }
    (database, root)
}

async fn next(stream: &mut Subscription) -> Arc<Frame> {
    tokio::time::timeout(Duration::from_secs(20), stream.next())
        .await
        .expect("a frame in time")
        .expect("a frame")
        .expect("no error")
}

#[tokio::test]
async fn rows_enter_change_and_leave_a_condition() {
    let (database, root) = with_table().await;
    root.execute("INSERT INTO app.t VALUES (1, 1, 'x', 0.0), (2, 9, 'y', 0.0)", ()).await.expect("insert");
    let mut stream = root
        .subscribe(SubscribeRequest::new("SELECT id, a FROM app.t WHERE a > 5"))
        .await
        .expect("subscribe");
    assert!(matches!(next(&mut stream).await.body, FrameBody::Started { .. }));
    assert!(matches!(&next(&mut stream).await.body, FrameBody::Snapshot(rows) if rows.rows == 1));
    assert!(matches!(next(&mut stream).await.body, FrameBody::SnapshotEnd));
    for (sql, expected) in [
        ("UPDATE app.t SET a = 7 WHERE id = 1", vec![(OP_INSERT, 1, 7)]),
        ("UPDATE app.t SET a = 8 WHERE id = 1", vec![(OP_UPDATE, 1, 8)]),
        ("UPDATE app.t SET a = 0", vec![(OP_DELETE, 1, 8), (OP_DELETE, 2, 9)]),
    ] {
        root.execute(sql, ()).await.expect(sql);
        let frame = next(&mut stream).await;
        let FrameBody::Delta(rows) = &frame.body else { panic!("{sql}: {frame:?}") };
        let text = |value: ScalarValue| format!("{value:?}");
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(op, id, a)| {
                (op, vec![text(ScalarValue::Int64(Some(id))), text(ScalarValue::Int32(Some(a)))])
            })
            .collect();
        assert_eq!(rows_of(rows), expected, "{sql}");
        assert_eq!(frame.complete_through, database.seq(), "{sql}");
    }
    // A change of an unselected column sends nothing; the next frame reports the change after it.
    root.execute("UPDATE app.t SET a = 6 WHERE id = 1", ()).await.expect("enter");
    assert!(matches!(next(&mut stream).await.body, FrameBody::Delta(_)));
    root.execute("UPDATE app.t SET b = 'other' WHERE id = 1", ()).await.expect("unselected");
    root.execute("DELETE FROM app.t WHERE id = 1", ()).await.expect("delete");
    let frame = next(&mut stream).await;
    assert!(matches!(&frame.body, FrameBody::Delta(rows) if rows_of(rows)[0].0 == OP_DELETE), "{frame:?}");
}

#[tokio::test]
async fn equal_live_queries_are_evaluated_once_and_share_their_frames() {
    let (database, root) = with_table().await;
    let mut streams = Vec::new();
    for sql in ["SELECT id FROM app.t WHERE a = 1 + 1", "SELECT t.id FROM app.t AS t WHERE a = 2"] {
        let mut request = SubscribeRequest::new(sql);
        request.snapshot = SnapshotMode::Skip;
        let mut stream = root.subscribe(request).await.expect(sql);
        next(&mut stream).await;
        streams.push(stream);
    }
    root.execute("INSERT INTO app.t VALUES (1, 2, 'x', 0.0)", ()).await.expect("insert");
    let frames = [next(&mut streams[0]).await, next(&mut streams[1]).await];
    assert!(Arc::ptr_eq(&frames[0], &frames[1]));
    let counters = database.context().live_queries.counters();
    assert_eq!((counters.subscriptions, counters.groups, counters.evaluations), (2, 1, 1));
}

#[tokio::test]
async fn a_dropped_stream_is_unregistered_at_once() {
    let (database, root) = with_table().await;
    root.execute("INSERT INTO app.t VALUES (1, 2, 'x', 0.0)", ()).await.expect("insert");
    let live = &database.context().live_queries;
    let numbers = || (live.counters().subscriptions, live.counters().groups, live.list().len());
    let subscribe = async |sql: &str| root.subscribe(SubscribeRequest::new(sql)).await.expect(sql);
    // One was never polled; of two equal ones, one is within its snapshot and one waits for changes.
    let fresh = subscribe("SELECT id, a FROM app.t").await;
    let mut in_snapshot = subscribe("SELECT id FROM app.t").await;
    let mut waiting = subscribe("SELECT id FROM app.t").await;
    next(&mut in_snapshot).await;
    while !matches!(next(&mut waiting).await.body, FrameBody::SnapshotEnd) {}
    assert!(futures::poll!(waiting.next()).is_pending());
    assert_eq!(numbers(), (3, 2, 3));
    drop(fresh);
    assert_eq!(numbers(), (2, 1, 2));
    drop(waiting);
    assert_eq!(numbers(), (1, 1, 1));
    drop(in_snapshot);
    assert_eq!(numbers(), (0, 0, 0));
}

#[tokio::test]
async fn without_a_heartbeat_commits_that_change_nothing_are_reported_from_the_log_too() {
    // No commit stays in memory, so every subscriber reads the change log.
    let (database, root) = with_table_and(Config { commit_ring_bytes: 0, ..Config::in_memory() }).await;
    let mut request = SubscribeRequest::new("SELECT id FROM app.t WHERE a > 5");
    request.heartbeat = Duration::ZERO;
    let mut stream = root.subscribe(request).await.expect("subscribe");
    assert!(matches!(next(&mut stream).await.body, FrameBody::Started { .. }));
    assert!(matches!(next(&mut stream).await.body, FrameBody::SnapshotEnd));
    for id in 1..4 {
        root.execute(&format!("INSERT INTO app.t VALUES ({id}, 1, 'x', 0.0)"), ()).await.expect("insert");
        let frame = next(&mut stream).await;
        assert!(matches!(frame.body, FrameBody::Progress), "{frame:?}");
        assert_eq!(frame.complete_through, database.seq());
        assert!(frame.resume_token.is_some());
    }
    assert!(database.context().live_queries.counters().log_reads > 0);
}

#[tokio::test]
async fn a_subscriber_that_reads_nothing_holds_no_more_than_the_ring() {
    const RING_BYTES: usize = 8_000;
    let (database, root) =
        with_table_and(Config { live_ring_bytes: RING_BYTES, ..Config::in_memory() }).await;
    let live = &database.context().live_queries;
    let mut slow = root.subscribe(SubscribeRequest::new("SELECT id FROM app.t")).await.expect("subscribe");
    let mut quick = root.subscribe(SubscribeRequest::new("SELECT id FROM app.t")).await.expect("subscribe");
    for stream in [&mut slow, &mut quick] {
        while !matches!(next(stream).await.body, FrameBody::SnapshotEnd) {}
    }
    for id in 0..200 {
        root.execute(&format!("INSERT INTO app.t VALUES ({id}, 1, 'x', 0.0)"), ()).await.expect("insert");
        // Once the quick subscriber has the commit, the ring has it too.
        assert_eq!(next(&mut quick).await.complete_through, database.seq());
        let held = live.counters().ring_bytes;
        assert!(held <= RING_BYTES, "{held} bytes after row {id}");
    }
    assert_eq!(live.counters().log_reads, 0, "who keeps up is served from memory");
    let mut ids = Vec::new();
    while ids.len() < 200 {
        let frame = next(&mut slow).await;
        let FrameBody::Delta(rows) = &frame.body else { panic!("{frame:?}") };
        ids.extend(rows_of(rows).into_iter().map(|(op, row)| (op, row[0].clone())));
    }
    let expected: Vec<_> =
        (0..200).map(|id| (OP_INSERT, format!("{:?}", ScalarValue::Int64(Some(id))))).collect();
    assert_eq!(ids, expected);
    let counters = live.counters();
    assert!(
        counters.log_reads > 0 && counters.resets == 0,
        "who does not reads the change log: {counters:?}"
    );
}

#[tokio::test]
async fn a_commit_that_no_ring_holds_is_evaluated_once_for_all_who_are_equal() {
    let (database, root) = with_table_and(Config { live_ring_bytes: 1_000, ..Config::in_memory() }).await;
    let mut streams = Vec::new();
    for _ in 0..5 {
        let mut request = SubscribeRequest::new("SELECT id, b FROM app.t WHERE a = 1");
        request.max_rows = 100;
        let mut stream = root.subscribe(request).await.expect("subscribe");
        while !matches!(next(&mut stream).await.body, FrameBody::SnapshotEnd) {}
        streams.push(stream);
    }
    let insert = "INSERT INTO app.t SELECT value, 1, repeat('x', 500), 0.0 FROM generate_series(1, 1000)";
    root.execute(insert, ()).await.expect("insert");
    let mut first = Vec::new();
    for stream in &mut streams {
        first.push(next(stream).await);
    }
    assert!(first.iter().all(|frame| Arc::ptr_eq(frame, &first[0])), "all deliver the same frames");
    let mut last = Vec::new();
    for stream in &mut streams {
        let FrameBody::Delta(delta) = &first[0].body else { panic!("{:?}", first[0]) };
        let mut rows = delta.rows;
        loop {
            let frame = next(stream).await;
            let FrameBody::Delta(delta) = &frame.body else { panic!("{frame:?}") };
            rows += delta.rows;
            if !frame.more {
                assert_eq!((rows, frame.complete_through), (1_000, database.seq()));
                last.push(frame);
                break;
            }
        }
    }
    assert!(last.iter().all(|frame| Arc::ptr_eq(frame, &last[0])));
    let counters = database.context().live_queries.counters();
    assert_eq!((counters.groups, counters.log_reads, counters.resets), (1, 5, 0));
}

#[tokio::test]
async fn what_cannot_be_kept_up_to_date_is_refused_by_name() {
    let (_database, root) = with_table().await;
    for (sql, part) in [
        ("SELECT count(*) FROM app.t", "aggregate"),
        ("SELECT id FROM app.t ORDER BY id", "ORDER BY"),
        ("SELECT id FROM app.t LIMIT 1", "LIMIT"),
        ("SELECT DISTINCT a FROM app.t", "DISTINCT"),
        ("SELECT x.id FROM app.t x JOIN app.t y ON x.id = y.id", "JOIN"),
        ("SELECT id FROM app.t WHERE a > random()", "random()"),
        ("SELECT id, now() FROM app.t", "now()"),
        ("SELECT id FROM app.t WHERE id IN (SELECT a FROM app.t)", "subquery"),
        ("SELECT 1", "without a table"),
        ("SELECT * FROM system.stats", "system.stats"),
    ] {
        let error = root.subscribe(SubscribeRequest::new(sql)).await.expect_err(sql);
        assert_eq!(error.sqlstate().0, "0A000", "{sql}: {error}");
        assert!(error.message().contains(part), "{sql}: {error}");
        assert!(error.hint_text().is_some(), "{sql}: {error}");
    }
}

#[tokio::test]
async fn streams_say_why_they_end() {
    let (database, root) = with_table().await;
    let ended = async |mut stream: Subscription| loop {
        if let FrameBody::Closed { reason, .. } = next(&mut stream).await.body {
            // An error follows a failure, so that no client takes it for a normal end.
            let failed = stream.next().await.is_some_and(|item| item.is_err());
            assert_eq!(failed, reason == CloseReason::Failed);
            return reason;
        }
    };
    let subscribe =
        async || root.subscribe(SubscribeRequest::new("SELECT * FROM app.t")).await.expect("subscribe");

    let stream = subscribe().await;
    root.execute(&format!("KILL LIVE QUERY '{}'", stream.id()), ()).await.expect("kill");
    assert_eq!(ended(stream).await, CloseReason::Killed);

    let mut only = SubscribeRequest::new("SELECT * FROM app.t");
    only.snapshot = SnapshotMode::Only;
    assert_eq!(ended(root.subscribe(only).await.expect("only")).await, CloseReason::Completed);

    let mut bounded = SubscribeRequest::new("SELECT * FROM app.t");
    bounded.up_to_seq = Some(Seq(database.seq().0 + 1));
    let bounded = root.subscribe(bounded).await.expect("bounded");
    root.execute("INSERT INTO app.t VALUES (1, 2, 'x', 0.0)", ()).await.expect("insert");
    assert_eq!(ended(bounded).await, CloseReason::Completed);

    let failing =
        root.subscribe(SubscribeRequest::new("SELECT 1 / a AS one FROM app.t")).await.expect("divide");
    let dropped = subscribe().await;
    root.execute("INSERT INTO app.t VALUES (2, 0, 'x', 0.0)", ()).await.expect("insert zero");
    assert_eq!(ended(failing).await, CloseReason::Failed);
    let create = "CREATE SHARED TABLE app.u (id BIGINT PRIMARY KEY) WITH (ACCESS_LEVEL='public')";
    root.execute(create, ()).await.expect("another table");
    let other = root.subscribe(SubscribeRequest::new("SELECT * FROM app.u")).await.expect("subscribe to it");
    root.execute("DROP TABLE app.t", ()).await.expect("drop");
    assert_eq!(ended(dropped).await, CloseReason::TableDropped);
    // No other stream ends with it.
    root.execute("INSERT INTO app.u VALUES (1)", ()).await.expect("insert");
    let mut other = other;
    while !matches!(next(&mut other).await.body, FrameBody::Delta(_)) {}
    drop(other);

    for (user, sql, reason) in [
        ("ann", "ALTER USER 'ann' SET ROLE dba", CloseReason::AccessChanged),
        ("cid", "ALTER USER 'cid' SET PASSWORD 'another password'", CloseReason::AccessChanged),
        ("bob", "DROP USER 'bob'", CloseReason::UserDropped),
        ("eve", "ALTER TABLE app.u SET (ACCESS_LEVEL = 'dba')", CloseReason::AccessChanged),
    ] {
        let create = format!("CREATE USER {user} WITH PASSWORD 'correct horse' ROLE service");
        root.execute(&create, ()).await.expect("create a user");
        let session = database.session_for(user).expect("a session");
        let mut stream =
            session.subscribe(SubscribeRequest::new("SELECT * FROM app.u")).await.expect("subscribe");
        next(&mut stream).await;
        root.execute(sql, ()).await.expect(sql);
        assert_eq!(ended(stream).await, reason, "{sql}");
    }

    let stream = root.subscribe(SubscribeRequest::new("SELECT * FROM system.jobs")).await.expect("jobs");
    database.shutdown().await.expect("shutdown");
    assert_eq!(ended(stream).await, CloseReason::Shutdown);
}

#[tokio::test]
async fn tokens_of_other_queries_and_forged_ones_are_refused() {
    let (_database, root) = with_table().await;
    let mut stream = root.subscribe(SubscribeRequest::new("SELECT id FROM app.t")).await.expect("subscribe");
    next(&mut stream).await;
    let token = next(&mut stream).await.resume_token.clone().expect("the end of the snapshot has a token");
    let resume = async |sql: &str, token: Bytes| {
        let mut request = SubscribeRequest::new(sql);
        request.start = SubscribeStart::Token(token);
        root.subscribe(request).await
    };
    assert!(resume("SELECT id FROM app.t", token.clone()).await.is_ok());
    let other = resume("SELECT id, a FROM app.t", token.clone()).await.expect_err("another query");
    assert_eq!(other.kind(), ErrorKind::InvalidArgument, "{other}");
    let mut forged = token.to_vec();
    *forged.last_mut().expect("bytes") ^= 1;
    let forged = resume("SELECT id FROM app.t", forged.into()).await.expect_err("a forged token");
    assert_eq!(forged.kind(), ErrorKind::InvalidArgument, "{forged}");
}
