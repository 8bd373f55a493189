//! One storage: the objects in a folder, a bucket or memory.
//!
//! ```text
//! DATA_DIR/segments/TABLE/EPOCH-SEGMENT.parquet      the storage `local`
//! URL/DATABASE/TABLE/EPOCH-SEGMENT.parquet           any other storage: databases may share a bucket
//! .../TABLE/manifest-DATABASE-EPOCH-SEQ.json         a manifest published for other readers
//! ```
//!
//! A new object is first written to a local file, to bound memory. Then a rename moves it into place in a
//! folder, or a multipart upload sends it to a bucket.
//!
//! Invariant: when [`ObjectStorage::publish`] returns, the whole object is on stable storage under its name.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, WriteMultipart};
use parquet::basic::{Compression, ZstdLevel};
use tokio::io::AsyncReadExt;

use super::location::{Connected, StorageLocation};
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::failpoint;
use crate::ids::{DatabaseId, TableId};
use crate::storage::{DataDirectory, blocking};

/// Bytes of one part of an upload, and the maximum number of parts in flight.
const PART_BYTES: usize = 8 << 20;
const PARTS_MAX: usize = 4;
/// Bytes that a storage check writes and reads back.
const PROBE: &[u8] = b"kalamdb";

/// A connected storage.
pub struct ObjectStorage {
    id: Arc<str>,
    objects: Arc<dyn ObjectStore>,
    /// The prefix of this database's objects in the storage.
    prefix: Path,
    /// The folder, when the objects are files.
    folder: Option<PathBuf>,
    /// The folder of files that wait for their upload.
    spool: Option<PathBuf>,
}

/// The target of a new object's bytes.
pub enum Sink {
    /// A file that is moved or uploaded once it is complete.
    File(BufWriter<File>, PathBuf),
    /// An object in memory.
    Memory(Vec<u8>),
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file, _) => file.write(bytes),
            Self::Memory(buffer) => buffer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file, _) => file.flush(),
            Self::Memory(_) => Ok(()),
        }
    }
}

impl std::fmt::Debug for ObjectStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectStorage").field("id", &self.id).finish_non_exhaustive()
    }
}

impl ObjectStorage {
    /// Opens a folder as a storage; creates it when it is missing.
    ///
    /// # Errors
    /// 58030 when it cannot be created or read.
    pub(super) fn in_folder(id: Arc<str>, folder: &FilePath) -> Result<Self> {
        let unusable = |error: Box<dyn std::error::Error + Send + Sync>| {
            Error::new(
                ErrorKind::Unavailable,
                SqlState::IO_ERROR,
                format!("the folder of storage \"{id}\" cannot be used"),
            )
            .hint("check that it can be written")
            .source(error)
        };
        DataDirectory::create(folder).map_err(|error| unusable(error.into()))?;
        let objects = LocalFileSystem::new_with_prefix(folder).map_err(|error| unusable(error.into()))?;
        let (objects, folder) = (Arc::new(objects), Some(folder.to_owned()));
        Ok(Self { id, objects, prefix: Path::default(), folder, spool: None })
    }

    /// Returns a storage in memory, which is lost with the process.
    pub(super) fn in_memory(id: Arc<str>) -> Self {
        let objects = Arc::new(InMemory::new());
        Self { id, objects, prefix: Path::default(), folder: None, spool: None }
    }

    /// Connects the storage at `location`. Uploads wait below `spool`; without it, in memory.
    ///
    /// # Errors
    /// 22023 for a location that cannot work, 58030 for a folder that cannot be created.
    pub(super) fn connect(
        location: &StorageLocation,
        database: DatabaseId,
        spool: Option<&FilePath>,
    ) -> Result<Self> {
        let id = Arc::clone(&location.id);
        match location.connect()? {
            Connected::Folder(folder) => Self::in_folder(id, &folder.join(database.to_string())),
            Connected::Bucket(objects, prefix) => {
                let prefix = prefix.join(database.to_string());
                let spool = spool.map(FilePath::to_owned);
                Ok(Self { id, objects, prefix, folder: None, spool })
            }
        }
    }

    pub(super) fn objects(&self) -> &Arc<dyn ObjectStore> {
        &self.objects
    }

