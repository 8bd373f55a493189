//! Flushes a table: its hot rows become cold.
//!
//! A flush writes segments from a snapshot and syncs them. One commit adds them and marks the rows that
//! changed meanwhile. Then small commits delete the stored rows. A crash before the commit leaves unknown
//! files; a crash after it leaves stored rows that are ignored. The next start removes both.
//!
//! Invariant: readers see every row once, before, during and after.

use std::sync::Arc;

use bytes::Bytes;

use super::hot_size::HotCounter;
use super::publish::{apply_marks, commit};
use super::store::JobStore;
use crate::commit::{ColdWrite, Committer, WriteSet};
use crate::error::Result;
use crate::failpoint;
use crate::ids::{TableId, UserId};
use crate::schema_registry::SchemaRegistry;
use crate::segments::{Control, PendingObjects, flush, flushed_keys};
use crate::storage::keys::table_prefix;
use crate::storage::{KeyRange, blocking};

/// Flushes the hot rows of a table; returns the result of the job.
pub(super) async fn flush_table(
    jobs: &JobStore,
    registry: &SchemaRegistry,
    hot: &HotCounter,
    table: TableId,
    control: &Control,
) -> Result<String> {
    let committer = &jobs.committer;
    committer.check_disk_space()?;
    let moving = committer.begin_flush(table)?;
    let snapshot = moving.snapshot();
    hot.flush_begun(table, snapshot.seq);
    let Some(definition) = snapshot.catalog.table_by_id(table) else {
        return Ok("the table was dropped".to_owned());
    };
    let schemas = registry.schemas(definition);
    let ids = Arc::clone(committer);
    let next_id = move || ids.new_segment_id();
    let now = jobs.clock.now_us();
    let flushed = flush(snapshot, &schemas, next_id, control, now).await?;
    if flushed.rows == 0 && snapshot.cold.flushed(table) == snapshot.seq {
        hot.flushed(table);
        return Ok("nothing to flush".to_owned());
    }
    let added = flushed.segments.len();
    let set = WriteSet {
        cold: Some(ColdWrite::Flush { table, through: snapshot.seq, added: flushed.segments }),
        ..WriteSet::new(UserId::SYSTEM, snapshot.seq)
    };
    commit_segments(committer, set, flushed.objects).await?;
    hot.flushed(table);
    failpoint::step("flush::committed")?;
    drop(moving);
    control.begin("deleting flushed rows");
    delete_flushed_rows(committer, table, control).await?;
    apply_marks(committer, table).await?;
    Ok(format!("flushed {} rows into {} segments of {} bytes", flushed.rows, added, flushed.bytes))
}

/// Commits the segments of a flush or compaction.
pub(super) async fn commit_segments(
    committer: &Committer,
    set: WriteSet,
    objects: PendingObjects,
) -> Result<()> {
    let objects = objects.keep();
    let outcome = committer.commit(set).await;
    objects.settle(&outcome);
    outcome.map(|_| ())
}

/// Deletes the stored rows of a table that are in segments, in small commits, and compacts the tombstones.
pub(super) async fn delete_flushed_rows(
    committer: &Arc<Committer>,
    table: TableId,
    control: &Control,
) -> Result<()> {
    /// The tombstones of fewer rows are not worth a compaction.
    const COMPACTED_ROWS_MIN: usize = 4_096;
    /// Tombstones are compacted in ranges of about this many rows. Between ranges the work can end.
    const COMPACTED_ROWS_MAX: usize = 128 << 10;
    let (mut removed, mut in_range, mut compacted): (_, _, Vec<KeyRange>) = (0, 0, Vec::new());
    let mut rest = Some(KeyRange::prefix(table_prefix(table)));
    while let Some(range) = rest {
        if control.stop.is_cancelled() {
            return Ok(());
        }
        let snapshot = committer.snapshot();
        let (flushed, read_seq) = (snapshot.cold.flushed(table), snapshot.seq);
        let (keys, next) = blocking(move || flushed_keys(&snapshot, range, flushed)).await?;
        rest = next;
        if keys.is_empty() {
            continue;
        }
        failpoint::step("flush::clean")?;
        control.add(keys.len(), keys.iter().map(Bytes::len).sum());
        if let (Some(first), Some(last)) = (keys.first(), keys.last()) {
            let end = Some([last, &[0][..]].concat());
            match compacted.last_mut() {
                Some(range) if in_range < COMPACTED_ROWS_MAX => range.end = end,
                _ => {
                    in_range = 0;
                    compacted.push(KeyRange { start: first.to_vec(), end });
                }
            }
        }
        in_range += keys.len();
        removed += keys.len();
        commit(committer, ColdWrite::DeleteFlushed { table, keys }, read_seq).await?;
    }
    if removed < COMPACTED_ROWS_MIN {
        return Ok(());
    }
    for range in compacted {
        if control.stop.is_cancelled() {
            return Ok(());
        }
        let committer = Arc::clone(committer);
        blocking(move || committer.compact_rows(&range)).await?;
    }
    Ok(())
}
