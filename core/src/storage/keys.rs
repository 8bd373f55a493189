//! Row keys: bytes in the order of the rows. Frozen: changing any byte needs a new format version.
//!
//! ```text
//! with a primary key:      table u32 BE | scope u64 BE | column ...      per column: marker u8 | value
//! without a primary key:   table u32 BE | scope u64 BE | seq u64 BE | ordinal u32 BE
//!   in a large INSERT:     table u32 BE | scope u64 BE | (2^63 + number) u64 BE | ordinal u32 BE
//!
//! marker    0x01 a value follows, 0x02 NULL (so NULL sorts last)
//! BOOLEAN   u8, 0 or 1
//! integers, DATE, TIME, TIMESTAMP, DECIMAL (i128, unscaled)
//!           big-endian with the sign bit flipped
//! floats    the IEEE bits, big-endian: sign bit flipped when positive, all bits flipped when negative;
//!           -0.0 is written as 0.0, every NaN as one NaN, which sorts after infinity
//! UUID      16 bytes
//! TEXT, BYTES
//!           each 0x00 as 0x00 0xFF, then 0x00 0x01 as the end, so texts sort by bytes (binary collation)
//! ```
//!
//! Invariant: in one table, byte order is the order of (scope, key columns); equal keys have equal bytes.

use arrow::array::ArrayRef;
use bytes::Bytes;
use datafusion::common::ScalarValue;

use super::columns::{Column, Value, canonical_f32, canonical_f64};
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::{ScopeId, Seq, TableId};
use crate::types::ColumnType;

/// The length of the prefix that all keys of a table share.
pub const TABLE_PREFIX_BYTES: usize = 4;
/// The length of the prefix that all keys of a table and scope share.
pub const SCOPE_PREFIX_BYTES: usize = 12;
/// The maximum length of a key; the encoder refuses longer ones.
pub const KEY_BYTES_MAX: usize = 8 << 10;

const MARKER_VALUE: u8 = 0x01;
const MARKER_NULL: u8 = 0x02;
const ESCAPE: u8 = 0x00;
const ESCAPED_ZERO: u8 = 0xFF;
const END: u8 = 0x01;

/// Returns the prefix of all row keys of a table.
pub fn table_prefix(table: TableId) -> [u8; TABLE_PREFIX_BYTES] {
    table.0.to_be_bytes()
}

/// Returns the prefix of all row keys of a table and scope.
pub fn scope_prefix(table: TableId, scope: ScopeId) -> [u8; SCOPE_PREFIX_BYTES] {
    let mut prefix = [0; SCOPE_PREFIX_BYTES];
    let (to_table, to_scope) = prefix.split_at_mut(TABLE_PREFIX_BYTES);
    to_table.copy_from_slice(&table.0.to_be_bytes());
    to_scope.copy_from_slice(&scope.0.to_be_bytes());
    prefix
}

/// Returns the table and scope of a row key; `None` when `key` is too short.
pub fn table_and_scope(key: &[u8]) -> Option<(TableId, ScopeId)> {
    let table = key.get(..TABLE_PREFIX_BYTES)?.try_into().ok()?;
    let scope = key.get(TABLE_PREFIX_BYTES..SCOPE_PREFIX_BYTES)?.try_into().ok()?;
    Some((TableId(u32::from_be_bytes(table)), ScopeId(u64::from_be_bytes(scope))))
}

/// Returns the key of a row without a primary key: the inserting commit's seq and the row's ordinal in it.
pub fn hidden_key(table: TableId, scope: ScopeId, seq: Seq, ordinal: u32) -> Vec<u8> {
    let mut key = Vec::with_capacity(SCOPE_PREFIX_BYTES + 12);
    key.extend_from_slice(&scope_prefix(table, scope));
    key.extend_from_slice(&seq.0.to_be_bytes());
    key.extend_from_slice(&ordinal.to_be_bytes());
    key
}

/// Returns the key of a row without a primary key that a large INSERT writes to a segment before its commit
/// has a seq. Each such statement has its own `number`, which is never reused.
pub fn hidden_segment_key(table: TableId, scope: ScopeId, number: u32, ordinal: u32) -> Vec<u8> {
    /// No seq has this bit.
    const BEFORE_SEQ: u64 = 1 << 63;
    hidden_key(table, scope, Seq(BEFORE_SEQ | u64::from(number)), ordinal)
}

/// Encodes primary keys of one table.
#[derive(Clone, Debug)]
pub struct KeyEncoder {
    types: Vec<ColumnType>,
}

