//! Reads the change log and trims its oldest part.
//!
//! Invariant: nothing below the floor is read. A reader that asks for it is told so, from its own snapshot.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::codec::{
    CommitHeader, all_headers, decode_header, decode_part, decode_some, header_key, header_range, part_key,
    part_of, part_range,
};
use super::fields::damaged;
use super::window::Window;
use super::{CommitRecord, TableChanges};
use crate::error::Result;
use crate::ids::{ScopeId, Seq, TableId};
use crate::storage::{Direction, KeyRange, Partition, StorageSnapshot, WriteBatch};

/// The key of the floor in the `Meta` partition: the seq up to which the log has been trimmed, u64 BE.
const FLOOR_KEY: &[u8] = b"log_floor";

/// The most commits that one step of trimming removes.
const TRIM_COMMITS_MAX: usize = 10_000;

/// A place in the log of one table and scope: before a row of a part of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPosition {
    /// The commit.
    pub seq: Seq,
    /// The part of its changes.
    pub part: u32,
    /// The row of this part.
    pub row: u32,
}

impl LogPosition {
    /// Returns the position after the whole of commit `seq`.
    pub fn after(seq: Seq) -> Self {
        Self { seq: Seq(seq.0.saturating_add(1)), part: 0, row: 0 }
    }

    /// Returns the last commit of which nothing follows.
    pub fn complete(self) -> Seq {
        Seq(self.seq.0.saturating_sub(1))
    }

    /// Whether it is the beginning of a commit.
    pub fn is_between_commits(self) -> bool {
        (self.part, self.row) == (0, 0)
    }
}

/// A piece of the log of one table and scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPiece {
    /// The changes, in order. Those of the first commit may have begun in an earlier piece, and those of the
    /// last one may go on in the next piece.
    pub changes: Vec<(Seq, TableChanges)>,
    /// Where the next piece begins: after all that this one has, and after nothing else.
    pub next: LogPosition,
}

/// Returns the seq up to which the log has been trimmed.
///
/// # Errors
/// `Corruption` when the stored number is damaged.
pub fn floor(storage: &dyn StorageSnapshot) -> Result<Seq> {
    match storage.get(Partition::Meta, FLOOR_KEY)? {
        None => Ok(Seq::ZERO),
        Some(value) => Ok(Seq(u64::from_be_bytes(value.as_ref().try_into().map_err(|_| damaged())?))),
    }
}

/// Whether a key of the `Meta` partition is the floor's.
pub(crate) fn is_floor_key(key: &[u8]) -> bool {
    key == FLOOR_KEY
}

/// Records in `batch` that the log has been trimmed up to `seq`.
pub(crate) fn put_floor(batch: &mut WriteBatch, seq: Seq) {
    batch.put(Partition::Meta, FLOOR_KEY, seq.0.to_be_bytes().to_vec());
}

/// Returns the changes of one table and scope from a position on, in commits up to `up_to`: about `bytes_max`
/// bytes of rows, so a part of a large commit. `None` if the log was trimmed beyond the position.
///
/// # Errors
/// `Corruption` when an entry is damaged, and any error of the storage.
pub fn read_piece(
    storage: &dyn StorageSnapshot,
    (table, scope): (TableId, ScopeId),
    from: LogPosition,
    up_to: Seq,
    bytes_max: usize,
) -> Result<Option<LogPiece>> {
    if from.complete() < floor(storage)? {
        return Ok(None);
    }
    let mut piece = LogPiece { changes: Vec::new(), next: from.max(LogPosition::after(up_to)) };
    if from.seq > up_to {
        return Ok(Some(piece));
    }
    let mut window = Window::of_bytes(bytes_max);
    let range = part_range(table, scope, (from.seq, from.part), up_to);
    storage.visit(Partition::Log, range, Direction::Forward, &mut |key, value| {
        let (seq, part) = part_of(key)?;
        if window.is_full() {
            piece.next = LogPosition { seq, part, row: 0 };
            return Ok(ControlFlow::Break(()));
        }
        let first = if (seq, part) == (from.seq, from.part) { from.row } else { 0 };
        window.begin_part(first);
        let mut rows = Vec::new();
        let decoded = decode_some(&Bytes::copy_from_slice(value), seq, &mut window, &mut rows)?;
        let row = first.saturating_add(u32::try_from(rows.len()).map_err(|_| damaged())?);
        match piece.changes.last_mut() {
            Some((last, changes)) if *last == seq => changes.rows.append(&mut rows),
            _ => {
                let version = decoded.version;
                piece.changes.push((seq, TableChanges { table, version, scope, rows }));
            }
        }
        if row < decoded.rows {
            piece.next = LogPosition { seq, part, row };
            return Ok(ControlFlow::Break(()));
        }
        if row > decoded.rows { Err(damaged()) } else { Ok(ControlFlow::Continue(())) }
    })?;
    Ok(Some(piece))
}

