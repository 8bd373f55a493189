//! The eight tables of namespace `system`: their ids and columns. `system_tables` and `jobs` make their rows.
//!
//! Invariant: an id is never given to another table, and a column's id is its position. A new column is
//! appended and raises the table's version.
//!
//! Columns show other objects as text: users by number, namespaces and storages by name, tables qualified.

use std::sync::Arc;

use super::definition::{ColumnDefinition, TableDefinition};
use super::options::{TableKind, TableOptions};
use super::records::NAMESPACE_SYSTEM;
use crate::ids::{ColumnId, SchemaVersion, TableId, UserId};
use crate::types::ColumnType::{self, BigInt, Integer, Json, SmallInt, Text, TimestampTz};

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
}

impl SystemTable {
    /// All system tables, ordered by id.
    pub const ALL: [Self; 8] = [
        Self::Users,
        Self::Jobs,
        Self::Namespaces,
        Self::Storages,
        Self::LiveQueries,
        Self::Tables,
        Self::AuditLogs,
        Self::Stats,
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
        }
    }

    /// Returns whether its rows are stored like those of a SHARED table; others are computed at scan.
    pub fn is_stored(self) -> bool {
        matches!(self, Self::Jobs | Self::AuditLogs)
    }

    fn comment(self) -> &'static str {
        match self {
            Self::Users => "who may log in",
            Self::Jobs => "background work",
            Self::Namespaces => "where tables live",
            Self::Storages => "where segments live",
            Self::LiveQueries => "subscriptions running on this node",
            Self::Tables => "every table",
            Self::AuditLogs => "who changed what",
            Self::Stats => "numbers about this node",
        }
    }

    fn columns(self) -> &'static [Column] {
        match self {
            Self::Users => USERS,
            Self::Jobs => JOBS,
            Self::Namespaces => NAMESPACES,
            Self::Storages => STORAGES,
            Self::LiveQueries => LIVE_QUERIES,
            Self::Tables => TABLES,
            Self::AuditLogs => AUDIT_LOGS,
            Self::Stats => STATS,
        }
    }

    fn definition(self, created_at: i64) -> TableDefinition {
        let columns: Vec<ColumnDefinition> = (1..)
            .zip(self.columns())
            .map(|(id, (name, ty, nullable))| ColumnDefinition::new(ColumnId(id), *name, *ty, *nullable))
            .collect();
        let next_column_id = columns.last().map_or(ColumnId(1), |column| ColumnId(column.id.0 + 1));
        TableDefinition {
            id: self.id(),
            version: SchemaVersion(1),
            revision: 0,
            namespace: Arc::from(NAMESPACE_SYSTEM),
            name: Arc::from(self.name()),
            kind: TableKind::System,
            columns,
            primary_key: vec![ColumnId(1)],
            options: TableOptions::of(TableKind::System),
            next_column_id,
            layout_since: SchemaVersion(1),
            history: Vec::new(),
            created_at,
            updated_at: created_at,
            created_by: UserId::SYSTEM,
            comment: Some(self.comment().to_owned()),
        }
    }
}

