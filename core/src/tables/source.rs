//! Where the rows of a scan come from, and which columns it shows.

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::ScalarValue;

use crate::error::{Error, Result};
use crate::schema_registry::{TableDefinition, TableSchemas};
use crate::storage::KeyRange;
use crate::storage::row_decoder::{Output, RowDecoder};

/// A part of a table's rows. A scan reads its sources one after the other: a key has one live place, so nothing is merged.
///
/// Cold rows are read by plan nodes of their own, beside this one; the rows of an open transaction will be a further source.
#[derive(Clone, Debug)]
pub enum ScanSource {
    /// The stored rows in a range of keys, in key order.
    Stored(KeyRange),
    /// Rows computed when the statement was planned, in the table's visible schema.
    Batches(Arc<Vec<RecordBatch>>),
}

/// Which of a table's schemas a provider shows; see `schema_registry::arrow_schema`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RowSchema {
    /// The table's columns.
    #[default]
    Visible,
    /// And `_seq`, for statements that name it.
    Full,
    /// And `_key`, `_value` and `_place`, for UPDATE and DELETE.
    Write,
}

impl RowSchema {
    /// The memoized schema itself.
    pub fn of(self, schemas: &TableSchemas) -> &SchemaRef {
        match self {
            Self::Visible => &schemas.visible,
            Self::Full => &schemas.full,
            Self::Write => schemas.write(),
        }
    }
}

/// What to build for a column of the write schema, of which visible and full schema are a beginning.
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
    // Only rows older than the column ask for its value.
    let absent = if column.initial.is_some() {
        column.initial_value()?
    } else {
        ScalarValue::try_from(&column.ty.arrow())?
    };
    Ok(Output::Column { id: column.id, ty: column.ty, absent })
}

/// A decoder for the columns at `positions` of the write schema, in that order.
pub(super) fn row_decoder(definition: &TableDefinition, positions: &[usize]) -> Result<RowDecoder> {
    let outputs =
        positions.iter().map(|position| output(definition, *position)).collect::<Result<Vec<_>>>()?;
    Ok(RowDecoder::new(outputs, definition.version, &definition.layouts()))
}

/// The schema of a projection; the very same allocation when nothing is left out.
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
