//! FLUSH, STORAGE COMPACT, BACKUP DATABASE, SHOW MANIFEST and KILL JOB.
//!
//! Invariant: only the roles service, dba and system see row counts of a table's segments.

use std::sync::{Arc, LazyLock};

use datafusion::arrow::array::{ArrayRef, Int64Array, StringArray, TimestampMicrosecondArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

use super::show::{row_stream, rows};
use crate::access::Role;
use crate::app_context::AppContext;
use crate::error::{Error, Result};
use crate::ids::{JobId, Seq};
use crate::maintenance::BackupUrl;
use crate::schema_registry::TableDefinition;
use crate::sql::effect::{Change, Effect, FollowUp};
use crate::sql::execution::Execution;
use crate::sql::result::RowStream;
use crate::sql::text::cursor::QualifiedName;
use crate::sql::text::statement::{MaintenanceKind, MaintenanceTarget};

static JOBS: LazyLock<SchemaRef> = LazyLock::new(|| {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    Arc::new(Schema::new(vec![text("job_id"), text("namespace_id"), text("table_name")]))
});

static BACKUP: LazyLock<SchemaRef> = LazyLock::new(|| {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    Arc::new(Schema::new(vec![text("job_id"), text("url")]))
});

static MANIFEST: LazyLock<SchemaRef> = LazyLock::new(|| {
    let number = |name: &str| Field::new(name, DataType::Int64, false);
    Arc::new(Schema::new(vec![
        number("segment_id"),
        Field::new("path", DataType::Utf8, false),
        number("rows"),
        number("rows_gone"),
        number("bytes"),
        number("schema_version"),
        number("through_seq"),
        Field::new("created_at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), false),
        Field::new("storage_id", DataType::Utf8, false),
    ]))
});

/// Returns the schema of FLUSH and COMPACT: one row per job.
pub(in crate::sql) fn jobs_schema() -> SchemaRef {
    Arc::clone(&JOBS)
}

/// Returns the schema of BACKUP DATABASE: one row for its job.
pub(in crate::sql) fn backup_schema() -> SchemaRef {
    Arc::clone(&BACKUP)
}

/// Returns the schema of SHOW MANIFEST: one row per segment.
pub(in crate::sql) fn manifest_schema() -> SchemaRef {
    Arc::clone(&MANIFEST)
}

/// Flushes or compacts tables. Their jobs are queued by the one that commits, as they have rows.
pub(in crate::sql) fn maintain(
    execution: &Execution,
    kind: MaintenanceKind,
    target: &MaintenanceTarget,
) -> Result<Effect> {
    execution.principal.require(Role::Service, "flush and compact tables")?;
    let tables = match target {
        MaintenanceTarget::Table(name) => vec![Arc::clone(execution.find(name)?)],
        MaintenanceTarget::All(namespace) => flushed_tables(execution, namespace.as_deref())?,
    };
    let mut change = Change::new(execution);
    change.follow_up = Some(FollowUp::Maintain(kind, tables));
    Ok(change.into())
}

/// Queues the jobs of tables, and returns them.
pub(in crate::sql) async fn start_maintenance(
    ctx: &AppContext,
    kind: MaintenanceKind,
    tables: &[Arc<TableDefinition>],
) -> Result<RowStream> {
    let mut jobs = Vec::with_capacity(tables.len());
    for table in tables {
        let job = match kind {
            MaintenanceKind::Flush => ctx.jobs.flush(table).await?,
            MaintenanceKind::Compact => ctx.jobs.compact(table).await?,
        };
        jobs.push(job.to_string());
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(jobs)),
        Arc::new(StringArray::from_iter_values(tables.iter().map(|table| &*table.namespace))),
        Arc::new(StringArray::from_iter_values(tables.iter().map(|table| &*table.name))),
    ];
    row_stream(ctx.committer.seq(), &JOBS, columns)
}

/// Starts a backup. It needs the role dba, because a backup has the rows of all users.
pub(in crate::sql) fn back_up(execution: &Execution, url: &BackupUrl) -> Result<Effect> {
    const ACTION: &str = "BACKUP DATABASE";
    let shown = url.to_string();
    if let Err(error) = execution.principal.require(Role::Dba, "back up the database") {
        return Effect::denied(ACTION, &shown, error);
    }
    let mut change = Change::new(execution);
    change.note(ACTION, &shown, None, None);
    change.follow_up = Some(FollowUp::BackUp(url.clone()));
    Ok(change.into())
}

/// Queues a backup that is in the audit log, and returns its job.
pub(in crate::sql) async fn start_backup(ctx: &AppContext, url: BackupUrl, seq: Seq) -> Result<RowStream> {
    let shown = url.to_string();
    let job = ctx.jobs.back_up(url).await?;
    let text = |text: String| Arc::new(StringArray::from(vec![text])) as ArrayRef;
    row_stream(seq, &BACKUP, vec![text(job.to_string()), text(shown)])
}

fn flushed_tables(execution: &Execution, namespace: Option<&str>) -> Result<Vec<Arc<TableDefinition>>> {
    if let Some(name) = namespace
        && execution.snapshot.catalog.namespace(name).is_none()
    {
        return Err(Error::namespace_not_found(name));
    }
    let tables = execution.snapshot.catalog.tables();
    let wanted = tables.filter(|table| {
        table.is_flushed() && namespace.is_none_or(|namespace| *table.namespace == *namespace)
    });
    Ok(wanted.map(Arc::clone).collect())
}

pub(in crate::sql) async fn show_manifest(execution: &Execution, name: &QualifiedName) -> Result<Effect> {
    execution.principal.require(Role::Service, "see the segments of a table")?;
    let table = Arc::clone(execution.find(name)?);
    let snapshot = Arc::clone(&execution.snapshot);
    let segments = snapshot.cold.segments(table.id).to_vec();
    let deleted = snapshot.cold.deleted_positions(&snapshot.storage, &segments).await?;
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let numbers = |values: Vec<i64>| Arc::new(Int64Array::from(values)) as ArrayRef;
    let of_each = |value: &dyn Fn(&crate::cold_storage::Segment) -> u64| {
        numbers(segments.iter().map(|segment| number(value(segment))).collect())
    };
    let created = segments.iter().map(|segment| segment.created_at);
    let columns: Vec<ArrayRef> = vec![
        of_each(&|segment| u64::from(segment.id.0)),
        Arc::new(StringArray::from_iter_values(segments.iter().map(|segment| &segment.path))),
        of_each(&|segment| u64::from(segment.rows)),
        numbers(deleted.into_iter().map(|deleted| number(deleted.len() as u64)).collect()),
        of_each(&|segment| segment.bytes),
        of_each(&|segment| u64::from(segment.version.0)),
        of_each(&|segment| segment.through.0),
        Arc::new(TimestampMicrosecondArray::from_iter_values(created).with_timezone("UTC")),
        Arc::new(StringArray::from_iter_values(segments.iter().map(|segment| &*segment.storage))),
    ];
    rows(execution.snapshot.seq, &MANIFEST, columns)
}

pub(in crate::sql) fn kill_job(execution: &Execution, id: &str) -> Result<Effect> {
    execution.principal.require(Role::Dba, "kill a job")?;
    let job = JobId(id.to_owned());
    execution.ctx().jobs.check_running(&job)?;
    let mut change = Change::new(execution);
    change.note("KILL JOB", id, None, None);
    change.follow_up = Some(FollowUp::CancelJob(job));
    Ok(change.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::Database;
    use crate::sql::handlers;
    use crate::sql::text::parse::parse;

    #[tokio::test]
    async fn a_handler_queues_no_job() {
        let database = Database::open_in_memory().await.unwrap();
        let root = database.session_for("root").unwrap();
        root.execute("CREATE TABLE t (id BIGINT PRIMARY KEY)", ()).await.unwrap();
        let (execution, seq) = (root.view().unwrap(), database.seq());
        for sql in ["FLUSH TABLE t", "STORAGE COMPACT TABLE t", "BACKUP DATABASE TO 'file:///nowhere'"] {
            let parsed = parse(sql, database.config()).unwrap();
            let effect = handlers::effect(&execution, &parsed, &[Vec::new()]).await.unwrap();
            let Effect::Change(change) = effect else { panic!("{sql} changes nothing") };
            assert!(change.follow_up.is_some(), "{sql}");
        }
        assert_eq!(database.seq(), seq, "no job has a row");
        database.shutdown().await.unwrap();
    }
}
