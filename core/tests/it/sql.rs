//! SQL for embedders, beyond the reach of `.slt` files: schemas by pointer, several sessions, prepared
//! statements, conflicts, and texts that are meant to kill the process.

use std::sync::Arc;

use kalamdb_core::{Database, Error, Outcome, ScalarValue, Session, StatementKind};

use crate::session::{fails, rows, run};

async fn database() -> (Database, Session) {
    let database = Database::open_in_memory().await.unwrap();
    let root = database.session_for("root").unwrap();
    run(&root, "CREATE NAMESPACE app").await;
    (database, root)
}

async fn state(session: &Session, sql: &str) -> String {
    fails(session, sql).await.sqlstate().to_string()
}

async fn user(root: &Session, database: &Database, name: &str, role: &str) -> Session {
    run(root, &format!("CREATE USER '{name}' WITH PASSWORD 'a password' ROLE {role}")).await;
    database.session_for(name).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_do_what_they_say() {
    let (database, root) = database().await;
    run(&root, "CREATE TABLE app.t (id BIGINT PRIMARY KEY, name TEXT NOT NULL DEFAULT 'x', n INT, at TIMESTAMP DEFAULT NOW())")
        .await;
    assert_eq!(
        run(&root, "INSERT INTO app.t (id, name, n) VALUES (1, 'a', 10), (2, DEFAULT, -5), (3, 'c', NULL)")
            .await,
        3
    );
    assert_eq!(
        rows(&root, "SELECT id, name, n FROM app.t ORDER BY id", ()).await,
        ["1|a|10", "2|x|-5", "3|c|NULL"]
    );
    assert_eq!(run(&root, "UPDATE app.t SET n = n + 1, name = upper(name) WHERE n IS NOT NULL").await, 2);
    assert_eq!(
        rows(&root, "SELECT id, name, n FROM app.t ORDER BY id", ()).await,
        ["1|A|11", "2|X|-4", "3|c|NULL"]
    );
    assert_eq!(
        run(&root, "UPDATE app.t AS u SET id = u.id + 10 WHERE id IN (SELECT max(id) FROM app.t)").await,
        1
    );
    assert_eq!(run(&root, "DELETE FROM app.t WHERE name LIKE 'X%'").await, 1);
    assert_eq!(rows(&root, "SELECT id FROM app.t ORDER BY id", ()).await, ["1", "13"]);
    assert_eq!(run(&root, "INSERT INTO app.t (id, name) SELECT id + 100, name FROM app.t").await, 2);
    assert_eq!(
        rows(&root, "SELECT count(*), min(id), max(id) FROM app.t WHERE at <= now()", ()).await,
        ["4|1|113"]
    );
    run(&root, "USE app").await;
    assert_eq!(rows(&root, "SELECT t.id FROM t WHERE id = 1", ()).await, ["1"]);
    assert_eq!(rows(&root, "SELECT id, _seq > 0 FROM t WHERE id = 1", ()).await, ["1|true"]);
    assert_eq!(
        rows(
            &root,
            "SELECT * FROM (SELECT *, 1 AS one FROM t) s WHERE id = 1 AND 0 < (SELECT max(_seq) FROM t)",
            ()
        )
        .await
        .len(),
        1
    );
    assert_eq!(
        rows(&root, "SELECT current_user(), CURRENT_USER AS me, current_schema()", ()).await,
        ["root|root|app"]
    );
    assert!(rows(&root, "SHOW TABLES", ()).await.contains(&"app|t|shared".to_owned()));
    assert_eq!(rows(&root, "DESCRIBE t", ()).await[0], "id|BIGINT|NO|1|NULL");
    assert_eq!(
        rows(&root, "SELECT count(*) FROM information_schema.columns WHERE table_name = 't'", ()).await,
        ["4"]
    );
    assert!(!rows(&root, "EXPLAIN SELECT * FROM t", ()).await.is_empty());
    assert!(
        rows(&root, "SELECT action FROM system.audit_logs", ()).await.contains(&"CREATE TABLE".to_owned())
    );
    run(&root, "DROP TABLE app.t").await;
    run(&root, "DROP NAMESPACE app").await;
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_goes_in_and_comes_out() {
    let (_database, root) = database().await;
    run(
        &root,
        "CREATE TABLE app.k (id UUID PRIMARY KEY DEFAULT UUID_V7(), b BOOLEAN, s SMALLINT, i INT, l BIGINT DEFAULT SNOWFLAKE_ID(), \
         r REAL, d DOUBLE, n DECIMAL(10,2), t TEXT DEFAULT ULID(), y BYTES, j JSON, ts TIMESTAMP, tz TIMESTAMPTZ, da DATE, ti TIME, \
         e EMBEDDING(2), who TEXT DEFAULT CURRENT_USER())",
    )
    .await;
    run(
        &root,
        "INSERT INTO app.k (id, b, s, i, l, r, d, n, t, y, j, ts, tz, da, ti, e) VALUES ('0192f3a4-b5c6-7d8e-9f00-010203040506', true, 1, \
         2, 3, 1.5, 2.5, 12.34, 'x', '\\x0aff', '{\"a\":1}', '2026-01-02 03:04:05', '2026-01-02T03:04:05+02:00', '2026-01-02', \
         '03:04:05', '[1, 2.5]')",
    )
    .await;
    let found = rows(
        &root,
        "SELECT id::text, b, s, i, l, r, d, n, t, y, j, ts, tz, da, ti, e, who FROM app.k \
         WHERE id = '0192f3a4-b5c6-7d8e-9f00-010203040506'",
        (),
    )
    .await;
    assert_eq!(
        found,
        [
            "0192f3a4-b5c6-7d8e-9f00-010203040506|true|1|2|3|1.5|2.5|12.34|x|0aff|{\"a\":1}|2026-01-02T03:04:05|2026-01-02T01:04:05Z|2026-01-02|03:04:05|[1.0, 2.5]|root"
        ]
    );
    run(&root, "INSERT INTO app.k (b) VALUES (false), (true)").await;
    assert_eq!(
        rows(&root, "SELECT count(DISTINCT id), count(DISTINCT l), count(DISTINCT t) FROM app.k", ()).await,
        ["3|3|3"]
    );
    assert_eq!(run(&root, "UPDATE app.k SET y = 'abc', e = '[3, 4]', id = 'ffffffff-ffff-ffff-ffff-ffffffffffff' WHERE l = 3").await, 1);
    assert_eq!(
        rows(&root, "SELECT y, e FROM app.k WHERE id IN ('ffffffff-ffff-ffff-ffff-ffffffffffff')", ()).await,
        ["616263|[3.0, 4.0]"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_statements_say_what_is_wrong() {
    let (_database, root) = database().await;
    run(&root, "CREATE TABLE app.t (id INT PRIMARY KEY, name VARCHAR(3) NOT NULL, u UUID)").await;
    run(&root, "CREATE STREAM TABLE app.s (id INT) WITH (TTL_SECONDS = 60)").await;
    run(&root, "INSERT INTO app.t VALUES (1, 'a')").await;
    for (sql, expected) in [
        ("SELEC 1", "42601"),
        ("SELECT 1; SELECT 2", "42601"),
        ("SELECT * FROM app.nothing", "42P01"),
        ("SELECT * FROM nowhere.t", "3F000"),
        ("SELECT nothing FROM app.t", "42703"),
        ("INSERT INTO app.t VALUES (1, 'b')", "23505"),
        ("INSERT INTO app.t VALUES (2, 'b'), (2, 'c')", "23505"),
        ("INSERT INTO app.t VALUES (2, NULL)", "23502"),
        ("INSERT INTO app.t (id) VALUES (2)", "23502"),
        ("UPDATE app.t SET name = NULL", "23502"),
        ("INSERT INTO app.t VALUES (2, 'long')", "22001"),
        ("INSERT INTO app.t VALUES ('x', 'b')", "22P02"),
        ("INSERT INTO app.t VALUES (2, 'b', 'x')", "22P02"),
        ("INSERT INTO app.t VALUES (2, 'b', NULL, 4)", "42601"),
        ("INSERT INTO app.t (id, nothing) VALUES (2, 'b')", "42703"),
        ("INSERT INTO app.t (id, id) VALUES (2, 3)", "42701"),
        ("UPDATE app.t SET nothing = 1", "42703"),
        ("UPDATE app.t SET _seq = 1", "42703"),
        ("UPDATE app.s SET id = 1", "0A000"),
        ("CREATE TABLE app.t (id INT)", "42P07"),
        ("CREATE NAMESPACE app", "42P06"),
        ("DROP NAMESPACE app", "2BP01"),
        ("CREATE TABLE app.x (id INT DEFAULT random())", "0A000"),
        ("CREATE TABLE app.x (id INT) WITH (COLOUR = 'red')", "22023"),
        ("CREATE STREAM TABLE app.x (id INT)", "42P16"),
        ("CREATE TABLE system.x (id INT)", "42501"),
        ("INSERT INTO system.jobs VALUES ('x')", "42501"),
        ("DELETE FROM system.users", "42501"),
        ("DROP TABLE system.users", "42501"),
        ("CREATE USER 'x' WITH PASSWORD 'short'", "22023"),
        ("ALTER TABLE app.t ADD COLUMN x INT", "0A000"),
        ("CREATE VIEW app.v AS SELECT 1", "0A000"),
        ("BEGIN", "0A000"),
        ("COPY app.t TO '/tmp/x'", "0A000"),
        ("CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'", "0A000"),
        ("SELECT * FROM '/etc/passwd'", "42P01"),
        ("TRUNCATE app.t", "0A000"),
        ("INSERT INTO app.t VALUES (1, 'b') ON CONFLICT DO NOTHING", "0A000"),
        ("INSERT INTO app.t VALUES (3, 'b') RETURNING id", "0A000"),
        ("KILL LIVE QUERY '7'", "42704"),
        ("SELECT repeat('a', 2000000000)", "54000"),
        ("SELECT lpad('a', 1500000000, 'b')", "54000"),
        ("SELECT range(1, 300000000)", "54000"),
        ("SELECT regexp_replace(repeat('a', 1000000), '', repeat('b', 1000), 'g')", "54000"),
        ("SELECT regexp_replace(repeat('a', 1000000), '(.*)', repeat('\\\\1', 1000))", "54000"),
        ("SELECT array_to_string(array_repeat('a', 1000000), repeat('b', 1000))", "54000"),
        ("SELECT array_join(array_repeat(1, 1000000), repeat('b', 1000))", "54000"),
        ("SELECT array_replace_all(array_repeat('a', 1000000), 'a', repeat('b', 1000))", "54000"),
        ("SELECT to_char(now(), repeat('%c', 30000000))", "54000"),
        ("SELECT 1 / 0", "22012"),
        ("SELECT CAST('x' AS INT)", "22P02"),
    ] {
        let error = fails(&root, sql).await;
        assert_eq!(error.sqlstate().to_string(), expected, "{sql}: {error}");
    }
    let duplicate = fails(&root, "INSERT INTO app.t VALUES (1, 'b')").await;
    assert!(duplicate.message().contains("app.t") && duplicate.message().contains('1'), "{duplicate}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_selects_build_one_schema() {
    let (database, root) = database().await;
    for (sql, table) in [
        ("CREATE USER TABLE app.u (id BIGINT PRIMARY KEY, body TEXT)", "app.u"),
        ("CREATE TABLE app.h (id BIGINT PRIMARY KEY, body TEXT)", "app.h"),
        ("CREATE STREAM TABLE app.s (id BIGINT, body TEXT) WITH (TTL_SECONDS = 600)", "app.s"),
    ] {
        let before = database.registry_counters();
        run(&root, sql).await;
        run(&root, &format!("INSERT INTO {table} VALUES (1, 'a')")).await;
        let mut first = None;
        for _ in 0..1_000 {
            let result = root.execute(&format!("SELECT * FROM {table}"), ()).await.unwrap().rows().unwrap();
            let schema = first.get_or_insert_with(|| Arc::clone(&result.schema));
            assert!(Arc::ptr_eq(schema, &result.schema));
            assert!(result.schema_ipc.is_some());
        }
        let after = database.registry_counters();
        // The planned and the installed definition are one version, so there is one build.
        assert_eq!(after.builds - before.builds, 1, "{table}");
        assert_eq!(after.encodings - before.encodings, 1, "{table}");
        run(&root, &format!("DROP TABLE {table}")).await;
        run(&root, sql).await;
        root.execute(&format!("SELECT * FROM {table}"), ()).await.unwrap();
        assert_eq!(database.registry_counters().builds - after.builds, 1, "{table} made again");
    }
    let computed =
        ["users", "namespaces", "storages", "live_queries", "tables", "stats", "queries", "sessions"];
    for table in computed.into_iter().chain(["jobs", "audit_logs"]) {
        let sql = format!("SELECT * FROM system.{table}");
        let one = root.execute(&sql, ()).await.unwrap().rows().unwrap();
        let two = root.execute(&sql, ()).await.unwrap().rows().unwrap();
        assert!(Arc::ptr_eq(&one.schema, &two.schema), "{table}");
        let info = root.tables().unwrap().into_iter().find(|info| &*info.name == table).unwrap();
        assert!(Arc::ptr_eq(&one.schema, &info.schemas.visible), "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_see_their_own_rows() {
    let (database, root) = database().await;
    run(&root, "CREATE USER TABLE app.notes (id BIGINT PRIMARY KEY, body TEXT)").await;
    run(&root, "CREATE TABLE app.public (id INT) WITH (ACCESS_LEVEL = 'public')").await;
    run(&root, "CREATE TABLE app.private (id INT)").await;
    let ann = user(&root, &database, "ann", "user").await;
    let bob = user(&root, &database, "bob", "user").await;
    run(&ann, "INSERT INTO app.notes VALUES (1, 'of ann')").await;
    run(&bob, "INSERT INTO app.notes VALUES (1, 'of bob')").await;
    assert_eq!(rows(&ann, "SELECT * FROM app.notes", ()).await, ["1|of ann"]);
    assert_eq!(rows(&bob, "SELECT * FROM app.notes WHERE id = 1", ()).await, ["1|of bob"]);
    assert_eq!(rows(&root, "SELECT count(*) FROM app.notes", ()).await, ["0"]);
    assert_eq!(run(&bob, "UPDATE app.notes SET body = 'mine'").await, 1);
    assert_eq!(rows(&ann, "SELECT body FROM app.notes", ()).await, ["of ann"]);
    rows(&ann, "SELECT * FROM app.public", ()).await;
    for sql in [
        "SELECT * FROM app.private",
        "INSERT INTO app.public VALUES (1)",
        "SELECT * FROM system.users",
        "DROP TABLE app.notes",
        "CREATE NAMESPACE x",
        "CREATE TABLE app.x (id INT)",
        "CREATE USER 'x' WITH PASSWORD 'a password'",
        "ALTER USER 'ann' SET ROLE system",
        "EXPLAIN SELECT 1",
    ] {
        assert_eq!(state(&ann, sql).await, "42501", "{sql}");
    }
    let seen = rows(&ann, "SELECT table_name FROM information_schema.tables ORDER BY 1", ()).await;
    assert!(seen.contains(&"notes".to_owned()) && !seen.contains(&"private".to_owned()), "{seen:?}");
    run(&ann, "ALTER USER 'ann' SET PASSWORD 'another password'").await;
    assert!(database.authenticate("ann", "a password").await.is_err());
    database.authenticate("ann", "another password").await.unwrap();
    let wrong = database.authenticate("ann", "wrong").await.unwrap_err().to_string();
    assert_eq!(wrong, database.authenticate("nobody", "wrong").await.unwrap_err().to_string());
    run(&root, "DROP USER 'ann'").await;
    assert_eq!(state(&ann, "SELECT * FROM app.notes").await, "28000");
    let ann = user(&root, &database, "ann", "user").await;
    assert_eq!(rows(&ann, "SELECT * FROM app.notes", ()).await, [""; 0]);
    assert_eq!(rows(&bob, "SELECT count(*) FROM app.notes", ()).await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements_announce_what_comes() {
    let (_database, root) = database().await;
    run(&root, "CREATE TABLE app.t (id INT PRIMARY KEY, name TEXT, u UUID, n DOUBLE)").await;
    let insert = root.prepare("INSERT INTO app.t VALUES (?, ?, ?, ?)").await.unwrap();
    assert_eq!(insert.kind(), StatementKind::Update);
    assert!(insert.schema().is_none());
    let types: Vec<_> = insert.parameters().iter().map(|field| field.data_type().to_string()).collect();
    assert_eq!(types, ["Int64", "Utf8", "Utf8", "Float64"]);
    let value = |id: i64| {
        vec![
            ScalarValue::Int64(Some(id)),
            ScalarValue::Utf8(Some(format!("n{id}"))),
            ScalarValue::Utf8(Some("0192f3a4-b5c6-7d8e-9f00-010203040506".to_owned())),
            ScalarValue::Null,
        ]
    };
    assert_eq!(insert.execute(value(1)).await.unwrap().affected().unwrap().rows, 1);
    assert_eq!(insert.execute_batch(vec![value(2), value(3)]).await.unwrap().rows, 2);
    let twice = insert.execute_batch(vec![value(4), value(4)]).await.unwrap_err();
    assert_eq!(twice.sqlstate().to_string(), "23505");
    let select = root.prepare("SELECT * FROM app.t WHERE id = $1").await.unwrap();
    assert_eq!(select.parameters()[0].data_type().to_string(), "Int64");
    let announced = select.schema().unwrap();
    assert!(announced.ipc.is_some());
    let got = select.execute(vec![ScalarValue::Int64(Some(2))]).await.unwrap().rows().unwrap();
    assert!(Arc::ptr_eq(&got.schema, &announced.schema));
    let update = root.prepare("UPDATE app.t SET name = :name WHERE id < :id").await.unwrap();
    let params =
        vec![("id".to_owned(), ScalarValue::Int64(Some(3))), ("name".to_owned(), ScalarValue::from("new"))];
    assert_eq!(update.execute(params).await.unwrap().affected().unwrap().rows, 2);
    let delete = root.prepare("DELETE FROM app.t WHERE name = ?").await.unwrap();
    assert_eq!(
        delete
            .execute_batch(vec![vec![ScalarValue::from("new")], vec![ScalarValue::from("n3")]])
            .await
            .unwrap()
            .rows,
        3
    );
    for (sql, types) in [
        ("SELECT $1", "Utf8"),
        ("SELECT $1 + 1", "Int64"),
        ("SELECT count(*) FROM app.t WHERE u = ?", "Utf8"),
        ("SELECT id FROM app.t LIMIT ?", "Int64"),
        ("CREATE TABLE app.z (id INT)", ""),
        ("SHOW TABLES", ""),
        ("SUBSCRIBE TO (SELECT id FROM app.t WHERE id > ?)", "Int64"),
    ] {
        let prepared = root.prepare(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let got: Vec<_> = prepared.parameters().iter().map(|field| field.data_type().to_string()).collect();
        assert_eq!(got.join(","), types, "{sql}");
    }
    assert_eq!(
        rows(
            &root,
            "SELECT count(*) FROM app.t WHERE u = ?",
            vec![ScalarValue::from("0192f3a4-b5c6-7d8e-9f00-010203040506")]
        )
        .await,
        ["0"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_that_lose_are_run_again() {
    let (database, root) = database().await;
    run(&root, "CREATE TABLE app.counter (id INT PRIMARY KEY, n BIGINT)").await;
    run(&root, "INSERT INTO app.counter VALUES (1, 0)").await;
    let writers = (0..8).map(|_| {
        let session = database.session_for("root").unwrap();
        tokio::spawn(async move {
            for _ in 0..25 {
                assert_eq!(run(&session, "UPDATE app.counter SET n = n + 1 WHERE id = 1").await, 1);
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    assert_eq!(rows(&root, "SELECT n FROM app.counter", ()).await, ["200"]);
}

/// Compares the compiled shapes with the planned path, which `1 = 1 AND` or a subquery forces.
#[tokio::test(flavor = "multi_thread")]
async fn compiled_shapes_equal_planned_ones() {
    let (_database, root) = database().await;
    run(&root, "CREATE TABLE app.a (i INT, t TEXT, v DOUBLE, d DECIMAL(8,3), b BOOLEAN DEFAULT true, ts TIMESTAMP, PRIMARY KEY (t, i))").await;
    run(&root, "CREATE TABLE app.b (i INT, t TEXT, v DOUBLE, d DECIMAL(8,3), b BOOLEAN DEFAULT true, ts TIMESTAMP, PRIMARY KEY (t, i))").await;
    for values in [
        "(1, 'a', 1.5, 2.25, false, '2026-01-02')",
        "(2, 'b', 3, 4, true, '2026-01-02 03:04:05.678901')",
        "(-3, '', -1.25, -7, NULL, NULL)",
        "(4, 'c', '1e3', '12.5', 'true', NULL)",
        "(2147483648, 'd', 1, 1, true, NULL)",
        "(5, 7, 1, 1, true, NULL)",
        "(6, 'e', 1, 123456.5, true, NULL)",
        "(7, NULL, 1, 1, true, NULL)",
        "(8, 'f', 'x', 1, true, NULL)",
        "(9, 'g', 1, 1.23456, 1, NULL)",
    ] {
        let hot = root.execute(&format!("INSERT INTO app.a VALUES {values}"), ()).await;
        let planned = root
            .execute(
                &format!("INSERT INTO app.b SELECT * FROM (VALUES {values}) AS v(i, t, v, d, b, ts)"),
                (),
            )
            .await;
        let state =
            |result: &Result<Outcome, Error>| result.as_ref().err().map(|error| error.sqlstate().to_string());
        assert_eq!(state(&hot), state(&planned), "{values}: {hot:?} {planned:?}");
    }
    assert_eq!(
        rows(&root, "SELECT * FROM app.a ORDER BY i", ()).await,
        rows(&root, "SELECT * FROM app.b ORDER BY i", ()).await
    );
    for condition in [
        "t = 'a' AND i = 1",
        "i = 2 AND 'b' = t",
        "t = '' AND i = -3",
        "t = 'a' AND i = 1.0",
        "t = 'a' AND i = '1'",
        "t = 'a' AND i = NULL",
        "t = 'a' AND i = 99999999999",
        "t = 'nobody' AND i = 1",
    ] {
        for columns in ["*", "v, i", "i"] {
            let hot = rows(&root, &format!("SELECT {columns} FROM app.a WHERE {condition}"), ()).await;
            let planned =
                rows(&root, &format!("SELECT {columns} FROM app.a WHERE {condition} AND 1 = 1"), ()).await;
            assert_eq!(hot, planned, "{columns} {condition}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_texts_are_errors() {
    let (_database, root) = database().await;
    run(&root, "CREATE TABLE app.t (a INT)").await;
    let chains: [(&str, &str); 8] = [
        ("SELECT 1", "+1"),
        ("SELECT * FROM app.t WHERE a=0", " OR a=1"),
        ("SELECT 'a'", "||'a'"),
        ("SELECT 1", " UNION ALL SELECT 1"),
        ("SELECT * FROM app.t", ", app.t"),
        ("SELECT ", "NOT "),
        ("SELECT 1", "::int"),
        ("SELECT ", "("),
    ];
    for (head, link) in chains {
        for count in [1_001, 10_000, 100_000] {
            let error = fails(&root, &format!("{head}{}", link.repeat(count))).await;
            assert!(matches!(error.sqlstate().0, "54001" | "54000" | "42601"), "{link} x {count}: {error}");
        }
    }
    // The longest accepted chains are planned and run.
    assert_eq!(rows(&root, &format!("SELECT 1{}", "+1".repeat(900)), ()).await, ["901"]);
    let ors = format!("SELECT count(*) FROM app.t WHERE a=0{}", " OR a=1".repeat(490));
    assert_eq!(rows(&root, &ors, ()).await, ["0"]);
    assert_eq!(rows(&root, &format!("SELECT 1{}", " UNION ALL SELECT 1".repeat(300)), ()).await.len(), 301);
}

#[tokio::test(flavor = "multi_thread")]
async fn short_texts_that_double_with_every_step_are_errors() {
    let (_database, root) = database().await;
    run(&root, "CREATE TABLE app.t (a INT)").await;
    run(&root, "INSERT INTO app.t VALUES (1)").await;
    let doubled = |steps: usize, first: &str, next: &dyn Fn(usize) -> String, last: &str| {
        let steps: Vec<_> = (1..=steps).map(|step| format!("c{step} AS ({})", next(step - 1))).collect();
        format!("WITH c0 AS ({first}), {} {last}", steps.join(", "))
    };
    let table = "SELECT a FROM app.t";
    let joins = |before: usize| format!("SELECT x.a FROM c{before} x, c{before} y");
    let unions = |before: usize| format!("SELECT a FROM c{before} UNION ALL SELECT a FROM c{before}");
    let subqueries = |before: usize| {
        format!("SELECT (SELECT max(a) FROM c{before}) + (SELECT min(a) FROM c{before}) AS a")
    };
    let sums = |before: usize| format!("SELECT a + a AS a FROM c{before}");
    for steps in [20, 60, 150] {
        for next in [&joins as &dyn Fn(usize) -> String, &unions, &subqueries] {
            let sql = doubled(steps, table, next, &format!("SELECT * FROM c{steps}"));
            assert_eq!(state(&root, &sql).await, "54001", "{sql}");
        }
        let sql = doubled(steps, table, &sums, &format!("SELECT a FROM c{steps} WHERE a > 0"));
        assert_eq!(state(&root, &sql).await, "54001", "{sql}");
    }
    let nested = (0..40)
        .fold("SELECT a FROM app.t".to_owned(), |inner, _| format!("SELECT a + a AS a FROM ({inner}) AS s"));
    assert_eq!(state(&root, &format!("SELECT a FROM ({nested}) AS s WHERE a > 0")).await, "54001");
    assert_eq!(state(&root, &format!("EXPLAIN SELECT a FROM ({nested}) AS s WHERE a > 0")).await, "54001");
    assert_eq!(
        state(&root, &format!("SUBSCRIBE TO (SELECT a FROM ({nested}) AS s WHERE a > 0)")).await,
        "54001"
    );
    assert_eq!(
        state(&root, &format!("DELETE FROM app.t WHERE a IN (SELECT a FROM ({nested}) AS s WHERE a > 0)"))
            .await,
        "54001"
    );
    // Moderate doubling is planned and run.
    let sql = doubled(8, table, &unions, "SELECT count(*) FROM c8");
    assert_eq!(rows(&root, &sql, ()).await, ["256"]);
    let sql = doubled(8, table, &sums, "SELECT a FROM c8 WHERE a > 0");
    assert_eq!(rows(&root, &sql, ()).await, ["256"]);
    let sql = doubled(
        150,
        table,
        &|before| format!("SELECT a + 1 AS a FROM c{before}"),
        "SELECT a FROM c150 WHERE a > 0",
    );
    assert_eq!(rows(&root, &sql, ()).await, ["151"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_double_with_every_step_are_errors() {
    let (_database, root) = database().await;
    for step in [
        "a || a",
        "concat(a, a)",
        "concat_ws('', a, a)",
        "overlay(a PLACING a FROM 1 FOR 0)",
        "encode(a, 'hex')",
        "array_to_string([a, a], '')",
    ] {
        let steps: Vec<_> =
            (1..=12).map(|n| format!("c{n} AS (SELECT {step} AS a FROM c{})", n - 1)).collect();
        let first = "SELECT repeat('a', 1000000) AS a";
        let sql = format!("WITH c0 AS ({first}), {} SELECT length(a) FROM c12", steps.join(", "));
        assert_eq!(state(&root, &sql).await, "54000", "{step}");
    }
    for step in ["a || a", "array_concat(a, a)", "array_append(a, a[1])"] {
        let steps: Vec<_> =
            (1..=12).map(|n| format!("c{n} AS (SELECT {step} AS a FROM c{})", n - 1)).collect();
        let first = "SELECT array_repeat(repeat('a', 30000000), 2) AS a";
        let sql = format!("WITH c0 AS ({first}), {} SELECT cardinality(a) FROM c12", steps.join(", "));
        assert_eq!(state(&root, &sql).await, "54000", "{step}");
    }
    // Constants are not expanded over more rows than there is room for.
    let wide =
        "SELECT max(length(repeat('a', 1000000) || CAST(value AS TEXT))) FROM generate_series(1, 5000)";
    assert_eq!(state(&root, wide).await, "54000");
}

#[tokio::test(flavor = "multi_thread")]
async fn limited_functions_give_what_they_gave() {
    let (_database, root) = database().await;
    run(&root, "CREATE TABLE app.t (id INT PRIMARY KEY, name TEXT)").await;
    run(&root, "INSERT INTO app.t VALUES (1, 'a'), (2, NULL), (3, 'c')").await;
    for (sql, expected) in [
        ("SELECT 'a' || 'b'", vec!["ab"]),
        ("SELECT NULL || 'b'", vec!["NULL"]),
        ("SELECT 'a' || 1 || true", vec!["a1true"]),
        ("SELECT name || id FROM app.t ORDER BY id", vec!["a1", "NULL", "c3"]),
        ("SELECT name || '-' || name AS n FROM app.t ORDER BY n", vec!["a-a", "c-c", "NULL"]),
        (
            "SELECT name || 'x', count(*) FROM app.t GROUP BY name || 'x' ORDER BY name || 'x'",
            vec!["ax|1", "cx|1", "NULL|1"],
        ),
        ("SELECT id FROM app.t WHERE name || 'x' = 'cx'", vec!["3"]),
        ("SELECT id FROM app.t WHERE id || 'x' LIKE '2%'", vec!["2"]),
        ("SELECT [1, 2] || [3]", vec!["[1, 2, 3]"]),
        ("SELECT array_append([1], 2)", vec!["[1, 2]"]),
        ("SELECT [name, 'z'] FROM app.t ORDER BY id", vec!["[a, z]", "[NULL, z]", "[c, z]"]),
        ("SELECT concat(name, NULL, id) FROM app.t ORDER BY id", vec!["a1", "2", "c3"]),
        ("SELECT concat_ws('-', name, 'x', id) FROM app.t ORDER BY id", vec!["a-x-1", "x-2", "c-x-3"]),
        ("SELECT regexp_replace('foobarbaz', 'b(..)', 'X\\1Y', 'g')", vec!["fooXarYXazY"]),
        ("SELECT array_to_string([1, NULL, 3], '-', 'x')", vec!["1-x-3"]),
        ("SELECT overlay('Txxxxas' PLACING 'hom' FROM 2 FOR 4)", vec!["Thomas"]),
        ("SELECT encode('abc', 'hex')", vec!["616263"]),
        ("SELECT to_char(TIMESTAMP '2024-01-02 03:04:05', '%Y/%m')", vec!["2024/01"]),
        ("SELECT array_replace_all([1, 2, 1], 1, 9)", vec!["[9, 2, 9]"]),
        ("SELECT id FROM app.t WHERE id = ANY(ARRAY[1, 3]) ORDER BY id", vec!["1", "3"]),
    ] {
        assert_eq!(rows(&root, sql, ()).await, expected, "{sql}");
    }
    let outcome =
        root.execute("SELECT name || 'x', 'y' || 'z' FROM app.t", ()).await.unwrap().rows().unwrap();
    let names: Vec<_> = outcome.schema.fields().iter().map(|field| field.name().clone()).collect();
    assert_eq!(names, ["?column?", "?column?"]);
    assert_eq!(
        rows(&root, "SELECT $1 || name FROM app.t WHERE id = 1", vec![ScalarValue::from("p")]).await,
        ["pa"]
    );
}
