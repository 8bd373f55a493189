//! About how many bytes of the change log follow a commit.
//!
//! The store's own size is right at start, but does not shrink for a while after a trim. So trims and writes
//! since the start are counted here.

use std::collections::VecDeque;

use crate::change_log::CommitRecord;
use crate::ids::Seq;

/// The size limit is divided into about this many steps.
const STEPS: u64 = 1_000;

/// The log from its floor to the last counted commit.
#[derive(Debug)]
pub(super) struct LogSize {
    /// The last commit of each step and the step's bytes, oldest first.
    steps: VecDeque<(Seq, u64)>,
    floor: Seq,
    bytes: u64,
    step_bytes: u64,
}

impl LogSize {
    /// Starts from a log of `bytes` between `floor` and `last`, which is to be kept to about `bytes_max`.
    pub(super) fn new(floor: Seq, last: Seq, bytes: u64, bytes_max: u64) -> Self {
        let step_bytes = (bytes_max / STEPS).max(1);
        let mut size = Self { steps: VecDeque::new(), floor, bytes: 0, step_bytes };
        // How the bytes are spread is unknown, so evenly.
        let steps =
            bytes.div_ceil(step_bytes).min(10 * STEPS).clamp(1, last.0.saturating_sub(floor.0).max(1));
        for step in 1..=steps {
            let up_to = floor.0 + (last.0.saturating_sub(floor.0)) * step / steps;
            size.add(Seq(up_to), bytes / steps);
        }
        size
    }

    /// Counts a commit.
    pub(super) fn note(&mut self, record: &CommitRecord) {
        let bytes = record.logged_bytes();
        match self.steps.back_mut() {
            Some((up_to, step)) if *step < self.step_bytes => {
                *up_to = record.seq;
                *step += bytes;
                self.bytes += bytes;
            }
            _ => self.add(record.seq, bytes),
        }
    }

    fn add(&mut self, up_to: Seq, bytes: u64) {
        self.steps.push_back((up_to, bytes));
        self.bytes += bytes;
    }

    /// Counts a trim up to `floor`.
    pub(super) fn trimmed(&mut self, floor: Seq) {
        self.floor = self.floor.max(floor);
        while let Some((up_to, bytes)) = self.steps.front().copied()
            && up_to <= floor
        {
            self.steps.pop_front();
            self.bytes -= bytes;
        }
    }

    /// Returns the bytes after the floor.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns where to trim so that at most `bytes_max` remain; `None` if nothing must go.
    pub(super) fn floor_for(&self, bytes_max: u64) -> Option<Seq> {
        let mut remaining = self.bytes;
        let mut floor = None;
        for (up_to, bytes) in &self.steps {
            if remaining <= bytes_max {
                break;
            }
            remaining -= bytes;
            floor = Some(*up_to);
        }
        floor.filter(|floor| *floor > self.floor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_steps_go_first_and_only_as_many_as_needed() {
        let mut size = LogSize::new(Seq(0), Seq(1_000), 10_000, 10_000);
        assert_eq!(size.bytes(), 10_000);
        assert_eq!(size.floor_for(10_000), None);
        assert_eq!(size.floor_for(7_000), Some(Seq(300)));
        size.trimmed(Seq(300));
        assert_eq!(size.bytes(), 7_000);
        assert_eq!(size.floor_for(7_000), None);
        assert_eq!(size.floor_for(0), Some(Seq(1_000)));
    }

    #[test]
    fn an_empty_log_needs_no_trim() {
        assert_eq!(LogSize::new(Seq(5), Seq(5), 0, 10).floor_for(0), None);
        assert_eq!(LogSize::new(Seq(5), Seq(5), 100, 1_000).floor_for(1_000), None);
    }
}
