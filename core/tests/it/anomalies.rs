//! What two concurrent statements can do to each other: the anomalies snapshot isolation allows and prevents.
//!
//! Each statement is held after planning until all concurrent ones are planned, so every test takes exactly
//! one schedule. When an anomaly disappears its test fails, and docs/promises.md needs an update.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use kalamdb_core::failpoint::PLANNED;
use kalamdb_core::{Database, Outcome, Session};
use tokio::sync::watch;

use crate::session::run;

async fn rows(session: &Session, sql: &str) -> Vec<String> {
    crate::session::rows(session, sql, ()).await
}

/// Opens a database with a table that no other test has: all tests of the program share the names of points.
async fn database(table: &str, columns: &str) -> (Database, Session) {
    let database = Database::open_in_memory().await.unwrap();
    let root = database.session_for("root").unwrap();
    run(&root, &format!("CREATE TABLE {table} ({columns})")).await;
    (database, root)
}

/// The rows each statement changed, or its SQLSTATE.
type Ends = Vec<Result<u64, String>>;

async fn end(session: Session, sql: String) -> Result<u64, String> {
    match session.execute(&sql, ()).await {
        Ok(Outcome::Affected(affected)) => Ok(affected.rows),
        Ok(other) => panic!("{sql}: {other:?}"),
        Err(error) => Err(error.sqlstate().to_string()),
    }
}

/// Runs statements that write to `table`, so that all of them are planned before the first commits. A retried
/// statement then sees what the others did.
async fn at_once(session: &Session, table: &str, statements: &[&str]) -> Ends {
    let (count, met) = (statements.len(), Barrier::new(statements.len()));
    let arrived = AtomicUsize::new(0);
    let point = format!("{PLANNED}public.{table}");
    fail::cfg_callback(&point, move || {
        if arrived.fetch_add(1, Ordering::Relaxed) < count {
            met.wait();
        }
    })
    .unwrap();
    let running: Vec<_> =
        statements.iter().map(|sql| tokio::spawn(end(session.clone(), (*sql).to_owned()))).collect();
    let mut ends = Ends::new();
    for statement in running {
        ends.push(statement.await.unwrap());
    }
    fail::remove(&point);
    // Chance decides which one comes first.
    ends.sort();
    ends
}

