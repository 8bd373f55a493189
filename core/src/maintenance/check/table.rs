//! Checks the hot and cold rows of a table, in key order: each fits the table, and each key has one live row.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use bytes::Bytes;

use super::segment::{LiveKeys, read_all};
use super::{Problems, TableReport};
use crate::commit::Snapshot;
use crate::error::{Error, Result};
use crate::ids::ScopeId;
use crate::schema_registry::{ScopeKind, TableDefinition, TableSchemas};
use crate::segments::{CHUNK_BYTES_MAX, CHUNK_ROWS};
use crate::storage::keys::{KeyEncoder, SCOPE_PREFIX_BYTES, table_and_scope, table_prefix};
use crate::storage::rows::row_seq;
use crate::storage::{Direction, KeyRange, Partition, blocking};
use crate::tables::decode_images;

/// The bytes of a hidden key after table and scope.
const HIDDEN_KEY_BYTES: usize = 12;

/// Notes problems of a table's rows, and counts the rows.
pub(super) async fn check(
    snapshot: &Arc<Snapshot>,
    schemas: &Arc<TableSchemas>,
    problems: &mut Problems,
) -> TableReport {
    let definition = &schemas.definition;
    let name = definition.qualified_name();
    let segments = snapshot.cold.segments(definition.id);
    let mut report = TableReport {
        name: name.clone(),
        segments: segments.len() as u64,
        bytes: segments.iter().map(|segment| segment.bytes).sum(),
        ..TableReport::default()
    };
    let mut inputs = match cold_inputs(snapshot, schemas, &mut report, problems).await {
        Ok(inputs) => inputs,
        Err(error) => {
            problems.note_error(&format!("table \"{name}\""), &error);
            Vec::new()
        }
    };
    let rest = Some(KeyRange::prefix(table_prefix(definition.id)));
    let source = Source::Hot { snapshot: Arc::clone(snapshot), schemas: Arc::clone(schemas), rest };
    inputs.push(Input { source, ready: VecDeque::new() });
    merge(&name, inputs, &mut report, problems).await;
    report
}

/// Opens the segments that can be read.
async fn cold_inputs(
    snapshot: &Arc<Snapshot>,
    schemas: &Arc<TableSchemas>,
    report: &mut TableReport,
    problems: &mut Problems,
) -> Result<Vec<Input>> {
    let segments = snapshot.cold.segments(schemas.definition.id);
    let layout = schemas.definition.segment_keys()?;
    let deleted = snapshot.cold.deleted_positions(&snapshot.storage, segments).await?;
    let mut inputs = Vec::with_capacity(segments.len() + 1);
    for (segment, deleted) in segments.iter().zip(deleted) {
        report.deleted += deleted.len() as u64;
        let opened = match read_all(snapshot, schemas, segment).await {
            Ok(()) => LiveKeys::open(snapshot, &layout, segment, deleted, problems).await,
            Err(error) => Err(error),
        };
        match opened {
            Ok(keys) => inputs.push(Input { source: Source::Cold(keys), ready: VecDeque::new() }),
            Err(error) => problems.note(error.message()),
        }
    }
    Ok(inputs)
}

/// The live rows of one segment or of the store, in key order.
struct Input {
    source: Source,
    ready: VecDeque<(Bytes, u32)>,
}

enum Source {
    Hot { snapshot: Arc<Snapshot>, schemas: Arc<TableSchemas>, rest: Option<KeyRange> },
    Cold(LiveKeys),
}

async fn merge(table: &str, mut inputs: Vec<Input>, report: &mut TableReport, problems: &mut Problems) {
    let mut next = BinaryHeap::new();
    for (index, input) in inputs.iter_mut().enumerate() {
        if let Some((key, position)) = input.next(table, problems).await {
            next.push(Reverse((key, index, position)));
        }
    }
    let mut before: Option<(Bytes, usize, u32)> = None;
    while let Some(Reverse((key, index, position))) = next.pop() {
        if let Some((same, other, at)) = &before
            && *same == key
        {
            let places = [(*other, *at), (index, position)];
            let [one, two] =
                places.map(|(index, at)| inputs.get(index).map(|input| input.place(at)).unwrap_or_default());
            problems.note(format!("table \"{table}\" has a row twice: {one} and {two}"));
        }
        before = Some((key, index, position));
        let Some(input) = inputs.get_mut(index) else { return };
        match input.source {
            Source::Hot { .. } => report.hot += 1,
            Source::Cold(_) => report.cold += 1,
        }
        if let Some((key, position)) = input.next(table, problems).await {
            next.push(Reverse((key, index, position)));
        }
    }
}

