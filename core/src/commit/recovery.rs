//! Opening a store: its recorded state is checked, and a new epoch begins.
//!
//! ```text
//! Meta   "database_id" -> 16 bytes
//!        "last_commit" -> seq u64 BE | commit_ts i64 BE
//!        "epoch" -> u32 BE, the present one
//!        "epoch_end/" epoch u32 BE -> seq u64 BE, the last commit of an epoch that has ended
//! ```
//!
//! Invariant: an epoch ends with the last commit that was recovered. A seq beyond the end of its epoch names
//! a lost commit, so it is never mistaken for the later commit with the same number.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Snapshot;
use super::redo::{CATALOG_HEADER_KEY, CATALOG_PREFIX, put_header, put_record};
use crate::change_log;
use crate::clock::Clock;
use crate::cold_storage::{self, SegmentStore};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::hot_tier::{HotChunks, HotOptions};
use crate::ids::{DatabaseId, Epoch, Seq};
use crate::schema_registry::{Catalog, CatalogChange, CatalogHeader, StorageRecord};
use crate::storage::{
    DataDirectory, Direction, KeyRange, Partition, StorageBackend, StorageSnapshot, WriteBatch,
};

const DATABASE_ID_KEY: &[u8] = b"database_id";
const LAST_COMMIT_KEY: &[u8] = b"last_commit";
const EPOCH_KEY: &[u8] = b"epoch";
const EPOCH_END_PREFIX: &[u8] = b"epoch_end/";

/// Which seqs of which epochs are part of the database's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochHistory {
    current: Epoch,
    ends: BTreeMap<Epoch, Seq>,
}

impl EpochHistory {
    /// Returns the current epoch.
    pub fn current(&self) -> Epoch {
        self.current
    }

    /// Whether commit `seq` of `epoch` was kept, as far as epochs can tell.
    pub fn contains(&self, epoch: Epoch, seq: Seq) -> bool {
        epoch == self.current || self.ends.get(&epoch).is_some_and(|end| seq <= *end)
    }
}

/// The open store, and what its recovery needs.
pub(super) struct OpenStore {
    pub(super) storage: Arc<dyn StorageBackend>,
    /// `None` for a database in memory; then the synced seq is not recorded.
    pub(super) directory: Option<Arc<DataDirectory>>,
    pub(super) clock: Arc<dyn Clock>,
    /// Sizes of the hot tier, which starts empty in every epoch.
    pub(super) hot: HotOptions,
}

/// The state that a committer starts from, or continues from after a reopening.
pub(super) struct Recovered {
    pub(super) database: DatabaseId,
    pub(super) epochs: EpochHistory,
    pub(super) snapshot: Snapshot,
}

pub(super) fn put_last_commit(batch: &mut WriteBatch, seq: Seq, commit_ts: i64) {
    let value = [seq.0.to_be_bytes(), commit_ts.to_be_bytes()].concat();
    batch.put(Partition::Meta, LAST_COMMIT_KEY, value);
}

