//! Equal subscriptions: evaluated and encoded once, delivered from one bounded ring.
//!
//! The ring holds entries of whole commits. Readers are cursors that take frame by frame, so a slow reader
//! costs nothing: once the ring no longer reaches back to its cursor, it reads the change log. New entries
//! always evict the oldest. Large commits are not kept at all; all readers take them from the log.
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

use super::cursor::Cursor;
use super::frame::{Frame, FrameBody, held_bytes};
use super::frame_maker::{Entry, FrameLimits, FrameMaker};
use super::images::Images;
use super::plan::LiveQueryPlan;
use super::token::Fingerprint;
use crate::change_log::LogPosition;
use crate::error::{Error, Result};
use crate::ids::{SchemaVersion, ScopeId, Seq, TableId};

/// A commit in several frames is not kept when they take more than this fraction of the ring.
const ENTRY_FRACTION: usize = 4;

/// A group of equal subscriptions.
pub(crate) struct QueryGroup {
    pub(crate) key: GroupKey,
    pub(crate) plan: LiveQueryPlan,
    pub(crate) maker: FrameMaker,
    /// Chunks of the change log that members can take from others.
    pub(super) chunks: Mutex<VecDeque<KeptChunk>>,
    /// Held during an evaluation of the change log, so that other members wait for its result instead of
    /// evaluating the same chunk.
    pub(super) evaluating: tokio::sync::Mutex<()>,
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
    /// The query delivered nothing for the commits after the first and up to the second, which are before
    /// the floor.
    quiet: (Seq, Seq),
    entries: VecDeque<RingEntry>,
    bytes: usize,
}

/// An entry, and where in it each frame begins.
struct RingEntry {
    entry: Entry,
    /// For each frame the number of rows before it.
    starts: Vec<usize>,
    bytes: usize,
}

/// The bytes of all rings together.
pub(crate) struct RingTotal {
    pub(crate) bytes: AtomicUsize,
    pub(crate) bytes_max: usize,
}

/// The result of reading a ring at a cursor.
pub(super) enum RingRead {
    /// The next frame.
    Frame(Arc<Frame>),
    /// What follows this cursor is only in the change log: the ring does not reach back to it, lacks commits
    /// after it, or has an entry that the cursor or `up_to` splits.
    Behind(Cursor),
    /// Nothing follows the cursor.
    UpToDate,
}

/// The frames of a group for one piece of the change log.
pub(super) struct LogChunk {
    pub(super) id: u64,
    /// Where the piece begins, and how many delivered rows of it are not in the frames.
    pub(super) from: Cursor,
    /// Where the next piece begins.
    pub(super) next: LogPosition,
    /// The commit of the first row in the frames.
    pub(super) first: Option<Seq>,
    pub(super) frames: Vec<Arc<Frame>>,
    pub(super) bytes: usize,
    /// Rows at the beginning of the piece that are not in the frames; fewer than wanted if it has no others.
    pub(super) left_out: usize,
}

/// A chunk that members can take.
pub(super) enum KeptChunk {
    /// As long as a member holds it.
    Held(Weak<LogChunk>),
    /// It has no frames, so nobody holds it.
    Empty(Arc<LogChunk>),
}

impl KeptChunk {
    pub(super) fn is_held(&self) -> bool {
        match self {
            Self::Held(chunk) => chunk.strong_count() > 0,
            Self::Empty(_) => true,
        }
    }

    pub(super) fn get(&self) -> Option<Arc<LogChunk>> {
        match self {
            Self::Held(chunk) => chunk.upgrade(),
            Self::Empty(chunk) => Some(Arc::clone(chunk)),
        }
    }
}

