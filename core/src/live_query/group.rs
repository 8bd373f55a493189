//! Equal subscriptions: evaluated and encoded once, delivered from one bounded ring.
//!
//! The ring holds entries of whole commits. Readers are cursors, so a slow reader costs nothing: once the
//! ring no longer reaches back to its cursor, it reads the change log. New entries always evict the oldest.
//!
//! Invariant: once the matcher has adopted the group, the ring holds everything the query delivers for the
//! commits after `floor` up to the matcher's frontier, except those of a `gap`.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::catch_up::LogChunks;
use super::evaluator::delivered_seqs;
use super::frame::{EncodedBatch, Frame, FrameBody, held_bytes};
use super::plan::LiveQueryPlan;
use super::token::{Fingerprint, Position, Sealer, TokenScope};
use crate::clock::Clock;
use crate::commit::Committer;
use crate::error::Result;
use crate::ids::{SchemaVersion, ScopeId, Seq, Shard, TableId};

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

/// The limits of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FrameLimits {
    pub(crate) rows_max: usize,
    /// Encoded bytes; a single row may exceed them.
    pub(crate) bytes_max: usize,
}

/// Builds frames from rows: tokens, times, sizes. The same for all subscribers of a group.
pub(crate) struct FrameMaker {
    pub(crate) scope: TokenScope,
    pub(crate) committer: Arc<Committer>,
    pub(crate) sealer: Sealer,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) limits: FrameLimits,
}

/// All frames of one or more whole commits.
pub(crate) struct Entry {
    /// The first commit with a row here.
    pub(crate) first: Seq,
    /// A subscriber that had everything before `first` and got these frames is complete up to here.
    pub(crate) through: Seq,
    pub(crate) frames: Vec<Arc<Frame>>,
}

impl FrameMaker {
    /// Returns the token of a client that has everything up to `seq`.
    pub(crate) fn token(&self, seq: Seq) -> Bytes {
        // Readable commits of earlier epochs belong to this epoch's history, so its number fits all.
        let epoch = self.committer.epochs().current();
        self.sealer.seal(&self.scope, Position { shard: Shard(0), epoch, seq })
    }

    /// Returns a frame after which every commit up to `seq` is delivered.
    pub(crate) fn complete(&self, seq: Seq, body: FrameBody) -> Frame {
        Frame {
            complete_through: seq,
            resume_token: Some(self.token(seq)),
            more: false,
            server_time_us: self.clock.now_us(),
            body,
        }
    }

    /// Returns a frame that leaves `complete_through` at `seq`.
    pub(crate) fn unmoved(&self, seq: Seq, more: MoreFollows, body: FrameBody) -> Frame {
        Frame {
            complete_through: seq,
            resume_token: None,
            more: more == MoreFollows::Yes,
            server_time_us: self.clock.now_us(),
            body,
        }
    }

    /// Splits delta rows, in commit order, into entries. The last one is complete up to `through`.
    pub(crate) fn entries(&self, batch: &RecordBatch, through: Seq) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        self.cut_commits(batch, 0..batch.num_rows(), &mut entries)?;
        let Some(last) = entries.last_mut() else { return Ok(entries) };
        if last.through < through {
            // No reader has the entry yet, so its last frame can cover later commits without changes.
            last.through = through;
            if let Some(frame) = last.frames.pop().and_then(Arc::into_inner) {
                last.frames.push(Arc::new(self.complete(through, frame.body)));
            }
        }
        Ok(entries)
    }

    /// Halves the rows at commit boundaries until each part fits a frame.
    fn cut_commits(&self, batch: &RecordBatch, rows: Range<usize>, entries: &mut Vec<Entry>) -> Result<()> {
        let seqs = delivered_seqs(batch).get(rows.clone()).unwrap_or_default();
        let (Some(first), Some(last)) = (seqs.first(), seqs.last()) else { return Ok(()) };
        let (first_seq, last_seq) = (seq_of(*first), seq_of(*last));
        assert!(first_seq <= last_seq, "delta rows are in commit order");
        if first == last {
            let mut parts = Vec::new();
            self.cut_rows(batch, rows, &mut parts)?;
            entries.push(self.fragments(first_seq, parts));
            return Ok(());
        }
        if rows.len() <= self.limits.rows_max {
            let part = EncodedBatch::encode(batch.slice(rows.start, rows.len()))?;
            if part.ipc.len() <= self.limits.bytes_max {
                let frame = self.complete(last_seq, FrameBody::Delta(part));
                entries.push(Entry { first: first_seq, through: last_seq, frames: vec![Arc::new(frame)] });
                return Ok(());
            }
        }
        let middle = seqs.get(seqs.len() / 2).unwrap_or(last);
        let before = seqs.partition_point(|seq| seq < middle);
        let boundary = if before > 0 { before } else { seqs.partition_point(|seq| seq <= middle) };
        let split = rows.start + boundary;
        self.cut_commits(batch, rows.start..split, entries)?;
        self.cut_commits(batch, split..rows.end, entries)
    }

    /// Halves the rows until each part fits a frame.
    pub(crate) fn cut_rows(
        &self,
        batch: &RecordBatch,
        rows: Range<usize>,
        parts: &mut Vec<EncodedBatch>,
    ) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        if rows.len() <= self.limits.rows_max {
            let part = EncodedBatch::encode(batch.slice(rows.start, rows.len()))?;
            if part.ipc.len() <= self.limits.bytes_max || rows.len() == 1 {
                parts.push(part);
                return Ok(());
            }
        }
        let split = rows.start + rows.len() / 2;
        self.cut_rows(batch, rows.start..split, parts)?;
        self.cut_rows(batch, split..rows.end, parts)
    }

    /// Returns the frames of one commit. Only the last one moves `complete_through`.
    fn fragments(&self, seq: Seq, parts: Vec<EncodedBatch>) -> Entry {
        let before = Seq(seq.0.saturating_sub(1));
        let last = parts.len().saturating_sub(1);
        let frame = |(position, part)| {
            let body = FrameBody::Delta(part);
            Arc::new(match position == last {
                true => self.complete(seq, body),
                false => self.unmoved(before, MoreFollows::Yes, body),
            })
        };
        Entry { first: seq, through: seq, frames: parts.into_iter().enumerate().map(frame).collect() }
    }
}

/// Whether more of the same commit or snapshot follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MoreFollows {
    Yes,
    No,
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

/// A group of equal subscriptions.
pub(crate) struct Group {
    pub(crate) key: GroupKey,
    pub(crate) plan: LiveQueryPlan,
    pub(crate) maker: FrameMaker,
    /// Chunks of the change log for members that the ring does not serve.
    pub(super) chunks: LogChunks,
    ring: Mutex<Ring>,
    ring_bytes_max: usize,
    /// Bytes in all rings of the process, and their limit.
    total: Arc<RingTotal>,
    /// Notifies subscribers that there may be something new.
    wake: watch::Sender<()>,
    /// The heartbeat frame of the newest frontier, shared by all subscribers.
    progress: Mutex<Option<Arc<Frame>>>,
}

#[derive(Default)]
struct Ring {
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

impl Group {
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

    fn evict(&self, ring: &mut Ring) {
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

impl Drop for Group {
    fn drop(&mut self) {
        self.total.bytes.fetch_sub(self.ring.get_mut().bytes, Ordering::Relaxed);
    }
}

fn entry_bytes(entry: &Entry) -> usize {
    entry.frames.iter().map(|frame| held_bytes(frame)).sum()
}

fn seq_of(value: i64) -> Seq {
    Seq(u64::try_from(value).unwrap_or_default())
}
