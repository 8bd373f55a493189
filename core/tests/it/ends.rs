//! How statements end that do not end by themselves: KILL, users who are gone, closed sessions and calls.

use std::time::{Duration, Instant};

use futures::StreamExt;
use kalamdb_core::{
    Call, CloseReason, Database, FrameBody, Session, SessionKind, SessionOrigin, SqlState, StopReason,
    SubscribeRequest,
};

use crate::session::{fails, rows, run};

const ENDLESS: &str = "SELECT count(*) FROM generate_series(1, 1000000000000)";
const WAIT_MAX: Duration = Duration::from_secs(20);

async fn database() -> (Database, Session) {
    let database = Database::open_in_memory().await.unwrap();
    let root = database.session_for("root").unwrap();
    run(&root, "CREATE USER ann WITH PASSWORD 'a password' ROLE user").await;
    run(&root, "CREATE USER TABLE t (id BIGINT PRIMARY KEY)").await;
    (database, root)
}

/// Waits until ann has so many running queries, and returns their numbers.
async fn running(root: &Session, count: usize) -> Vec<String> {
    let sql = "SELECT query_id FROM system.queries WHERE username = 'ann'";
    let until = Instant::now() + WAIT_MAX;
    loop {
        let found = rows(root, sql, ()).await;
        if found.len() == count {
            return found;
        }
        assert!(Instant::now() < until, "{count} statements run, not {}", found.len());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_ends_by_kill_and_with_its_call_session_and_user() {
    let (database, root) = database().await;
    for (way, sqlstate) in [
        ("KILL QUERY", "57014"),
        ("KILL SESSION", "57P01"),
        ("call", "57014"),
        ("session", "57014"),
        ("ALTER USER ann SET PASSWORD 'another password'", "28000"),
        ("ALTER USER ann SET ROLE service", "28000"),
        ("DROP USER ann", "28000"),
    ] {
        let (ann, call) = (database.session_for("ann").unwrap(), Call::default());
        let found = ann.in_call(&call).execute(ENDLESS, ()).await.unwrap().rows().unwrap();
        let stopped = found.stopped();
        let reading = tokio::spawn(found.collect());
        let query = running(&root, 1).await.remove(0);
        match way {
            "KILL QUERY" => _ = run(&root, &format!("KILL QUERY {query}")).await,
            "KILL SESSION" => _ = run(&root, &format!("KILL SESSION {}", ann.id())).await,
            "call" => call.end(StopReason::Cancelled),
            "session" => ann.close(),
            sql => _ = run(&root, sql).await,
        }
        let error = reading.await.unwrap().unwrap_err();
        assert_eq!(error.sqlstate().0, sqlstate, "{way}: {error}");
        assert_eq!(stopped.await.sqlstate().0, sqlstate, "{way}");
        running(&root, 0).await;
        let next = match way {
            "KILL SESSION" => Some("57P01"),
            "session" => Some("08000"),
            "DROP USER ann" => Some("28000"),
            _ => None,
        };
        match next {
            Some(sqlstate) => assert_eq!(fails(&ann, "SELECT 1").await.sqlstate().0, sqlstate, "{way}"),
            None => assert_eq!(rows(&ann, "SELECT 1", ()).await, ["1"], "{way}: the session goes on"),
        }
    }
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_being_sent_and_live_queries_end_too() {
    let (database, root) = database().await;
    let ann = database.session_for("ann").unwrap();
    let appending = ann.begin_append(None, "t").unwrap();
    let query = running(&root, 1).await.remove(0);
    run(&root, &format!("KILL QUERY {query}")).await;
    assert_eq!(appending.stopped().await.sqlstate(), SqlState::QUERY_CANCELED);
    assert_eq!(appending.finish(Vec::new()).await.unwrap_err().sqlstate(), SqlState::QUERY_CANCELED);

    let mut frames = ann.subscribe(SubscribeRequest::new("SELECT id FROM t")).await.unwrap();
    running(&root, 0).await;
    let sql = "SELECT live_queries FROM system.sessions WHERE username = 'ann'";
    assert_eq!(rows(&root, sql, ()).await, ["1"]);
    ann.close();
    loop {
        if let FrameBody::Closed { reason, message, .. } = &frames.next().await.unwrap().unwrap().body {
            assert_eq!((*reason, message.as_str()), (CloseReason::Killed, "the session was closed"));
            break;
        }
    }
    assert!(ann.subscribe(SubscribeRequest::new("SELECT id FROM t")).await.is_err());
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_show_where_they_come_from_and_what_they_have() {
    let (database, root) = database().await;
    let principal = database.session_for("ann").unwrap().principal().clone();
    let origin = SessionOrigin {
        kind: SessionKind::Named,
        address: Some([192, 0, 2, 7].into()),
        application: Some("a test".to_owned()),
    };
    let ann = database.session_from(&principal, origin);
    let prepared = ann.prepare("SELECT 1").await.unwrap();
    let columns =
        "username, client_address, application_name, kind, namespace, queries, prepared, live_queries";
    let sql = format!("SELECT {columns} FROM system.sessions WHERE session_id = '{}'", ann.id());
    assert_eq!(rows(&root, &sql, ()).await, ["ann|192.0.2.7|a test|named|public|0|1|0"]);
    let memory = format!("SELECT memory_bytes FROM system.sessions WHERE session_id = '{}'", ann.id());
    assert_eq!(rows(&root, &memory, ()).await, [prepared.size().to_string()]);
    drop(prepared);
    assert_eq!(rows(&root, &memory, ()).await, ["0"]);
    run(&ann, "SET application_name = 'another'").await;
    assert_eq!(rows(&ann, &sql, ()).await, ["ann|192.0.2.7|another|named|public|1|0|0"]);
    drop(ann);
    let until = Instant::now() + WAIT_MAX;
    while !rows(&root, &sql, ()).await.is_empty() {
        assert!(Instant::now() < until, "a session that nobody holds is not listed");
    }
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_counts_until_the_last_row_is_read() {
    let (database, _root) = database().await;
    let ann = database.session_for("ann").unwrap();
    run(&ann, "SET statement_timeout = '1s'").await;
    let mut unread =
        ann.execute("SELECT * FROM generate_series(1, 10000000)", ()).await.unwrap().rows().unwrap();
    unread.next().await.unwrap().unwrap();
    let error = unread.stopped().await;
    assert_eq!(error.sqlstate(), SqlState::QUERY_CANCELED, "{error}");
    assert!(unread.collect().await.is_err());
    // A live query is open for as long as it likes.
    let mut frames = ann.subscribe(SubscribeRequest::new("SELECT id FROM t WHERE id > 0")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    run(&ann, "INSERT INTO t VALUES (1)").await;
    loop {
        if let FrameBody::Delta(changed) = &frames.next().await.unwrap().unwrap().body {
            assert_eq!(changed.rows, 1);
            break;
        }
    }
    database.shutdown().await.unwrap();
}
