//! The rows of the ten tables of namespace `system`.
//!
//! `users`, `namespaces`, `storages` and `tables` show the catalog of the statement's snapshot. Rows of
//! `live_queries`, `stats`, `queries` and `sessions` are computed when read; `jobs` and `audit_logs` are
//! stored like SHARED tables.
//!
//! Invariants: no row holds a password, its hash or a storage's credentials. Users who are no administrators
//! see only their own rows of `queries` and `sessions`, and nothing else.

pub mod audit;
mod columns;
mod live_queries;
mod namespaces;
mod queries;
mod sessions;
mod stats;
mod storages;
mod tables;
mod users;

use datafusion::arrow::array::RecordBatch;

use crate::access::Principal;
use crate::clock::Clock;
use crate::commit::{Committer, Snapshot};
use crate::error::Result;
use crate::ids::{NodeId, UserId};
use crate::jobs::JobManager;
use crate::live_query::LiveQueryManager;
use crate::schema_registry::{SchemaRegistry, SystemTable, TableSchemas};
use crate::workload::{Sessions, Statements};

/// The sources of the rows.
pub(crate) struct SystemSources<'a> {
    /// The reader.
    pub(crate) principal: &'a Principal,
    /// Running statements.
    pub(crate) statements: &'a Statements,
    /// Open sessions.
    pub(crate) sessions: &'a Sessions,
    /// The statement's snapshot.
    pub(crate) snapshot: &'a Snapshot,
    /// Metrics of commits and storage.
    pub(crate) committer: &'a Committer,
    /// Metrics of schemas.
    pub(crate) registry: &'a SchemaRegistry,
    /// Running live queries.
    pub(crate) live_queries: &'a LiveQueryManager,
    /// Running jobs.
    pub(crate) jobs: &'a JobManager,
    /// The name of this process.
    pub(crate) node_id: &'a NodeId,
    /// Tells the time, for the uptime.
    pub(crate) clock: &'a dyn Clock,
    /// When the database was opened, in microseconds UTC.
    pub(crate) opened_at: i64,
}

/// Returns the rows of a system table in its visible schema; `None` for stored and for other tables.
///
/// # Errors
/// `Internal` when the rows do not fit the table's schema.
pub(crate) fn batch(sources: &SystemSources<'_>, table: &TableSchemas) -> Result<Option<RecordBatch>> {
    let Some(kind) = SystemTable::from_id(table.definition.id) else { return Ok(None) };
    match kind {
        SystemTable::Users => users::batch(&sources.snapshot.catalog, table),
        SystemTable::Namespaces => namespaces::batch(&sources.snapshot.catalog, table),
        SystemTable::Storages => storages::batch(&sources.snapshot.catalog, table),
        SystemTable::Tables => tables::batch(&sources.snapshot.catalog, table),
        SystemTable::LiveQueries => live_queries::batch(&sources.live_queries.list(), sources.node_id, table),
        SystemTable::Stats => stats::batch(sources, table),
        SystemTable::Queries => queries::batch(sources, table),
        SystemTable::Sessions => sessions::batch(sources, table),
        SystemTable::Jobs | SystemTable::AuditLogs => return Ok(None),
    }
    .map(Some)
}

/// Whether the reader sees the rows of a user.
fn may_see(sources: &SystemSources<'_>, user: UserId) -> bool {
    sources.principal.may_administer() || sources.principal.user_id == user
}
