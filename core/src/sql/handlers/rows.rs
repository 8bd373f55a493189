//! The rows that one statement writes to one table, within its limits: committed as rows or as segments.
//!
//! Inserted rows stay columnar until their bytes decide which; all other rows are encoded at once.
//!
//! Invariant: the kept and the encoded rows are within a statement's limits, or the statement has failed.

use std::collections::HashSet;
use std::sync::Arc;

use datafusion::arrow::array::{Array, RecordBatch};
use datafusion::arrow::compute::concat_batches;
use tracing::warn;

use super::pieces::Pieces;
use super::target::Target;
use crate::commit::{LargeInsert, RowWrite, TableWrite};
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::schema_registry::{TableDefinition, TableKind, TableSchemas};
use crate::segments::{NewRows, PendingObjects, write_segments};
use crate::sql::effect::Change;
use crate::sql::execution::Execution;
use crate::tables::{RowLimits, RowWriter, batch_value_bytes, value_bytes};

/// A batch is encoded at once when NULL slots exceed `1 - 1/SPARSE_FACTOR` (3/4) of its bytes: encoded they
/// take almost nothing. Such an INSERT never becomes segments.
const SPARSE_FACTOR: usize = 4;

/// Returns the encoder of a table's rows.
pub(in crate::sql) fn writer(execution: &Execution, schemas: &Arc<TableSchemas>) -> Result<RowWriter> {
    RowWriter::new(Arc::clone(schemas), RowLimits { row_bytes_max: execution.ctx().config.row_bytes_max })
}

/// The changes of one statement to one table, within the statement's limits.
pub(in crate::sql) struct Rows<'a> {
    execution: &'a Execution,
    schemas: Arc<TableSchemas>,
    writer: Arc<RowWriter>,
    writes: Vec<RowWrite>,
    /// Inserted rows that are not encoded yet.
    inserted: Vec<RecordBatch>,
    inserted_bytes: usize,
    /// Whether they may still become segments.
    can_be_large: bool,
    affected: u64,
    rows: usize,
    bytes: usize,
    now_us: i64,
}

impl<'a> Rows<'a> {
    pub(in crate::sql) fn new(execution: &'a Execution, schemas: Arc<TableSchemas>) -> Result<Self> {
        let writer = Arc::new(writer(execution, &schemas)?);
        Ok(Self::with_writer(execution, schemas, writer))
    }

    pub(in crate::sql) fn with_writer(
        execution: &'a Execution,
        schemas: Arc<TableSchemas>,
        writer: Arc<RowWriter>,
    ) -> Self {
        let now_us = execution.now_us;
        let can_be_large = can_be_large(execution, &schemas.definition);
        Self {
            execution,
            schemas,
            writer,
            writes: Vec::new(),
            inserted: Vec::new(),
            inserted_bytes: 0,
            can_be_large,
            affected: 0,
            rows: 0,
            bytes: 0,
            now_us,
        }
    }

    /// Counts rows before they are processed, and checks the limits.
    fn count(&mut self, rows: usize) -> Result<()> {
        self.rows = self.rows.saturating_add(rows);
        self.affected = self.affected.saturating_add(rows as u64);
        self.check_limits()
    }

    fn take(&mut self, writes: Vec<RowWrite>) -> Result<()> {
        let bytes = writes.iter().map(RowWrite::bytes).fold(0, usize::saturating_add);
        self.bytes = self.bytes.saturating_add(bytes);
        self.writes.extend(writes);
        self.check_limits()
    }

