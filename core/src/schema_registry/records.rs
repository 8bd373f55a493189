//! The catalog's records and the changes that commits make to them, as stored and logged.
//!
//! Invariant: each change replaces or removes one whole record, under the key [`CatalogChange::record_key`],
//! so replaying the last change of each key gives the catalog.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::definition::TableDefinition;
use crate::access::{Principal, Role};
use crate::cold_storage::{STORAGE_LOCAL, StorageLocation};
use crate::ids::{NamespaceId, TableId, UserId};

/// The namespace in which sessions start; it always exists.
pub const NAMESPACE_PUBLIC: &str = "public";
/// The namespace of the system tables.
pub const NAMESPACE_SYSTEM: &str = "system";

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceRecord {
    /// The number.
    pub id: NamespaceId,
    /// The unique name.
    pub name: Arc<str>,
    /// 1 at creation, plus 1 for each change; a change planned on another revision is a conflict.
    pub revision: u32,
    /// The value of `ALTER NAMESPACE ... SET OPTIONS`, as the text of a JSON object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<String>,
    /// Microseconds since 1970 UTC.
    pub created_at: i64,
}

/// A user.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRecord {
    /// The number.
    pub id: UserId,
    /// The unique name.
    pub username: Arc<str>,
    /// 1 at creation, plus 1 for each change; a change planned on another revision is a conflict.
    pub revision: u32,
    /// The password hash in PHC string format; a user without one cannot log in with a password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_hash: Option<String>,
    /// Decides what the user may do.
    pub role: Role,
    /// The mail address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// Microseconds since 1970 UTC.
    pub created_at: i64,
    /// Microseconds since 1970 UTC.
    pub updated_at: i64,
    /// Microseconds since 1970 UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_login_at: Option<i64>,
    /// Grows when the password or the role changes; tokens of an older generation are refused.
    pub auth_generation: u32,
    /// What ALTER USER has set for the user's sessions, by name; times are in milliseconds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
}

impl UserRecord {
    /// Returns the user as sessions carry it.
    pub fn principal(&self) -> Principal {
        Principal { user_id: self.id, username: Arc::clone(&self.username), role: self.role }
    }
}

impl fmt::Debug for UserRecord {
    /// Omits the password hash, so that no log line can hold it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserRecord")
            .field("id", &self.id)
            .field("username", &self.username)
            .field("role", &self.role)
            .field("auth_generation", &self.auth_generation)
            .finish_non_exhaustive()
    }
}

/// A storage for segments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageRecord {
    /// The unique id by which tables name it.
    pub id: Arc<str>,
    /// 1 at creation, plus 1 for each change; a change planned on another revision is a conflict.
    pub revision: u32,
    /// The name for people.
    pub name: String,
    /// The purpose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// `filesystem`, `s3`, `gcs` or `azure`.
    pub storage_type: String,
    /// The folder or the bucket's URL; empty for the data directory.
    pub base_directory: String,
    /// The prefix of the environment variables that hold the credentials; never the credentials themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<String>,
    /// Other connection settings: values of [`crate::cold_storage::CONNECTION_OPTIONS`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// Microseconds since 1970 UTC.
    pub created_at: i64,
    /// Microseconds since 1970 UTC.
    pub updated_at: i64,
}

impl StorageRecord {
    /// Returns the storage that every database has.
    pub(crate) fn local(created_at: i64) -> Self {
        Self {
            id: Arc::from(STORAGE_LOCAL),
            revision: 1,
            name: "Local".to_owned(),
            description: Some("a folder of the data directory".to_owned()),
            storage_type: "filesystem".to_owned(),
            base_directory: String::new(),
            credentials: None,
            options: BTreeMap::new(),
            created_at,
            updated_at: created_at,
        }
    }

    /// Returns the template of a table's segment path below the storage; names in braces stand for numbers.
    pub fn template(&self) -> &'static str {
        if &*self.id == STORAGE_LOCAL { "{tableId}" } else { "{databaseId}/{tableId}" }
    }

    /// Returns the settings that connect to the storage.
    pub fn location(&self) -> StorageLocation {
        StorageLocation {
            id: Arc::clone(&self.id),
            url: self.base_directory.clone(),
            credentials: self.credentials.clone(),
            options: self.options.clone(),
        }
    }
}

/// The catalog without its records: its creation time and the next free numbers. No DROP takes a number back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogHeader {
    /// When the database was created, in microseconds UTC.
    pub created_at: i64,
    /// The number the next namespace gets.
    pub next_namespace_id: NamespaceId,
    /// The number the next table gets.
    pub next_table_id: TableId,
    /// The number the next user gets.
    pub next_user_id: UserId,
}

/// One change of the catalog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CatalogChange {
    /// Creates a namespace or replaces its record.
    PutNamespace(NamespaceRecord),
    /// Removes an empty namespace.
    DropNamespace(NamespaceId),
    /// Creates a table (version 1) or replaces it with its next version or revision.
    PutTable(TableDefinition),
    /// Removes a table with all its rows.
    DropTable(TableId),
    /// Creates a user or replaces its record.
    PutUser(UserRecord),
    /// Removes a user with all its rows.
    DropUser(UserId),
    /// Creates a storage or replaces its record.
    PutStorage(StorageRecord),
    /// Removes a storage that no table uses.
    DropStorage(Arc<str>),
}

impl CatalogChange {
    /// Returns the key of the changed record: `table/1000`, `user/1`, `namespace/10`, `storage/local`.
    pub fn record_key(&self) -> String {
        match self {
            Self::PutNamespace(NamespaceRecord { id, .. }) | Self::DropNamespace(id) => {
                format!("namespace/{id}")
            }
            Self::PutTable(TableDefinition { id, .. }) | Self::DropTable(id) => format!("table/{id}"),
            Self::PutUser(UserRecord { id, .. }) | Self::DropUser(id) => format!("user/{id}"),
            Self::PutStorage(StorageRecord { id, .. }) | Self::DropStorage(id) => format!("storage/{id}"),
        }
    }

    /// Returns whether the change removes its record.
    pub fn is_drop(&self) -> bool {
        match self {
            Self::PutNamespace(_) | Self::PutTable(_) | Self::PutUser(_) | Self::PutStorage(_) => false,
            Self::DropNamespace(_) | Self::DropTable(_) | Self::DropUser(_) | Self::DropStorage(_) => true,
        }
    }
}

#[cfg(test)]
mod tests;
