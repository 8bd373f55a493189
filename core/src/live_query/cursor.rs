//! How far a client is: what it was told of the changes of its query's result.
//!
//! Which rows of a result a commit changes, and in which order, depends only on the commit. So a number of
//! these rows is a place within the commit, however the commit is cut into frames.
//!
//! Invariant: the rows of frames that complete a commit are not counted; the cursor is then after the commit.

use super::frame::{Frame, FrameBody};
use crate::change_log::LogPosition;
use crate::ids::Seq;

/// What a client has: everything before a position in the change log, and some rows after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) position: LogPosition,
    /// Delivered rows that the changes from the position on have made. All are of the commit of the position.
    pub(super) rows: usize,
}

impl Cursor {
    /// Returns the cursor of a client that has everything up to commit `seq`.
    pub(super) fn after(seq: Seq) -> Self {
        Self::at(LogPosition::after(seq))
    }

    /// Returns the cursor of a client that has everything before `position`.
    pub(super) fn at(position: LogPosition) -> Self {
        Self { position, rows: 0 }
    }

    /// Returns the last commit that the client has completely.
    pub(super) fn complete(self) -> Seq {
        self.position.complete()
    }

    /// Returns the cursor after one more frame of changes.
    #[must_use]
    pub(super) fn past(self, frame: &Frame) -> Self {
        match &frame.body {
            FrameBody::Delta(delta) if frame.more => Self { rows: self.rows + delta.rows, ..self },
            _ => Self::after(frame.complete_through),
        }
    }
}
