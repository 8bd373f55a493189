//! Writes a snapshot of an open database into a backup. Commits, flushes and compactions go on meanwhile: the
//! snapshot keeps its rows and segments from being removed.
//!
//! Invariant: a backup holds the rows of exactly one seq. A backup that cannot be completed is removed.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::WriteMultipart;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::backup_store::{BackupStore, BackupUrl};
use super::format::{BackupManifest, CLAIM, MANIFEST, ObjectDigest, SEGMENTS, STORE, StoreWriter};
use crate::cold_storage::{Segment, is_removal};
use crate::commit::{Committer, Snapshot};
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::failpoint;
use crate::ids::{JobId, Seq};
use crate::storage::{Direction, KeyRange, Partition, blocking};

/// The partitions of the store that a backup includes.
const PARTITIONS: [Partition; 3] = [Partition::Meta, Partition::Rows, Partition::Cold];
/// Bytes of stored entries per object; a larger entry has its own object.
const CHUNK_BYTES: usize = 8 << 20;
/// Parts of one object that are uploaded at the same time.
const UPLOADS_MAX: usize = 2;
/// How long a running operation may continue after a stop: an abandoned one may still take effect later.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// How long removing the objects may take. Leftovers without a manifest are recognisably no backup.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(4);

/// The result of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupSummary {
    /// The last commit in the backup.
    pub seq: Seq,
    /// The number of objects.
    pub objects: usize,
    /// The objects' bytes.
    pub bytes: u64,
}

/// Writes the database as of its last commit to `url`, which must be empty except for leftovers of the same
/// job.
///
/// # Errors
/// 42710 when `url` is not empty, 57014 when `stop` is cancelled, 58030 when it cannot be written, XX001 for
/// damaged segments.
pub async fn back_up(
    committer: &Committer,
    url: &BackupUrl,
    job: &JobId,
    stop: &CancellationToken,
) -> Result<BackupSummary> {
    let snapshot = committer.snapshot();
    let mut backup = Backup {
        store: url.create().await?,
        // A feature is recorded before its first use, so these are all features of the snapshot.
        manifest: BackupManifest::new(committer.database_id(), &snapshot, committer.features()),
        snapshot,
        stop: stop.clone(),
        begun: Vec::new(),
        upload: None,
    };
    let outcome = tokio::select! {
        outcome = backup.run(url, job) => outcome,
        () = async {
            stop.cancelled().await;
            tokio::time::sleep(STOP_GRACE).await;
        } => Err(cancelled()),
    };
    if outcome.is_err() {
        backup.remove_partial().await;
    }
    outcome
}

struct Backup {
    store: BackupStore,
    snapshot: Arc<Snapshot>,
    manifest: BackupManifest,
    stop: CancellationToken,
    /// Objects that may exist; empty until this backup has claimed the location.
    begun: Vec<String>,
    /// The multipart upload in progress.
    upload: Option<WriteMultipart>,
}

impl Backup {
    async fn run(&mut self, url: &BackupUrl, job: &JobId) -> Result<BackupSummary> {
        self.check_stop()?;
        let claim = Bytes::from(format!("kalamdb backup\njob {job}\n"));
        self.claim(url, &claim).await?;
        self.begun.push(CLAIM.to_owned());
        failpoint::step("backup::claimed")?;
        let mut digest = ObjectDigest::new();
        digest.update(&claim);
        self.manifest.objects.push(digest.finish(CLAIM.to_owned()));
        for partition in PARTITIONS {
            self.write_partition(partition).await?;
        }
        failpoint::step("backup::store")?;
        let segments: Vec<Arc<Segment>> = self.snapshot.cold.all_segments().map(Arc::clone).collect();
        for segment in segments {
            self.write_segment(&segment).await?;
            failpoint::step("backup::segment")?;
        }
        self.store.sync(self.begun.clone()).await?;
        failpoint::step("backup::synced")?;
        self.write_manifest().await?;
        failpoint::step("backup::written")?;
        self.store.sync(vec![MANIFEST.to_owned()]).await?;
        let objects = &self.manifest.objects;
        let bytes = objects.iter().map(|object| object.bytes).sum();
        Ok(BackupSummary { seq: self.manifest.seq, objects: objects.len() + 1, bytes })
    }