    fn place(&self, path: &str) -> Path {
        // Parts are joined one by one, because `join` would escape a slash.
        path.split('/').fold(self.prefix.clone(), |place, part| place.join(part))
    }

    /// Returns whether the storage is a folder or memory, which answers without network delay.
    pub fn is_near(&self) -> bool {
        // In a bucket the prefix is never empty, because it contains the database id.
        self.folder.is_some() || self.prefix.as_ref().is_empty()
    }

    /// Returns the compression of segments: fast to read in a folder, small where they must be transferred.
    pub fn compression(&self) -> Compression {
        if self.folder.is_some() { Compression::LZ4_RAW } else { Compression::ZSTD(ZstdLevel::default()) }
    }

    /// Starts a new object. Blocks.
    ///
    /// # Errors
    /// 58030 when its file cannot be created.
    pub fn create(&self, path: &str) -> Result<Sink> {
        failpoint::step("segment::create")?;
        let Some(file) = self.unfinished(path) else { return Ok(Sink::Memory(Vec::new())) };
        let made = file.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| File::create(&file));
        made.map(|made| Sink::File(BufWriter::with_capacity(1 << 20, made), file))
            .map_err(|error| self.failed(path, error))
    }

    /// Brings a complete object to stable storage under its name.
    ///
    /// # Errors
    /// 58030 on failure; the object then does not exist, or no commit names it.
    pub(super) async fn publish(&self, path: &str, sink: Sink) -> Result<()> {
        let published = match (sink, &self.folder) {
            (Sink::File(file, _), Some(folder)) => {
                let (folder, own, path) = (folder.clone(), self.failure(path), path.to_owned());
                return blocking(move || sync_into_place(&folder, &path, file).map_err(own)).await;
            }
            (Sink::File(file, spooled), None) => self.upload(path, file, &spooled).await,
            (Sink::Memory(bytes), _) => {
                let put = self.objects.put(&self.place(path), Bytes::from(bytes).into()).await;
                put.map(|_| ()).map_err(io::Error::from)
            }
        };
        published.map_err(|error| self.failed(path, error))
    }

    async fn upload(&self, path: &str, file: BufWriter<File>, spooled: &FilePath) -> io::Result<()> {
        drop(file.into_inner().map_err(io::IntoInnerError::into_error)?);
        let mut file = tokio::fs::File::open(spooled).await?;
        let upload = self.objects.put_multipart(&self.place(path)).await?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
        let mut part = vec![0; PART_BYTES];
        let sent = async {
            loop {
                let read = file.read(&mut part).await?;
                if read == 0 {
                    return Ok::<_, io::Error>(());
                }
                upload.wait_for_capacity(PARTS_MAX).await?;
                upload.write(part.get(..read).unwrap_or_default());
            }
        };
        match sent.await {
            Ok(()) => upload.finish().await.map(|_| ())?,
            Err(error) => {
                // The storage expires incomplete uploads, at the latest by its own rules.
                drop(upload.abort().await);
                return Err(error);
            }
        }
        tokio::fs::remove_file(spooled).await
    }

    /// Writes a small object. An existing one is not an error: an earlier attempt wrote it.
    ///
    /// # Errors
    /// 58030 when the storage refuses.
    pub async fn put_new(&self, path: &str, bytes: Vec<u8>) -> Result<()> {
        if let Some(folder) = &self.folder {
            if folder.join(path).exists() {
                return Ok(());
            }
            let mut sink = self.create(path)?;
            sink.write_all(&bytes).map_err(|error| self.failed(path, error))?;
            return self.publish(path, sink).await;
        }
        let put = self.objects.put_opts(&self.place(path), bytes.into(), PutMode::Create.into()).await;
        match put {
            Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(self.failed(path, error.into())),
        }
    }

    /// Returns a byte range of an object.
    pub(super) async fn get_range(&self, path: &str, range: Range<u64>) -> object_store::Result<Bytes> {
        self.objects.get_range(&self.place(path), range).await
    }

    pub(super) async fn head(&self, path: &str) -> object_store::Result<ObjectMeta> {
        self.objects.head(&self.place(path)).await
    }

    /// Returns the names of the published manifests of a table.
    ///
    /// # Errors
    /// 58030 when the storage refuses.
    pub async fn manifests(&self, table: TableId) -> Result<Vec<String>> {
        let objects = self.list(&self.place(&table.to_string())).await?;
        Ok(objects.into_iter().filter(|path| is_manifest(path)).collect())
    }

    /// Returns the names of the objects below a prefix.
    async fn list(&self, place: &Path) -> Result<Vec<String>> {
        let listed: object_store::Result<Vec<ObjectMeta>> =
            self.objects.list(Some(place)).try_collect().await;
        let listed = listed.map_err(|error| {
            let message = format!("the objects of storage \"{}\" cannot be listed", self.id);
            Error::new(ErrorKind::Unavailable, SqlState::IO_ERROR, message)
                .hint("run STORAGE CHECK to find the cause")
                .source(error)
        })?;
        let names = listed.iter().filter_map(|object| {
            let parts = object.location.prefix_match(&self.prefix)?;
            Some(parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/"))
        });
        Ok(names.collect())
    }

    /// Removes an object durably. A missing object is not an error: an earlier attempt may have removed it.
    ///
    /// # Errors
    /// 58030 when the storage refuses.
    pub async fn remove(&self, path: &str) -> Result<()> {
        match self.objects.delete(&self.place(path)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(self.failed(path, error.into())),
        }
        let Some(folder) = self.folder.as_ref().and_then(|root| Some(root.join(path).parent()?.to_owned()))
        else {
            return Ok(());
        };
        // The removal is durable once the folder is synced.
        let synced = blocking(move || Ok(File::open(folder).and_then(|folder| folder.sync_all()))).await?;
        match synced {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed(path, error)),
            _ => Ok(()),
        }
    }

    /// Removes all traces of an object that no commit names. The sweep at the next start removes the rest.
    pub fn discard(self: &Arc<Self>, path: &str) {
        let finished = self.folder.as_ref().map(|folder| folder.join(path));
        let failed = [self.unfinished(path), finished]
            .into_iter()
            .flatten()
            .filter_map(|file| fs::remove_file(file).err())
            .find(|error| error.kind() != io::ErrorKind::NotFound);
        if let Some(error) = failed {
            tracing::warn!(path, %error, "an unused segment could not be removed");
        }
        if self.folder.is_some() {
            return;
        }
        let (storage, path) = (Arc::clone(self), path.to_owned());
        let removal = async move {
            if let Err(error) = storage.remove(&path).await {
                tracing::warn!(path, %error, "an unused segment could not be removed");
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(removal)),
            // Memory completes the removal at once.
            Err(_) => drop(removal.now_or_never()),
        }
    }

    /// Returns the names of segments that `known` rejects: a process wrote them but died before its commit.
    ///
    /// # Errors
    /// 58030 when the storage refuses.
    pub async fn orphans(&self, known: &(dyn Fn(&str) -> bool + Sync)) -> Result<Vec<String>> {
        let listed = self.list(&self.prefix).await?;
        Ok(listed.into_iter().filter(|path| is_segment(path) && !known(path)).collect())
    }

    /// Removes [`ObjectStorage::orphans`]; returns how many there were.
    ///
    /// # Errors
    /// 58030 when the storage refuses.
    pub async fn sweep(&self, known: &(dyn Fn(&str) -> bool + Sync)) -> Result<usize> {
        let unknown = self.orphans(known).await?;
        for path in &unknown {
            failpoint::step("sweep::remove")?;
            self.remove(path).await?;
        }
        Ok(unknown.len())
    }

    /// Removes the files that an earlier process left for upload. Blocks.
    pub(super) fn sweep_spool(spool: &FilePath) {
        match fs::remove_dir_all(spool) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, "files of unfinished uploads could not be removed"),
        }
    }

    /// Checks the storage: writes, reads, lists and removes an object.
    ///
    /// # Errors
    /// 58030 with the name of the failed step.
    pub async fn check(&self) -> Result<()> {
        let path = format!("check/{}", uuid::Uuid::new_v4());
        let place = self.place(&path);
        let step = |name: &'static str| {
            move |error: object_store::Error| {
                Error::new(
                    ErrorKind::Unavailable,
                    SqlState::IO_ERROR,
                    format!(
                        "storage \"{}\" cannot be used: {name} an object failed, {}",
                        self.id,
                        reason(&error)
                    ),
                )
                .hint("check its URL, options and credentials, and whether this machine reaches it")
                .source(error)
            }
        };
        self.objects.put(&place, Bytes::from_static(PROBE).into()).await.map_err(step("writing"))?;
        let read = async { self.objects.get(&place).await?.bytes().await };
        let read = read.await.map_err(step("reading"))?;
        let listed = self.objects.list(Some(&self.place("check"))).next().await;
        listed.transpose().map_err(step("listing"))?;
        self.objects.delete(&place).await.map_err(step("removing"))?;
        if read != PROBE {
            let message = format!("storage \"{}\" returned other bytes than were written", self.id);
            return Err(Error::new(ErrorKind::Unavailable, SqlState::IO_ERROR, message)
                .hint("point its URL at another storage"));
        }
        Ok(())
    }

    /// Returns the file of an unfinished object; `None` in memory.
    fn unfinished(&self, path: &str) -> Option<PathBuf> {
        let folder = self.folder.as_ref().or(self.spool.as_ref())?;
        Some(folder.join(format!("{path}.new")))
    }

    fn failed(&self, path: &str, error: io::Error) -> Error {
        self.failure(path)(error)
    }

    fn failure(&self, path: &str) -> impl Fn(io::Error) -> Error + Send + use<> {
        let message = format!("object \"{path}\" of storage \"{}\" cannot be written", self.id);
        let hint = match &self.folder {
            Some(_) => "check the free space and the permissions of the segments' folder",
            None => "run STORAGE CHECK to find the cause",
        };
        move |error| {
            Error::new(ErrorKind::Unavailable, SqlState::IO_ERROR, message.clone()).hint(hint).source(error)
        }
    }
}