// Anomalies that happen.

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn write_skew_two_statements_each_leave_the_last_one_to_the_other() {
    let (database, root) = database("doc", "id INT PRIMARY KEY, duty BOOLEAN").await;
    run(&root, "INSERT INTO doc VALUES (1, true), (2, true)").await;
    let off_duty = |me: i32| {
        format!("UPDATE doc SET duty = false WHERE id = {me} AND (SELECT count(*) FROM doc WHERE duty) >= 2")
    };
    let ends = at_once(&root, "doc", &[&off_duty(1), &off_duty(2)]).await;
    assert_eq!(ends, [Ok(1), Ok(1)]);
    assert_eq!(rows(&root, "SELECT count(*) FROM doc WHERE duty").await, ["0"]);
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn write_skew_two_inserts_each_find_that_there_is_no_such_row() {
    let (database, root) = database("booking", "id BIGINT PRIMARY KEY, room INT, day DATE").await;
    let book = |id: i32| {
        format!(
            "INSERT INTO booking SELECT {id}, 7, DATE '2026-01-02' \
             WHERE NOT EXISTS (SELECT 1 FROM booking WHERE room = 7 AND day = DATE '2026-01-02')"
        )
    };
    let ends = at_once(&root, "booking", &[&book(1), &book(2)]).await;
    assert_eq!(ends, [Ok(1), Ok(1)]);
    assert_eq!(rows(&root, "SELECT id FROM booking ORDER BY id").await, ["1", "2"]);
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_insert_that_lost_its_key_is_not_run_again() {
    let (database, root) = database("numbered", "id BIGINT PRIMARY KEY").await;
    run(&root, "INSERT INTO numbered VALUES (1)").await;
    let next = "INSERT INTO numbered SELECT max(id) + 1 FROM numbered";
    let ends = at_once(&root, "numbered", &[next, next]).await;
    assert_eq!(ends, [Ok(1), Err("23505".to_owned())]);
    assert_eq!(rows(&root, "SELECT id FROM numbered ORDER BY id").await, ["1", "2"]);
    database.shutdown().await.unwrap();
}

// Anomalies that do not happen.

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn no_lost_update_a_counter_counts_every_statement() {
    let (database, root) = database("counter", "id INT PRIMARY KEY, n INT").await;
    run(&root, "INSERT INTO counter VALUES (1, 0)").await;
    let ends = at_once(&root, "counter", &["UPDATE counter SET n = n + 1 WHERE id = 1"; 4]).await;
    assert_eq!(ends, [Ok(1), Ok(1), Ok(1), Ok(1)]);
    assert_eq!(rows(&root, "SELECT n FROM counter").await, ["4"]);
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_lost_update_of_a_row_that_both_want() {
    let (database, root) = database("seat", "id INT PRIMARY KEY, owner TEXT").await;
    run(&root, "INSERT INTO seat VALUES (1, NULL)").await;
    let take = |owner: &str| format!("UPDATE seat SET owner = '{owner}' WHERE id = 1 AND owner IS NULL");
    let ends = at_once(&root, "seat", &[&take("ann"), &take("bob")]).await;
    assert_eq!(ends, [Ok(0), Ok(1)], "who comes second is run again, and finds the seat taken");
    let owner = rows(&root, "SELECT owner FROM seat").await;
    assert!(owner == ["ann"] || owner == ["bob"], "{owner:?}");
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_update_of_a_row_that_was_deleted() {
    let (database, root) = database("gone", "id INT PRIMARY KEY, n INT").await;
    run(&root, "INSERT INTO gone VALUES (1, 5)").await;
    let ends = at_once(&root, "gone", &["DELETE FROM gone WHERE n = 5", "UPDATE gone SET n = 6 WHERE n = 5"]);
    let ends = ends.await;
    let left = rows(&root, "SELECT n FROM gone").await;
    assert_eq!(ends, [Ok(0), Ok(1)]);
    assert!(left.is_empty() || left == ["6"], "{left:?}");
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_key_twice() {
    let (database, root) = database("named", "id INT PRIMARY KEY, v TEXT").await;
    let ends =
        at_once(&root, "named", &["INSERT INTO named VALUES (1, 'a')", "INSERT INTO named VALUES (1, 'b')"]);
    assert_eq!(ends.await, [Ok(1), Err("23505".to_owned())]);
    assert_eq!(rows(&root, "SELECT count(*) FROM named").await, ["1"]);
    run(&root, "INSERT INTO named VALUES (2, 'c')").await;
    let ends = at_once(
        &root,
        "named",
        &["UPDATE named SET id = 3 WHERE id = 1", "UPDATE named SET id = 3 WHERE id = 2"],
    );
    assert_eq!(ends.await, [Ok(1), Err("23505".to_owned())]);
    assert_eq!(rows(&root, "SELECT count(*), count(DISTINCT id) FROM named").await, ["2|2"]);
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_dirty_read() {
    let (database, root) = database("draft", "id INT PRIMARY KEY, n INT").await;
    run(&root, "INSERT INTO draft VALUES (1, 0), (2, 0)").await;
    let (planned, go_on) = (Arc::new(watch::Sender::new(false)), Arc::new(Barrier::new(2)));
    let point = format!("{PLANNED}public.draft");
    let (is_planned, released) = (Arc::clone(&planned), Arc::clone(&go_on));
    fail::cfg_callback(&point, move || {
        is_planned.send_replace(true);
        released.wait();
    })
    .unwrap();
    let update = tokio::spawn(end(root.clone(), "UPDATE draft SET n = 1".to_owned()));
    planned.subscribe().wait_for(|planned| *planned).await.unwrap();
    assert_eq!(rows(&root, "SELECT sum(n) FROM draft").await, ["0"], "nothing of it can be seen");
    go_on.wait();
    assert_eq!(update.await.unwrap(), Ok(2));
    fail::remove(&point);
    assert_eq!(rows(&root, "SELECT sum(n) FROM draft").await, ["2"]);
    // A failing statement leaves nothing behind, whatever it did before.
    assert_eq!(
        end(root.clone(), "UPDATE draft SET n = 1 / (id - 2)".to_owned()).await,
        Err("22012".to_owned())
    );
    assert_eq!(rows(&root, "SELECT sum(n) FROM draft").await, ["2"]);
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_other_answer_within_a_statement() {
    let (database, root) = database("stock", "id INT PRIMARY KEY, n INT").await;
    run(&root, "INSERT INTO stock VALUES (1, 5), (2, 5)").await;
    // The query begins before another statement commits, and its rows are read after that.
    let select =
        "SELECT (SELECT sum(n) FROM stock), (SELECT count(*) FROM stock), s.n FROM stock s ORDER BY s.id";
    let begun = root.execute(select, ()).await.unwrap().rows().unwrap();
    run(&root, "UPDATE stock SET n = 9").await;
    run(&root, "INSERT INTO stock VALUES (3, 9)").await;
    let batches = begun.collect().await.unwrap();
    assert_eq!(crate::session::text(&batches), ["10|2|5", "10|2|5"]);
    assert_eq!(rows(&root, select).await, ["27|3|9", "27|3|9", "27|3|9"]);
    // A write does not see the rows it writes itself.
    run(&root, "INSERT INTO stock SELECT id + 10, (SELECT sum(n) FROM stock) FROM stock").await;
    assert_eq!(rows(&root, "SELECT count(*), max(n) FROM stock").await, ["6|27"]);
    database.shutdown().await.unwrap();
}
