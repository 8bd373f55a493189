//! The location of a backup: a folder or an object store, named by a URL. Credentials and store settings come
//! from the environment of the process, never from the URL.
//!
//! Invariant: a URL that may hold credentials is refused before anything shows it. A store's own error text,
//! which may hold some too, is not passed on.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{
    Error as StoreError, GetResult, ObjectStore, ObjectStoreExt, ObjectStoreScheme, PutMode, WriteMultipart,
    parse_url_opts,
};
use url::Url;

use crate::cold_storage::provider_variables;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::storage::blocking;

/// Bytes of one part of a multipart upload.
pub(super) const PART_BYTES: usize = 8 << 20;

/// The URL of a backup. It holds no credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupUrl {
    url: Url,
    scheme: ObjectStoreScheme,
}

impl fmt::Display for BackupUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

impl BackupUrl {
    /// Parses `file:///directory`, `s3://bucket/path`, `gs://bucket/path`, `az://container/path`, or another
    /// URL form of these object stores. Does no I/O.
    ///
    /// # Errors
    /// 22023 for a malformed URL or one that may hold credentials, 0A000 for another scheme. No error shows
    /// it.
    pub fn parse(text: &str) -> Result<Self> {
        const KNOWN: &str =
            "write file:///directory, s3://bucket/path, gs://bucket/path or az://container/path";
        let unreadable = || Error::invalid("the URL of the backup is invalid").hint(KNOWN);
        let url = Url::parse(text).map_err(|_| unreadable())?;
        let parsed = ObjectStoreScheme::parse(&url);
        // An Azure URL may put its account after the container, where other URLs have the user.
        let names_account = matches!(parsed, Ok((ObjectStoreScheme::MicrosoftAzure, _)));
        let has_user = !url.username().is_empty() && !names_account;
        if has_user || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
            return Err(Error::invalid("the URL of the backup may contain credentials").hint(
                "remove user, password and everything from ? or # on; the server takes credentials from its \
                 environment (AWS_..., GOOGLE_..., AZURE_...)",
            ));
        }
        let (scheme, path) = parsed.map_err(|_| unreadable())?;
        match scheme {
            ObjectStoreScheme::Local if path.as_ref().is_empty() => Err(unreadable()),
            ObjectStoreScheme::Local
            | ObjectStoreScheme::AmazonS3
            | ObjectStoreScheme::GoogleCloudStorage
            | ObjectStoreScheme::MicrosoftAzure => Ok(Self { url, scheme }),
            _ => Err(Error::unsupported("a backup at a URL with this scheme").hint(KNOWN)),
        }
    }

    /// Returns the folder if the URL names one.
    pub fn folder(&self) -> Option<PathBuf> {
        (self.scheme == ObjectStoreScheme::Local).then(|| self.url.to_file_path().ok()).flatten()
    }

    /// Opens the location for writing; creates a folder if it is one.
    ///
    /// # Errors
    /// 58030 when the folder cannot be created or read, 22023 when the environment lacks settings.
    pub(super) async fn create(&self) -> Result<BackupStore> {
        let made = self.folder();
        let shown = self.to_string();
        blocking(move || match made {
            Some(folder) => fs::create_dir_all(folder).map_err(|error| {
                failed(&format!("the folder of the backup \"{shown}\" cannot be created")).source(error)
            }),
            None => Ok(()),
        })
        .await?;
        self.open()
    }

    /// Opens the location for reading.
    ///
    /// # Errors
    /// As [`BackupUrl::create`].
    pub(super) fn open(&self) -> Result<BackupStore> {
        if let Some(folder) = self.folder() {
            let store = LocalFileSystem::new_with_prefix(&folder).map_err(|error| {
                failed(&format!("the folder of the backup \"{self}\" cannot be read")).source(error)
            })?;
            return Ok(BackupStore { objects: Arc::new(store), folder: Some(folder) });
        }
        let (store, path) = parse_url_opts(&self.url, provider_variables("")).map_err(|_| {
            Error::invalid(format!("the object store of \"{self}\" cannot be opened"))
                .hint("set AWS_..., GOOGLE_... or AZURE_... in the process's environment")
        })?;
        Ok(BackupStore { objects: Arc::new(PrefixStore::new(store, path)), folder: None })
    }
}

/// The objects of one backup location.
pub(super) struct BackupStore {
    objects: Arc<dyn ObjectStore>,
    /// Set if the objects are files.
    folder: Option<PathBuf>,
}

impl BackupStore {
    /// Lists the names of all objects.
    pub(super) async fn list(&self) -> Result<Vec<String>> {
        let found = self.objects.list(None).map_ok(|object| object.location.to_string()).try_collect().await;
        found.map_err(|error| self.failed("the objects cannot be listed", error))
    }

