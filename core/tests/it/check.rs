//! What `check` finds in a closed database, and that it changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use kalamdb_core::maintenance::{CheckReport, check};
use kalamdb_core::storage::{
    DataDirectory, Direction, KeyRange, Partition, RocksStorage, StorageBackend, StorageOptions,
    StorageSnapshot, WriteBatch, WriteOp,
};
use kalamdb_core::{Config, Database, ErrorKind, SqlState};

use crate::backup::{self, filled, objects};
use crate::session::{fails, run};

/// Returns every file of a folder with its bytes and its modification time.
fn files(folder: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let read = |path: PathBuf| {
        let changed = fs::metadata(&path).unwrap().modified().unwrap();
        (path.clone(), (fs::read(path).unwrap(), changed))
    };
    objects(folder).into_iter().map(read).collect()
}

/// Checks a database that must be sound.
async fn sound(data_dir: &Path) -> CheckReport {
    let report = check(data_dir).await.unwrap();
    assert_eq!(report.problems, Vec::<String>::new());
    assert!(report.is_sound());
    report
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_database_passes_and_is_left_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    let database = filled(&data_dir).await;
    let (id, seq) = (database.id(), database.seq());
    let in_use = check(&data_dir).await.unwrap_err();
    assert!(in_use.to_string().contains("in use by another process"), "{in_use}");
    database.shutdown().await.unwrap();
    drop(database);
    let before = files(&data_dir);
    let report = sound(&data_dir).await;
    assert!(files(&data_dir) == before, "a check changes nothing");
    assert_eq!(report.orphans, Vec::<String>::new());
    assert!((report.database, report.seq) == (id, seq) && report.epoch.0 == 1);
    let table = |name: &str| report.tables.iter().find(|table| table.name == name).unwrap().to_string();
    // Of 3000 rows 428 were deleted; 234 of the rest were changed and are hot again, besides 101 new ones.
    let shared = table("app.shared");
    assert!(
        shared.starts_with("app.shared: 335 rows hot, 2338 cold, 662 deleted, 1 segments of "),
        "{shared}"
    );
    let notes = table("app.notes");
    assert!(notes.starts_with("app.notes: 0 rows hot, 3500 cold, 1500 deleted, 1 segments of "), "{notes}");
    let lines = table("app.lines");
    assert!(lines.starts_with("app.lines: 1 rows hot, 1000 cold, 0 deleted, 1 segments of "), "{lines}");
    assert_eq!(table("app.events"), "app.events: 10 rows hot, 0 cold, 0 deleted, 0 segments of 0 bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_segments_is_found_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    let database = filled(&data_dir).await;
    database.shutdown().await.unwrap();
    drop(database);
    let segments = data_dir.join("segments");
    let files = backup::segments(&data_dir);
    assert_eq!(files.len(), 3);
    for file in &files {
        let name = file.strip_prefix(&segments).unwrap().display().to_string();
        let whole = fs::read(file).unwrap();
        for at in [0, whole.len() / 2, whole.len() - 1] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(file, &damaged).unwrap();
            let report = check(&data_dir).await.unwrap();
            assert_eq!(report.problems, [format!("segment \"{name}\" is damaged: a checksum differs")]);
        }
        fs::remove_file(file).unwrap();
        let report = check(&data_dir).await.unwrap();
        assert_eq!(report.problems, [format!("segment \"{name}\" is missing")]);
        fs::write(file, &whole).unwrap();
    }
    let orphan = files[0].with_file_name("00000009-00000099.parquet.new");
    fs::write(&orphan, b"left behind").unwrap();
    let report = sound(&data_dir).await;
    assert_eq!(report.orphans, [orphan.strip_prefix(&segments).unwrap().display().to_string()]);
    // An orphan is no problem: the next start removes it.
    Database::open(Config::at(&data_dir)).await.unwrap().shutdown().await.unwrap();
    fs::remove_dir_all(&segments).unwrap();
    assert_eq!(check(&data_dir).await.unwrap().problems.len(), 3);
    assert!(!segments.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_database_is_not_made_one() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().to_owned(), folder.path().join("missing")] {
        let error = check(&path).await.unwrap_err();
        assert_eq!((error.kind(), error.sqlstate()), (ErrorKind::NotFound, SqlState::UNDEFINED_OBJECT));
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_database_is_sound() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    let database = filled(&data_dir).await;
    let root = database.session_for("root").unwrap();
    fails(&root, "INSERT INTO app.shared VALUES (1, 'again')").await;
    run(&root, "DROP TABLE app.events").await;
    run(&root, "DROP USER 'bob'").await;
    crate::backup::backed_up(&database, &folder.path().join("backup")).await;
    database.shutdown().await.unwrap();
    let copy =
        crate::backup::restored(&folder.path().join("backup"), &folder.path().join("copy")).await.unwrap();
    copy.shutdown().await.unwrap();
    drop(copy);
    let report = sound(&folder.path().join("copy")).await;
    assert!(report.tables.iter().any(|table| table.name == "app.shared" && table.cold == 2338));
}

type Entry = (Box<[u8]>, Box<[u8]>);

/// Returns the entries of a partition whose keys begin with `prefix`.
fn entries(store: &dyn StorageSnapshot, partition: Partition, prefix: &[u8]) -> Vec<Entry> {
    store.scan(partition, KeyRange::prefix(prefix), Direction::Forward).map(Result::unwrap).collect()
}

/// Changes the store of a closed database. Returns the batch that undoes the change.
fn change(data_dir: &Path, make: impl FnOnce(&dyn StorageSnapshot, &mut WriteBatch)) -> WriteBatch {
    let directory = Arc::new(DataDirectory::open(data_dir).unwrap());
    let store = RocksStorage::open(directory, StorageOptions::default()).unwrap();
    let before = store.snapshot();
    let (mut batch, mut undo) = (WriteBatch::new(), WriteBatch::new());
    make(&*before, &mut batch);
    for op in batch.ops() {
        let (WriteOp::Put { partition, key, .. } | WriteOp::Delete { partition, key }) = op else {
            panic!("only single keys are changed");
        };
        match before.get(*partition, key).unwrap() {
            Some(value) => undo.put(*partition, key.clone(), value),
            None => undo.delete(*partition, key.clone()),
        }
    }
    assert!(!batch.is_empty());
    store.write(batch, true).unwrap();
    undo
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_in_the_store_is_found() {
    use Partition::{Cold, Log, Meta, Rows};
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    let database = filled(&data_dir).await;
    let table = database.context().committer.snapshot().catalog.table("app", "shared").unwrap().id;
    let table = table.0.to_be_bytes();
    database.shutdown().await.unwrap();
    drop(database);
    type Change = Box<dyn FnOnce(&dyn StorageSnapshot, &mut WriteBatch)>;
    let changes: Vec<(Change, &str)> = vec![
        (Box::new(|_, batch| batch.put(Meta, "more", "x")), "partition \"meta\" has 1 unknown keys"),
        (Box::new(|_, batch| batch.put(Cold, "Zmore", "x")), "partition \"cold\" has 1 unknown keys"),
        (
            Box::new(|store, batch| batch.delete(Cold, entries(store, Cold, b"K")[0].0.clone())),
            "has no key filter",
        ),
        (
            Box::new(|store, batch| {
                let (key, value) = entries(store, Cold, b"K").remove(0);
                batch.put(Cold, key, vec![0; value.len()]);
            }),
            "its key filter lacks a key",
        ),
        (
            Box::new(|store, batch| {
                let marks = entries(store, Cold, b"M");
                marks.into_iter().for_each(|(key, _)| batch.delete(Cold, key));
            }),
            "table \"app.shared\" has a row twice: ",
        ),
        (
            Box::new(|store, batch| {
                let (key, value) = entries(store, Cold, b"M").remove(0);
                batch.put(Cold, [&key[..5], &[0xff; 4]].concat(), value);
            }),
            "lacks a row that is marked as deleted",
        ),
        (
            Box::new(|store, batch| {
                let headers = entries(store, Log, b"H");
                batch.delete(Log, headers[headers.len() / 2].0.clone());
            }),
            "the change log has no commit ",
        ),
        (
            Box::new(|store, batch| batch.delete(Log, entries(store, Log, b"C")[3].0.clone())),
            " of the change log: an entry of the change log is damaged",
        ),
        (
            Box::new(move |store, batch| {
                let (key, value) = entries(store, Rows, &table).remove(7);
                batch.put(Rows, key, value[..value.len() - 1].to_vec());
            }),
            "stored rows of table \"app.shared\": a stored row is damaged",
        ),
        (
            Box::new(move |store, batch| {
                let stored = entries(store, Rows, &table);
                batch.put(Rows, stored[7].0.clone(), stored[8].1.clone());
            }),
            "stored rows of table \"app.shared\": a row is stored under the key of another",
        ),
        (
            Box::new(|_, batch| batch.put(Rows, [&999_999_u32.to_be_bytes()[..], &[0; 20]].concat(), "x")),
            "there are rows of table 999999, which does not exist",
        ),
    ];
    for (make, says) in changes {
        let undo = change(&data_dir, make);
        let problems = match check(&data_dir).await {
            Ok(report) => report.problems,
            Err(error) => vec![error.to_string()],
        };
        assert!(problems.iter().any(|problem| problem.contains(says)), "{says}: {problems:?}");
        change(&data_dir, |_, batch| batch.extend(undo));
    }
    sound(&data_dir).await;
}
