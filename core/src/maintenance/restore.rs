//! Restores a backup into a new data directory. The restored database has a new id and gets a new secret at
//! its first start, so resume tokens and bearer tokens of the old one are not accepted.
//!
//! Invariant: the directory cannot be opened until everything has been read, verified against its checksum
//! and synced.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use tracing::warn;

use super::backup_store::{BackupStore, BackupUrl};
use super::format::{BackupManifest, BackupObject, MANIFEST, ObjectDigest, damaged, read_store};
use crate::cold_storage::{self, SegmentStore};
use crate::commit;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::{DatabaseId, Seq};
use crate::storage::{DataDirectory, RocksStorage, StorageBackend, StorageOptions, WriteBatch, blocking};

/// Bytes of entries written to the store in one batch.
const BATCH_BYTES: usize = 4 << 20;

/// The result of a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoreSummary {
    /// The id of the new database.
    pub database: DatabaseId,
    /// The id of the database that was backed up.
    pub from: DatabaseId,
    /// The last commit.
    pub seq: Seq,
    /// When it was committed, in microseconds UTC.
    pub commit_ts: i64,
    /// The number of objects in the backup.
    pub objects: usize,
    /// The objects' bytes.
    pub bytes: u64,
}

/// Restores the backup at `url` into `data_dir`, which must be empty or missing. After an error the directory
/// is empty again; after a kill of the process it cannot be opened.
///
/// # Examples
/// ```
/// use datafusion::arrow::array::AsArray;
/// use kalamdb_core::ids::JobId;
/// use kalamdb_core::maintenance::{BackupUrl, restore};
/// use kalamdb_core::{Config, Database};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let folder = tempfile::tempdir()?;
/// let database = Database::open(Config::at(folder.path().join("data"))).await?;
/// let root = database.session_for("root")?;
/// let url = format!("file://{}", folder.path().join("backup").display());
/// let started = root.execute(&format!("BACKUP DATABASE TO '{url}'"), ()).await?.rows()?.collect().await?;
/// let job = JobId(started[0].column(0).as_string::<i32>().value(0).to_owned());
/// database.context().jobs.wait(&job).await;
///
/// let data_dir = folder.path().join("restored");
/// let restored = restore(&BackupUrl::parse(&url)?, &data_dir).await?;
/// assert_eq!(restored.from, database.id());
/// let copy = Database::open(Config::at(data_dir)).await?;
/// # copy.shutdown().await?;
/// # database.shutdown().await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// 42704 when there is no backup; XX001 with the object's name when an object is damaged, missing or
/// unexpected; 55000 when the directory is not empty, or the backup is newer than this program or uses a
/// feature that it does not know; 58030 when something cannot be read or written.
pub async fn restore(url: &BackupUrl, data_dir: &FilePath) -> Result<RestoreSummary> {
    let store = url.open()?;
    let manifest = read_manifest(&store, url).await?;
    check_names(&store, &manifest).await?;
    let path = data_dir.to_owned();
    let features = manifest.features.clone();
    let directory = Arc::new(blocking(move || DataDirectory::begin_restore(&path, features)).await?);
    let outcome = fill(&store, &manifest, &directory).await;
    blocking(move || {
        if outcome.is_ok() {
            directory.end_restore()?;
        } else if let Some(directory) = Arc::into_inner(directory)
            && let Err(error) = directory.undo_restore()
        {
            warn!(%error, "a partial restore could not be removed");
        }
        outcome
    })
    .await
}

async fn read_manifest(store: &BackupStore, url: &BackupUrl) -> Result<BackupManifest> {
    match store.get_small(MANIFEST).await? {
        Some(bytes) => BackupManifest::decode(&bytes),
        None => Err(Error::new(
            ErrorKind::NotFound,
            SqlState::UNDEFINED_OBJECT,
            format!("there is no backup at \"{url}\""),
        )
        .hint(format!("a backup has an object \"{MANIFEST}\", which is written last"))),
    }
}

/// Checks that the location has exactly the objects that the manifest names.
async fn check_names(store: &BackupStore, manifest: &BackupManifest) -> Result<()> {
    let found = store.list().await?;
    let mut named: BTreeMap<&str, bool> = BTreeMap::new();
    for object in &manifest.objects {
        object.location()?;
        if named.insert(&object.path, false).is_some() || object.path == MANIFEST {
            return Err(damaged(MANIFEST, "it names an object twice"));
        }
    }
    for name in found.iter().filter(|name| *name != MANIFEST) {
        match named.get_mut(name.as_str()) {
            Some(there) => *there = true,
            None => {
                return Err(Error::corruption(format!("object \"{name}\" does not belong to the backup"))
                    .hint("remove it if you know where it comes from, or restore another backup"));
            }
        }
    }
    match named.into_iter().find(|(_, there)| !there) {
        Some((name, _)) => Err(Error::corruption(format!("object \"{name}\" of the backup is missing"))
            .hint("copy it again from where the backup was made, or restore another backup")),
        None => Ok(()),
    }
}

