//! A store in memory, whose rows are written, flushed and compacted as commits do, and queries over it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use datafusion::physical_plan::displayable;
use datafusion::prelude::{SessionConfig, SessionContext};

use crate::access::Role;
use crate::cold_storage::{ColdChange, Manifest, SegmentStore, put_mark};
use crate::commit::{RowWrite, Snapshot};
use crate::hot_tier::{HotChunks, HotOptions};
use crate::ids::{ColumnId, Epoch, ScopeId, SegmentId, Seq, TableId, UserId};
use crate::schema_registry::{
    Catalog, CatalogChange, ColumnDefinition, SchemaRegistry, TableDefinition, TableKind, TableOptions,
    TableSchemas, UserRecord,
};
use crate::segments::{Control, compact, flush};
use crate::storage::rows::set_row_seq;
use crate::storage::{Partition, RocksStorage, StorageBackend, StorageOptions, WriteBatch};
use crate::tables::{KalamTable, RowLimits, RowSchema, RowWriter};
use crate::types::ColumnType;

pub(super) const ANN: ScopeId = ScopeId(7);
pub(super) const BOB: ScopeId = ScopeId(8);
pub(super) const LIMITS: RowLimits = RowLimits { row_bytes_max: 1 << 20 };

/// A store, a registry, a catalog with two users, segments, and the seq of the last commit.
pub(super) struct Fixture {
    pub(super) storage: RocksStorage,
    pub(super) registry: SchemaRegistry,
    pub(super) catalog: Arc<Catalog>,
    pub(super) cold: Arc<Manifest>,
    pub(super) hot_options: HotOptions,
    pub(super) batch_rows: usize,
    pub(super) seq: u64,
}

