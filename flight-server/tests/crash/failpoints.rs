//! The server ends or fails at every named step; nothing acknowledged is lost, nothing is left behind.
//!
//! The core lists the points. A point that no workload here reaches fails the test.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use kalamdb_core::failpoint::{ERROR_POINTS, KILL_POINTS};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::chores::{move_rows, texts};
use crate::seed;
use crate::server::{Client, Server, command};
use crate::tables;
use crate::world::{Crash, World, check_segments};

const WRITERS: u64 = 2;
/// A workload that has not reached a point for this long never will.
pub(crate) const NEVER: Duration = Duration::from_secs(60);

/// The workload that reaches a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The first start on a new directory.
    FirstStart,
    /// A start after a crash during a flush.
    Restart,
    /// A failed write, after which the store is reopened.
    Reopening,
    /// `BACKUP DATABASE`.
    Backup,
    /// Writers and chores at work.
    Work,
}

pub(crate) fn way_to(point: &str) -> Way {
    match point.split("::").next() {
        Some("open") => Way::FirstStart,
        Some("recover" | "sweep") => Way::Restart,
        Some("reopen") => Way::Reopening,
        Some("backup") => Way::Backup,
        _ => Way::Work,
    }
}

pub(crate) fn all_points() -> impl Iterator<Item = &'static str> {
    ERROR_POINTS.iter().chain(KILL_POINTS).copied()
}

pub(crate) fn armed(data_dir: &Path, failpoints: &str) -> Command {
    let mut command = command(data_dir);
    command.env("FAILPOINTS", failpoints);
    command
}

/// Leaves a running job and a file without a segment.
async fn die_in_a_flush(world: &mut World, data_dir: &Path) {
    const POINT: &str = "segment::published";
    let mut command = armed(data_dir, &format!("{POINT}=return(kill)"));
    // With 0, only jobs write segments.
    command.env("KALAMDB_LARGE_INSERT_BYTES", "0");
    work_until(world, command, POINT).await;
}

pub(crate) fn has_ended_at(said: &str, point: &str) -> bool {
    said.contains(&format!("failpoint \"{point}\": the process ends"))
}

/// Runs a server that ends at `point`, possibly while it starts.
async fn work_until_the_point(world: &mut World, data_dir: &Path, point: &str, skipped: u32) {
    let command = armed(data_dir, &format!("{point}={skipped}*off->return(kill)"));
    work_until(world, command, point).await;
}

/// Runs a server that ends at `point`.
async fn work_until(world: &mut World, command: Command, point: &str) {
    let mut server = match Server::spawn(command).await {
        Ok(server) => server,
        Err(said) => return assert!(has_ended_at(&said, point), "{point}: {said}"),
    };
    let work = world.begin(&server, &Arc::new(AtomicBool::new(true))).await;
    let said = server.ended(NEVER).await;
    drop(server);
    world.end(work).await;
    let said = said.unwrap_or_else(|| panic!("the workload never came by the point {point}")).join("\n");
    assert!(has_ended_at(&said, point), "{point}: {said}");
}

/// Creates a database and closes it.
async fn create_world(data_dir: &Path, seed: u64) -> World {
    let server = Server::start(data_dir).await;
    let world = World::create(&server, WRITERS, seed).await;
    server.kill();
    world
}

