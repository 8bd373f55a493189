//! Reads the change log for subscribers whose position is no longer in the ring, a piece at a time.
//!
//! A large commit sends all subscribers of its table here at once. Members of a group are at the same
//! position, so the first one reads, decodes, evaluates and encodes a piece of the log, and the others take
//! its frames.
//!
//! Invariant: an evaluation takes a bounded piece of the log, however large the commit is, and makes bounded
//! frames of it, unless a single row makes more.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;

use super::cursor::Cursor;
use super::evaluator::delivered_seqs;
use super::frame::held_bytes;
use super::frame_maker::seq_of;
use super::group::{KeptChunk, LogChunk, QueryGroup};
use super::held::Place;
use super::images::Images;
use super::registry::{LiveState, Registered, in_task};
use super::stop::{Stop, check_current};
use crate::change_log::{self, LogPiece, LogPosition};
use crate::commit::Snapshot;
use crate::error::Result;
use crate::ids::Seq;
use crate::storage;

/// How many times the bytes of a piece its frames may take. Expressions can make more of a row than it has.
const CHUNK_GROWTH_MAX: usize = 4;
/// Chunks of a group that members can share. Members further apart evaluate their own.
const CHUNKS_KEPT: usize = 8;

/// The result of reading the change log.
pub(super) enum LogRead {
    /// What follows the cursor. Its frames are in the outbox.
    Piece(Piece),
    /// The log no longer reaches back to the cursor.
    Gone,
    /// The table or the user changed.
    Outdated(Stop),
}

/// A piece of the change log, for a subscriber at a cursor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// Where the next piece begins.
    pub(super) next: LogPosition,
    /// The commit of the first row that the client lacks; `None` if it lacks none of the piece.
    pub(super) first: Option<Seq>,
    /// Delivered rows after the cursor that are not in the piece.
    pub(super) rows_beyond: usize,
}

/// Reads on for a subscriber at `cursor` that wants nothing beyond `up_to`.
pub(super) async fn read_log(
    state: &Arc<LiveState>,
    registered: &Arc<Registered>,
    place: Place,
    cursor: Cursor,
    up_to: Option<Seq>,
) -> Result<LogRead> {
    if let (_, Some(known)) = look_up(state, registered, &place, cursor, up_to) {
        return Ok(known);
    }
    // As a task, because it takes turns with others, who must not wait for a reader that has stopped.
    in_task(evaluate_next(Arc::clone(state), Arc::clone(registered), place, cursor, up_to)).await
}

async fn evaluate_next(
    state: Arc<LiveState>,
    registered: Arc<Registered>,
    place: Place,
    cursor: Cursor,
    up_to: Option<Seq>,
) -> Result<LogRead> {
    let group = &registered.group;
    let turn = state.log_turns.take(registered.subscriber.principal.user_id).await?;
    let _evaluating = group.evaluating.lock().await;
    let (snapshot, known) = look_up(&state, &registered, &place, cursor, up_to);
    if let Some(known) = known {
        return Ok(known);
    }
    let work = {
        let (group, id, piece_bytes) = (Arc::clone(group), state.held.next_item(), state.piece_bytes);
        storage::blocking(move || {
            // Released when the work is done, even if its subscriber is gone by then.
            let _turn = turn;
            let up_to = up_to.map_or(snapshot.seq, |up_to| up_to.min(snapshot.seq));
            evaluate(&group, &snapshot, (id, cursor), up_to, piece_bytes)
        })
    };
    let Some(chunk) = state.on_engine(work).await?.map(Arc::new) else { return Ok(LogRead::Gone) };
    let mut kept = group.chunks.lock();
    kept.push_back(match chunk.frames.is_empty() {
        true => KeptChunk::Empty(Arc::clone(&chunk)),
        false => KeptChunk::Held(Arc::downgrade(&chunk)),
    });
    if kept.len() > CHUNKS_KEPT {
        kept.pop_front();
    }
    drop(kept);
    Ok(LogRead::Piece(hold(&place, chunk, 0, cursor)))
}

