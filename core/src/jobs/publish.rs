//! The follow-up of flushes and compactions: marks move into deletion vectors, and manifests are published.
//!
//! A published manifest is an object beside the segments, for other readers. It is never overwritten:
//!
//! ```text
//! TABLE/manifest-DATABASE-EPOCH-SEQ.json       epoch and seq in hexadecimal: the last name is the newest
//! {
//!   "format": 1, "database_id": "...", "epoch": 1, "seq": 42, "commit_ts": 1767225600000000,
//!   "table_id": 1000, "namespace": "app", "table": "notes", "type": "user", "schema_version": 1,
//!   "flushed_seq": 41,
//!   "columns": [{"id": 1, "name": "id", "type": "BIGINT"}, {"id": 3, ..., "initial": "5"}, ...],
//!   "layouts": [{"since_version": 1, "columns": [{"id": 1, "type": "INTEGER"}, ...]}, ...],
//!   "segments": [{"storage": "local", "path": "1000/00000001-00000001.parquet", "rows": 10, "bytes": 2048,
//!                 "schema_version": 1, "through_seq": 41, "commit_seq": null, "deleted_rows": 1,
//!                 "deletion_vector": "base64 of a Roaring bitmap in its portable format, or null"}, ...]
//! }
//! ```
//!
//! It lists the rows that are cold as of `seq`. Rows written after `flushed_seq` are hot and not in it,
//! except those of segments with a `commit_seq`, which is the seq of all their rows: `_seq` inside the object
//! is 0; ignore it. The last two manifests are kept, for readers that have just begun.
//!
//! `columns` are those of the newest table version. A segment has the columns of its `schema_version`, which
//! `layouts` lists: the last layout since that version or an earlier one. A column keeps its id, which is
//! also the `PARQUET:field_id` in the segment; its name and type may have changed. In a segment that is older
//! than a column, all rows have its `initial` value, or NULL. That is a text, which the reader casts to the
//! type of the column: `true`, `-5`, `0.50`, `Infinity`, `\x00ff`, `2026-01-02 03:04:05.5+00`, a UUID with
//! hyphens, `[1, 2.5]` for an EMBEDDING.
//!
//! Invariant: a manifest is published after the commit it describes, and that commit records that it is due.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use roaring::RoaringBitmap;
use serde_json::{Value, json};
use tracing::warn;

use super::backoff::Backoff;
use super::store::JobStore;
use crate::cold_storage::{ColdChange, ObjectStorage, Segment, Unpublished, first_marked, portable};
use crate::commit::{ColdWrite, Committer, Snapshot, WriteSet};
use crate::error::{ErrorKind, Result};
use crate::failpoint;
use crate::ids::{DatabaseId, Seq, TableId, UserId};
use crate::schema_registry::{ColumnDefinition, Durability, RowLayout, TableDefinition};
use crate::storage::blocking;

/// The most marks moved by one commit.
const MARKS_PER_COMMIT_MAX: usize = 16_384;
/// Fewer marks are not worth a commit.
const MARKS_PER_COMMIT_MIN: usize = 256;
/// How many published manifests of a table are kept.
const MANIFESTS_KEPT: usize = 2;

/// Moves the marks of a table's segments into their deletion vectors, some per commit.
pub(super) async fn apply_marks(committer: &Arc<Committer>, table: TableId) -> Result<()> {
    let segments = committer.snapshot().cold.segments(table).to_vec();
    for segment in segments {
        loop {
            let snapshot = committer.snapshot();
            let (read_seq, id) = (snapshot.seq, segment.id);
            let marks = blocking(move || first_marked(&*snapshot.storage, id, MARKS_PER_COMMIT_MAX)).await?;
            if marks.len() < MARKS_PER_COMMIT_MIN {
                break;
            }
            let is_last = marks.len() < MARKS_PER_COMMIT_MAX;
            let positions: RoaringBitmap = marks.into_iter().collect();
            let write = ColdWrite::Manifest(vec![ColdChange::ApplyMarks { table, segment: id, positions }]);
            if !commit(committer, write, read_seq).await? || is_last {
                break;
            }
        }
    }
    Ok(())
}

/// Publishes the manifests that are due. A manifest that cannot be published stays due.
pub(super) async fn publish_due(jobs: &JobStore, backoff: &mut Backoff) {
    let committer = &jobs.committer;
    for (table, due) in committer.snapshot().cold.unpublished().clone() {
        let now = jobs.clock.now_us();
        if backoff.is_backing_off(&due.storage, now) {
            continue;
        }
        if let Err(error) = publish_table(committer, table, &due).await {
            warn!(%table, storage = %due.storage, %error, "a manifest could not be published");
            backoff.back_off(&due.storage, now, jobs.clock.now_us());
        }
    }
}