/// Returns the header of one commit; `None` if it was trimmed or does not exist yet.
///
/// # Errors
/// As [`read_piece`].
pub fn header(storage: &dyn StorageSnapshot, seq: Seq) -> Result<Option<CommitHeader>> {
    storage.get(Partition::Log, &header_key(seq))?.map(|value| decode_header(&value)).transpose()
}

/// Returns the headers of the commits after `after` up to `up_to`, at most `count_max`; `None` if the log was
/// trimmed beyond `after`.
///
/// # Errors
/// As [`read_piece`].
pub fn headers(
    storage: &dyn StorageSnapshot,
    after: Seq,
    up_to: Seq,
    count_max: usize,
) -> Result<Option<Vec<CommitHeader>>> {
    if after < floor(storage)? {
        return Ok(None);
    }
    let mut found = Vec::new();
    storage.visit(Partition::Log, header_range(after, up_to), Direction::Forward, &mut |_, value| {
        if found.len() >= count_max {
            return Ok(ControlFlow::Break(()));
        }
        found.push(decode_header(value)?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(Some(found))
}

/// Returns the header of the last commit; `None` if the log is empty.
///
/// # Errors
/// As [`read_piece`].
pub fn last_header(storage: &dyn StorageSnapshot) -> Result<Option<CommitHeader>> {
    let mut last = None;
    storage.visit(Partition::Log, all_headers(), Direction::Reverse, &mut |_, value| {
        last = Some(decode_header(value)?);
        Ok(ControlFlow::Break(()))
    })?;
    Ok(last)
}

/// Returns a whole commit, with its rows in segments like any others; `None` if trimmed or still to come.
///
/// # Errors
/// As [`read_piece`]; `Corruption` also when a part of it is missing.
pub fn read_record(storage: &dyn StorageSnapshot, seq: Seq) -> Result<Option<CommitRecord>> {
    let Some(header) = header(storage, seq)? else { return Ok(None) };
    let mut tables = Vec::with_capacity(header.tables.len());
    for summary in &header.tables {
        let mut rows = Vec::new();
        for part in 0..summary.parts {
            let key = part_key(summary.table, summary.scope, seq, part);
            let value = storage.get(Partition::Log, &key)?.ok_or_else(damaged)?;
            if decode_part(&value, seq, &mut rows)? != summary.version {
                return Err(damaged());
            }
        }
        if rows.len() as u64 != summary.rows {
            return Err(damaged());
        }
        tables.push(TableChanges {
            table: summary.table,
            version: summary.version,
            scope: summary.scope,
            rows,
        });
    }
    Ok(Some(CommitRecord {
        seq,
        commit_ts: header.commit_ts,
        epoch: header.epoch,
        shard: header.shard,
        principal: header.principal,
        catalog: header.catalog,
        tables,
        large_insert: None,
        stubs: Vec::new(),
    }))
}

/// One step of trimming: its writes, and the floor after them.
pub(crate) struct TrimStep {
    pub(crate) floor: Seq,
    pub(crate) batch: WriteBatch,
}

/// Returns the next step of trimming the log up to `up_to`; `None` when it is done. Logged commits never
/// change, so the step stays valid whatever is committed before it.
pub(crate) fn trim(storage: &dyn StorageSnapshot, up_to: Seq) -> Result<Option<TrimStep>> {
    let old_floor = floor(storage)?;
    let mut batch = WriteBatch::new();
    let mut new_floor = old_floor;
    let mut commits = 0;
    storage.visit(Partition::Log, header_range(old_floor, up_to), Direction::Forward, &mut |_, value| {
        let header = decode_header(value)?;
        for summary in &header.tables {
            for part in 0..summary.parts {
                batch.delete(Partition::Log, part_key(summary.table, summary.scope, header.seq, part));
            }
        }
        new_floor = header.seq;
        commits += 1;
        Ok(if commits < TRIM_COMMITS_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    if new_floor == old_floor {
        return Ok(None);
    }
    let headers = KeyRange { start: header_key(Seq::ZERO), end: Some(header_key(new_floor.next())) };
    batch.delete_range(Partition::Log, headers);
    put_floor(&mut batch, new_floor);
    Ok(Some(TrimStep { floor: new_floor, batch }))
}
