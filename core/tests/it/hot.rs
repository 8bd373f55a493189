//! Hot rows cached as columns: scans return the same rows with the cache and without it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::concat_batches;
use datafusion::prelude::{SessionConfig, SessionContext};
use kalamdb_core::clock::ManualClock;
use kalamdb_core::commit::Snapshot;
use kalamdb_core::hot_tier::{HotChunks, HotCounters, HotOptions};
use kalamdb_core::ids::{JobId, ScopeId};
use kalamdb_core::tables::{KalamTable, RowSchema};
use kalamdb_core::{Config, Database, Session};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::session::run;

async fn rows(session: &Session, sql: &str) -> Vec<String> {
    crate::session::rows(session, sql, ()).await
}

fn counters(database: &Database) -> HotCounters {
    database.context().committer.snapshot().hot.counters()
}

async fn database(config: Config) -> (Database, Session) {
    let database = Database::open(config).await.unwrap();
    let root = database.session_for("root").unwrap();
    run(&root, "CREATE NAMESPACE app").await;
    (database, root)
}

async fn flush(database: &Database, root: &Session, table: &str) {
    let job = rows(root, &format!("STORAGE FLUSH TABLE {table}")).await;
    let job = JobId(job.first().unwrap().split('|').next().unwrap().to_owned());
    database.context().jobs.wait(&job).await;
}

/// Returns the rows of `app.t` in a snapshot. `sql` orders them.
async fn select(database: &Database, snapshot: &Arc<Snapshot>, sql: &str) -> RecordBatch {
    let definition = snapshot.catalog.table("app", "t").unwrap();
    let schemas = database.context().schema_registry.schemas(definition);
    let table = KalamTable::stored(Arc::clone(snapshot), schemas, RowSchema::Full, ScopeId::SHARED, i64::MIN);
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2));
    context.register_table("t", Arc::new(table)).unwrap();
    snapshot.cold.store().register(&context.runtime_env());
    let frame = context.sql(sql).await.unwrap();
    let schema = Arc::new(frame.schema().as_arrow().clone());
    let batches = frame.collect().await.unwrap();
    let batches: Vec<RecordBatch> = batches
        .into_iter()
        .map(|batch| RecordBatch::try_new(Arc::clone(&schema), batch.columns().to_vec()).unwrap())
        .collect();
    concat_batches(&schema, &batches).unwrap()
}

/// Compares a scan of a snapshot with one that reads everything from the store.
async fn compare(database: &Database, snapshot: &Arc<Snapshot>, sql: &str) {
    let direct = Arc::new(Snapshot {
        seq: snapshot.seq,
        commit_ts: snapshot.commit_ts,
        epoch: snapshot.epoch,
        catalog: Arc::clone(&snapshot.catalog),
        storage: Arc::clone(&snapshot.storage),
        hot: Arc::new(HotChunks::new(HotOptions::of_bytes(0), snapshot.seq)),
        cold: Arc::clone(&snapshot.cold),
        log_floor: snapshot.log_floor,
    });
    let found = select(database, snapshot, sql).await;
    assert_eq!(found, select(database, &direct, sql).await, "{sql} at {}", snapshot.seq);
}

/// Generates a scan of everything, of some columns, or of a range of keys.
fn query(random: &mut StdRng) -> String {
    let columns = ["id, a, b, _seq", "id, b", "id", "a, id"][random.random_range(0..4)];
    let low = random.random_range(0..30_000);
    let range = match random.random_range(0..4) {
        0 => format!("WHERE id >= {low}"),
        1 => format!("WHERE id BETWEEN {low} AND {}", low + random.random_range(0..20_000)),
        _ => String::new(),
    };
    format!("SELECT {columns} FROM t {range} ORDER BY id")
}

fn change(random: &mut StdRng, next: &mut i64) -> String {
    let low = random.random_range(0..30_000);
    match random.random_range(0..10) {
        0..3 => {
            let first = *next;
            *next += random.random_range(1..3_000);
            format!(
                "INSERT INTO app.t (id, a, b) SELECT value, value % 7, 'n' || value FROM generate_series({first}, {})",
                *next - 1
            )
        }
        3..7 => format!("UPDATE app.t SET a = a + 1 WHERE id = {low}"),
        7 => format!("UPDATE app.t SET b = b || 'x' WHERE id BETWEEN {low} AND {}", low + 20),
        8 => format!("DELETE FROM app.t WHERE id BETWEEN {low} AND {}", low + 3),
        _ => format!("DELETE FROM app.t WHERE id = {low}"),
    }
}

