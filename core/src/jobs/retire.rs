//! Removes the objects of retired segments: compacted ones, and those of dropped tables.
//!
//! Invariant: an object is removed only when no snapshot has its segment and no published manifest needs it.

use std::sync::Arc;

use tracing::warn;

use super::backoff::Backoff;
use super::publish::commit;
use super::store::JobStore;
use crate::cold_storage::ColdChange;
use crate::commit::ColdWrite;
use crate::error::Result;
use crate::failpoint;
use crate::ids::SegmentId;

/// Removes the objects of segments that no snapshot has any more and no published manifest needs.
pub(super) async fn remove_retired(jobs: &JobStore, backoff: &mut Backoff) -> Result<()> {
    let committer = &jobs.committer;
    let snapshot = committer.snapshot();
    let store = Arc::clone(snapshot.cold.store());
    let mut removed: Vec<SegmentId> = Vec::new();
    for segment in store.removable() {
        let now = jobs.clock.now_us();
        let is_published = !snapshot.cold.unpublished().contains_key(&segment.table);
        if !is_published || backoff.is_backing_off(&segment.storage, now) {
            continue;
        }
        let removal = async {
            failpoint::step("retire::remove")?;
            store.remove(&segment).await
        };
        match removal.await {
            Ok(()) => removed.push(segment.id),
            Err(error) => {
                warn!(path = segment.path, %error, "a segment could not be removed");
                backoff.back_off(&segment.storage, now, jobs.clock.now_us());
            }
        }
    }
    if removed.is_empty() {
        return Ok(());
    }
    failpoint::step("retire::removed")?;
    let changes = ColdWrite::Manifest(removed.iter().copied().map(ColdChange::Removed).collect());
    if commit(committer, changes, committer.seq()).await? {
        removed.into_iter().for_each(|id| store.forget(id));
    }
    Ok(())
}