    /// Creates an object if none has its name. Returns whether it was created.
    pub(super) async fn create(&self, name: &str, bytes: Bytes) -> Result<bool> {
        match self.objects.put_opts(&Path::from(name), bytes.into(), PutMode::Create.into()).await {
            Ok(_) => Ok(true),
            Err(StoreError::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(self.failed(&format!("object \"{name}\" cannot be written"), error)),
        }
    }

    /// Writes an object, replacing an existing one.
    pub(super) async fn put(&self, name: &str, bytes: Bytes) -> Result<()> {
        let put = self.objects.put(&Path::from(name), bytes.into()).await;
        put.map(|_| ()).map_err(|error| self.failed(&format!("object \"{name}\" cannot be written"), error))
    }

    /// Begins a multipart upload. The object exists once the upload is finished.
    pub(super) async fn put_parts(&self, name: &str) -> Result<WriteMultipart> {
        let begun = self.objects.put_multipart(&Path::from(name)).await;
        let upload = begun.map_err(|error| self.unwritable(name, error))?;
        Ok(WriteMultipart::new_with_chunk_size(upload, PART_BYTES))
    }

    /// Returns the error for an object that could not be written.
    pub(super) fn unwritable(&self, name: &str, error: StoreError) -> Error {
        self.failed(&format!("object \"{name}\" cannot be written"), error)
    }

    /// Returns the contents of an object; `None` when it does not exist.
    pub(super) async fn get(&self, path: &Path) -> Result<Option<GetResult>> {
        match self.objects.get(path).await {
            Ok(found) => Ok(Some(found)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.unreadable(path.as_ref(), error)),
        }
    }

    /// Returns all bytes of a small object; `None` when it does not exist.
    pub(super) async fn get_small(&self, name: &str) -> Result<Option<Bytes>> {
        match self.get(&Path::from(name)).await? {
            Some(found) => found.bytes().await.map(Some).map_err(|error| self.unreadable(name, error)),
            None => Ok(None),
        }
    }

    /// Returns the error for an object that could not be read.
    pub(super) fn unreadable(&self, name: &str, error: StoreError) -> Error {
        self.failed(&format!("object \"{name}\" of the backup cannot be read"), error)
    }

    /// Removes objects. Missing ones are no error.
    pub(super) async fn remove(&self, names: Vec<String>) -> Result<()> {
        let paths = stream::iter(names).map(|name| Ok(Path::from(name))).boxed();
        let mut removed = self.objects.delete_stream(paths);
        while let Some(outcome) = removed.next().await {
            match outcome {
                Ok(_) | Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(self.failed("objects cannot be removed", error)),
            }
        }
        Ok(())
    }

    /// Syncs objects and their names. Object stores are durable by themselves, folders are not.
    pub(super) async fn sync(&self, names: Vec<String>) -> Result<()> {
        let Some(folder) = self.folder.clone() else { return Ok(()) };
        blocking(move || {
            sync_files(&folder, &names).map_err(|error| failed("the backup cannot be synced").source(error))
        })
        .await
    }

    /// Returns the error of a store without text that may hold secrets.
    fn failed(&self, what: &str, error: StoreError) -> Error {
        let why = match &error {
            StoreError::NotFound { .. } => "the bucket or folder does not exist",
            StoreError::PermissionDenied { .. } => "permission denied",
            StoreError::Unauthenticated { .. } => "the credentials in the environment were refused",
            StoreError::NotImplemented { .. } | StoreError::NotSupported { .. } => {
                "the operation is not supported"
            }
            _ if self.folder.is_some() => "the operating system refused",
            _ => "the object store did not respond or refused",
        };
        let failure = failed(&format!("{what}: {why}"));
        match &self.folder {
            Some(_) => failure.source(error),
            None => failure,
        }
    }
}

fn sync_files(folder: &FilePath, names: &[String]) -> std::io::Result<()> {
    let mut folders = vec![folder.to_owned()];
    for name in names {
        let file = folder.join(name);
        File::open(&file)?.sync_all()?;
        folders
            .extend(file.ancestors().skip(1).take_while(|parent| *parent != folder).map(FilePath::to_owned));
    }
    // A folder's own name is durable once its parent is synced.
    folders.extend(folder.parent().map(FilePath::to_owned));
    folders.sort();
    folders.dedup();
    folders.iter().try_for_each(|folder| File::open(folder)?.sync_all())
}

fn failed(what: &str) -> Error {
    Error::new(ErrorKind::Unavailable, SqlState::IO_ERROR, what)
        .hint("check the URL, the permissions and the free space of the backup's location")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_with_credentials_or_of_other_kinds_are_refused_and_not_shown() {
        for good in [
            "file:///var/backups/one",
            "s3://bucket/a/b",
            "s3://bucket",
            "gs://bucket/x",
            "az://container/x",
            "abfss://container@account.dfs.core.windows.net/x",
        ] {
            assert_eq!(BackupUrl::parse(good).unwrap().to_string(), good);
        }
        for (bad, sqlstate) in [
            ("s3://AKIASECRET:topsecret@bucket/x", SqlState::INVALID_PARAMETER_VALUE),
            ("s3://AKIASECRET@bucket/x", SqlState::INVALID_PARAMETER_VALUE),
            ("az://container@account:topsecret/x", SqlState::INVALID_PARAMETER_VALUE),
            ("az://container/x?sig=topsecret", SqlState::INVALID_PARAMETER_VALUE),
            ("s3://bucket/x#topsecret", SqlState::INVALID_PARAMETER_VALUE),
            ("file:///", SqlState::INVALID_PARAMETER_VALUE),
            ("/topsecret", SqlState::INVALID_PARAMETER_VALUE),
            ("", SqlState::INVALID_PARAMETER_VALUE),
            ("ftp://topsecret/x", SqlState::INVALID_PARAMETER_VALUE),
            ("memory:///topsecret", SqlState::FEATURE_NOT_SUPPORTED),
            ("https://topsecret/x", SqlState::FEATURE_NOT_SUPPORTED),
        ] {
            let error = BackupUrl::parse(bad).unwrap_err();
            assert_eq!(error.sqlstate(), sqlstate, "{bad}");
            assert!(!format!("{error} {error:?}").to_lowercase().contains("secret"), "{error:?}");
        }
    }

    #[test]
    fn a_url_of_a_folder_gives_its_path() {
        assert_eq!(BackupUrl::parse("file:///a%20b/c").unwrap().folder().unwrap(), PathBuf::from("/a b/c"));
        assert_eq!(BackupUrl::parse("s3://bucket/c").unwrap().folder(), None);
    }
}
