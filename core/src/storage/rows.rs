//! The stored form of a row, the value under its key. Frozen: changing any byte needs a new format byte.
//!
//! ```text
//! offset 0   format u8           1
//!        1   flags u8            bit 0: the row expires; other bits are 0
//!        2   version u32 LE      of the table definition the row was written with
//!        6   seq u64 LE          of the commit; encoded as 0, then set by the sequencer
//!       14   expires_at i64 LE   microseconds UTC; only with flag bit 0
//!        .   nulls               one bit per column in definition order, lowest first, 1 = NULL; whole bytes
//!        .   column ...          the non-NULL ones, in definition order
//!
//! BOOLEAN u8 | SMALLINT i16 | INTEGER, DATE i32 | BIGINT, TIME, TIMESTAMP i64 | REAL f32 | DOUBLE f64
//! DECIMAL i128 | UUID 16 bytes | EMBEDDING(n) n f32
//! TEXT, BYTES, JSON, FILE: length u32, then the bytes        (all little-endian)
//! REAL, DOUBLE: -0.0 is written as 0.0, every NaN as one NaN; EMBEDDING elements are written unchanged
//! ```
//!
//! Invariant: a row names the table version it was written with, so ALTER TABLE rewrites no rows.

use arrow::array::ArrayRef;
use serde::{Deserialize, Serialize};

use super::columns::{Column, Value};
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::{ColumnId, SchemaVersion, Seq};
use crate::types::ColumnType;

const FORMAT: u8 = 1;
pub(super) const FLAG_EXPIRES: u8 = 0b1;
const VERSION_AT: usize = 2;
const SEQ_AT: usize = 6;
const EXPIRES_AT: usize = 14;

/// The stored columns, in stored order, of rows written with a range of table versions.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RowLayout {
    /// The first version with this layout.
    pub since: SchemaVersion,
    /// Every stored column with its type at that time.
    pub columns: Vec<(ColumnId, ColumnType)>,
}

/// Encodes rows of one table version.
#[derive(Clone, Debug)]
pub struct RowEncoder {
    version: SchemaVersion,
    types: Vec<ColumnType>,
}

impl RowEncoder {
    /// Returns an encoder for rows of `version`, with columns of `types` in definition order.
    pub fn new(version: SchemaVersion, types: Vec<ColumnType>) -> Self {
        Self { version, types }
    }

    /// Returns the encoded rows of a batch; `columns` are all columns in definition order, each with
    /// `row_count` rows. Their seq is 0 until [`set_row_seq`]. Rows expire at `expires_at` (microseconds
    /// UTC).
    ///
    /// # Errors
    /// `Internal` when the columns do not match the types; 54000 when a value has 4 GiB or more.
    pub fn encode(
        &self,
        columns: &[ArrayRef],
        row_count: usize,
        expires_at: Option<i64>,
    ) -> Result<Vec<Vec<u8>>> {
        let types = &self.types;
        if columns.len() != types.len() || columns.iter().any(|column| column.len() != row_count) {
            return Err(Error::internal("a batch does not have the columns of its table"));
        }
        let columns: Vec<Column<'_>> =
            types.iter().zip(columns).map(|(ty, array)| Column::new(*ty, array)).collect::<Result<_>>()?;
        let mut header = vec![FORMAT, if expires_at.is_some() { FLAG_EXPIRES } else { 0 }];
        header.extend_from_slice(&self.version.0.to_le_bytes());
        header.extend_from_slice(&Seq::ZERO.0.to_le_bytes());
        header.extend(expires_at.into_iter().flat_map(i64::to_le_bytes));

        let mut row_bytes = Vec::new();
        let mut values = Vec::with_capacity(columns.len());
        (0..row_count)
            .map(|row| {
                values.clear();
                for column in &columns {
                    values.push(column.value(row)?);
                }
                row_bytes.clear();
                row_bytes.extend_from_slice(&header);
                push_nulls(&mut row_bytes, &values);
                for value in values.iter().flatten() {
                    push_value(&mut row_bytes, *value)?;
                }
                // Copies to the exact length, so that converting the row to `Bytes` does not move it again.
                Ok(row_bytes.as_slice().to_vec())
            })
            .collect()
    }
}

