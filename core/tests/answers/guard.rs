//! What the guards have in common: how much they do, what they find, and how it is said.

use std::time::Instant;

use crate::watch::Watch;

/// One run of one guard.
pub(crate) struct Run {
    pub(crate) guard: String,
    pub(crate) seed: u64,
    pub(crate) queries: u64,
    /// Only this one of them is asked, and its script is printed first.
    pub(crate) only: Option<u64>,
    /// The first failure ends the run, and is not made smaller.
    pub(crate) is_brief: bool,
    pub(crate) watch: Watch,
    pub(crate) began: Instant,
}

/// More failures than these say nothing new.
const FAILURES_MAX: usize = 5;

#[derive(Default)]
pub(crate) struct Report {
    name: String,
    began: Option<Instant>,
    pub(crate) queries: u64,
    pub(crate) executions: u64,
    pub(crate) same: u64,
    pub(crate) both_fail: u64,
    pub(crate) known: u64,
    pub(crate) too_much: u64,
    pub(crate) failures: Vec<String>,
    /// Why nothing was done.
    pub(crate) absent: Option<String>,
}

impl Report {
    pub(crate) fn new(run: &Run) -> Self {
        Self { name: format!("{} seed {}", run.guard, run.seed), began: Some(run.began), ..Self::default() }
    }

    pub(crate) fn absent(run: &Run, why: &str) -> Self {
        Self { absent: Some(why.to_owned()), ..Self::new(run) }
    }

    pub(crate) fn is_enough(&self, run: &Run) -> bool {
        self.failures.len() >= if run.is_brief { 1 } else { FAILURES_MAX }
    }

    /// Prints the report; gives the exit code of the process.
    pub(crate) fn print(&self) -> i32 {
        for failure in &self.failures {
            println!("{}: {failure}\n", self.name);
        }
        let seconds = self.began.map_or(0.0, |began| began.elapsed().as_secs_f64());
        if let Some(why) = &self.absent {
            println!("{}: NOT RUN: {why}", self.name);
            return crate::NOT_RUN;
        }
        println!(
            "{}: {} queries, {} executions, {} the same, {} errors on both sides, {} known differences, {} left out, {} failures, {seconds:.0} s",
            self.name,
            self.queries,
            self.executions,
            self.same,
            self.both_fail,
            self.known,
            self.too_much,
            self.failures.len()
        );
        i32::from(!self.failures.is_empty())
    }
}
