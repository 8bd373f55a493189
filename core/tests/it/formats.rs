//! What other programs read and wrote: a database of an earlier version, and the manifests beside segments.
//!
//! The archives in `core/tests/fixtures` are databases of format 1. Every later version must open and read
//! them, so they never change: a new form gets an archive of its own. `format-1.zip` has segments without
//! column ids. `WRITE_FIXTURE=1 cargo test --workspace --test it formats` writes the last archive with the
//! present version, if it is missing.
//!
//! Each archive has the data directory (`data`) and two resume tokens of live queries (`NAME.token`).

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kalamdb_core::clock::ManualClock;
use kalamdb_core::cold_storage::marked_after;
use kalamdb_core::ids::ColumnId;
use kalamdb_core::maintenance::check;
use kalamdb_core::schema_registry::ColumnDefinition;
use kalamdb_core::types::ColumnType;
use kalamdb_core::{
    Config, Database, Frame, FrameBody, Seq, Session, SubscribeRequest, SubscribeStart, Subscription,
};
use serde_json::{Value, json};
use zip::write::SimpleFileOptions;
use zip::{ZipArchive, ZipWriter};

use crate::backup::objects;
use crate::cold::{complete, flush};
use crate::columns::alter;
use crate::session::{fails, rows, run, text};

/// 2026-01-01. The clock of a fixture stands still, so its rows do not expire and its change log is kept.
const START_US: i64 = 1_767_225_600_000_000;
const FIXTURE_BYTES_MAX: u64 = 200_000;

const NOTES: &str = "SELECT id, body FROM app.notes WHERE id < 100";
const BULK: &str = "SELECT id, v FROM app.bulk";

/// Users, their queries and the answers.
const ANSWERS: &[(&str, &str, &[&str])] = &[
    (
        "root",
        "SELECT username, role, email FROM system.users ORDER BY username",
        &["ann|user|ann@example.com", "bob|user|NULL", "cy|service|NULL", "root|system|NULL"],
    ),
    (
        "root",
        "SELECT table_name, table_type FROM system.tables WHERE namespace_id = 'app' ORDER BY table_name",
        &[
            "bulk|shared",
            "defaults|shared",
            "events|stream",
            "lines|user",
            "notes|user",
            "pairs|shared",
            "shared|shared",
            "types|shared",
        ],
    ),
    ("root", "SELECT count(*) FROM system.audit_logs WHERE action = 'CREATE TABLE'", &["9"]),
    // A large INSERT.
    ("cy", "SELECT id, v FROM app.bulk ORDER BY id", &["1|v1", "2|v2", "3|v3"]),
    // A large INSERT, a deletion vector, marks, and hot rows.
    (
        "ann",
        "SELECT count(*), min(id), max(id), count(CASE WHEN v = 'cold' THEN 1 END), \
         count(CASE WHEN v = 'hot again' THEN 1 END) FROM app.shared",
        &["931|271|5000|910|20"],
    ),
    (
        "ann",
        "SELECT id, v FROM app.shared WHERE id IN (1, 265, 271, 1001, 5000) ORDER BY id",
        &["271|cold", "1001|hot again", "5000|hot"],
    ),
    // Rows of two users in one segment, marks, and hot rows.
    ("ann", "SELECT count(*), min(id), max(id) FROM app.notes", &["23|1|200"]),
    (
        "ann",
        "SELECT id, body FROM app.notes WHERE id <= 5 OR id > 20 ORDER BY id",
        &["1|ann 1", "2|ann 2", "3|changed", "5|ann 5", "21|hot", "22|NULL", "23|third epoch", "200|outside"],
    ),
    ("bob", "SELECT count(*), min(id), max(id), max(body) FROM app.notes", &["9|2|10|bob 9"]),
    ("root", "SELECT count(*) FROM app.notes", &["0"]),
    // No primary key.
    ("ann", "SELECT body FROM app.lines ORDER BY body", &["hot", "one", "three"]),
    ("bob", "SELECT body FROM app.lines ORDER BY body", &["one", "three", "two"]),
    // A composite primary key.
    (
        "root",
        "SELECT place, n, v FROM app.pairs ORDER BY place, n",
        &["a|1|10", "a|2|20", "b|-1|30", "b|1|40"],
    ),
    ("root", "SELECT v FROM app.pairs WHERE place = 'b' AND n = -1", &["30"]),
    // Every type, NULL, cold, hot.
    (
        "root",
        "SELECT * FROM app.types ORDER BY id",
        &[
            "-9223372036854775808|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL",
            "1|true|-3|7|1.5|-2.25|123456.7891|täxt|00ff|2026-01-02T03:04:05.678901\
             |2026-01-02T03:04:05.678901Z|2026-01-02|23:59:59.999999|00112233445566778899aabbccddeeff\
             |{\"a\": [1]}|[1.0, 2.5, -3.0]",
            "2|true|-3|7|1.5|-2.25|123456.7891|täxt|00ff|2026-01-02T03:04:05.678901\
             |2026-01-02T03:04:05.678901Z|2026-01-02|23:59:59.999999|00112233445566778899aabbccddeeff\
             |{\"a\": [1]}|[1.0, 2.5, -3.0]",
        ],
    ),
    ("root", "SELECT id, at, who, note FROM app.defaults", &["1|2026-01-01T00:00:00Z|root|x"]),
    ("root", "SELECT id, what FROM app.events ORDER BY id", &["1|one", "2|two"]),
];

