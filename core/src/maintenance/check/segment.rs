//! Checks one segment: its bytes, its rows, and its keys in order.

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use parquet::bloom_filter::Sbbf;

use super::Problems;
use crate::cold_storage::{COLUMN_ID_SEQ, Segment, SegmentKeys, selection};
use crate::commit::Snapshot;
use crate::error::{Error, Result};
use crate::schema_registry::TableSchemas;

/// Reads every byte and every row of a segment.
///
/// # Errors
/// XX001 for the first problem, 58030 when the segment cannot be read.
pub(super) async fn read_all(
    snapshot: &Snapshot,
    schemas: &TableSchemas,
    segment: &Arc<Segment>,
) -> Result<()> {
    let store = snapshot.cold.store();
    store.verify(segment).await?;
    let all = selection(std::slice::from_ref(&segment.positions()), &[], segment.rows);
    let schema = schemas.segment()?;
    let mut batches = store.stream(segment, schema, all).await?;
    let (mut rows, seq_position) = (0, schema.position(COLUMN_ID_SEQ));
    while let Some(batch) = batches.try_next().await? {
        rows += batch.num_rows() as u64;
        let seqs = seq_position.and_then(|position| batch.columns().get(position));
        let seqs = seqs.and_then(|column| column.as_primitive_opt::<Int64Type>());
        let seqs = seqs.ok_or_else(|| wrong(segment, "its rows have no seq"))?;
        let is_possible = |seq: &i64| u64::try_from(*seq).is_ok_and(|seq| seq <= segment.through.0);
        if !seqs.values().iter().all(is_possible) {
            return Err(wrong(segment, "a row belongs to a later commit than the segment"));
        }
    }
    if rows != u64::from(segment.rows) {
        return Err(wrong(segment, "its number of rows differs from the manifest's"));
    }
    Ok(())
}

fn wrong(segment: &Segment, why: &str) -> Error {
    Error::corruption(format!("segment \"{}\" is damaged: {why}", segment.path))
}

/// Iterates over the keys of a segment's live rows, in order, and checks all keys of the segment.
pub(super) struct LiveKeys {
    pub(super) segment: Arc<Segment>,
    keys: BoxStream<'static, Result<Vec<Bytes>>>,
    filter: Arc<Sbbf>,
    /// The positions of overwritten and deleted rows, ascending.
    deleted: Vec<u32>,
    /// The position of the next key.
    position: u32,
    last: Option<Bytes>,
    /// Whether a problem was noted; one per segment is enough.
    noted: bool,
}

impl LiveKeys {
    /// # Errors
    /// XX001 when the footer or the filter is damaged, 58030 when the segment cannot be read.
    pub(super) async fn open(
        snapshot: &Snapshot,
        layout: &SegmentKeys,
        segment: &Arc<Segment>,
        deleted: Vec<u32>,
        problems: &mut Problems,
    ) -> Result<Self> {
        let store = snapshot.cold.store();
        let filter = store.filter(&snapshot.storage, segment).await?;
        let keys = store.keys(segment, layout).await?;
        if deleted.last().is_some_and(|last| *last >= segment.rows) {
            problems.note(format!("segment \"{}\" lacks a row that is marked as deleted", segment.path));
        }
        let segment = Arc::clone(segment);
        Ok(Self { segment, keys, filter, deleted, position: 0, last: None, noted: false })
    }

    /// Returns the next live keys with their positions; `None` at the end.
    ///
    /// # Errors
    /// As [`LiveKeys::open`].
    pub(super) async fn next(&mut self, problems: &mut Problems) -> Result<Option<Vec<(Bytes, u32)>>> {
        let Some(keys) = self.keys.try_next().await? else {
            self.check_end(problems);
            return Ok(None);
        };
        let mut live = Vec::with_capacity(keys.len());
        for key in keys {
            self.check_key(&key, problems);
            if self.deleted.binary_search(&self.position).is_err() {
                live.push((Bytes::clone(&key), self.position));
            }
            self.position += 1;
            self.last = Some(key);
        }
        Ok(Some(live))
    }

    fn check_key(&mut self, key: &Bytes, problems: &mut Problems) {
        let why = match &self.last {
            None if **key != *self.segment.first_key => "its first key differs from the manifest's",
            Some(last) if last >= key => "its keys are not sorted",
            _ if !self.filter.check(&**key) => "its key filter lacks a key",
            _ => return,
        };
        self.note(why, problems);
    }

    fn check_end(&mut self, problems: &mut Problems) {
        if self.position != self.segment.rows {
            self.note("its number of rows differs from the manifest's", problems);
        } else if self.last.as_deref() != Some(self.segment.last_key.as_slice()) {
            self.note("its last key differs from the manifest's", problems);
        }
    }

    fn note(&mut self, why: &str, problems: &mut Problems) {
        if !std::mem::replace(&mut self.noted, true) {
            problems.note(format!("segment \"{}\" is damaged: {why}", self.segment.path));
        }
    }
}
