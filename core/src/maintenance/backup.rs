//! A snapshot of an open database into a backup. Commits, flushes and merges go on meanwhile: the snapshot keeps its rows and its
//! segments from being removed.
//!
//! Invariant: a backup has the rows of one seq, and what cannot be completed is taken back.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::WriteMultipart;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::format::{BackupManifest, CLAIM, MANIFEST, ObjectDigest, SEGMENTS, STORE, StoreWriter};
use super::place::{BackupUrl, Place};
use crate::cold_storage::{Segment, is_removal};
use crate::commit::Snapshot;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::failpoint;
use crate::ids::{DatabaseId, JobId, Seq};
use crate::storage::{Direction, KeyRange, Partition, blocking};

/// What of the store is in a backup.
const PARTITIONS: [Partition; 3] = [Partition::Meta, Partition::Rows, Partition::Cold];
/// Bytes of stored entries in one object; a larger entry has one of its own.
const CHUNK_BYTES: usize = 8 << 20;
/// Parts of an object that are on their way at once.
const UPLOADS_MAX: usize = 2;
/// How long an operation may go on once the backup is to end: what is given up can still have an effect later.
const GRACE: Duration = Duration::from_secs(2);
/// How long taking back may last; what is then left says by its first object that it is no backup.
const WITHDRAWAL: Duration = Duration::from_secs(4);

/// What a backup has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackedUp {
    /// The last commit in it.
    pub seq: Seq,
    /// Its objects.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Writes the database as of `snapshot` to `url`, where nothing may be yet but what an earlier attempt of the same job left.
///
/// # Errors
/// 42710 when something is there, 57014 when `stop` is cancelled, 58030 when the place cannot be written, XX001 for damaged segments.
pub async fn back_up(
    snapshot: &Arc<Snapshot>,
    database: DatabaseId,
    url: &BackupUrl,
    job: &JobId,
    stop: &CancellationToken,
) -> Result<BackedUp> {
    let mut backup = Backup::new(url.create().await?, Arc::clone(snapshot), database, stop.clone());
    let outcome = tokio::select! {
        outcome = backup.run(url, job) => outcome,
        () = async {
            stop.cancelled().await;
            tokio::time::sleep(GRACE).await;
        } => Err(cancelled()),
    };
    if outcome.is_err() {
        backup.withdraw().await;
    }
    outcome
}

struct Backup {
    place: Place,
    snapshot: Arc<Snapshot>,
    manifest: BackupManifest,
    stop: CancellationToken,
    /// The objects that may be there; none as long as the place is not this backup's.
    begun: Vec<String>,
    /// An object that is written in parts.
    upload: Option<WriteMultipart>,
}

impl Backup {
    fn new(place: Place, snapshot: Arc<Snapshot>, database: DatabaseId, stop: CancellationToken) -> Self {
        let tables = snapshot.catalog.tables().map(|table| table.qualified_name()).collect();
        let manifest = BackupManifest::new(database, snapshot.seq, snapshot.commit_ts, tables);
        Self { place, snapshot, manifest, stop, begun: Vec::new(), upload: None }
    }

    async fn run(&mut self, url: &BackupUrl, job: &JobId) -> Result<BackedUp> {
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
        self.place.sync(self.begun.clone()).await?;
        failpoint::step("backup::synced")?;
        self.write_manifest().await?;
        failpoint::step("backup::written")?;
        self.place.sync(vec![MANIFEST.to_owned()]).await?;
        let objects = &self.manifest.objects;
        let bytes = objects.iter().map(|object| object.bytes).sum();
        Ok(BackedUp { seq: self.manifest.seq, objects: objects.len() + 1, bytes })
    }

    fn check_stop(&self) -> Result<()> {
        if self.stop.is_cancelled() { Err(cancelled()) } else { Ok(()) }
    }

    /// Makes the place that of this job alone.
    async fn claim(&mut self, url: &BackupUrl, claim: &Bytes) -> Result<()> {
        let fresh = self.place.create(CLAIM, claim.clone()).await?;
        let own = fresh || self.place.get_small(CLAIM).await?.as_ref() == Some(claim);
        let mut others = self.place.list().await?;
        others.retain(|name| name != CLAIM);
        match (fresh, own) {
            (_, false) => Err(taken(url, &others)),
            (true, _) if others.is_empty() => Ok(()),
            (true, _) => {
                self.place.remove(vec![CLAIM.to_owned()]).await?;
                Err(taken(url, &others))
            }
            // An attempt of this job could not take back what it had written.
            (false, true) => remove(&self.place, others).await,
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
            self.place.put(&object.path, bytes.into()).await?;
            self.manifest.objects.push(object);
        }
        Ok(())
    }

    async fn write_segment(&mut self, segment: &Arc<Segment>) -> Result<()> {
        let path = format!("{SEGMENTS}/{}", segment.path);
        self.begun.push(path.clone());
        let mut pieces = self.snapshot.cold.store().bytes(segment);
        let mut digest = ObjectDigest::new();
        let upload = self.upload.insert(self.place.put_parts(&path).await?);
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
            free.map_err(|error| self.place.unwritable(&path, error))?;
            upload.put(piece);
        }
        if let Some(upload) = self.upload.take() {
            upload.finish().await.map_err(|error| self.place.unwritable(&path, error))?;
        }
        self.manifest.objects.push(digest.finish(path));
        Ok(())
    }

    async fn write_manifest(&mut self) -> Result<()> {
        self.check_stop()?;
        let manifest = Bytes::from(self.manifest.encode()?);
        let created = self.place.create(MANIFEST, manifest.clone()).await;
        if created.as_ref().is_ok_and(|created| *created) {
            return Ok(());
        }
        // The answer to a try that succeeded may have been lost on its way.
        match (self.place.get_small(MANIFEST).await?, created) {
            (Some(found), _) if found == manifest => Ok(()),
            (_, Err(error)) => Err(error),
            (..) => Err(Error::internal("somebody else wrote to the place of the backup")),
        }
    }

    /// Takes back what has been written, as far as that goes.
    async fn withdraw(&mut self) {
        let begun = std::mem::take(&mut self.begun);
        if begun.is_empty() {
            // The place was never this backup's.
            return;
        }
        let upload = self.upload.take();
        let withdrawal = async {
            if let Some(upload) = upload
                && let Err(error) = upload.abort().await
            {
                return Err(self.place.unwritable(MANIFEST, error));
            }
            remove(&self.place, begun).await
        };
        match tokio::time::timeout(WITHDRAWAL, withdrawal).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "what was written of a backup could not be removed"),
            Err(_) => warn!("what was written of a backup could not be removed in time"),
        }
    }
}

/// Removes objects: the one that makes a backup of them first, the one that keeps others away last.
async fn remove(place: &Place, mut names: Vec<String>) -> Result<()> {
    let claim = names.iter().position(|name| name == CLAIM).map(|index| names.swap_remove(index));
    place.remove(vec![MANIFEST.to_owned()]).await?;
    place.remove(names).await?;
    place.remove(claim.into_iter().collect()).await
}

/// The first entries of a range, and what is left of it.
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
            "a backup was begun and has not ended",
            "when none is running, remove what is there, or choose another place",
        ),
        names if names.iter().any(|name| name == MANIFEST) => {
            taken("there is a backup already", "choose another place: backups are never written over")
        }
        _ => taken("there are other objects", "choose an empty place"),
    }
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, SqlState::QUERY_CANCELED, "the job was ended")
        .hint("what was written of the backup has been taken back")
}
