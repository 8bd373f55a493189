//! Statements as guests: one that works for long holds nobody up, and ends when it must.

use std::time::Duration;

use futures::StreamExt;
use kalamdb_core::{Config, Database};
use tokio::time::{sleep, timeout};

use crate::session::{fails, rows, run};

/// Queries that would run for minutes.
const LONG: [(&str, &str); 9] = [
    ("scan", "SELECT count(*) FROM generate_series(1, 100000000000) WHERE value % 3 = 7"),
    ("groups", "SELECT value % 10, count(*) FROM generate_series(1, 100000000000) GROUP BY value % 10"),
    (
        "cross join",
        "SELECT count(*) FROM generate_series(1, 1000000) a(v) CROSS JOIN generate_series(1, 1000000) b(v)",
    ),
    (
        "nested loop join",
        "SELECT count(*) FROM generate_series(1, 100000) a(v) JOIN generate_series(1, 10000000) b(v) ON a.v + b.v < 0",
    ),
    ("hash join", HASH_JOIN),
    (
        "semi join",
        "SELECT count(*) FROM generate_series(1, 1000000) a(v) WHERE EXISTS
         (SELECT 1 FROM generate_series(1, 1000000) b(v) WHERE a.v % 10 = b.v % 10 AND a.v + b.v < 0)",
    ),
    (
        "unnest",
        "SELECT count(*) FROM unnest(range(1, 2000000)) a(x), unnest(range(1, 20000)) b(y) WHERE x + y = 3",
    ),
    ("window", WINDOW),
    (
        "recursion",
        "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n % 3 + 1 FROM r) SELECT count(*) FROM r",
    ),
];
/// Each row meets 100,000 others, most of them in one step, and the filter rejects them all.
const HASH_JOIN: &str =
    "SELECT count(*) FROM generate_series(1, 1000000) a(v) JOIN generate_series(1, 1000000) b(v)
    ON a.v % 10 = b.v % 10 AND a.v + b.v < 0";
/// Each value needs all rows before it, and those of a batch are computed in one step.
const WINDOW: &str = "SELECT max(m) FROM
    (SELECT median(value) OVER (ORDER BY value) AS m FROM generate_series(1, 10000000)) w";
/// More than an answer takes beside a long statement, and all other tests.
const SOON: Duration = Duration::from_secs(60);