async fn fill(root: &Session) {
    run(
        root,
        "CREATE TABLE app.t (id BIGINT PRIMARY KEY, a BIGINT, b TEXT) WITH (FLUSH_POLICY = 'interval:86400')",
    )
    .await;
    run(root, "INSERT INTO app.t SELECT value, value % 7, 'n' || value FROM generate_series(1, 20000)").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_and_new_snapshots_show_what_the_store_has() {
    for seed in 1..=3 {
        let mut random = StdRng::seed_from_u64(seed);
        // With seed 2 the cache has room for only a part of the rows.
        let hot_cache_bytes = if seed == 2 { 300 << 10 } else { 64 << 20 };
        let (database, root) = database(Config { hot_cache_bytes, ..Config::in_memory() }).await;
        fill(&root).await;
        let (mut next, mut snapshots) = (20_001, Vec::new());
        for step in 0..40 {
            match step {
                27 => {
                    flush(&database, &root, "app.t").await;
                    0
                }
                _ => run(&root, &change(&mut random, &mut next)).await,
            };
            snapshots.push(database.context().committer.snapshot());
            let recent = snapshots.len().saturating_sub(random.random_range(1..4));
            compare(&database, &snapshots[recent], &query(&mut random)).await;
        }
        for snapshot in snapshots.iter().step_by(5) {
            compare(&database, snapshot, "SELECT id, a, b, _seq FROM t ORDER BY id").await;
        }
        assert!(counters(&database).hits > 0, "seed {seed}");
        database.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn scans_beside_a_writer_show_their_snapshot() {
    let (database, root) = database(Config::in_memory()).await;
    fill(&root).await;
    let done = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let done = Arc::clone(&done);
        async move {
            let (mut random, mut next) = (StdRng::seed_from_u64(11), 20_001);
            for _ in 0..150 {
                run(&root, &change(&mut random, &mut next)).await;
            }
            done.store(true, Ordering::SeqCst);
        }
    });
    let scans = (0..3).map(|seed| {
        let (database, done) = (database.clone(), Arc::clone(&done));
        tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(seed);
            let mut scans = 0;
            while !done.load(Ordering::SeqCst) || scans < 3 {
                let snapshot = database.context().committer.snapshot();
                compare(&database, &snapshot, &query(&mut random)).await;
                scans += 1;
            }
        })
    });
    for scan in scans.collect::<Vec<_>>() {
        scan.await.unwrap();
    }
    writer.await.unwrap();
    assert!(counters(&database).hits > 0);
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_scan_finds_the_rows_in_memory() {
    let (database, root) = database(Config::in_memory()).await;
    fill(&root).await;
    let sums = "SELECT a, count(*), max(b) FROM app.t GROUP BY a ORDER BY a";
    let first = rows(&root, sums).await;
    let after_first = counters(&database);
    assert_eq!(after_first.chunks, 3);
    assert_eq!(rows(&root, sums).await, first);
    let after_second = counters(&database);
    assert_eq!((after_second.hits - after_first.hits, after_second.misses), (3, after_first.misses));
    assert_eq!(run(&root, "DELETE FROM app.t WHERE id = 20000").await, 1);
    assert_eq!(counters(&database).chunks, 2);
    assert_eq!(rows(&root, "SELECT count(*) FROM app.t").await, ["19999"]);
    let stats = rows(&root, "SELECT metric_name FROM system.stats WHERE metric_name LIKE 'hot_tier%'").await;
    assert_eq!(stats, ["hot_tier_bytes", "hot_tier_chunks", "hot_tier_hits", "hot_tier_misses"]);
    run(&root, "DROP TABLE app.t").await;
    assert_eq!(counters(&database).bytes, 0);
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn users_find_their_own_rows() {
    let (database, root) = database(Config::in_memory()).await;
    run(&root, "CREATE USER TABLE app.notes (id BIGINT PRIMARY KEY, text TEXT)").await;
    for name in ["ann", "bob"] {
        run(&root, &format!("CREATE USER {name} WITH PASSWORD 'correct horse' ROLE user")).await;
        let session = database.session_for(name).unwrap();
        run(&session, &format!("INSERT INTO app.notes SELECT value, '{name}' FROM generate_series(1, 3000)"))
            .await;
    }
    for _ in 0..2 {
        for name in ["ann", "bob"] {
            let session = database.session_for(name).unwrap();
            let found = rows(&session, "SELECT text, count(*) FROM app.notes GROUP BY text").await;
            assert_eq!(found, [format!("{name}|3000")]);
        }
    }
    assert!(counters(&database).hits > 0);
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_rows_are_not_shown_from_memory_either() {
    let clock = Arc::new(ManualClock::new(1_700_000_000_000_000));
    // Nothing deletes the expired rows.
    let config = Config { expiry_interval_ms: 3_600_000, ..Config::in_memory() };
    let database = Database::open_with_clock(config, Arc::clone(&clock) as _).await.unwrap();
    let root = database.session_for("root").unwrap();
    run(&root, "CREATE NAMESPACE app").await;
    run(&root, "CREATE STREAM TABLE app.events (id BIGINT, kind TEXT) WITH (TTL_SECONDS = 10)").await;
    let count = async || rows(&root, "SELECT count(*), count(kind) FROM app.events").await;
    run(&root, "INSERT INTO app.events SELECT value, 'old' FROM generate_series(1, 2000)").await;
    clock.advance(5_000_000);
    run(&root, "INSERT INTO app.events SELECT value, 'new' FROM generate_series(1, 9000)").await;
    assert_eq!(
        (count().await, count().await),
        (vec!["11000|11000".to_owned()], vec!["11000|11000".to_owned()])
    );
    assert!(counters(&database).hits > 0);
    clock.advance(6_000_000);
    assert_eq!((count().await, count().await), (vec!["9000|9000".to_owned()], vec!["9000|9000".to_owned()]));
    clock.advance(6_000_000);
    assert_eq!(count().await, ["0|0"]);
    database.shutdown().await.unwrap();
}
