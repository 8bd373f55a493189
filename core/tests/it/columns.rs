//! Cold rows of older table versions. Columns were dropped and added again under their names, renamed, moved,
//! widened, added with an initial value. No statement changes columns yet, so the tests change the catalog.

use std::path::Path;
use std::sync::Arc;

use kalamdb_core::commit::WriteSet;
use kalamdb_core::ids::ColumnId;
use kalamdb_core::maintenance::check;
use kalamdb_core::schema_registry::{CatalogChange, ColumnDefault, ColumnDefinition, TableDefinition};
use kalamdb_core::types::ColumnType;
use kalamdb_core::{Config, Database, Session, UserId};

use crate::cold::{complete, flush};
use crate::session::{rows, run};

async fn open(data_dir: &Path, large_insert_bytes: usize) -> (Database, Session) {
    let config = Config { large_insert_bytes, shutdown_flush_ms: 0, ..Config::at(data_dir) };
    let database = Database::open(config).await.unwrap();
    let root = database.session_for("root").unwrap();
    run(&root, "CREATE NAMESPACE app").await;
    (database, root)
}

/// Commits the next version of a table. Returns a session that knows no other version.
pub(crate) async fn alter(
    database: &Database,
    table: &str,
    change: impl FnOnce(&mut TableDefinition),
) -> Session {
    let committer = &database.context().committer;
    let snapshot = committer.snapshot();
    let before = snapshot.catalog.table("app", table).unwrap();
    let next = before.next_version(1, |table| {
        change(table);
        Ok(())
    });
    let catalog = vec![CatalogChange::PutTable(next.unwrap())];
    let set = WriteSet { catalog, ..WriteSet::new(UserId::ROOT, snapshot.seq) };
    committer.commit(set).await.unwrap();
    database.session_for("root").unwrap()
}

async fn assert_rows(session: &Session, expected: &[(&str, &[&str])]) {
    for (sql, lines) in expected {
        assert_eq!(rows(session, sql, ()).await, *lines, "{sql}");
    }
}

async fn assert_sound(database: Database, data_dir: &Path) {
    database.shutdown().await.unwrap();
    drop(database);
    assert_eq!(check(data_dir).await.unwrap().problems, Vec::<String>::new());
}

/// Drops the column `v` and adds it again.
fn add_again(table: &mut TableDefinition) {
    table.columns[1] = ColumnDefinition::new(table.next_column_id, "v", ColumnType::BigInt, true);
    table.next_column_id = ColumnId(table.next_column_id.0 + 1);
}

