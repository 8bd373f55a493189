//! The common parts of the guards: the size of a run, its findings and its report.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::watch::Watch;

/// One run of one guard.
pub(crate) struct Run {
    pub(crate) guard: String,
    pub(crate) seed: u64,
    pub(crate) queries: u64,
    /// The percentage of a corpus that is asked.
    pub(crate) percent: u64,
    /// Files of a corpus before this one are skipped.
    pub(crate) from: u64,
    /// Only files of a corpus whose names contain this are asked.
    pub(crate) file: Option<String>,
    /// The number of failures that ends the run.
    pub(crate) failures_max: usize,
    /// Only the query with this number is asked; its script is printed first.
    pub(crate) only: Option<u64>,
    /// The first failure ends the run and is not shrunk.
    pub(crate) is_brief: bool,
    pub(crate) watch: Watch,
    pub(crate) began: Instant,
}

/// The default of `failures_max`. More failures rarely tell anything new.
pub(crate) const FAILURES_MAX: usize = 5;

#[derive(Default)]
pub(crate) struct Report {
    name: String,
    began: Option<Instant>,
    pub(crate) queries: u64,
    pub(crate) executions: u64,
    pub(crate) same: u64,
    pub(crate) both_fail: u64,
    /// One side has rows, the other failed to compute a value; this may depend on the plan.
    pub(crate) one_fails: u64,
    pub(crate) known: u64,
    pub(crate) too_much: u64,
    /// Records of a corpus that are meant for other engines.
    pub(crate) for_others: u64,
    /// How many records of a corpus were skipped or rewritten, by reason.
    pub(crate) reasons: BTreeMap<String, u64>,
    pub(crate) failures: Vec<String>,
    /// How many of the failures were printed.
    said: usize,
    /// Why the guard did not run.
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
        self.failures.len() >= if run.is_brief { 1 } else { run.failures_max }
    }

    /// Prints the failures that have not been printed.
    pub(crate) fn say_failures(&mut self) {
        for failure in &self.failures[self.said..] {
            println!("{}: {failure}\n", self.name);
        }
        self.said = self.failures.len();
    }

    /// Prints the report. Returns the exit code of the process.
    pub(crate) fn print(mut self) -> i32 {
        self.say_failures();
        let seconds = self.began.map_or(0.0, |began| began.elapsed().as_secs_f64());
        if let Some(why) = &self.absent {
            println!("{}: NOT RUN: {why}", self.name);
            return crate::NOT_RUN;
        }
        for (reason, count) in &self.reasons {
            println!("{}: {count} times: {reason}", self.name);
        }
        if self.for_others > 0 {
            println!("{}: {} records are for other databases", self.name, self.for_others);
        }
        println!(
            "{}: {} queries, {} executions, {} the same, {} errors on both sides, {} on one, {} known differences, {} left out, {} failures, {seconds:.0} s",
            self.name,
            self.queries,
            self.executions,
            self.same,
            self.both_fail,
            self.one_fails,
            self.known,
            self.too_much,
            self.failures.len()
        );
        i32::from(!self.failures.is_empty())
    }
}
