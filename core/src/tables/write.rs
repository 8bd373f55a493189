//! Converts batches to the row writes of a commit, with every check that needs only the rows themselves. The
//! sequencer checks that keys are free and rows are unchanged.
//!
//! Invariant: encoded rows obey the definition: NOT NULL, valid JSON, sizes within limits.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, Int64Array, StringArray};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Int64Type};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use datafusion::common::ScalarValue;

use crate::casts::{cast, is_text};
use crate::cold_storage::Place;
use crate::commit::RowWrite;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::{ScopeId, Seq};
use crate::schema_registry::{
    COLUMN_KEY, COLUMN_PLACE, COLUMN_SEQ, COLUMN_VALUE, ColumnDefinition, TableDefinition, TableSchemas,
};
use crate::storage::canonical;
use crate::storage::keys::KeyEncoder;
use crate::storage::rows::RowEncoder;
use crate::types::ColumnType;

use super::sizes::batch_value_bytes;

const MICROSECONDS_PER_SECOND: i64 = 1_000_000;

/// Limits of rows besides their definition.
#[derive(Clone, Copy, Debug)]
pub struct RowLimits {
    /// The maximum bytes of an encoded row.
    pub row_bytes_max: usize,
}

/// Converts batches to the row writes of one table.
#[derive(Debug)]
pub struct RowWriter {
    schemas: Arc<TableSchemas>,
    keys: KeyEncoder,
    key_positions: Vec<usize>,
    rows: RowEncoder,
    limits: RowLimits,
}

impl RowWriter {
    /// Returns a writer for rows of the table version of `schemas`.
    ///
    /// # Errors
    /// XX000 when the type of a key column cannot be a key, which no stored definition has.
    pub fn new(schemas: Arc<TableSchemas>, limits: RowLimits) -> Result<Self> {
        let definition = &schemas.definition;
        let keys = KeyEncoder::new(&definition.key_types())?;
        let types = definition.columns.iter().map(|column| column.ty).collect();
        let rows = RowEncoder::new(definition.version, types);
        let key_positions = definition.key_positions();
        Ok(Self { schemas, keys, key_positions, rows, limits })
    }

    /// Returns inserts of the rows of `batch`, which has the columns of the visible schema, in order and in
    /// their Arrow types. Rows of a STREAM table expire one TTL after `now_us`.
    ///
    /// # Errors
    /// 23502 for NULL in a NOT NULL column, 23505 for a duplicate key in the batch, 22P02 for text that is
    /// not JSON, 22001 for text longer than its column, 22003 for a decimal with too many digits, 54000 for a
    /// too large row or key.
    pub fn inserts(&self, scope: ScopeId, batch: &RecordBatch, now_us: i64) -> Result<Vec<RowWrite>> {
        let rows = self.encode(batch, self.expires_at(now_us))?;
        if !self.schemas.definition.has_key() {
            return Ok(rows.into_iter().map(|row| RowWrite::Append { row }).collect());
        }
        let keys = self.keys(scope, batch.columns())?;
        self.refuse_equal_keys(&keys)?;
        Ok(keys.into_iter().zip(rows).map(|(key, row)| RowWrite::Insert { key, row }).collect())
    }

    /// Returns deletes of the rows of `batch`, which has at least `_seq`, `_key`, `_value` and `_place`.
    ///
    /// # Errors
    /// XX000 when one of these columns is missing or has another type.
    pub fn deletes(&self, batch: &RecordBatch) -> Result<Vec<RowWrite>> {
        let stored = StoredRows::of(batch)?;
        (0..batch.num_rows())
            .map(|row| {
                Ok(RowWrite::Delete {
                    key: stored.key(row)?,
                    expected: stored.seq(row)?,
                    old: stored.row(row)?,
                    place: stored.place(row),
                })
            })
            .collect()
    }

