//! The task that follows the commits and shows each one to the live queries it can affect.
//!
//! If commits come faster than it can evaluate them and have left the ring of recent commits, it does not
//! catch up: the groups drop what they hold, and each subscriber reads the change log from its own position.
//! It skips a large commit in the same way, but only for the groups of the table and scope that it changes.
//!
//! Invariant: the frontier moves to a seq only after every group has everything up to it, and after every
//! subscription that a catalog change up to it ends has been told.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use super::group::QueryGroup;
use super::images::Images;
use super::registry::LiveState;
use super::stop::Stop;
use crate::change_log::{CommitRecord, TableChanges};
use crate::error::{Error, Result};
use crate::ids::{SchemaVersion, ScopeId, Seq, TableId};
use crate::schema_registry::CatalogChange;
use crate::storage;

/// Rows per evaluation; a single commit is never split.
const ROWS_AT_ONCE: usize = 16_384;
/// Up to this many rows are evaluated inline; more would block other tasks of the thread.
const INLINE_ROWS_MAX: usize = 512;

/// Runs until `stop`.
pub(super) async fn run(state: Arc<LiveState>, stop: CancellationToken) {
    let feed = state.committer.commits();
    let mut heads = feed.watch();
    loop {
        heads.borrow_and_update();
        let frontier = *state.frontier.borrow();
        match feed.after(frontier) {
            None => skip(&state),
            Some(records) if records.is_empty() => {
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = heads.changed() => if changed.is_err() { return },
                }
            }
            Some(records) => {
                for records in chunks(&records) {
                    if stop.is_cancelled() {
                        return;
                    }
                    follow(&state, records).await;
                }
            }
        }
        if stop.is_cancelled() {
            return;
        }
    }
}

/// Splits records into chunks of at most [`ROWS_AT_ONCE`] rows, or of one commit.
fn chunks(records: &[Arc<CommitRecord>]) -> Vec<&[Arc<CommitRecord>]> {
    let mut chunks = Vec::new();
    let (mut start, mut rows) = (0, 0);
    for (position, record) in records.iter().enumerate() {
        let more = row_count(record);
        if rows > 0 && rows + more > ROWS_AT_ONCE {
            chunks.extend(records.get(start..position));
            (start, rows) = (position, 0);
        }
        rows += more;
    }
    chunks.extend(records.get(start..));
    chunks
}

fn row_count(record: &CommitRecord) -> usize {
    record.tables.iter().map(|changes| changes.rows.len()).sum()
}

/// Skips commits that are no longer in memory.
fn skip(state: &Arc<LiveState>) {
    let snapshot = state.committer.snapshot();
    debug!(seq = snapshot.seq.0, "live queries fell behind the commits and read the change log");
    adopt(state, snapshot.seq);
    let matched = *state.frontier.borrow();
    for groups in &state.by_table {
        for group in groups.value() {
            group.skip_to(matched, snapshot.seq);
        }
    }
    state.end_outdated(&snapshot.catalog);
    state.frontier.send_replace(snapshot.seq);
}

fn adopt(state: &LiveState, frontier: Seq) {
    let pending = std::mem::take(&mut *state.pending.lock());
    for group in pending {
        group.adopt(frontier);
    }
}

/// Shows `records`, the next commits, to the groups they affect.
async fn follow(state: &Arc<LiveState>, records: &[Arc<CommitRecord>]) {
    let Some(through) = records.last().map(|record| record.seq) else { return };
    let matched = *state.frontier.borrow();
    adopt(state, matched);
    let work = touched(state, records);
    let rows: usize = work.iter().map(|work| work.rows * work.groups.len()).sum();
    let evaluate = {
        let (state, records) = (Arc::clone(state), records.to_vec());
        move || {
            for work in work {
                work.evaluate(&state, &records, matched, through);
            }
            Ok(())
        }
    };
    let done = if rows <= INLINE_ROWS_MAX { evaluate() } else { storage::blocking(evaluate).await };
    if let Err(failure) = done {
        // No change is lost: every subscriber reads the log from here.
        error!(%failure, "evaluating live queries failed");
        skip(state);
        return;
    }
    if records.iter().flat_map(|record| &record.catalog).any(|change| can_end(state, change)) {
        state.end_outdated(&state.committer.snapshot().catalog);
    }
    state.frontier.send_replace(through);
}

