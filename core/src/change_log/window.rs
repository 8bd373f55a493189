//! Which changes of a part a reader takes: those from a number on, until it has enough bytes.
//!
//! Invariant: a window that is not full takes at least one change.

use super::RowChange;

/// What a reader still takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// The next changes that it leaves out, because it has them.
    skip: usize,
    bytes_left: usize,
}

impl Window {
    /// Takes everything.
    pub(super) const ALL: Self = Self { skip: 0, bytes_left: usize::MAX };

    /// Returns a window that takes about `bytes_max` bytes, and at least one change.
    pub(super) fn of_bytes(bytes_max: usize) -> Self {
        Self { skip: 0, bytes_left: bytes_max.max(1) }
    }

    /// Leaves out the first `rows` changes of the next part.
    pub(super) fn begin_part(&mut self, rows: u32) {
        self.skip = rows as usize;
    }

    /// Returns how many of the next `rows` changes are left out, and counts them as seen.
    pub(super) fn leave_out(&mut self, rows: usize) -> usize {
        let left_out = self.skip.min(rows);
        self.skip -= left_out;
        left_out
    }

    /// Adds the next change to `rows`, unless it is left out.
    pub(super) fn take(&mut self, change: RowChange, rows: &mut Vec<RowChange>) {
        if self.leave_out(1) == 0 {
            self.bytes_left = self.bytes_left.saturating_sub(change.bytes().max(1));
            rows.push(change);
        }
    }

    /// Whether it takes no more.
    pub(super) fn is_full(&self) -> bool {
        self.bytes_left == 0
    }
}
