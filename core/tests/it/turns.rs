//! Turns: who runs when more statements are asked for than may run.

use std::time::Duration;

use futures::StreamExt;
use kalamdb_core::{Config, Database, Result, Session};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::session::{rows, run};

/// A query that runs for minutes.
const LONG: &str = "SELECT count(*) FROM generate_series(1, 100000000000) WHERE value % 3 = 7";
/// More than an answer takes beside all other tests.
const SOON: Duration = Duration::from_secs(60);

async fn user(database: &Database, name: &str) -> Session {
    let root = database.session_for("root").unwrap();
    run(&root, &format!("CREATE USER '{name}' WITH PASSWORD 'password of {name}'")).await;
    database.session_for(name).unwrap()
}

/// Waits until so many statements run and wait.
async fn until(database: &Database, running: usize, waiting: usize) {
    let reached = async {
        loop {
            let counters = database.context().admission.counters();
            if (counters.running, counters.waiting) == (running, waiting) {
                return;
            }
            sleep(Duration::from_millis(1)).await;
        }
    };
    let reached = timeout(SOON, reached).await;
    assert!(reached.is_ok(), "{:?}", database.context().admission);
}

async fn drain(session: Session, sql: &str) -> Result<()> {
    session.execute(sql, ()).await?.rows()?.collect().await.map(|_| ())
}

#[tokio::test]
async fn the_statements_of_a_greedy_user_wait_for_each_other_and_only_so_long() {
    let config =
        Config { statements_running_max: 4, statement_queue_timeout_ms: 1_500, ..Config::in_memory() };
    let database = Database::open(config).await.unwrap();
    let (greedy, modest) = (user(&database, "greedy").await, user(&database, "modest").await);
    let mut statements = JoinSet::new();
    for _ in 0..5 {
        statements.spawn(drain(greedy.clone(), LONG));
    }
    until(&database, 3, 2).await;
    let answered = rows(&modest, "SELECT sum(value) FROM generate_series(1, 1000)", ());
    assert_eq!(timeout(SOON, answered).await.expect("a slot is free"), ["500500"]);
    for _ in 0..2 {
        let refused = timeout(SOON, statements.join_next()).await.expect("the wait ends");
        let error = refused.unwrap().unwrap().unwrap_err();
        assert_eq!(error.sqlstate().to_string(), "53300", "{error}");
        assert!(error.message().starts_with("the statement waited "), "{error}");
        assert!(error.message().contains("; 3 statements of user \"greedy\" and "), "{error}");
    }
    until(&database, 3, 0).await;
    statements.shutdown().await;
    until(&database, 0, 0).await;
    database.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_query_that_nobody_reads_lets_others_run_and_goes_on() {
    let database = Database::open(Config { statements_running_max: 1, ..Config::in_memory() }).await.unwrap();
    let session = user(&database, "ann").await;
    let query = "SELECT value FROM generate_series(1, 1000000)";
    let unread = session.execute(query, ()).await.unwrap().rows().unwrap();
    let mut half_read = session.execute(query, ()).await.unwrap().rows().unwrap();
    let mut count = half_read.next().await.unwrap().unwrap().num_rows();
    let other = rows(&session, "SELECT sum(value) FROM generate_series(1, 1000)", ());
    assert_eq!(timeout(SOON, other).await.expect("the slot is given back"), ["500500"]);
    while let Some(batch) = half_read.next().await {
        count += batch.unwrap().num_rows();
    }
    assert_eq!(count, 1_000_000);
    assert_eq!(unread.collect().await.unwrap().iter().map(|batch| batch.num_rows()).sum::<usize>(), count);
    until(&database, 0, 0).await;
    database.shutdown().await.unwrap();
}

#[tokio::test]
async fn writers_that_lose_against_each_other_all_get_their_turns() {
    let database = Database::open(Config { statements_running_max: 1, ..Config::in_memory() }).await.unwrap();
    let root = database.session_for("root").unwrap();
    run(&root, "CREATE TABLE counters (id BIGINT PRIMARY KEY, n BIGINT)").await;
    run(&root, "INSERT INTO counters VALUES (1, 0)").await;
    let mut writers = JoinSet::new();
    for _ in 0..8 {
        let root = root.clone();
        writers.spawn(async move { run(&root, "UPDATE counters SET n = n + 1 WHERE id = 1").await });
    }
    timeout(SOON, writers.join_all()).await.expect("the writers end");
    assert_eq!(rows(&root, "SELECT n FROM counters", ()).await, ["8"]);
    until(&database, 0, 0).await;
    database.shutdown().await.unwrap();
}
