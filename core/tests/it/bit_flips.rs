//! Flips one bit anywhere in a data directory: the database refuses, or reads what was written; never other
//! or fewer rows.
//!
//! `KALAMDB_SEED` and `KALAMDB_CASES` choose the bits; a failure names its seed and bit.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use kalamdb_core::{
    Config, Database, Error, ErrorKind, FrameBody, Session, SubscribeRequest, SubscribeStart,
};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::cold::flush;
use crate::live::setting;
use crate::session::{run, text};

/// The queries, each with its user.
const QUERIES: [(&str, &str); 9] = [
    ("root", "SELECT *, _seq FROM hot ORDER BY id"),
    ("root", "SELECT * FROM hot WHERE id = 77"),
    ("root", "SELECT count(*) FROM hot"),
    ("root", "SELECT *, _seq FROM mixed ORDER BY id"),
    ("root", "SELECT * FROM mixed WHERE id IN (1, 2, 700, 1999)"),
    ("ann", "SELECT *, _seq FROM own ORDER BY id"),
    ("root", "SELECT username, role FROM system.users ORDER BY username"),
    ("root", "SELECT table_name FROM system.tables ORDER BY table_name"),
    ("root", "SELECT audit_id, action FROM system.audit_logs ORDER BY audit_id"),
];

fn config(path: &Path) -> Config {
    Config {
        write_buffer_bytes: 64 << 10,
        block_cache_bytes: 4 << 20,
        flush_check_interval_ms: 3_600_000,
        trim_interval_ms: 3_600_000,
        disk_free_min_bytes: 0,
        root_password: Some("correct horse".to_owned()),
        ..Config::at(path)
    }
}

/// Writes rows that end in files of the store, in its log, and in segments with deletion marks.
async fn build(path: &Path) {
    let database = Database::open(config(path)).await.unwrap();
    let root = database.session_for("root").unwrap();
    for sql in [
        "CREATE TABLE hot (id BIGINT PRIMARY KEY, v TEXT)",
        "CREATE TABLE mixed (id BIGINT PRIMARY KEY, v TEXT)",
        "CREATE USER TABLE own (id BIGINT PRIMARY KEY, v TEXT)",
        "CREATE USER 'ann' WITH PASSWORD 'a password'",
    ] {
        run(&root, sql).await;
    }
    let ann = database.session_for("ann").unwrap();
    run(
        &root,
        "INSERT INTO mixed SELECT value, 'm' || CAST(value * 7919 AS TEXT) FROM generate_series(1, 2000)",
    )
    .await;
    run(&ann, "INSERT INTO own SELECT value, 'o' || CAST(value * 31 AS TEXT) FROM generate_series(1, 1000)")
        .await;
    for table in ["mixed", "own"] {
        flush(&database, table).await;
    }
    run(&root, "DELETE FROM mixed WHERE id % 10 = 0").await;
    run(&root, "UPDATE mixed SET v = 'again' WHERE id % 11 = 0").await;
    for part in 0..8 {
        let sql = format!(
            "INSERT INTO hot SELECT value, 'h' || CAST(value * 104729 AS TEXT) FROM generate_series({}, {})",
            part * 500 + 1,
            part * 500 + 500
        );
        run(&root, &sql).await;
    }
    database.shutdown().await.unwrap();
    drop((root, ann, database));
    // Rows written from here on are only in the log.
    let database = Database::open(config(path)).await.unwrap();
    let root = database.session_for("root").unwrap();
    for id in 10_001..10_020 {
        run(&root, &format!("INSERT INTO hot VALUES ({id}, 'late')")).await;
    }
    run(&root, "UPDATE mixed SET v = 'late' WHERE id = 7").await;
    database.shutdown().await.unwrap();
}

type Answers = BTreeMap<String, Vec<String>>;

async fn query(session: &Session, sql: &str) -> Result<Vec<String>, Error> {
    Ok(text(&session.execute(sql, ()).await?.rows()?.collect().await?))
}

/// Returns every answer, or how the query failed.
async fn read(database: &Database) -> Result<BTreeMap<String, Result<Vec<String>, Error>>, Error> {
    let mut answers = BTreeMap::new();
    for (user, sql) in QUERIES {
        answers.insert(sql.to_owned(), query(&database.session_for(user)?, sql).await);
    }
    answers.insert("changes".to_owned(), changes(database).await);
    Ok(answers)
}