    fn check_stop(&self) -> Result<()> {
        if self.stop.is_cancelled() { Err(cancelled()) } else { Ok(()) }
    }

    /// Claims the location for this job alone.
    async fn claim(&mut self, url: &BackupUrl, claim: &Bytes) -> Result<()> {
        let fresh = self.store.create(CLAIM, claim.clone()).await?;
        let own = fresh || self.store.get_small(CLAIM).await?.as_ref() == Some(claim);
        let mut others = self.store.list().await?;
        others.retain(|name| name != CLAIM);
        match (fresh, own) {
            (_, false) => Err(taken(url, &others)),
            (true, _) if others.is_empty() => Ok(()),
            (true, _) => {
                self.store.remove(vec![CLAIM.to_owned()]).await?;
                Err(taken(url, &others))
            }
            // An earlier attempt of this job could not remove what it had written.
            (false, true) => remove(&self.store, others).await,
        }
    }

    async fn write_partition(&mut self, partition: Partition) -> Result<()> {
        let mut rest = Some(KeyRange::all());
        while let Some(range) = rest {
            self.check_stop()?;
            let snapshot = Arc::clone(&self.snapshot);
            let path = format!("{STORE}/{:08}.zst", self.begun.len());
            let (object, bytes, next) = blocking(move || {
                let (chunk, next) = chunk(&snapshot, partition, range)?;
                let bytes = chunk.finish()?;
                let mut digest = ObjectDigest::new();
                digest.update(&bytes);
                Ok((digest.finish(path), bytes, next))
            })
            .await?;
            rest = next;
            self.begun.push(object.path.clone());
            self.store.put(&object.path, bytes.into()).await?;
            self.manifest.objects.push(object);
        }
        Ok(())
    }

    async fn write_segment(&mut self, segment: &Arc<Segment>) -> Result<()> {
        let path = format!("{SEGMENTS}/{}", segment.path);
        self.begun.push(path.clone());
        let mut pieces = self.snapshot.cold.store().bytes(segment);
        let mut digest = ObjectDigest::new();
        let upload = self.upload.insert(self.store.put_parts(&path).await?);
        while let Some(piece) = pieces.try_next().await? {
            if self.stop.is_cancelled() {
                return Err(cancelled());
            }
            let same = piece.clone();
            digest = blocking(move || {
                digest.update(&same);
                Ok(digest)
            })
            .await?;
            let free = upload.wait_for_capacity(UPLOADS_MAX).await;
            free.map_err(|error| self.store.unwritable(&path, error))?;
            upload.put(piece);
        }
        if let Some(upload) = self.upload.take() {
            upload.finish().await.map_err(|error| self.store.unwritable(&path, error))?;
        }
        self.manifest.objects.push(digest.finish(path));
        Ok(())
    }

    async fn write_manifest(&mut self) -> Result<()> {
        self.check_stop()?;
        let manifest = Bytes::from(self.manifest.encode()?);
        let created = self.store.create(MANIFEST, manifest.clone()).await;
        if created.as_ref().is_ok_and(|created| *created) {
            return Ok(());
        }
        // A put may have succeeded although its answer was lost.
        match (self.store.get_small(MANIFEST).await?, created) {
            (Some(found), _) if found == manifest => Ok(()),
            (_, Err(error)) => Err(error),
            (..) => Err(Error::internal("another process wrote to the backup's location")),
        }
    }

