//! The sources of a scan's rows, and the schema that it shows.

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::ScalarValue;

use crate::error::{Error, Result};
use crate::schema_registry::{TableDefinition, TableSchemas};
use crate::storage::KeyRange;
use crate::storage::row_decoder::{Output, RowDecoder};

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
