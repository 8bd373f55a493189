//! Equal subscriptions: evaluated and encoded once, delivered from one bounded ring.
//!
//! The ring holds entries of whole commits. Readers are cursors, so a slow reader costs nothing: once the
//! ring no longer reaches back to its cursor, it reads the change log. New entries always evict the oldest.
//!
//! Invariant: once the matcher has adopted the group, the ring holds everything the query delivers for the
//! commits after `floor` up to the matcher's frontier, except those of a `gap`.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use datafusion::arrow::array::RecordBatch;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::frame::{Frame, FrameBody, held_bytes};
use super::frame_maker::{Entry, FrameLimits, FrameMaker};
use super::images::Images;
use super::plan::LiveQueryPlan;
use super::token::Fingerprint;
use crate::error::{Error, Result};
use crate::ids::{SchemaVersion, ScopeId, Seq, TableId};

/// A group of equal subscriptions.
pub(crate) struct QueryGroup {
    pub(crate) key: GroupKey,
    pub(crate) plan: LiveQueryPlan,
    pub(crate) maker: FrameMaker,
    /// Chunks of the change log for members that the ring does not serve.
    pub(super) chunks: LogChunks,
    ring: Mutex<FrameRing>,
    ring_bytes_max: usize,
    /// Bytes in all rings of the process, and their limit.
    total: Arc<RingTotal>,
    /// Notifies subscribers that there may be something new.
    wake: watch::Sender<()>,
    /// The heartbeat frame of the newest frontier, shared by all subscribers.
    progress: Mutex<Option<Arc<Frame>>>,
}

/// The key of a group: equal subscriptions have equal keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct GroupKey {
    pub(crate) table: TableId,
    pub(crate) version: SchemaVersion,
    pub(crate) scope: ScopeId,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) limits: FrameLimits,
    /// Distinguishes different queries with the same fingerprint.
    pub(crate) ordinal: u32,
}

#[derive(Default)]
struct FrameRing {
    /// Set by the matcher when it starts to follow.
    adopted: bool,
    floor: Seq,
    /// The last commits up to this one may be missing from the ring, because their evaluation failed.
    gap: Seq,
    entries: VecDeque<Entry>,
    bytes: usize,
}

/// The bytes of all rings together.
pub(crate) struct RingTotal {
    pub(crate) bytes: AtomicUsize,
    pub(crate) bytes_max: usize,
}

/// The result of reading a ring at a cursor.
pub(crate) enum RingRead {
    /// The next frames, and the cursor after them.
    Frames(Vec<Arc<Frame>>, Seq),
    /// The next commits are only in the change log: the ring does not reach back to the cursor, lacks commits
    /// after it, or has an entry that the cursor or `up_to` splits.
    Behind,
    /// Nothing follows the cursor.
    UpToDate,
}

/// The frames of a group for one range of the change log.
pub(super) struct LogChunk {
    pub(super) after: Seq,
    pub(super) through: Seq,
    pub(super) frames: Vec<Arc<Frame>>,
}

/// The chunks of a group that a member still delivers. The lock is held during an evaluation, so that other
/// members wait for its result instead of evaluating the same chunk.
pub(super) type LogChunks = tokio::sync::Mutex<VecDeque<Weak<LogChunk>>>;

impl QueryGroup {
    pub(crate) fn new(
        key: GroupKey,
        plan: LiveQueryPlan,
        maker: FrameMaker,
        ring_bytes_max: usize,
        total: Arc<RingTotal>,
    ) -> Self {
        Self {
            key,
            plan,
            maker,
            chunks: LogChunks::default(),
            ring: Mutex::default(),
            ring_bytes_max,
            total,
            wake: watch::Sender::new(()),
            progress: Mutex::default(),
        }
    }

    /// Starts to follow after `frontier`. Only the matcher calls this, before it looks at later commits.
    pub(crate) fn adopt(&self, frontier: Seq) {
        let mut ring = self.ring.lock();
        ring.adopted = true;
        ring.floor = frontier;
    }

    pub(crate) fn is_adopted(&self) -> bool {
        self.ring.lock().adopted
    }

