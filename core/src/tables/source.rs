//! What a scan reads: its sources and their order, the rows that it sees, and the schema that it shows.
//!
//! Invariant: a row that has expired at the statement's time, or is already in a segment, is invisible.

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::ScalarValue;

use crate::commit::Snapshot;
use crate::error::{Error, Result};
use crate::hot_tier::{Generation, HotScan};
use crate::ids::{ScopeId, Seq};
use crate::schema_registry::{TableDefinition, TableSchemas};
use crate::storage::KeyRange;
use crate::storage::row_decoder::{Output, RowDecoder};
use crate::storage::rows::RowHeader;
use crate::types::ColumnType;

/// A part of a table's rows. A scan concatenates its sources, because a key has one live place.
///
/// Separate plan nodes read cold rows. The rows of an open transaction will be another source.
#[derive(Clone, Debug)]
pub enum ScanSource {
    /// The stored rows in a range of keys, in key order.
    Stored(KeyRange),
    /// Rows computed when the statement was planned, in the table's visible schema.
    Batches(Arc<Vec<RecordBatch>>),
}

/// The schema of a table that a provider shows; see `schema_registry::arrow_schema`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RowSchema {
    /// The table's columns.
    #[default]
    Visible,
    /// Also `_seq`, for statements that name it.
    Full,
    /// Also `_key`, `_value` and `_place`, for UPDATE and DELETE.
    Write,
}

impl RowSchema {
    /// Returns the memoized schema.
    pub fn of(self, schemas: &TableSchemas) -> &SchemaRef {
        match self {
            Self::Visible => &schemas.visible,
            Self::Full => &schemas.full,
            Self::Write => schemas.write(),
        }
    }
}

/// The parameters of a scan, apart from the projection.
pub(super) struct Scan {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) schemas: Arc<TableSchemas>,
    pub(super) columns: RowSchema,
    /// The owner of the rows.
    pub(super) scope: ScopeId,
    pub(super) now_us: i64,
    /// The sources, read one after the other.
    pub(super) sources: Vec<ScanSource>,
    /// How many leading key columns have one value in all sources; `None` when the rows have no order.
    pub(super) pinned: Option<usize>,
}

impl Scan {
    pub(super) fn visibility(&self) -> RowVisibility {
        let flushed = self.snapshot.cold.flushed(self.schemas.definition.id);
        RowVisibility { now_us: self.now_us, flushed }
    }

    /// Returns the scan for the hot tier; `None` for single keys, the write schema, or a disabled tier.
    pub(super) fn hot(&self) -> Option<HotScan> {
        let has_range = self.sources.iter().any(|source| match source {
            ScanSource::Stored(range) => !range.is_point(),
            ScanSource::Batches(_) => false,
        });
        if !has_range || self.columns == RowSchema::Write {
            return None;
        }
        let (definition, visibility) = (&self.schemas.definition, self.visibility());
        Some(HotScan {
            table: definition.id,
            scope: self.scope,
            generation: Generation { version: definition.version, flushed: visibility.flushed },
            seq: self.snapshot.seq,
            now_us: visibility.now_us,
            turn: self.snapshot.hot.begin()?,
        })
    }
}

/// Decides which stored rows a statement sees.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowVisibility {
    /// Rows that expire at this time or earlier are invisible; microseconds UTC.
    pub(super) now_us: i64,
    /// Rows of commits up to this one are cold.
    pub(super) flushed: Seq,
}

impl RowVisibility {
    pub(super) fn is_visible(self, row: &[u8]) -> Result<bool> {
        let (header, _) = RowHeader::read(row)?;
        Ok(header.seq > self.flushed && header.expires_at.is_none_or(|expires_at| expires_at > self.now_us))
    }
}

/// Returns the key columns by which stored rows and segments are ordered, as positions in the table. The
/// first `pinned` ones are left out, because they have one value in all rows that are read.
///
/// The order ends before the first float, whose stored order differs from its comparison (NaN and the two
/// zeros).
pub(super) fn key_order(definition: &TableDefinition, pinned: usize) -> impl Iterator<Item = usize> {
    definition.key_positions().into_iter().skip(pinned).take_while(move |position| {
        let column = definition.columns.get(*position);
        column.is_some_and(|column| !matches!(column.ty, ColumnType::Real | ColumnType::Double))
    })
}

/// Returns the decoder output for a column of the write schema; the other schemas are its prefixes.
fn output(definition: &TableDefinition, position: usize) -> Result<Output> {
    let Some(column) = definition.columns.get(position) else {
        return match position - definition.columns.len() {
            0 => Ok(Output::Seq),
            1 => Ok(Output::Key),
            2 => Ok(Output::Value),
            3 => Ok(Output::Place),
            _ => Err(Error::internal(format!(
                "table \"{}\" has no column at position {position}",
                definition.qualified_name()
            ))),
        };
    };
    // Only rows older than the column need its initial value.
    let absent = if column.initial.is_some() {
        column.initial_value()?
    } else {
        ScalarValue::try_from(&column.ty.arrow())?
    };
    Ok(Output::Column { id: column.id, ty: column.ty, absent })
}

/// Returns a decoder for the columns at `positions` of the write schema, in that order.
pub(super) fn row_decoder(definition: &TableDefinition, positions: &[usize]) -> Result<RowDecoder> {
    let outputs =
        positions.iter().map(|position| output(definition, *position)).collect::<Result<Vec<_>>>()?;
    Ok(RowDecoder::new(outputs, definition.version, &definition.layouts()))
}

/// Returns the projected schema; the same allocation when the projection keeps every column.
pub(super) fn project_schema(schema: &SchemaRef, projection: Option<&[usize]>) -> Result<SchemaRef> {
    match projection {
        None => Ok(Arc::clone(schema)),
        Some(positions) if positions.iter().copied().eq(0..schema.fields().len()) => Ok(Arc::clone(schema)),
        Some(positions) => {
            let fields = positions
                .iter()
                .map(|position| schema.fields().get(*position).map(Arc::clone))
                .collect::<Option<Vec<_>>>()
                .ok_or_else(|| Error::internal("a projection names a column that does not exist"))?;
            Ok(Arc::new(Schema::new(fields)))
        }
    }
}
