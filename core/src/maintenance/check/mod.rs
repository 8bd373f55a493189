//! Reads everything in a closed database and compares it: the store with itself, rows with their tables,
//! segments with their checksums, hot rows with cold ones.
//!
//! | file | its one job |
//! |---|---|
//! | `store` | catalog, change log and the entries about segments |
//! | `table` | the rows of a table: each key has one live row |
//! | `segment` | one segment |
//!
//! Invariant: the check changes nothing and begins no epoch. A problem does not stop the check of the rest.

mod segment;
mod store;
mod table;

use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::change_log;
use crate::cold_storage::{self, SegmentStore};
use crate::commit::{self, Snapshot};
use crate::error::{Error, Result};
use crate::hot_tier::{HotChunks, HotOptions};
use crate::ids::{DatabaseId, Epoch, Seq};
use crate::schema_registry::{SchemaRegistry, StorageRecord};
use crate::storage::{DataDirectory, RocksStorage, StorageBackend, StorageOptions, blocking};

/// Problems that are listed; further ones are only counted.
const PROBLEMS_MAX: usize = 1_000;
/// Bytes of segment footers and key filters kept in memory.
const CACHE_BYTES: usize = 64 << 20;

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckReport {
    /// The id of the database.
    pub database: DatabaseId,
    /// The epoch in which the database was last open.
    pub epoch: Epoch,
    /// The last commit.
    pub seq: Seq,
    /// The tables, ordered by namespace and name.
    pub tables: Vec<TableReport>,
    /// Files of uncommitted flushes and compactions. They do no harm; opening the database removes them.
    pub orphans: Vec<String>,
    /// The problems, each with the name of its object.
    pub problems: Vec<String>,
    /// The number of problems that are not listed.
    pub more_problems: u64,
}

impl CheckReport {
    /// Returns whether no problem was found.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty()
    }
}

/// The counts of one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableReport {
    /// The qualified name.
    pub name: String,
    /// Rows in the store.
    pub hot: u64,
    /// Live rows in segments.
    pub cold: u64,
    /// Rows in segments that were overwritten or deleted since.
    pub deleted: u64,
    /// Segments.
    pub segments: u64,
    /// The segments' bytes.
    pub bytes: u64,
}

impl fmt::Display for TableReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, hot, cold, deleted, segments, bytes } = self;
        write!(
            f,
            "{name}: {hot} rows hot, {cold} cold, {deleted} deleted, {segments} segments of {bytes} bytes"
        )
    }
}

/// Collects problems.
#[derive(Debug, Default)]
struct Problems {
    told: Vec<String>,
    more: u64,
}

impl Problems {
    fn note(&mut self, problem: impl Into<String>) {
        if self.told.len() < PROBLEMS_MAX {
            self.told.push(problem.into());
        } else {
            self.more += 1;
        }
    }

    /// Notes that reading `what` failed; `what` names the object if the error does not.
    fn note_error(&mut self, what: &str, error: &Error) {
        self.note(format!("{what}: {}", error.message()));
    }
}

/// Checks the database in `data_dir`, which no process may have open.
///
/// # Examples
/// ```
/// use kalamdb_core::maintenance::check;
/// use kalamdb_core::{Config, Database};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let folder = tempfile::tempdir()?;
/// let data_dir = folder.path().join("data");
/// let database = Database::open(Config::at(&data_dir)).await?;
/// database.shutdown().await?;
/// drop(database);
///
/// let report = check(&data_dir).await?;
/// assert!(report.is_sound());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// 42704 when there is no database, 55000 when a process has it open or its format is newer, XX001 when the
/// store cannot be opened or its state cannot be read, so that nothing else can be checked.
pub async fn check(data_dir: &Path) -> Result<CheckReport> {
    let path = data_dir.to_owned();
    let (snapshot, database, synced) = blocking(move || open(&path)).await?;
    let mut problems = Problems::default();
    if let Some(synced) = synced.filter(|synced| *synced > snapshot.seq) {
        problems.note(format!(
            "the store ends at commit {}, but commit {synced} was synced to disk",
            snapshot.seq
        ));
    }
    let registry = Arc::new(SchemaRegistry::new());
    let (mut problems, snapshot) = {
        let registry = Arc::clone(&registry);
        blocking(move || {
            store::check(&snapshot, database, &registry, &mut problems)?;
            Ok((problems, snapshot))
        })
        .await?
    };
    let mut tables = Vec::new();
    for definition in snapshot.catalog.tables() {
        tables.push(table::check(&snapshot, &registry.schemas(definition), &mut problems).await);
    }
    let orphans = orphans(&snapshot, &mut problems).await;
    Ok(CheckReport {
        database,
        epoch: snapshot.epoch,
        seq: snapshot.seq,
        tables,
        orphans,
        problems: problems.told,
        more_problems: problems.more,
    })
}

/// Opens the store read-only. Also returns the database's id and the last commit known to be on disk.
fn open(path: &Path) -> Result<(Arc<Snapshot>, DatabaseId, Option<Seq>)> {
    let directory = Arc::new(DataDirectory::open_existing(path)?);
    let synced = directory.synced_seq().map(|(_, seq)| seq);
    let segments = directory.segments_path();
    let storage = RocksStorage::open_read_only(directory, StorageOptions::default())?.snapshot();
    let state = commit::inspect(&*storage)?;
    // A missing folder is not created: each of its segments is a problem.
    let store = match segments.is_dir() {
        true => SegmentStore::in_folder(&segments, CACHE_BYTES)?,
        false => SegmentStore::in_memory(CACHE_BYTES),
    };
    store.set_storages(state.database, state.catalog.storages().map(StorageRecord::location));
    let cold = cold_storage::restore(&*storage, store, None)?;
    let log_floor = change_log::floor(&*storage)?;
    let snapshot = Snapshot {
        seq: state.seq,
        commit_ts: state.commit_ts,
        epoch: state.epochs.current(),
        catalog: Arc::new(state.catalog),
        storage,
        hot: Arc::new(HotChunks::new(HotOptions::of_bytes(0), state.seq)),
        cold: Arc::new(cold),
        log_floor,
    };
    Ok((Arc::new(snapshot), state.database, synced))
}

/// Lists objects in the storages that belong to no segment. A storage that cannot be listed is a problem.
async fn orphans(snapshot: &Snapshot, problems: &mut Problems) -> Vec<String> {
    let store = snapshot.cold.store();
    let mut known: HashSet<String> =
        snapshot.cold.all_segments().map(|segment| segment.path.clone()).collect();
    known.extend(store.retired_paths());
    let known = |path: &str| known.contains(path);
    let mut orphans = Vec::new();
    for id in store.storage_ids() {
        let found = async { store.storage(&id)?.orphans(&known).await };
        match found.await {
            Ok(found) => orphans.extend(found),
            Err(error) => problems.note_error(&format!("storage \"{id}\""), &error),
        }
    }
    orphans.sort();
    orphans
}
