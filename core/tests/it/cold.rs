//! Cold rows: readers and writers cannot tell them from hot ones.

use std::ops::Range;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use datafusion::prelude::{SessionConfig, SessionContext};
use kalamdb_core::commit::{TableWrite, WriteSet};
use kalamdb_core::ids::{JobId, ScopeId};
use kalamdb_core::tables::{KalamTable, RowLimits, RowSchema, RowWriter};
use kalamdb_core::{Config, Database, ErrorKind, Outcome, Session, UserId};
use proptest::prelude::*;

use crate::backup::segments;
use crate::session::run;
use crate::watched::{QUESTIONS, State, Watched};

/// Runs a statement. Returns the number of rows it changed, or the SQLSTATE.
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

/// Starts a flush or a compaction.
async fn begin(root: &Session, what: &str, table: &str) -> JobId {
    let job = rows(root, &format!("STORAGE {what} TABLE {table}")).await;
    JobId(job.first().unwrap().split('|').next().unwrap().to_owned())
}

pub(crate) async fn flush(database: &Database, table: &str) {
    complete(database, "FLUSH", table).await;
}

/// Flushes or compacts, and checks that it succeeded.
pub(crate) async fn complete(database: &Database, what: &str, table: &str) {
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
    // A key that moves away frees its place for another one in the same statement.
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
async fn compacted_segments_have_what_was_alive_in_the_old_ones() {
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
    // Half of one user's rows without the 50 that are hot again, and none of the dropped user's rows.
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
    let flush_policy = "rows:100".to_owned();
    let config = Config { flush_check_interval_ms: 10, flush_policy, ..Config::at(folder.path()) };
    let database = Database::open(config).await.unwrap();
    let root = database.session_for("root").unwrap();
    run(&root, "CREATE TABLE stays_hot (id BIGINT PRIMARY KEY) WITH (FLUSH_POLICY = 'rows:101')").await;
    run(&root, "CREATE TABLE t (id BIGINT PRIMARY KEY)").await;
    for table in ["stays_hot", "t"] {
        run(&root, &format!("INSERT INTO {table} SELECT value FROM generate_series(1, 100)")).await;
    }
    let files = || segments(folder.path()).len();
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

/// Returns the only segment of a database.
fn only_segment(folder: &std::path::Path) -> std::path::PathBuf {
    segments(folder).remove(0)
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
    // Flip bits all over the file, in pages and footer.
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

/// Plans an UPDATE of one row of `t` now; it can be committed at any later time.
async fn plan_update(database: &Database, id: i64, v: &str) -> WriteSet {
    let snapshot = database.context().committer.snapshot();
    let definition = Arc::clone(snapshot.catalog.table("public", "t").unwrap());
    let schemas = database.context().schema_registry.schemas(&definition);
    let stored =
        KalamTable::stored(Arc::clone(&snapshot), Arc::clone(&schemas), RowSchema::Write, ScopeId::SHARED, 0);
    let mut config = SessionConfig::new();
    config.options_mut().execution.parquet.schema_force_view_types = false;
    let context = SessionContext::new_with_config(config);
    snapshot.cold.store().register(&context.runtime_env());
    context.register_table("t", Arc::new(stored)).unwrap();
    let before =
        context.sql(&format!("SELECT * FROM t WHERE id = {id}")).await.unwrap().collect().await.unwrap();
    let [before] = before.as_slice() else { panic!("{before:?}") };
    let columns: [ArrayRef; 2] = [Arc::new(Int64Array::from(vec![id])), Arc::new(StringArray::from(vec![v]))];
    let after = RecordBatch::try_new(Arc::clone(&schemas.visible), columns.to_vec()).unwrap();
    let limits = RowLimits { row_bytes_max: 1 << 20 };
    let rows = RowWriter::new(schemas, limits).unwrap().updates(ScopeId::SHARED, before, &after).unwrap();
    let mut set = WriteSet::new(UserId::ROOT, snapshot.seq);
    set.tables.push(TableWrite { table: definition, scope: ScopeId::SHARED, rows });
    set
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_was_planned_before_a_move_lands_once() {
    let database = Database::open_in_memory().await.unwrap();
    let root = database.session_for("root").unwrap();
    let committer = &database.context().committer;
    run(&root, "CREATE TABLE t (id BIGINT PRIMARY KEY, v TEXT)").await;
    run(&root, "INSERT INTO t SELECT value, 'old' FROM generate_series(1, 1000)").await;
    let all = "SELECT v, count(*), count(DISTINCT id) FROM t GROUP BY v ORDER BY v";
    let mut segments = Vec::new();
    for (number, what) in ["FLUSH", "COMPACT", "FLUSH"].into_iter().enumerate() {
        let id = 500 + number as i64;
        let set = plan_update(&database, id, "new").await;
        if what == "FLUSH" && number > 0 {
            run(&root, &format!("UPDATE t SET v = v WHERE id = {}", id + 1)).await;
        }
        complete(&database, what, "t").await;
        let before = segments;
        segments = rows(&root, "SHOW MANIFEST FOR t").await;
        assert_ne!(segments, before, "{what} moved rows");
        // The row may no longer be where the plan found it. Then the commit fails and is retried.
        match committer.commit(set).await {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
                let update = format!("UPDATE t SET v = 'new' WHERE id = {id} AND v = 'old'");
                assert_eq!(run(&root, &update).await, 1, "{what}: it landed although it was refused");
            }
        }
        let (new, old) = (number + 1, 999 - number);
        assert_eq!(
            rows(&root, all).await,
            [format!("new|{new}|{new}"), format!("old|{old}|{old}")],
            "{what}"
        );
        // A plan on the current rows is never refused.
        committer.commit(plan_update(&database, id, "new").await).await.unwrap();
        assert_eq!(rows(&root, &format!("SELECT v FROM t WHERE id = {id}")).await, ["new"]);
    }
    database.shutdown().await.unwrap();
}

#[derive(Clone, Debug)]
enum Step {
    Insert(i64, i64),
    Update(i64, i64),
    Delete(i64, i64),
    Shift(i64, i64),
    /// Waits for its end, or runs beside the next steps.
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

/// Two users with rows in one USER table. Readers and subscribers watch the rows during the writes.
struct World {
    folder: tempfile::TempDir,
    database: Database,
    watched: [Watched; 2],
    step: usize,
}

const USERS: [&str; 2] = ["ann", "bob"];

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(Self::config(folder.path())).await.unwrap();
        let root = database.session_for("root").unwrap();
        run(&root, "CREATE USER TABLE t (id BIGINT PRIMARY KEY, v TEXT)").await;
        for name in USERS {
            run(&root, &format!("CREATE USER '{name}' WITH PASSWORD 'a password'")).await;
        }
        let watched = USERS.map(|name| Watched::begin(&database, name));
        Self { folder, database, watched, step: 0 }
    }

    fn config(folder: &std::path::Path) -> Config {
        // Some of the inserts become segments at once.
        let root_password = Some("a password".to_owned());
        Config { root_password, large_insert_bytes: 150, ..Config::at(folder) }
    }

    async fn apply(&mut self, step: &Step) {
        self.step += 1;
        let user = self.step % 2;
        let history = Arc::clone(&self.watched[user].history);
        let value = format!("v{}", self.step);
        let (sql, after, changed) = match *step {
            Step::Flush(true) => return flush(&self.database, "t").await,
            Step::Compact(true) => return complete(&self.database, "COMPACT", "t").await,
            Step::Flush(false) => {
                begin(&self.database.session_for("root").unwrap(), "FLUSH", "t").await;
                return;
            }
            Step::Compact(false) => {
                begin(&self.database.session_for("root").unwrap(), "COMPACT", "t").await;
                return;
            }
            Step::Restart => return self.restart().await,
            Step::Insert(from, to) => inserted(&history.lock().now(), from..to, &value),
            Step::Update(from, to) => updated(&history.lock().now(), from..to, &value),
            Step::Delete(from, to) => deleted(&history.lock().now(), from..to),
            Step::Shift(from, to) => shifted(&history.lock().now(), from..to),
        };
        history.lock().begin(after);
        let outcome = self.database.session_for(USERS[user]).unwrap().execute(&sql, ()).await;
        let outcome = outcome.and_then(Outcome::affected).map_err(|error| error.sqlstate().to_string());
        assert_eq!(outcome.as_ref().map(|affected| affected.rows).map_err(String::clone), changed, "{sql}");
        let commit = outcome.ok().filter(|affected| affected.rows > 0).map(|affected| affected.seq);
        history.lock().acknowledge(commit);
    }

    async fn restart(&mut self) {
        for watched in &mut self.watched {
            watched.end(&self.database).await;
        }
        self.database.shutdown().await.unwrap();
        let config = Self::config(self.folder.path());
        self.database = Database::open_in_memory().await.unwrap();
        self.database = Database::open(config).await.unwrap();
        for (watched, name) in self.watched.iter_mut().zip(USERS) {
            watched.resume(&self.database, name);
        }
    }

    async fn check(&self) {
        for (watched, name) in self.watched.iter().zip(USERS) {
            let session = self.database.session_for(name).unwrap();
            let state = watched.history.lock().now();
            for question in QUESTIONS {
                assert_eq!(rows(&session, question.sql).await, (question.answer)(&state), "{}", question.sql);
            }
        }
    }

    async fn end(mut self) {
        for watched in &mut self.watched {
            watched.end(&self.database).await;
            watched.check();
        }
        self.database.shutdown().await.unwrap();
    }
}

/// A statement, the rows after it, and the number of rows it changes or its SQLSTATE.
type Planned = (String, State, Result<u64, String>);

fn inserted(state: &State, ids: Range<i64>, value: &str) -> Planned {
    let values: Vec<_> = ids.clone().map(|id| format!("({id}, '{value}')")).collect();
    let sql = format!("INSERT INTO t VALUES {}", values.join(", "));
    if state.range(ids.clone()).next().is_some() {
        return (sql, state.clone(), Err("23505".to_owned()));
    }
    let mut after = state.clone();
    after.extend(ids.map(|id| (id, value.to_owned())));
    (sql, after, Ok(values.len() as u64))
}

fn updated(state: &State, ids: Range<i64>, value: &str) -> Planned {
    let sql = format!("UPDATE t SET v = '{value}' WHERE id >= {} AND id < {}", ids.start, ids.end);
    let mut after = state.clone();
    let mut changed = 0;
    for (_, stored) in after.range_mut(ids) {
        value.clone_into(stored);
        changed += 1;
    }
    (sql, after, Ok(changed))
}

fn deleted(state: &State, ids: Range<i64>) -> Planned {
    let sql = format!("DELETE FROM t WHERE id BETWEEN {} AND {}", ids.start, ids.end - 1);
    let mut after = state.clone();
    after.retain(|id, _| !ids.contains(id));
    let changed = (state.len() - after.len()) as u64;
    (sql, after, Ok(changed))
}

fn shifted(state: &State, ids: Range<i64>) -> Planned {
    let sql = format!("UPDATE t SET id = id + 1000 WHERE id >= {} AND id < {}", ids.start, ids.end);
    let (moved, mut after): (State, State) = state.clone().into_iter().partition(|(id, _)| ids.contains(id));
    if moved.keys().any(|id| after.contains_key(&(id + 1000))) {
        return (sql, state.clone(), Err("23505".to_owned()));
    }
    let changed = moved.len() as u64;
    after.extend(moved.into_iter().map(|(id, value)| (id + 1000, value)));
    (sql, after, Ok(changed))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// After any sequence of writes, moves and restarts every row exists once, as last written, even for
    /// concurrent readers. A subscriber has the right rows at each commit and sees nothing of a move.
    #[test]
    fn any_history_reads_as_its_model(steps in proptest::collection::vec(step(), 1..25)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new().await;
            for step in &steps {
                world.apply(step).await;
                world.check().await;
            }
            world.end().await;
        });
    }
}