/// Returns what another member has read, or why the subscriber must end; and the newest snapshot.
fn look_up(
    state: &LiveState,
    registered: &Registered,
    place: &Place,
    cursor: Cursor,
    up_to: Option<Seq>,
) -> (Arc<Snapshot>, Option<LogRead>) {
    let group = &registered.group;
    let mut kept = group.chunks.lock();
    // Taken under the lock: no kept chunk is newer than the catalog this subscriber is checked against.
    let snapshot = state.committer.snapshot();
    if let Err(stop) = check_current(&group.plan, &registered.subscriber, &snapshot.catalog) {
        return (snapshot, Some(LogRead::Outdated(stop)));
    }
    kept.retain(KeptChunk::is_held);
    let known = kept.iter().filter_map(KeptChunk::get).find_map(|chunk| {
        let number = chunk.frame_after(cursor, up_to)?;
        Some((chunk, number))
    });
    drop(kept);
    (snapshot, known.map(|(chunk, number)| LogRead::Piece(hold(place, chunk, number, cursor))))
}

/// Puts the frames of a chunk from a number on where their subscriber finds them.
fn hold(place: &Place, chunk: Arc<LogChunk>, number: usize, cursor: Cursor) -> Piece {
    let next = chunk.next;
    if number < chunk.frames.len() {
        // Frames after the first one are of the commit that it begins.
        let first = if number == 0 { chunk.first } else { Some(cursor.position.seq) };
        place.put_chunk(chunk, number);
        return Piece { next, first, rows_beyond: 0 };
    }
    // Everything in the piece is delivered. A piece can be smaller than the one that was begun.
    let rows_beyond = if chunk.frames.is_empty() { cursor.rows - chunk.left_out } else { 0 };
    Piece { next, first: None, rows_beyond }
}

/// Reads and evaluates a piece; `None` if the log no longer has it. Blocks.
fn evaluate(
    group: &QueryGroup,
    snapshot: &Snapshot,
    (id, from): (u64, Cursor),
    up_to: Seq,
    piece_bytes: usize,
) -> Result<Option<LogChunk>> {
    let place = (group.key.table, group.key.scope);
    let chunk_bytes_max = piece_bytes.saturating_mul(CHUNK_GROWTH_MAX);
    let mut bytes_max = piece_bytes;
    loop {
        let log = snapshot.storage.as_ref();
        let Some(piece) = change_log::read_piece(log, place, from.position, up_to, bytes_max)? else {
            return Ok(None);
        };
        let rows: usize = piece.changes.iter().map(|(_, changes)| changes.rows.len()).sum();
        let chunk = evaluate_piece(group, id, from, &piece)?;
        if chunk.bytes <= chunk_bytes_max || rows <= 1 || bytes_max <= 1 {
            return Ok(Some(chunk));
        }
        bytes_max /= chunk.bytes / chunk_bytes_max + 1;
    }
}

fn evaluate_piece(group: &QueryGroup, id: u64, from: Cursor, piece: &LogPiece) -> Result<LogChunk> {
    let changes = piece.changes.iter().map(|(seq, changes)| (*seq, changes));
    let delta = group.changes(&Images::decode(&group.plan.table, changes)?)?;
    let rows = delta.as_ref().map_or(0, RecordBatch::num_rows);
    let left_out = from.rows.min(rows);
    let (first, frames) = match delta {
        Some(delta) if left_out < rows => {
            let delta = delta.slice(left_out, rows - left_out);
            let first = delivered_seqs(&delta).first().map(|seq| seq_of(*seq));
            (first, group.maker.piece(&delta, piece.next)?)
        }
        _ => (None, Vec::new()),
    };
    let bytes = frames.iter().map(|frame| held_bytes(frame)).sum();
    Ok(LogChunk { id, from, next: piece.next, first, frames, bytes, left_out })
}