    /// Returns updates of the rows of `before` (at least `_seq`, `_key`, `_value`, `_place` of the write
    /// schema) to those of `after` (the visible schema), row by row. A row whose key changes is deleted and
    /// inserted; all deletes come first, so that rows of one statement can exchange keys.
    ///
    /// # Errors
    /// As [`RowWriter::inserts`] and [`RowWriter::deletes`].
    pub fn updates(
        &self,
        scope: ScopeId,
        before: &RecordBatch,
        after: &RecordBatch,
    ) -> Result<Vec<RowWrite>> {
        if before.num_rows() != after.num_rows() {
            return Err(Error::internal("an update does not have as many new rows as old ones"));
        }
        let stored = StoredRows::of(before)?;
        let rows = self.encode(after, None)?;
        let new_keys =
            if self.schemas.definition.has_key() { Some(self.keys(scope, after.columns())?) } else { None };
        if let Some(keys) = &new_keys {
            self.refuse_equal_keys(keys)?;
        }
        let (mut moved_away, mut changed) = (Vec::new(), Vec::with_capacity(rows.len()));
        let mut new_keys = new_keys.map(Vec::into_iter);
        for (position, row) in rows.into_iter().enumerate() {
            let (key, expected, old) = (stored.key(position)?, stored.seq(position)?, stored.row(position)?);
            let place = stored.place(position);
            let new_key = new_keys.as_mut().and_then(Iterator::next).unwrap_or_else(|| key.clone());
            if new_key == key {
                changed.push(RowWrite::Update { key, expected, old, row, place });
            } else {
                moved_away.push(RowWrite::Delete { key, expected, old, place });
                changed.push(RowWrite::Insert { key: new_key, row });
            }
        }
        moved_away.append(&mut changed);
        Ok(moved_away)
    }

    fn expires_at(&self, now_us: i64) -> Option<i64> {
        let ttl = i64::try_from(self.schemas.definition.options.ttl_seconds?).unwrap_or(i64::MAX);
        Some(now_us.saturating_add(ttl.saturating_mul(MICROSECONDS_PER_SECOND)))
    }

    /// Returns the columns of `batch` (the visible schema) for a write by column: checked, floats canonical.
    ///
    /// # Errors
    /// As [`RowWriter::inserts`], except those of keys.
    pub fn columns(&self, batch: &RecordBatch) -> Result<Vec<ArrayRef>> {
        self.check(batch)?;
        let bytes_max = self.limits.row_bytes_max;
        if batch_value_bytes(batch) > bytes_max {
            // Only in such a batch can a row be too large.
            self.encode(batch, None)?;
        }
        Ok(batch.columns().iter().map(canonical).collect())
    }

    /// Returns the keys of rows of `scope`.
    ///
    /// # Errors
    /// 54000 for a key that is too large.
    pub fn keys(&self, scope: ScopeId, columns: &[ArrayRef]) -> Result<Vec<Bytes>> {
        let columns: Vec<ArrayRef> =
            self.key_positions.iter().filter_map(|position| columns.get(*position).map(Arc::clone)).collect();
        self.keys.encode(self.schemas.definition.id, scope, &columns)
    }

    fn encode(&self, batch: &RecordBatch, expires_at: Option<i64>) -> Result<Vec<Vec<u8>>> {
        let definition = &self.schemas.definition;
        self.check(batch)?;
        let rows = self.rows.encode(batch.columns(), batch.num_rows(), expires_at)?;
        match rows.iter().find(|row| row.len() > self.limits.row_bytes_max) {
            None => Ok(rows),
            Some(row) => Err(Error::new(
                ErrorKind::ResourceExhausted,
                SqlState::PROGRAM_LIMIT_EXCEEDED,
                format!(
                    "a row of {} bytes is too large for table \"{}\"",
                    row.len(),
                    definition.qualified_name()
                ),
            )
            .hint(format!("a row has at most {} bytes (row_bytes_max)", self.limits.row_bytes_max))),
        }
    }

    /// Checks that rows belong to the table and obey its definition.
    fn check(&self, batch: &RecordBatch) -> Result<()> {
        let definition = &self.schemas.definition;
        if batch.num_columns() != definition.columns.len() {
            return Err(Error::internal(format!(
                "rows for table \"{}\" have {} columns, not {}",
                definition.qualified_name(),
                batch.num_columns(),
                definition.columns.len()
            )));
        }
        for (column, array) in definition.columns.iter().zip(batch.columns()) {
            check_column(definition, column, array)?;
        }
        Ok(())
    }

    fn refuse_equal_keys(&self, keys: &[Bytes]) -> Result<()> {
        if let [_] = keys {
            return Ok(());
        }
        let mut seen = HashSet::with_capacity(keys.len());
        match keys.iter().find(|key| !seen.insert(&***key)) {
            None => Ok(()),
            Some(key) => Err(self.duplicate_key(key)),
        }
    }

