//! The rows of the eight tables of namespace `system`.
//!
//! `users`, `namespaces`, `storages` and `tables` show the catalog of the statement's snapshot. Rows of
//! `live_queries` and `stats` are computed when read; `jobs` and `audit_logs` are stored like SHARED tables.
//!
//! Invariant: no row holds a password hash or a storage's credentials.

pub mod audit;
mod columns;
mod live_queries;
mod namespaces;
mod stats;
mod storages;
mod tables;
mod users;

use datafusion::arrow::array::RecordBatch;

use crate::clock::Clock;
use crate::commit::{Committer, Snapshot};
use crate::error::Result;
use crate::ids::NodeId;
use crate::jobs::JobManager;
use crate::live_query::LiveQueryManager;
use crate::schema_registry::{SchemaRegistry, SystemTable, TableSchemas};

/// The sources of the rows.
pub struct SystemSources<'a> {
    /// The statement's snapshot.
    pub snapshot: &'a Snapshot,
    /// Metrics of commits and storage.
    pub committer: &'a Committer,
    /// Metrics of schemas.
    pub registry: &'a SchemaRegistry,
    /// Running live queries.
    pub live_queries: &'a LiveQueryManager,
    /// Running jobs.
    pub jobs: &'a JobManager,
    /// The name of this process.
    pub node_id: &'a NodeId,
    /// Tells the time, for the uptime.
    pub clock: &'a dyn Clock,
    /// When the database was opened, in microseconds UTC.
    pub opened_at: i64,
}

/// Returns the rows of a system table in its visible schema; `None` for stored and for other tables.
///
/// # Errors
/// `Internal` when the rows do not fit the table's schema.
pub fn batch(sources: &SystemSources<'_>, table: &TableSchemas) -> Result<Option<RecordBatch>> {
    let Some(kind) = SystemTable::from_id(table.definition.id) else { return Ok(None) };
    match kind {
        SystemTable::Users => users::batch(&sources.snapshot.catalog, table),
        SystemTable::Namespaces => namespaces::batch(&sources.snapshot.catalog, table),
        SystemTable::Storages => storages::batch(&sources.snapshot.catalog, table),
        SystemTable::Tables => tables::batch(&sources.snapshot.catalog, table),
        SystemTable::LiveQueries => live_queries::batch(&sources.live_queries.list(), sources.node_id, table),
        SystemTable::Stats => stats::batch(sources, table),
        SystemTable::Jobs | SystemTable::AuditLogs => return Ok(None),
    }
    .map(Some)
}