async fn check(world: &mut World, data_dir: &Path, when: &str) {
    let server = Server::start(data_dir).await;
    world.check(&server, Crash::Kill, when).await;
    check_segments(&mut server.client(&world.token).await, data_dir, when).await;
    server.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_that_ends_at_any_step_loses_nothing() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().expect("temporary folder");
    let mut world = create_world(folder.path(), seed).await;
    for point in all_points().filter(|point| matches!(way_to(point), Way::Restart | Way::Work)) {
        if way_to(point) == Way::Restart {
            die_in_a_flush(&mut world, folder.path()).await;
            let failpoints = format!("{point}=return(kill)");
            let said = match Server::spawn(armed(folder.path(), &failpoints)).await {
                Ok(mut server) => server.ended(NEVER).await.expect("the start comes by the point").join("\n"),
                Err(said) => said,
            };
            assert!(has_ended_at(&said, point), "{point}: {said}");
        } else {
            let skipped_max = if point.starts_with("commit::") { 40 } else { 3 };
            let skipped = random.random_range(0..=skipped_max);
            work_until_the_point(&mut world, folder.path(), point, skipped).await;
        }
        check(&mut world, folder.path(), point).await;
    }
    println!("failpoints: seed {seed}, {} statements acknowledged, {}", world.acknowledged(), world.tally);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_start_that_ends_or_fails_at_any_step_can_be_repeated() {
    for point in all_points().filter(|point| way_to(point) == Way::FirstStart) {
        for action in ["kill", "error"] {
            let folder = tempfile::tempdir().expect("temporary folder");
            let data_dir = folder.path().join("data");
            let failpoints = format!("{point}=return({action})");
            let said = Server::try_start_of(armed(&data_dir, &failpoints)).await;
            assert!(said.contains(point), "{point}, {action}: {said}");
            let server = Server::start(&data_dir).await;
            let token = server.log_in().await;
            let rows = server.client(&token).await.query("SELECT 1").await.expect("a query");
            assert_eq!(rows.iter().map(|batch| batch.num_rows()).sum::<usize>(), 1);
            server.stop().await;
        }
    }
}

/// Steps that flushes and compactions share are also tested in a compaction; nothing else moves rows here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compaction_that_ends_at_any_step_loses_nothing() {
    const TABLE: &str = "crash.shared_rows";
    let folder = tempfile::tempdir().expect("temporary folder");
    let mut server = Server::start(folder.path()).await;
    let token = server.log_in().await;
    tables::create(&mut server.client(&token).await).await;
    let mut known: BTreeMap<i64, i64> = BTreeMap::new();
    for point in all_points().filter(|point| point.starts_with("segment::") || point.starts_with("compact::"))
    {
        let mut client = server.client(&token).await;
        for _ in 0..2 {
            fill(&mut client, TABLE, &mut known).await;
            move_rows(&mut client, &format!("FLUSH TABLE {TABLE}")).await.expect("flush");
        }
        server.kill();
        server = Server::spawn(armed(folder.path(), &format!("{point}=return(kill)"))).await.expect("start");
        let mut client = server.client(&token).await;
        // A compaction that was due may have left one whole segment; a marked row makes it incomplete. The
        // server may end before it answers.
        let last = known.last_key_value().map_or(0, |(id, _)| *id);
        let mark = format!("UPDATE {TABLE} SET value = value WHERE writer = 0 AND id = {last}");
        let _ = client.run(&mark).await;
        let _ = client.query(&format!("STORAGE COMPACT TABLE {TABLE}")).await;
        let said = server.ended(NEVER).await.expect("the compaction comes by the point").join("\n");
        assert!(has_ended_at(&said, point), "{point}: {said}");
        server = Server::start(folder.path()).await;
        let mut client = server.client(&token).await;
        let found = tables::read(&mut client, TABLE).await.remove(&0).unwrap_or_default();
        assert_eq!(found, known, "{point}");
        check_segments(&mut client, folder.path(), point).await;
    }
    server.stop().await;
}

