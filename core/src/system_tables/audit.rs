//! `system.audit_logs`: who changed what. A row is in the commit it describes, so no change lacks one.

use datafusion::common::ScalarValue;
use serde_json::Value;
use uuid::Uuid;

use crate::access::Principal;
use crate::commit::{Snapshot, TableWrite};
use crate::error::{Error, Result};
use crate::ids::{NodeId, ScopeId, UserId};
use crate::jobs::{encode_row, row};
use crate::schema_registry::{SchemaRegistry, SystemTable};

/// An audited action.
#[derive(Clone, Debug)]
pub struct AuditEntry<'a> {
    /// Who did it.
    pub actor: &'a Principal,
    /// What was done, in SQL words: `CREATE TABLE`, `ALTER USER`.
    pub action: &'a str,
    /// The name of the object.
    pub target: &'a str,
    /// More details; never a password.
    pub details: Option<Value>,
    /// The user to whom or in whose name it was done.
    pub subject: Option<UserId>,
}

/// Returns the audit row of `entry` at `now_us`. The caller adds it to the write set of the audited change.
///
/// # Errors
/// `Corruption` when the table is missing from the catalog.
pub fn write(
    entry: &AuditEntry<'_>,
    snapshot: &Snapshot,
    registry: &SchemaRegistry,
    node_id: &NodeId,
    now_us: i64,
) -> Result<TableWrite> {
    let definition = snapshot
        .catalog
        .table_by_id(SystemTable::AuditLogs.id())
        .ok_or_else(|| Error::corruption("table \"system.audit_logs\" is missing from the catalog"))?;
    let table = registry.schemas(definition);
    let text = |text: &str| ScalarValue::Utf8(Some(text.to_owned()));
    let optional = ScalarValue::Utf8;
    let batch = row(
        &table,
        vec![
            ("audit_id", text(&Uuid::now_v7().to_string())),
            ("created_at", ScalarValue::TimestampMicrosecond(Some(now_us), None)),
            ("actor_user_id", text(&entry.actor.user_id.to_string())),
            ("actor_username", text(&entry.actor.username)),
            ("action", text(entry.action)),
            ("target", text(entry.target)),
            ("details", optional(entry.details.as_ref().map(Value::to_string))),
            ("ip_address", optional(None)),
            ("subject_user_id", optional(entry.subject.map(|user| user.to_string()))),
            ("node_id", text(&node_id.0)),
        ],
    )?;
    let rows = encode_row(&table, &batch)?;
    Ok(TableWrite { table: std::sync::Arc::clone(definition), scope: ScopeId::SHARED, rows })
}
