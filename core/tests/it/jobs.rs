//! Background work as users of the database see it.

use std::sync::Arc;

use kalamdb_core::clock::ManualClock;
use kalamdb_core::ids::JobId;
use kalamdb_core::{Config, Database, Session};

use crate::backup;
use crate::session::{rows, run};

async fn open(config: Config) -> (Database, Session) {
    let database = Database::open(config).await.unwrap();
    let root = database.session_for("root").unwrap();
    (database, root)
}

/// Requests a flush.
async fn flush(root: &Session, table: &str) -> JobId {
    let job = rows(root, &format!("FLUSH TABLE {table}"), ()).await;
    JobId(job[0].split('|').next().unwrap().to_owned())
}

async fn segments(root: &Session, table: &str) -> usize {
    rows(root, &format!("SHOW MANIFEST FOR {table}"), ()).await.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_flushes_tables_with_many_hot_rows() {
    let folder = tempfile::tempdir().unwrap();
    let config = || Config { root_password: Some("a password".to_owned()), ..Config::at(folder.path()) };
    let (database, root) = open(config()).await;
    run(&root, "CREATE TABLE many (id BIGINT PRIMARY KEY)").await;
    run(&root, "CREATE TABLE few (id BIGINT PRIMARY KEY)").await;
    run(&root, "INSERT INTO many SELECT value FROM generate_series(1, 2000)").await;
    run(&root, "INSERT INTO few SELECT value FROM generate_series(1, 20)").await;
    database.shutdown().await.unwrap();
    drop((root, database));

    let (database, root) = open(Config { shutdown_flush_ms: 0, ..config() }).await;
    assert_eq!((segments(&root, "many").await, segments(&root, "few").await), (1, 0));
    let count = "SELECT (SELECT count(*) FROM many) AS many, (SELECT count(*) FROM few) AS few";
    assert_eq!(rows(&root, count, ()).await, ["2000|20"]);
    let jobs = "SELECT status, parameters FROM system.jobs WHERE job_type = 'flush'";
    assert_eq!(rows(&root, jobs, ()).await, ["completed|{\"by\":\"shutdown\",\"rows\":2000}"]);
    run(&root, "INSERT INTO many SELECT value FROM generate_series(2001, 4000)").await;
    database.shutdown().await.unwrap();
    drop((root, database));

    let (database, root) = open(config()).await;
    assert_eq!(segments(&root, "many").await, 1);
    assert_eq!(rows(&root, count, ()).await, ["4000|20"]);
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_that_a_shutdown_cuts_off_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut expected = 0;
    for shutdown_flush_ms in [1, 2, 4, 8, 16, 32] {
        let root_password = Some("a password".to_owned());
        let config = Config { shutdown_flush_ms, root_password, ..Config::at(folder.path()) };
        let (database, root) = open(config).await;
        run(&root, "CREATE TABLE IF NOT EXISTS t (id BIGINT PRIMARY KEY)").await;
        assert_eq!(rows(&root, "SELECT count(*) FROM t", ()).await, [expected.to_string()]);
        let known = segments(&root, "t").await;
        assert_eq!(backup::segments(folder.path()).len(), known);
        let to = expected + 10_000;
        run(&root, &format!("INSERT INTO t SELECT value FROM generate_series({}, {to})", expected + 1)).await;
        expected = to;
        database.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_jobs_and_the_audit_log_become_cold() {
    let folder = tempfile::tempdir().unwrap();
    let config = || Config { root_password: Some("a password".to_owned()), ..Config::at(folder.path()) };
    let (database, root) = open(config()).await;
    run(&root, "CREATE TABLE t (id BIGINT PRIMARY KEY)").await;
    for _ in 0..2 {
        let mut jobs = Vec::new();
        for job in rows(&root, "FLUSH ALL TABLES", ()).await {
            jobs.push(JobId(job.split('|').next().unwrap().to_owned()));
        }
        assert_eq!(jobs.len(), 3);
        for job in &jobs {
            database.context().jobs.wait(job).await;
        }
    }
    assert_eq!(segments(&root, "system.jobs").await, 2);
    // Nothing was written to it between its flushes.
    assert_eq!(segments(&root, "system.audit_logs").await, 1);
    let jobs = "SELECT count(*), count(DISTINCT job_id), min(status), max(status) FROM system.jobs";
    assert_eq!(rows(&root, jobs, ()).await, ["6|6|completed|completed"]);
    let audit = "SELECT target FROM system.audit_logs WHERE action = 'CREATE TABLE'";
    assert_eq!(rows(&root, audit, ()).await, ["public.t"]);
    run(&root, "DROP TABLE t").await;
    database.shutdown().await.unwrap();
    drop((root, database));
    let (database, root) = open(config()).await;
    assert_eq!(rows(&root, jobs, ()).await, ["6|6|completed|completed"]);
    assert_eq!(rows(&root, "SELECT count(*) FROM system.audit_logs", ()).await, ["2"]);
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn asking_again_for_a_flush_that_waits_gives_its_job() {
    let folder = tempfile::tempdir().unwrap();
    let (database, root) = open(Config::at(folder.path())).await;
    run(&root, "CREATE TABLE stuck (id BIGINT PRIMARY KEY)").await;
    run(&root, "CREATE TABLE t (id BIGINT PRIMARY KEY)").await;
    run(&root, "INSERT INTO stuck VALUES (1)").await;
    run(&root, "INSERT INTO t VALUES (1)").await;
    let table = database.context().committer.snapshot().catalog.table("public", "stuck").unwrap().id;
    let obstacle = folder.path().join("segments").join(table.to_string());
    std::fs::write(&obstacle, "a file where a folder should be").unwrap();
    let first = flush(&root, "stuck").await;
    let status = format!("SELECT status FROM system.jobs WHERE job_id = '{first}'");
    let mut commits = database.context().committer.commits().watch();
    while rows(&root, &status, ()).await != ["retrying"] {
        commits.changed().await.unwrap();
    }
    let waits = flush(&root, "t").await;
    assert_eq!(flush(&root, "t").await, waits);
    assert_ne!(flush(&root, "system.audit_logs").await, waits);
    // A killed job is not reused.
    run(&root, &format!("KILL JOB '{waits}'")).await;
    let next = flush(&root, "t").await;
    assert_ne!(next, waits);
    std::fs::remove_file(&obstacle).unwrap();
    database.context().jobs.wait(&next).await;
    let ended = "SELECT job_id, status FROM system.jobs WHERE table_name = 't' ORDER BY created_at";
    assert_eq!(rows(&root, ended, ()).await, [format!("{waits}|cancelled"), format!("{next}|completed")]);
    // A running job may have missed rows, so it is not reused either.
    assert_ne!(flush(&root, "t").await, next);
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_old_jobs_and_of_the_old_audit_log_are_removed() {
    const DAY_US: i64 = 86_400_000_000;
    let clock = Arc::new(ManualClock::new(1_000 * DAY_US));
    let config = Config {
        retention_interval_ms: 10,
        job_retention_days: 7,
        audit_retention_days: 30,
        ..Config::in_memory()
    };
    let shared: Arc<ManualClock> = Arc::clone(&clock);
    let database = Database::open_with_clock(config, shared).await.unwrap();
    let root = database.session_for("root").unwrap();
    run(&root, "CREATE TABLE t (id BIGINT PRIMARY KEY)").await;
    // One job's row is cold, the other's hot.
    for table in ["system.jobs", "t"] {
        let job = flush(&root, table).await;
        database.context().jobs.wait(&job).await;
    }
    let mut commits = database.context().committer.commits().watch();
    clock.advance(6 * DAY_US);
    let recent = flush(&root, "t").await;
    database.context().jobs.wait(&recent).await;
    assert_eq!(rows(&root, "SELECT count(*) FROM system.jobs", ()).await, ["3"]);
    clock.advance(2 * DAY_US);
    while rows(&root, "SELECT job_id FROM system.jobs", ()).await != [recent.to_string()] {
        commits.changed().await.unwrap();
    }
    assert_eq!(rows(&root, "SELECT action FROM system.audit_logs", ()).await, ["CREATE TABLE"]);
    clock.advance(30 * DAY_US);
    while rows(&root, "SELECT action FROM system.audit_logs", ()).await != Vec::<String>::new() {
        commits.changed().await.unwrap();
    }
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_stored_of_a_dropped_table() {
    use kalamdb_core::storage::{Direction, KeyRange, Partition, keys};
    use std::ops::ControlFlow;
    let (database, root) = open(Config::in_memory()).await;
    run(&root, "CREATE TABLE t (id BIGINT PRIMARY KEY)").await;
    run(&root, "INSERT INTO t SELECT value FROM generate_series(1, 5000)").await;
    let job = flush(&root, "t").await;
    database.context().jobs.wait(&job).await;
    run(&root, "INSERT INTO t SELECT value FROM generate_series(5001, 6000)").await;
    run(&root, "DELETE FROM t WHERE id % 10 = 0").await;
    let committer = &database.context().committer;
    let table = committer.snapshot().catalog.table("public", "t").unwrap().id;
    let stored = || {
        let mut stored = 0;
        let range = KeyRange::prefix(keys::table_prefix(table));
        let snapshot = committer.snapshot();
        let mut count = |_: &[u8], _: &[u8]| {
            stored += 1;
            Ok(ControlFlow::Continue(()))
        };
        snapshot.storage.visit(Partition::Rows, range, Direction::Forward, &mut count).unwrap();
        (stored, snapshot.cold.segments(table).len())
    };
    assert_eq!(stored(), (900, 1));
    run(&root, "DROP TABLE t").await;
    assert_eq!(stored(), (0, 0));
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_or_compaction_that_is_killed_leaves_everything_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (database, root) = open(Config::at(folder.path())).await;
    // Under the default policy a flush could come first: each step inserts as many rows as it allows.
    run(&root, "CREATE TABLE t (id BIGINT PRIMARY KEY, v TEXT) WITH (FLUSH_POLICY = 'interval:3600')").await;
    let table = database.context().committer.snapshot().catalog.table("public", "t").unwrap().id;
    let objects = folder.path().join("segments").join(table.to_string());
    let files = || {
        let entries = std::fs::read_dir(&objects).into_iter().flatten();
        entries.filter(|entry| !entry.as_ref().unwrap().path().to_string_lossy().contains(".json")).count()
    };
    let begin = async |what: &str| {
        let job = rows(&root, &format!("STORAGE {what} TABLE t"), ()).await;
        JobId(job[0].split('|').next().unwrap().to_owned())
    };
    let status = async |job: &JobId| {
        database.context().jobs.wait(job).await;
        let status = format!("SELECT status, result FROM system.jobs WHERE job_id = '{job}'");
        rows(&root, &status, ()).await.remove(0)
    };
    let select = "SELECT count(*), sum(id), max(v), max(_seq) FROM t";
    for (step, what) in ["FLUSH", "FLUSH", "COMPACT"].into_iter().enumerate() {
        if what == "FLUSH" {
            let (from, to) = (step * 100_000 + 1, (step + 1) * 100_000);
            run(&root, &format!("INSERT INTO t SELECT value, 'v' FROM generate_series({from}, {to})")).await;
        }
        let (before, segments_before, files_before) =
            (rows(&root, select, ()).await, segments(&root, "t").await, files());
        let job = begin(what).await;
        // The job is at work once its file exists, and still has much to do.
        while files() == files_before {
            tokio::task::yield_now().await;
        }
        run(&root, &format!("KILL JOB '{job}'")).await;
        assert_eq!(status(&job).await, "cancelled|NULL", "{what}");
        assert_eq!((segments(&root, "t").await, files()), (segments_before, files_before), "{what}");
        assert_eq!(rows(&root, select, ()).await, before);
        let job = begin(what).await;
        assert!(status(&job).await.starts_with("completed|"), "{what}");
        assert_eq!(rows(&root, select, ()).await, before);
    }
    assert_eq!(segments(&root, "t").await, 1);
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_refused_while_too_many_wait_to_be_flushed() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { hot_bytes_max: 1 << 20, flush_check_interval_ms: 20, ..Config::at(folder.path()) };
    let (database, root) = open(config).await;
    run(&root, "CREATE TABLE t (id BIGINT PRIMARY KEY, v TEXT)").await;
    run(&root, "CREATE STREAM TABLE s (id BIGINT) WITH (TTL_SECONDS = 600)").await;
    let table = database.context().committer.snapshot().catalog.table("public", "t").unwrap().id;
    let obstacle = folder.path().join("segments").join(table.to_string());
    std::fs::write(&obstacle, "a file where a folder should be").unwrap();
    let mut inserted = 0;
    let mut insert = async || {
        let sql = format!(
            "INSERT INTO t SELECT value, repeat('x', 1000) FROM generate_series({}, {})",
            inserted + 1,
            inserted + 100
        );
        root.execute(&sql, ()).await.map(|_| inserted += 100)
    };
    let failing = "SELECT job_id FROM system.jobs WHERE job_type = 'flush' AND error_message LIKE '%58030%'";
    // The writes themselves trigger the failing flush.
    let refusal = loop {
        match insert().await {
            Err(error) if !rows(&root, failing, ()).await.is_empty() => break error,
            Err(error) => assert_eq!(error.sqlstate().to_string(), "53100", "{error}"),
            Ok(()) => {}
        }
    };
    let job = rows(&root, failing, ()).await.remove(0);
    assert!(refusal.message().contains("hot_bytes_max"), "{refusal}");
    let hint = loop {
        let error = insert().await.unwrap_err();
        if let Some(hint) = error.hint_text().filter(|hint| hint.contains("FL-")) {
            break hint.to_owned();
        }
    };
    assert!(hint.contains(&job), "{hint}");
    // Everything else goes on.
    assert_eq!(run(&root, "DELETE FROM t WHERE id = 1").await, 1);
    assert_eq!(run(&root, "INSERT INTO s VALUES (1)").await, 1);
    run(&root, "CREATE TABLE other (id BIGINT PRIMARY KEY)").await;
    assert_eq!(rows(&root, "SELECT count(*) FROM t WHERE id <= 10", ()).await, ["9"]);
    std::fs::remove_file(&obstacle).unwrap();
    while insert().await.is_err() {
        tokio::task::yield_now().await;
    }
    assert!(segments(&root, "t").await >= 1);
    database.shutdown().await.unwrap();
}
