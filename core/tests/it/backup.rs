//! Backups of a database during writes, and restoring them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use kalamdb_core::ids::JobId;
use kalamdb_core::maintenance::{self, BackupUrl, restore};
use kalamdb_core::{
    Config, Database, Error, ErrorKind, FrameBody, ResetReason, Session, SqlState, SubscribeRequest,
    SubscribeStart,
};
use tokio_util::sync::CancellationToken;

use crate::session::{fails, rows, run};

fn url_of(folder: &Path) -> String {
    format!("file://{}", folder.display())
}

async fn lines(session: &Session, sql: &str) -> Vec<String> {
    rows(session, sql, ()).await
}

/// Backs up. Returns the job's status and its result or error.
async fn back_up(database: &Database, folder: &Path) -> String {
    let root = database.session_for("root").unwrap();
    let begun = lines(&root, &format!("BACKUP DATABASE TO '{}'", url_of(folder))).await;
    let (job, url) = begun[0].split_once('|').unwrap();
    assert!(begun.len() == 1 && job.starts_with("BK-") && url == url_of(folder), "{begun:?}");
    database.context().jobs.wait(&JobId(job.to_owned())).await;
    let outcome =
        format!("SELECT status, COALESCE(result, error_message) FROM system.jobs WHERE job_id = '{job}'");
    lines(&root, &outcome).await.remove(0)
}

/// Backs up. Returns the seq of the backup.
pub(crate) async fn backed_up(database: &Database, folder: &Path) -> u64 {
    let outcome = back_up(database, folder).await;
    assert!(outcome.starts_with("completed|wrote "), "{outcome}");
    outcome.rsplit_once(' ').unwrap().1.parse().unwrap()
}

pub(crate) async fn restored(from: &Path, data_dir: &Path) -> Result<Database, Error> {
    restore(&BackupUrl::parse(&url_of(from)).unwrap(), data_dir).await?;
    Database::open(Config::at(data_dir)).await
}

async fn flush(root: &Session, database: &Database, table: &str) {
    let job = lines(root, &format!("FLUSH TABLE {table}")).await;
    database.context().jobs.wait(&JobId(job[0].split('|').next().unwrap().to_owned())).await;
}

/// Lists all objects of a backup.
pub(crate) fn objects(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(objects(&path)) } else { found.push(path) }
    }
    found
}

/// Lists the segments in the folder of a data directory.
pub(crate) fn segments(data_dir: &Path) -> Vec<PathBuf> {
    let folder = data_dir.join("segments");
    if !folder.exists() {
        return Vec::new();
    }
    objects(&folder).into_iter().filter(|path| path.extension().is_some_and(|end| end == "parquet")).collect()
}

/// Creates a database with hot, cold, changed and deleted rows in every kind of table.
pub(crate) async fn filled(data_dir: &Path) -> Database {
    let database = Database::open(Config::at(data_dir)).await.unwrap();
    let root = database.session_for("root").unwrap();
    run(&root, "CREATE NAMESPACE app").await;
    run(&root, "CREATE TABLE app.shared (id BIGINT PRIMARY KEY, v TEXT)").await;
    run(&root, "CREATE USER TABLE app.notes (id BIGINT PRIMARY KEY, body TEXT)").await;
    run(&root, "CREATE USER TABLE app.lines (body TEXT)").await;
    run(&root, "CREATE STREAM TABLE app.events (id BIGINT PRIMARY KEY) WITH (TTL_SECONDS = 100000)").await;
    run(&root, "INSERT INTO app.shared SELECT value, 'cold' FROM generate_series(1, 3000)").await;
    run(&root, "INSERT INTO app.events SELECT value FROM generate_series(1, 10)").await;
    for name in ["ann", "bob"] {
        run(&root, &format!("CREATE USER '{name}' WITH PASSWORD 'password of {name}'")).await;
        let user = database.session_for(name).unwrap();
        run(&user, &format!("INSERT INTO app.notes SELECT value, '{name}' FROM generate_series(1, 2500)"))
            .await;
        run(&user, &format!("INSERT INTO app.lines SELECT '{name}' FROM generate_series(1, 500)")).await;
    }
    for table in ["app.shared", "app.notes", "app.lines"] {
        flush(&root, &database, table).await;
    }
    let ann = database.session_for("ann").unwrap();
    run(&root, "DELETE FROM app.shared WHERE id % 7 = 0").await;
    run(&root, "UPDATE app.shared SET v = 'hot again' WHERE id % 11 = 0").await;
    run(&root, "INSERT INTO app.shared SELECT value, 'hot' FROM generate_series(5000, 5100)").await;
    run(&ann, "DELETE FROM app.notes WHERE id > 1000").await;
    run(&ann, "INSERT INTO app.lines VALUES ('hot')").await;
    database
}

