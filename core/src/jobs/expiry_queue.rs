//! The rows that expire next, in bounded memory.
//!
//! The queue holds the rows that expire soonest. When there are too many, it drops the later half, and
//! `horizon` is the time from which on it is incomplete. At that time a scan must find the rows again, which
//! happens at most once per half a queue of deleted rows.
//!
//! Invariant: every pushed row that expires before the horizon is in the queue.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::ids::Seq;

/// A stored row that expires. Ordered by the time of expiry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Due {
    /// The time of expiry, microseconds UTC.
    pub(super) at: i64,
    /// The commit that wrote the row. If another one has written it since, this entry is void.
    pub(super) seq: Seq,
    pub(super) key: Box<[u8]>,
}

/// The rows that expire next.
#[derive(Debug)]
pub(super) struct ExpiryQueue {
    soonest: BinaryHeap<Reverse<Due>>,
    len_max: usize,
    /// From this time on rows may be missing.
    horizon: Option<i64>,
}

impl ExpiryQueue {
    pub(super) fn new(len_max: usize) -> Self {
        Self { soonest: BinaryHeap::new(), len_max: len_max.max(2), horizon: None }
    }

    pub(super) fn push(&mut self, due: Due) {
        if self.horizon.is_some_and(|horizon| due.at >= horizon) {
            return;
        }
        self.soonest.push(Reverse(due));
        if self.soonest.len() > self.len_max {
            self.forget_latest();
        }
    }

    /// Returns the next row that expires at `now` or before.
    pub(super) fn pop_due(&mut self, now: i64) -> Option<Due> {
        if self.soonest.peek()?.0.at > now {
            return None;
        }
        self.soonest.pop().map(|Reverse(due)| due)
    }

    /// Whether rows that expire at `now` or before may be missing. Ask after the last
    /// [`ExpiryQueue::pop_due`].
    pub(super) fn needs_scan(&self, now: i64) -> bool {
        self.horizon.is_some_and(|horizon| horizon <= now)
    }

    fn forget_latest(&mut self) {
        // From the latest to the soonest, because of `Reverse`.
        let mut sorted = std::mem::take(&mut self.soonest).into_sorted_vec();
        let forgotten = sorted.len() - self.len_max / 2;
        let kept = sorted.split_off(forgotten);
        self.horizon = sorted.last().map(|Reverse(due)| due.at);
        self.soonest = kept.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(at: i64) -> Due {
        Due { at, seq: Seq(1), key: Box::from(at.to_be_bytes()) }
    }

    fn drain(queue: &mut ExpiryQueue, now: i64) -> Vec<i64> {
        std::iter::from_fn(|| queue.pop_due(now)).map(|due| due.at).collect()
    }

    #[test]
    fn rows_come_in_the_order_they_expire() {
        let mut queue = ExpiryQueue::new(100);
        for at in [5, 1, 9, 3] {
            queue.push(due(at));
        }
        assert_eq!(drain(&mut queue, 4), [1, 3]);
        assert_eq!(drain(&mut queue, 100), [5, 9]);
        assert!(!queue.needs_scan(100));
    }

    #[test]
    fn a_full_queue_keeps_the_soonest_and_says_when_it_is_incomplete() {
        let mut queue = ExpiryQueue::new(10);
        for at in (0..100).rev() {
            queue.push(due(at));
        }
        let soonest = drain(&mut queue, 1_000);
        assert!(!soonest.is_empty());
        assert_eq!(soonest, (0..soonest.len() as i64).collect::<Vec<_>>());
        let next = soonest.len() as i64;
        assert!(!queue.needs_scan(next - 1));
        assert!(queue.needs_scan(1_000));
    }

    #[test]
    fn rows_that_expire_together_make_progress() {
        let mut queue = ExpiryQueue::new(10);
        for _ in 0..50 {
            queue.push(due(7));
        }
        assert!(drain(&mut queue, 7).len() >= 5);
        assert!(queue.needs_scan(7));
    }
}
