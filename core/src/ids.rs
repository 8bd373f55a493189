//! Identifiers. Keys, segments, tokens and tickets hold only numbers; the catalog maps names to numbers.
//!
//! Invariant: numbers of users, tables, columns and namespaces are never reused: a new name shows no old
//! data.

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
    /// The number of a commit. It starts at 1, never decreases and has no gaps within an epoch.
    Seq(u64)
}
number! {
    /// A table. System tables have 1 to 10; users' tables start at [`TableId::FIRST_USER_TABLE`].
    TableId(u32)
}
number! {
    /// A column of one table, stable across renames.
    ColumnId(u32)
}
number! {
    /// The version of a table's definition: 1 at creation, plus 1 for each change of the columns.
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
    /// A user. Numbers are generated; 1 is `root`.
    UserId(u64)
}
number! {
    /// The owner of rows: 0 for shared rows, otherwise the owner's user number.
    ScopeId(u64)
}
number! {
    /// Counts how often the store was opened. If a crash loses the last commits of an epoch, the next epoch
    /// reuses their seqs.
    Epoch(u32)
}
number! {
    /// The part of the database with its own commit order. Today there is one: 0.
    Shard(u16)
}
number! {
    /// A running live query, unique within a process.
    SubscriptionId(u64)
}
number! {
    /// A running statement, unique within a process.
    QueryId(u64)
}
number! {
    /// A session, unique within a process.
    SessionId(u64)
}

impl Seq {
    /// The seq before the first commit.
    pub const ZERO: Self = Self(0);

    /// Returns the seq after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl TableId {
    /// The first number of users' tables; system tables have lower ones.
    pub const FIRST_USER_TABLE: Self = Self(1000);
}

impl UserId {
    /// The database itself: it expires rows and trims the log.
    pub const SYSTEM: Self = Self(0);
    /// The user `root`, created with the database.
    pub const ROOT: Self = Self(1);
}

impl ScopeId {
    /// The scope of rows that all users share.
    pub const SHARED: Self = Self(0);

    /// Returns the scope of one user's rows.
    #[must_use]
    pub fn of(user: UserId) -> Self {
        Self(user.0)
    }
}

/// The name of the process in log lines, jobs and audit rows: 1 to 64 letters, digits and hyphens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub Arc<str>);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The identity of the data. Creating a database and restoring one from a backup each make a new id.
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

/// The id of a background job: two letters for its kind and twelve hex digits, e.g. `TR-0192f3a4b5c6`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub String);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