impl KeyEncoder {
    /// Returns an encoder for key columns of `types`, in key order.
    ///
    /// # Errors
    /// `Internal` when a type has no order; CREATE TABLE refuses such keys.
    pub fn new(types: &[ColumnType]) -> Result<Self> {
        match types.iter().find(|ty| !ty.can_be_key()) {
            Some(ty) => Err(Error::internal(format!("a column of type {ty} cannot be part of a key"))),
            None => Ok(Self { types: types.to_vec() }),
        }
    }

    /// Returns the types of the key columns, in key order.
    pub fn types(&self) -> &[ColumnType] {
        &self.types
    }

    /// Returns the keys of rows, in one allocation; `columns` are the key columns, in key order.
    ///
    /// # Errors
    /// 54000 when a key is longer than [`KEY_BYTES_MAX`]; `Internal` when a column has the wrong type.
    pub fn encode(&self, table: TableId, scope: ScopeId, columns: &[ArrayRef]) -> Result<Vec<Bytes>> {
        self.encode_each(table, |_| scope, columns)
    }

    /// As [`KeyEncoder::encode`], with the scope of each row from `scope_of`.
    ///
    /// # Errors
    /// As [`KeyEncoder::encode`].
    pub fn encode_each(
        &self,
        table: TableId,
        scope_of: impl Fn(usize) -> ScopeId,
        columns: &[ArrayRef],
    ) -> Result<Vec<Bytes>> {
        if columns.len() != self.types.len() {
            return Err(wrong_columns(self.types.len(), columns.len()));
        }
        let row_count = columns.first().map_or(0, |column| column.len());
        let columns: Vec<Column<'_>> = self
            .types
            .iter()
            .zip(columns)
            .map(|(ty, array)| Column::new(*ty, array))
            .collect::<Result<_>>()?;
        let mut arena = Vec::with_capacity(row_count * (SCOPE_PREFIX_BYTES + 12 * columns.len()));
        let mut ends = Vec::with_capacity(row_count);
        let mut start = 0;
        for row in 0..row_count {
            arena.extend_from_slice(&scope_prefix(table, scope_of(row)));
            for column in &columns {
                push_value(&mut arena, column.value(row)?);
            }
            check_length(arena.len() - start)?;
            start = arena.len();
            ends.push(start);
        }
        let arena = Bytes::from(arena);
        let mut start = 0;
        Ok(ends
            .into_iter()
            .map(|end| {
                let key = arena.slice(start..end);
                start = end;
                key
            })
            .collect())
    }

    /// Returns the key with `values`; for fewer values than key columns, the common prefix of such keys.
    ///
    /// # Errors
    /// As [`KeyEncoder::encode`].
    pub fn encode_values(&self, table: TableId, scope: ScopeId, values: &[ScalarValue]) -> Result<Vec<u8>> {
        if values.len() > self.types.len() {
            return Err(wrong_columns(self.types.len(), values.len()));
        }
        let mut key = scope_prefix(table, scope).to_vec();
        for (ty, value) in self.types.iter().zip(values) {
            push_scalar(&mut key, *ty, value)?;
        }
        check_length(key.len())?;
        Ok(key)
    }

    /// Returns the bytes of `value` in the key column at `position`. A key is the concatenation of such
    /// bytes, and none of them is a prefix of another.
    ///
    /// # Errors
    /// As [`KeyEncoder::encode`].
    pub fn encode_column(&self, position: usize, value: &ScalarValue) -> Result<Vec<u8>> {
        let ty = self.types.get(position).ok_or_else(|| wrong_columns(self.types.len(), position + 1))?;
        let mut bytes = Vec::new();
        push_scalar(&mut bytes, *ty, value)?;
        check_length(bytes.len())?;
        Ok(bytes)
    }

    /// Returns the prefix of [`KeyEncoder::encode_column`] for all TEXT or BYTES that begin with `start`.
    ///
    /// # Errors
    /// As [`KeyEncoder::encode`]; `Internal` when the column is neither TEXT nor BYTES.
    pub fn encode_column_start(&self, position: usize, start: &[u8]) -> Result<Vec<u8>> {
        match self.types.get(position) {
            Some(ColumnType::Text | ColumnType::Bytes) => {
                let mut bytes = vec![MARKER_VALUE];
                push_escaped(&mut bytes, start);
                check_length(bytes.len())?;
                Ok(bytes)
            }
            _ => Err(Error::internal("only a key column of type TEXT or BYTES has a prefix")),
        }
    }

