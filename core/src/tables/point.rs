//! Reading single rows by their whole primary key, without planning.

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use bytes::Bytes;
use datafusion::common::ScalarValue;

use super::source::{RowSchema, project_schema, row_decoder};
use crate::error::{Error, Result};
use crate::ids::ScopeId;
use crate::schema_registry::TableSchemas;
use crate::storage::keys::KeyEncoder;
use crate::storage::rows::row_expires_at;
use crate::storage::{Partition, StorageSnapshot};

/// Reads rows of one table by key. Made once for a prepared statement.
#[derive(Debug)]
pub struct PointReader {
    schemas: Arc<TableSchemas>,
    columns: RowSchema,
    keys: KeyEncoder,
}

impl PointReader {
    /// A reader that shows `columns`.
    ///
    /// # Errors
    /// XX000 for a table without a primary key.
    pub fn new(schemas: Arc<TableSchemas>, columns: RowSchema) -> Result<Self> {
        if !schemas.definition.has_key() {
            return Err(Error::internal(format!(
                "table \"{}\" has no primary key to read by",
                schemas.definition.qualified_name()
            )));
        }
        let keys = KeyEncoder::new(&schemas.definition.key_types())?;
        Ok(Self { schemas, columns, keys })
    }

    /// The row whose key columns have `values` (in key order, in the columns' Arrow types): a batch with one row or none, its
    /// schema the memoized allocation. Rows that expired at or before `now_us` are not seen. Blocks on storage.
    ///
    /// # Errors
    /// XX001 for damaged bytes; XX000 for values of other types.
    pub fn read(
        &self,
        storage: &dyn StorageSnapshot,
        scope: ScopeId,
        values: &[ScalarValue],
        now_us: i64,
    ) -> Result<RecordBatch> {
        if values.len() != self.schemas.definition.primary_key.len() {
            return Err(Error::internal("a point read needs the whole key"));
        }
        let key = if values.iter().any(ScalarValue::is_null) {
            None
        } else {
            // A key longer than any stored one finds nothing.
            self.keys.encode_values(self.schemas.definition.id, scope, values).ok()
        };
        let row = match &key {
            Some(key) => storage.get(Partition::Rows, key)?,
            None => None,
        };
        self.batch(key.as_deref().zip(row), now_us)
    }

    /// The rows that have the encoded keys, in their order, without those that do not exist. Blocks on storage.
    ///
    /// # Errors
    /// XX001 for damaged bytes.
    pub fn read_keys(
        &self,
        storage: &dyn StorageSnapshot,
        keys: &[Bytes],
        now_us: i64,
    ) -> Result<RecordBatch> {
        let rows = storage.multi_get(Partition::Rows, keys)?;
        self.batch(keys.iter().zip(rows).filter_map(|(key, row)| Some((&**key, row?))), now_us)
    }

    /// The encoded keys of rows whose key columns are `columns`, in key order.
    ///
    /// # Errors
    /// 54000 for a key that is too long; XX000 for columns of other types.
    pub fn encode_keys(&self, scope: ScopeId, columns: &[ArrayRef]) -> Result<Vec<Bytes>> {
        self.keys.encode(self.schemas.definition.id, scope, columns)
    }

    fn batch<'a>(
        &self,
        rows: impl IntoIterator<Item = (&'a [u8], Bytes)>,
        now_us: i64,
    ) -> Result<RecordBatch> {
        let schema = project_schema(self.columns.of(&self.schemas), None)?;
        let positions: Vec<usize> = (0..schema.fields().len()).collect();
        let mut decoder = row_decoder(&self.schemas.definition, &positions)?;
        for (key, row) in rows {
            if row_expires_at(&row)?.is_none_or(|expires_at| expires_at > now_us) {
                decoder.push(key, &row)?;
            }
        }
        let options = RecordBatchOptions::new().with_row_count(Some(decoder.len()));
        Ok(RecordBatch::try_new_with_options(schema, decoder.finish()?, &options)?)
    }
}