    /// Returns what the subscribers learn from `images`. An expression that panics ends only its own query.
    pub(crate) fn changes(&self, images: &Images) -> Result<Option<RecordBatch>> {
        catch_unwind(AssertUnwindSafe(|| self.plan.evaluator.changes(images)))
            .unwrap_or_else(|_| Err(Error::internal("an expression of the live query failed")))
    }

    /// Delivers the changes of the commits up to `through`.
    pub(crate) fn push(&self, batch: &RecordBatch, through: Seq) -> Result<()> {
        let entries = self.maker.entries(batch, through)?;
        let mut ring = self.ring.lock();
        for entry in entries {
            let bytes = entry_bytes(&entry);
            ring.bytes += bytes;
            self.total.bytes.fetch_add(bytes, Ordering::Relaxed);
            ring.entries.push_back(entry);
        }
        // The newest entry stays if it alone fits the limit of all rings. So readers that keep up are served
        // even when it is larger than this ring should be.
        while (ring.bytes > self.ring_bytes_max && ring.entries.len() > 1)
            || (self.total.bytes.load(Ordering::Relaxed) > self.total.bytes_max && !ring.entries.is_empty())
        {
            self.evict(&mut ring);
        }
        drop(ring);
        self.wake();
        Ok(())
    }

    fn evict(&self, ring: &mut FrameRing) {
        if let Some(entry) = ring.entries.pop_front() {
            let bytes = entry_bytes(&entry);
            ring.bytes -= bytes;
            self.total.bytes.fetch_sub(bytes, Ordering::Relaxed);
            ring.floor = ring.floor.max(entry.through);
        }
    }

    /// Drops everything up to `frontier`, which the matcher skipped. Readers use the change log.
    pub(crate) fn skip_to(&self, frontier: Seq) {
        let mut ring = self.ring.lock();
        while !ring.entries.is_empty() {
            self.evict(&mut ring);
        }
        ring.floor = frontier;
        drop(ring);
        self.wake();
    }

    /// Records that the commits up to `through` could not be evaluated. Subscribers without them read the
    /// change log and get the error there.
    pub(crate) fn leave_gap(&self, through: Seq) {
        self.ring.lock().gap = through;
        self.wake();
    }

    /// Reads what follows `cursor`, up to `up_to` if there is one.
    pub(crate) fn read(&self, cursor: Seq, up_to: Option<Seq>) -> RingRead {
        let ring = self.ring.lock();
        if !ring.adopted {
            return RingRead::UpToDate;
        }
        if cursor < ring.floor {
            return RingRead::Behind;
        }
        let position = ring.entries.partition_point(|entry| entry.through <= cursor);
        match ring.entries.get(position) {
            None if cursor < ring.gap => RingRead::Behind,
            Some(entry) if cursor < ring.gap && entry.first > ring.gap => RingRead::Behind,
            None => RingRead::UpToDate,
            Some(entry) if entry.first <= cursor || up_to.is_some_and(|up_to| entry.through > up_to) => {
                RingRead::Behind
            }
            Some(entry) => RingRead::Frames(entry.frames.clone(), entry.through),
        }
    }

    /// Returns the heartbeat frame for everything up to `frontier`.
    pub(crate) fn progress(&self, frontier: Seq) -> Arc<Frame> {
        let mut newest = self.progress.lock();
        if let Some(frame) = newest.as_ref().filter(|frame| frame.complete_through == frontier) {
            return Arc::clone(frame);
        }
        let frame = Arc::new(self.maker.complete(frontier, FrameBody::Progress));
        *newest = Some(Arc::clone(&frame));
        frame
    }

    /// Makes every subscriber check for frames.
    pub(crate) fn wake(&self) {
        self.wake.send_replace(());
    }

    pub(crate) fn woken(&self) -> watch::Receiver<()> {
        self.wake.subscribe()
    }
}

impl Drop for QueryGroup {
    fn drop(&mut self) {
        self.total.bytes.fetch_sub(self.ring.get_mut().bytes, Ordering::Relaxed);
    }
}

fn entry_bytes(entry: &Entry) -> usize {
    entry.frames.iter().map(|frame| held_bytes(frame)).sum()
}