    /// Returns the values of a key, in key order.
    ///
    /// # Errors
    /// `Corruption` when the bytes are not a key with these columns.
    pub fn decode(&self, key: &[u8]) -> Result<Vec<ScalarValue>> {
        let mut reader = KeyReader { rest: key.get(SCOPE_PREFIX_BYTES..).ok_or_else(damaged)? };
        let values = self.types.iter().map(|ty| reader.scalar(*ty)).collect::<Result<Vec<_>>>()?;
        if reader.rest.is_empty() { Ok(values) } else { Err(damaged()) }
    }
}

fn check_length(bytes: usize) -> Result<()> {
    if bytes <= KEY_BYTES_MAX {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::ResourceExhausted,
        SqlState::PROGRAM_LIMIT_EXCEEDED,
        format!("a primary key of {bytes} bytes is longer than {KEY_BYTES_MAX} bytes"),
    )
    .hint("use a shorter key, for example a hash of the long value"))
}

fn wrong_columns(expected: usize, given: usize) -> Error {
    Error::internal(format!("a key has {expected} columns, {given} were given"))
}

fn damaged() -> Error {
    Error::corruption("a stored row key is damaged")
}

fn push_value(key: &mut Vec<u8>, value: Option<Value<'_>>) {
    let Some(value) = value else {
        key.push(MARKER_NULL);
        return;
    };
    key.push(MARKER_VALUE);
    match value {
        Value::Boolean(value) => key.push(u8::from(value)),
        Value::I16(value) => key.extend_from_slice(&(value ^ i16::MIN).to_be_bytes()),
        Value::I32(value) => key.extend_from_slice(&(value ^ i32::MIN).to_be_bytes()),
        Value::I64(value) => key.extend_from_slice(&(value ^ i64::MIN).to_be_bytes()),
        Value::I128(value) => key.extend_from_slice(&(value ^ i128::MIN).to_be_bytes()),
        Value::F32(value) => key.extend_from_slice(&ordered_f32(value).to_be_bytes()),
        Value::F64(value) => key.extend_from_slice(&ordered_f64(value).to_be_bytes()),
        Value::Uuid(value) => key.extend_from_slice(value),
        Value::Variable(value) => {
            push_escaped(key, value);
            key.extend_from_slice(&[ESCAPE, END]);
        }
        // `KeyEncoder::new` refuses keys with embeddings.
        Value::Embedding(_) => {}
    }
}

fn push_escaped(key: &mut Vec<u8>, value: &[u8]) {
    let mut pieces = value.split(|byte| *byte == ESCAPE);
    key.extend_from_slice(pieces.next().unwrap_or_default());
    for piece in pieces {
        key.extend_from_slice(&[ESCAPE, ESCAPED_ZERO]);
        key.extend_from_slice(piece);
    }
}

fn push_scalar(key: &mut Vec<u8>, ty: ColumnType, value: &ScalarValue) -> Result<()> {
    let value = match (ty, value) {
        (ColumnType::Boolean, ScalarValue::Boolean(value)) => value.map(Value::Boolean),
        (ColumnType::SmallInt, ScalarValue::Int16(value)) => value.map(Value::I16),
        (ColumnType::Integer, ScalarValue::Int32(value)) | (ColumnType::Date, ScalarValue::Date32(value)) => {
            value.map(Value::I32)
        }
        (ColumnType::BigInt, ScalarValue::Int64(value))
        | (ColumnType::Time, ScalarValue::Time64Microsecond(value))
        | (ColumnType::Timestamp | ColumnType::TimestampTz, ScalarValue::TimestampMicrosecond(value, _)) => {
            value.map(Value::I64)
        }
        (ColumnType::Real, ScalarValue::Float32(value)) => value.map(Value::F32),
        (ColumnType::Double, ScalarValue::Float64(value)) => value.map(Value::F64),
        (ColumnType::Decimal { scale, .. }, ScalarValue::Decimal128(value, _, given)) if scale == *given => {
            value.map(Value::I128)
        }
        (
            ColumnType::Text,
            ScalarValue::Utf8(value) | ScalarValue::LargeUtf8(value) | ScalarValue::Utf8View(value),
        ) => value.as_ref().map(|text| Value::Variable(text.as_bytes())),
        (
            ColumnType::Bytes,
            ScalarValue::Binary(value) | ScalarValue::LargeBinary(value) | ScalarValue::BinaryView(value),
        ) => value.as_deref().map(Value::Variable),
        (ColumnType::Uuid, ScalarValue::FixedSizeBinary(16, value)) => value.as_deref().map(Value::Uuid),
        (_, ScalarValue::Null) => None,
        _ => {
            return Err(Error::internal(format!(
                "a key column of type {ty} was given a value of Arrow type {}",
                value.data_type()
            )));
        }
    };
    push_value(key, value);
    Ok(())
}