/// Returns the changes of `hot` in the change log.
async fn changes(database: &Database) -> Result<Vec<String>, Error> {
    let request = SubscribeRequest {
        start: SubscribeStart::AfterSeq(kalamdb_core::Seq(1)),
        up_to_seq: Some(database.seq()),
        ..SubscribeRequest::new("SELECT id, v FROM hot")
    };
    let mut stream = database.session_for("root")?.subscribe(request).await?;
    let mut changes = Vec::new();
    while let Some(frame) = stream.next().await {
        if let FrameBody::Delta(rows) = &frame?.body {
            changes.extend(text(&[rows.batch().unwrap()]));
        }
    }
    Ok(changes)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else if fs::metadata(&path).unwrap().len() > 0 {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let place = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &place),
            false => fs::copy(&path, &place).map(|_| ()).unwrap(),
        }
    }
}

/// Opens a damaged copy and reads everything. Returns how many answers were refused.
async fn check(path: &Path, expected: &Answers) -> Result<usize, String> {
    let clear = |what: &str, error: &Error| match error.kind() {
        ErrorKind::Corruption | ErrorKind::Unavailable => Ok(()),
        _ => Err(format!("{what}: {error:?}")),
    };
    let database = match Database::open(config(path)).await {
        Ok(database) => database,
        Err(error) => return clear("open", &error).map(|()| expected.len()),
    };
    let answers = match read(&database).await {
        Ok(answers) => answers,
        Err(error) => return clear("read", &error).map(|()| expected.len()),
    };
    let mut refused = 0;
    for (sql, answer) in answers {
        match answer {
            Err(error) => {
                clear(&sql, &error)?;
                refused += 1;
            }
            Ok(rows) if Some(&rows) == expected.get(&sql) => {}
            Ok(rows) => {
                let wanted = expected.get(&sql).map_or(0, Vec::len);
                return Err(format!("{sql}: other rows, {} of {wanted}", rows.len()));
            }
        }
    }
    // Background work may also hit the damage; its outcome does not matter here.
    let _ = database.shutdown().await;
    Ok(refused)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_is_refused_or_makes_no_difference() {
    let seed = setting("KALAMDB_SEED", rand::rng().random());
    let cases = setting("KALAMDB_CASES", 200);
    println!("seed {seed} (KALAMDB_SEED), {cases} bits (KALAMDB_CASES)");
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    build(&whole).await;
    let expected = {
        let copied = folder.path().join("read");
        copy(&whole, &copied);
        let database = Database::open(config(&copied)).await.unwrap();
        let answers = read(&database).await.unwrap();
        database.shutdown().await.unwrap();
        answers.into_iter().map(|(sql, rows)| (sql, rows.unwrap())).collect::<Answers>()
    };
    assert_eq!(expected["SELECT count(*) FROM hot"], ["4019"]);
    assert!(expected["changes"].len() >= 4019);

    let files = files(&whole);
    let mut refused = BTreeMap::<String, (usize, usize)>::new();
    for case in 0..cases {
        let mut random = StdRng::seed_from_u64(seed.wrapping_add(case));
        let file = files.choose(&mut random).unwrap().strip_prefix(&whole).unwrap();
        let damaged = folder.path().join(format!("case-{case}"));
        copy(&whole, &damaged);
        let mut bytes = fs::read(damaged.join(file)).unwrap();
        // Half of the time choose the file's end: a damaged tail can pass for one that was never written.
        let from = if random.random_bool(0.5) { bytes.len().saturating_sub(256) } else { 0 };
        let (at, bit) = (random.random_range(from..bytes.len()), random.random_range(0..8));
        bytes[at] ^= 1 << bit;
        fs::write(damaged.join(file), bytes).unwrap();
        let outcome = tokio::time::timeout(Duration::from_secs(60), check(&damaged, &expected)).await;
        let outcome = outcome.unwrap_or_else(|_| Err("it hangs".to_owned()));
        let name = file.display();
        let found = outcome.unwrap_or_else(|why| {
            panic!("seed {seed}, case {case}: bit {bit} of byte {at} of {name}: {why}")
        });
        let kind =
            file.extension().map_or_else(|| name.to_string(), |end| end.to_string_lossy().into_owned());
        let (refusals, flips) = refused.entry(kind).or_default();
        *refusals += usize::from(found > 0);
        *flips += 1;
        fs::remove_dir_all(&damaged).unwrap();
    }
    for (kind, (refusals, flips)) in refused {
        println!("{kind}: {refusals} of {flips} flips refused something");
    }
}
