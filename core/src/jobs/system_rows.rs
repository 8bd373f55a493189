//! The stored rows of a system table, hot and cold, as the database itself reads and changes them.
//!
//! Invariant: a change is planned on a snapshot, and planned again if another commit came first or moved the
//! row. A row is found hot or cold.

use std::sync::Arc;

use datafusion::arrow::array::{BooleanArray, RecordBatch};
use datafusion::arrow::compute::filter_record_batch;
use datafusion::physical_plan::SendableRecordBatchStream;
use futures::TryStreamExt;

use crate::commit::{Committer, RowWrite, Snapshot, TableWrite, WriteSet};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{ScopeId, UserId};
use crate::schema_registry::{Durability, SchemaRegistry, SystemTable, TableSchemas};
use crate::tables::{KalamTable, PointReader, RowLimits, RowSchema, RowWriter};

/// Rows changed per commit.
const ROWS_PER_COMMIT: usize = 1_000;

/// The rows of `system.jobs` or `system.audit_logs`.
#[derive(Clone)]
pub(super) struct SystemRows {
    pub(super) committer: Arc<Committer>,
    pub(super) registry: Arc<SchemaRegistry>,
    pub(super) table: SystemTable,
}

impl SystemRows {
    /// Returns the table's schemas, which are the same in every snapshot.
    pub(super) fn schemas(&self, snapshot: &Snapshot) -> Result<Arc<TableSchemas>> {
        let definition = snapshot.catalog.table_by_id(self.table.id()).ok_or_else(|| {
            Error::corruption(format!("table \"system.{}\" is missing from the catalog", self.table.name()))
        })?;
        Ok(self.registry.schemas(definition))
    }

    /// Commits one row, in the table's visible schema. It replaces the row with the same key.
    pub(super) async fn put(&self, row: &RecordBatch, durability: Durability) -> Result<()> {
        loop {
            let snapshot = self.committer.snapshot();
            let schemas = self.schemas(&snapshot)?;
            let writer = row_writer(&schemas)?;
            let mut rows = Vec::new();
            for write in writer.inserts(ScopeId::SHARED, row, 0)? {
                let RowWrite::Insert { key, .. } = &write else { continue };
                let reader = PointReader::new(Arc::clone(&schemas), RowSchema::Write)?;
                let stored = Arc::new(reader).read_key(&snapshot, None, key.clone(), i64::MIN).await?;
                if stored.num_rows() == 0 {
                    rows.push(write);
                } else {
                    rows.extend(writer.updates(ScopeId::SHARED, &stored, row)?);
                }
            }
            if self.commit(&snapshot, &schemas, rows, durability).await? {
                return Ok(());
            }
        }
    }

    /// Replaces all rows that `wanted` selects by what `change` returns, or deletes them if it returns
    /// `None`, in several commits. Both get rows in the table's write schema, which begins with the visible
    /// schema. `change` returns rows in the visible schema. Returns the number of rows.
    pub(super) async fn change(
        &self,
        wanted: impl Fn(&RecordBatch) -> Result<BooleanArray>,
        change: impl Fn(&RecordBatch) -> Result<Option<RecordBatch>>,
    ) -> Result<usize> {
        let mut changed = 0;
        'scan: loop {
            let snapshot = self.committer.snapshot();
            let schemas = self.schemas(&snapshot)?;
            let writer = row_writer(&schemas)?;
            let mut rows = self.scan(&snapshot, &schemas).await?;
            while let Some(batch) = rows.try_next().await? {
                let batch = filter_record_batch(&batch, &wanted(&batch)?)?;
                for start in (0..batch.num_rows()).step_by(ROWS_PER_COMMIT) {
                    let some = batch.slice(start, ROWS_PER_COMMIT.min(batch.num_rows() - start));
                    let writes = match change(&some)? {
                        Some(after) => writer.updates(ScopeId::SHARED, &some, &after)?,
                        None => writer.deletes(&some)?,
                    };
                    if !self.commit(&snapshot, &schemas, writes, Durability::Durable).await? {
                        continue 'scan;
                    }
                    changed += some.num_rows();
                }
            }
            return Ok(changed);
        }
    }

    /// Returns all rows as of now, in the write schema.
    #[cfg(test)]
    pub(super) async fn all(&self) -> Result<Vec<RecordBatch>> {
        let snapshot = self.committer.snapshot();
        let schemas = self.schemas(&snapshot)?;
        Ok(self.scan(&snapshot, &schemas).await?.try_collect().await?)
    }

    /// Returns all rows of a snapshot, in the write schema.
    async fn scan(
        &self,
        snapshot: &Arc<Snapshot>,
        schemas: &Arc<TableSchemas>,
    ) -> Result<SendableRecordBatchStream> {
        let (snapshot, schemas) = (Arc::clone(snapshot), Arc::clone(schemas));
        KalamTable::stored(snapshot, schemas, RowSchema::Write, ScopeId::SHARED, i64::MIN).stream().await
    }

    /// False if the change must be planned again.
    async fn commit(
        &self,
        snapshot: &Snapshot,
        schemas: &TableSchemas,
        rows: Vec<RowWrite>,
        durability: Durability,
    ) -> Result<bool> {
        let table = Arc::clone(&schemas.definition);
        let tables = vec![TableWrite { table, scope: ScopeId::SHARED, rows }];
        let set = WriteSet { tables, durability, ..WriteSet::new(UserId::SYSTEM, snapshot.seq) };
        match self.committer.commit(set).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::Conflict => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Returns the inserts of rows that the database itself writes, in the visible schema of a system table.
pub(crate) fn encode_row(table: &Arc<TableSchemas>, batch: &RecordBatch) -> Result<Vec<RowWrite>> {
    row_writer(table)?.inserts(ScopeId::SHARED, batch, 0)
}

fn row_writer(table: &Arc<TableSchemas>) -> Result<RowWriter> {
    /// Details and parameters are JSON made from statements, whose length is limited.
    const ROW_BYTES_MAX: usize = 16 << 20;
    RowWriter::new(Arc::clone(table), RowLimits { row_bytes_max: ROW_BYTES_MAX })
}
