//! The table that new rows go to: which of its columns are given, and the defaults of the others.

use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, RecordBatch, RecordBatchOptions, StringArray, TimestampMicrosecondArray, new_null_array,
};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::ScalarValue;

use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::schema_registry::{ColumnDefault, ColumnDefinition, TableDefinition, TableSchemas};
use crate::sql::execution::Execution;
use crate::tables::cast_column;

/// The target table of an INSERT, and the sources of its columns.
pub(in crate::sql) struct Target {
    pub(in crate::sql) schemas: Arc<TableSchemas>,
    /// The position of each table column among the rows' columns; `None` for its default.
    sources: Vec<Option<usize>>,
}

impl Target {
    /// Returns a target for rows with `columns` in that order; when empty, with the table's first columns.
    pub(in crate::sql) fn new(
        schemas: Arc<TableSchemas>,
        columns: &[String],
        width: Option<usize>,
    ) -> Result<Self> {
        let definition = &schemas.definition;
        let mut sources = vec![None; definition.columns.len()];
        if columns.is_empty() {
            let width = width.unwrap_or(definition.columns.len());
            if width > definition.columns.len() {
                return Err(Error::syntax(format!(
                    "INSERT has {width} values, but table \"{}\" has {} columns",
                    definition.qualified_name(),
                    definition.columns.len()
                )));
            }
            for (place, source) in sources.iter_mut().take(width).enumerate() {
                *source = Some(place);
            }
            return Ok(Self { schemas, sources });
        }
        for (place, name) in columns.iter().enumerate() {
            let position = column_position(definition, name)?;
            let Some(source) = sources.get_mut(position) else { continue };
            if source.replace(place).is_some() {
                return Err(Error::new(
                    ErrorKind::InvalidSql,
                    SqlState::DUPLICATE_COLUMN,
                    format!("column \"{name}\" is named twice"),
                ));
            }
        }
        if let Some(width) = width
            && width != columns.len()
        {
            return Err(Error::syntax(format!("INSERT has {} columns but {width} values", columns.len())));
        }
        Ok(Self { schemas, sources })
    }

    /// Returns the table's columns in the order of the rows' columns.
    pub(in crate::sql) fn columns(&self) -> Vec<&ColumnDefinition> {
        let mut placed: Vec<_> = self
            .sources
            .iter()
            .zip(&self.schemas.definition.columns)
            .filter_map(|(source, column)| source.map(|place| (place, column)))
            .collect();
        placed.sort_by_key(|(place, _)| *place);
        placed.into_iter().map(|(_, column)| column).collect()
    }

    /// Returns the rows in the table's visible schema.
    pub(super) fn complete(&self, execution: &Execution, batch: &RecordBatch) -> Result<RecordBatch> {
        let columns = self
            .sources
            .iter()
            .zip(&self.schemas.definition.columns)
            .map(|(source, column)| match source.and_then(|place| batch.columns().get(place)) {
                Some(array) => cast_column(column, array),
                None => default_column(execution, column, batch.num_rows()),
            })
            .collect::<Result<Vec<_>>>()?;
        unchecked(&self.schemas, columns, batch.num_rows())
    }
}

/// Returns a batch of the visible schema, all nullable: the row writer refuses NULLs and names the column.
fn unchecked(schemas: &TableSchemas, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    let fields: Vec<_> =
        schemas.visible.fields().iter().map(|field| Field::clone(field).with_nullable(true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(schema, columns, &options)?)
}

fn column_position(definition: &TableDefinition, name: &str) -> Result<usize> {
    definition.columns.iter().position(|column| *column.name == *name).ok_or_else(|| {
        let names: Vec<_> = definition.columns.iter().take(12).map(|column| &*column.name).collect();
        Error::new(
            ErrorKind::NotFound,
            SqlState::UNDEFINED_COLUMN,
            format!("column \"{name}\" of table \"{}\" does not exist", definition.qualified_name()),
        )
        .hint(format!("columns are: {}", names.join(", ")))
    })
}

/// Returns the values of an omitted column.
fn default_column(execution: &Execution, column: &ColumnDefinition, rows: usize) -> Result<ArrayRef> {
    let generator = &execution.engine.generator;
    let array: ArrayRef = match &column.default {
        None => return Ok(new_null_array(&column.ty.arrow(), rows)),
        Some(default @ ColumnDefault::Literal(_)) => {
            let value = default.literal(column.ty)?.unwrap_or(ScalarValue::Null);
            value.to_array_of_size(rows)?
        }
        Some(ColumnDefault::Now) => {
            let now = TimestampMicrosecondArray::from_value(execution.now_us, rows);
            let now: ArrayRef = Arc::new(now.with_timezone("UTC"));
            match column.ty.arrow() {
                // Keeps the instant itself, not its local time in some zone.
                plain @ DataType::Timestamp(_, None) => {
                    cast(&now, &DataType::Int64).and_then(|now| cast(&now, &plain))?
                }
                other => cast(&now, &other)?,
            }
        }
        Some(ColumnDefault::SnowflakeId) => generator.snowflake_ids(rows),
        Some(ColumnDefault::UuidV7) => generator.uuids(rows),
        Some(ColumnDefault::Ulid) => generator.ulids(rows),
        Some(ColumnDefault::CurrentUser) => {
            Arc::new(StringArray::from_iter_values(std::iter::repeat_n(&*execution.principal.username, rows)))
        }
    };
    cast_column(column, &array)
}