/// What `ann` missed since her token.
const NOTES_CHANGES: &[&str] = &["1|21|hot", "1|22|NULL", "1|23|third epoch", "2|4|ann 4", "3|3|changed"];
/// What `root` missed since his token: a part of the log with rows as columns.
const BULK_CHANGES: &[&str] = &["1|1|v1", "1|2|v2", "1|3|v3"];

const ARCHIVES: [&str; 2] = ["format-1.zip", "format-1-column-ids.zip"];

fn archive_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join("fixtures").join(name)
}

async fn open(data_dir: &Path, large_insert_bytes: usize) -> (Database, Arc<ManualClock>) {
    let config = Config {
        root_password: Some("password of root".to_owned()),
        large_insert_bytes,
        shutdown_flush_ms: 0,
        ..Config::at(data_dir)
    };
    let clock = Arc::new(ManualClock::new(START_US));
    let database = Database::open_with_clock(config, Arc::clone(&clock) as _).await.unwrap();
    (database, clock)
}

async fn run_as(database: &Database, user: &str, statements: &[&str]) {
    let session = database.session_for(user).unwrap();
    for sql in statements {
        run(&session, sql).await;
    }
}

async fn next(stream: &mut Subscription) -> Arc<Frame> {
    tokio::time::timeout(Duration::from_secs(20), stream.next()).await.unwrap().unwrap().unwrap()
}

/// Returns the token at the end of the snapshot of a live query.
async fn token(database: &Database, user: &str, sql: &str) -> Vec<u8> {
    let session = database.session_for(user).unwrap();
    let mut stream = session.subscribe(SubscribeRequest::new(sql)).await.unwrap();
    loop {
        let frame = next(&mut stream).await;
        if matches!(frame.body, FrameBody::SnapshotEnd) {
            return frame.resume_token.as_ref().unwrap().to_vec();
        }
    }
}

/// Resumes a live query. Returns its first `count` changes, sorted: `_op` and the columns of the query.
async fn resumed(session: &Session, sql: &str, token: Vec<u8>, count: usize) -> Vec<String> {
    let mut request = SubscribeRequest::new(sql);
    request.start = SubscribeStart::Token(token.into());
    let mut stream = session.subscribe(request).await.unwrap();
    let first = next(&mut stream).await;
    assert!(matches!(first.body, FrameBody::Started { resumed: true, .. }), "{sql}: {first:?}");
    let mut changes = Vec::new();
    while changes.len() < count {
        let frame = next(&mut stream).await;
        match &frame.body {
            FrameBody::Delta(rows) => {
                let without_seq: Vec<usize> =
                    (0..rows.schema.fields().len()).filter(|column| *column != 1).collect();
                changes.extend(text(&[rows.batch().unwrap().project(&without_seq).unwrap()]));
            }
            FrameBody::Progress => {}
            other => panic!("{sql}: {other:?} after {changes:?}"),
        }
    }
    changes.sort_unstable();
    changes
}

/// Returns for each segment of a table its rows and how many of them are overwritten or deleted.
async fn segments(database: &Database, table: &str) -> Vec<String> {
    let root = database.session_for("root").unwrap();
    let manifest = rows(&root, &format!("SHOW MANIFEST FOR {table}"), ()).await;
    let cells = manifest.iter().map(|line| line.split('|').collect::<Vec<_>>());
    cells.map(|cells| format!("{}|{}", cells[2], cells[3])).collect()
}

