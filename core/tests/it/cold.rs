//! Rows that have become cold: nobody who reads or writes can tell.

use std::collections::BTreeMap;

use kalamdb_core::ids::JobId;
use kalamdb_core::{Config, Database, Outcome, Session};
use proptest::prelude::*;

use crate::session::run;

/// Runs a statement; gives the rows it changed, or the SQLSTATE.
async fn attempt(session: &Session, sql: &str) -> Result<u64, String> {
    match session.execute(sql, ()).await {
        Ok(Outcome::Affected(affected)) => Ok(affected.rows),
        Ok(other) => panic!("{sql}: {other:?}"),
        Err(error) => Err(error.sqlstate().to_string()),
    }
}

async fn rows(session: &Session, sql: &str) -> Vec<String> {
    crate::session::rows(session, sql, ()).await
}

/// Starts a flush or a merge.
async fn begin(root: &Session, what: &str, table: &str) -> JobId {
    let job = rows(root, &format!("STORAGE {what} TABLE {table}")).await;
    JobId(job.first().unwrap().split('|').next().unwrap().to_owned())
}

async fn flush(database: &Database, table: &str) {
    complete(database, "FLUSH", table).await;
}

/// Flushes or merges, and checks that it went well.
async fn complete(database: &Database, what: &str, table: &str) {
    let root = database.session_for("root").unwrap();
    let job = begin(&root, what, table).await;
    database.context().jobs.wait(&job).await;
    let outcome = format!("SELECT status, error_message FROM system.jobs WHERE job_id = '{job}'");
    assert_eq!(rows(&root, &outcome).await, ["completed|NULL"]);
}