    /// Returns the error for a duplicate key.
    pub fn duplicate_key(&self, key: &[u8]) -> Error {
        let definition = &self.schemas.definition;
        let names: Vec<&str> = definition.key_columns().map(|column| &*column.name).collect();
        let values = self.keys.decode(key).unwrap_or_default();
        let values: Vec<String> =
            values.iter().map(|value| value.to_string().chars().take(64).collect()).collect();
        Error::new(
            ErrorKind::AlreadyExists,
            SqlState::UNIQUE_VIOLATION,
            format!(
                "duplicate key in table \"{}\": ({})=({})",
                definition.qualified_name(),
                names.join(", "),
                values.join(", ")
            ),
        )
        .hint("use INSERT ... ON CONFLICT to update the existing row")
    }
}

/// The system columns of rows that a statement changes.
struct StoredRows<'a> {
    seqs: &'a Int64Array,
    places: &'a Int64Array,
    keys: SharedBytes<'a>,
    rows: SharedBytes<'a>,
}

impl<'a> StoredRows<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Self> {
        let column = |name: &str| {
            batch
                .column_by_name(name)
                .ok_or_else(|| Error::internal(format!("rows to change lack the column \"{name}\"")))
        };
        let wrong = || Error::internal("the system columns of rows to change have other types");
        Ok(Self {
            seqs: column(COLUMN_SEQ)?.as_primitive_opt::<Int64Type>().ok_or_else(wrong)?,
            places: column(COLUMN_PLACE)?.as_primitive_opt::<Int64Type>().ok_or_else(wrong)?,
            keys: SharedBytes::of(column(COLUMN_KEY)?).ok_or_else(wrong)?,
            rows: SharedBytes::of(column(COLUMN_VALUE)?).ok_or_else(wrong)?,
        })
    }

    fn seq(&self, row: usize) -> Result<Seq> {
        let seq = self.seqs.values().get(row).and_then(|seq| u64::try_from(*seq).ok());
        seq.map(Seq).ok_or_else(|| Error::internal("a row to change has no seq"))
    }

    /// `None` when the row is hot.
    fn place(&self, row: usize) -> Option<Place> {
        let is_cold = row < self.places.len() && self.places.is_valid(row);
        is_cold.then(|| Place::from_u64(self.places.value(row).cast_unsigned()))
    }

    fn key(&self, row: usize) -> Result<Bytes> {
        self.keys.value(row)
    }

    fn row(&self, row: usize) -> Result<Bytes> {
        self.rows.value(row)
    }
}

/// A binary column that hands out its values without copying them: they keep the column's buffer alive.
struct SharedBytes<'a> {
    array: &'a BinaryArray,
    buffer: Bytes,
}

struct Owner(Buffer);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        self.0.as_slice()
    }
}

impl<'a> SharedBytes<'a> {
    fn of(array: &'a ArrayRef) -> Option<Self> {
        let array = array.as_binary_opt::<i32>()?;
        Some(Self { array, buffer: Bytes::from_owner(Owner(array.values().clone())) })
    }

    fn value(&self, row: usize) -> Result<Bytes> {
        let offsets = self.array.value_offsets();
        let place = offsets.get(row).zip(offsets.get(row + 1));
        let place =
            place.and_then(|(start, end)| Some(usize::try_from(*start).ok()?..usize::try_from(*end).ok()?));
        match place {
            Some(place) if place.end <= self.buffer.len() => Ok(self.buffer.slice(place)),
            _ => Err(Error::internal("a row to change has no stored bytes")),
        }
    }
}

fn check_column(definition: &TableDefinition, column: &ColumnDefinition, array: &ArrayRef) -> Result<()> {
    if *array.data_type() != column.ty.arrow() {
        return Err(Error::internal(format!(
            "values for column \"{}\" of table \"{}\" are {}, not {}",
            column.name,
            definition.qualified_name(),
            array.data_type(),
            column.ty.arrow()
        )));
    }
    if !column.nullable && array.null_count() > 0 {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            SqlState::NOT_NULL_VIOLATION,
            format!(
                "null value in column \"{}\" of table \"{}\", which is NOT NULL",
                column.name,
                definition.qualified_name()
            ),
        )
        .hint("give the column a value or a DEFAULT"));
    }
    match column.ty {
        ColumnType::Json | ColumnType::File => check_json(definition, column, array.as_string::<i32>()),
        ColumnType::Text => check_length(definition, column, array.as_string::<i32>()),
        ColumnType::Decimal { precision, .. } => {
            let decimals = array.as_primitive::<arrow::datatypes::Decimal128Type>();
            decimals.validate_decimal_precision(precision).map_err(|error| {
                Error::new(
                    ErrorKind::InvalidArgument,
                    SqlState::NUMERIC_OUT_OF_RANGE,
                    format!("a value is too large for column \"{}\" of type {}", column.name, column.ty),
                )
                .source(error)
            })
        }
        ColumnType::Embedding(_) => check_embedding(definition, column, array),
        _ => Ok(()),
    }
}

