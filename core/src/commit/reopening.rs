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

use super::recovery::{Recovered, recover};
use super::sequencer::{Installed, Pending, Sequencer, poisoned};
use super::validation::LastChanges;
use crate::error::{Error, Result};
use crate::failpoint;
use crate::storage::DiskSpace;

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A store that fails again within this time is reopened after a longer pause.
const WELL_AFTER: Duration = Duration::from_secs(60);

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

impl Sequencer {
    /// Reopens the store. Returns on success, or when the database is closed.
    pub(super) fn reopen_until_it_works(&mut self, queue: &mut Receiver<Pending>) {
        let mut pause = self.backoff.begin();
        while self.refuse_for(pause, queue) {
            match self.reopen() {
                Ok(()) => {
                    self.backoff.succeeded();
                    return;
                }
                Err(error) => {
                    pause = self.backoff.failed();
                    let source = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::error!(%error, source, pause_ms = pause.as_millis(), "the store could not be reopened and is tried again");
                }
            }
        }
    }

    /// Refuses queued sets for the time of `pause`. Returns whether more can come.
    fn refuse_for(&self, pause: Duration, queue: &mut Receiver<Pending>) -> bool {
        let until = Instant::now() + pause;
        loop {
            match queue.try_recv() {
                Ok(pending) => {
                    // If the caller stopped waiting, nobody needs the error.
                    let _ = pending.answer.send(Err(self.installed.refusal()));
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

    fn reopen(&mut self) -> Result<()> {
        if let Some(disk) = &self.installed.disk {
            disk.check_reopening()?;
        }
        if let Some(directory) = &self.directory {
            directory.probe()?;
        }
        let before = self.installed.snapshot.load_full();
        failpoint::step("reopen::open")?;
        self.storage.reopen()?;
        failpoint::step("reopen::opened")?;
        let segments = Arc::clone(before.cold.store());
        let Recovered { database, epochs, snapshot } = recover(
            &*self.storage,
            self.directory.as_deref(),
            segments,
            self.hot,
            Some(&*before),
            self.clock.now_us(),
        )?;
        if database != self.database {
            return Err(Error::corruption("the store is that of another database")
                .hint("restore the data directory from a backup"));
        }
        failpoint::step("reopen::recovered")?;
        let (seq, epoch) = (snapshot.seq, snapshot.epoch);
        self.last_changes = LastChanges::unknown_before(seq);
        self.installed.moves.give_up();
        self.installed.next_segment.fetch_max(snapshot.cold.next().0, Ordering::Relaxed);
        // The epochs first: a token of the new epoch is valid for every commit so far.
        self.installed.epochs.store(Arc::new(epochs));
        self.installed.snapshot.store(Arc::new(snapshot));
        if seq > before.seq {
            self.installed.feed.skip_to(seq);
        }
        self.installed.reopenings.fetch_add(1, Ordering::Relaxed);
        self.installed.poisoned.store(false, Ordering::Release);
        tracing::warn!(seq = seq.0, epoch = epoch.0, "the store was reopened; writes are taken again");
        Ok(())
    }
}

impl Installed {
    /// Returns the error for writes after a failed write.
    pub(super) fn refusal(&self) -> Error {
        match self.disk.as_ref().map(DiskSpace::check_reopening) {
            Some(Err(full)) => full,
            _ => poisoned(),
        }
    }
}
