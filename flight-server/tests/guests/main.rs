//! What the statements and connections of one user can do to others, tested on the real program.
//!
//! A guest is a statement of an ordinary user whose client may vanish at any moment. While guests run, a
//! bystander, another user, logs in, reads, writes, receives live frames and asks for health. The tests
//! measure the bystander, how long the server works for guests that have left, and its memory.
//!
//! Every measurement runs and is printed. Whether it must hold is said in `promises`: a limit that belongs to
//! a promise which is not kept yet is printed with the figure, beginning with `waits`.
//!
//! | file | its tests |
//! |---|---|
//! | `inputs` | each statement that once stopped the server, alone |
//! | `mix` | many of these statements at a time, from clients that vanish |
//! | `functions` | every scalar function with large arguments |
//! | `ends` | what ends a statement |
//! | `memory` | prepared statements |
//! | `readers` | live readers that stop reading |
//! | `writers` | large changes beside small ones; ranges beside deleted rows |
//! | `strangers` | connections without a login, and logins |
//!
//! `make guests` runs everything in full, with a release build; `GUESTS_WHOLE=1` sets the sizes of that run.
//! `GUESTS_PROMISES=all` fails for every limit, also for those that wait. `KALAMDB_SEED` sets the random
//! choices.

#![cfg(target_os = "linux")]
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod bystander;
mod ends;
mod fixture;
mod functions;
mod guest;
mod inputs;
mod memory;
mod mix;
mod process;
mod promises;
mod readers;
mod report;
#[path = "../crash/server.rs"]
#[expect(dead_code, reason = "shared with the crash test, which uses more of it")]
mod server;
mod strangers;
mod writers;

use std::time::Duration;

use rand::Rng;
use tokio::sync::{Mutex, MutexGuard};

/// Tests measure time, so they run one after the other.
static TURN: Mutex<()> = Mutex::const_new(());

pub(crate) async fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().await
}

/// Returns whether the tests run in full.
pub(crate) fn is_whole() -> bool {
    std::env::var_os("GUESTS_WHOLE").is_some()
}

/// Returns `whole` for a run in full, else `part`.
pub(crate) fn size<T>(part: T, whole: T) -> T {
    if is_whole() { whole } else { part }
}

/// Returns `release` for an optimised build, else `dev`, which allows the order of magnitude.
pub(crate) fn limit(dev: Duration, release: Duration) -> Duration {
    if cfg!(debug_assertions) { dev } else { release }
}

pub(crate) fn seed() -> u64 {
    match std::env::var("KALAMDB_SEED") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("KALAMDB_SEED is not a number: {text}")),
        Err(_) => rand::rng().random(),
    }
}
