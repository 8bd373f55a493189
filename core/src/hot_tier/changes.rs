//! The keys that the latest commits changed.
//!
//! Invariant: the list covers every change it was given of commits after [`Changes::known_since`].

use std::collections::VecDeque;

use crate::ids::{ScopeId, Seq, TableId};

/// Beyond these limits the oldest changes are forgotten.
const LEN_MAX: usize = 16_384;
const BYTES_MAX: usize = 2 << 20;
/// Commits that change more rows of a table and scope become one range, from the first key to the last.
const SINGLE_KEYS_MAX: usize = 64;

/// A table and the scope of its rows.
pub(super) type TableScope = (TableId, ScopeId);

/// The latest changes, oldest first.
#[derive(Debug)]
pub(super) struct Changes {
    list: VecDeque<ChangedRange>,
    bytes: usize,
    known_since: Seq,
}

/// The keys from `first` to `last`, both inclusive.
#[derive(Debug)]
struct ChangedRange {
    seq: Seq,
    table_scope: TableScope,
    first: Box<[u8]>,
    last: Box<[u8]>,
}

impl Changes {
    /// Creates an empty list that knows nothing of commits up to `seq`.
    pub(super) fn unknown_before(seq: Seq) -> Self {
        Self { list: VecDeque::new(), bytes: 0, known_since: seq }
    }

    pub(super) fn known_since(&self) -> Seq {
        self.known_since
    }

    /// Adds the keys of a commit. Commits come in order.
    pub(super) fn add<'a>(
        &mut self,
        table_scope: TableScope,
        seq: Seq,
        keys: impl ExactSizeIterator<Item = &'a [u8]> + Clone,
    ) {
        if keys.len() <= SINGLE_KEYS_MAX {
            for key in keys {
                self.push(ChangedRange { seq, table_scope, first: key.into(), last: key.into() });
            }
        } else if let (Some(first), Some(last)) = (keys.clone().min(), keys.max()) {
            self.push(ChangedRange { seq, table_scope, first: first.into(), last: last.into() });
        }
        while self.list.len() > LEN_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.list.pop_front() else { break };
            self.bytes -= oldest.bytes();
            self.known_since = oldest.seq;
        }
    }

    fn push(&mut self, change: ChangedRange) {
        self.bytes += change.bytes();
        self.list.push_back(change);
    }

    /// Returns whether a commit after `seq` changed a key in `start..end`.
    pub(super) fn touch(&self, table_scope: TableScope, seq: Seq, start: &[u8], end: &[u8]) -> bool {
        let after = self.list.partition_point(|change| change.seq <= seq);
        self.list
            .iter()
            .skip(after)
            .any(|change| change.table_scope == table_scope && *change.first < *end && *change.last >= *start)
    }
}

impl ChangedRange {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.first.len() + self.last.len()
    }
}
