//! Correctness guards: each compares the database's answers with another engine's, or with its own answers to
//! an equivalent query.
//!
//! `cargo test --test answers` runs each guard once, in its own process. docs/testing.md has the longer runs.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod cells;
mod choices;
mod corpora;
mod differences;
mod differential;
mod expressions;
mod guard;
mod partition;
mod plans;
mod postgres;
mod queries;
mod questions;
mod random;
mod test_database;
mod test_tables;
mod watch;

use std::num::NonZero;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use kalamdb_core::failpoint::FAULTS;
use parking_lot::Mutex;

use crate::guard::{FAILURES_MAX, Run};
use crate::watch::Watch;

/// The exit code of a guard that had nothing to compare with.
const NOT_RUN: i32 = 4;

struct Guard {
    name: &'static str,
    /// The option that sets the size of a run.
    unit: &'static str,
    /// The size of a run in CI.
    ci: u64,
    /// The size of one long run, and the number of long runs; each uses the next seed.
    long: u64,
    long_runs: u64,
}

const GUARDS: [Guard; 5] = [
    Guard { name: "differential", unit: "--queries", ci: 1_000, long: 10_000, long_runs: 18 },
    Guard { name: "plans", unit: "--queries", ci: 400, long: 10_000, long_runs: 1 },
    Guard { name: "partition", unit: "--queries", ci: 400, long: 10_000, long_runs: 1 },
    Guard { name: "sqlite_corpus", unit: "--percent", ci: 2, long: 20, long_runs: 1 },
    Guard { name: "datafusion_corpus", unit: "--percent", ci: 100, long: 100, long_runs: 1 },
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    let code = match value("--guard") {
        Some(guard) => one(&guard, &value),
        None if has("--faults") => faults(),
        None => all(&value, has("--long")),
    };
    std::process::exit(code);
}

fn number(text: Option<String>) -> Option<u64> {
    text.map(|text| text.parse().unwrap_or_else(|_| panic!("{text} is no number")))
}

fn one(guard: &str, value: &dyn Fn(&str) -> Option<String>) -> i32 {
    kalamdb_core::failpoint::configure_from_environment().unwrap();
    let seed = number(value("--seed")).unwrap_or_else(|| rand::random::<u32>().into());
    let queries = number(value("--queries")).unwrap_or(1_000);
    let run = Run {
        guard: guard.to_owned(),
        seed,
        queries,
        percent: number(value("--percent")).unwrap_or(1).min(100),
        from: number(value("--from")).unwrap_or_default(),
        file: value("--file"),
        failures_max: number(value("--failures")).map_or(FAILURES_MAX, |count| count as usize),
        only: number(value("--only")),
        is_brief: value("--brief").is_some(),
        watch: Watch::start(format!("{guard} seed {seed}")),
        began: Instant::now(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_stack_size(kalamdb_core::STACK_BYTES)
        .enable_all()
        .build()
        .unwrap();
    let report = runtime.block_on(async {
        match guard {
            "differential" => differential::guard(run).await,
            "plans" => plans::guard(run).await,
            "partition" => partition::guard(run).await,
            "sqlite_corpus" => corpora::sqlite::guard(run).await,
            "datafusion_corpus" => corpora::datafusion::guard(run).await,
            other => panic!("there is no guard \"{other}\""),
        }
    });
    report.print()
}

/// Runs every guard, each run in its own process: a run that dies or hangs is reported and stops no other. As
/// many processes run at once as there are processors.
fn all(value: &dyn Fn(&str) -> Option<String>, is_long: bool) -> i32 {
    let must_run = std::env::var_os("GUARDS_MUST_RUN").is_some();
    let first_seed = chosen_seed();
    let mut commands = Vec::new();
    for Guard { name, unit, ci, long, long_runs } in GUARDS {
        let (size, runs) = if is_long { (long, long_runs) } else { (ci, 1) };
        let size = number(value(unit)).unwrap_or(size);
        commands.extend((first_seed..first_seed + runs).map(|seed| {
            let what = format!("{name} with seed {seed}");
            (what, process(name, seed, unit, size))
        }));
    }
    let (count, passed, absent) = (commands.len(), AtomicUsize::new(0), AtomicUsize::new(0));
    let commands = Mutex::new(commands.into_iter());
    let next = || commands.lock().next();
    let work = || {
        while let Some((what, mut command)) = next() {
            let status = command.status().unwrap();
            let counter = match status.code() {
                Some(0) => &passed,
                Some(NOT_RUN) => &absent,
                _ => {
                    println!("{what} FAILED: {status}");
                    continue;
                }
            };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(work);
        }
    });
    let (passed, absent) = (passed.into_inner(), absent.into_inner());
    println!("guards: {passed} of {count} runs passed, {absent} not run");
    let is_good = passed + absent == count && (absent == 0 || !must_run);
    i32::from(!is_good)
}

/// Plants each fault in turn and checks that a run of CI size finds it.
fn faults() -> i32 {
    let seed = chosen_seed();
    let mut missed = 0;
    for fault in FAULTS {
        let began = Instant::now();
        let found = GUARDS.iter().find_map(|Guard { name, unit, ci, .. }| {
            let output = process(name, seed, unit, *ci)
                .args(["--brief", "yes"])
                .env("FAILPOINTS", format!("{fault}=return"))
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            (output.status.code() == Some(1)).then_some((*name, text))
        });
        match found {
            Some((guard, text)) => {
                let seconds = began.elapsed().as_secs();
                println!("{fault}: found by {guard} after {seconds} s\n{text}");
            }
            None => {
                println!("{fault}: NOT FOUND");
                missed += 1;
            }
        }
    }
    println!("faults, seed {seed}: {} of {} found", FAULTS.len() - missed, FAULTS.len());
    i32::from(missed > 0)
}

/// Returns the chosen seed. The default is fixed, so that failures come from the change under test.
fn chosen_seed() -> u64 {
    number(std::env::var("KALAMDB_SEED").ok()).unwrap_or(1)
}

fn process(guard: &str, seed: u64, unit: &str, size: u64) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--guard", guard, "--seed", &seed.to_string(), unit, &size.to_string()])
        .stdin(Stdio::null());
    command
}
