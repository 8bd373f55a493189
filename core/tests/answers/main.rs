//! Guards of right answers: each compares what the database says with what somebody else says, or with what it says itself when asked in
//! another way.
//!
//! `cargo test --test answers` runs each once, in a process of its own. docs/testing.md has the longer runs.

mod cells;
mod choices;
mod differences;
mod differential;
mod expressions;
mod guard;
mod ours;
mod postgres;
mod queries;
mod watch;
mod world;

use std::process::{Command, Stdio};
use std::time::Instant;

use crate::guard::Run;
use crate::watch::Watch;

/// The exit code of a guard that had nothing to compare with.
const NOT_RUN: i32 = 4;

/// The guards, with the queries of a run in CI.
const GUARDS: [(&str, u64); 1] = [("differential", 1_500)];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let code = match value("--guard") {
        Some(guard) => one(&guard, &value),
        None => all(&value),
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
            other => panic!("there is no guard \"{other}\""),
        }
    });
    report.print()
}

/// Runs every guard, each in its own process: one that dies or hangs is said, and takes no other with it.
fn all(value: &dyn Fn(&str) -> Option<String>) -> i32 {
    let seed = number(std::env::var("KALAMDB_SEED").ok()).unwrap_or_else(|| rand::random::<u32>().into());
    let must_run = std::env::var_os("KALAMDB_GUARDS_MUST_RUN").is_some();
    let mut failed = Vec::new();
    for (guard, queries) in GUARDS {
        let queries = number(value("--queries")).unwrap_or(queries);
        let arguments = ["--guard", guard, "--seed", &seed.to_string(), "--queries", &queries.to_string()];
        let status = Command::new(std::env::current_exe().unwrap())
            .args(arguments)
            .stdin(Stdio::null())
            .status()
            .unwrap();
        let is_passed = match status.code() {
            Some(0) => true,
            Some(NOT_RUN) => !must_run,
            _ => false,
        };
        if !is_passed {
            println!("{guard} with seed {seed} FAILED: {status}");
            failed.push(guard);
        }
    }
    println!("guards: {} of {} passed", GUARDS.len() - failed.len(), GUARDS.len());
    i32::from(!failed.is_empty())
}
