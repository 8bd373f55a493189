//! Large changes beside small ones, and ranges beside deleted rows.

use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_util::sync::CancellationToken;

use crate::bystander::{Bystander, Call, WAIT_MAX};
use crate::fixture::Fixture;
use crate::process::{peak_during, resident};
use crate::promises::Promise;
use crate::report::Report;
use crate::server::Client;
use crate::{limit, seed, size, turn};

/// An INSERT of many rows makes them cold; nothing is flushed or compacted in the background.
const COLD: [(&str, &str); 2] = [("large_insert_bytes", "1000"), ("flush_check_interval_ms", "3600000")];
/// What a large change may need beside the database.
const MEMORY_MAX: u64 = 500 << 20;
/// The rows of a range query, and every how many of them one lives.
const RANGE_ROWS: u64 = 60;
const ONE_LIVES_OF: u64 = 10;

/// Creates a table with the cold rows 1 to `rows`.
async fn fill(root: &mut Client, table: &str, rows: u64) {
    let create = format!("CREATE TABLE {table} (id BIGINT PRIMARY KEY, v BIGINT NOT NULL, body TEXT)");
    let insert =
        format!("INSERT INTO {table} SELECT value, 0, repeat('x', 50) FROM generate_series(1, {rows})");
    for sql in [create, insert] {
        root.run(&sql).await.expect("fill a table");
    }
    let manifest = root.query(&format!("SHOW MANIFEST FOR {table}")).await.expect("the segments");
    assert!(manifest.iter().any(|batch| batch.num_rows() > 0), "the rows of {table} are cold");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_change_does_not_hold_up_small_ones() {
    let _turn = turn().await;
    let mut report = Report::new("large change");
    let mut fixture = Fixture::start(&COLD).await;
    let pid = fixture.pid();
    let rows = size(100_000, 2_000_000);
    fill(&mut fixture.root, "app.large", rows).await;
    let mut bystander = Bystander::of(&fixture).await;
    for sql in ["UPDATE app.large SET v = v + 1", "DELETE FROM app.large WHERE v > 0"] {
        let (before, began, stop) = (resident(pid), Instant::now(), CancellationToken::new());
        let change = async {
            let changed = fixture.root.run(sql).await;
            stop.cancel();
            changed
        };
        let beside = async { tokio::join!(change, bystander.watch(&stop)) };
        let ((changed, figures), peak) = peak_during(pid, beside).await;
        report.note(format!("{sql}: {rows} rows in {:.1?}", began.elapsed()));
        assert_eq!(changed.expect(sql), i64::try_from(rows).expect("a small number"));
        let p99 = figures.percentile(Call::Insert, 99);
        let max = limit(WAIT_MAX, Duration::from_millis(100));
        report.within(Promise::LargeChanges, format!("{sql}: another writer, p99"), p99, max);
        report.bytes(Promise::LargeChanges, format!("{sql}: resident memory"), peak, before + MEMORY_MAX);
    }
    fixture.stop(&mut report).await;
    report.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_change_ends_beside_a_drip_of_small_ones() {
    let _turn = turn().await;
    let mut report = Report::new("drip");
    let seed = seed();
    report.note(format!("seed {seed} (KALAMDB_SEED)"));
    let mut fixture = Fixture::start(&COLD).await;
    let rows = size(20_000, 200_000);
    fill(&mut fixture.root, "app.drip", rows).await;
    let large = "UPDATE app.drip SET v = v + 1";
    let began = Instant::now();
    fixture.root.run(large).await.expect(large);
    let alone = began.elapsed();

    let token = fixture.server.log_in().await;
    let small = fixture.server.client(&token).await;
    let drip = tokio::spawn(drip(small, rows, seed));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let max = 3 * alone + Duration::from_secs(1);
    let began = Instant::now();
    let changed = tokio::time::timeout(max, fixture.root.run(large)).await;
    let took = began.elapsed();
    let said =
        format!("{rows} rows beside 3 updates a second: {took:.1?}, alone {alone:.1?}, at most {max:.1?}");
    let ended =
        matches!(&changed, Ok(Ok(changed)) if u64::try_from(*changed).is_ok_and(|changed| changed == rows));
    report.check(Promise::LargeChangesEnd, ended, said);
    drip.abort();
    let alive = drip.await.is_err_and(|error| error.is_cancelled());
    report.check(Promise::Alive, alive, "the small updates went on");
    fixture.stop(&mut report).await;
    report.finish();
}

/// Changes three rows a second, until it is aborted.
async fn drip(mut client: Client, rows: u64, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    loop {
        tokio::time::sleep(Duration::from_millis(333)).await;
        let sql = format!("UPDATE app.drip SET v = v + 1 WHERE id = {}", random.random_range(1..=rows));
        client.run(&sql).await.expect("a small update");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_pays_for_its_own_deleted_rows() {
    let _turn = turn().await;
    let mut report = Report::new("ranges");
    let seed = seed();
    report.note(format!("seed {seed} (KALAMDB_SEED)"));
    let mut fixture = Fixture::start(&COLD).await;
    let rows = size(200_000, 1_000_000);
    for table in ["app.alive", "app.dead"] {
        fill(&mut fixture.root, table, rows).await;
    }
    let delete = format!("DELETE FROM app.dead WHERE id % {ONE_LIVES_OF} <> 0");
    fixture.root.run(&delete).await.expect("delete most rows");

    let mut random = StdRng::seed_from_u64(seed);
    let [mut alive, mut dead] = [Vec::new(), Vec::new()];
    for _ in 0..50 {
        let first = random.random_range(1..=rows - RANGE_ROWS);
        let last = first + RANGE_ROWS - 1;
        let tables =
            [("app.alive", RANGE_ROWS, &mut alive), ("app.dead", RANGE_ROWS / ONE_LIVES_OF, &mut dead)];
        for (table, expected, times) in tables {
            let sql = format!("SELECT count(*) AS n FROM {table} WHERE id BETWEEN {first} AND {last}");
            let began = Instant::now();
            let batches = fixture.root.query(&sql).await.expect("a range");
            times.push(began.elapsed());
            let found = batches[0].column(0).as_primitive::<Int64Type>().value(0);
            assert_eq!(found, i64::try_from(expected).expect("a small number"), "{sql}");
        }
    }
    for times in [&mut alive, &mut dead] {
        times.sort_unstable();
    }
    let (alive, dead) = (alive[alive.len() / 2], dead[dead.len() / 2]);
    let max = 2 * alive + Duration::from_millis(2);
    let said = format!("{RANGE_ROWS} of {rows} rows, of which 9 in 10 are deleted; none deleted {alive:.1?}");
    report.within(Promise::RangesPayForThemselves, said, dead, max);
    fixture.stop(&mut report).await;
    report.finish();
}