/// Name, type and whether NULL is allowed. A table's first column is its primary key.
type Column = (&'static str, ColumnType, bool);

const NULL: bool = true;
const NOT_NULL: bool = false;

const USERS: &[Column] = &[
    ("user_id", Text, NOT_NULL),
    ("username", Text, NOT_NULL),
    ("role", Text, NOT_NULL),
    ("email", Text, NULL),
    ("auth_type", Text, NOT_NULL),
    ("auth_data", Json, NULL),
    ("storage_mode", Text, NOT_NULL),
    ("storage_id", Text, NULL),
    ("created_at", TimestampTz, NOT_NULL),
    ("updated_at", TimestampTz, NOT_NULL),
    ("last_login_at", TimestampTz, NULL),
    ("last_seen_at", TimestampTz, NULL),
    ("deleted_at", TimestampTz, NULL),
];

const JOBS: &[Column] = &[
    ("job_id", Text, NOT_NULL),
    ("job_type", Text, NOT_NULL),
    ("namespace_id", Text, NULL),
    ("table_name", Text, NULL),
    ("status", Text, NOT_NULL),
    ("parameters", Json, NULL),
    ("result", Text, NULL),
    ("trace", Text, NULL),
    ("error_message", Text, NULL),
    ("idempotency_key", Text, NULL),
    ("retry_count", SmallInt, NOT_NULL),
    ("max_retries", SmallInt, NOT_NULL),
    ("memory_used", BigInt, NULL),
    ("cpu_used", BigInt, NULL),
    ("created_at", TimestampTz, NOT_NULL),
    ("updated_at", TimestampTz, NOT_NULL),
    ("started_at", TimestampTz, NULL),
    ("completed_at", TimestampTz, NULL),
    ("node_id", Text, NOT_NULL),
];

const NAMESPACES: &[Column] = &[
    ("namespace_id", Text, NOT_NULL),
    ("name", Text, NOT_NULL),
    ("created_at", TimestampTz, NOT_NULL),
    ("options", Json, NULL),
    ("table_count", Integer, NOT_NULL),
];

const STORAGES: &[Column] = &[
    ("storage_id", Text, NOT_NULL),
    ("storage_name", Text, NOT_NULL),
    ("description", Text, NULL),
    ("storage_type", Text, NOT_NULL),
    ("base_directory", Text, NOT_NULL),
    ("credentials", Text, NULL),
    ("config_json", Json, NULL),
    ("shared_tables_template", Text, NOT_NULL),
    ("user_tables_template", Text, NOT_NULL),
    ("created_at", TimestampTz, NOT_NULL),
    ("updated_at", TimestampTz, NOT_NULL),
];

const LIVE_QUERIES: &[Column] = &[
    ("live_id", Text, NOT_NULL),
    ("connection_id", Text, NOT_NULL),
    ("subscription_id", Text, NOT_NULL),
    ("namespace_id", Text, NOT_NULL),
    ("table_name", Text, NOT_NULL),
    ("query_id", Text, NOT_NULL),
    ("user_id", Text, NOT_NULL),
    ("query", Text, NOT_NULL),
    ("options", Json, NULL),
    ("status", Text, NOT_NULL),
    ("created_at", TimestampTz, NOT_NULL),
    ("updated_at", TimestampTz, NOT_NULL),
    ("changes", BigInt, NOT_NULL),
    ("node_id", Text, NOT_NULL),
];

const TABLES: &[Column] = &[
    ("table_id", Text, NOT_NULL),
    ("table_name", Text, NOT_NULL),
    ("namespace_id", Text, NOT_NULL),
    ("table_type", Text, NOT_NULL),
    ("created_at", TimestampTz, NOT_NULL),
    ("schema_version", Integer, NOT_NULL),
    ("columns", Json, NOT_NULL),
    ("table_comment", Text, NULL),
    ("updated_at", TimestampTz, NOT_NULL),
    ("options", Json, NULL),
    ("access_level", Text, NULL),
    ("storage_id", Text, NULL),
];

const AUDIT_LOGS: &[Column] = &[
    ("audit_id", Text, NOT_NULL),
    ("created_at", TimestampTz, NOT_NULL),
    ("actor_user_id", Text, NOT_NULL),
    ("actor_username", Text, NOT_NULL),
    ("action", Text, NOT_NULL),
    ("target", Text, NOT_NULL),
    ("details", Json, NULL),
    ("ip_address", Text, NULL),
    ("subject_user_id", Text, NULL),
    ("node_id", Text, NOT_NULL),
];

const STATS: &[Column] = &[("metric_name", Text, NOT_NULL), ("metric_value", Text, NULL)];

/// Returns the definitions of all system tables of a database created at `created_at`.
pub fn system_definitions(created_at: i64) -> impl Iterator<Item = Arc<TableDefinition>> {
    SystemTable::ALL.into_iter().map(move |table| Arc::new(table.definition(created_at)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_system_table_is_a_valid_table() {
        for (table, definition) in SystemTable::ALL.into_iter().zip(system_definitions(1)) {
            definition.validate().unwrap();
            assert_eq!(SystemTable::from_id(definition.id), Some(table));
            assert_eq!(&*definition.name, table.name());
            for column in &definition.columns {
                let is_time = column.ty == ColumnType::TimestampTz;
                assert_eq!(is_time, column.name.ends_with("_at"), "{}.{}", definition.name, column.name);
            }
        }
    }
}
