//! The location of a storage: its URL, its connection options, and the source of its credentials.
//!
//! | URL | what it is |
//! |---|---|
//! | empty | the folder `segments` of the data directory |
//! | `file:///folder` | another folder of this machine |
//! | `s3://bucket/prefix` | Amazon S3, or a server with the same protocol |
//! | `gs://bucket/prefix` | Google Cloud Storage |
//! | `az://container/prefix` | Azure Blob Storage |
//!
//! Invariant: credentials are read from the process environment when a storage is connected. They never
//! appear in a record, a log or an error.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, ObjectStoreScheme, RetryConfig};
use url::Url;

use crate::error::{Error, Result};

/// The time limits of one request and of connecting.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a failed request is retried; jobs have their own retries.
const RETRY_TIMEOUT: Duration = Duration::from_secs(10);
const RETRIES_MAX: usize = 4;

/// Options of `CREATE STORAGE` besides the URL. `object_store` has the same names after a provider prefix.
pub const CONNECTION_OPTIONS: [&str; 3] = ["endpoint", "region", "allow_http"];

/// The parameters of a connection to a storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageLocation {
    /// The name that tables use.
    pub id: Arc<str>,
    /// The URL; empty for the folder of the data directory.
    pub url: String,
    /// The prefix of the environment variables with the credentials: `ARCHIVE` selects
    /// `ARCHIVE_AWS_ACCESS_KEY_ID` and so on. `None` selects the variables without a prefix.
    pub credentials: Option<String>,
    /// The values of [`CONNECTION_OPTIONS`].
    pub options: BTreeMap<String, String>,
}

/// The target of a URL.
pub(super) enum Connected {
    /// A folder of this machine.
    Folder(PathBuf),
    /// A prefix of a bucket.
    Bucket(Arc<dyn ObjectStore>, Path),
}

impl StorageLocation {
    /// Returns the kind of storage in the URL: `filesystem`, `s3`, `gcs` or `azure`.
    ///
    /// # Errors
    /// 22023 for a URL with an unsupported scheme, or with credentials in it.
    pub fn kind(&self) -> Result<&'static str> {
        if self.url.is_empty() {
            return Ok("filesystem");
        }
        match self.parse()?.1 {
            ObjectStoreScheme::Local => Ok("filesystem"),
            ObjectStoreScheme::AmazonS3 => Ok("s3"),
            ObjectStoreScheme::GoogleCloudStorage => Ok("gcs"),
            ObjectStoreScheme::MicrosoftAzure => Ok("azure"),
            _ => Err(self.refused("has an unsupported scheme")),
        }
    }

    /// Reads the credentials and creates the client. Sends nothing yet.
    ///
    /// # Errors
    /// 22023 for a URL or options that cannot work.
    pub(super) fn connect(&self) -> Result<Connected> {
        let (url, scheme, prefix) = self.parse()?;
        let settings = self.settings().into_iter();
        let objects: Arc<dyn ObjectStore> = match scheme {
            ObjectStoreScheme::Local => {
                let folder = url.to_file_path().map_err(|()| self.refused("is not a folder"))?;
                return Ok(Connected::Folder(folder));
            }
            ObjectStoreScheme::AmazonS3 => {
                let builder =
                    settings.fold(AmazonS3Builder::new(), |builder, (key, value)| match key.parse() {
                        Ok(key) => builder.with_config(key, value),
                        Err(_) => builder,
                    });
                let builder = builder.with_url(url).with_retry(retries()).with_client_options(self.client());
                Arc::new(self.built(builder.build())?)
            }
            ObjectStoreScheme::GoogleCloudStorage => {
                let builder = settings.fold(GoogleCloudStorageBuilder::new(), |builder, (key, value)| {
                    match key.parse() {
                        Ok(key) => builder.with_config(key, value),
                        Err(_) => builder,
                    }
                });
                let builder = builder.with_url(url).with_retry(retries()).with_client_options(self.client());
                Arc::new(self.built(builder.build())?)
            }
            ObjectStoreScheme::MicrosoftAzure => {
                let builder =
                    settings.fold(MicrosoftAzureBuilder::new(), |builder, (key, value)| match key.parse() {
                        Ok(key) => builder.with_config(key, value),
                        Err(_) => builder,
                    });
                let builder = builder.with_url(url).with_retry(retries()).with_client_options(self.client());
                Arc::new(self.built(builder.build())?)
            }
            _ => return Err(self.refused("has an unsupported scheme")),
        };
        Ok(Connected::Bucket(objects, prefix))
    }

    fn parse(&self) -> Result<(Url, ObjectStoreScheme, Path)> {
        let url = Url::parse(&self.url).map_err(|_| self.refused("is not a URL"))?;
        let endpoint = self.options.get("endpoint").map(|endpoint| Url::parse(endpoint));
        let endpoint = endpoint.transpose().map_err(|_| {
            Error::invalid(format!("the ENDPOINT of storage \"{}\" is not a URL", self.id))
                .hint("write https://host:port")
        })?;
        let has_extras = |url: &Url| {
            let has_user = !url.username().is_empty() || url.password().is_some();
            has_user || url.query().is_some() || url.fragment().is_some()
        };
        if has_extras(&url) || endpoint.as_ref().is_some_and(has_extras) {
            return Err(Error::invalid(format!(
                "the URL of storage \"{}\" contains credentials, a query or a fragment",
                self.id
            ))
            .hint(
                "put credentials into the environment of the server and name their prefix with CREDENTIALS",
            ));
        }
        let (scheme, path) =
            ObjectStoreScheme::parse(&url).map_err(|_| self.refused("has an unsupported scheme"))?;
        Ok((url, scheme, path))
    }

    /// Returns settings for all providers; builders ignore foreign ones. Options override the environment.
    fn settings(&self) -> BTreeMap<String, String> {
        let prefix = self.credentials.as_ref().map(|prefix| format!("{prefix}_")).unwrap_or_default();
        let mut found: BTreeMap<String, String> = provider_variables(&prefix).collect();
        if self.options.contains_key("endpoint") {
            // Drop other names of the endpoint: they would take precedence.
            found.retain(|name, _| !name.contains("endpoint"));
        }
        for (name, value) in self.options.iter().filter(|(name, _)| *name != "allow_http") {
            for start in ["aws_", "azure_storage_"] {
                found.insert(format!("{start}{name}"), value.clone());
            }
        }
        found
    }

    fn client(&self) -> ClientOptions {
        let allow_http = self.options.get("allow_http").is_some_and(|value| value == "true");
        ClientOptions::new()
            .with_timeout(REQUEST_TIMEOUT)
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_allow_http(allow_http)
    }

    fn built<T>(&self, built: object_store::Result<T>) -> Result<T> {
        built.map_err(|error| {
            Error::invalid(format!("storage \"{}\" cannot be connected with its settings", self.id))
                .hint(
                    "check its URL, its options and the variables of its credentials in the server's \
                     environment",
                )
                .source(error)
        })
    }

    fn refused(&self, why: &str) -> Error {
        Error::invalid(format!("the URL of storage \"{}\" {why}", self.id))
            .hint("write file:///folder, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix")
    }
}