async fn database() -> (Database, Session) {
    let database = Database::open_in_memory().await.unwrap();
    let root = database.session_for("root").unwrap();
    run(&root, "CREATE NAMESPACE app").await;
    (database, root)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_reads_as_it_did_before_the_flush() {
    let (database, root) = database().await;
    run(
        &root,
        "CREATE TABLE app.types (id BIGINT PRIMARY KEY, b BOOLEAN, s SMALLINT, i INTEGER, r REAL, d DOUBLE, \
         n DECIMAL(20, 4), t TEXT, v BYTES, at TIMESTAMP, atz TIMESTAMPTZ, day DATE, clock TIME, u UUID, j JSON, \
         e EMBEDDING(3))",
    )
    .await;
    run(
        &root,
        "INSERT INTO app.types VALUES \
         (1, true, -3, 7, 1.5, -2.25, 123456.7891, 'täxt', '\\x00ff', '2026-01-02 03:04:05.678901', \
          '2026-01-02 03:04:05.678901Z', '2026-01-02', '23:59:59.999999', '00112233-4455-6677-8899-aabbccddeeff', \
          '{\"a\": [1]}', '[1, 2.5, -3]'), \
         (-9223372036854775808, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
    )
    .await;
    let select = "SELECT *, _seq FROM app.types ORDER BY id";
    let before = rows(&root, select).await;
    flush(&database, "app.types").await;
    assert_eq!(rows(&root, select).await, before);
    let point = "SELECT * FROM app.types WHERE id = 1";
    let cold = rows(&root, point).await;
    assert_eq!(run(&root, "UPDATE app.types SET i = i WHERE id = 1").await, 1);
    assert_eq!(rows(&root, point).await, cold);
    assert_eq!(rows(&root, "SELECT rows, rows_gone FROM (SELECT 1 AS rows, 0 AS rows_gone)").await, ["1|0"]);
    assert!(rows(&root, "SHOW MANIFEST FOR app.types").await.first().unwrap().contains("|2|1|"));
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_stay_unique_across_hot_and_cold() {
    let (database, root) = database().await;
    run(&root, "CREATE TABLE app.t (id BIGINT PRIMARY KEY, v TEXT)").await;
    run(&root, "INSERT INTO app.t SELECT value, 'cold' FROM generate_series(1, 10000)").await;
    flush(&database, "app.t").await;
    assert_eq!(attempt(&root, "INSERT INTO app.t VALUES (5000, 'again')").await, Err("23505".to_owned()));
    assert_eq!(
        attempt(&root, "INSERT INTO app.t SELECT value, 'x' FROM generate_series(9999, 11000)").await,
        Err("23505".to_owned())
    );
    assert_eq!(run(&root, "DELETE FROM app.t WHERE id = 5000").await, 1);
    assert_eq!(run(&root, "DELETE FROM app.t WHERE id = 5000").await, 0);
    assert_eq!(run(&root, "INSERT INTO app.t VALUES (5000, 'again')").await, 1);
    assert_eq!(attempt(&root, "INSERT INTO app.t VALUES (5000, 'twice')").await, Err("23505".to_owned()));
    flush(&database, "app.t").await;
    assert_eq!(attempt(&root, "INSERT INTO app.t VALUES (5000, 'twice')").await, Err("23505".to_owned()));
    // A key that moves away makes room for another in the same statement.
    assert_eq!(run(&root, "UPDATE app.t SET id = id + 1 WHERE id BETWEEN 9000 AND 10000").await, 1001);
    assert_eq!(
        rows(&root, "SELECT count(*), min(id), max(id), count(DISTINCT id) FROM app.t").await,
        ["10000|1|10001|10000"]
    );
    assert_eq!(rows(&root, "SELECT v FROM app.t WHERE id = 5000").await, ["again"]);
    assert_eq!(
        rows(&root, "SELECT id FROM app.t WHERE id IN (1, 9000, 5000, 10001, 10002) ORDER BY id").await,
        ["1", "5000", "10001"]
    );
    assert_eq!(rows(&root, "SELECT id FROM app.t ORDER BY id DESC LIMIT 2").await, ["10001", "10000"]);
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn users_share_segments_and_nothing_else() {
    let (database, root) = database().await;
    run(&root, "CREATE USER TABLE app.notes (id BIGINT PRIMARY KEY, body TEXT)").await;
    run(&root, "CREATE USER TABLE app.lines (body TEXT)").await;
    let mut users = Vec::new();
    for name in ["ann", "bob", "cy"] {
        run(&root, &format!("CREATE USER '{name}' WITH PASSWORD 'a password'")).await;
        let session = database.session_for(name).unwrap();
        run(&session, &format!("INSERT INTO app.notes SELECT value, '{name}' FROM generate_series(1, 3000)"))
            .await;
        run(&session, &format!("INSERT INTO app.lines SELECT '{name}' FROM generate_series(1, 3000)")).await;
        users.push((name, session));
    }
    flush(&database, "app.notes").await;
    flush(&database, "app.lines").await;
    assert_eq!(rows(&root, "SHOW MANIFEST FOR app.notes").await.len(), 1);
    for (name, session) in &users {
        for table in ["notes", "lines"] {
            let seen =
                rows(session, &format!("SELECT count(*), min(body), max(body) FROM app.{table}")).await;
            assert_eq!(seen, [format!("3000|{name}|{name}")]);
        }
        assert_eq!(rows(session, "SELECT body FROM app.notes WHERE id = 2048").await, [name.to_string()]);
        assert_eq!(rows(session, "SELECT count(*) FROM app.notes WHERE id > 2990").await, ["10"]);
        assert_eq!(rows(session, "SELECT * FROM app.notes WHERE id = 3001").await, Vec::<String>::new());
    }
    assert_eq!(rows(&root, "SELECT count(*) FROM app.notes").await, ["0"]);
    let (_, ann) = &users[0];
    assert_eq!(run(ann, "DELETE FROM app.lines").await, 3000);
    assert_eq!(run(ann, "UPDATE app.notes SET body = 'new' WHERE id <= 10").await, 10);
    let (_, bob) = &users[1];
    assert_eq!(rows(bob, "SELECT count(*), min(body) FROM app.notes").await, ["3000|bob"]);
    assert_eq!(rows(bob, "SELECT count(*) FROM app.lines").await, ["3000"]);
    assert!(attempt(bob, "FLUSH TABLE app.notes").await.is_err());
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn merged_segments_have_what_was_alive_in_the_old_ones() {
    let (database, root) = database().await;
    run(&root, "CREATE USER TABLE app.t (id BIGINT PRIMARY KEY, v TEXT)").await;
    let mut sessions = Vec::new();
    for name in ["ann", "bob"] {
        run(&root, &format!("CREATE USER '{name}' WITH PASSWORD 'a password'")).await;
        sessions.push(database.session_for(name).unwrap());
    }
    for part in 0..4 {
        for session in &sessions {
            let from = part * 5_000;
            let sql = format!(
                "INSERT INTO app.t SELECT value, 'v' FROM generate_series({}, {})",
                from + 1,
                from + 5_000
            );
            run(session, &sql).await;
        }
        flush(&database, "app.t").await;
    }
    run(&sessions[0], "DELETE FROM app.t WHERE id % 2 = 0").await;
    run(&sessions[0], "UPDATE app.t SET v = 'new' WHERE id <= 100").await;
    run(&root, "DROP USER 'bob'").await;
    let select = "SELECT count(*), sum(id), count(CASE WHEN v = 'new' THEN 1 END), max(_seq) FROM app.t";
    let before = rows(&sessions[0], select).await;
    assert_eq!(rows(&root, "SHOW MANIFEST FOR app.t").await.len(), 4);
    complete(&database, "COMPACT", "app.t").await;
    assert_eq!(rows(&sessions[0], select).await, before);
    let manifest = rows(&root, "SHOW MANIFEST FOR app.t").await;
    // Half of one user's rows without the 50 that are hot again, and none of the user's who is no more.
    assert!(manifest.len() == 1 && manifest[0].contains("|9950|0|"), "{manifest:?}");
    run(&sessions[0], "DELETE FROM app.t WHERE id BETWEEN 10000 AND 10010").await;
    assert_eq!(
        rows(&sessions[0], "SELECT count(*) FROM app.t WHERE id BETWEEN 9990 AND 10020").await,
        ["10"]
    );
    assert_eq!(attempt(&sessions[0], "INSERT INTO app.t VALUES (9999, 'x')").await, Err("23505".to_owned()));
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_flushes_by_itself_and_dropped_tables_leave_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { flush_check_interval_ms: 10, ..Config::at(folder.path()) };
    let database = Database::open(config).await.unwrap();
    let root = database.session_for("root").unwrap();
    run(&root, "CREATE TABLE t (id BIGINT PRIMARY KEY) WITH (FLUSH_POLICY = 'rows:100')").await;
    run(&root, "INSERT INTO t SELECT value FROM generate_series(1, 100)").await;
    let files = || {
        let tables = std::fs::read_dir(folder.path().join("segments")).unwrap();
        tables.map(|table| std::fs::read_dir(table.unwrap().path()).unwrap().count()).sum::<usize>()
    };
    let mut commits = database.context().committer.commits().watch();
    while rows(&root, "SHOW MANIFEST FOR t").await.is_empty() {
        commits.changed().await.unwrap();
    }
    assert_eq!(files(), 1);
    assert_eq!(rows(&root, "SELECT count(*) FROM t").await, ["100"]);
    run(&root, "DROP TABLE t").await;
    let mut commits = database.context().committer.commits().watch();
    while files() > 0 {
        commits.changed().await.unwrap();
    }
    database.shutdown().await.unwrap();
}

/// The only segment of a database's tables.
fn only_segment(folder: &std::path::Path) -> std::path::PathBuf {
    let table = std::fs::read_dir(folder.join("segments")).unwrap().next().unwrap().unwrap();
    std::fs::read_dir(table.path()).unwrap().next().unwrap().unwrap().path()
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_segments_are_errors_and_never_other_rows() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::open(Config::at(folder.path())).await.unwrap();
    let root = database.session_for("root").unwrap();
    run(&root, "CREATE TABLE t (id BIGINT PRIMARY KEY, v TEXT)").await;
    run(&root, "CREATE TABLE other (id BIGINT PRIMARY KEY)").await;
    run(&root, "INSERT INTO other VALUES (1)").await;
    run(
        &root,
        "INSERT INTO t SELECT value, 'row ' || CAST(value * 7919 AS TEXT) FROM generate_series(1, 20000)",
    )
    .await;
    let select = "SELECT count(*), sum(id), min(v), max(v) FROM t";
    let expected = rows(&root, select).await;
    flush(&database, "t").await;
    database.shutdown().await.unwrap();
    drop((root, database));
    let path = only_segment(folder.path());
    let whole = std::fs::read(&path).unwrap();
    let mut errors = 0;
    let mut check = async |bytes: Option<&[u8]>| {
        match bytes {
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let database = Database::open(Config::at(folder.path())).await.unwrap();
        let root = database.session_for("root").unwrap();
        let outcome = match root.execute(select, ()).await {
            Ok(outcome) => outcome.rows().unwrap().collect().await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(_) => assert_eq!(rows(&root, select).await, expected),
            Err(error) => {
                assert_eq!(error.sqlstate().to_string(), "XX001", "{error}");
                assert!(error.message().contains("segment \""), "{error}");
                errors += 1;
            }
        }
        assert_eq!(rows(&root, "SELECT id FROM other").await, ["1"]);
        database.shutdown().await.unwrap();
    };
    // Spread over the file, pages and footer.
    for part in 0..40 {
        let mut damaged = whole.clone();
        let at = (whole.len() * part / 40 + part * 13).min(whole.len() - 1);
        damaged[at] ^= 1 << (part % 8);
        check(Some(&damaged)).await;
    }
    check(Some(&whole[..whole.len() / 2])).await;
    check(Some(&[])).await;
    check(None).await;
    check(Some(&whole)).await;
    assert!(errors >= 35, "only {errors} of 43 damages were seen");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_that_cannot_write_leaves_the_rows_hot_and_is_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::open(Config::at(folder.path())).await.unwrap();
    let root = database.session_for("root").unwrap();
    run(&root, "CREATE TABLE t (id BIGINT PRIMARY KEY)").await;
    run(&root, "INSERT INTO t VALUES (1), (2)").await;
    let table = database.context().committer.snapshot().catalog.table("public", "t").unwrap().id;
    let obstacle = folder.path().join("segments").join(table.to_string());
    std::fs::write(&obstacle, "a file where a folder should be").unwrap();
    let job = begin(&root, "FLUSH", "t").await;
    let status = format!("SELECT status, error_message FROM system.jobs WHERE job_id = '{job}'");
    let mut commits = database.context().committer.commits().watch();
    while !rows(&root, &status).await[0].starts_with("retrying|[58030]") {
        commits.changed().await.unwrap();
    }
    assert_eq!(run(&root, "INSERT INTO t VALUES (3)").await, 1);
    assert_eq!(rows(&root, "SELECT count(*) FROM t").await, ["3"]);
    std::fs::remove_file(&obstacle).unwrap();
    database.context().jobs.wait(&job).await;
    assert_eq!(rows(&root, &status).await, ["completed|NULL"]);
    assert_eq!(rows(&root, "SELECT count(*) FROM t").await, ["3"]);
    assert_eq!(rows(&root, "SHOW MANIFEST FOR t").await.len(), 1);
    database.shutdown().await.unwrap();
}

#[derive(Clone, Debug)]
enum Step {
    Insert(i64, i64),
    Update(i64, i64),
    Delete(i64, i64),
    Shift(i64, i64),
    /// Waits for its end, or lets it run beside the next steps.
    Flush(bool),
    Compact(bool),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let span = || (0_i64..60, 1_i64..20).prop_map(|(from, count)| (from, from + count));
    prop_oneof![
        4 => span().prop_map(|(from, to)| Step::Insert(from, to)),
        2 => span().prop_map(|(from, to)| Step::Update(from, to)),
        2 => span().prop_map(|(from, to)| Step::Delete(from, to)),
        1 => span().prop_map(|(from, to)| Step::Shift(from, to)),
        3 => any::<bool>().prop_map(Step::Flush),
        1 => any::<bool>().prop_map(Step::Compact),
        1 => Just(Step::Restart),
    ]
}

/// Two users' rows of one USER table: by user, then key.
type Model = [BTreeMap<i64, String>; 2];

struct World {
    folder: tempfile::TempDir,
    database: Database,
    model: Model,
    step: usize,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(Self::config(folder.path())).await.unwrap();
        let root = database.session_for("root").unwrap();
        run(&root, "CREATE USER TABLE t (id BIGINT PRIMARY KEY, v TEXT)").await;
        for name in ["ann", "bob"] {
            run(&root, &format!("CREATE USER '{name}' WITH PASSWORD 'a password'")).await;
        }
        Self { folder, database, model: Model::default(), step: 0 }
    }

    fn config(folder: &std::path::Path) -> Config {
        Config { root_password: Some("a password".to_owned()), ..Config::at(folder) }
    }

    fn user(&self, user: usize) -> Session {
        self.database.session_for(["ann", "bob"][user]).unwrap()
    }

    async fn apply(&mut self, step: &Step) {
        self.step += 1;
        let user = self.step % 2;
        let session = self.user(user);
        let value = format!("v{}", self.step);
        match *step {
            Step::Insert(from, to) => {
                let taken = self.model[user].range(from..to).next().is_some();
                let values: Vec<_> = (from..to).map(|id| format!("({id}, '{value}')")).collect();
                let inserted =
                    attempt(&session, &format!("INSERT INTO t VALUES {}", values.join(", "))).await;
                assert_eq!(inserted, if taken { Err("23505".to_owned()) } else { Ok((to - from) as u64) });
                if !taken {
                    self.model[user].extend((from..to).map(|id| (id, value.clone())));
                }
            }
            Step::Update(from, to) => {
                let changed: Vec<_> = self.model[user].range_mut(from..to).collect();
                let sql = format!("UPDATE t SET v = '{value}' WHERE id >= {from} AND id < {to}");
                assert_eq!(run(&session, &sql).await, changed.len() as u64);
                changed.into_iter().for_each(|(_, stored)| stored.clone_from(&value));
            }
            Step::Delete(from, to) => {
                let gone: Vec<_> = self.model[user].range(from..to).map(|(id, _)| *id).collect();
                let sql = format!("DELETE FROM t WHERE id BETWEEN {from} AND {}", to - 1);
                assert_eq!(run(&session, &sql).await, gone.len() as u64);
                gone.iter().for_each(|id| drop(self.model[user].remove(id)));
            }
            Step::Shift(from, to) => {
                let moved: Vec<_> =
                    self.model[user].range(from..to).map(|(id, value)| (*id, value.clone())).collect();
                let sql = format!("UPDATE t SET id = id + 1000 WHERE id >= {from} AND id < {to}");
                let taken = moved.iter().any(|(id, _)| self.model[user].contains_key(&(id + 1000)));
                let outcome = attempt(&session, &sql).await;
                assert_eq!(outcome, if taken { Err("23505".to_owned()) } else { Ok(moved.len() as u64) });
                if !taken {
                    moved.iter().for_each(|(id, _)| drop(self.model[user].remove(id)));
                    self.model[user].extend(moved.into_iter().map(|(id, value)| (id + 1000, value)));
                }
            }
            Step::Flush(true) => flush(&self.database, "t").await,
            Step::Compact(true) => complete(&self.database, "COMPACT", "t").await,
            Step::Flush(false) => {
                begin(&self.database.session_for("root").unwrap(), "FLUSH", "t").await;
            }
            Step::Compact(false) => {
                begin(&self.database.session_for("root").unwrap(), "COMPACT", "t").await;
            }
            Step::Restart => {
                self.database.shutdown().await.unwrap();
                drop(session);
                let config = Self::config(self.folder.path());
                self.database = Database::open_in_memory().await.unwrap();
                self.database = Database::open(config).await.unwrap();
            }
        }
    }

    async fn check(&self) {
        for user in 0..2 {
            let session = self.user(user);
            let expected: Vec<_> =
                self.model[user].iter().map(|(id, value)| format!("{id}|{value}")).collect();
            assert_eq!(rows(&session, "SELECT * FROM t ORDER BY id").await, expected);
            let reverse: Vec<_> = expected.iter().rev().take(3).cloned().collect();
            assert_eq!(rows(&session, "SELECT * FROM t ORDER BY id DESC LIMIT 3").await, reverse);
            let middle: Vec<_> =
                self.model[user].range(20..40).map(|(id, value)| format!("{id}|{value}")).collect();
            assert_eq!(
                rows(&session, "SELECT * FROM t WHERE id >= 20 AND id < 40 ORDER BY id").await,
                middle
            );
            for id in [0, 30, 1030] {
                let point: Vec<_> =
                    self.model[user].get(&id).map(|value| format!("{id}|{value}")).into_iter().collect();
                assert_eq!(rows(&session, &format!("SELECT * FROM t WHERE id = {id}")).await, point);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is written, moved and restarted, in whatever order: every row is there once, as it was last written.
    #[test]
    fn any_history_reads_as_its_model(steps in proptest::collection::vec(step(), 1..25)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new().await;
            for step in &steps {
                world.apply(step).await;
                world.check().await;
            }
            world.database.shutdown().await.unwrap();
        });
    }
}