fn push_nulls(row: &mut Vec<u8>, values: &[Option<Value<'_>>]) {
    for eight in values.chunks(8) {
        row.push(
            eight.iter().enumerate().fold(0, |byte, (bit, value)| byte | (u8::from(value.is_none()) << bit)),
        );
    }
}

fn push_value(row: &mut Vec<u8>, value: Value<'_>) -> Result<()> {
    match value {
        Value::Boolean(value) => row.push(u8::from(value)),
        Value::I16(value) => row.extend_from_slice(&value.to_le_bytes()),
        Value::I32(value) => row.extend_from_slice(&value.to_le_bytes()),
        Value::I64(value) => row.extend_from_slice(&value.to_le_bytes()),
        Value::I128(value) => row.extend_from_slice(&value.to_le_bytes()),
        Value::F32(value) => row.extend_from_slice(&value.to_le_bytes()),
        Value::F64(value) => row.extend_from_slice(&value.to_le_bytes()),
        Value::Uuid(value) => row.extend_from_slice(value),
        Value::Embedding(elements) => row.extend(elements.iter().flat_map(|element| element.to_le_bytes())),
        Value::Variable(value) => {
            let length = u32::try_from(value.len()).map_err(|_| {
                Error::new(
                    ErrorKind::ResourceExhausted,
                    SqlState::PROGRAM_LIMIT_EXCEEDED,
                    format!("a value of {} bytes is too long", value.len()),
                )
            })?;
            row.extend_from_slice(&length.to_le_bytes());
            row.extend_from_slice(value);
        }
    }
    Ok(())
}

/// The header of a stored row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowHeader {
    /// The table version the row was written with.
    pub version: SchemaVersion,
    /// The seq of the commit that wrote the row.
    pub seq: Seq,
    /// The expiry time, microseconds UTC.
    pub expires_at: Option<i64>,
}

impl RowHeader {
    /// Reads the header of a stored row; also returns the bytes after it.
    ///
    /// # Errors
    /// `Corruption` when the bytes are not a row of this format.
    pub fn read(row: &[u8]) -> Result<(Self, &[u8])> {
        let [format, flags, ..] = *row else { return Err(damaged()) };
        if format != FORMAT || flags & !FLAG_EXPIRES != 0 {
            return Err(damaged());
        }
        let expires_at = match flags & FLAG_EXPIRES {
            0 => None,
            _ => Some(i64::from_le_bytes(fixed(row, EXPIRES_AT)?)),
        };
        let header = Self {
            version: SchemaVersion(u32::from_le_bytes(fixed(row, VERSION_AT)?)),
            seq: Seq(u64::from_le_bytes(fixed(row, SEQ_AT)?)),
            expires_at,
        };
        let length = if expires_at.is_some() { EXPIRES_AT + 8 } else { EXPIRES_AT };
        Ok((header, row.get(length..).ok_or_else(damaged)?))
    }
}

/// Returns the seq of the commit that wrote a row.
///
/// # Errors
/// As [`RowHeader::read`].
pub fn row_seq(row: &[u8]) -> Result<Seq> {
    RowHeader::read(row).map(|(header, _)| header.seq)
}

/// Returns the expiry time of a row, microseconds UTC.
///
/// # Errors
/// As [`RowHeader::read`].
pub fn row_expires_at(row: &[u8]) -> Result<Option<i64>> {
    RowHeader::read(row).map(|(header, _)| header.expires_at)
}

/// Sets the seq of an encoded row.
///
/// # Errors
/// `Internal` when the bytes are too short to be a row.
pub fn set_row_seq(row: &mut [u8], seq: Seq) -> Result<()> {
    match row.get_mut(SEQ_AT..EXPIRES_AT) {
        Some(place) => {
            place.copy_from_slice(&seq.0.to_le_bytes());
            Ok(())
        }
        None => Err(Error::internal("an encoded row is too short")),
    }
}

fn fixed<const N: usize>(row: &[u8], at: usize) -> Result<[u8; N]> {
    row.get(at..).and_then(|rest| rest.first_chunk::<N>()).copied().ok_or_else(damaged)
}

pub(super) fn damaged() -> Error {
    Error::corruption("a stored row is damaged")
}

#[cfg(test)]
mod tests;
