//! A full disk: what is refused, what goes on, and that writes resume by themselves once there is room.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::Int64Type;
use futures::StreamExt;
use kalamdb_core::{
    Config, Database, FrameBody, Seq, Session, SubscribeRequest, SubscribeStart, Subscription,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::session::{fails, rows, run};

const MIB: u64 = 1 << 20;

/// An in-memory file system of 64 MiB.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    /// Mounts the file system; `None` if this process may not mount.
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64m", "tmpfs"])
            .arg(folder.path())
            .output()
            .is_ok_and(|output| output.status.success());
        if !mounted {
            println!("left out: this process may not mount a file system to fill");
        }
        mounted.then_some(Self { folder })
    }

    fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Writes a file that takes up room.
    fn ballast(&self, bytes: u64) -> PathBuf {
        let path = self.folder.path().join("ballast");
        fs::write(&path, vec![1; bytes as usize]).unwrap();
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.folder.path()).output();
    }
}

fn small(data_dir: &Path, disk_free_min_bytes: u64) -> Config {
    Config {
        disk_free_min_bytes,
        write_buffer_bytes: 1 << 20,
        block_cache_bytes: 4 << 20,
        flush_check_interval_ms: 3_600_000,
        root_password: Some("correct horse".to_owned()),
        ..Config::at(data_dir)
    }
}

async fn stat(root: &Session, name: &str) -> String {
    let sql = format!("SELECT metric_value FROM system.stats WHERE metric_name = '{name}'");
    rows(root, &sql, ()).await.remove(0)
}

/// Inserts incompressible rows of 50 kB, and notes which of them must exist.
struct Filler {
    random: StdRng,
    next: i64,
    acknowledged: BTreeMap<i64, String>,
    unknown: BTreeMap<i64, String>,
}

impl Filler {
    fn new() -> Self {
        let random = StdRng::seed_from_u64(1);
        Self { random, next: 0, acknowledged: BTreeMap::new(), unknown: BTreeMap::new() }
    }

    /// Inserts two rows in one statement. Returns the SQLSTATE when that fails.
    async fn insert(&mut self, session: &Session) -> Result<(), String> {
        let mut text = || -> String {
            (0..50_000)
                .map(|_| char::from(self.random.random_range(b'0'..=b'z')).to_string())
                .collect::<String>()
                .replace('\\', "/")
        };
        let new = [(self.next, text()), (self.next + 1, text())];
        self.next += 2;
        let values: Vec<_> = new.iter().map(|(id, text)| format!("({id}, '{text}')")).collect();
        match session.execute(&format!("INSERT INTO t VALUES {}", values.join(", ")), ()).await {
            Ok(_) => {
                self.acknowledged.extend(new);
                Ok(())
            }
            Err(error) => {
                if error.sqlstate().to_string() == "08007" {
                    self.unknown.extend(new);
                }
                Err(error.sqlstate().to_string())
            }
        }
    }

    /// Inserts until it fails.
    async fn until_refused(&mut self, session: &Session) -> String {
        loop {
            if let Err(state) = self.insert(session).await {
                return state;
            }
        }
    }

