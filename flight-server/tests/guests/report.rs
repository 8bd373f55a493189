//! The figures of a test beside their limits.
//!
//! Lines are printed at once and past the capture of the test harness, so that each run shows what was
//! measured and which limits still wait. Invariant: `finish` fails if something is over the limit of a kept
//! promise.

use std::fmt::Display;
use std::io::Write;
use std::time::Duration;

use crate::promises::Promise;

/// The checks of one test.
pub(crate) struct Report {
    title: &'static str,
    broken: Vec<String>,
}

impl Report {
    pub(crate) fn new(title: &'static str) -> Self {
        let report = Self { title, broken: Vec::new() };
        let build = if cfg!(debug_assertions) { "dev" } else { "release" };
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        report.note(format!("{build} build, {processors} processors"));
        report
    }

    /// Prints a figure that has no limit.
    pub(crate) fn note(&self, said: impl Display) {
        self.print("", &said);
    }

    /// Checks one thing that belongs to a promise.
    pub(crate) fn check(&mut self, promise: Promise, holds: bool, said: impl Display) {
        match (holds, promise.is_kept()) {
            (true, true) => self.print("holds", &said),
            (true, false) => self.print("waits", &format!("{said} (holds; {promise:?} is not kept yet)")),
            (false, false) => self.print("waits", &format!("{said} (OVER; {promise:?} is not kept yet)")),
            (false, true) => {
                self.print("BROKEN", &format!("{said} ({promise:?})"));
                self.broken.push(format!("{promise:?}: {said}"));
            }
        }
    }

    /// Checks a time.
    pub(crate) fn within(&mut self, promise: Promise, what: impl Display, took: Duration, limit: Duration) {
        self.check(promise, took <= limit, format!("{what}: {took:.1?}, at most {limit:.1?}"));
    }

    /// Checks a number of bytes.
    pub(crate) fn bytes(&mut self, promise: Promise, what: impl Display, bytes: u64, limit: u64) {
        let mib = |bytes: u64| bytes >> 20;
        self.check(
            promise,
            bytes <= limit,
            format!("{what}: {} MiB, at most {} MiB", mib(bytes), mib(limit)),
        );
    }

    /// Fails if something was over the limit of a kept promise.
    pub(crate) fn finish(self) {
        assert!(self.broken.is_empty(), "{}:\n{}", self.title, self.broken.join("\n"));
    }

    fn print(&self, state: &str, said: &dyn Display) {
        let mut stdout = std::io::stdout().lock();
        // Without a reader of stdout the figures are lost, not the test.
        let _ = writeln!(stdout, "guests: {}: {state:6} {said}", self.title);
    }
}