fn check_json(definition: &TableDefinition, column: &ColumnDefinition, texts: &StringArray) -> Result<()> {
    for text in texts.iter().flatten() {
        serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|error| {
            Error::new(
                ErrorKind::InvalidArgument,
                SqlState::INVALID_TEXT_REPRESENTATION,
                format!(
                    "a value for column \"{}\" of table \"{}\" is not JSON",
                    column.name,
                    definition.qualified_name()
                ),
            )
            .hint(format!("at line {} column {}", error.line(), error.column()))
        })?;
    }
    Ok(())
}

fn check_length(definition: &TableDefinition, column: &ColumnDefinition, texts: &StringArray) -> Result<()> {
    let Some(length_max) = column.length_max else { return Ok(()) };
    let length_max = usize::try_from(length_max).unwrap_or(usize::MAX);
    // A text has at most as many characters as bytes.
    let is_too_long = |text: &str| text.len() > length_max && text.chars().count() > length_max;
    if !texts.iter().flatten().any(is_too_long) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidArgument,
        SqlState::STRING_TOO_LONG,
        format!(
            "a value is too long for column \"{}\" of table \"{}\", which has at most {length_max} \
             characters",
            column.name,
            definition.qualified_name()
        ),
    ))
}

/// Ignores the elements of NULL lists, which are filler.
fn check_embedding(definition: &TableDefinition, column: &ColumnDefinition, array: &ArrayRef) -> Result<()> {
    let lists = array.as_fixed_size_list();
    if lists.values().null_count() == 0 {
        return Ok(());
    }
    let has_null = (0..lists.len()).any(|row| lists.is_valid(row) && lists.value(row).null_count() > 0);
    if !has_null {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidArgument,
        SqlState::NOT_NULL_VIOLATION,
        format!("null element in column \"{}\" of table \"{}\"", column.name, definition.qualified_name()),
    )
    .hint("every element of an EMBEDDING is a number"))
}

/// Casts a column to the Arrow type of its definition, as INSERT does with values of a query or a client.
///
/// # Errors
/// 22P02, 22003, 22007 for a value outside of the type; 42804 when there is no such cast.
pub fn cast_column(column: &ColumnDefinition, array: &ArrayRef) -> Result<ArrayRef> {
    let target = column.ty.arrow();
    if *array.data_type() == target {
        return Ok(Arc::clone(array));
    }
    let cast = if is_text(array.data_type()) && matches!(column.ty, ColumnType::Embedding(_)) {
        embeddings(column.ty, array)
    } else {
        cast(array, &target)
    };
    cast.map_err(|error| {
        if error.sqlstate() == SqlState::CANNOT_COERCE {
            let message = format!(
                "column \"{}\" is of type {}, the values are {}",
                column.name,
                column.ty,
                array.data_type()
            );
            return Error::new(ErrorKind::InvalidSql, SqlState::DATATYPE_MISMATCH, message)
                .hint("cast them with CAST(... AS ...)");
        }
        let message = format!("column \"{}\" of type {}: {}", column.name, column.ty, error.message());
        Error::new(error.kind(), error.sqlstate(), message)
    })
}

fn embeddings(ty: ColumnType, array: &ArrayRef) -> Result<ArrayRef> {
    let texts = cast(array, &DataType::Utf8)?;
    let null = ScalarValue::try_from(&ty.arrow())?;
    let values = texts.as_string::<i32>().iter().map(|text| match text {
        Some(text) => ty.parse_text(text),
        None => Ok(null.clone()),
    });
    let values = values.collect::<Result<Vec<_>>>()?;
    if values.is_empty() {
        return Ok(arrow::array::new_empty_array(&ty.arrow()));
    }
    Ok(ScalarValue::iter_to_array(values)?)
}