/// Returns the environment variables that begin with `prefix` and configure object stores. Their names lose
/// the prefix and become lower case, as the builders of `object_store` parse them.
pub fn provider_variables(prefix: &str) -> impl Iterator<Item = (String, String)> {
    const PROVIDERS: [&str; 3] = ["AWS_", "AZURE_", "GOOGLE_"];
    std::env::vars_os().filter_map(move |(name, value)| {
        let name = name.into_string().ok()?;
        let name = name.strip_prefix(prefix)?;
        let is_known = PROVIDERS.iter().any(|provider| name.starts_with(provider));
        Some((name.to_ascii_lowercase(), value.into_string().ok()?)).filter(|_| is_known)
    })
}

fn retries() -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: RETRIES_MAX, retry_timeout: RETRY_TIMEOUT }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(url: &str) -> StorageLocation {
        StorageLocation {
            id: Arc::from("archive"),
            url: url.to_owned(),
            credentials: None,
            options: BTreeMap::new(),
        }
    }

    #[test]
    fn the_url_says_what_kind_of_storage_it_is() {
        for (url, kind) in [
            ("", "filesystem"),
            ("file:///srv/segments", "filesystem"),
            ("s3://bucket/prefix", "s3"),
            ("gs://bucket", "gcs"),
            ("az://container/prefix", "azure"),
        ] {
            assert_eq!(location(url).kind().unwrap(), kind, "{url}");
        }
        for url in ["bucket", "ftp://host/x", "http://host/x", "memory:///"] {
            let error = location(url).kind().unwrap_err().to_string();
            assert!(error.contains("[22023]") && error.contains("\"archive\""), "{error}");
        }
    }

    #[test]
    fn a_url_with_credentials_is_refused_and_not_repeated() {
        for url in ["s3://key:secret@bucket/x", "s3://bucket/x?secret=1", "s3://bucket/x#secret"] {
            let error = location(url).kind().unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn clients_are_made_of_options_alone() {
        let mut s3 = location("s3://bucket/a/b");
        s3.options.insert("endpoint".to_owned(), "http://127.0.0.1:1".to_owned());
        s3.options.insert("region".to_owned(), "eu-central-1".to_owned());
        s3.options.insert("allow_http".to_owned(), "true".to_owned());
        let Connected::Bucket(objects, prefix) = s3.connect().unwrap() else { panic!("not a bucket") };
        assert_eq!(prefix.as_ref(), "a/b");
        assert!(objects.to_string().contains("bucket"));
        let Connected::Folder(folder) = location("file:///srv/x").connect().unwrap() else {
            panic!("not a folder")
        };
        assert_eq!(folder, PathBuf::from("/srv/x"));
    }
}