fn ordered_f32(value: f32) -> u32 {
    let bits = canonical_f32(value).to_bits();
    if bits >> 31 == 0 { bits ^ (1 << 31) } else { !bits }
}

fn ordered_f64(value: f64) -> u64 {
    let bits = canonical_f64(value).to_bits();
    if bits >> 63 == 0 { bits ^ (1 << 63) } else { !bits }
}

fn from_ordered_f32(ordered: u32) -> f32 {
    f32::from_bits(if ordered >> 31 == 1 { ordered ^ (1 << 31) } else { !ordered })
}

fn from_ordered_f64(ordered: u64) -> f64 {
    f64::from_bits(if ordered >> 63 == 1 { ordered ^ (1 << 63) } else { !ordered })
}

struct KeyReader<'a> {
    rest: &'a [u8],
}

impl KeyReader<'_> {
    fn scalar(&mut self, ty: ColumnType) -> Result<ScalarValue> {
        let [marker] = self.take()?;
        let present = match marker {
            MARKER_VALUE => true,
            MARKER_NULL => false,
            _ => return Err(damaged()),
        };
        if !present {
            return Ok(ScalarValue::try_from(&ty.arrow())?);
        }
        Ok(match ty {
            ColumnType::Boolean => match self.take()? {
                [0] => ScalarValue::Boolean(Some(false)),
                [1] => ScalarValue::Boolean(Some(true)),
                _ => return Err(damaged()),
            },
            ColumnType::SmallInt => ScalarValue::Int16(Some(i16::from_be_bytes(self.take()?) ^ i16::MIN)),
            ColumnType::Integer => ScalarValue::Int32(Some(self.i32()?)),
            ColumnType::Date => ScalarValue::Date32(Some(self.i32()?)),
            ColumnType::BigInt => ScalarValue::Int64(Some(self.i64()?)),
            ColumnType::Time => ScalarValue::Time64Microsecond(Some(self.i64()?)),
            ColumnType::Timestamp => ScalarValue::TimestampMicrosecond(Some(self.i64()?), None),
            ColumnType::TimestampTz => {
                ScalarValue::TimestampMicrosecond(Some(self.i64()?), Some("UTC".into()))
            }
            ColumnType::Real => {
                ScalarValue::Float32(Some(from_ordered_f32(u32::from_be_bytes(self.take()?))))
            }
            ColumnType::Double => {
                ScalarValue::Float64(Some(from_ordered_f64(u64::from_be_bytes(self.take()?))))
            }
            ColumnType::Decimal { precision, scale } => {
                let unscaled = i128::from_be_bytes(self.take()?) ^ i128::MIN;
                ScalarValue::Decimal128(Some(unscaled), precision, scale)
            }
            ColumnType::Uuid => ScalarValue::FixedSizeBinary(16, Some(self.take::<16>()?.to_vec())),
            ColumnType::Text => {
                ScalarValue::Utf8(Some(String::from_utf8(self.unescaped()?).map_err(|_| damaged())?))
            }
            ColumnType::Bytes => ScalarValue::Binary(Some(self.unescaped()?)),
            ColumnType::Json | ColumnType::File | ColumnType::Embedding(_) => return Err(damaged()),
        })
    }

    fn i32(&mut self) -> Result<i32> {
        Ok(i32::from_be_bytes(self.take()?) ^ i32::MIN)
    }

    fn i64(&mut self) -> Result<i64> {
        Ok(i64::from_be_bytes(self.take()?) ^ i64::MIN)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (bytes, rest) = self.rest.split_first_chunk::<N>().ok_or_else(damaged)?;
        self.rest = rest;
        Ok(*bytes)
    }

    fn unescaped(&mut self) -> Result<Vec<u8>> {
        let mut value = Vec::new();
        loop {
            let at = self.rest.iter().position(|byte| *byte == ESCAPE).ok_or_else(damaged)?;
            let (piece, rest) = self.rest.split_at_checked(at).ok_or_else(damaged)?;
            value.extend_from_slice(piece);
            let ([_, after], rest) = rest.split_first_chunk::<2>().ok_or_else(damaged)?;
            self.rest = rest;
            match *after {
                ESCAPED_ZERO => value.push(ESCAPE),
                END => return Ok(value),
                _ => return Err(damaged()),
            }
        }
    }
}

#[cfg(test)]
mod tests;
