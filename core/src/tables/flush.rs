//! The hot rows of a table into segments.
//!
//! Rows come from the store in key order, which is the order of a segment, so they are written as they come, a block at a time.
//!
//! Invariant: the segments hold exactly the rows of the snapshot that are not in a segment yet, each once.

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

/// Rows decoded and written at once.
pub(crate) const CHUNK_ROWS: usize = 8_192;
/// A chunk is ended when its stored rows have this many bytes.
pub(crate) const CHUNK_BYTES_MAX: usize = 8 << 20;
/// The most rows of a segment; the keys of all of them are in memory until it is committed.
const SEGMENT_ROWS_MAX: usize = 1 << 20;
/// A segment is ended when it has this many bytes.
const SEGMENT_BYTES_MAX: usize = 256 << 20;

/// Segments that are on stable storage, of a flush, a merge or a large INSERT.
pub struct Flushed {
    /// Ready to be committed.
    pub segments: Vec<NewSegment>,
    /// Rows in them.
    pub rows: u64,
    /// Their length.
    pub bytes: u64,
    /// Their objects, to be kept once a commit may name them.
    pub files: Files,
}

/// Objects that are removed when this is dropped, unless they are kept.
pub struct Files {
    storage: Arc<ObjectStorage>,
    paths: Vec<String>,
}

impl Files {
    /// Leaves them where they are from now on, since a commit that is under way may name them.
    pub fn keep(mut self) -> KeptFiles {
        KeptFiles { storage: Arc::clone(&self.storage), paths: std::mem::take(&mut self.paths) }
    }
}

/// Objects that a commit may name.
pub struct KeptFiles {
    storage: Arc<ObjectStorage>,
    paths: Vec<String>,
}

impl KeptFiles {
    /// Removes them when their commit was refused. What a commit of unknown outcome names stays: the next start looks.
    pub fn settle(self, outcome: &Result<Receipt>) {
        if outcome.as_ref().is_err_and(|error| error.sqlstate() != SqlState::OUTCOME_UNKNOWN) {
            drop(Files { storage: self.storage, paths: self.paths });
        }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        self.paths.iter().for_each(|path| self.storage.discard(path));
    }
}

/// Writes the rows of `snapshot` that are hot to segments, which are then on stable storage and verified. `next_id` numbers them.
///
/// # Errors
/// 57014 when it is told to end, 58030 when the storage of the segments fails; XX001 for damaged rows, or for a segment that does
/// not read as it was written.
pub async fn flush(
    snapshot: &Arc<Snapshot>,
    schemas: &Arc<TableSchemas>,
    next_id: impl Fn() -> SegmentId + Send + Sync + 'static,
    control: &Control,
    now_us: i64,
) -> Result<Flushed> {
    let writer = SegmentsWriter::new(snapshot, schemas, Arc::new(next_id), control)?;
    let written = blocking(move || write_hot(writer)).await?;
    published(snapshot, schemas, written, control, now_us).await
}

/// Brings written segments to stable storage, reads them again, and describes them.
pub(super) async fn published(
    snapshot: &Snapshot,
    schemas: &TableSchemas,
    (written, files): WrittenSegments,
    control: &Control,
    now_us: i64,
) -> Result<Flushed> {
    let store = snapshot.cold.store();
    control.begin("bringing segments to stable storage");
    let mut flushed = Flushed { segments: Vec::new(), rows: 0, bytes: 0, files };
    for Written { id, path, mut segment } in written {
        failpoint::step("segment::written")?;
        control.check()?;
        flushed.files.storage.publish(&path, &mut segment).await?;
        failpoint::step("segment::published")?;
        let new = describe(snapshot, schemas, id, path, segment, now_us)?;
        store.verify(&new.segment).await?;
        failpoint::step("segment::verified")?;
        flushed.rows += u64::from(new.segment.rows);
        flushed.bytes += new.segment.bytes;
        control.add(new.segment.rows as usize, usize::try_from(new.segment.bytes).unwrap_or_default());
        flushed.segments.push(new);
    }
    control.check()?;
    control.begin("committing");
    Ok(flushed)
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

/// A segment that is written and not yet on stable storage.
pub(super) struct Written {
    id: SegmentId,
    path: String,
    segment: WrittenSegment,
}

/// Segments, and their objects.
pub(super) type WrittenSegments = (Vec<Written>, Files);

/// Rows in key order into as many segments as they need.
pub(super) struct SegmentsWriter {
    snapshot: Arc<Snapshot>,
    schemas: Arc<TableSchemas>,
    next_id: Arc<dyn Fn() -> SegmentId + Send + Sync>,
    open: Option<(SegmentId, String, SegmentWriter)>,
    done: Vec<Written>,
    files: Files,
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
        let files = Files { storage, paths: Vec::new() };
        let control = control.clone();
        Ok(Self { snapshot, schemas, next_id, open: None, done: Vec::new(), files, control })
    }

    /// Writes the first hot rows of a range of keys, and gives what is left of it.
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

    /// The columns a segment has beside those of the full schema.
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

    /// Adds rows with their keys, each above all before, and says where they are now.
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
        self.files.paths.push(path.clone());
        let storage = &self.files.storage;
        let writer = SegmentWriter::new(
            storage.create(&path)?,
            Arc::clone(self.schemas.segment()),
            storage.compression(),
        )?;
        Ok((id, path, writer))
    }

    /// Ends the last segment, and gives all.
    pub(super) fn finish(mut self) -> Result<WrittenSegments> {
        if let Some((id, path, writer)) = self.open.take() {
            self.done.push(Written { id, path, segment: writer.finish()? });
        }
        Ok((self.done, self.files))
    }
}

/// For each segment the positions of the rows that are gone, ascending.
///
/// # Errors
/// XX001 when a mark is damaged, and whatever the storage returns.
pub async fn gone_of(snapshot: &Snapshot, segments: &[Arc<Segment>]) -> Result<Vec<Vec<u32>>> {
    let (storage, cold) = (Arc::clone(&snapshot.storage), Arc::clone(&snapshot.cold));
    let ids: Vec<_> = segments.iter().map(|segment| (segment.table, segment.id)).collect();
    let gone_in = move |(table, segment)| Ok(cold.gone(&*storage, table, segment)?.into_iter().collect());
    blocking(move || ids.into_iter().map(gone_in).collect()).await
}

/// The keys of stored rows of a table that are in segments by now, from `start` on, and where to go on looking.
///
/// # Errors
/// XX001 for damaged rows, and whatever the storage returns.
pub fn flushed_keys(
    snapshot: &Snapshot,
    range: KeyRange,
    flushed: Seq,
) -> Result<(Vec<Bytes>, Option<KeyRange>)> {
    /// Rows one commit removes.
    const KEYS_MAX: usize = 4_096;
    /// Rows looked at for one.
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
