//! Identifiers. Only numbers stand in keys, segments, tokens and tickets; names are looked up in the catalog.
//!
//! Invariant: a user, table, column or namespace number is never used again, so nothing old can be seen through a new name.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// The number of a commit: 1 for the first, without gaps within an epoch, never decreasing.
    Seq(u64)
}
number! {
    /// A table. System tables are 1 to 8, users' tables start at [`TableId::FIRST_USER_TABLE`].
    TableId(u32)
}
number! {
    /// A column of one table, stable across renames.
    ColumnId(u32)
}
number! {
    /// The version of a table's definition, 1 at creation, one more for each change.
    SchemaVersion(u32)
}
number! {
    /// A segment of cold rows.
    SegmentId(u32)
}
number! {
    /// A namespace.
    NamespaceId(u32)
}
number! {
    /// A user; generated, 1 is `root`.
    UserId(u64)
}
number! {
    /// Whose rows: 0 for rows that all users share, else the owner's user number.
    ScopeId(u64)
}
number! {
    /// How often the database has been opened. A seq is only comparable within what an epoch is known to have kept.
    Epoch(u32)
}
number! {
    /// The part of the database with a commit order of its own. There is one today: 0.
    Shard(u16)
}
number! {
    /// A running live query; unique within a process.
    SubscriptionId(u64)
}

impl Seq {
    /// Before the first commit.
    pub const ZERO: Self = Self(0);

    /// The seq after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl TableId {
    /// Where the numbers of tables made by users start; lower ones are the system tables'.
    pub const FIRST_USER_TABLE: Self = Self(1000);
}

impl UserId {
    /// The database itself: expiry of rows, trimming of the log.
    pub const SYSTEM: Self = Self(0);
    /// The user `root`, created with the database.
    pub const ROOT: Self = Self(1);
}

impl ScopeId {
    /// Rows that are not owned by one user.
    pub const SHARED: Self = Self(0);

    /// The rows of one user.
    #[must_use]
    pub fn of(user: UserId) -> Self {
        Self(user.0)
    }
}

/// The name of the process in log lines, jobs and audit rows: letters, digits and hyphens, at most 64.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub Arc<str>);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The identity of the data: made when a database is created, and anew when one is restored from a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DatabaseId(pub uuid::Uuid);

impl From<DatabaseId> for String {
    fn from(id: DatabaseId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for DatabaseId {
    type Error = uuid::Error;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        uuid::Uuid::parse_str(&text).map(Self)
    }
}

impl fmt::Display for DatabaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A background job: two letters for its kind and twelve hexadecimal digits, e.g. `TR-0192f3a4b5c6`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub String);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