/// Whether `change` can outdate a subscription.
fn can_end(state: &LiveState, change: &CatalogChange) -> bool {
    match change {
        CatalogChange::DropTable(_) => true,
        CatalogChange::PutTable(definition) => definition.version.0 > 1 || definition.revision > 0,
        CatalogChange::DropUser(user) => state.has_subscriptions(*user),
        CatalogChange::PutUser(user) => state.has_subscriptions(user.id),
        CatalogChange::PutNamespace(_)
        | CatalogChange::DropNamespace(_)
        | CatalogChange::PutStorage(_)
        | CatalogChange::DropStorage(_) => false,
    }
}

/// The changes of one table and scope, and the groups that must see them.
struct Work {
    place: (TableId, ScopeId),
    groups: Vec<Arc<QueryGroup>>,
    /// The rows to evaluate.
    rows: usize,
    /// Some of the changes are only in the change log, or are too many to evaluate at once.
    from_log: bool,
}

/// Returns the work for the tables and scopes of `records` that have subscribers.
fn touched(state: &LiveState, records: &[Arc<CommitRecord>]) -> Vec<Work> {
    // The rows, and whether some of them are read from the log.
    let mut places: HashMap<(TableId, ScopeId), (usize, bool)> = HashMap::new();
    for record in records {
        for changes in &record.tables {
            let place = (changes.table, changes.scope);
            if state.by_table.contains_key(&place) {
                let (rows, from_log) = places.entry(place).or_default();
                *rows += changes.rows.len();
                *from_log |= is_large(changes, state.piece_bytes);
            }
        }
        for place in record.only_logged() {
            places.entry(place).or_default().1 = true;
        }
    }
    let work = |(place, (rows, from_log))| {
        let groups: Vec<_> =
            state.by_table.get(&place)?.iter().filter(|group| group.is_adopted()).map(Arc::clone).collect();
        Some(Work { place, groups, rows: if from_log { 0 } else { rows }, from_log })
    };
    places.into_iter().filter_map(work).collect()
}

/// Whether the changes of a commit are read from the log, in pieces.
fn is_large(changes: &TableChanges, piece_bytes: usize) -> bool {
    changes.rows.len() > ROWS_AT_ONCE || changes.bytes() > piece_bytes
}

impl Work {
    fn evaluate(self, state: &LiveState, records: &[Arc<CommitRecord>], matched: Seq, through: Seq) {
        if self.from_log {
            self.groups.iter().for_each(|group| group.skip_to(matched, through));
            return;
        }
        let changes: Vec<_> = records
            .iter()
            .flat_map(|record| record.tables.iter().map(|changes| (record.seq, changes)))
            .filter(|(_, changes)| (changes.table, changes.scope) == self.place)
            .collect();
        // Groups of one table have one version, unless it was just altered; then the others are about to end.
        let mut decoded: Option<(SchemaVersion, Result<Images, Arc<Error>>)> = None;
        for group in self.groups {
            let version = group.key.version;
            if decoded.as_ref().is_none_or(|(of, _)| *of != version) {
                let current = changes.iter().copied().filter(|(_, changes)| changes.version == version);
                decoded = Some((version, Images::decode(&group.plan.table, current).map_err(Arc::new)));
            }
            let delivered = match &decoded {
                Some((_, Ok(images))) => show(state, &group, images, matched, through).map_err(Arc::new),
                Some((_, Err(error))) => Err(Arc::clone(error)),
                None => Ok(()),
            };
            if let Err(error) = delivered {
                state.end_group(&group, through, &Stop::failed(&error));
            }
        }
    }
}

fn show(state: &LiveState, group: &QueryGroup, images: &Images, matched: Seq, through: Seq) -> Result<()> {
    state.counters.evaluations.fetch_add(1, Ordering::Relaxed);
    match group.changes(images)? {
        Some(batch) => group.push(&batch, matched, through),
        None => Ok(()),
    }
}
