//! Inserted rows in columnar form: the part of a commit that is too large to be written row by row.
//!
//! ```text
//! crc u32          CRC-32 of version, count and all that follows
//! types            length u32, JSON: the types of the columns
//! rows             to the end: a zstd frame of an Arrow IPC stream, whose columns are key and table columns
//! ```
//!
//! The rows carry no seq: they have that of the commit.
//!
//! Invariant: bytes that differ from what was written are never decoded.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BinaryArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;

use super::fields::{FieldReader, damaged, length};
use super::window::Window;
use super::{RowChange, RowOp};
use crate::error::{Error, Result};
use crate::ids::{SchemaVersion, Seq};
use crate::storage::rows::{RowEncoder, set_row_seq};
use crate::types::ColumnType;

/// The format byte of a part in columnar form.
pub(super) const PART_FORMAT_COLUMNS: u8 = 2;
const ZSTD_LEVEL: i32 = 1;
/// Rows that are decoded at once, so that few are decoded in vain when a reader has enough.
const ROWS_AT_ONCE: usize = 256;

/// Encodes a part: rows of one version of a table, whose columns have `types`, and their keys.
///
/// # Errors
/// `Internal` when the columns cannot be encoded; not expected, because the target is memory.
pub(crate) fn encode(
    version: SchemaVersion,
    types: &[ColumnType],
    keys: &[Bytes],
    columns: &[ArrayRef],
) -> Result<Bytes> {
    let unwritable = |error: &dyn std::error::Error| {
        Error::internal(format!("rows cannot be written to the change log: {error}"))
    };
    let types = serde_json::to_vec(types).map_err(|error| unwritable(&error))?;
    let mut body = length(types.len())?.to_vec();
    body.extend_from_slice(&types);
    let field =
        |(name, array): (usize, &ArrayRef)| Field::new(name.to_string(), array.data_type().clone(), true);
    let fields: Vec<Field> = std::iter::once(Field::new("key", DataType::Binary, false))
        .chain(columns.iter().enumerate().map(field))
        .collect();
    let key: ArrayRef = Arc::new(BinaryArray::from_iter_values(keys));
    let arrays = std::iter::once(key).chain(columns.iter().map(Arc::clone)).collect();
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?;
    let frame = zstd::Encoder::new(body, ZSTD_LEVEL).map_err(|error| unwritable(&error))?;
    let mut stream = StreamWriter::try_new(frame, &batch.schema())?;
    stream.write(&batch)?;
    let body = stream.into_inner()?.finish().map_err(|error| unwritable(&error))?;
    let mut part = vec![PART_FORMAT_COLUMNS];
    part.extend_from_slice(&version.0.to_le_bytes());
    part.extend_from_slice(&length(keys.len())?);
    part.extend_from_slice(
        &checksum(version, u32::try_from(keys.len()).unwrap_or(u32::MAX), &body).to_le_bytes(),
    );
    part.extend_from_slice(&body);
    Ok(part.into())
}

/// Adds the rows of a part that `window` takes to `rows`. `bytes` begin at its checksum; the version and the
/// number of rows stand before it.
///
/// # Errors
/// `Corruption` when the bytes are not what was written.
pub(super) fn decode(
    (version, count): (SchemaVersion, u32),
    bytes: &[u8],
    seq: Seq,
    window: &mut Window,
    rows: &mut Vec<RowChange>,
) -> Result<()> {
    let mut reader = FieldReader { bytes };
    let noted = reader.u32()?;
    if checksum(version, count, reader.bytes) != noted {
        return Err(damaged());
    }
    let types: Vec<ColumnType> =
        serde_json::from_slice(reader.variable()?).map_err(|error| damaged().source(error))?;
    let frame = zstd::Decoder::new(reader.bytes).map_err(|error| damaged().source(error))?;
    let encoder = RowEncoder::new(version, types);
    let mut seen = 0;
    for batch in StreamReader::try_new(frame, None).map_err(|error| damaged().source(error))? {
        let batch = batch.map_err(|error| damaged().source(error))?;
        seen += batch.num_rows();
        let mut start = window.leave_out(batch.num_rows());
        while start < batch.num_rows() && !window.is_full() {
            let some = batch.slice(start, ROWS_AT_ONCE.min(batch.num_rows() - start));
            start += some.num_rows();
            decode_rows(&some, &encoder, seq, window, rows)?;
        }
    }
    if seen == count as usize { Ok(()) } else { Err(damaged()) }
}

fn decode_rows(
    batch: &RecordBatch,
    encoder: &RowEncoder,
    seq: Seq,
    window: &mut Window,
    rows: &mut Vec<RowChange>,
) -> Result<()> {
    let (keys, columns) = batch.columns().split_first().ok_or_else(damaged)?;
    let keys = keys.as_binary_opt::<i32>().ok_or_else(damaged)?;
    let encoded = encoder.encode(columns, batch.num_rows(), None)?;
    for (key, mut row) in keys.iter().zip(encoded) {
        set_row_seq(&mut row, seq)?;
        let key = Bytes::copy_from_slice(key.ok_or_else(damaged)?);
        window.take(RowChange { op: RowOp::Insert, key, old: None, new: Some(row.into()) }, rows);
    }
    Ok(())
}

fn checksum(version: SchemaVersion, count: u32, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&version.0.to_le_bytes());
    hasher.update(&count.to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}