/// Returns whether an object is a published manifest.
fn is_manifest(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|name| name.starts_with("manifest-") && name.ends_with(".json"))
}

/// Returns whether this program gives such names to segments or unfinished objects. Others are foreign.
fn is_segment(path: &str) -> bool {
    let Some((table, name)) = path.split_once('/') else { return false };
    let name = name.strip_suffix(".new").unwrap_or(name);
    if is_manifest(name) {
        return path.ends_with(".new");
    }
    let is_hex = |part: &str| part.len() == 8 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let numbers = name.strip_suffix(".parquet").and_then(|name| name.split_once('-'));
    table.parse::<u32>().is_ok() && numbers.is_some_and(|(epoch, id)| is_hex(epoch) && is_hex(id))
}

/// Returns the cause of an error, without addresses and replies that a client's error may quote.
fn reason(error: &object_store::Error) -> &'static str {
    match error {
        object_store::Error::NotFound { .. } => "the bucket or folder does not exist",
        object_store::Error::PermissionDenied { .. } => "permission denied",
        object_store::Error::Unauthenticated { .. } => "the credentials were refused",
        object_store::Error::NotSupported { .. } | object_store::Error::NotImplemented { .. } => {
            "the operation is not supported"
        }
        _ => "unexpected response",
    }
}

fn sync_into_place(folder: &FilePath, path: &str, file: BufWriter<File>) -> io::Result<()> {
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    failpoint::step("segment::synced").map_err(io::Error::other)?;
    let place = folder.join(path);
    fs::rename(folder.join(format!("{path}.new")), &place)?;
    failpoint::step("segment::renamed").map_err(io::Error::other)?;
    // A name is durable once its folder is synced, and the folder's own name once its parent is.
    for folder in place.ancestors().skip(1).take_while(|parent| parent.starts_with(folder)) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_program_are_swept() {
        for own in
            ["1000/00000001-0000000a.parquet", "7/00000001-0000000a.parquet.new", "7/manifest-x-1-2.json.new"]
        {
            assert!(is_segment(own), "{own}");
        }
        for other in [
            "7/manifest-x-1-2.json",
            "notes.txt",
            "7/a.parquet",
            "x/00000001-0000000a.parquet",
            "0b1c/7/00000001-0000000a.parquet",
            "check/00000001-0000000a",
        ] {
            assert!(!is_segment(other), "{other}");
        }
    }
}
