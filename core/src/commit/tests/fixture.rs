//! A committer over a store whose writes can be held back or made to fail.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use arrow::array::{ArrayRef, Int64Array, StringArray};
use bytes::Bytes;
use parking_lot::Mutex;

use crate::access::Role;
use crate::clock::ManualClock;
use crate::commit::{Committer, CommitterOptions, Receipt, RowWrite, Snapshot, TableWrite, WriteSet};
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::{ColumnId, ScopeId, Seq, TableId, UserId};
use crate::schema_registry::{
    CatalogChange, ColumnDefinition, TableDefinition, TableKind, TableOptions, UserRecord,
};
use crate::storage::keys::KeyEncoder;
use crate::storage::rows::{RowEncoder, row_seq};
use crate::storage::{
    Direction, KeyRange, Partition, RocksStorage, StorageBackend, StorageMetrics, StorageOptions,
    StorageSnapshot, WriteBatch,
};
use crate::types::ColumnType;

pub(super) const START_US: i64 = 1_700_000_000_000_000;
pub(super) const ANN: UserId = UserId(1);
pub(super) const BOB: UserId = UserId(2);

/// A store in memory under control of a test.
pub(super) struct TestStorage {
    inner: RocksStorage,
    gate: Mutex<Option<(SyncSender<()>, Receiver<()>)>>,
    /// The fault of the next write, and of all later ones until the store is reopened.
    pub(super) fault: Mutex<Option<Fault>>,
    pub(super) reopen_fails: AtomicBool,
    /// Whether the next write panics.
    pub(super) write_panics: AtomicBool,
    pub(super) synced_writes: AtomicUsize,
    pub(super) writes: AtomicUsize,
}

/// How a write fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing reaches the disk.
    Lost,
    /// The batch reaches the disk, but the write reports a failure.
    Kept,
}

/// A write that is held inside the store.
pub(super) struct Held {
    entered: Receiver<()>,
    release: SyncSender<()>,
}

impl Held {
    /// Waits until the write is in the store.
    pub(super) fn entered(&self) {
        self.entered.recv().unwrap();
    }

    /// Lets the write continue.
    pub(super) fn release(self) {
        self.release.send(()).unwrap();
    }
}

impl TestStorage {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: RocksStorage::in_memory(StorageOptions::default()).unwrap(),
            gate: Mutex::new(None),
            fault: Mutex::new(None),
            reopen_fails: AtomicBool::new(false),
            write_panics: AtomicBool::new(false),
            synced_writes: AtomicUsize::new(0),
            writes: AtomicUsize::new(0),
        })
    }

    /// Holds the next write.
    pub(super) fn hold_next_write(&self) -> Held {
        let (enter, entered) = sync_channel(1);
        let (release, released) = sync_channel(1);
        *self.gate.lock() = Some((enter, released));
        Held { entered, release }
    }
}

impl StorageBackend for TestStorage {
    fn snapshot(&self) -> Arc<dyn StorageSnapshot> {
        self.inner.snapshot()
    }

    fn write(&self, batch: WriteBatch, sync: bool) -> Result<()> {
        let gate = self.gate.lock().take();
        if let Some((enter, released)) = gate {
            enter.send(()).unwrap();
            released.recv().unwrap();
        }
        assert!(!self.write_panics.load(Ordering::SeqCst), "a test lets the write panic");
        let fault = *self.fault.lock();
        if let Some(fault) = fault {
            if fault == Fault::Kept {
                self.inner.write(batch, sync)?;
            }
            return Err(Error::new(ErrorKind::Unavailable, SqlState::IO_ERROR, "the disk is gone"));
        }
        self.writes.fetch_add(1, Ordering::SeqCst);
        self.synced_writes.fetch_add(usize::from(sync), Ordering::SeqCst);
        self.inner.write(batch, sync)
    }

    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }

    fn reopen(&self) -> Result<()> {
        if self.reopen_fails.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, SqlState::IO_ERROR, "the disk is still gone"));
        }
        self.fault.lock().take();
        self.inner.reopen()
    }

    fn metrics(&self) -> StorageMetrics {
        self.inner.metrics()
    }
}

pub(super) struct Fixture {
    pub(super) storage: Arc<TestStorage>,
    pub(super) clock: Arc<ManualClock>,
    pub(super) committer: Arc<Committer>,
    /// `public.shared (id BIGINT PRIMARY KEY, note TEXT)`.
    pub(super) shared: Arc<TableDefinition>,
    /// The same columns, as a USER table.
    pub(super) user: Arc<TableDefinition>,
    /// The same columns, without a primary key.
    pub(super) keyless: Arc<TableDefinition>,
}