    fn check_limits(&self) -> Result<()> {
        let config = &self.execution.ctx().config;
        let bytes = self.bytes.saturating_add(self.inserted_bytes);
        if self.rows <= config.statement_rows_max && bytes <= config.statement_bytes_max {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::ResourceExhausted,
            SqlState::PROGRAM_LIMIT_EXCEEDED,
            format!(
                "the statement writes too much to table \"{}\"",
                self.schemas.definition.qualified_name()
            ),
        )
        .hint(format!(
            "a statement writes at most {} rows and {} MiB; use several statements",
            config.statement_rows_max,
            config.statement_bytes_max >> 20
        )))
    }

    /// Returns the pieces that rows for the table are cut into before they are completed.
    pub(in crate::sql) fn pieces(&self) -> Pieces {
        Pieces::of(&self.schemas.definition, &self.execution.ctx().config)
    }

    /// Adds rows in the target's columns, however many.
    pub(in crate::sql) fn insert(&mut self, target: &Target, batch: &RecordBatch) -> Result<()> {
        self.pieces().each(batch, |piece| {
            self.count(piece.num_rows())?;
            let completed = target.complete(self.execution, piece)?;
            let bytes = if self.can_be_large { batch_value_bytes(&completed) } else { 0 };
            if !self.can_be_large || is_sparse(&completed, bytes) {
                self.can_be_large = false;
                self.encode()?;
                return self.encode_batch(&completed);
            }
            self.inserted_bytes = self.inserted_bytes.saturating_add(bytes);
            self.hold(completed)?;
            if self.check_limits().is_err() {
                // Encoded as rows they may be smaller.
                self.can_be_large = false;
                self.encode()?;
            }
            self.check_limits()
        })
    }

    /// Keeps rows until their form is known. Small batches are concatenated: each has a fixed cost.
    fn hold(&mut self, batch: RecordBatch) -> Result<()> {
        /// Smaller batches are concatenated.
        const ROWS_MIN: usize = 1_024;
        let small = self.inserted.iter().rev().take_while(|held| held.num_rows() < ROWS_MIN).count();
        let begin = self.inserted.len() - small;
        self.inserted.push(batch);
        let tail = self.inserted.get(begin..).unwrap_or_default();
        if tail.len() > 1 && tail.iter().map(RecordBatch::num_rows).sum::<usize>() >= ROWS_MIN {
            let together = tail.first().map(|first| concat_batches(first.schema_ref(), tail)).transpose()?;
            self.inserted.truncate(begin);
            self.inserted.extend(together);
        }
        Ok(())
    }

    /// Encodes the kept rows.
    fn encode(&mut self) -> Result<()> {
        self.inserted_bytes = 0;
        std::mem::take(&mut self.inserted).iter().try_for_each(|batch| self.encode_batch(batch))
    }

    fn encode_batch(&mut self, batch: &RecordBatch) -> Result<()> {
        let scope = self.schemas.definition.scope_for(self.execution.principal.user_id);
        let writes = self.writer.inserts(scope, batch, self.now_us)?;
        self.take(writes)
    }

    /// Whether the rows become segments.
    fn are_large(&self) -> bool {
        self.can_be_large && self.inserted_bytes >= self.execution.ctx().config.large_insert_bytes
    }

    /// Writes the rows as segments; `None` when their storage is unavailable.
    async fn segments(&mut self) -> Result<Option<(LargeInsert, PendingObjects)>> {
        let ctx = self.execution.ctx();
        let scope = self.schemas.definition.scope_for(self.execution.principal.user_id);
        let batches = self.inserted.clone();
        let rows = NewRows { writer: Arc::clone(&self.writer), scope, batches };
        let ids = Arc::clone(&ctx.committer);
        let next_id = move || ids.new_segment_id();
        let bytes = self.inserted_bytes as u64;
        let turn = ctx.large_writes.enter(&self.execution.control).await?;
        ctx.committer.check_room_for(bytes)?;
        let snapshot = &self.execution.snapshot;
        match write_segments(snapshot, &self.schemas, rows, next_id, self.now_us, turn).await {
            Ok((insert, objects)) => {
                self.inserted.clear();
                ctx.committer.note_written(insert.added.iter().map(|new| new.segment.bytes).sum());
                Ok(Some((insert, objects)))
            }
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                // Others may have used up the room by now; writing rows would then fail midway in the store.
                ctx.committer.check_room_for(bytes)?;
                let table = self.schemas.definition.qualified_name();
                warn!(table, %error, "a large insert could not write segments; it writes rows instead");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Adds updates: the stored rows and the new rows.
    pub(in crate::sql) fn update(&mut self, before: &RecordBatch, after: &RecordBatch) -> Result<()> {
        self.count(before.num_rows())?;
        let scope = self.schemas.definition.scope_for(self.execution.principal.user_id);
        let writes = self.writer.updates(scope, before, after)?;
        self.take(writes)
    }

    /// Adds deletes of stored rows.
    pub(in crate::sql) fn delete(&mut self, before: &RecordBatch) -> Result<()> {
        self.count(before.num_rows())?;
        let writes = self.writer.deletes(before)?;
        self.take(writes)
    }

    /// Refuses rows of parameters that change the same row: each was planned on the row's old state.
    pub(in crate::sql) fn check_distinct(&self) -> Result<()> {
        let mut seen = HashSet::with_capacity(self.writes.len());
        let changed = self.writes.iter().filter_map(|write| match write {
            RowWrite::Update { key, .. } | RowWrite::Delete { key, .. } => Some(key),
            RowWrite::Insert { .. } | RowWrite::Append { .. } => None,
        });
        for key in changed {
            if !seen.insert(key) {
                return Err(
                    Error::unsupported("changing a row twice in one batch").hint("send the rows one by one")
                );
            }
        }
        Ok(())
    }

    /// Returns the rows as one change. A large INSERT is written as segments first.
    pub(in crate::sql) async fn change(mut self) -> Result<Change> {
        let mut change = Change::new(self.execution);
        change.set.durability = self.schemas.definition.options.durability;
        change.rows = self.affected;
        if self.are_large() {
            change.segments = self.segments().await?;
            if change.segments.is_some() {
                return Ok(change);
            }
        }
        self.encode()?;
        let definition = Arc::clone(&self.schemas.definition);
        let scope = definition.scope_for(self.execution.principal.user_id);
        // Keys may move between rows of different batches: deletes come before writes that take their keys.
        let (mut rows, mut others): (Vec<_>, Vec<_>) =
            self.writes.into_iter().partition(|write| matches!(write, RowWrite::Delete { .. }));
        rows.append(&mut others);
        change.set.tables.push(TableWrite { table: definition, scope, rows });
        Ok(change)
    }
}

/// Whether rows of a table can become segments at once: it is flushed, and its storage answers without delay.
fn can_be_large(execution: &Execution, table: &TableDefinition) -> bool {
    let storage = execution.snapshot.cold.store().storage(&table.options.storage_id);
    matches!(table.kind, TableKind::User | TableKind::Shared)
        && execution.ctx().config.large_insert_bytes > 0
        && storage.is_ok_and(|storage| storage.is_near())
}

/// Whether NULL slots take most of the `bytes` of a batch.
fn is_sparse(batch: &RecordBatch, bytes: usize) -> bool {
    let with_nulls = batch.columns().iter().filter(|column| column.null_count() > 0);
    let nulls: usize =
        with_nulls.map(|column| value_bytes(column) / column.len().max(1) * column.null_count()).sum();
    nulls > bytes - bytes / SPARSE_FACTOR
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;

    use crate::config::Config;
    use crate::database::Database;
    use crate::workload::StatementControl;

    #[tokio::test]
    async fn a_large_insert_waits_until_its_user_may_write_more() {
        let database = Database::open(Config { large_insert_bytes: 1, ..Config::in_memory() }).await.unwrap();
        let root = database.session_for("root").unwrap();
        root.execute("CREATE TABLE t (id BIGINT PRIMARY KEY)", ()).await.unwrap();
        let ctx = database.context();
        let others = StatementControl::new(&ctx.config);
        assert_eq!(others.user(), root.principal().user_id);
        let turns = std::iter::from_fn(|| ctx.large_writes.enter(&others).now_or_never());
        let held: Vec<_> = turns.map(|turn| turn.unwrap()).collect();
        let writer = root.clone();
        let inserted = tokio::spawn(async move {
            let sql = "INSERT INTO t SELECT value FROM generate_series(1, 2000)";
            writer.execute(sql, ()).await.unwrap().affected().unwrap().rows
        });
        while ctx.large_writes.counters().waiting == 0 {
            assert!(!inserted.is_finished(), "the statement waits");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let rows = root.execute("SELECT count(*) FROM t", ()).await.unwrap().rows().unwrap();
        assert_eq!(rows.collect().await.unwrap().len(), 1, "others go on");
        drop(held);
        assert_eq!(inserted.await.unwrap(), 2_000);
        let counters = ctx.large_writes.counters();
        assert_eq!((counters.running, counters.waiting), (0, 0));
        database.shutdown().await.unwrap();
    }
}
