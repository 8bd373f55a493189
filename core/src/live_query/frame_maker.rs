//! Builds the frames of one query: tokens, times and sizes, the same for all subscribers of a group.
//!
//! Invariant: only the last frame of a commit moves `complete_through`. The frames of several commits are cut
//! at commit boundaries where that is possible.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;

use super::evaluator::delivered_seqs;
use super::frame::{EncodedBatch, Frame, FrameBody};
use super::token::{CommitPosition, Sealer, TokenScope};
use crate::change_log::LogPosition;
use crate::clock::Clock;
use crate::commit::Committer;
use crate::error::Result;
use crate::ids::{Seq, Shard};

/// Builds frames from rows: tokens, times, sizes. The same for all subscribers of a group.
pub(crate) struct FrameMaker {
    pub(crate) scope: TokenScope,
    pub(crate) committer: Arc<Committer>,
    pub(crate) sealer: Sealer,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) limits: FrameLimits,
}

/// The limits of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FrameLimits {
    pub(crate) rows_max: usize,
    /// Encoded bytes; a single row may exceed them.
    pub(crate) bytes_max: usize,
}

/// All frames of one or more whole commits.
pub(crate) struct Entry {
    /// The first commit with a row here.
    pub(crate) first: Seq,
    /// A subscriber that had everything before `first` and got these frames is complete up to here.
    pub(crate) through: Seq,
    pub(crate) frames: Vec<Arc<Frame>>,
}

/// Whether more of the same commit or snapshot follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MoreFollows {
    Yes,
    No,
}

impl FrameMaker {
    /// Returns the token of a client that has everything up to `seq`.
    pub(crate) fn token(&self, seq: Seq) -> Bytes {
        // Readable commits of earlier epochs belong to this epoch's history, so its number fits all.
        let epoch = self.committer.epochs().current();
        self.sealer.seal(&self.scope, CommitPosition { shard: Shard(0), epoch, seq })
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
    pub(crate) fn incomplete(&self, seq: Seq, more: MoreFollows, body: FrameBody) -> Frame {
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

    /// Returns the frames of delta rows from a piece of the change log that ends before `next`. If the last
    /// commit goes on after the piece, none of its frames completes it.
    pub(crate) fn piece(&self, batch: &RecordBatch, next: LogPosition) -> Result<Vec<Arc<Frame>>> {
        let through = next.complete();
        let complete = delivered_seqs(batch).partition_point(|seq| seq_of(*seq) <= through);
        let entries = self.entries(&batch.slice(0, complete), through)?;
        let mut frames: Vec<_> = entries.into_iter().flat_map(|entry| entry.frames).collect();
        let mut parts = Vec::new();
        self.cut_rows(batch, complete..batch.num_rows(), &mut parts)?;
        let unfinished = |part| self.incomplete(through, MoreFollows::Yes, FrameBody::Delta(part));
        frames.extend(parts.into_iter().map(|part| Arc::new(unfinished(part))));
        Ok(frames)
    }

    /// Returns the last frame of a commit in place of `frame`, which announced more rows that did not come.
    pub(crate) fn completed(&self, frame: &Frame, through: Seq) -> Frame {
        let body = match &frame.body {
            FrameBody::Delta(rows) => FrameBody::Delta(rows.clone()),
            _ => FrameBody::Progress,
        };
        // The bytes are the same for all subscribers, whenever they come to this frame.
        Frame { server_time_us: frame.server_time_us, ..self.complete(through, body) }
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
            let part = EncodedBatch::encode(&batch.slice(rows.start, rows.len()))?;
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
            let part = EncodedBatch::encode(&batch.slice(rows.start, rows.len()))?;
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
                false => self.incomplete(before, MoreFollows::Yes, body),
            })
        };
        Entry { first: seq, through: seq, frames: parts.into_iter().enumerate().map(frame).collect() }
    }
}

/// Returns the commit that `_seq` names.
pub(crate) fn seq_of(value: i64) -> Seq {
    Seq(u64::try_from(value).unwrap_or_default())
}