impl Fixture {
    /// Creates a database with users 1 and 2 and the three tables, in commit 1.
    pub(super) async fn new() -> Self {
        let storage = TestStorage::new();
        let clock = Arc::new(ManualClock::new(START_US));
        let committer = open(&storage, &clock).unwrap();
        let shared = table(TableId(1000), "shared", TableKind::Shared, &[0]);
        let user = table(TableId(1001), "user", TableKind::User, &[0]);
        let keyless = table(TableId(1002), "keyless", TableKind::Shared, &[]);
        let mut set = WriteSet::new(UserId::SYSTEM, Seq::ZERO);
        set.catalog = [(ANN, "ann"), (BOB, "bob")].map(|(id, name)| put_user(id, name)).to_vec();
        let tables = [&shared, &user, &keyless];
        set.catalog.extend(tables.map(|table| CatalogChange::PutTable(TableDefinition::clone(table))));
        committer.commit(set).await.unwrap();
        Self { storage, clock, committer, shared, user, keyless }
    }

    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.committer.snapshot()
    }

    /// Returns a set of one table, planned on the current snapshot.
    pub(super) fn set(&self, table: &Arc<TableDefinition>, scope: ScopeId, rows: Vec<RowWrite>) -> WriteSet {
        let mut set = WriteSet::new(ANN, self.committer.seq());
        set.tables.push(TableWrite { table: Arc::clone(table), scope, rows });
        set
    }

    pub(super) async fn insert(&self, id: i64, note: &str) -> Result<Receipt> {
        self.committer
            .commit(self.set(
                &self.shared,
                ScopeId::SHARED,
                vec![insert(&self.shared, ScopeId::SHARED, id, note)],
            ))
            .await
    }

    pub(super) fn update(&self, snapshot: &Snapshot, id: i64, note: &str) -> WriteSet {
        let (key, old) = stored(snapshot, &self.shared, ScopeId::SHARED, id).unwrap();
        let expected = row_seq(&old).unwrap();
        let mut set = self.set(
            &self.shared,
            ScopeId::SHARED,
            vec![RowWrite::Update { key, expected, old, row: encoded(&self.shared, id, note), place: None }],
        );
        set.read_seq = snapshot.seq;
        set
    }
}

pub(super) fn open(storage: &Arc<TestStorage>, clock: &Arc<ManualClock>) -> Result<Arc<Committer>> {
    let (storage, clock) = (Arc::clone(storage), Arc::clone(clock));
    Committer::open(storage, None, clock, CommitterOptions::default())
}

pub(super) fn put_user(id: UserId, name: &str) -> CatalogChange {
    CatalogChange::PutUser(UserRecord {
        id,
        username: name.into(),
        password_hash: None,
        role: Role::User,
        email: None,
        created_at: START_US,
        updated_at: START_US,
        last_login_at: None,
        auth_generation: 0,
        settings: Default::default(),
        revision: 1,
    })
}

pub(super) fn table(id: TableId, name: &str, kind: TableKind, key: &[usize]) -> Arc<TableDefinition> {
    let columns = vec![
        ColumnDefinition::new(ColumnId(1), "id", ColumnType::BigInt, false),
        ColumnDefinition::new(ColumnId(2), "note", ColumnType::Text, true),
    ];
    let options = TableOptions::defaults_for(kind);
    let table =
        TableDefinition::create(id, "public".into(), name.into(), kind, columns, key, options, ANN, START_US);
    Arc::new(table.unwrap())
}

pub(super) fn key(table: &TableDefinition, scope: ScopeId, id: i64) -> Bytes {
    let encoder = KeyEncoder::new(&table.key_types()).unwrap();
    encoder.encode_values(table.id, scope, &[id.into()]).unwrap().into()
}

pub(super) fn encoded(table: &TableDefinition, id: i64, note: &str) -> Vec<u8> {
    let columns: [ArrayRef; 2] =
        [Arc::new(Int64Array::from(vec![id])), Arc::new(StringArray::from(vec![note]))];
    let types = table.columns.iter().map(|column| column.ty).collect();
    RowEncoder::new(table.version, types).encode(&columns, 1, None).unwrap().remove(0)
}

pub(super) fn insert(table: &TableDefinition, scope: ScopeId, id: i64, note: &str) -> RowWrite {
    RowWrite::Insert { key: key(table, scope, id), row: encoded(table, id, note) }
}

/// Returns key and bytes of a stored row.
pub(super) fn stored(
    snapshot: &Snapshot,
    table: &TableDefinition,
    scope: ScopeId,
    id: i64,
) -> Option<(Bytes, Bytes)> {
    let key = key(table, scope, id);
    let row = snapshot.storage.get(Partition::Rows, &key).unwrap()?;
    Some((key, row))
}

/// Returns everything in a partition under a prefix.
pub(super) fn dump(
    storage: &dyn StorageSnapshot,
    partition: Partition,
    prefix: &[u8],
) -> BTreeMap<Vec<u8>, Vec<u8>> {
    storage
        .scan(partition, KeyRange::prefix(prefix), Direction::Forward)
        .map(|entry| entry.map(|(key, value)| (key.into_vec(), value.into_vec())))
        .collect::<Result<_>>()
        .unwrap()
}

pub(super) fn state_of(result: &Result<Receipt>) -> &'static str {
    result.as_ref().map_or_else(|error| error.sqlstate().0, |_| "ok")
}