/// Fills a database in three epochs. Returns the tokens for `NOTES` and `BULK`.
async fn fill(data_dir: &Path) -> (Vec<u8>, Vec<u8>) {
    let (database, _) = open(data_dir, 1).await;
    run_as(
        &database,
        "root",
        &[
            "CREATE NAMESPACE app",
            "CREATE USER 'ann' WITH PASSWORD 'password of ann' EMAIL 'ann@example.com'",
            "CREATE USER 'bob' WITH PASSWORD 'password of bob'",
            "CREATE USER 'cy' WITH PASSWORD 'password of cy' ROLE service",
            "CREATE TABLE app.bulk (id BIGINT PRIMARY KEY, v TEXT)",
            "CREATE TABLE app.shared (id BIGINT PRIMARY KEY, v TEXT) WITH (ACCESS_LEVEL = 'public')",
        ],
    )
    .await;
    let bulk = token(&database, "root", BULK).await;
    run_as(
        &database,
        "root",
        &[
            "INSERT INTO app.bulk SELECT value, 'v' || value::TEXT FROM generate_series(1, 3)",
            "INSERT INTO app.shared SELECT value, 'cold' FROM generate_series(1, 1200)",
        ],
    )
    .await;
    assert_eq!(segments(&database, "app.bulk").await, ["3|0"]);
    assert_eq!(segments(&database, "app.shared").await, ["1200|0"]);
    database.shutdown().await.unwrap();
    drop(database);

    let (database, _) = open(data_dir, 8 << 20).await;
    fill_tables(&database).await;
    let notes = token(&database, "ann", NOTES).await;
    change_tables(&database).await;
    database.shutdown().await.unwrap();
    drop(database);

    let (database, _) = open(data_dir, 8 << 20).await;
    run_as(&database, "ann", &["INSERT INTO app.notes VALUES (23, 'third epoch')"]).await;
    database.shutdown().await.unwrap();
    (notes, bulk)
}

async fn fill_tables(database: &Database) {
    run_as(
        database,
        "root",
        &[
            "CREATE USER TABLE app.notes (id BIGINT PRIMARY KEY, body TEXT)",
            "CREATE USER TABLE app.lines (body TEXT)",
            "CREATE TABLE app.pairs (place TEXT, n INTEGER, v BIGINT, PRIMARY KEY (place, n)) \
             WITH (FLUSH_POLICY = 'rows:500')",
            "CREATE TABLE app.types (id BIGINT PRIMARY KEY, b BOOLEAN, s SMALLINT, i INTEGER, r REAL, \
             d DOUBLE, n DECIMAL(20, 4), t TEXT, v BYTES, at TIMESTAMP, atz TIMESTAMPTZ, day DATE, \
             clock TIME, u UUID, j JSON, e EMBEDDING(3))",
            "CREATE TABLE app.defaults (id BIGINT PRIMARY KEY, at TIMESTAMPTZ DEFAULT NOW(), \
             who TEXT DEFAULT CURRENT_USER(), note VARCHAR(5) DEFAULT 'x')",
            "CREATE STREAM TABLE app.events (id BIGINT PRIMARY KEY, what TEXT) WITH (TTL_SECONDS = 60)",
            "INSERT INTO app.pairs VALUES ('a', 1, 10), ('a', 2, 20), ('b', -1, 30)",
            "INSERT INTO app.types (id) VALUES (-9223372036854775808)",
            &every_type(1),
        ],
    )
    .await;
    for (user, count) in [("ann", 20), ("bob", 10)] {
        let notes = format!(
            "INSERT INTO app.notes SELECT value, '{user} ' || value::TEXT FROM generate_series(1, {count})"
        );
        run_as(database, user, &[&notes, "INSERT INTO app.lines VALUES ('one'), ('two'), ('three')"]).await;
    }
    for table in ["app.notes", "app.lines", "app.pairs", "app.types"] {
        flush(database, table).await;
    }
    // So many marks move into a deletion vector, but not so many that the segment is compacted.
    run_as(database, "root", &["DELETE FROM app.shared WHERE id <= 260"]).await;
    flush(database, "app.shared").await;
    flush(database, "system.audit_logs").await;
}

fn every_type(id: i64) -> String {
    format!(
        "INSERT INTO app.types VALUES ({id}, true, -3, 7, 1.5, -2.25, 123456.7891, 'täxt', '\\x00ff', \
         '2026-01-02 03:04:05.678901', '2026-01-02 03:04:05.678901Z', '2026-01-02', '23:59:59.999999', \
         '00112233-4455-6677-8899-aabbccddeeff', '{{\"a\": [1]}}', '[1, 2.5, -3]')"
    )
}

