//! After a failed write the store is closed, reopened and recovered under a new epoch; then writes resume.
//!
//! It is unknown what reached the disk of the last group, and RocksDB refuses writes after an error. So first
//! a probe file tests the disk, while reads go on in the old store. Once the probe succeeds, the store is
//! reopened, which ends the running reads, and recovered as at a start: the last group is there as a whole or
//! not at all. A failed attempt is repeated after growing pauses, and writers get an error that says why.
//!
//! Invariant: the recovered state contains whatever was acknowledged or seen, or writes stay refused.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Receiver;
use tokio::sync::mpsc::error::TryRecvError;

use super::recovery::{OpenStore, Recovered, recover};
use super::state::{CommitState, QueueItem};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::ids::Seq;

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A store that fails again within this time is reopened after a longer pause.
const WELL_AFTER: Duration = Duration::from_secs(60);

/// Reopens the store. Returns the last commit it has; `None` when the database is closed.
pub(super) fn reopen_until_it_works(
    store: &OpenStore,
    state: &CommitState,
    backoff: &mut Backoff,
    queue: &mut Receiver<QueueItem>,
) -> Option<Seq> {
    let mut pause = backoff.begin();
    while refuse_for(pause, state, queue) {
        match reopen(store, state) {
            Ok(seq) => {
                backoff.succeeded();
                return Some(seq);
            }
            Err(error) => {
                pause = backoff.failed();
                let source = std::error::Error::source(&error).map(ToString::to_string);
                let pause_ms = pause.as_millis();
                tracing::error!(%error, source, pause_ms, "the store could not be reopened; retrying");
            }
        }
    }
    None
}

/// Refuses queued sets for the time of `pause`. Returns whether more can come.
fn refuse_for(pause: Duration, state: &CommitState, queue: &mut Receiver<QueueItem>) -> bool {
    let until = Instant::now() + pause;
    loop {
        match queue.try_recv() {
            Ok(QueueItem::Set(pending)) => {
                // If the caller stopped waiting, nobody needs the error.
                let _ = pending.answer.send(Err(state.refusal()));
                continue;
            }
            Ok(QueueItem::Ping(answer)) => {
                let _ = answer.send(());
                continue;
            }
            Err(TryRecvError::Disconnected) => return false,
            Err(TryRecvError::Empty) => {}
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        // Senders and closing wake this thread.
        std::thread::park_timeout(left);
    }
}

fn reopen(store: &OpenStore, state: &CommitState) -> Result<Seq> {
    if let Some(disk) = &state.disk {
        disk.check_reopening()?;
    }
    if let Some(directory) = &store.directory {
        directory.probe()?;
    }
    let before = state.snapshot.load_full();
    failpoint::step("reopen::open")?;
    store.storage.reopen()?;
    failpoint::step("reopen::opened")?;
    let segments = Arc::clone(before.cold.store());
    let Recovered { database, epochs, snapshot } = recover(store, segments, Some(&*before))?;
    if database != state.database {
        return Err(Error::corruption("the store belongs to another database")
            .hint("restore the data directory from a backup"));
    }
    failpoint::step("reopen::recovered")?;
    let (seq, epoch) = (snapshot.seq, snapshot.epoch);
    state.moves.abandon_flushes();
    state.next_segment.fetch_max(snapshot.cold.next().0, Ordering::Relaxed);
    // The epochs first: a token of the new epoch is valid for every commit so far.
    state.epochs.store(Arc::new(epochs));
    state.snapshot.store(Arc::new(snapshot));
    if seq > before.seq {
        state.feed.skip_to(seq);
    }
    state.reopenings.fetch_add(1, Ordering::Relaxed);
    state.poisoned.store(false, Ordering::Release);
    tracing::warn!(seq = seq.0, epoch = epoch.0, "the store was reopened; writes resume");
    Ok(seq)
}

/// The pauses between attempts to reopen the store.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    pause: Duration,
    reopened_at: Option<Instant>,
}

impl Backoff {
    /// The pause before the first attempt after a failed write.
    fn begin(&mut self) -> Duration {
        if self.reopened_at.is_none_or(|at| at.elapsed() >= WELL_AFTER) {
            self.pause = Duration::ZERO;
        }
        self.pause
    }

    /// The pause after an attempt that failed.
    fn failed(&mut self) -> Duration {
        self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        self.pause
    }

    fn succeeded(&mut self) {
        self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        self.reopened_at = Some(Instant::now());
    }
}
