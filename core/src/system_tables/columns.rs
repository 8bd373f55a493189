//! Columns by name, put into a table's visible schema.

use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use datafusion::arrow::compute::cast;

use crate::error::{Error, Result};
use crate::schema_registry::TableSchemas;

/// A column's name and values.
pub(super) type Column = (&'static str, ArrayRef);

/// A batch in the visible schema of `table`. Every column must be given, in any order; each is cast to its column's type.
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

/// A text column.
pub(super) fn text<T: AsRef<str>>(name: &'static str, values: impl Iterator<Item = T>) -> Column {
    (name, Arc::new(values.map(Some).collect::<StringArray>()))
}

/// A text column with NULLs.
pub(super) fn optional_text<T: AsRef<str>>(
    name: &'static str,
    values: impl Iterator<Item = Option<T>>,
) -> Column {
    (name, Arc::new(values.collect::<StringArray>()))
}

/// A text column of NULLs only.
pub(super) fn null_text(name: &'static str, rows: usize) -> Column {
    (name, Arc::new(StringArray::new_null(rows)))
}

/// A column of times, microseconds UTC.
pub(super) fn times(name: &'static str, values: impl Iterator<Item = i64>) -> Column {
    (name, Arc::new(TimestampMicrosecondArray::from_iter_values(values)))
}

/// A column of times with NULLs, microseconds UTC.
pub(super) fn optional_times(name: &'static str, values: impl Iterator<Item = Option<i64>>) -> Column {
    (name, Arc::new(values.collect::<TimestampMicrosecondArray>()))
}

/// A column of numbers that count something.
pub(super) fn counts(name: &'static str, values: impl Iterator<Item = u64>) -> Column {
    (name, Arc::new(values.map(|value| i64::try_from(value).unwrap_or(i64::MAX)).collect::<Int64Array>()))
}

/// A column of small numbers.
pub(super) fn integers(name: &'static str, values: impl Iterator<Item = usize>) -> Column {
    (name, Arc::new(values.map(|value| i32::try_from(value).unwrap_or(i32::MAX)).collect::<Int32Array>()))
}