/// Overwrites and deletes cold rows, and adds hot ones.
async fn change_tables(database: &Database) {
    run_as(
        database,
        "ann",
        &[
            "UPDATE app.notes SET body = 'changed' WHERE id = 3",
            "DELETE FROM app.notes WHERE id = 4",
            "INSERT INTO app.notes VALUES (21, 'hot')",
            "INSERT INTO app.notes VALUES (22, NULL)",
            "INSERT INTO app.notes VALUES (200, 'outside')",
            "INSERT INTO app.lines VALUES ('hot')",
            "DELETE FROM app.lines WHERE body = 'two'",
        ],
    )
    .await;
    run_as(database, "bob", &["DELETE FROM app.notes WHERE id = 1"]).await;
    run_as(
        database,
        "root",
        &[
            "UPDATE app.shared SET v = 'hot again' WHERE id BETWEEN 1001 AND 1020",
            "DELETE FROM app.shared WHERE id BETWEEN 261 AND 270",
            "INSERT INTO app.shared VALUES (5000, 'hot')",
            "INSERT INTO app.pairs VALUES ('b', 1, 40)",
            "INSERT INTO app.defaults (id) VALUES (1)",
            "INSERT INTO app.events VALUES (1, 'one'), (2, 'two')",
            "ALTER TABLE app.pairs SET (DURABILITY = 'relaxed')",
            "ALTER USER 'bob' SET PASSWORD 'other password of bob'",
            "CREATE TABLE app.gone (id BIGINT PRIMARY KEY)",
            "DROP TABLE app.gone",
            &every_type(2),
        ],
    )
    .await;
}

