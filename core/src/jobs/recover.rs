//! Removes what a process left behind that died during a flush or compaction.
//!
//! Invariant: objects that a commit names, or that this process may yet commit, stay.

use std::collections::HashSet;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::flush::delete_flushed_rows;
use crate::cold_storage::SegmentStore;
use crate::commit::{Committer, Snapshot};
use crate::error::Result;
use crate::failpoint;
use crate::ids::{Epoch, TableId};
use crate::segments::Control;

/// Removes the objects and stored rows that an earlier process left behind. `opened` is the epoch in which
/// this process began.
pub(super) async fn recover(committer: &Arc<Committer>, opened: Epoch, stop: &CancellationToken) {
    let snapshot = committer.snapshot();
    let tables: Vec<TableId> = snapshot.catalog.tables().map(|table| table.id).collect();
    for storage in snapshot.cold.store().storage_ids() {
        match stop.run_until_cancelled(sweep(&snapshot, &storage, opened)).await {
            None => return,
            Some(Ok(0)) => {}
            Some(Ok(objects)) => {
                info!(%storage, objects, "removed unfinished segments")
            }
            Some(Err(error)) => {
                warn!(%storage, %error, "unfinished segments could not be removed")
            }
        }
    }
    failpoint::kill_point("recover::swept");
    for table in tables.into_iter().filter(|table| snapshot.cold.table(*table).is_some()) {
        if let Err(error) = delete_flushed_rows(committer, table, &Control::new(stop.clone())).await {
            warn!(%table, %error, "flushed rows could not be deleted from the store");
        }
    }
}

/// Removes the objects of a storage that no segment of any storage has, since two storages may be at one
/// place. Objects of this process, which began with epoch `opened`, stay: a statement may yet commit them.
async fn sweep(snapshot: &Snapshot, storage: &str, opened: Epoch) -> Result<usize> {
    let store = snapshot.cold.store();
    // Retired segments come last: they then include any segment that has left the manifest meanwhile.
    let mut known: HashSet<String> =
        snapshot.cold.all_segments().map(|segment| segment.path.clone()).collect();
    known.extend(store.retired_paths());
    let is_new = |path: &str| SegmentStore::epoch(path).is_some_and(|epoch| epoch >= opened);
    store.storage(storage)?.sweep(&|path| is_new(path) || known.contains(path)).await
}