/// Publishes a manifest that is due.
async fn publish_table(committer: &Arc<Committer>, table: TableId, due: &Unpublished) -> Result<()> {
    let snapshot = committer.snapshot();
    let done = ColdWrite::Manifest(vec![ColdChange::Published { table, seq: due.seq }]);
    let storage = match snapshot.cold.store().storage(&due.storage) {
        Ok(storage) => storage,
        // The storage was dropped after its last table.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return commit(committer, done, snapshot.seq).await.map(|_| ());
        }
        Err(error) => return Err(error),
    };
    let kept = match snapshot.catalog.table_by_id(table) {
        Some(definition) => {
            let (at, definition) = (Arc::clone(&snapshot), Arc::clone(definition));
            let database = committer.database_id();
            let name =
                format!("{table}/manifest-{database}-{:08x}-{:016x}.json", snapshot.epoch.0, snapshot.seq.0);
            let text = blocking(move || Ok(manifest(&at, &definition, database)?.to_string())).await?;
            failpoint::step("publish::write")?;
            storage.put_new(&name, text.into_bytes()).await?;
            failpoint::step("publish::written")?;
            MANIFESTS_KEPT
        }
        None => 0,
    };
    remove_old(&storage, table, kept).await?;
    failpoint::step("publish::removed")?;
    commit(committer, done, snapshot.seq).await.map(|_| ())
}

async fn remove_old(storage: &ObjectStorage, table: TableId, kept: usize) -> Result<()> {
    let mut manifests = storage.manifests(table).await?;
    manifests.sort_unstable();
    for old in manifests.iter().rev().skip(kept) {
        storage.remove(old).await?;
    }
    Ok(())
}

/// Commits a change that readers cannot see. Returns false if another commit came first and made it needless.
pub(super) async fn commit(committer: &Committer, write: ColdWrite, read_seq: Seq) -> Result<bool> {
    let set = WriteSet {
        cold: Some(write),
        durability: Durability::Relaxed,
        ..WriteSet::new(UserId::SYSTEM, read_seq)
    };
    match committer.commit(set).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::Conflict => Ok(false),
        Err(error) => Err(error),
    }
}

fn manifest(snapshot: &Snapshot, definition: &TableDefinition, database: DatabaseId) -> Result<Value> {
    let columns: Vec<Value> = definition.columns.iter().map(described_column).collect();
    let layouts: Vec<Value> = definition.layouts().iter().map(described_layout).collect();
    let segments = snapshot.cold.segments(definition.id).iter();
    let segments: Vec<Value> = segments.map(|segment| described(snapshot, segment)).collect::<Result<_>>()?;
    Ok(json!({
        "format": 1,
        "database_id": database.to_string(),
        "epoch": snapshot.epoch.0,
        "seq": snapshot.seq.0,
        "commit_ts": snapshot.commit_ts,
        "table_id": definition.id.0,
        "namespace": definition.namespace,
        "table": definition.name,
        "type": definition.kind.to_string(),
        "schema_version": definition.version.0,
        "flushed_seq": snapshot.cold.flushed(definition.id).0,
        "columns": columns,
        "layouts": layouts,
        "segments": segments,
    }))
}

fn described_column(column: &ColumnDefinition) -> Value {
    let mut described = json!({ "id": column.id.0, "name": column.name, "type": column.ty.to_string() });
    if let (Some(initial), Some(described)) = (&column.initial, described.as_object_mut()) {
        described.insert("initial".to_owned(), json!(initial));
    }
    described
}

fn described_layout(layout: &RowLayout) -> Value {
    let columns = layout.columns.iter().map(|(id, ty)| json!({ "id": id.0, "type": ty.to_string() }));
    json!({ "since_version": layout.since.0, "columns": columns.collect::<Vec<_>>() })
}

fn described(snapshot: &Snapshot, segment: &Segment) -> Result<Value> {
    let deleted = snapshot.cold.deleted(&*snapshot.storage, segment.table, segment.id)?;
    let vector = if deleted.is_empty() { None } else { Some(STANDARD.encode(portable(&deleted)?)) };
    Ok(json!({
        "storage": segment.storage,
        "path": segment.path,
        "rows": segment.rows,
        "bytes": segment.bytes,
        "schema_version": segment.version.0,
        "through_seq": segment.through.0,
        "commit_seq": segment.commit.map(|seq| seq.0),
        "deleted_rows": deleted.len(),
        "deletion_vector": vector,
    }))
}