    /// Inserts until it succeeds: the database finds out by itself that there is room.
    async fn until_taken(&mut self, session: &Session) {
        let taken = async {
            while self.insert(session).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), taken).await.expect("writes go on within 10 s");
    }

    /// Checks that no acknowledged row is missing, and that a statement with an unknown outcome wrote both
    /// rows or none.
    async fn check(&self, session: &Session) {
        let mut found = BTreeMap::new();
        for line in rows(session, "SELECT id, v FROM t", ()).await {
            let (id, text) = line.split_once('|').unwrap();
            found.insert(id.parse::<i64>().unwrap(), text.to_owned());
        }
        for (id, text) in &self.acknowledged {
            assert!(found.remove(id).as_ref() == Some(text), "acknowledged row {id} is lost or another");
        }
        for (id, text) in &found {
            assert!(self.unknown.get(id) == Some(text), "row {id} was refused, but is there");
            assert!(found.contains_key(&(id ^ 1)), "half of the statement of row {id} is there");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn below_the_floor_nothing_grows_and_all_else_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::open(small(folder.path(), 0)).await.unwrap();
    let root = database.session_for("root").unwrap();
    for sql in [
        "CREATE TABLE t (id BIGINT PRIMARY KEY, v TEXT)",
        "CREATE TABLE other (id BIGINT PRIMARY KEY)",
        "INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')",
    ] {
        run(&root, sql).await;
    }
    let free: u64 = stat(&root, "disk_free_bytes").await.parse().unwrap();
    database.shutdown().await.unwrap();
    drop((root, database));

    // The free space is between half of the floor and the floor, even if others use this disk meanwhile.
    let database = Database::open(small(folder.path(), free / 2 * 3)).await.unwrap();
    let root = database.session_for("root").unwrap();
    for sql in
        ["INSERT INTO t VALUES (4, 'd')", "UPDATE t SET v = 'x'", "CREATE TABLE more (id BIGINT PRIMARY KEY)"]
    {
        let error = fails(&root, sql).await;
        assert_eq!(error.sqlstate().to_string(), "53100", "{sql}: {error}");
        assert!(error.to_string().contains("disk full") && error.hint_text().is_some(), "{error}");
    }
    assert_eq!(run(&root, "DELETE FROM t WHERE id = 1").await, 1);
    assert_eq!(rows(&root, "SELECT id FROM t ORDER BY id", ()).await, ["2", "3"]);
    assert_eq!(stat(&root, "storage_is_read_only").await, "true");
    let mut commits = database.context().committer.commits().watch();
    let job = rows(&root, "STORAGE FLUSH TABLE t", ()).await.remove(0);
    let job = job.split('|').next().unwrap();
    let status = format!("SELECT status, error_message FROM system.jobs WHERE job_id = '{job}'");
    while !rows(&root, &status, ()).await[0].starts_with("retrying|[53100] disk full") {
        commits.changed().await.unwrap();
    }
    database.shutdown().await.unwrap();
    drop((root, database));

    let database = Database::open(small(folder.path(), u64::MAX)).await.unwrap();
    let root = database.session_for("root").unwrap();
    assert_eq!(fails(&root, "DELETE FROM t WHERE id = 2").await.sqlstate().to_string(), "53100");
    run(&root, "DROP TABLE other").await;
    assert_eq!(rows(&root, "SELECT count(*) FROM t", ()).await, ["2"]);
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_until_there_is_room_again() {
    let Some(disk) = SmallDisk::mount() else { return };
    let ballast = disk.ballast(24 * MIB);
    let config = || small(&disk.data_dir(), 12 * MIB);
    let database = Database::open(config()).await.unwrap();
    let root = database.session_for("root").unwrap();
    run(&root, "CREATE TABLE t (id BIGINT PRIMARY KEY, v TEXT)").await;
    let mut filler = Filler::new();
    assert_eq!(filler.until_refused(&root).await, "53100");
    assert!(filler.acknowledged.len() > 20, "only {} rows fitted", filler.acknowledged.len());
    filler.check(&root).await;
    assert_eq!(stat(&root, "storage_reopenings").await, "0");

    fs::remove_file(ballast).unwrap();
    filler.until_taken(&root).await;
    filler.check(&root).await;
    database.shutdown().await.unwrap();
    drop((root, database));

    let database = Database::open(config()).await.unwrap();
    filler.check(&database.session_for("root").unwrap()).await;
    database.shutdown().await.unwrap();
}

/// A subscriber to the ids of `t`.
struct Follower {
    stream: Subscription,
    ids: Vec<i64>,
    through: Seq,
    token: Option<bytes::Bytes>,
}

impl Follower {
    async fn begin(session: &Session, start: SubscribeStart) -> Self {
        let request = SubscribeRequest {
            start,
            heartbeat: Duration::ZERO,
            ..SubscribeRequest::new("SELECT id FROM t")
        };
        let stream = session.subscribe(request).await.unwrap();
        Self { stream, ids: Vec::new(), through: Seq(0), token: None }
    }

    /// Reads until everything up to `seq` has arrived.
    async fn reach(&mut self, seq: Seq) {
        while self.through < seq {
            let next = tokio::time::timeout(Duration::from_secs(20), self.stream.next()).await;
            let frame = next.expect("a frame in time").expect("a frame").expect("no error");
            assert!(frame.complete_through >= self.through, "the frontier went back");
            self.through = frame.complete_through;
            if let Some(token) = &frame.resume_token {
                self.token = Some(token.clone());
            }
            match &frame.body {
                FrameBody::Snapshot(rows) | FrameBody::Delta(rows) => {
                    let batch = rows.batch().unwrap();
                    let ids = batch.column(2).as_primitive::<Int64Type>();
                    self.ids.extend(ids.values());
                }
                FrameBody::Reset { .. } | FrameBody::Closed { .. } => panic!("{frame:?}"),
                _ => {}
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_under_the_store_has_it_reopened() {
    let Some(disk) = SmallDisk::mount() else { return };
    let ballast = disk.ballast(32 * MIB);
    let config = || small(&disk.data_dir(), 0);
    let database = Database::open(config()).await.unwrap();
    let root = database.session_for("root").unwrap();
    run(&root, "CREATE TABLE t (id BIGINT PRIMARY KEY, v TEXT)").await;
    let mut follower = Follower::begin(&root, SubscribeStart::Now).await;
    let mut filler = Filler::new();
    filler.insert(&root).await.unwrap();
    follower.reach(database.seq()).await;
    let early = follower.token.clone().unwrap();

    assert_eq!(filler.until_refused(&root).await, "08007");
    filler.check(&root).await;
    assert_eq!(filler.insert(&root).await.unwrap_err(), "53100");
    assert_eq!(stat(&root, "storage_is_read_only").await, "true");

    fs::remove_file(ballast).unwrap();
    filler.until_taken(&root).await;
    assert_eq!(
        (stat(&root, "storage_reopenings").await, stat(&root, "epoch").await),
        ("1".into(), "2".into())
    );
    filler.check(&root).await;

    // Both the subscriber that stayed and the one that came back have every row once.
    let expected = rows(&root, "SELECT id FROM t ORDER BY id", ()).await;
    follower.reach(database.seq()).await;
    let mut resumed = Follower::begin(&root, SubscribeStart::Token(early)).await;
    resumed.ids = vec![0, 1];
    resumed.reach(database.seq()).await;
    for mut follower in [follower, resumed] {
        follower.ids.sort_unstable();
        assert_eq!(follower.ids.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
        let mut last = Follower::begin(&root, SubscribeStart::Token(follower.token.unwrap())).await;
        last.reach(database.seq()).await;
        assert!(last.ids.is_empty());
    }
    database.shutdown().await.unwrap();
    drop((root, database));

    let database = Database::open(config()).await.unwrap();
    filler.check(&database.session_for("root").unwrap()).await;
    database.shutdown().await.unwrap();
}
