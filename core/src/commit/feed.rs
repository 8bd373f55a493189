//! The latest commits, in memory, for those who follow them.
//!
//! The ring is bounded in bytes. Publishing never waits: it evicts the oldest commits. A follower that falls
//! behind reads the change log instead. Of a large commit the ring has only a stub, which says what changed.
//! So it sends only those to the log who follow what it changed.
//!
//! Invariant: the ring has no gap and ends at the published seq.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::change_log::CommitRecord;
use crate::ids::Seq;

/// A commit that takes more than this fraction of the ring is replaced by its stub.
const STUB_FRACTION: usize = 4;

/// A handle to the latest commits; clones share the ring.
#[derive(Clone, Debug)]
pub struct CommitFeed {
    state: Arc<FeedState>,
}

#[derive(Debug)]
struct FeedState {
    ring: Mutex<CommitRing>,
    published: watch::Sender<Seq>,
}

#[derive(Debug)]
struct CommitRing {
    records: VecDeque<(Arc<CommitRecord>, usize)>,
    bytes: usize,
    bytes_max: usize,
    /// Commits up to this one are not in the ring.
    evicted_through: Seq,
}

impl CommitFeed {
    /// Creates a feed whose next commit is the one after `seq`.
    pub(super) fn starting_after(seq: Seq, bytes_max: usize) -> Self {
        let ring = CommitRing { records: VecDeque::new(), bytes: 0, bytes_max, evicted_through: seq };
        Self { state: Arc::new(FeedState { ring: Mutex::new(ring), published: watch::Sender::new(seq) }) }
    }

    /// Returns the commits after `seq`, in order; `None` if some are no longer here but in the change log.
    pub fn after(&self, seq: Seq) -> Option<Vec<Arc<CommitRecord>>> {
        let ring = self.state.ring.lock();
        let skip = usize::try_from(seq.0.checked_sub(ring.evicted_through.0)?).unwrap_or(usize::MAX);
        Some(ring.records.iter().skip(skip).map(|(record, _)| Arc::clone(record)).collect())
    }

    /// Returns the last published seq.
    pub fn published(&self) -> Seq {
        *self.state.published.borrow()
    }

    /// Returns a receiver that wakes when a later seq is published; it closes when the committer is gone.
    pub fn watch(&self) -> watch::Receiver<Seq> {
        self.state.published.subscribe()
    }

    /// Returns the number of commits and of bytes in the ring.
    pub fn size(&self) -> (usize, usize) {
        let ring = self.state.ring.lock();
        (ring.records.len(), ring.bytes)
    }

    /// Adds commits; the first must be the one after the last published.
    pub(super) fn publish(&self, records: impl IntoIterator<Item = Arc<CommitRecord>>) {
        let mut ring = self.state.ring.lock();
        let mut last = None;
        for record in records {
            debug_assert_eq!(
                record.seq.0,
                ring.evicted_through.0 + ring.records.len() as u64 + 1,
                "the ring has no gap"
            );
            last = Some(record.seq);
            let (record, bytes) = stub_if_large(record, ring.bytes_max);
            ring.bytes += bytes;
            ring.records.push_back((record, bytes));
        }
        while ring.bytes > ring.bytes_max
            && let Some((record, bytes)) = ring.records.pop_front()
        {
            ring.bytes -= bytes;
            ring.evicted_through = record.seq;
        }
        drop(ring);
        if let Some(seq) = last {
            self.state.published.send_replace(seq);
        }
    }

    /// Continues after `seq`, without the commits up to it.
    pub(super) fn skip_to(&self, seq: Seq) {
        let mut ring = self.state.ring.lock();
        ring.records.clear();
        (ring.bytes, ring.evicted_through) = (0, seq);
        drop(ring);
        self.state.published.send_replace(seq);
    }
}