    /// Removes what was written, as far as possible.
    async fn remove_partial(&mut self) {
        let begun = std::mem::take(&mut self.begun);
        if begun.is_empty() {
            // This backup never claimed the location.
            return;
        }
        let upload = self.upload.take();
        let removal = async {
            if let Some(upload) = upload
                && let Err(error) = upload.abort().await
            {
                return Err(self.store.unwritable(MANIFEST, error));
            }
            remove(&self.store, begun).await
        };
        match tokio::time::timeout(REMOVAL_TIMEOUT, removal).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "a partial backup could not be removed"),
            Err(_) => warn!("a partial backup could not be removed in time"),
        }
    }
}

/// Removes objects: the manifest first, so that they are no backup; the claim last, which keeps others out.
async fn remove(store: &BackupStore, mut names: Vec<String>) -> Result<()> {
    let claim = names.iter().position(|name| name == CLAIM).map(|index| names.swap_remove(index));
    store.remove(vec![MANIFEST.to_owned()]).await?;
    store.remove(names).await?;
    store.remove(claim.into_iter().collect()).await
}

/// Reads the first entries of a range. Returns them and the rest of the range.
fn chunk(
    snapshot: &Snapshot,
    partition: Partition,
    range: KeyRange,
) -> Result<(StoreWriter, Option<KeyRange>)> {
    let mut writer = StoreWriter::new(partition);
    let mut stopped_at = None;
    let end = range.end.clone();
    snapshot.storage.visit(partition, range, Direction::Forward, &mut |key, value| {
        if partition != Partition::Cold || !is_removal(key) {
            writer.push(key, value)?;
        }
        if writer.bytes() >= CHUNK_BYTES {
            stopped_at = Some([key, &[0]].concat());
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok((writer, stopped_at.map(|start| KeyRange { start, end })))
}

fn taken(url: &BackupUrl, others: &[String]) -> Error {
    let taken = |why: &str, hint: &str| {
        Error::new(ErrorKind::AlreadyExists, SqlState::DUPLICATE_OBJECT, format!("{why} at \"{url}\""))
            .hint(hint)
    };
    match others {
        [] => taken(
            "an unfinished backup exists",
            "if none is running, remove its objects, or choose another URL",
        ),
        names if names.iter().any(|name| name == MANIFEST) => {
            taken("a backup already exists", "choose another URL: backups are never overwritten")
        }
        _ => taken("there are other objects", "choose an empty location"),
    }
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, SqlState::QUERY_CANCELED, "the job was cancelled")
        .hint("the partial backup is removed; if that fails, the log says so")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::commit::CommitterOptions;
    use crate::maintenance::restore;
    use crate::storage::{DataDirectory, RocksStorage, StorageOptions};

    #[tokio::test]
    async fn a_backup_has_the_features_of_its_directory() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Arc::new(DataDirectory::open(&folder.path().join("data")).unwrap());
        let storage = RocksStorage::open(Arc::clone(&directory), StorageOptions::default()).unwrap();
        let (storage, clock) = (Arc::new(storage), Arc::new(SystemClock));
        let options = CommitterOptions::default();
        let committer = Committer::open(storage, Some(Arc::clone(&directory)), clock, options).unwrap();
        directory.use_feature("time-travel").unwrap();
        let backup = folder.path().join("backup");
        let url = BackupUrl::parse(&format!("file://{}", backup.display())).unwrap();
        let job = JobId("BK-1".to_owned());
        back_up(&committer, &url, &job, &CancellationToken::new()).await.unwrap();
        committer.shutdown().await.unwrap();
        let manifest = std::fs::read_to_string(backup.join(MANIFEST)).unwrap();
        assert!(manifest.contains("\"time-travel\""), "{manifest}");

        // No program knows this feature, so this one refuses its own backup.
        let restored = folder.path().join("restored");
        let error = restore(&url, &restored).await.unwrap_err();
        assert_eq!(error.sqlstate(), SqlState::OBJECT_NOT_IN_STATE);
        assert!(error.message().starts_with("the backup uses the feature \"time-travel\""), "{error}");
        assert!(error.hint_text().unwrap().contains("newer kalamdb"), "{error}");
        assert!(!restored.exists());
    }
}
