//! Reading the change log for subscribers whose place the ring does not have.
//!
//! A commit larger than the rings, or one whose rows are in segments, sends all subscribers of its table here at once. Those of a group stand at the same place,
//! so a chunk of the log is read, decoded, evaluated and encoded for the first of them, and the others take its frames.
//!
//! Invariant: frames are kept by the subscribers that deliver them and by nobody else.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use tokio::sync::Mutex;

use super::frame::Frame;
use super::group::Group;
use super::matcher::{changes_of, images_of};
use super::registry::{Shared, Stop, Subscriber, check_current};
use crate::change_log;
use crate::commit::Snapshot;
use crate::error::{Error, Result};
use crate::ids::Seq;
use crate::storage;

/// Bytes of the change log read at once.
const LOG_CHUNK_BYTES: usize = 1 << 20;
/// Chunks that are evaluated at the same time in the whole process: one can be as large as the largest commit.
pub(super) const CHUNKS_AT_ONCE: usize = 2;
/// Chunks of a group that can be shared; subscribers that are further apart evaluate their own.
const CHUNKS_KEPT: usize = 8;

/// What the commits of a part of the change log have to tell a group.
pub(super) struct LogChunk {
    after: Seq,
    pub(super) through: Seq,
    pub(super) frames: Vec<Arc<Frame>>,
}

/// The chunks of a group that somebody still delivers. The lock is held while one is evaluated, so that the others of the group
/// wait for it instead of evaluating the same.
pub(super) type LogChunks = Mutex<VecDeque<Weak<LogChunk>>>;

/// What a subscriber finds in the change log.
pub(super) enum LogRead {
    /// The next commits.
    Chunk(Arc<LogChunk>),
    /// The log no longer reaches back to the subscriber's place.
    Gone(Arc<Snapshot>),
    /// The table or the user is no longer what it was.
    Outdated(Stop),
}

/// Reads on for a subscriber that has everything up to `after` and wants nothing behind `up_to`.
pub(super) async fn read_log(
    shared: &Shared,
    group: &Arc<Group>,
    subscriber: &Subscriber,
    after: Seq,
    up_to: Option<Seq>,
) -> Result<LogRead> {
    let mut kept = group.chunks.lock().await;
    // Taken now, so that a chunk another one has read is not newer than what this one was allowed to see.
    let snapshot = shared.committer.snapshot();
    if let Err(stop) = check_current(group, subscriber, &snapshot.catalog) {
        return Ok(LogRead::Outdated(stop));
    }
    kept.retain(|chunk| chunk.strong_count() > 0);
    let fits =
        |chunk: &Arc<LogChunk>| chunk.after == after && up_to.is_none_or(|up_to| chunk.through <= up_to);
    if let Some(chunk) = kept.iter().filter_map(Weak::upgrade).find(fits) {
        return Ok(LogRead::Chunk(chunk));
    }
    let place = Arc::clone(&shared.chunk_places).acquire_owned().await.map_err(|_| Error::shutting_down())?;
    let evaluated = {
        let (group, storage) = (Arc::clone(group), Arc::clone(&snapshot.storage));
        let up_to = up_to.map_or(snapshot.seq, |up_to| up_to.min(snapshot.seq));
        storage::blocking(move || {
            // Given back when the work is done, also when the subscriber that wanted it is gone by then.
            let _place = place;
            let (table, scope) = (group.key.table, group.key.scope);
            let slice = change_log::read(storage.as_ref(), table, scope, after, up_to, LOG_CHUNK_BYTES)?;
            let Some(slice) = slice else { return Ok(None) };
            let through = slice.complete_through;
            let changes = slice.changes.iter().map(|(seq, changes)| (*seq, changes));
            let images = images_of(&group.plan.table, changes)?;
            let entries = match changes_of(&group, &images)? {
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