/// Reads the state of the store, or creates that of a new database, and begins the next epoch. `seen` is the
/// snapshot that was installed before a reopening.
///
/// # Errors
/// `Corruption` when the store is inconsistent, or ends before the last commit known to be on disk or seen.
pub(super) fn recover(
    store: &OpenStore,
    segments: Arc<SegmentStore>,
    seen: Option<&Snapshot>,
) -> Result<Recovered> {
    let (directory, now_us) = (store.directory.as_deref(), store.clock.now_us());
    let before = store.storage.snapshot();
    let mut batch = WriteBatch::new();
    let stored = match before.get(Partition::Meta, DATABASE_ID_KEY)? {
        Some(id) => stored_state(&*before, &id)?,
        None => new_state(&*before, &mut batch, now_us)?,
    };
    let StoredState { database, seq, commit_ts, catalog, mut epochs } = stored;
    if let Some((_, synced)) = directory.and_then(DataDirectory::synced_seq)
        && seq < synced
    {
        return Err(Error::corruption(format!(
            "the store ends at commit {seq}, but commit {synced} was synced to disk"
        ))
        .hint("restore the data directory from a backup"));
    }
    if let Some(seen) = seen
        && seq < seen.seq
    {
        // Readers have seen the lost commits, so this process cannot go on without them.
        return Err(Error::corruption(format!(
            "the store ends at commit {seq}; relaxed commits up to {} were lost",
            seen.seq
        ))
        .hint("restart the server; live queries then start over"));
    }
    if epochs.current != Epoch(0) {
        let key = [EPOCH_END_PREFIX, &epochs.current.0.to_be_bytes()].concat();
        batch.put(Partition::Meta, key, seq.0.to_be_bytes().to_vec());
        epochs.ends.insert(epochs.current, seq);
    }
    epochs.current =
        Epoch(epochs.current.0.checked_add(1).ok_or_else(|| Error::internal("no epochs are left"))?);
    batch.put(Partition::Meta, EPOCH_KEY, epochs.current.0.to_be_bytes().to_vec());
    failpoint::step("recover::epoch")?;
    store.storage.write(batch, true)?;
    failpoint::step("recover::recovered")?;
    if let Some(directory) = directory {
        directory.note_synced_seq(epochs.current, seq);
    }
    let storage = store.storage.snapshot();
    let log_floor = change_log::floor(&*storage)?;
    segments.set_storages(database, catalog.storages().map(StorageRecord::location));
    let cold = cold_storage::restore(&*storage, segments, seen.map(|seen| &*seen.cold))?;
    let snapshot = Snapshot {
        seq,
        commit_ts,
        epoch: epochs.current,
        catalog: Arc::new(catalog),
        storage,
        hot: Arc::new(HotChunks::new(store.hot, seq)),
        cold: Arc::new(cold),
        log_floor,
    };
    Ok(Recovered { database, epochs, snapshot })
}

/// The recorded state of a store, independent of the process that has it open.
pub(crate) struct StoredState {
    pub(crate) database: DatabaseId,
    pub(crate) seq: Seq,
    pub(crate) commit_ts: i64,
    pub(crate) catalog: Catalog,
    pub(crate) epochs: EpochHistory,
}

/// Reads the state of a store without changing it.
///
/// # Errors
/// `Corruption` when the state is missing or inconsistent.
pub(crate) fn inspect(storage: &dyn StorageSnapshot) -> Result<StoredState> {
    match storage.get(Partition::Meta, DATABASE_ID_KEY)? {
        Some(id) => stored_state(storage, &id),
        None => Err(damaged("the database id is missing")),
    }
}

/// Whether a key of the `Meta` partition belongs to the state.
pub(crate) fn is_state_key(key: &[u8]) -> bool {
    [DATABASE_ID_KEY, LAST_COMMIT_KEY, EPOCH_KEY, CATALOG_HEADER_KEY].contains(&key)
        || [EPOCH_END_PREFIX, CATALOG_PREFIX.as_bytes()].iter().any(|prefix| key.starts_with(prefix))
}

/// Turns a copy of a store, which has no change log, into a separate database: `batch` gives it a new id and
/// a log floor, so that no client resumes from before. Returns the id and the last commit of the original.
///
/// # Errors
/// As [`inspect`].
pub(crate) fn assign_new_database(
    copy: &dyn StorageSnapshot,
    database: DatabaseId,
    batch: &mut WriteBatch,
) -> Result<(DatabaseId, Seq, i64)> {
    let id =
        copy.get(Partition::Meta, DATABASE_ID_KEY)?.ok_or_else(|| damaged("the database id is missing"))?;
    let (seq, commit_ts) = stored_last_commit(copy)?;
    batch.put(Partition::Meta, DATABASE_ID_KEY, database.0.as_bytes().to_vec());
    change_log::put_floor(batch, seq);
    Ok((database_id(&id)?, seq, commit_ts))
}

fn database_id(id: &[u8]) -> Result<DatabaseId> {
    uuid::Uuid::from_slice(id).map(DatabaseId).map_err(|_| damaged("the database id is invalid"))
}

