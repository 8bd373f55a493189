//! The files of new segments: written in key order, brought to stable storage, verified, described.
//!
//! Invariant: a segment is on stable storage and verified before a commit names it. The objects of segments
//! that no commit names are removed.

use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeBinaryArray, Int64Array, RecordBatch};
use bytes::Bytes;

use super::control::Control;
use crate::cold_storage::{
    NewSegment, ObjectStorage, Place, Segment, SegmentStore, SegmentWriter, WrittenSegment,
};
use crate::commit::{Receipt, Snapshot};
use crate::error::{Error, Result, SqlState};
use crate::failpoint;
use crate::ids::SegmentId;
use crate::schema_registry::{ScopeKind, TableSchemas};
use crate::storage::keys::{SCOPE_PREFIX_BYTES, table_and_scope};
use crate::tables::batch_value_bytes;

/// The maximum number of rows in a chunk, which is decoded and written at once.
pub(crate) const CHUNK_ROWS: usize = 8_192;
/// A chunk ends at this many stored bytes.
pub(crate) const CHUNK_BYTES_MAX: usize = 8 << 20;
/// The maximum number of rows in a segment, whose keys stay in memory until the commit.
const SEGMENT_ROWS_MAX: usize = 1 << 20;
/// A segment ends at this many bytes.
const SEGMENT_BYTES_MAX: usize = 256 << 20;

/// Segments on stable storage, from a flush, a compaction or a large INSERT.
pub struct PublishedSegments {
    /// The segments, ready to be committed.
    pub segments: Vec<NewSegment>,
    /// Their number of rows.
    pub rows: u64,
    /// Their total length.
    pub bytes: u64,
    /// Their objects, which the caller must keep once a commit may name them.
    pub objects: PendingObjects,
}

/// Objects that are removed on drop unless they are kept.
pub struct PendingObjects {
    storage: Arc<ObjectStorage>,
    paths: Vec<String>,
}

impl PendingObjects {
    /// Keeps the objects, because a commit in progress may name them.
    pub fn keep(mut self) -> KeptObjects {
        KeptObjects { storage: Arc::clone(&self.storage), paths: std::mem::take(&mut self.paths) }
    }
}

/// Objects that a commit may name.
pub struct KeptObjects {
    storage: Arc<ObjectStorage>,
    paths: Vec<String>,
}

impl KeptObjects {
    /// Removes the objects when their commit was refused. After an unknown outcome, the next start decides.
    pub fn settle(self, outcome: &Result<Receipt>) {
        if outcome.as_ref().is_err_and(|error| error.sqlstate() != SqlState::OUTCOME_UNKNOWN) {
            drop(PendingObjects { storage: self.storage, paths: self.paths });
        }
    }
}

impl Drop for PendingObjects {
    fn drop(&mut self) {
        self.paths.iter().for_each(|path| self.storage.discard(path));
    }
}

/// Brings written segments to stable storage, verifies and describes them.
pub(super) async fn publish_segments(
    snapshot: &Snapshot,
    schemas: &TableSchemas,
    (written, objects): WrittenSegments,
    control: &Control,
    now_us: i64,
) -> Result<PublishedSegments> {
    let store = snapshot.cold.store();
    control.begin("bringing segments to stable storage");
    let mut published = PublishedSegments { segments: Vec::new(), rows: 0, bytes: 0, objects };
    for Written { id, path, mut segment } in written {
        failpoint::step("segment::written")?;
        control.check()?;
        segment.publish(&published.objects.storage, &path).await?;
        failpoint::step("segment::published")?;
        let new = describe(snapshot, schemas, id, path, segment, now_us)?;
        store.verify(&new.segment).await?;
        failpoint::step("segment::verified")?;
        published.rows += u64::from(new.segment.rows);
        published.bytes += new.segment.bytes;
        control.add(new.segment.rows as usize, usize::try_from(new.segment.bytes).unwrap_or_default());
        published.segments.push(new);
    }
    control.check()?;
    control.begin("committing");
    Ok(published)
}

fn describe(
    snapshot: &Snapshot,
    schemas: &TableSchemas,
    id: SegmentId,
    path: String,
    written: WrittenSegment,
    now_us: i64,
) -> Result<NewSegment> {
    let keys = Arc::new(written.keys);
    let segment = Segment {
        id,
        table: schemas.definition.id,
        version: schemas.definition.version,
        storage: Arc::clone(&schemas.definition.options.storage_id),
        path,
        rows: u32::try_from(keys.len()).map_err(|_| Error::internal("a segment has too many rows"))?,
        bytes: written.bytes,
        first_key: keys.first().unwrap_or_default().to_vec(),
        last_key: keys.last().unwrap_or_default().to_vec(),
        through: snapshot.seq,
        commit: None,
        created_at: now_us,
        checksums: written.checksums,
    };
    Ok(NewSegment { segment: Arc::new(segment), filter: written.filter, keys })
}