impl LogChunk {
    /// Returns the number of the frame that follows `cursor`, if the chunk has what follows it and nothing
    /// after `up_to`.
    pub(super) fn frame_after(&self, cursor: Cursor, up_to: Option<Seq>) -> Option<usize> {
        let last = if self.next.is_between_commits() { self.next.complete() } else { self.next.seq };
        if self.from.position != cursor.position || up_to.is_some_and(|up_to| last > up_to) {
            return None;
        }
        let mut rows = self.from.rows;
        if self.frames.is_empty() {
            return (rows <= cursor.rows).then_some(0);
        }
        for (number, frame) in self.frames.iter().enumerate() {
            if rows == cursor.rows {
                return Some(number);
            }
            // Only rows of a commit that the client does not have completely are counted.
            match &frame.body {
                FrameBody::Delta(delta) if frame.more && rows < cursor.rows => rows += delta.rows,
                _ => return None,
            }
        }
        (rows == cursor.rows).then_some(self.frames.len())
    }
}

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
            chunks: Mutex::default(),
            evaluating: tokio::sync::Mutex::default(),
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

    /// Delivers the changes of the commits after `matched` up to `through`.
    pub(crate) fn push(&self, batch: &RecordBatch, matched: Seq, through: Seq) -> Result<()> {
        let entries: Vec<_> = self.maker.entries(batch, through)?.into_iter().map(RingEntry::new).collect();
        let bytes_max = self.ring_bytes_max / ENTRY_FRACTION;
        if entries.iter().any(|entry| entry.starts.len() > 1 && entry.bytes > bytes_max) {
            self.skip_to(matched, through);
            return Ok(());
        }
        let mut ring = self.ring.lock();
        for entry in entries {
            ring.bytes += entry.bytes;
            self.total.bytes.fetch_add(entry.bytes, Ordering::Relaxed);
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
        if let Some(evicted) = ring.entries.pop_front() {
            ring.bytes -= evicted.bytes;
            self.total.bytes.fetch_sub(evicted.bytes, Ordering::Relaxed);
            ring.floor = ring.floor.max(evicted.entry.through);
        }
    }

    /// Drops everything up to `through`; readers use the change log. The ring has what the query delivers up
    /// to `matched`, and the commits after it were skipped.
    pub(crate) fn skip_to(&self, matched: Seq, through: Seq) {
        let mut ring = self.ring.lock();
        if ring.adopted {
            let last = ring.entries.back().map_or(ring.floor, |last| last.entry.through);
            ring.quiet = (last.max(ring.gap), matched);
        }
        while !ring.entries.is_empty() {
            self.evict(&mut ring);
        }
        ring.floor = through;
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
    pub(super) fn read(&self, cursor: Cursor, up_to: Option<Seq>) -> RingRead {
        if !cursor.position.is_between_commits() {
            return RingRead::Behind(cursor);
        }
        let ring = self.ring.lock();
        if !ring.adopted {
            return if cursor.rows == 0 { RingRead::UpToDate } else { RingRead::Behind(cursor) };
        }
        let done = cursor.complete();
        if done < ring.floor {
            return RingRead::Behind(ring.past_quiet(cursor, up_to));
        }
        let position = ring.entries.partition_point(|entry| entry.entry.through <= done);
        let Some(RingEntry { entry, starts, .. }) = ring.entries.get(position) else {
            let has_all = done >= ring.gap && cursor.rows == 0;
            return if has_all { RingRead::UpToDate } else { RingRead::Behind(cursor) };
        };
        let is_missing = done < ring.gap && entry.first > ring.gap;
        let is_split = entry.first <= done || up_to.is_some_and(|up_to| entry.through > up_to);
        // Rows are counted within the commit after `done`, which then has this entry for itself.
        let number = match cursor.rows {
            0 => Some(0),
            rows if entry.first == done.next() => starts.binary_search(&rows).ok(),
            _ => None,
        };
        match number.and_then(|number| entry.frames.get(number)) {
            Some(frame) if !is_missing && !is_split => RingRead::Frame(Arc::clone(frame)),
            _ => RingRead::Behind(cursor),
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

impl FrameRing {
    /// Moves a cursor before the floor past commits for which the query delivered nothing. So members that
    /// were up to date read the change log from the same position.
    fn past_quiet(&self, cursor: Cursor, up_to: Option<Seq>) -> Cursor {
        let (after, through) = self.quiet;
        let through = up_to.map_or(through, |up_to| through.min(up_to));
        let done = cursor.complete();
        let is_quiet = after <= done && done < through && cursor.rows == 0;
        if is_quiet { Cursor::after(through) } else { cursor }
    }
}

impl RingEntry {
    fn new(entry: Entry) -> Self {
        let mut rows = 0;
        let begins = |frame: &Arc<Frame>| {
            let begin = rows;
            if let FrameBody::Delta(delta) = &frame.body {
                rows += delta.rows;
            }
            begin
        };
        let starts = entry.frames.iter().map(begins).collect();
        let bytes = entry.frames.iter().map(|frame| held_bytes(frame)).sum();
        Self { entry, starts, bytes }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use datafusion::arrow::datatypes::Schema;

    use super::*;
    use crate::live_query::frame::EncodedBatch;

    fn delta(complete_through: u64, rows: usize, more: bool) -> Arc<Frame> {
        let rows = EncodedBatch { ipc: Bytes::new(), rows, schema: Arc::new(Schema::empty()) };
        Arc::new(Frame {
            complete_through: Seq(complete_through),
            resume_token: None,
            more,
            server_time_us: 0,
            body: FrameBody::Delta(rows),
        })
    }

    fn chunk(from: Cursor, next: LogPosition, frames: Vec<Arc<Frame>>) -> LogChunk {
        LogChunk { id: 1, from, next, first: None, frames, bytes: 0, left_out: from.rows }
    }

    fn within(seq: u64, row: u32) -> LogPosition {
        LogPosition { seq: Seq(seq), part: 0, row }
    }

    #[test]
    fn a_chunk_serves_cursors_at_the_frames_of_its_first_commit() {
        let at = |rows| Cursor { rows, ..Cursor::after(Seq(4)) };
        // Commit 5 in three frames, then commit 6.
        let frames = vec![delta(4, 10, true), delta(4, 5, true), delta(5, 5, false), delta(6, 1, false)];
        let whole = chunk(at(0), LogPosition::after(Seq(6)), frames.clone());
        let number = |rows| whole.frame_after(at(rows), None);
        assert_eq!([number(0), number(10), number(15)], [Some(0), Some(1), Some(2)]);
        assert_eq!([number(5), number(20), number(21)], [None; 3]);
        assert_eq!(whole.frame_after(Cursor::after(Seq(5)), None), None);
        let rest = chunk(at(10), LogPosition::after(Seq(6)), frames[1..].to_vec());
        let number = |rows| rest.frame_after(at(rows), None);
        assert_eq!([number(0), number(10), number(15)], [None, Some(0), Some(1)]);
    }

    #[test]
    fn a_chunk_serves_nobody_who_wants_less() {
        let from = Cursor::after(Seq(4));
        for (next, last) in [(LogPosition::after(Seq(6)), 6), (within(6, 3), 6), (within(7, 1), 7)] {
            let chunk = chunk(from, next, vec![delta(4, 1, true)]);
            assert_eq!(chunk.frame_after(from, Some(Seq(last))), Some(0));
            assert_eq!(chunk.frame_after(from, Some(Seq(last - 1))), None);
        }
    }

    #[test]
    fn a_chunk_without_frames_serves_those_who_have_all_its_rows() {
        let at = |rows| Cursor { rows, ..Cursor::after(Seq(4)) };
        let chunk = chunk(at(7), within(5, 9), Vec::new());
        assert_eq!([6, 7, 8].map(|rows| chunk.frame_after(at(rows), None)), [None, Some(0), Some(0)]);
        // All frames of an unfinished commit are delivered.
        let delivered = super::LogChunk { frames: vec![delta(4, 3, true)], ..chunk };
        assert_eq!(delivered.frame_after(at(10), None), Some(1));
    }
}