fn new_state(before: &dyn StorageSnapshot, batch: &mut WriteBatch, now_us: i64) -> Result<StoredState> {
    for partition in Partition::ALL {
        if before.scan(partition, KeyRange::all(), Direction::Forward).next().transpose()?.is_some() {
            return Err(damaged("it has data but no database id"));
        }
    }
    let database = DatabaseId(uuid::Uuid::new_v4());
    let catalog = Catalog::initial(now_us);
    batch.put(Partition::Meta, DATABASE_ID_KEY, database.0.as_bytes().to_vec());
    put_header(batch, catalog.header())?;
    for record in catalog.records() {
        put_record(batch, &record)?;
    }
    put_last_commit(batch, Seq::ZERO, now_us);
    let epochs = EpochHistory { current: Epoch(0), ends: BTreeMap::new() };
    Ok(StoredState { database, seq: Seq::ZERO, commit_ts: now_us, catalog, epochs })
}

fn stored_state(before: &dyn StorageSnapshot, id: &[u8]) -> Result<StoredState> {
    let database = database_id(id)?;
    let (seq, commit_ts) = stored_last_commit(before)?;
    check_log_end(before, database, seq)?;
    let current = before.get(Partition::Meta, EPOCH_KEY)?.ok_or_else(|| damaged("the epoch is missing"))?;
    let mut epochs =
        EpochHistory { current: Epoch(u32::from_be_bytes(fixed(&current)?)), ends: BTreeMap::new() };
    for entry in before.scan(Partition::Meta, KeyRange::prefix(EPOCH_END_PREFIX), Direction::Forward) {
        let (key, value) = entry?;
        let epoch = Epoch(u32::from_be_bytes(fixed(key.get(EPOCH_END_PREFIX.len()..).unwrap_or_default())?));
        epochs.ends.insert(epoch, Seq(u64::from_be_bytes(fixed(&value)?)));
    }
    Ok(StoredState { database, seq, commit_ts, catalog: stored_catalog(before)?, epochs })
}

fn stored_last_commit(before: &dyn StorageSnapshot) -> Result<(Seq, i64)> {
    let value =
        before.get(Partition::Meta, LAST_COMMIT_KEY)?.ok_or_else(|| damaged("the last commit is missing"))?;
    let (seq, commit_ts) = value.split_at_checked(8).ok_or_else(|| damaged("the last commit is cut off"))?;
    Ok((Seq(u64::from_be_bytes(fixed(seq)?)), i64::from_be_bytes(fixed(commit_ts)?)))
}

/// State and log are written together, so they end at the same commit.
fn check_log_end(before: &dyn StorageSnapshot, database: DatabaseId, seq: Seq) -> Result<()> {
    match change_log::last_header(before)? {
        Some(header) if header.seq == seq && header.database == database => Ok(()),
        None if change_log::floor(before)? == seq => Ok(()),
        _ => Err(damaged("the change log does not end at the last commit")),
    }
}

fn stored_catalog(before: &dyn StorageSnapshot) -> Result<Catalog> {
    let header =
        before.get(Partition::Meta, CATALOG_HEADER_KEY)?.ok_or_else(|| damaged("the catalog is missing"))?;
    let header: CatalogHeader = serde_json::from_slice(&header)
        .map_err(|error| damaged("the catalog's header cannot be read").source(error))?;
    let mut records = Vec::new();
    for entry in before.scan(Partition::Meta, KeyRange::prefix(CATALOG_PREFIX), Direction::Forward) {
        let (key, value) = entry?;
        let record: CatalogChange = serde_json::from_slice(&value)
            .map_err(|error| damaged("a record of the catalog cannot be read").source(error))?;
        if *key != *format!("{CATALOG_PREFIX}{}", record.record_key()).as_bytes() {
            return Err(damaged("a record of the catalog is stored under the wrong key"));
        }
        records.push(record);
    }
    Catalog::restore(header, records)
}

fn fixed<const N: usize>(bytes: &[u8]) -> Result<[u8; N]> {
    bytes.try_into().map_err(|_| damaged("a number has the wrong length"))
}

fn damaged(why: &str) -> Error {
    Error::corruption(format!("the state of the store is damaged: {why}"))
        .hint("restore the data directory from a backup")
}
