//! What survives `kill -9`, shown on the real program by real clients.
//!
//! Eight writers, each with keys of its own, run statements over Flight SQL. Each writer knows two states per table: the one the
//! server acknowledged last, and the one its running statement would make. The server is killed at a random moment and started
//! again; then every table must show, for every writer, exactly one of the two. Anything older is a lost write, anything in
//! between a torn statement, anything else a ghost. Half of the tables are flushed all the time, so that the server dies in every
//! step of a flush as well.
//!
//! `KALAMDB_CRASH_CYCLES` (default 50) and `KALAMDB_SEED` set how often and with which choices.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod model;
mod refusals;
#[allow(dead_code, reason = "shared with the test of the command line, which reads the log")]
mod server;
mod tables;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use self::model::{Tally, Writer};
use self::server::{Client, Server};

const WRITERS: u64 = 8;
const CYCLES_DEFAULT: u64 = 50;
/// A restarted server must take calls within this time.
const READY_MAX: Duration = Duration::from_secs(2);
/// How long after it is ready the server lives.
const LIFE_MS: std::ops::RangeInclusive<u64> = 5..=500;

fn setting(name: &str, default: impl FnOnce() -> u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")),
        Err(_) => default(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn acknowledged_writes_survive_kill_9() {
    let cycles = setting("KALAMDB_CRASH_CYCLES", || CYCLES_DEFAULT);
    let seed = setting("KALAMDB_SEED", || rand::rng().random());
    println!("seed {seed} (KALAMDB_SEED), {cycles} cycles (KALAMDB_CRASH_CYCLES)");

    let folder = tempfile::tempdir().expect("temporary folder");
    let mut random = StdRng::seed_from_u64(seed);
    let mut writers: Vec<Writer> = (0..WRITERS).map(|id| Writer::new(id, seed)).collect();
    let mut tally = Tally::default();

    let server = Server::start(folder.path()).await;
    let token = server.log_in().await;
    tables::create(&mut server.client(&token).await).await;
    server.kill();

    for cycle in 0..cycles {
        let server = Server::start(folder.path()).await;
        tally.ready(server.ready_in);
        // The token was issued before all the crashes: it must survive them, too.
        check(&mut server.client(&token).await, &mut writers, &mut tally, cycle).await;
        writers = write_until_killed(server, &token, writers, random.random_range(LIFE_MS)).await;
    }
    let server = Server::start(folder.path()).await;
    tally.ready(server.ready_in);
    check(&mut server.client(&token).await, &mut writers, &mut tally, cycles).await;
    server.stop().await;

    let acknowledged: u64 = writers.iter().map(|writer| writer.acknowledged).sum();
    println!("crash: {cycles} cycles, seed {seed}, {acknowledged} statements acknowledged, {tally}");
    assert!(acknowledged > 0 || cycles == 0, "no statement was acknowledged: nothing was tested");
    assert!(tally.ready_max <= READY_MAX, "the server was ready only after {:?}", tally.ready_max);
}

/// Lets all writers run against `server` and kills it after `life_ms`. Returns the writers with what they know.
async fn write_until_killed(server: Server, token: &str, writers: Vec<Writer>, life_ms: u64) -> Vec<Writer> {
    let killed = Arc::new(AtomicBool::new(false));
    let mut running = Vec::new();
    let channel = server.channel().await;
    for writer in writers {
        let client = Client::on(channel.clone(), token);
        running.push(tokio::spawn(writer.run(client, Arc::clone(&killed))));
    }
    tokio::time::sleep(Duration::from_millis(life_ms)).await;
    killed.store(true, Ordering::SeqCst);
    server.kill();
    let mut writers = Vec::new();
    for task in running {
        writers.push(task.await.expect("a writer"));
    }
    writers
}

/// Compares every table with what the writers know, and makes what is there the writers' truth.
async fn check(client: &mut Client, writers: &mut [Writer], tally: &mut Tally, cycle: u64) {
    for table in tables::ALL {
        let mut found = tables::read(client, table).await;
        for writer in writers.iter_mut() {
            let state = found.remove(&writer.id).unwrap_or_default();
            if let Err(difference) = writer.settle(table, state, tally) {
                panic!("cycle {cycle}, {}, writer {}: {difference}", table.name(), writer.id);
            }
        }
        assert!(found.is_empty(), "cycle {cycle}, {}: rows of nobody: {found:?}", table.name());
    }
}