/// A written segment that is not on stable storage yet.
pub(super) struct Written {
    id: SegmentId,
    path: String,
    segment: WrittenSegment,
}

/// Written segments and their objects.
pub(super) type WrittenSegments = (Vec<Written>, PendingObjects);

/// Writes rows in key order into as many segments as they need.
pub(super) struct SegmentsWriter {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) schemas: Arc<TableSchemas>,
    next_id: Arc<dyn Fn() -> SegmentId + Send + Sync>,
    open: Option<(SegmentId, String, SegmentWriter)>,
    done: Vec<Written>,
    objects: PendingObjects,
    pub(super) control: Control,
}

impl SegmentsWriter {
    pub(super) fn new(
        snapshot: &Arc<Snapshot>,
        schemas: &Arc<TableSchemas>,
        next_id: Arc<dyn Fn() -> SegmentId + Send + Sync>,
        control: &Control,
    ) -> Result<Self> {
        control.begin("writing segments");
        let (snapshot, schemas) = (Arc::clone(snapshot), Arc::clone(schemas));
        let storage = snapshot.cold.store().storage(&schemas.definition.options.storage_id)?;
        let objects = PendingObjects { storage, paths: Vec::new() };
        let control = control.clone();
        Ok(Self { snapshot, schemas, next_id, open: None, done: Vec::new(), objects, control })
    }

    /// Returns the columns of a segment that follow those of the full schema.
    pub(super) fn system_columns(&self, keys: &[Bytes]) -> Result<Vec<ArrayRef>> {
        let definition = &self.schemas.definition;
        let damaged = || Error::corruption("a stored row key is damaged");
        let mut columns: Vec<ArrayRef> = Vec::new();
        if definition.options.scope == ScopeKind::User {
            let owners = keys.iter().map(|key| {
                let (_, scope) = table_and_scope(key).ok_or_else(damaged)?;
                i64::try_from(scope.0).map_err(|_| damaged())
            });
            columns.push(Arc::new(Int64Array::from(owners.collect::<Result<Vec<_>>>()?)));
        }
        if !definition.has_key() {
            let ids = keys.iter().map(|key| key.get(SCOPE_PREFIX_BYTES..).unwrap_or_default());
            columns.push(Arc::new(FixedSizeBinaryArray::try_from_iter(ids)?));
        }
        Ok(columns)
    }

    /// Adds rows with their keys, each greater than all before; returns their places.
    pub(super) fn push(&mut self, batch: &RecordBatch, keys: &[Bytes]) -> Result<Vec<Place>> {
        self.control.check()?;
        self.control.add(keys.len(), batch_value_bytes(batch));
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let (id, path, mut writer) = match self.open.take() {
            Some(open) => open,
            None => self.begin_segment()?,
        };
        let first = writer.rows();
        writer.push(batch, keys)?;
        let places = (first..writer.rows())
            .map(|position| Place { segment: id, position: u32::try_from(position).unwrap_or(u32::MAX) })
            .collect();
        if writer.rows() >= SEGMENT_ROWS_MAX || writer.bytes() >= SEGMENT_BYTES_MAX {
            self.done.push(Written { id, path, segment: writer.finish()? });
        } else {
            self.open = Some((id, path, writer));
        }
        Ok(places)
    }

    fn begin_segment(&mut self) -> Result<(SegmentId, String, SegmentWriter)> {
        let id = (self.next_id)();
        let path = SegmentStore::path(self.schemas.definition.id, self.snapshot.epoch, id);
        self.objects.paths.push(path.clone());
        let storage = &self.objects.storage;
        let writer =
            SegmentWriter::new(storage.create(&path)?, self.schemas.segment()?, storage.compression())?;
        Ok((id, path, writer))
    }

    /// Finishes the last segment; returns all of them.
    pub(super) fn finish(mut self) -> Result<WrittenSegments> {
        if let Some((id, path, writer)) = self.open.take() {
            self.done.push(Written { id, path, segment: writer.finish()? });
        }
        Ok((self.done, self.objects))
    }
}
