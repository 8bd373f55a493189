//! Reads single rows by their whole primary key, without planning: from the overlay of the open transaction,
//! the store, or a segment.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use datafusion::common::ScalarValue;

use super::cold_rows::cold_row;
use super::overlay::Overlay;
use super::rows::{RowSchema, RowVisibility, decode, is_expired};
use crate::commit::Snapshot;
use crate::error::{Error, Result};
use crate::ids::ScopeId;
use crate::schema_registry::TableSchemas;
use crate::storage::keys::KeyEncoder;
use crate::storage::rows::RowHeader;
use crate::storage::{Cached, Partition, blocking};

/// Reads rows of one table by key. Created once per prepared statement.
#[derive(Debug)]
pub struct PointReader {
    schemas: Arc<TableSchemas>,
    columns: RowSchema,
    keys: KeyEncoder,
}

impl PointReader {
    /// Returns a reader that shows `columns`.
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

    /// Returns the row whose key columns have `values` (in key order, in the columns' Arrow types) as a batch
    /// of at most one row in the memoized schema. Rows that expired at or before `now_us` are invisible. The
    /// changes in `overlay` come before the rows of the snapshot.
    ///
    /// # Errors
    /// XX001 for damaged bytes; XX000 for the wrong number of values; 58030 when a segment cannot be read.
    pub async fn read(
        &self,
        snapshot: &Arc<Snapshot>,
        overlay: Option<&Overlay>,
        scope: ScopeId,
        values: &[ScalarValue],
        now_us: i64,
    ) -> Result<RecordBatch> {
        if values.len() != self.schemas.definition.primary_key.len() {
            return Err(Error::internal("a point read needs the whole key"));
        }
        let is_null = values.iter().any(ScalarValue::is_null);
        // A key that cannot be encoded, for example because it is too long, matches no row.
        let key = self.keys.encode_values(self.schemas.definition.id, scope, values).ok();
        match key.filter(|_| !is_null) {
            Some(key) => self.read_key(snapshot, overlay, Bytes::from(key), now_us).await,
            None => self.batch(None),
        }
    }

    /// Returns the row under an encoded key, as [`PointReader::read`] does.
    ///
    /// # Errors
    /// XX001 for damaged bytes; 58030 when a segment cannot be read.
    pub async fn read_key(
        &self,
        snapshot: &Arc<Snapshot>,
        overlay: Option<&Overlay>,
        key: Bytes,
        now_us: i64,
    ) -> Result<RecordBatch> {
        if let Some(changed) = overlay.and_then(|overlay| overlay.row(&key)) {
            return match changed {
                Some(row) if !is_expired(&RowHeader::read(row)?.0, now_us) => self.batch(Some((&key, row))),
                _ => self.batch(None),
            };
        }
        let stored = match snapshot.storage.get_cached(Partition::Rows, &key)? {
            Cached::Found(row) => Some(row),
            Cached::Absent => None,
            Cached::Unknown => {
                let (at, key) = (Arc::clone(snapshot), Bytes::clone(&key));
                blocking(move || at.storage.get(Partition::Rows, &key)).await?
            }
        };
        let visibility = RowVisibility { now_us, flushed: snapshot.cold.flushed(self.schemas.definition.id) };
        match stored {
            Some(row) if visibility.is_visible(&row)? => self.batch(Some((&key, &row))),
            _ => self.read_cold(snapshot, key).await,
        }
    }

    async fn read_cold(&self, snapshot: &Snapshot, key: Bytes) -> Result<RecordBatch> {
        let (cold, definition) = (&snapshot.cold, &self.schemas.definition);
        if cold.segments(definition.id).is_empty() {
            return self.batch(None);
        }
        let keys = definition.segment_keys()?;
        let segment = self.schemas.segment()?;
        let found = cold.find_row(&snapshot.storage, definition.id, &keys, segment, &key).await?;
        let Some((place, row)) = found else { return self.batch(None) };
        if self.columns == RowSchema::Write {
            return cold_row(&self.schemas, &row, place);
        }
        let schema = self.columns.of(&self.schemas);
        let columns = row.columns().get(..schema.fields().len()).unwrap_or_default().to_vec();
        Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
    }

    fn batch(&self, row: Option<(&Bytes, &Bytes)>) -> Result<RecordBatch> {
        decode(&self.schemas, self.columns, row)
    }
}