/// The new column has the name, the type and the place of the old one: the Arrow schemas of both versions are
/// equal.
async fn check_column_added_again(create: &str, large_insert_bytes: usize) {
    let folder = tempfile::tempdir().unwrap();
    let (database, root) = open(folder.path(), large_insert_bytes).await;
    run(&root, create).await;
    run(&root, "INSERT INTO app.t SELECT value, value, 'old' FROM generate_series(1, 5000)").await;
    flush(&database, "app.t").await;
    assert_rows(&root, &[("SELECT count(v), max(v) FROM app.t", &["5000|5000"])]).await;
    drop(root);
    let root = alter(&database, "t", add_again).await;
    assert_rows(
        &root,
        &[
            ("SELECT count(*), count(v), max(v), count(w), min(w) FROM app.t", &["5000|0|NULL|5000|old"]),
            ("SELECT count(*) FROM app.t WHERE v = 7", &["0"]),
            ("SELECT count(*) FROM app.t WHERE v > 0", &["0"]),
            ("SELECT count(*) FROM app.t WHERE v IS NULL", &["5000"]),
            ("SELECT count(*) FROM app.t WHERE v IS NULL AND w = 'old'", &["5000"]),
            ("SELECT * FROM app.t WHERE id = 7", &["7|NULL|old"]),
            ("SELECT v FROM app.t WHERE id BETWEEN 2040 AND 2042", &["NULL", "NULL", "NULL"]),
            ("SELECT id, v FROM app.t ORDER BY id DESC LIMIT 1", &["5000|NULL"]),
            ("SELECT count(*) FROM app.t WHERE _seq > 0", &["5000"]),
        ],
    )
    .await;
    assert_eq!(run(&root, "DELETE FROM app.t WHERE v = 20").await, 0);
    assert_eq!(run(&root, "UPDATE app.t SET w = 'new' WHERE id = 7").await, 1);
    assert_eq!(run(&root, "UPDATE app.t SET v = 1 WHERE v IS NULL AND id = 8").await, 1);
    let changed: &[(&str, &[&str])] = &[
        ("SELECT count(*), count(v), sum(v), min(w) FROM app.t", &["5000|1|1|new"]),
        ("SELECT count(*) FROM app.t WHERE v = 7", &["0"]),
        ("SELECT id FROM app.t WHERE v = 1", &["8"]),
        ("SELECT * FROM app.t WHERE id = 7", &["7|NULL|new"]),
        ("SELECT * FROM app.t WHERE id = 9", &["9|NULL|old"]),
    ];
    assert_rows(&root, changed).await;
    flush(&database, "app.t").await;
    assert_rows(&root, changed).await;
    complete(&database, "COMPACT", "app.t").await;
    assert_rows(&root, changed).await;
    drop(root);
    assert_sound(database, folder.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_added_again_shows_no_old_value() {
    for create in [
        "CREATE TABLE app.t (id BIGINT PRIMARY KEY, v BIGINT, w TEXT)",
        "CREATE USER TABLE app.t (id BIGINT PRIMARY KEY, v BIGINT, w TEXT)",
        "CREATE USER TABLE app.t (id BIGINT, v BIGINT, w TEXT)",
    ] {
        // With the first limit, rows are never hot.
        for large_insert_bytes in [1, 8 << 20] {
            check_column_added_again(create, large_insert_bytes).await;
        }
    }
}

/// Exchanges two names, widens types, moves every column, and gives the name of the bytes to a new text.
fn change_every_column(table: &mut TableDefinition) {
    let mut columns = std::mem::take(&mut table.columns);
    for column in &mut columns {
        let name = Arc::clone(&column.name);
        let (name, ty) = match &*name {
            "a" => ("b", ColumnType::BigInt),
            "b" => ("a", ColumnType::Text),
            "s" => ("s", ColumnType::Integer),
            "r" => ("r", ColumnType::Double),
            "d" => ("d", ColumnType::Decimal { precision: 12, scale: 2 }),
            "x" => ("y", ColumnType::Bytes),
            _ => continue,
        };
        column.name = name.into();
        column.ty = ty;
    }
    columns.reverse();
    let mut added = ColumnDefinition::new(table.next_column_id, "x", ColumnType::Text, false);
    added.initial = Some("first".to_owned());
    columns.push(added);
    table.next_column_id = ColumnId(table.next_column_id.0 + 1);
    table.columns = columns;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_keep_their_values_whatever_they_are_called_and_wherever_they_stand() {
    let folder = tempfile::tempdir().unwrap();
    let (database, root) = open(folder.path(), 8 << 20).await;
    run(
        &root,
        "CREATE TABLE app.m (id INTEGER PRIMARY KEY, a INTEGER, b TEXT, s SMALLINT, r REAL, d DECIMAL(10, 2), \
         x BYTES)",
    )
    .await;
    let insert = "INSERT INTO app.m SELECT value, value, 'b' || value::TEXT, value % 100, value / 2.0, value / 4.0, \
                  '\\x00ff'";
    run(&root, &format!("{insert} FROM generate_series(1, 10000)")).await;
    flush(&database, "app.m").await;
    run(&root, &format!("{insert} FROM generate_series(10001, 10010)")).await;
    let before = rows(&root, "SELECT id, a, b, s, r, d, x FROM app.m ORDER BY id", ()).await;
    drop(root);
    let root = alter(&database, "m", change_every_column).await;
    let after = "SELECT id, b, a, s, r, d, y FROM app.m ORDER BY id";
    assert_eq!(rows(&root, after, ()).await, before);
    assert_rows(
        &root,
        &[
            ("SELECT count(*), min(x), max(x) FROM app.m", &["10010|first|first"]),
            ("SELECT b, a, x FROM app.m WHERE id = 77", &["77|b77|first"]),
            ("SELECT b, a, x FROM app.m WHERE id = 10003", &["10003|b10003|first"]),
            ("SELECT id FROM app.m WHERE b = 1234", &["1234"]),
            ("SELECT id FROM app.m WHERE b = 10004", &["10004"]),
            ("SELECT count(*) FROM app.m WHERE b > 3000000000", &["0"]),
            ("SELECT count(*) FROM app.m WHERE s = 5", &["101"]),
            ("SELECT id FROM app.m WHERE a = 'b9'", &["9"]),
            ("SELECT id FROM app.m WHERE d = 2.5", &["10"]),
            ("SELECT count(*) FROM app.m WHERE x = 'first'", &["10010"]),
            ("SELECT count(*) FROM app.m WHERE x <> 'first'", &["0"]),
            ("SELECT count(*) FROM app.m WHERE y IS NOT NULL", &["10010"]),
        ],
    )
    .await;
    run(&root, "INSERT INTO app.m (id, b, x) VALUES (20000, 3000000001, 'later')").await;
    assert_eq!(run(&root, "UPDATE app.m SET s = 70000 WHERE id = 3 OR id = 10005").await, 2);
    let changed: &[(&str, &[&str])] = &[
        ("SELECT id FROM app.m WHERE b > 3000000000", &["20000"]),
        (
            "SELECT id, b, a, x FROM app.m WHERE s = 70000 ORDER BY id",
            &["3|3|b3|first", "10005|10005|b10005|first"],
        ),
        ("SELECT count(*) FROM app.m WHERE x = 'later'", &["1"]),
    ];
    let unchanged = "SELECT id, b, a, s, r, d, y FROM app.m WHERE id NOT IN (3, 10005, 20000) ORDER BY id";
    let mut expected = before;
    expected.retain(|line| !line.starts_with("3|") && !line.starts_with("10005|"));
    for step in ["hot", "FLUSH", "COMPACT"] {
        if step != "hot" {
            complete(&database, step, "app.m").await;
        }
        assert_rows(&root, changed).await;
        assert_eq!(rows(&root, unchanged, ()).await, expected, "{step}");
    }
    drop(root);
    assert_sound(database, folder.path()).await;
}

/// A point read reads a whole block of narrow rows, but only one of wide rows.
#[tokio::test(flavor = "multi_thread")]
async fn point_reads_of_older_segments_see_what_was_deleted_and_changed_since() {
    let folder = tempfile::tempdir().unwrap();
    let (database, mut root) = open(folder.path(), 8 << 20).await;
    for (table, pad) in [("narrow", "'x'"), ("wide", "repeat('x', 600) || value::TEXT")] {
        let qualified = format!("app.{table}");
        run(&root, &format!("CREATE TABLE {qualified} (id BIGINT PRIMARY KEY, v BIGINT, pad TEXT)")).await;
        let rows = format!("SELECT value, value, {pad} FROM generate_series(1, 5000)");
        run(&root, &format!("INSERT INTO {qualified} {rows}")).await;
        flush(&database, &qualified).await;
        drop(root);
        root = alter(&database, table, add_again).await;
        assert_eq!(run(&root, &format!("DELETE FROM {qualified} WHERE id = 7")).await, 1);
        assert_eq!(run(&root, &format!("UPDATE {qualified} SET pad = 'new' WHERE id = 8")).await, 1);
        assert_eq!(run(&root, &format!("UPDATE {qualified} SET v = 1 WHERE id = 3000")).await, 1);
        for step in ["marks", "FLUSH", "COMPACT"] {
            if step != "marks" {
                complete(&database, step, &qualified).await;
            }
            let lines: [(u32, &[&str]); 5] =
                [(7, &[]), (8, &["8|NULL|new"]), (9, &["9|NULL|x"]), (3000, &["3000|1|x"]), (5001, &[])];
            for (id, expected) in lines {
                let select = "SELECT id, v, CASE WHEN pad = 'new' THEN pad ELSE left(pad, 1) END";
                let sql = format!("{select} FROM {qualified} WHERE id = {id}");
                assert_eq!(rows_of(&root, &sql).await, expected, "{step}: {sql}");
                let sql = format!("SELECT id, v FROM {qualified} WHERE id = {id}");
                let cut: Vec<&str> = expected.iter().map(|line| line.rsplit_once('|').unwrap().0).collect();
                assert_eq!(rows_of(&root, &sql).await, cut, "{step}: {sql}");
            }
        }
    }
    drop(root);
    assert_sound(database, folder.path()).await;
}

async fn rows_of(session: &Session, sql: &str) -> Vec<String> {
    rows(session, sql, ()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_initial_value_is_cast_when_its_column_becomes_wider() {
    let folder = tempfile::tempdir().unwrap();
    let (database, root) = open(folder.path(), 8 << 20).await;
    run(&root, "CREATE TABLE app.t (id BIGINT PRIMARY KEY)").await;
    run(&root, "INSERT INTO app.t VALUES (1)").await;
    flush(&database, "app.t").await;
    run(&root, "INSERT INTO app.t VALUES (2)").await;
    drop(root);
    let root = alter(&database, "t", |table| {
        let mut added = ColumnDefinition::new(table.next_column_id, "r", ColumnType::Real, true);
        added.initial = Some("0.1".to_owned());
        added.default = Some(ColumnDefault::Literal("0.1".to_owned()));
        table.columns.push(added);
        table.next_column_id = ColumnId(table.next_column_id.0 + 1);
    })
    .await;
    run(&root, "INSERT INTO app.t (id) VALUES (3)").await;
    drop(root);
    let root = alter(&database, "t", |table| table.columns[1].ty = ColumnType::Double).await;
    run(&root, "INSERT INTO app.t (id) VALUES (4)").await;
    // The first row is in a segment without the column, the second is stored without it, the third has it as
    // REAL. Only the last one has the DOUBLE.
    for step in ["hot", "FLUSH", "COMPACT"] {
        if step != "hot" {
            complete(&database, step, "app.t").await;
        }
        let (real, double) = ("0.10000000149011612", "0.1");
        let expected = [real, real, real, double];
        assert_eq!(rows_of(&root, "SELECT r FROM app.t ORDER BY id").await, expected, "{step}");
        for (id, expected) in (1..).zip(expected) {
            assert_eq!(rows_of(&root, &format!("SELECT r FROM app.t WHERE id = {id}")).await, [expected]);
        }
        assert_rows(
            &root,
            &[
                ("SELECT id FROM app.t WHERE r = 0.1::REAL ORDER BY id", &["1", "2", "3"]),
                ("SELECT id FROM app.t WHERE r = 0.1::DOUBLE", &["4"]),
            ],
        )
        .await;
    }
    drop(root);
    assert_sound(database, folder.path()).await;
}