impl Input {
    /// Describes where a row is, for people.
    fn place(&self, position: u32) -> String {
        match &self.source {
            Source::Hot { .. } => "hot".to_owned(),
            Source::Cold(keys) => format!("at position {position} of segment \"{}\"", keys.segment.path),
        }
    }

    async fn next(&mut self, table: &str, problems: &mut Problems) -> Option<(Bytes, u32)> {
        while self.ready.is_empty() {
            let more = match &mut self.source {
                Source::Cold(keys) => keys.next(problems).await,
                Source::Hot { snapshot, schemas, rest } => match rest.take() {
                    None => Ok(None),
                    Some(range) => {
                        let (snapshot, schemas) = (Arc::clone(snapshot), Arc::clone(schemas));
                        let chunk = blocking(move || read_hot(&snapshot, &schemas, range)).await;
                        chunk.map(|chunk| {
                            *rest = chunk.rest;
                            if let Err(error) = chunk.checked {
                                problems.note_error(&format!("stored rows of table \"{table}\""), &error);
                            }
                            Some(chunk.live)
                        })
                    }
                },
            };
            match more {
                Ok(Some(more)) => self.ready.extend(more),
                Ok(None) => return None,
                Err(error) => {
                    problems.note_error(&format!("table \"{table}\""), &error);
                    return None;
                }
            }
        }
        self.ready.pop_front()
    }
}

/// A range of stored rows.
struct HotChunk {
    /// The keys of rows that have not been flushed to segments.
    live: Vec<(Bytes, u32)>,
    /// Whether the rows are valid.
    checked: Result<()>,
    rest: Option<KeyRange>,
}

fn read_hot(snapshot: &Snapshot, schemas: &Arc<TableSchemas>, range: KeyRange) -> Result<HotChunk> {
    let flushed = snapshot.cold.flushed(schemas.definition.id);
    let (mut stored, mut live, mut bytes) = (Vec::new(), Vec::new(), 0);
    let (mut rest, mut checked) = (None, Ok(()));
    let end = range.end.clone();
    snapshot.storage.visit(Partition::Rows, range, Direction::Forward, &mut |key, row| {
        let (key, row) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(row));
        bytes += row.len();
        match row_seq(&row) {
            Ok(seq) if seq > snapshot.seq => checked = Err(damaged("a row's seq is beyond the last commit")),
            Ok(seq) if seq > flushed => live.push((Bytes::clone(&key), 0)),
            Ok(_) => {}
            Err(error) => checked = Err(error),
        }
        stored.push((key, row));
        if stored.len() >= CHUNK_ROWS || bytes >= CHUNK_BYTES_MAX {
            rest =
                stored.last().map(|(key, _)| KeyRange { start: [key, &[0][..]].concat(), end: end.clone() });
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    let rows = decode_images(schemas, stored.iter().map(|(key, row)| (key, row)));
    let checked = checked.and_then(|()| check_keys(&schemas.definition, &stored, &rows?));
    Ok(HotChunk { live, checked, rest })
}

/// Checks that the stored key of each row is the one that its columns encode to.
fn check_keys(definition: &TableDefinition, stored: &[(Bytes, Bytes)], rows: &RecordBatch) -> Result<()> {
    let scopes: Vec<ScopeId> = stored
        .iter()
        .map(|(key, _)| {
            table_and_scope(key).map(|(_, scope)| scope).ok_or_else(|| damaged("a row key is too short"))
        })
        .collect::<Result<_>>()?;
    let is_shared = definition.options.scope != ScopeKind::User;
    if scopes.iter().any(|scope| (*scope == ScopeId::SHARED) != is_shared) {
        return Err(damaged("a row has an owner where all rows are shared, or none where each has one"));
    }
    if !definition.has_key() {
        let is_hidden = |key: &Bytes| key.len() == SCOPE_PREFIX_BYTES + HIDDEN_KEY_BYTES;
        let all = stored.iter().all(|(key, _)| is_hidden(key));
        return if all { Ok(()) } else { Err(damaged("a row key has the wrong length")) };
    }
    let columns: Vec<ArrayRef> = definition
        .key_positions()
        .into_iter()
        .filter_map(|position| rows.columns().get(position))
        .map(Arc::clone)
        .collect();
    let scope_of = |row: usize| scopes.get(row).copied().unwrap_or_default();
    let keys = KeyEncoder::new(&definition.key_types())?.encode_each(definition.id, scope_of, &columns)?;
    match keys.iter().zip(stored).all(|(made, (key, _))| made == key) {
        true => Ok(()),
        false => Err(damaged("a row is stored under the key of another")),
    }
}

fn damaged(why: &str) -> Error {
    Error::corruption(why.to_owned())
}