/// Inserts ten rows, and overwrites and deletes some earlier ones.
async fn fill(client: &mut Client, table: &str, known: &mut BTreeMap<i64, i64>) {
    let first = known.last_key_value().map_or(0, |(id, _)| id + 1);
    let rows: Vec<String> = (first..first + 10).map(|id| format!("(0, {id}, {id})")).collect();
    known.extend((first..first + 10).map(|id| (id, id)));
    let mut statements = vec![format!("INSERT INTO {table} (writer, id, value) VALUES {}", rows.join(", "))];
    if first >= 10 {
        statements.push(format!("DELETE FROM {table} WHERE writer = 0 AND id = {}", first - 10));
        statements.push(format!("UPDATE {table} SET value = -1 WHERE writer = 0 AND id = {}", first - 5));
        known.remove(&(first - 10));
        known.insert(first - 5, -1);
    }
    for sql in statements {
        client.run(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_step_that_fails_is_told_and_the_database_goes_on() {
    // With 0, every segment failure is a job's. With 500, an INSERT may meet the failure and then writes its
    // rows one by one.
    for large_insert_bytes in ["0", "500"] {
        fail_at_every_step(large_insert_bytes).await;
    }
}

async fn fail_at_every_step(large_insert_bytes: &str) {
    let seed = seed();
    let folder = tempfile::tempdir().expect("temporary folder");
    let mut world = create_world(folder.path(), seed).await;
    // A failed write stops all writes until the store is reopened, so that point has its own test.
    let points: Vec<_> = ERROR_POINTS
        .iter()
        .filter(|point| way_to(point) == Way::Work && **point != "commit::write")
        .collect();
    // Each job meets one failure: every point lets one more pass than the point before.
    let failpoints: Vec<_> =
        points.iter().zip(0..).map(|(point, at)| format!("{point}={at}*off->1*return(error)")).collect();
    let mut command = armed(folder.path(), &failpoints.join(";"));
    command.env("KALAMDB_LARGE_INSERT_BYTES", large_insert_bytes);
    let server = Server::spawn(command).await.expect("start");
    let killed = Arc::new(AtomicBool::new(false));
    let work = world.begin(&server, &killed).await;
    for point in &points {
        wait_for(&server, &failure_at(point)).await;
    }
    let mut client = server.client(&world.token).await;
    for told in [
        "job_type = 'flush' AND retry_count > 0 AND status = 'completed'",
        "job_type = 'log_trim' AND status = 'failed' AND error_message LIKE '[58030]%trim::commit%'",
    ] {
        wait_for_row(&mut client, &format!("SELECT job_id FROM system.jobs WHERE {told}")).await;
    }
    killed.store(true, Ordering::SeqCst);
    server.kill();
    world.end(work).await;
    check(&mut world, folder.path(), "after failures").await;
}

pub(crate) fn failure_at(point: &str) -> String {
    format!("failpoint \"{point}\": the step fails")
}

pub(crate) async fn wait_for(server: &Server, line: &str) {
    let deadline = Instant::now() + NEVER;
    while !server.log.lines().iter().any(|said| said.contains(line)) {
        assert!(Instant::now() < deadline, "the server never said: {line}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) async fn wait_for_row(client: &mut Client, sql: &str) {
    let deadline = Instant::now() + NEVER;
    while texts(client, sql, 0).await.is_empty() {
        assert!(Instant::now() < deadline, "there never was a row: {sql}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_write_is_an_unknown_outcome_and_never_a_half_one() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let server = Server::start(folder.path()).await;
    let token = server.log_in().await;
    tables::create(&mut server.client(&token).await).await;
    server.stop().await;
    let server = Server::spawn(armed(folder.path(), "commit::write=1*return(error)")).await.expect("start");
    let mut client = server.client(&token).await;
    let sql = "INSERT INTO crash.keyless_rows (writer, id, value) VALUES (0, 1, 1), (0, 2, 2)";
    let error = client.run(sql).await.expect_err("the write fails").to_string();
    assert!(error.contains("08007"), "{error}");
    wait_for(&server, "the store was reopened").await;
    let count = "SELECT count(*) FROM crash.keyless_rows";
    assert_eq!(number(&mut client, count).await, 0, "nothing of it is there");
    client.run(sql).await.expect("a write after the store was reopened");
    assert_eq!(number(&mut client, count).await, 2);
    server.stop().await;
}

async fn number(client: &mut Client, sql: &str) -> i64 {
    let batches = client.query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    batches.first().expect("a row").column(0).as_primitive::<Int64Type>().value(0)
}

/// The store is reopened while everybody works, and the server ends or the step fails during that.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reopening_that_ends_or_fails_at_any_step_loses_nothing() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().expect("temporary folder");
    let mut world = create_world(folder.path(), seed).await;
    for point in all_points().filter(|point| way_to(point) == Way::Reopening) {
        let write_fails = format!("commit::write={}*off->1*return(error)", random.random_range(5..40));
        let command = armed(folder.path(), &format!("{write_fails};{point}=return(kill)"));
        work_until(&mut world, command, point).await;
        check(&mut world, folder.path(), point).await;

        let failpoints = format!("{write_fails};{point}=1*return(error)");
        let server = Server::spawn(armed(folder.path(), &failpoints)).await.expect("start");
        let work = world.begin(&server, &Arc::new(AtomicBool::new(true))).await;
        for said in [&*failure_at(point), "could not be reopened", "the store was reopened"] {
            wait_for(&server, said).await;
        }
        let mut client = server.client(&world.token).await;
        let sql = format!("CREATE NAMESPACE {}", point.replace("::", "_"));
        client.run(&sql).await.expect("writes are taken again");
        server.kill();
        world.end(work).await;
        check(&mut world, folder.path(), point).await;
    }
}

/// A start whose recovery fails returns an error, and the next start works.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_recovery_that_fails_is_told_and_can_be_repeated() {
    let seed = seed();
    let folder = tempfile::tempdir().expect("temporary folder");
    let mut world = create_world(folder.path(), seed).await;
    for point in ERROR_POINTS.iter().filter(|point| way_to(point) == Way::Restart) {
        die_in_a_flush(&mut world, folder.path()).await;
        match Server::spawn(armed(folder.path(), &format!("{point}=return(error)"))).await {
            Ok(server) => {
                wait_for(&server, &failure_at(point)).await;
                server.stop().await;
            }
            Err(said) => assert!(said.contains("[58030]") && said.contains(point), "{point}: {said}"),
        }
        check(&mut world, folder.path(), point).await;
    }
}