impl Fixture {
    pub(super) fn new() -> Self {
        let initial = Catalog::initial(0);
        let users = [(ANN, "ann"), (BOB, "bob")].map(|(scope, name)| user(scope, name)).to_vec();
        Self {
            storage: RocksStorage::in_memory(StorageOptions::default()).unwrap(),
            registry: SchemaRegistry::new(),
            catalog: Arc::new(Catalog::restore(initial.header(), users).unwrap()),
            cold: Arc::new(Manifest::empty(SegmentStore::in_memory(1 << 20))),
            hot_options: HotOptions::of_bytes(64 << 20),
            batch_rows: 8_192,
            seq: 0,
        }
    }

    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::new(Snapshot {
            seq: Seq(self.seq),
            commit_ts: 0,
            epoch: Epoch(1),
            catalog: Arc::clone(&self.catalog),
            storage: self.storage.snapshot(),
            hot: Arc::new(HotChunks::new(self.hot_options, Seq(self.seq))),
            cold: Arc::clone(&self.cold),
            log_floor: Seq::ZERO,
        })
    }

    /// Applies valid writes as the sequencer does.
    pub(super) fn commit(&mut self, table: &TableDefinition, scope: ScopeId, writes: Vec<RowWrite>) {
        self.seq += 1;
        let mut batch = WriteBatch::new();
        for (ordinal, write) in (0..).zip(writes) {
            let put = |batch: &mut WriteBatch, key: Bytes, mut row: Vec<u8>| {
                set_row_seq(&mut row, Seq(self.seq)).unwrap();
                batch.put(Partition::Rows, key, row);
            };
            let place = match &write {
                RowWrite::Update { place, .. } | RowWrite::Delete { place, .. } => *place,
                RowWrite::Insert { .. } | RowWrite::Append { .. } => None,
            };
            if let Some(place) = place {
                put_mark(&mut batch, place, Seq(self.seq));
            }
            match write {
                RowWrite::Insert { key, row } | RowWrite::Update { key, row, .. } => {
                    put(&mut batch, key, row)
                }
                RowWrite::Append { row } => {
                    let key = crate::storage::keys::hidden_key(table.id, scope, Seq(self.seq), ordinal);
                    put(&mut batch, key.into(), row);
                }
                RowWrite::Delete { key, .. } => batch.delete(Partition::Rows, key),
            }
        }
        self.storage.write(batch, false).unwrap();
    }

    fn change(&mut self, change: &ColdChange) {
        self.seq += 1;
        let mut batch = WriteBatch::new();
        let (cold, _) = self.cold.apply(change, Seq(self.seq), &mut batch).unwrap();
        self.storage.write(batch, false).unwrap();
        self.cold = Arc::new(cold);
    }

    /// Makes the hot rows of a table cold. The store keeps them, as before a clean-up.
    pub(super) async fn flush(&mut self, schemas: &Arc<TableSchemas>) {
        let snapshot = self.snapshot();
        if snapshot.seq == self.cold.flushed(schemas.definition.id) {
            return;
        }
        let control = Control::default();
        let flushed = flush(&snapshot, schemas, segment_ids(self.cold.next()), &control, 0).await.unwrap();
        drop(flushed.objects.keep());
        let table = schemas.definition.id;
        self.change(&ColdChange::Flush { table, through: snapshot.seq, added: flushed.segments });
    }

    /// Compacts all segments of a table.
    pub(super) async fn compact(&mut self, schemas: &Arc<TableSchemas>) {
        let snapshot = self.snapshot();
        let table = schemas.definition.id;
        let segments = snapshot.cold.segments(table).to_vec();
        let control = Control::default();
        let compacted =
            compact(&snapshot, schemas, &segments, segment_ids(self.cold.next()), &control, 0).await.unwrap();
        drop(compacted.published.objects.keep());
        let removed = segments.iter().map(|segment| segment.id).collect();
        self.change(&ColdChange::Compact { table, removed, added: compacted.published.segments });
    }

    pub(super) fn insert(
        &mut self,
        schemas: &Arc<TableSchemas>,
        scope: ScopeId,
        columns: Vec<ArrayRef>,
        now_us: i64,
    ) {
        let batch = RecordBatch::try_new(Arc::clone(&schemas.visible), columns).unwrap();
        let writer = RowWriter::new(Arc::clone(schemas), LIMITS).unwrap();
        let writes = writer.inserts(scope, &batch, now_us).unwrap();
        self.commit(&schemas.definition, scope, writes);
    }

    pub(super) fn provider(
        &self,
        schemas: &Arc<TableSchemas>,
        columns: RowSchema,
        scope: ScopeId,
        now_us: i64,
    ) -> Arc<KalamTable> {
        Arc::new(KalamTable::stored(self.snapshot(), Arc::clone(schemas), columns, scope, now_us))
    }

    pub(super) fn context(&self, provider: Arc<KalamTable>) -> SessionContext {
        let mut config = SessionConfig::new().with_target_partitions(2).with_batch_size(self.batch_rows);
        config.options_mut().execution.parquet.schema_force_view_types = false;
        // As in the engine; see docs/sql-correctness.md.
        config.options_mut().execution.enable_file_stream_work_stealing = false;
        let context = SessionContext::new_with_config(config);
        self.cold.store().register(&context.runtime_env());
        context.register_table("t", provider).unwrap();
        context
    }

    pub(super) async fn query(&self, provider: Arc<KalamTable>, sql: &str) -> Vec<RecordBatch> {
        self.context(provider).sql(sql).await.unwrap().collect().await.unwrap()
    }

    /// Returns the first column of a query, which is BIGINT.
    pub(super) async fn numbers(&self, provider: Arc<KalamTable>, sql: &str) -> Vec<i64> {
        let batches = self.query(provider, sql).await;
        batches
            .iter()
            .flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec())
            .collect()
    }

    pub(super) async fn plan(&self, provider: Arc<KalamTable>, sql: &str) -> String {
        let context = self.context(provider);
        let plan = context.sql(sql).await.unwrap().create_physical_plan().await.unwrap();
        displayable(plan.as_ref()).indent(false).to_string()
    }
}

fn segment_ids(first: SegmentId) -> impl Fn() -> SegmentId + Send + Sync + 'static {
    let next = AtomicU32::new(first.0);
    move || SegmentId(next.fetch_add(1, Ordering::Relaxed))
}

fn user(scope: ScopeId, name: &str) -> CatalogChange {
    CatalogChange::PutUser(UserRecord {
        id: UserId(scope.0),
        username: name.into(),
        revision: 1,
        password_hash: None,
        role: Role::User,
        email: None,
        created_at: 0,
        updated_at: 0,
        last_login_at: None,
        auth_generation: 0,
        settings: Default::default(),
    })
}

pub(super) fn definition(
    kind: TableKind,
    columns: &[(&str, ColumnType)],
    key: &[usize],
) -> Arc<TableDefinition> {
    let columns =
        columns.iter().map(|(name, ty)| ColumnDefinition::new(ColumnId(0), *name, *ty, true)).collect();
    let mut options = TableOptions::defaults_for(kind);
    options.ttl_seconds = (kind == TableKind::Stream).then_some(60);
    let created = TableDefinition::create(
        TableId(1000),
        "app".into(),
        "notes".into(),
        kind,
        columns,
        key,
        options,
        UserId::ROOT,
        1,
    );
    Arc::new(created.unwrap())
}

pub(super) fn numbers(values: impl IntoIterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

pub(super) fn texts(values: impl IntoIterator<Item = String>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}
