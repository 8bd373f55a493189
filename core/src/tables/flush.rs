//! Writes the hot rows of a table to segments.
//!
//! The store returns rows in the key order of segments, so they are written as they come, in chunks.
//!
//! Invariant: the segments contain exactly the rows of the snapshot that are not in a segment yet, each once.

use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeBinaryArray, Int64Array, RecordBatch};
use bytes::Bytes;

use super::control::Control;
use super::sizes::batch_value_bytes;
use super::source::row_decoder;
use crate::cold_storage::{
    NewSegment, ObjectStorage, Place, Segment, SegmentStore, SegmentWriter, WrittenSegment,
};
use crate::commit::{Receipt, Snapshot};
use crate::error::{Error, Result, SqlState};
use crate::failpoint;
use crate::ids::{SegmentId, Seq};
use crate::schema_registry::{ScopeKind, TableSchemas};
use crate::storage::keys::{SCOPE_PREFIX_BYTES, table_and_scope, table_prefix};
use crate::storage::rows::RowHeader;
use crate::storage::{Direction, KeyRange, Partition, blocking};

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

/// Writes the hot rows of `snapshot` to segments, which are durable and verified on return; `next_id` gives
/// their ids.
///
/// # Errors
/// 57014 when cancelled, 58030 when the storage fails, XX001 for damaged rows or segments.
pub async fn flush(
    snapshot: &Arc<Snapshot>,
    schemas: &Arc<TableSchemas>,
    next_id: impl Fn() -> SegmentId + Send + Sync + 'static,
    control: &Control,
    now_us: i64,
) -> Result<PublishedSegments> {
    let writer = SegmentsWriter::new(snapshot, schemas, Arc::new(next_id), control)?;
    let written = blocking(move || write_hot(writer)).await?;
    publish_segments(snapshot, schemas, written, control, now_us).await
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
    snapshot: Arc<Snapshot>,
    schemas: Arc<TableSchemas>,
    next_id: Arc<dyn Fn() -> SegmentId + Send + Sync>,
    open: Option<(SegmentId, String, SegmentWriter)>,
    done: Vec<Written>,
    objects: PendingObjects,
    control: Control,
}

fn write_hot(mut writer: SegmentsWriter) -> Result<WrittenSegments> {
    let mut rest = Some(KeyRange::prefix(table_prefix(writer.schemas.definition.id)));
    while let Some(range) = rest {
        rest = writer.write_hot(range)?;
    }
    writer.finish()
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

    /// Writes the first hot rows of a key range; returns the rest of the range.
    fn write_hot(&mut self, range: KeyRange) -> Result<Option<KeyRange>> {
        self.control.check()?;
        let flushed = self.snapshot.cold.flushed(self.schemas.definition.id);
        let shown: Vec<usize> = (0..self.schemas.full.fields().len()).collect();
        let mut decoder = row_decoder(&self.schemas.definition, &shown)?;
        let (mut keys, mut bytes, mut visits) = (Vec::new(), 0, 0);
        let mut stopped_at = None;
        let end = range.end.clone();
        self.snapshot.storage.visit(Partition::Rows, range, Direction::Forward, &mut |key, row| {
            visits += 1;
            let (header, _) = RowHeader::read(row)?;
            if header.seq > flushed {
                decoder.push(key, row)?;
                keys.push(Bytes::copy_from_slice(key));
                bytes += row.len();
            }
            if keys.len() >= CHUNK_ROWS || bytes >= CHUNK_BYTES_MAX || visits >= 8 * CHUNK_ROWS {
                stopped_at = Some([key, &[0]].concat());
                return Ok(ControlFlow::Break(()));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if !keys.is_empty() {
            let mut columns = decoder.finish()?;
            columns.extend(self.system_columns(&keys)?);
            let batch = RecordBatch::try_new(Arc::clone(self.schemas.segment()), columns)?;
            self.push(&batch, &keys)?;
        }
        Ok(stopped_at.map(|start| KeyRange { start, end }))
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
        let writer = SegmentWriter::new(
            storage.create(&path)?,
            Arc::clone(self.schemas.segment()),
            storage.compression(),
        )?;
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

/// Returns for each segment the positions of its deleted rows, ascending.
///
/// # Errors
/// XX001 when a mark is damaged, and any error of the storage.
pub async fn deleted_positions(snapshot: &Snapshot, segments: &[Arc<Segment>]) -> Result<Vec<Vec<u32>>> {
    let (storage, cold) = (Arc::clone(&snapshot.storage), Arc::clone(&snapshot.cold));
    let ids: Vec<_> = segments.iter().map(|segment| (segment.table, segment.id)).collect();
    let deleted_in =
        move |(table, segment)| Ok(cold.deleted(&*storage, table, segment)?.into_iter().collect());
    blocking(move || ids.into_iter().map(deleted_in).collect()).await
}

/// Returns keys of stored rows in `range` that are already in segments, and the rest of the range.
///
/// # Errors
/// XX001 for damaged rows, and any error of the storage.
pub fn flushed_keys(
    snapshot: &Snapshot,
    range: KeyRange,
    flushed: Seq,
) -> Result<(Vec<Bytes>, Option<KeyRange>)> {
    /// Rows that one commit removes.
    const KEYS_MAX: usize = 4_096;
    /// Rows visited for one commit.
    const VISITS_MAX: usize = 65_536;
    let (mut keys, mut visits, mut stopped_at) = (Vec::new(), 0, None);
    let end = range.end.clone();
    snapshot.storage.visit(Partition::Rows, range, Direction::Forward, &mut |key, row| {
        visits += 1;
        if RowHeader::read(row)?.0.seq <= flushed {
            keys.push(Bytes::copy_from_slice(key));
        }
        if keys.len() >= KEYS_MAX || visits >= VISITS_MAX {
            stopped_at = Some([key, &[0]].concat());
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok((keys, stopped_at.map(|start| KeyRange { start, end })))
}
