//! A job as `system.jobs` shows it, and its encoding as a row of that table.
//!
//! ```text
//! new -> queued -> running -> completed | failed | cancelled
//!           ^         |
//!           +- retrying
//! ```
//!
//! Invariant: a job's state only moves along an arrow, and every move that others can see is a commit.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::common::ScalarValue;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::ids::{JobId, NodeId};
use crate::schema_registry::TableSchemas;

/// The kind of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobKind {
    /// Writes the database to a backup.
    Backup,
    /// Compacts segments of a table.
    Compact,
    /// Writes the hot rows of a table to segments.
    Flush,
    /// Trims the change log.
    LogTrim,
}

impl JobKind {
    /// Returns its name in `system.jobs`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Compact => "compact",
            Self::Flush => "flush",
            Self::LogTrim => "log_trim",
        }
    }

    /// Returns the two letters with which its job ids begin.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Backup => "BK",
            Self::Compact => "CO",
            Self::Flush => "FL",
            Self::LogTrim => "TR",
        }
    }
}

/// The state of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobStatus {
    /// Created, but not queued yet.
    New,
    /// Waits for its turn.
    Queued,
    /// Runs.
    Running,
    /// Failed for a transient reason; runs again after a pause.
    Retrying,
    /// Succeeded.
    Completed,
    /// Failed; see the error.
    Failed,
    /// Ended by `KILL JOB` or by the shutdown.
    Cancelled,
}

impl JobStatus {
    const ALL: [Self; 7] = [
        Self::New,
        Self::Queued,
        Self::Running,
        Self::Retrying,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Returns its name in `system.jobs`.
    pub fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Returns the status with this name.
    pub(super) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == name)
    }

    /// Whether a job stays in it.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// Whether a job can move from here to `next`.
    pub fn may_become(self, next: Self) -> bool {
        match self {
            Self::New => next == Self::Queued,
            Self::Queued => matches!(next, Self::Running | Self::Failed | Self::Cancelled),
            Self::Running => next.is_final() || next == Self::Retrying,
            Self::Retrying => matches!(next, Self::Queued | Self::Failed | Self::Cancelled),
            Self::Completed | Self::Failed | Self::Cancelled => false,
        }
    }
}

/// One job.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) id: JobId,
    pub(super) kind: JobKind,
    /// The table it works on: namespace and name.
    pub(super) table: Option<(Arc<str>, Arc<str>)>,
    pub(super) status: JobStatus,
    pub(super) parameters: Value,
    pub(super) result: Option<String>,
    pub(super) error: Option<String>,
    pub(super) retries: u16,
    pub(super) retries_max: u16,
    pub(super) created_at: i64,
    pub(super) updated_at: i64,
    pub(super) started_at: Option<i64>,
    pub(super) completed_at: Option<i64>,
    pub(super) node: NodeId,
}

impl Job {
    pub(super) fn new(id: JobId, kind: JobKind, parameters: Value, node: NodeId, now: i64) -> Self {
        Self {
            id,
            kind,
            table: None,
            status: JobStatus::New,
            parameters,
            result: None,
            error: None,
            retries: 0,
            retries_max: 0,
            created_at: now,
            updated_at: now,
            started_at: None,
            completed_at: None,
            node,
        }
    }

    /// Moves to `next` at `now`.
    pub(super) fn become_status(&mut self, next: JobStatus, now: i64) {
        assert!(
            self.status.may_become(next),
            "a job cannot go from {} to {}",
            self.status.name(),
            next.name()
        );
        self.status = next;
        self.updated_at = now;
        if next == JobStatus::Running {
            self.started_at.get_or_insert(now);
        }
        if next == JobStatus::Retrying {
            self.retries += 1;
        }
        if next.is_final() {
            self.completed_at = Some(now);
        }
    }

    /// Returns the job as one row of `system.jobs`.
    pub(super) fn batch(&self, jobs: &TableSchemas) -> Result<RecordBatch> {
        let text = |text: &str| ScalarValue::Utf8(Some(text.to_owned()));
        let optional = |text: &Option<String>| ScalarValue::Utf8(text.clone());
        let none = || ScalarValue::Utf8(None);
        let name = |name: &Option<&Arc<str>>| ScalarValue::Utf8(name.map(|name| name.to_string()));
        let count = |count: u16| ScalarValue::Int16(Some(i16::try_from(count).unwrap_or(i16::MAX)));
        let time = |at: Option<i64>| ScalarValue::TimestampMicrosecond(at, None);
        row(
            jobs,
            vec![
                ("job_id", text(&self.id.0)),
                ("job_type", text(self.kind.name())),
                ("namespace_id", name(&self.table.as_ref().map(|(namespace, _)| namespace))),
                ("table_name", name(&self.table.as_ref().map(|(_, name)| name))),
                ("status", text(self.status.name())),
                ("parameters", text(&self.parameters.to_string())),
                ("result", optional(&self.result)),
                ("trace", none()),
                ("error_message", optional(&self.error)),
                ("idempotency_key", none()),
                ("retry_count", count(self.retries)),
                ("max_retries", count(self.retries_max)),
                ("memory_used", ScalarValue::Int64(None)),
                ("cpu_used", ScalarValue::Int64(None)),
                ("created_at", time(Some(self.created_at))),
                ("updated_at", time(Some(self.updated_at))),
                ("started_at", time(self.started_at)),
                ("completed_at", time(self.completed_at)),
                ("node_id", text(&self.node.0)),
            ],
        )
    }
}

/// Returns one row of a system table in its visible schema. `values` has every column, in any order.
pub(crate) fn row(table: &TableSchemas, values: Vec<(&str, ScalarValue)>) -> Result<RecordBatch> {
    let missing = |name: &str| {
        Error::internal(format!(
            "a row of \"{}\" has no column \"{name}\"",
            table.definition.qualified_name()
        ))
    };
    let columns = table
        .visible
        .fields()
        .iter()
        .map(|field| {
            let (_, value) =
                values.iter().find(|(name, _)| name == field.name()).ok_or_else(|| missing(field.name()))?;
            Ok(cast(&value.to_array()?, field.data_type())?)
        })
        .collect::<Result<Vec<ArrayRef>>>()?;
    assert_eq!(columns.len(), values.len(), "a row of a system table has the table's columns");
    Ok(RecordBatch::try_new(Arc::clone(&table.visible), columns)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_moves_only_forwards() {
        use JobStatus::{Cancelled, Completed, Failed, New, Queued, Retrying, Running};
        let all = JobStatus::ALL;
        let allowed: Vec<_> = all
            .into_iter()
            .flat_map(|from| all.into_iter().map(move |to| (from, to)))
            .filter(|(from, to)| from.may_become(*to))
            .collect();
        assert_eq!(
            allowed,
            [
                (New, Queued),
                (Queued, Running),
                (Queued, Failed),
                (Queued, Cancelled),
                (Running, Retrying),
                (Running, Completed),
                (Running, Failed),
                (Running, Cancelled),
                (Retrying, Queued),
                (Retrying, Failed),
                (Retrying, Cancelled),
            ]
        );
        for status in all {
            assert_eq!(JobStatus::parse(status.name()), Some(status));
        }
    }
}