async fn write_fixture() {
    let archive = archive_path(ARCHIVES[ARCHIVES.len() - 1]);
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    let (notes, bulk) = fill(&data_dir).await;
    fs::create_dir_all(archive.parent().unwrap()).unwrap();
    let file = File::create_new(&archive)
        .unwrap_or_else(|error| panic!("{} must not change: {error}", archive.display()));
    let mut zip = ZipWriter::new(file);
    let mut add = |name: &str, bytes: &[u8]| {
        zip.start_file(name, SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    };
    add("notes.token", &notes);
    add("bulk.token", &bulk);
    let mut files = objects(&data_dir);
    files.sort_unstable();
    for path in files {
        let name = path.file_name().unwrap().to_str().unwrap();
        // The log for people, and the locks.
        if !name.starts_with("LOG") && name != "LOCK" {
            let inside = path.strip_prefix(folder.path()).unwrap();
            add(inside.to_str().unwrap(), &fs::read(&path).unwrap());
        }
    }
    zip.finish().unwrap();
    assert!(fs::metadata(&archive).unwrap().len() <= FIXTURE_BYTES_MAX, "{}", archive.display());
}

/// Unpacks an archive into `folder`.
fn unpack(archive: &str, folder: &Path) {
    let path = archive_path(archive);
    let file = File::open(&path).unwrap_or_else(|error| {
        panic!("{} is missing ({error}); the top of formats.rs says how to get it", path.display())
    });
    ZipArchive::new(file).unwrap().extract(folder).unwrap();
}

async fn assert_answers(database: &Database) {
    for (user, sql, expected) in ANSWERS {
        let session = database.session_for(user).unwrap();
        assert_eq!(rows(&session, sql, ()).await, *expected, "{user}: {sql}");
    }
}

async fn assert_rights(database: &Database) {
    for (user, password, is_right) in [
        ("root", "password of root", true),
        ("ann", "password of ann", true),
        ("ann", "password of bob", false),
        ("bob", "password of bob", false),
        ("bob", "other password of bob", true),
    ] {
        assert_eq!(database.authenticate(user, password).await.is_ok(), is_right, "{user} by {password}");
    }
    let ann = database.session_for("ann").unwrap();
    for (sql, state) in [
        ("SELECT * FROM app.bulk", "42501"),
        ("INSERT INTO app.shared VALUES (6000, 'no')", "42501"),
        ("INSERT INTO app.notes VALUES (1, 'twice')", "23505"),
    ] {
        assert_eq!(fails(&ann, sql).await.sqlstate().to_string(), state, "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_format_1_is_read_and_written() {
    if std::env::var_os("WRITE_FIXTURE").is_some() {
        write_fixture().await;
    }
    for archive in ARCHIVES {
        read_and_write(archive).await;
    }
}

async fn read_and_write(archive: &str) {
    let folder = tempfile::tempdir().unwrap();
    unpack(archive, folder.path());
    let data_dir = folder.path().join("data");
    assert_eq!(check(&data_dir).await.unwrap().problems, Vec::<String>::new());

    let (database, _) = open(&data_dir, 8 << 20).await;
    assert_answers(&database).await;
    assert_rights(&database).await;
    let root = database.session_for("root").unwrap();
    let jobs = "SELECT DISTINCT status FROM system.jobs WHERE job_type = 'flush'";
    assert_eq!(rows(&root, jobs, ()).await, ["completed"]);
    // 260 deleted rows are in the deletion vector, 30 have marks.
    assert_eq!(segments(&database, "app.shared").await, ["1200|290"]);
    let snapshot = database.context().committer.snapshot();
    let shared = snapshot.catalog.table("app", "shared").unwrap().id;
    let segment = snapshot.cold.segments(shared)[0].id;
    assert_eq!(marked_after(&*snapshot.storage, segment, Seq(0)).unwrap().len(), 30);
    drop(snapshot);
    for (user, sql, name, expected) in
        [("ann", NOTES, "notes.token", NOTES_CHANGES), ("root", BULK, "bulk.token", BULK_CHANGES)]
    {
        let session = database.session_for(user).unwrap();
        let token = fs::read(folder.path().join(name)).unwrap();
        assert_eq!(resumed(&session, sql, token, expected.len()).await, expected, "{sql}");
    }

    // Old and new rows and segments together.
    for table in ["shared", "notes", "lines", "pairs", "types", "bulk"] {
        let table = format!("app.{table}");
        complete(&database, "FLUSH", &table).await;
        complete(&database, "COMPACT", &table).await;
    }
    assert_answers(&database).await;
    drop(root);
    database.shutdown().await.unwrap();
    drop(database);
    let (database, clock) = open(&data_dir, 8 << 20).await;
    assert_answers(&database).await;
    clock.advance(61_000_000);
    let root = database.session_for("root").unwrap();
    assert_eq!(rows(&root, "SELECT count(*) FROM app.events", ()).await, ["0"]);
    drop(root);
    database.shutdown().await.unwrap();
    drop(database);
    assert_eq!(check(&data_dir).await.unwrap().problems, Vec::<String>::new());
}

/// Waits until no manifest is due. Returns the newest one of a table.
async fn newest_manifest(database: &Database, table_folder: &Path) -> Value {
    let mut commits = database.context().committer.commits().watch();
    while !database.context().committer.snapshot().cold.unpublished().is_empty() {
        commits.changed().await.unwrap();
    }
    let mut files = objects(table_folder);
    files.retain(|path| path.extension().is_some_and(|end| end == "json"));
    files.sort_unstable();
    serde_json::from_slice(&fs::read(files.last().unwrap()).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn published_manifests_are_frozen() {
    let folder = tempfile::tempdir().unwrap();
    let (database, _) = open(folder.path(), 8 << 20).await;
    run_as(
        &database,
        "root",
        &[
            "CREATE NAMESPACE app",
            "CREATE USER TABLE app.notes (id BIGINT PRIMARY KEY, body TEXT)",
            "INSERT INTO app.notes SELECT value, 'x' FROM generate_series(1, 10)",
        ],
    )
    .await;
    flush(&database, "app.notes").await;
    run_as(
        &database,
        "root",
        &["DELETE FROM app.notes WHERE id = 1", "INSERT INTO app.notes VALUES (11, 'y')"],
    )
    .await;
    flush(&database, "app.notes").await;

    let manifest = newest_manifest(&database, &folder.path().join("segments").join("1000")).await;
    // Sizes and seqs depend on the moment.
    let number = |value: &Value| value.as_u64().unwrap();
    let segment = |place: usize, rows: u64, deleted_rows: u64, deletion_vector: Value| {
        let stored = &manifest["segments"][place];
        json!({
            "storage": "local",
            "path": format!("1000/00000001-{:08x}.parquet", place + 1),
            "rows": rows,
            "bytes": number(&stored["bytes"]),
            "schema_version": 1,
            "through_seq": number(&stored["through_seq"]),
            "commit_seq": null,
            "deleted_rows": deleted_rows,
            "deletion_vector": deletion_vector,
        })
    };
    let expected = json!({
        "format": 1,
        "database_id": database.id().to_string(),
        "epoch": 1,
        "seq": number(&manifest["seq"]),
        "commit_ts": START_US,
        "table_id": 1000,
        "namespace": "app",
        "table": "notes",
        "type": "user",
        "schema_version": 1,
        "flushed_seq": number(&manifest["flushed_seq"]),
        "columns": [
            { "id": 1, "name": "id", "type": "BIGINT" },
            { "id": 2, "name": "body", "type": "TEXT" },
        ],
        "layouts": [
            { "since_version": 1, "columns": [{ "id": 1, "type": "BIGINT" }, { "id": 2, "type": "TEXT" }] },
        ],
        "segments": [
            // Position 0, in Roaring's portable format.
            segment(0, 10, 1, json!("OjAAAAEAAAAAAAAAEAAAAAAA")),
            segment(1, 1, 0, Value::Null),
        ],
    });
    assert_eq!(manifest, expected);
    database.shutdown().await.unwrap();
}

/// Columns with initial values as a statement may give them. `initial-values.json` has the published ones;
/// `read_segments.py` is tested with it.
const INITIAL_VALUES: &[(&str, ColumnType, Option<&str>)] = &[
    ("b", ColumnType::Boolean, Some("t")),
    ("s", ColumnType::SmallInt, Some("-5")),
    ("i", ColumnType::Integer, Some(" 7 ")),
    ("l", ColumnType::BigInt, Some("9223372036854775807")),
    ("r", ColumnType::Real, Some("0.10")),
    ("d", ColumnType::Double, Some("-infinity")),
    ("n", ColumnType::Decimal { precision: 10, scale: 2 }, Some("0.5")),
    ("t", ColumnType::Text, Some("täxt")),
    ("v", ColumnType::Bytes, Some(r"a\\b")),
    ("j", ColumnType::Json, Some(r#"{"a": [1]}"#)),
    ("at", ColumnType::Timestamp, Some("2026-01-02 03:04:05.50")),
    ("atz", ColumnType::TimestampTz, Some("2026-01-02T03:04:05+02:00")),
    ("day", ColumnType::Date, Some("2026-01-02")),
    ("clock", ColumnType::Time, Some("03:04:05.500")),
    ("u", ColumnType::Uuid, Some("00112233-4455-6677-8899-AABBCCDDEEFF")),
    ("e", ColumnType::Embedding(2), Some("[1, 2.5]")),
    ("f", ColumnType::File, Some(r#"{"name": "x"}"#)),
    ("none", ColumnType::Text, None),
];

#[tokio::test(flavor = "multi_thread")]
async fn initial_values_are_published_in_one_form() {
    let folder = tempfile::tempdir().unwrap();
    let (database, _) = open(folder.path(), 8 << 20).await;
    let create = "CREATE TABLE app.t (id BIGINT PRIMARY KEY)";
    run_as(&database, "root", &["CREATE NAMESPACE app", create, "INSERT INTO app.t VALUES (1)"]).await;
    flush(&database, "app.t").await;
    let root = alter(&database, "t", |table| {
        for ((name, ty, initial), id) in INITIAL_VALUES.iter().zip(table.next_column_id.0..) {
            let mut added = ColumnDefinition::new(ColumnId(id), *name, *ty, true);
            added.initial = initial.map(str::to_owned);
            table.columns.push(added);
            table.next_column_id = ColumnId(id + 1);
        }
    })
    .await;
    run(&root, "INSERT INTO app.t (id) VALUES (2)").await;
    flush(&database, "app.t").await;
    let manifest = newest_manifest(&database, &folder.path().join("segments").join("1000")).await;
    let expected: Value = serde_json::from_str(include_str!("../fixtures/initial-values.json")).unwrap();
    assert_eq!(manifest["columns"], expected);
    let older = "true|-5|7|9223372036854775807|0.1|-inf|0.50|täxt|615c62|{\"a\": [1]}|2026-01-02T03:04:05.500\
                 |2026-01-02T01:04:05Z|2026-01-02|03:04:05.500|00112233445566778899aabbccddeeff|[1.0, 2.5]\
                 |{\"name\": \"x\"}|NULL";
    let newer = ["NULL"; 18].join("|");
    let columns = "b, s, i, l, r, d, n, t, v, j, at, atz, day, clock, u, e, f, none";
    for step in ["flushed", "COMPACT"] {
        if step == "COMPACT" {
            complete(&database, step, "app.t").await;
        }
        for (id, expected) in [(1, older), (2, newer.as_str())] {
            let sql = format!("SELECT {columns} FROM app.t WHERE id = {id}");
            assert_eq!(rows(&root, &sql, ()).await, [expected], "{step}");
        }
    }
    drop(root);
    database.shutdown().await.unwrap();
}
