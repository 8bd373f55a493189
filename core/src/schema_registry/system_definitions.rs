//! The definitions of the ten tables of namespace `system`. `system_tables` and `jobs` make their rows.
//!
//! Invariant: a column's id is its position. A new column is appended and raises the table's version.
//!
//! Columns show other objects as text: users by number, namespaces and storages by name, tables qualified.

use std::sync::Arc;

use super::column::ColumnDefinition;
use super::definition::TableDefinition;
use super::options::{TableKind, TableOptions};
use super::records::NAMESPACE_SYSTEM;
use super::system_table::SystemTable;
use crate::ids::{ColumnId, SchemaVersion, UserId};
use crate::types::ColumnType::{self, BigInt, Integer, Json, SmallInt, Text, TimestampTz};

/// Returns the definitions of all system tables of a database created at `created_at`.
pub fn system_definitions(created_at: i64) -> impl Iterator<Item = Arc<TableDefinition>> {
    SystemTable::ALL.into_iter().map(move |table| Arc::new(definition(table, created_at)))
}

fn definition(table: SystemTable, created_at: i64) -> TableDefinition {
    let columns: Vec<ColumnDefinition> = (1..)
        .zip(columns(table))
        .map(|(id, (name, ty, nullable))| ColumnDefinition::new(ColumnId(id), *name, *ty, *nullable))
        .collect();
    let next_column_id = columns.last().map_or(ColumnId(1), |column| ColumnId(column.id.0 + 1));
    TableDefinition {
        id: table.id(),
        version: SchemaVersion(1),
        revision: 0,
        namespace: Arc::from(NAMESPACE_SYSTEM),
        name: Arc::from(table.name()),
        kind: TableKind::System,
        columns,
        primary_key: vec![ColumnId(1)],
        options: TableOptions::defaults_for(TableKind::System),
        next_column_id,
        layout_since: SchemaVersion(1),
        history: Vec::new(),
        created_at,
        updated_at: created_at,
        created_by: UserId::SYSTEM,
        comment: Some(comment(table).to_owned()),
    }
}

fn comment(table: SystemTable) -> &'static str {
    match table {
        SystemTable::Users => "who may log in",
        SystemTable::Jobs => "background work",
        SystemTable::Namespaces => "where tables live",
        SystemTable::Storages => "where segments live",
        SystemTable::LiveQueries => "subscriptions running on this node",
        SystemTable::Tables => "every table",
        SystemTable::AuditLogs => "who changed what",
        SystemTable::Stats => "numbers about this node",
        SystemTable::Queries => "statements running on this node",
        SystemTable::Sessions => "sessions open on this node",
    }
}

fn columns(table: SystemTable) -> &'static [SystemColumn] {
    match table {
        SystemTable::Users => USERS,
        SystemTable::Jobs => JOBS,
        SystemTable::Namespaces => NAMESPACES,
        SystemTable::Storages => STORAGES,
        SystemTable::LiveQueries => LIVE_QUERIES,
        SystemTable::Tables => TABLES,
        SystemTable::AuditLogs => AUDIT_LOGS,
        SystemTable::Stats => STATS,
        SystemTable::Queries => QUERIES,
        SystemTable::Sessions => SESSIONS,
    }
}

/// Name, type and whether NULL is allowed. A table's first column is its primary key.
type SystemColumn = (&'static str, ColumnType, bool);

const NULL: bool = true;
const NOT_NULL: bool = false;

const USERS: &[SystemColumn] = &[
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

const JOBS: &[SystemColumn] = &[
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

const NAMESPACES: &[SystemColumn] = &[
    ("namespace_id", Text, NOT_NULL),
    ("name", Text, NOT_NULL),
    ("created_at", TimestampTz, NOT_NULL),
    ("options", Json, NULL),
    ("table_count", Integer, NOT_NULL),
];

const STORAGES: &[SystemColumn] = &[
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

const LIVE_QUERIES: &[SystemColumn] = &[
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

const TABLES: &[SystemColumn] = &[
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

const AUDIT_LOGS: &[SystemColumn] = &[
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

const STATS: &[SystemColumn] = &[("metric_name", Text, NOT_NULL), ("metric_value", Text, NULL)];

const QUERIES: &[SystemColumn] = &[
    ("query_id", Text, NOT_NULL),
    ("session_id", Text, NOT_NULL),
    ("user_id", Text, NOT_NULL),
    ("username", Text, NOT_NULL),
    ("client_address", Text, NULL),
    ("application_name", Text, NOT_NULL),
    ("kind", Text, NOT_NULL),
    ("state", Text, NOT_NULL),
    ("wait_event", Text, NULL),
    ("query", Text, NOT_NULL),
    ("started_at", TimestampTz, NOT_NULL),
    ("age_ms", BigInt, NOT_NULL),
    ("rows", BigInt, NOT_NULL),
    ("memory_bytes", BigInt, NOT_NULL),
    ("memory_peak_bytes", BigInt, NOT_NULL),
    ("spill_bytes", BigInt, NOT_NULL),
    ("cpu_ms", BigInt, NOT_NULL),
    ("statement_timeout_ms", BigInt, NULL),
    ("node_id", Text, NOT_NULL),
];

const SESSIONS: &[SystemColumn] = &[
    ("session_id", Text, NOT_NULL),
    ("user_id", Text, NOT_NULL),
    ("username", Text, NOT_NULL),
    ("client_address", Text, NULL),
    ("application_name", Text, NOT_NULL),
    ("kind", Text, NOT_NULL),
    ("namespace", Text, NOT_NULL),
    ("started_at", TimestampTz, NOT_NULL),
    ("last_active_at", TimestampTz, NOT_NULL),
    ("queries", BigInt, NOT_NULL),
    ("prepared", BigInt, NOT_NULL),
    ("live_queries", BigInt, NOT_NULL),
    ("memory_bytes", BigInt, NOT_NULL),
    ("node_id", Text, NOT_NULL),
];

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