/// Waits until no task works for statements.
pub(crate) async fn until_idle(database: &Database, what: &str) {
    let idle = async {
        while database.context().engine_threads.tasks() > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(SOON, idle).await.unwrap_or_else(|_| panic!("{what} goes on"));
}

// The runtime of this test has one thread, which the statement must not occupy.
#[tokio::test]
async fn a_long_query_holds_nobody_up_and_ends_when_its_reader_leaves() {
    let database = Database::open_in_memory().await.unwrap();
    let root = database.session_for("root").unwrap();
    run(&root, "CREATE TABLE points (id BIGINT PRIMARY KEY, x BIGINT)").await;
    for (number, (kind, sql)) in LONG.into_iter().enumerate() {
        let mut long =
            root.execute(sql, ()).await.unwrap_or_else(|error| panic!("{kind}: {error}")).rows().unwrap();
        let first = timeout(Duration::from_millis(50), long.next()).await;
        assert!(first.is_err(), "{kind}: {first:?}");
        let others = async {
            run(&root, &format!("INSERT INTO points VALUES ({number}, 10)")).await;
            let by_key = format!("SELECT x FROM points WHERE id = {number}");
            assert_eq!(rows(&root, &by_key, ()).await, ["10"]);
            run(&root, "UPDATE points SET x = x + 1 WHERE x = 10").await;
            assert_eq!(rows(&root, "SELECT min(x) FROM points", ()).await, ["11"]);
            root.prepare("SELECT id FROM points WHERE x > $1").await.unwrap();
        };
        timeout(SOON, others).await.unwrap_or_else(|_| panic!("{kind} holds others up"));
        drop(long);
        until_idle(&database, kind).await;
    }
    database.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_long_write_ends_when_its_caller_leaves() {
    let database = Database::open_in_memory().await.unwrap();
    let root = database.session_for("root").unwrap();
    run(&root, "CREATE TABLE points (id BIGINT PRIMARY KEY, x BIGINT)").await;
    run(&root, "INSERT INTO points VALUES (0, 0)").await;
    for sql in [
        "INSERT INTO points SELECT value, value FROM generate_series(1, 100000000000) WHERE value % 3 = 7",
        "UPDATE points SET x = 1 WHERE id IN (SELECT value FROM generate_series(1, 100000000000) WHERE value % 3 = 7)",
    ] {
        let written = timeout(Duration::from_millis(50), root.execute(sql, ())).await;
        assert!(written.is_err(), "{sql}: {written:?}");
        until_idle(&database, sql).await;
    }
    assert_eq!(rows(&root, "SELECT count(*), sum(x) FROM points", ()).await, ["1|0"]);
    database.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_step_that_takes_too_long_ends_its_statement() {
    let config = Config { step_cpu_ms_max: 1_000, ..Config::in_memory() };
    let database = Database::open(config).await.unwrap();
    let root = database.session_for("root").unwrap();
    let error = timeout(SOON, fails(&root, WINDOW)).await.expect("the statement ends");
    assert_eq!(error.sqlstate().to_string(), "54000", "{error}");
    assert!(error.hint_text().is_some_and(|hint| hint.contains("step_cpu_ms_max")), "{error}");
    // Work that pauses may take as long as it wants.
    let sum = "SELECT sum(value % 7) FROM generate_series(1, 5000000)";
    assert_eq!(rows(&root, sum, ()).await, ["15000000"]);
    until_idle(&database, "the statement").await;
    database.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_row_that_becomes_too_large_is_refused() {
    let database = Database::open_in_memory().await.unwrap();
    let root = database.session_for("root").unwrap();
    let query = |bytes: usize| {
        format!(
            "SELECT max(length(t)), sum(x) FROM (SELECT t, unnest(list) AS x FROM
             (SELECT repeat('x', {bytes}) AS t, range(1, 2000) AS list) s) u"
        )
    };
    let error = fails(&root, &query(600_000)).await;
    assert_eq!(error.sqlstate().to_string(), "54000", "{error}");
    assert!(error.message().contains("MiB"), "{error}");
    assert_eq!(rows(&root, &query(6_000), ()).await, ["6000|1999000"]);
    database.shutdown().await.unwrap();
}

#[tokio::test]
async fn joins_are_of_the_kinds_that_have_guards() {
    let database = Database::open_in_memory().await.unwrap();
    let root = database.session_for("root").unwrap();
    run(&root, "CREATE TABLE points (id BIGINT PRIMARY KEY, x BIGINT)").await;
    for (condition, kind) in [
        ("a.x = b.x", "HashJoinExec"),
        ("a.x = b.x AND a.id < b.id", "HashJoinExec"),
        ("a.x < b.x", "NestedLoopJoinExec"),
        ("a.x < b.x AND a.id > b.id", "NestedLoopJoinExec"),
    ] {
        for join in ["JOIN", "LEFT JOIN", "FULL JOIN"] {
            let sql = format!("EXPLAIN SELECT a.x, b.x AS y FROM points a {join} points b ON {condition}");
            let plan = rows(&root, &sql, ()).await.join("\n");
            assert!(plan.contains(kind), "{sql}: {plan}");
            for other in ["SortMergeJoin", "SymmetricHashJoin", "PiecewiseMergeJoin", "BufferExec"] {
                assert!(!plan.contains(other), "{sql}: {plan}");
            }
        }
    }
    database.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_function_that_needs_too_many_steps_is_refused() {
    let database =
        Database::open(Config { function_cost_max: 1_000_000, ..Config::in_memory() }).await.unwrap();
    let root = database.session_for("root").unwrap();
    run(&root, "CREATE TABLE texts (id BIGINT PRIMARY KEY, a TEXT, b TEXT)").await;
    run(
        &root,
        "INSERT INTO texts VALUES (1, repeat('a', 2000), repeat('b', 2000)), (2, 'kitten', 'sitting')",
    )
    .await;
    for sql in [
        "SELECT levenshtein(repeat('a', 2000), repeat('b', 2000))",
        "SELECT levenshtein(a, b) FROM texts",
        "UPDATE texts SET a = '' WHERE levenshtein(a, b) > 10",
        "SELECT max(levenshtein(x.a, y.b)) FROM texts x JOIN texts y ON levenshtein(x.a, y.b) > 10",
    ] {
        let error = fails(&root, sql).await;
        assert_eq!(error.sqlstate().to_string(), "54000", "{sql}: {error}");
        for part in ["levenshtein()", "4000000 steps", "function_cost_max"] {
            assert!(error.message().contains(part), "{sql}: {error}");
        }
    }
    for (sql, function) in [
        (
            "SELECT strpos(repeat(a, 5), b) FROM (SELECT repeat('a', 2000) AS a, repeat('b', 2000) AS b) x",
            "strpos()",
        ),
        ("SELECT array_has_all(range(1, 2000), range(1, 2000))", "array_has_all()"),
        ("SELECT 'a' = ANY(list) FROM (SELECT array_repeat('b', 100000) AS list) x", "any_of()"),
        ("SELECT id FROM texts WHERE repeat(a, 10) LIKE b", "like()"),
        ("SELECT id FROM texts WHERE repeat(a, 10) ~ b", "~"),
    ] {
        let error = fails(&root, sql).await;
        assert_eq!(error.sqlstate().to_string(), "54000", "{sql}: {error}");
        assert!(error.message().contains(function), "{sql}: {error}");
    }
    fails(
        &root,
        "SELECT count(*) FROM generate_series(1, levenshtein(repeat('a', 2000), repeat('b', 2000)))",
    )
    .await;
    let near = "SELECT id, levenshtein(a, b) FROM texts WHERE id = 2 AND levenshtein(a, b) < 10";
    assert_eq!(rows(&root, near, ()).await, ["2|3"]);
    // A condition keeps a function from long texts.
    let short = "SELECT id FROM texts WHERE levenshtein(a, b) < 10 AND length(a) < 100";
    assert_eq!(rows(&root, short, ()).await, ["2"]);
    database.shutdown().await.unwrap();
}

/// Finds a match at each character, and looks for each to the end of the text.
const REGEX: &str = "'.*[^A-Z]|[A-Z]'";

#[tokio::test]
async fn a_regular_expression_with_many_matches_ends_when_it_must() {
    let config = Config { step_cpu_ms_max: 1_000, ..Config::in_memory() };
    let database = Database::open(config).await.unwrap();
    let root = database.session_for("root").unwrap();
    for sql in [
        format!("SELECT regexp_count(repeat('A', 1000000), {REGEX})"),
        format!("SELECT sum(regexp_count(repeat(t, 1000000), {REGEX})) FROM (VALUES ('A'), ('B')) AS x(t)"),
        format!("SELECT length(regexp_replace(repeat('A', 1000000), {REGEX}, 'b', 'g'))"),
        format!("SELECT regexp_instr(repeat('A', 1000000), {REGEX}, 1, 900000)"),
    ] {
        let error = timeout(SOON, fails(&root, &sql)).await.unwrap_or_else(|_| panic!("{sql} goes on"));
        assert_eq!(error.sqlstate().to_string(), "54000", "{sql}: {error}");
        until_idle(&database, &sql).await;
    }
    database.shutdown().await.unwrap();

    let database = Database::open(Config { step_cpu_ms_max: 0, ..Config::in_memory() }).await.unwrap();
    let root = database.session_for("root").unwrap();
    let sql = format!("SELECT regexp_count(repeat('A', 1000000), {REGEX})");
    assert!(timeout(Duration::from_millis(50), root.execute(sql.as_str(), ())).await.is_err());
    until_idle(&database, "the regular expression").await;
    database.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_query_may_hold_its_snapshot_only_for_so_long() {
    let config = Config { snapshot_age_max_s: 1, ..Config::in_memory() };
    let database = Database::open(config).await.unwrap();
    let root = database.session_for("root").unwrap();
    let (_, scan) = LONG[0];
    let mut unread = root.execute(scan, ()).await.unwrap().rows().unwrap();
    let error = timeout(SOON, fails(&root, scan)).await.expect("the query ends");
    assert_eq!(error.sqlstate().to_string(), "53400", "{error}");
    until_idle(&database, "the query").await;
    assert_eq!(unread.next().await.unwrap().unwrap_err().sqlstate().to_string(), "53400");
    assert!(unread.next().await.is_none());
    database.shutdown().await.unwrap();
}

#[tokio::test]
async fn at_the_end_of_the_database_no_result_looks_complete() {
    let database = Database::open_in_memory().await.unwrap();
    let root = database.session_for("root").unwrap();
    let (_, scan) = LONG[0];
    let mut cut_off = root.execute(scan, ()).await.unwrap().rows().unwrap();
    assert!(timeout(Duration::from_millis(50), cut_off.next()).await.is_err());
    database.shutdown().await.unwrap();
    assert_eq!(cut_off.next().await.unwrap().unwrap_err().sqlstate().to_string(), "57P01");
    assert_eq!(fails(&root, "SELECT count(*) FROM system.users").await.sqlstate().to_string(), "57P01");
}

#[tokio::test]
async fn who_reads_rows_needs_neither_the_session_nor_the_database() {
    let database = Database::open_in_memory().await.unwrap();
    let root = database.session_for("root").unwrap();
    run(&root, "CREATE TABLE points (id BIGINT PRIMARY KEY)").await;
    run(&root, "INSERT INTO points SELECT value FROM generate_series(1, 100000)").await;
    let mut found = root.execute("SELECT id FROM points", ()).await.unwrap().rows().unwrap();
    let mut count = found.next().await.unwrap().unwrap().num_rows();
    drop((root, database));
    while let Some(batch) = found.next().await {
        count += batch.unwrap().num_rows();
    }
    assert_eq!(count, 100_000);
}

#[tokio::test]
async fn spilled_files_of_an_earlier_process_go_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let left = folder.path().join("spill/datafusion-1");
    std::fs::create_dir_all(&left).unwrap();
    std::fs::write(left.join("sort"), b"rows").unwrap();
    let database = Database::open(Config::at(folder.path())).await.unwrap();
    assert!(!left.exists() && folder.path().join("spill").is_dir());
    database.shutdown().await.unwrap();
}
