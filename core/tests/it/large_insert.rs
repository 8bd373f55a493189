//! Inserts so large that their rows become segments at once: only SHOW MANIFEST shows the difference.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::Int64Type;
use futures::StreamExt;
use kalamdb_core::{Config, Database, FrameBody, Session, SubscribeRequest};

use crate::cold::{complete, flush};
use crate::session::{fails, run};

async fn rows(session: &Session, sql: &str) -> Vec<String> {
    crate::session::rows(session, sql, ()).await
}

fn config() -> Config {
    Config { large_insert_bytes: 5_000, ..Config::in_memory() }
}

async fn database() -> (Database, Session) {
    let database = Database::open(config()).await.unwrap();
    let root = database.session_for("root").unwrap();
    run(&root, "CREATE NAMESPACE app").await;
    (database, root)
}

/// Returns for each segment of a table its rows and how many of them are overwritten or deleted.
async fn cold_rows(root: &Session, table: &str) -> Vec<(u64, u64)> {
    let manifest = rows(root, &format!("SHOW MANIFEST FOR {table}")).await;
    let numbers = manifest.iter().map(|line| line.split('|').collect::<Vec<_>>());
    numbers.map(|cells| (cells[2].parse().unwrap(), cells[3].parse().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn its_rows_are_cold_at_once_and_read_as_any_other() {
    let (database, root) = database().await;
    let columns = "(id BIGINT PRIMARY KEY, d DOUBLE, t TEXT)";
    let select = "SELECT CASE WHEN value % 7 = 0 THEN -value ELSE value END, \
                  CASE WHEN value % 5 = 0 THEN CAST('-0.0' AS DOUBLE) ELSE value / 4.0 END, \
                  CASE WHEN value % 3 = 0 THEN NULL ELSE 'text ' || value::TEXT END FROM generate_series(1, 5000)";
    for table in ["large", "rows"] {
        run(&root, &format!("CREATE TABLE app.{table} {columns}")).await;
    }
    assert_eq!(run(&root, &format!("INSERT INTO app.large {select}")).await, 5_000);
    assert_eq!(cold_rows(&root, "app.large").await, [(5_000, 0)]);
    for first in (0..5_000).step_by(100) {
        let some = format!("value > {first} AND value <= {}", first + 100);
        run(&root, &format!("INSERT INTO app.rows {select} WHERE {some}")).await;
    }
    assert_eq!(cold_rows(&root, "app.rows").await, []);
    for sql in [
        "SELECT * FROM app.{} ORDER BY id",
        "SELECT id FROM app.{} WHERE d = 0.0 ORDER BY d, id",
        "SELECT t, count(*) FROM app.{} WHERE id BETWEEN 10 AND 900 GROUP BY t ORDER BY t LIMIT 20",
        "SELECT * FROM app.{} WHERE id IN (-7, 8, 4999, 5000)",
    ] {
        let (large, others) = (sql.replace("{}", "large"), sql.replace("{}", "rows"));
        assert_eq!(rows(&root, &large).await, rows(&root, &others).await, "{sql}");
    }
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn its_rows_have_the_seq_of_their_commit() {
    let (database, root) = database().await;
    run(&root, "CREATE TABLE app.t (id BIGINT PRIMARY KEY, t TEXT)").await;
    run(&root, "INSERT INTO app.t VALUES (0, 'small')").await;
    let before: i64 = rows(&root, "SELECT max(_seq) FROM app.t").await[0].parse().unwrap();
    run(&root, "INSERT INTO app.t SELECT value, 'large' FROM generate_series(1, 2000)").await;
    let seqs = rows(&root, "SELECT DISTINCT _seq FROM app.t WHERE id > 0").await;
    let [seq] = seqs.as_slice() else { panic!("{seqs:?}") };
    assert!(seq.parse::<i64>().unwrap() > before);
    for (condition, count) in [
        (format!("_seq > {before}"), "2000"),
        (format!("_seq = {seq}"), "2000"),
        (format!("_seq < {seq}"), "1"),
        ("_seq = 0".to_owned(), "0"),
    ] {
        let sql = format!("SELECT count(*) FROM app.t WHERE {condition}");
        assert_eq!(rows(&root, &sql).await, [count], "{condition}");
    }
    let one = "SELECT _seq, t FROM app.t WHERE id = 77";
    assert_eq!(rows(&root, one).await, [format!("{seq}|large")]);
    assert_eq!(run(&root, "UPDATE app.t SET t = 'changed' WHERE id > 1990").await, 10);
    flush(&database, "app.t").await;
    complete(&database, "COMPACT", "app.t").await;
    assert_eq!(cold_rows(&root, "app.t").await, [(2_001, 0)]);
    assert_eq!(rows(&root, one).await, [format!("{seq}|large")]);
    let last: i64 = rows(&root, "SELECT max(_seq) FROM app.t WHERE t = 'changed'").await[0].parse().unwrap();
    assert!(last > seq.parse().unwrap());
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn its_keys_are_unique_among_hot_and_cold_rows() {
    let (database, root) = database().await;
    run(&root, "CREATE TABLE app.t (id BIGINT PRIMARY KEY, t TEXT)").await;
    run(&root, "INSERT INTO app.t VALUES (1500, 'hot')").await;
    let large = "INSERT INTO app.t SELECT value, 'large' FROM generate_series(1001, 2000)";
    let taken = fails(&root, large).await;
    assert_eq!(taken.sqlstate().to_string(), "23505");
    assert!(taken.message().contains("(id) = (1500)"), "{taken}");
    run(&root, "DELETE FROM app.t WHERE id = 1500").await;
    run(&root, large).await;
    assert_eq!(
        fails(&root, "INSERT INTO app.t VALUES (1500, 'again')").await.sqlstate().to_string(),
        "23505"
    );
    assert_eq!(fails(&root, large).await.sqlstate().to_string(), "23505");
    let doubled = "INSERT INTO app.t SELECT value % 2000 + 3000, 'double' FROM generate_series(1, 4000)";
    assert_eq!(fails(&root, doubled).await.sqlstate().to_string(), "23505");
    let nulls = "INSERT INTO app.t SELECT CASE WHEN value = 1900 THEN NULL ELSE value + 9000 END, 'x' \
                 FROM generate_series(1, 2000)";
    assert_eq!(fails(&root, nulls).await.sqlstate().to_string(), "23502");
    assert_eq!(rows(&root, "SELECT count(*) FROM app.t").await, ["1000"]);
    // Unsorted keys, between existing ones.
    run(&root, "DELETE FROM app.t WHERE id % 2 = 0").await;
    run(
        &root,
        "INSERT INTO app.t SELECT value, 'new' FROM generate_series(1, 3000) WHERE value % 2 = 0 ORDER BY value % 97, value",
    )
    .await;
    assert_eq!(
        rows(&root, "SELECT count(*), count(DISTINCT id), sum(id) FROM app.t").await,
        ["2000|2000|3001500"]
    );
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_the_same_time_do_not_take_the_same_keys() {
    let (database, root) = database().await;
    run(&root, "CREATE TABLE app.t (id BIGINT PRIMARY KEY, t TEXT)").await;
    let database = Arc::new(database);
    let tasks: Vec<_> = (0..4)
        .map(|number| {
            let session = database.session_for("root").unwrap();
            let sql = format!(
                "INSERT INTO app.t SELECT value * 3 + {number} % 2, 'from {number}' FROM generate_series(1, 1000)"
            );
            tokio::spawn(async move { session.execute(&sql, ()).await.map(drop).map_err(|error| error.sqlstate().to_string()) })
        })
        .collect();
    let mut outcomes = Vec::new();
    for task in tasks {
        outcomes.push(task.await.unwrap());
    }
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 2, "{outcomes:?}");
    assert!(outcomes.iter().all(|outcome| outcome.as_ref().err().is_none_or(|state| state == "23505")));
    assert_eq!(rows(&root, "SELECT count(*), count(DISTINCT id) FROM app.t").await, ["2000|2000"]);
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn users_and_rows_without_keys_stay_apart() {
    let (database, root) = database().await;
    run(&root, "CREATE USER TABLE app.lines (body TEXT)").await;
    let mut users = Vec::new();
    for name in ["ann", "bob"] {
        run(&root, &format!("CREATE USER '{name}' WITH PASSWORD 'a password'")).await;
        let session = database.session_for(name).unwrap();
        for round in 1..=2 {
            run(
                &session,
                &format!("INSERT INTO app.lines SELECT '{name} {round}' FROM generate_series(1, 1000)"),
            )
            .await;
        }
        users.push((name, session));
    }
    assert_eq!(cold_rows(&root, "app.lines").await.len(), 4);
    for is_compacted in [false, true] {
        if is_compacted {
            complete(&database, "COMPACT", "app.lines").await;
            assert_eq!(cold_rows(&root, "app.lines").await, [(4_000, 0)]);
        }
        for (name, session) in &users {
            assert_eq!(
                rows(session, "SELECT body, count(*) FROM app.lines GROUP BY body ORDER BY body").await,
                [format!("{name} 1|1000"), format!("{name} 2|1000")]
            );
        }
    }
    assert_eq!(run(&users[0].1, "DELETE FROM app.lines WHERE body = 'ann 1'").await, 1_000);
    assert_eq!(rows(&users[0].1, "SELECT count(*) FROM app.lines").await, ["1000"]);
    assert_eq!(rows(&users[1].1, "SELECT count(*) FROM app.lines").await, ["2000"]);
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn live_queries_see_it_as_one_commit_once() {
    let (database, root) = database().await;
    run(&root, "CREATE TABLE app.t (id BIGINT PRIMARY KEY, t TEXT)").await;
    let request = SubscribeRequest::new("SELECT id FROM app.t WHERE id % 2 = 0");
    let mut live = root.subscribe(request).await.unwrap();
    while !matches!(live.next().await.unwrap().unwrap().body, FrameBody::SnapshotEnd) {}
    run(&root, "INSERT INTO app.t SELECT value, 'large' FROM generate_series(1, 3000)").await;
    run(&root, "INSERT INTO app.t VALUES (4000, 'small')").await;
    let mut commits: BTreeMap<i64, usize> = BTreeMap::new();
    while commits.values().sum::<usize>() < 1_501 {
        let frame =
            tokio::time::timeout(Duration::from_secs(20), live.next()).await.expect("a frame in time");
        match &frame.unwrap().unwrap().body {
            FrameBody::Delta(changes) => {
                let batch = changes.batch().unwrap();
                let seqs = batch.column(1).as_primitive::<Int64Type>();
                seqs.values().iter().for_each(|seq| *commits.entry(*seq).or_default() += 1);
            }
            FrameBody::Progress => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(commits.into_values().collect::<Vec<_>>(), [1_500, 1]);
    database.shutdown().await.unwrap();
}
