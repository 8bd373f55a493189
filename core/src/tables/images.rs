//! Decodes row images of the change log into batches.

use std::sync::Arc;

use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use bytes::Bytes;

use super::source::row_decoder;
use crate::error::Result;
use crate::schema_registry::TableSchemas;

/// Decodes (key, row) images into the table's full schema, one row each, in the given order. The images may
/// have any table version up to that of `schemas`; a column that a version lacks has its initial value.
///
/// # Errors
/// XX001 when the bytes are damaged.
pub fn decode<'a>(
    schemas: &TableSchemas,
    images: impl Iterator<Item = (&'a Bytes, &'a Bytes)>,
) -> Result<RecordBatch> {
    let positions: Vec<usize> = (0..schemas.full.fields().len()).collect();
    let mut decoder = row_decoder(&schemas.definition, &positions)?;
    for (key, row) in images {
        decoder.push(key, row)?;
    }
    let options = RecordBatchOptions::new().with_row_count(Some(decoder.len()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(&schemas.full), decoder.finish()?, &options)?)
}