async fn fill(
    store: &BackupStore,
    manifest: &BackupManifest,
    directory: &Arc<DataDirectory>,
) -> Result<RestoreSummary> {
    let segments = directory.segments_path();
    let opened = Arc::clone(directory);
    let storage = Arc::new(blocking(move || RocksStorage::open(opened, StorageOptions::default())).await?);
    for object in &manifest.objects {
        if let Some(name) = object.segment() {
            restore_segment(store, object, segments.join(name)).await?;
        } else {
            restore_entries(store, object, &storage).await?;
        }
    }
    let manifest = manifest.clone();
    blocking(move || {
        sync_folders(&segments).map_err(unwritable)?;
        make_new_database(&storage, &manifest, &segments)
    })
    .await
}

async fn restore_segment(store: &BackupStore, object: &BackupObject, file: PathBuf) -> Result<()> {
    let mut writing = blocking(move || {
        let made = file.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| File::create_new(&file));
        Ok((made.map_err(unwritable)?, ObjectDigest::new()))
    })
    .await?;
    let found =
        store.get(&object.location()?).await?.ok_or_else(|| damaged(&object.path, "it is missing"))?;
    let mut pieces = found.into_stream();
    while let Some(piece) = pieces.try_next().await.map_err(|error| store.unreadable(&object.path, error))? {
        let (mut file, mut digest) = writing;
        writing = blocking(move || {
            digest.update(&piece);
            file.write_all(&piece).map_err(unwritable)?;
            Ok((file, digest))
        })
        .await?;
    }
    let (file, digest) = writing;
    digest.verify(object)?;
    blocking(move || file.sync_all().map_err(unwritable)).await
}

/// Restores a store object, or only verifies a small object of another kind.
async fn restore_entries(
    store: &BackupStore,
    object: &BackupObject,
    storage: &Arc<RocksStorage>,
) -> Result<()> {
    let found =
        store.get(&object.location()?).await?.ok_or_else(|| damaged(&object.path, "it is missing"))?;
    if found.meta.size != object.bytes {
        return Err(damaged(&object.path, "its length differs"));
    }
    let bytes: Bytes = found.bytes().await.map_err(|error| store.unreadable(&object.path, error))?;
    let (storage, object) = (Arc::clone(storage), object.clone());
    blocking(move || {
        let mut digest = ObjectDigest::new();
        digest.update(&bytes);
        digest.verify(&object)?;
        if !object.is_store() {
            return Ok(());
        }
        read_store(&object.path, &bytes, BATCH_BYTES, |batch| storage.write(batch, false))
    })
    .await
}

/// Gives the restored store a new database id; checks it against the manifest and for missing segments.
fn make_new_database(
    storage: &RocksStorage,
    manifest: &BackupManifest,
    segments: &FilePath,
) -> Result<RestoreSummary> {
    let database = DatabaseId(uuid::Uuid::new_v4());
    let mut batch = WriteBatch::new();
    let (from, seq, commit_ts) = commit::assign_new_database(&*storage.snapshot(), database, &mut batch)?;
    if (from, seq, commit_ts) != (manifest.database_id, manifest.seq, manifest.commit_ts) {
        return Err(damaged(MANIFEST, "it belongs to another backup"));
    }
    cold_storage::assign_local_storage(&*storage.snapshot(), &mut batch)?;
    storage.write(batch, true)?;
    storage.sync()?;
    let restored = storage.snapshot();
    commit::inspect(&*restored)?;
    let cold = cold_storage::restore(&*restored, SegmentStore::in_folder(segments, 0)?, None)?;
    for segment in cold.all_segments() {
        let is_there =
            fs::metadata(segments.join(&segment.path)).is_ok_and(|file| file.len() == segment.bytes);
        if !is_there {
            return Err(Error::corruption(format!("segment \"{}\" of the backup is missing", segment.path))
                .hint("restore another backup"));
        }
    }
    let bytes = manifest.objects.iter().map(|object| object.bytes).sum();
    Ok(RestoreSummary { database, from, seq, commit_ts, objects: manifest.objects.len() + 1, bytes })
}

/// The names of the segments are durable once their folders are synced.
fn sync_folders(segments: &FilePath) -> io::Result<()> {
    fs::create_dir_all(segments)?;
    for folder in fs::read_dir(segments)? {
        File::open(folder?.path())?.sync_all()?;
    }
    File::open(segments)?.sync_all()
}

fn unwritable(error: io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, SqlState::IO_ERROR, "the data directory cannot be written")
        .hint("check the free space and the permissions of the data directory")
        .source(error)
}
