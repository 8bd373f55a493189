//! Reads the change log for subscribers whose position is no longer in the ring.
//!
//! A commit that is larger than the ring, or whose rows are in segments, sends all subscribers of its table
//! here at once. Members of a group are at the same position, so the first one reads, decodes, evaluates and
//! encodes a chunk of the log, and the others take its frames.
//!
//! Invariant: only the subscribers that deliver frames keep them in memory.

use std::sync::{Arc, Weak};

use super::group::{LogChunk, QueryGroup};
use super::images::Images;
use super::registry::LiveState;
use super::stop::{Stop, Subscriber, check_current};
use crate::change_log;
use crate::commit::Snapshot;
use crate::error::{Error, Result};
use crate::ids::Seq;
use crate::storage;

/// Bytes of the change log per chunk.
const LOG_CHUNK_BYTES: usize = 1 << 20;
/// Chunks of a group that members can share. Members further apart evaluate their own.
const CHUNKS_KEPT: usize = 8;

/// The result of reading the change log.
pub(super) enum LogRead {
    /// The next commits.
    Chunk(Arc<LogChunk>),
    /// The log no longer reaches back to the subscriber's position.
    Gone(Arc<Snapshot>),
    /// The table or the user changed.
    Outdated(Stop),
}

/// Reads on for a subscriber that has everything up to `after` and wants nothing beyond `up_to`.
pub(super) async fn read_log(
    state: &LiveState,
    group: &Arc<QueryGroup>,
    subscriber: &Subscriber,
    after: Seq,
    up_to: Option<Seq>,
) -> Result<LogRead> {
    let mut kept = group.chunks.lock().await;
    // Taken under the lock: no kept chunk is newer than the catalog this subscriber is checked against.
    let snapshot = state.committer.snapshot();
    if let Err(stop) = check_current(&group.plan, subscriber, &snapshot.catalog) {
        return Ok(LogRead::Outdated(stop));
    }
    kept.retain(|chunk| chunk.strong_count() > 0);
    let fits =
        |chunk: &Arc<LogChunk>| chunk.after == after && up_to.is_none_or(|up_to| chunk.through <= up_to);
    if let Some(chunk) = kept.iter().filter_map(Weak::upgrade).find(fits) {
        return Ok(LogRead::Chunk(chunk));
    }
    let permit =
        Arc::clone(&state.chunk_permits).acquire_owned().await.map_err(|_| Error::shutting_down())?;
    let evaluated = {
        let (group, storage) = (Arc::clone(group), Arc::clone(&snapshot.storage));
        let up_to = up_to.map_or(snapshot.seq, |up_to| up_to.min(snapshot.seq));
        storage::blocking(move || {
            // Released when the work is done, even if its subscriber is gone by then.
            let _permit = permit;
            let (table, scope) = (group.key.table, group.key.scope);
            let slice = change_log::read(storage.as_ref(), table, scope, after, up_to, LOG_CHUNK_BYTES)?;
            let Some(slice) = slice else { return Ok(None) };
            let through = slice.complete_through;
            let changes = slice.changes.iter().map(|(seq, changes)| (*seq, changes));
            let images = Images::decode(&group.plan.table, changes)?;
            let entries = match group.changes(&images)? {
                Some(batch) => group.maker.entries(&batch, through)?,
                None => Vec::new(),
            };
            let frames = entries.into_iter().flat_map(|entry| entry.frames).collect();
            Ok(Some(Arc::new(LogChunk { after, through, frames })))
        })
        .await?
    };
    let Some(chunk) = evaluated else { return Ok(LogRead::Gone(snapshot)) };
    kept.push_back(Arc::downgrade(&chunk));
    if kept.len() > CHUNKS_KEPT {
        kept.pop_front();
    }
    Ok(LogRead::Chunk(chunk))
}
