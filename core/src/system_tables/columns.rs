//! Builds columns by name and arranges them in a table's visible schema.

use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use datafusion::arrow::compute::cast;

use crate::error::{Error, Result};
use crate::schema_registry::TableSchemas;

/// A column's name and values.
pub(super) type Column = (&'static str, ArrayRef);

/// Builds a batch in the visible schema of `table` from all its columns, in any order; each is cast.
pub(super) fn batch(table: &TableSchemas, columns: Vec<Column>) -> Result<RecordBatch> {
    let ordered = table
        .visible
        .fields()
        .iter()
        .map(|field| {
            let column = columns.iter().find(|(name, _)| name == field.name());
            let (_, values) = column.ok_or_else(|| {
                let name = table.definition.qualified_name();
                Error::internal(format!("table \"{name}\" is given no column \"{}\"", field.name()))
            })?;
            Ok(cast(values, field.data_type())?)
        })
        .collect::<Result<Vec<_>>>()?;
    assert_eq!(ordered.len(), columns.len(), "a system table is given its columns and no others");
    Ok(RecordBatch::try_new(Arc::clone(&table.visible), ordered)?)
}

/// Builds a text column.
pub(super) fn text<T: AsRef<str>>(name: &'static str, values: impl Iterator<Item = T>) -> Column {
    (name, Arc::new(values.map(Some).collect::<StringArray>()))
}

/// Builds a text column with NULLs.
pub(super) fn optional_text<T: AsRef<str>>(
    name: &'static str,
    values: impl Iterator<Item = Option<T>>,
) -> Column {
    (name, Arc::new(values.collect::<StringArray>()))
}

/// Builds a text column that is all NULL.
pub(super) fn null_text(name: &'static str, rows: usize) -> Column {
    (name, Arc::new(StringArray::new_null(rows)))
}

/// Builds a column of times, in microseconds UTC.
pub(super) fn times(name: &'static str, values: impl Iterator<Item = i64>) -> Column {
    (name, Arc::new(TimestampMicrosecondArray::from_iter_values(values)))
}

/// Builds a column of times with NULLs, in microseconds UTC.
pub(super) fn optional_times(name: &'static str, values: impl Iterator<Item = Option<i64>>) -> Column {
    (name, Arc::new(values.collect::<TimestampMicrosecondArray>()))
}

/// Builds a BIGINT column of counts.
pub(super) fn counts(name: &'static str, values: impl Iterator<Item = u64>) -> Column {
    (name, Arc::new(values.map(|value| i64::try_from(value).unwrap_or(i64::MAX)).collect::<Int64Array>()))
}

/// Builds a BIGINT column of counts with NULLs.
pub(super) fn optional_counts(name: &'static str, values: impl Iterator<Item = Option<u64>>) -> Column {
    let values = values.map(|value| value.map(|value| i64::try_from(value).unwrap_or(i64::MAX)));
    (name, Arc::new(values.collect::<Int64Array>()))
}

/// Builds an INTEGER column.
pub(super) fn integers(name: &'static str, values: impl Iterator<Item = usize>) -> Column {
    (name, Arc::new(values.map(|value| i32::try_from(value).unwrap_or(i32::MAX)).collect::<Int32Array>()))
}