/// Returns what the ring keeps of a commit, and its bytes.
fn stub_if_large(record: Arc<CommitRecord>, ring_bytes_max: usize) -> (Arc<CommitRecord>, usize) {
    let bytes = record.bytes();
    if bytes <= ring_bytes_max / STUB_FRACTION || record.tables.is_empty() {
        return (record, bytes);
    }
    let stub = record.stub();
    let bytes = stub.bytes();
    (Arc::new(stub), bytes)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::change_log::{RowChange, RowOp, TableChanges};
    use crate::ids::{Epoch, SchemaVersion, ScopeId, Shard, TableId, UserId};

    fn record(seq: u64) -> Arc<CommitRecord> {
        Arc::new(CommitRecord {
            seq: Seq(seq),
            commit_ts: 0,
            epoch: Epoch(1),
            shard: Shard(0),
            principal: UserId::ROOT,
            catalog: Vec::new(),
            tables: Vec::new(),
            large_insert: None,
            stubs: Vec::new(),
        })
    }

    fn with_row(seq: u64, bytes: usize) -> Arc<CommitRecord> {
        let new = Some(Bytes::from(vec![0; bytes]));
        let row = RowChange { op: RowOp::Insert, key: Bytes::from_static(b"k"), old: None, new };
        let (table, version, scope) = (TableId(1_000), SchemaVersion(1), ScopeId::SHARED);
        let tables = vec![TableChanges { table, version, scope, rows: vec![row] }];
        Arc::new(CommitRecord { tables, ..CommitRecord::clone(&record(seq)) })
    }

    fn seqs(feed: &CommitFeed, after: u64) -> Option<Vec<u64>> {
        Some(feed.after(Seq(after))?.iter().map(|record| record.seq.0).collect())
    }

    #[test]
    fn followers_get_what_came_after_them_or_are_sent_to_the_log() {
        let one = record(0).bytes();
        let feed = CommitFeed::starting_after(Seq(10), 3 * one);
        assert_eq!(seqs(&feed, 10), Some(vec![]));
        assert_eq!(seqs(&feed, 9), None);
        feed.publish([record(11), record(12)]);
        assert_eq!(seqs(&feed, 10), Some(vec![11, 12]));
        assert_eq!(seqs(&feed, 11), Some(vec![12]));
        assert_eq!(seqs(&feed, 12), Some(vec![]));
        feed.publish([record(13), record(14)]);
        assert_eq!(seqs(&feed, 10), None);
        assert_eq!(seqs(&feed, 11), Some(vec![12, 13, 14]));
        assert_eq!(feed.published(), Seq(14));
        assert_eq!(feed.size(), (3, 3 * one));
    }

    #[test]
    fn commits_that_are_skipped_are_read_from_the_log() {
        let feed = CommitFeed::starting_after(Seq(0), 1 << 20);
        feed.publish([record(1)]);
        feed.skip_to(Seq(3));
        assert_eq!((seqs(&feed, 1), seqs(&feed, 3)), (None, Some(vec![])));
        feed.publish([record(4)]);
        assert_eq!((seqs(&feed, 3), feed.published()), (Some(vec![4]), Seq(4)));
    }

    #[test]
    fn of_a_large_commit_only_a_stub_is_kept() {
        let feed = CommitFeed::starting_after(Seq(0), 64 << 10);
        feed.publish([with_row(1, 100), with_row(2, 1 << 20), with_row(3, 100)]);
        let records = feed.after(Seq(0)).unwrap();
        let rows: Vec<_> = records.iter().map(|record| record.tables.len()).collect();
        assert_eq!(rows, [1, 0, 1]);
        let only_logged = records.iter().map(|record| record.is_only_logged(TableId(1_000), ScopeId::SHARED));
        assert_eq!(only_logged.collect::<Vec<_>>(), [false, true, false]);
        assert_eq!(records[1].stubs[0].written_rows, 1);
        assert!(feed.size().1 < 64 << 10);
    }

    #[test]
    fn a_commit_larger_than_the_ring_goes_through_the_log() {
        let feed = CommitFeed::starting_after(Seq(0), 1);
        feed.publish([record(1)]);
        assert_eq!(seqs(&feed, 0), None);
        assert_eq!(seqs(&feed, 1), Some(vec![]));
        assert_eq!(feed.published(), Seq(1));
    }
}
