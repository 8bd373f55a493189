//! Stored rows as columns: the schemas that readers show, and the one set-up of the row decoder.
//!
//! Scans, point reads, flushes, the rows of an overlay and the images of the change log are decoded here.
//! Cold rows are columns already; `cold_storage` reads them in the columns of the same table version.
//!
//! Invariant: rows of every version of a table are decoded in the columns of one version; a column that is
//! younger than a row has its initial value.

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use bytes::Bytes;
use datafusion::common::ScalarValue;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ids::Seq;
use crate::schema_registry::{TableDefinition, TableSchemas};
use crate::storage::row_decoder::{Output, RowDecoder};
use crate::storage::rows::RowHeader;

/// The schema of a table that a provider shows; see `schema_registry::arrow_schema`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
        Ok(header.seq > self.flushed && !is_expired(&header, self.now_us))
    }
}

/// Returns whether a row is invisible at a time, in microseconds UTC.
pub(super) fn is_expired(header: &RowHeader, now_us: i64) -> bool {
    header.expires_at.is_some_and(|expires_at| expires_at <= now_us)
}

/// Decodes stored rows, one each, in the given order.
///
/// # Errors
/// XX001 when the bytes are damaged.
pub(super) fn decode<'a>(
    schemas: &TableSchemas,
    columns: RowSchema,
    rows: impl IntoIterator<Item = (&'a Bytes, &'a Bytes)>,
) -> Result<RecordBatch> {
    let schema = columns.of(schemas);
    let positions: Vec<usize> = (0..schema.fields().len()).collect();
    let mut decoder = row_decoder(&schemas.definition, &positions)?;
    for (key, row) in rows {
        decoder.push(key, row)?;
    }
    let options = RecordBatchOptions::new().with_row_count(Some(decoder.len()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), decoder.finish()?, &options)?)
}

/// Decodes (key, row) images of the change log into the table's full schema, one row each, in the given
/// order. The images may have any table version up to that of `schemas`.
///
/// # Errors
/// XX001 when the bytes are damaged.
pub fn decode_images<'a>(
    schemas: &TableSchemas,
    images: impl Iterator<Item = (&'a Bytes, &'a Bytes)>,
) -> Result<RecordBatch> {
    decode(schemas, RowSchema::Full, images)
}

/// Returns a decoder for the columns at `positions` of the write schema, in that order.
pub(crate) fn row_decoder(definition: &TableDefinition, positions: &[usize]) -> Result<RowDecoder> {
    let outputs =
        positions.iter().map(|position| output(definition, *position)).collect::<Result<Vec<_>>>()?;
    Ok(RowDecoder::new(outputs, definition.version, &definition.layouts()))
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
