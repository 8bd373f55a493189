//! The tables of namespace `system`: their ids and names, and which of them are stored.
//!
//! Invariant: an id is never given to another table.

use crate::ids::TableId;

/// A system table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SystemTable {
    /// The catalog's users.
    Users,
    /// Background work; rows are stored.
    Jobs,
    /// The catalog's namespaces.
    Namespaces,
    /// The catalog's storages.
    Storages,
    /// Running subscriptions; rows are computed at scan.
    LiveQueries,
    /// The catalog's tables.
    Tables,
    /// Who did what; rows are stored.
    AuditLogs,
    /// Metrics of this process; rows are computed at scan.
    Stats,
    /// Running statements; rows are computed at scan.
    Queries,
    /// Open sessions; rows are computed at scan.
    Sessions,
}

impl SystemTable {
    /// All system tables, ordered by id.
    pub const ALL: [Self; 10] = [
        Self::Users,
        Self::Jobs,
        Self::Namespaces,
        Self::Storages,
        Self::LiveQueries,
        Self::Tables,
        Self::AuditLogs,
        Self::Stats,
        Self::Queries,
        Self::Sessions,
    ];

    /// Returns the table's fixed number.
    pub fn id(self) -> TableId {
        TableId(match self {
            Self::Users => 1,
            Self::Jobs => 2,
            Self::Namespaces => 3,
            Self::Storages => 4,
            Self::LiveQueries => 5,
            Self::Tables => 6,
            Self::AuditLogs => 7,
            Self::Stats => 8,
            Self::Queries => 9,
            Self::Sessions => 10,
        })
    }

    /// Returns the system table with that number.
    pub fn from_id(id: TableId) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.id() == id)
    }

    /// Returns the table's name in namespace `system`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Users => "users",
            Self::Jobs => "jobs",
            Self::Namespaces => "namespaces",
            Self::Storages => "storages",
            Self::LiveQueries => "live_queries",
            Self::Tables => "tables",
            Self::AuditLogs => "audit_logs",
            Self::Stats => "stats",
            Self::Queries => "queries",
            Self::Sessions => "sessions",
        }
    }

    /// Returns whether every user may read it. Each sees their own rows, administrators see all.
    pub fn is_for_all(self) -> bool {
        matches!(self, Self::Queries | Self::Sessions)
    }

    /// Returns whether its rows are stored like those of a SHARED table; others are computed at scan.
    pub fn is_stored(self) -> bool {
        matches!(self, Self::Jobs | Self::AuditLogs)
    }
}