/// Returns the contents of `filled`, as its users see them.
async fn contents(database: &Database) -> Vec<Vec<String>> {
    let mut seen = Vec::new();
    for name in ["root", "ann", "bob"] {
        let session = database.session_for(name).unwrap();
        for (table, order) in [("notes", "id"), ("lines", "body, _seq")] {
            seen.push(lines(&session, &format!("SELECT *, _seq FROM app.{table} ORDER BY {order}")).await);
        }
    }
    let root = database.session_for("root").unwrap();
    seen.push(lines(&root, "SELECT *, _seq FROM app.shared ORDER BY id").await);
    seen.push(lines(&root, "SELECT *, _seq FROM app.events ORDER BY id").await);
    seen.push(lines(&root, "SELECT user_id, username, role FROM system.users ORDER BY user_id").await);
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_load_has_the_rows_of_its_seq() {
    let folder = tempfile::tempdir().unwrap();
    let database = filled(&folder.path().join("data")).await;
    let root = database.session_for("root").unwrap();
    run(&root, "CREATE TABLE app.w (id BIGINT PRIMARY KEY, half BIGINT)").await;
    let before = contents(&database).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for writer in 0..3_i64 {
        let (session, stop) = (database.session_for("root").unwrap(), Arc::clone(&stop));
        writers.push(tokio::spawn(async move {
            let mut next = writer * 1_000_000;
            while !stop.load(Ordering::Relaxed) {
                run(&session, &format!("INSERT INTO app.w VALUES ({next}, 0), ({}, 1)", next + 1)).await;
                next += 2;
            }
        }));
    }
    let flushing = {
        let (database, root, stop) = (database.clone(), root.clone(), Arc::clone(&stop));
        tokio::spawn(async move {
            let mut flushes = 0;
            while !stop.load(Ordering::Relaxed) || flushes < 2 {
                flush(&root, &database, "app.w").await;
                flushes += 1;
            }
        })
    };
    let mut seqs = Vec::new();
    for backup in 0..3 {
        seqs.push(backed_up(&database, &folder.path().join(format!("backup-{backup}"))).await);
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    flushing.await.unwrap();
    assert!(seqs.is_sorted_by(|one, next| one < next), "{seqs:?}");
    for (backup, seq) in seqs.into_iter().enumerate() {
        let data_dir = folder.path().join(format!("restored-{backup}"));
        let copy = restored(&folder.path().join(format!("backup-{backup}")), &data_dir).await.unwrap();
        assert_eq!(contents(&copy).await, before);
        let session = copy.session_for("root").unwrap();
        let of_seq =
            lines(&root, &format!("SELECT *, _seq FROM app.w WHERE _seq <= {seq} ORDER BY id")).await;
        assert!(!of_seq.is_empty());
        assert_eq!(lines(&session, "SELECT *, _seq FROM app.w ORDER BY id").await, of_seq);
        run(&session, "INSERT INTO app.w VALUES (-1, 0)").await;
        assert!(copy.seq().0 > seq);
        flush(&session, &copy, "app.w").await;
        let all = lines(&session, "SELECT count(*), min(id) FROM app.w").await;
        assert_eq!(all, [format!("{}|-1", of_seq.len() + 1)]);
        copy.shutdown().await.unwrap();
    }
    database.shutdown().await.unwrap();
}

/// Returns the last resume token of a query's snapshot.
async fn token_of(session: &Session, sql: &str) -> Bytes {
    let mut stream = session.subscribe(SubscribeRequest::new(sql)).await.unwrap();
    loop {
        let frame = stream.next().await.unwrap().unwrap();
        if matches!(frame.body, FrameBody::SnapshotEnd) {
            return frame.resume_token.clone().unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_database_is_another_one_with_the_same_users() {
    let folder = tempfile::tempdir().unwrap();
    let database = filled(&folder.path().join("data")).await;
    let sql = "SELECT id FROM app.shared WHERE id < 10";
    let token = token_of(&database.session_for("root").unwrap(), sql).await;
    backed_up(&database, &folder.path().join("backup")).await;
    let (id, secret) = (database.id(), *database.secret());
    database.shutdown().await.unwrap();

    let copy = restored(&folder.path().join("backup"), &folder.path().join("copy")).await.unwrap();
    assert_ne!(copy.id(), id);
    assert_ne!(*copy.secret(), secret);
    assert!(copy.authenticate("ann", "password of ann").await.is_ok());
    assert!(copy.authenticate("ann", "password of bob").await.is_err());
    let root = copy.session_for("root").unwrap();
    let request = SubscribeRequest { start: SubscribeStart::Token(token), ..SubscribeRequest::new(sql) };
    let mut stream = root.subscribe(request).await.unwrap();
    let reason = loop {
        match &stream.next().await.unwrap().unwrap().body {
            FrameBody::Started { resumed: false, .. } => {}
            FrameBody::Reset { reason, .. } => break *reason,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(reason, ResetReason::Server);
    let backups = "SELECT action, target FROM system.audit_logs WHERE action LIKE 'BACKUP%'";
    assert_eq!(
        lines(&root, backups).await,
        [format!("BACKUP DATABASE|{}", url_of(&folder.path().join("backup")))]
    );
    // The backup contains the row of its own job, still running.
    let jobs = "SELECT status, error_message FROM system.jobs WHERE job_type = 'backup'";
    assert_eq!(lines(&root, jobs).await, ["failed|server restarted"]);
    copy.shutdown().await.unwrap();
    drop((stream, root, copy));
    // It opens again, in a new epoch.
    Database::open(Config::at(folder.path().join("copy"))).await.unwrap().shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_missing_or_too_much_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (backup, data_dir) = (folder.path().join("backup"), folder.path().join("restored"));
    let database = filled(&folder.path().join("data")).await;
    backed_up(&database, &backup).await;
    database.shutdown().await.unwrap();
    let refused = async |names: &str| {
        let error = restored(&backup, &data_dir).await.unwrap_err();
        assert!(error.to_string().contains(names), "{names}: {error}");
        assert!(!data_dir.exists() || fs::read_dir(&data_dir).unwrap().next().is_none(), "{names}");
        error
    };
    let objects = objects(&backup);
    assert!(objects.len() >= 8, "{objects:?}");
    for object in &objects {
        let name = object.strip_prefix(&backup).unwrap().to_str().unwrap();
        let whole = fs::read(object).unwrap();
        let mut damaged = whole.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 1;
        fs::write(object, &damaged).unwrap();
        if name != "manifest.json" {
            assert_eq!(refused(name).await.kind(), ErrorKind::Corruption);
            fs::write(object, &whole[..whole.len() - 1]).unwrap();
            assert_eq!(refused(name).await.kind(), ErrorKind::Corruption);
            fs::remove_file(object).unwrap();
            assert_eq!(refused(name).await.kind(), ErrorKind::Corruption);
        } else {
            fs::remove_file(object).unwrap();
            assert_eq!(refused("there is no backup at").await.sqlstate(), SqlState::UNDEFINED_OBJECT);
            let newer = String::from_utf8(whole.clone()).unwrap().replace("\"format\": 1", "\"format\": 2");
            fs::write(object, newer).unwrap();
            assert_eq!(refused("has format 2").await.sqlstate(), SqlState::OBJECT_NOT_IN_STATE);
            let other =
                String::from_utf8(whole.clone()).unwrap().replace("\"commit_ts\": 1", "\"commit_ts\": 2");
            fs::write(object, other).unwrap();
            assert_eq!(refused("manifest.json").await.kind(), ErrorKind::Corruption);
        }
        fs::write(object, whole).unwrap();
    }
    let extra = backup.join("store").join("more");
    fs::write(&extra, b"x").unwrap();
    assert_eq!(refused("store/more").await.kind(), ErrorKind::Corruption);
    fs::remove_file(extra).unwrap();
    let copy = restored(&backup, &data_dir).await.unwrap();
    copy.shutdown().await.unwrap();
    let error = restored(&backup, &data_dir).await.unwrap_err();
    assert!(error.to_string().contains("is not empty"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_writes_nothing_over_and_takes_back_what_it_cannot_end() {
    let folder = tempfile::tempdir().unwrap();
    let database = filled(&folder.path().join("data")).await;
    let root = database.session_for("root").unwrap();
    let place = |name: &str| folder.path().join(name);
    backed_up(&database, &place("one")).await;
    let whole = objects(&place("one")).len();
    let refused = back_up(&database, &place("one")).await;
    assert!(refused.starts_with("failed|[42710] a backup already exists at "), "{refused}");
    assert_eq!(objects(&place("one")).len(), whole);
    fs::create_dir(place("other")).unwrap();
    fs::write(place("other").join("file"), b"x").unwrap();
    let refused = back_up(&database, &place("other")).await;
    assert!(refused.starts_with("failed|[42710] there are other objects at "), "{refused}");
    assert_eq!(objects(&place("other")), [place("other").join("file")]);
    fs::create_dir(place("begun")).unwrap();
    fs::write(place("begun").join("BACKUP"), b"of another job").unwrap();
    let refused = back_up(&database, &place("begun")).await;
    assert!(refused.starts_with("failed|[42710] an unfinished backup exists at "), "{refused}");

    // A damaged segment is not backed up.
    let segment = segments(&place("data")).remove(0);
    let bytes = fs::read(&segment).unwrap();
    let mut damaged = bytes.clone();
    damaged[bytes.len() / 2] ^= 1;
    fs::write(&segment, damaged).unwrap();
    let refused = back_up(&database, &place("two")).await;
    let name = segment.strip_prefix(place("data").join("segments")).unwrap();
    assert!(
        refused.starts_with(&format!("failed|[XX001] segment \"{}\" is damaged", name.display())),
        "{refused}"
    );
    assert_eq!(objects(&place("two")), Vec::<PathBuf>::new());
    fs::write(&segment, bytes).unwrap();
    backed_up(&database, &place("two")).await;

    let ann = database.session_for("ann").unwrap();
    let denied = fails(&ann, &format!("BACKUP DATABASE TO '{}'", url_of(&place("three")))).await;
    assert_eq!(denied.sqlstate(), SqlState::INSUFFICIENT_PRIVILEGE);
    let denied = "SELECT actor_username FROM system.audit_logs WHERE action = 'BACKUP DATABASE DENIED'";
    assert_eq!(lines(&root, denied).await, ["ann"]);
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_ended_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    // Hot rows are far larger than a segment of them.
    let config = Config { large_insert_bytes: 0, ..Config::at(folder.path().join("data")) };
    let database = Database::open(config).await.unwrap();
    let root = database.session_for("root").unwrap();
    run(&root, "CREATE TABLE t (id BIGINT PRIMARY KEY, v TEXT)").await;
    run(&root, "INSERT INTO t SELECT value, repeat('x', 10000) FROM generate_series(1, 4000)").await;
    let place = folder.path().join("backup");
    let url = BackupUrl::parse(&url_of(&place)).unwrap();
    let committer = &database.context().committer;
    let job = JobId("BK-000000000000".to_owned());
    let back_up = async |stop: &CancellationToken| maintenance::back_up(committer, &url, &job, stop).await;
    let stop = CancellationToken::new();
    stop.cancel();
    assert_eq!(back_up(&stop).await.unwrap_err().sqlstate(), SqlState::QUERY_CANCELED);
    assert_eq!(objects(&place), Vec::<PathBuf>::new());
    // Cancel once the first object exists. A backup that ends before it notices is complete.
    let stop = CancellationToken::new();
    let watching = tokio::task::spawn_blocking({
        let (stop, first) = (stop.clone(), place.join("BACKUP"));
        move || {
            while !first.exists() {
                std::thread::yield_now();
            }
            stop.cancel();
        }
    });
    match back_up(&stop).await {
        Ok(_) => assert!(place.join("manifest.json").exists()),
        Err(error) => {
            assert_eq!(error.sqlstate(), SqlState::QUERY_CANCELED);
            assert_eq!(objects(&place), Vec::<PathBuf>::new());
            // Leftovers of an earlier attempt do not block the next attempt of the same job.
            fs::write(place.join("BACKUP"), format!("kalamdb backup\njob {job}\n")).unwrap();
            fs::create_dir_all(place.join("store")).unwrap();
            fs::write(place.join("store").join("00000007.zst"), b"left").unwrap();
            back_up(&CancellationToken::new()).await.unwrap();
        }
    }
    watching.await.unwrap();
    drop(root);
    database.shutdown().await.unwrap();
    restored(&place, &folder.path().join("copy")).await.unwrap().shutdown().await.unwrap();
}
