//! Memory and spilled rows: who may have how much, and that everything comes back.

use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use kalamdb_core::{Config, Database, Error, UserId};
use tokio::time::sleep;

use crate::cold::flush;
use crate::guests::until_idle;
use crate::session::{fails, rows, run};

/// Collects 300,000 rows in memory.
const JOIN: &str =
    "SELECT count(*) FROM generate_series(1, 300000) a(v) JOIN generate_series(1, 300000) b(v) ON a.v = b.v";
/// Sorts 20 MB.
const SORT: &str =
    "SELECT md5(value::TEXT) || repeat('x', 100) AS t FROM generate_series(1, 150000) ORDER BY t";

fn check_refusal(error: &Error, sqlstate: &str, limit: &str) {
    assert_eq!(error.sqlstate().to_string(), sqlstate, "{error}");
    assert!(error.message().starts_with("the ") && error.message().contains(limit), "{error}");
}

#[tokio::test]
async fn a_statement_its_user_and_the_server_have_limits_of_memory() {
    let (small, large) = (1 << 20, 1 << 30);
    let config = |query, user, statement| Config {
        query_memory_bytes: query,
        user_memory_bytes: user,
        statement_memory_bytes: statement,
        ..Config::in_memory()
    };
    for (config, limit) in [
        (config(large, large, small), "statement has reached its limit of 1048576 bytes of memory"),
        (config(large, small, large), "user has reached its limit of 1048576 bytes of memory"),
        (config(small, large, large), "server has reached its limit of 1048576 bytes of memory"),
    ] {
        let database = Database::open(config).await.unwrap();
        let root = database.session_for("root").unwrap();
        check_refusal(&fails(&root, JOIN).await, "53200", limit);
        until_idle(&database, JOIN).await;
        // Only the texts that the session keeps are left.
        assert!(database.context().memory.users().all().used() < 100_000, "{limit}");
        assert_eq!(rows(&root, "SELECT count(*) FROM generate_series(1, 1000)", ()).await, ["1000"]);
        database.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn what_one_user_holds_takes_nothing_from_another() {
    let database = Database::open(Config::in_memory()).await.unwrap();
    let root = database.session_for("root").unwrap();
    run(&root, "CREATE USER ann WITH PASSWORD 'correct horse battery' ROLE user").await;
    let ann = database.session_for("ann").unwrap();
    let account = database.context().memory.users().user(ann.principal().user_id);
    let held = account.charge(account.limit().bytes_max - account.used()).unwrap();
    check_refusal(&fails(&ann, JOIN).await, "53200", "(user_memory_bytes)");
    assert_eq!(rows(&root, JOIN, ()).await, ["300000"]);
    drop(held);
    assert_eq!(rows(&ann, JOIN, ()).await, ["300000"]);
    database.shutdown().await.unwrap();
}

/// Opens a database whose statements have little memory.
async fn with_little_memory(folder: &Path, settings: Config) -> Database {
    let config = Config {
        data_dir: Some(folder.to_owned()),
        query_partitions: 1,
        batch_rows: 1_024,
        statement_memory_bytes: 16 << 20,
        ..settings
    };
    Database::open(config).await.unwrap()
}

async fn check_empty(database: &Database, folder: &Path) {
    until_idle(database, SORT).await;
    assert_eq!(database.context().spill.all().used(), 0);
    assert_eq!(std::fs::read_dir(folder.join("spill")).unwrap().count(), 0, "files go with their statement");
}

#[tokio::test]
async fn a_large_sort_spills_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let database = with_little_memory(folder.path(), Config::default()).await;
    let root = database.session_for("root").unwrap();
    let user = database.context().memory.users().user(UserId::ROOT);
    let sorted = rows(&root, SORT, ()).await;
    assert_eq!(sorted.len(), 150_000);
    assert!(sorted.is_sorted());
    assert!(database.context().spill.all().peak() > 1 << 20, "it spilled");
    assert!((1 << 20..17 << 20).contains(&user.peak()), "{} bytes", user.peak());
    check_empty(&database, folder.path()).await;

    // A reader that leaves early takes its files with it.
    let mut unread = root.execute(SORT, ()).await.unwrap().rows().unwrap();
    unread.next().await.unwrap().unwrap();
    assert!(database.context().spill.all().used() > 0);
    drop(unread);
    check_empty(&database, folder.path()).await;
    database.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_statement_and_the_server_have_limits_of_spilled_rows() {
    for (settings, limit) in [
        (
            Config { statement_spill_bytes_max: 100_000, ..Config::default() },
            "statement has reached its limit of 100000 bytes of spilled rows",
        ),
        (
            Config { spill_bytes_max: 200_000, statement_spill_bytes_max: 1 << 30, ..Config::default() },
            "server has reached its limit of 200000 bytes of spilled rows",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let database = with_little_memory(folder.path(), settings).await;
        let root = database.session_for("root").unwrap();
        check_refusal(&fails(&root, SORT).await, "53400", limit);
        check_empty(&database, folder.path()).await;
        database.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn batches_of_wide_rows_have_few_rows() {
    // 16 texts fill a batch.
    const TEXT: &str = "repeat('x', 1000000)";
    let config = Config { large_insert_bytes: 0, query_partitions: 1, ..Config::in_memory() };
    let database = Database::open(config).await.unwrap();
    let root = database.session_for("root").unwrap();
    run(&root, "CREATE TABLE wide (id BIGINT PRIMARY KEY, body TEXT)").await;
    run(&root, &format!("INSERT INTO wide SELECT value, {TEXT} FROM generate_series(1, 40)")).await;
    let sizes = async |sql: &str| {
        let mut found = root.execute(sql, ()).await.unwrap().rows().unwrap();
        let mut sizes = Vec::new();
        while let Some(batch) = found.next().await {
            sizes.push(batch.unwrap().num_rows());
        }
        sizes
    };
    let check = |sizes: Vec<usize>, what: &str| {
        assert!(
            sizes.iter().sum::<usize>() == 40 && sizes.iter().all(|rows| *rows <= 16),
            "{what}: {sizes:?}"
        );
    };
    for constant in [format!("value, {TEXT}"), format!("CASE WHEN value > 9 THEN {TEXT} END")] {
        let sql = format!("SELECT {constant} AS t FROM generate_series(1, 40)");
        check(sizes(&sql).await, &constant);
    }
    let filtered = "SELECT id, body FROM wide WHERE length(body) > id";
    let table = database.context().committer.snapshot().catalog.table("public", "wide").unwrap().id;
    let hot_row_bytes = || database.context().jobs.hot_row_bytes(table);
    while hot_row_bytes() == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    check(sizes(filtered).await, "hot rows");
    flush(&database, "wide").await;
    while hot_row_bytes() > 0 {
        sleep(Duration::from_millis(1)).await;
    }
    check(sizes(filtered).await, "cold rows");
    assert_eq!(sizes("SELECT id FROM wide WHERE id % 41 < 41").await, [40], "narrow columns of wide rows");
    database.shutdown().await.unwrap();
}
