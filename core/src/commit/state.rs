//! The state that handles of the committer share with the sequencer's thread, and the sets in its queue.
//!
//! Invariant: only the sequencer's thread installs snapshots and epochs, and sets or clears `poisoned`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::moves::RunningMoves;
use super::{CommitFeed, EpochHistory, Receipt, Snapshot, WriteSet};
use crate::change_log::TrimStep;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::{DatabaseId, Seq};
use crate::storage::DiskSpace;

/// The installed state of an open database.
pub(super) struct CommitState {
    pub(super) database: DatabaseId,
    pub(super) snapshot: ArcSwap<Snapshot>,
    pub(super) epochs: ArcSwap<EpochHistory>,
    /// Whether a write failed and the store has not been reopened since.
    pub(super) poisoned: AtomicBool,
    /// How often the store was reopened.
    pub(super) reopenings: AtomicU64,
    /// Sets that were checked and groups that were written.
    pub(super) steps: AtomicU64,
    /// `None` for a database in memory.
    pub(super) disk: Option<DiskSpace>,
    pub(super) next_segment: AtomicU32,
    pub(super) feed: CommitFeed,
    pub(super) moves: Arc<RunningMoves>,
}

impl CommitState {
    /// Counts a step of the sequencer.
    pub(super) fn note_step(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether a write failed and the store is not reopened yet.
    pub(super) fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    /// Returns the error for writes after a failed write.
    pub(super) fn refusal(&self) -> Error {
        match self.disk.as_ref().map(DiskSpace::check_reopening) {
            Some(Err(full)) => full,
            _ => poisoned(),
        }
    }
}

/// What the sequencer takes from its queue.
pub(super) enum QueueItem {
    /// A write set.
    Set(Box<Pending>),
    /// A question whether the sequencer is at work, answered after the sets before it.
    Ping(oneshot::Sender<()>),
}

/// A write set in the queue.
pub(super) struct Pending {
    pub(super) prepared: PreparedSet,
    pub(super) bytes: usize,
    pub(super) turn: Arc<Turn>,
    pub(super) answer: oneshot::Sender<Result<Receipt>>,
    /// Its share of the byte budget of the queue, released when the set is done.
    pub(super) _permit: OwnedSemaphorePermit,
}

/// The turn of a write set, which either the sequencer takes or its writer gives up.
#[derive(Debug, Default)]
pub(super) struct Turn(AtomicBool);

impl Turn {
    /// Takes or gives up the turn. Only the first call succeeds.
    pub(super) fn decide(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// A write set and what was prepared for it before its turn.
pub(super) struct PreparedSet {
    pub(super) set: WriteSet,
    pub(super) trim: Option<TrimStep>,
    /// As of this seq the inserted keys were free among cold rows, and the segments' keys among all rows.
    pub(super) cold_checked: Seq,
}

/// Returns the error for writes while the store is not reopened yet.
pub(super) fn poisoned() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        SqlState::IO_ERROR,
        "the database takes no writes because an earlier write to disk failed",
    )
    .hint("the store is being reopened automatically; writes resume then")
}

/// Returns the error for writes after the sequencer's thread has ended.
pub(super) fn sequencer_ended() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        SqlState::IO_ERROR,
        "the database takes no writes because the thread that orders them has ended",
    )
    .hint("restart the server; its log has the reason")
}

/// Returns the error for a write of a group that could not be written.
pub(super) fn outcome_unknown() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        SqlState::OUTCOME_UNKNOWN,
        "the write to disk failed, so it is unknown whether the change was made",
    )
    .hint("check whether it was made after the store has reopened, which happens automatically")
}
