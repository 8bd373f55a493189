//! What survives `kill -9`, tested on the real program with real clients.
//!
//! Eight writers, each with its own keys, run statements over Flight SQL. Each writer knows two states per
//! table: the one that the server acknowledged last, and the one that its running statement would produce.
//! The server is killed at a random moment and restarted; then every table must show exactly one of the two
//! states for every writer. Anything older is a lost write, anything between is a torn statement, anything
//! else is a ghost. Half of the tables are flushed and compacted all the time, and others are created and
//! dropped, so the server also dies during that work.
//!
//! `failpoints` ends the server at every named step instead of a random moment; `power_loss` removes
//! everything that was not synced.
//!
//! `KALAMDB_CRASH_CYCLES` (default 50), `KALAMDB_POWER_LOSSES` (default 20) and `KALAMDB_SEED` set the number
//! of repetitions and the random choices.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod backups;
mod chores;
mod failpoints;
mod model;
#[cfg(target_os = "linux")]
mod power_loss;
mod refusals;
mod server;
mod tables;
mod world;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use self::server::Server;
use self::world::{Crash, World, check_segments};

const WRITERS: u64 = 8;
const CYCLES_DEFAULT: u64 = 50;
/// A restarted server must accept calls within this time.
const READY_MAX: Duration = Duration::from_secs(2);
/// How long the server lives after it is ready.
const LIFE_MS: std::ops::RangeInclusive<u64> = 5..=500;

fn setting(name: &str, default: impl FnOnce() -> u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")),
        Err(_) => default(),
    }
}

fn seed() -> u64 {
    let seed = setting("KALAMDB_SEED", || rand::rng().random());
    println!("seed {seed} (KALAMDB_SEED)");
    seed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn acknowledged_writes_survive_kill_9() {
    let cycles = setting("KALAMDB_CRASH_CYCLES", || CYCLES_DEFAULT);
    let seed = seed();
    println!("{cycles} cycles (KALAMDB_CRASH_CYCLES)");

    let folder = tempfile::tempdir().expect("temporary folder");
    let mut random = StdRng::seed_from_u64(seed);
    let server = Server::start(folder.path()).await;
    let mut world = World::create(&server, WRITERS, seed).await;
    server.kill();

    for cycle in 0..cycles {
        let server = Server::start(folder.path()).await;
        world.tally.ready(server.ready_in);
        // The token was issued before all crashes and must survive them, too.
        world.check(&server, Crash::Kill, &format!("cycle {cycle}")).await;
        work_until_killed(server, &mut world, random.random_range(LIFE_MS)).await;
    }
    let server = Server::start(folder.path()).await;
    world.tally.ready(server.ready_in);
    world.check(&server, Crash::Kill, "after the last cycle").await;
    let mut client = server.client(&world.token).await;
    check_segments(&mut client, folder.path(), "after the last cycle").await;
    let compactions = world::compactions(&mut client).await;
    drop(client);
    server.stop().await;

    let (acknowledged, tally) = (world.acknowledged(), &world.tally);
    println!(
        "crash: {cycles} cycles, seed {seed}, {acknowledged} statements acknowledged, \
         {compactions} compactions, {tally}"
    );
    assert!(acknowledged > 0 || cycles == 0, "no statement was acknowledged: nothing was tested");
    let enough = cycles >= CYCLES_DEFAULT;
    assert!(!enough || tally.interrupted_of("flush") > 0, "no kill fell into a flush");
    assert!(!enough || compactions > 0, "nothing was compacted");
    assert!(tally.ready_max <= READY_MAX, "the server was ready only after {:?}", tally.ready_max);
}

/// Lets everybody work on `server` and kills it after `life_ms`.
async fn work_until_killed(server: Server, world: &mut World, life_ms: u64) {
    let killed = Arc::new(AtomicBool::new(false));
    let work = world.begin(&server, &killed).await;
    tokio::time::sleep(Duration::from_millis(life_ms)).await;
    killed.store(true, Ordering::SeqCst);
    server.kill();
    world.end(work).await;
}
