//! What a statement wants: rows, a change, a live query, nothing. A handler returns an [`Effect`] and never
//! commits; [`run`](super::run) does.
//!
//! Invariant: all changes of a statement are one commit, and its audit rows are part of it.

use std::sync::Arc;

use serde_json::Value;

use crate::commit::{LargeInsert, WriteSet};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{JobId, QueryId, Seq, SessionId, SubscriptionId, UserId};
use crate::live_query::Subscription;
use crate::maintenance::BackupUrl;
use crate::schema_registry::TableDefinition;
use crate::segments::PendingObjects;
use crate::sql::execution::Execution;
use crate::sql::result::RowStream;
use crate::sql::text::statement::MaintenanceKind;

/// The effect of one statement, planned on one snapshot.
pub(super) enum Effect {
    /// The statement returns rows and changes nothing.
    Rows(RowStream),
    /// The statement changes something once this is committed.
    Change(Box<Change>),
    /// The statement is refused; the audit log records that.
    Denied(Denial),
    /// The statement starts a live query.
    Subscription(Subscription),
    /// The statement sets this password: it is planned again, with the hash in the [`Execution`].
    NewPassword(String),
    /// The statement found nothing to do, as of this seq.
    Nothing(Seq),
}

/// What a statement changes.
pub(super) struct Change {
    /// The rows and catalog records, without the audit rows.
    pub(super) set: WriteSet,
    /// Rows inserted, updated or deleted; 0 for DDL.
    pub(super) rows: u64,
    /// The actions the audit log records.
    pub(super) audit: Vec<AuditNote>,
    /// New rows that are already written as segments, with their objects.
    pub(super) segments: Option<(LargeInsert, PendingObjects)>,
    /// What happens once the change is committed.
    pub(super) follow_up: Option<FollowUp>,
}

/// One action for the audit log.
pub(super) struct AuditNote {
    /// The action in SQL words: `CREATE TABLE`, `ALTER USER`.
    pub(super) action: String,
    /// The name of the object.
    pub(super) target: String,
    /// More details; never a password.
    pub(super) details: Option<Value>,
    /// The user the action concerns.
    pub(super) subject: Option<UserId>,
}

/// A refused statement.
pub(super) struct Denial {
    /// The action without `DENIED`.
    pub(super) action: &'static str,
    pub(super) target: String,
    /// What the user is told.
    pub(super) error: Error,
}

/// An action outside the store that must not happen before the commit.
pub(super) enum FollowUp {
    /// Ends a live query.
    KillLiveQuery(SubscriptionId),
    /// Ends a statement.
    KillQuery(QueryId),
    /// Ends a session.
    KillSession(SessionId),
    /// Queues a job for each of these tables and returns the jobs.
    Maintain(MaintenanceKind, Vec<Arc<TableDefinition>>),
    /// Starts a backup and returns its job.
    BackUp(BackupUrl),
    /// Ends a job.
    CancelJob(JobId),
}

impl FollowUp {
    /// Whether it ends work that may be the reason why the store refuses writes.
    pub(super) fn ends_work(&self) -> bool {
        match self {
            Self::KillLiveQuery(_) | Self::KillQuery(_) | Self::KillSession(_) | Self::CancelJob(_) => true,
            Self::Maintain(..) | Self::BackUp(_) => false,
        }
    }
}

impl Effect {
    /// The statement found nothing to do.
    pub(super) fn nothing(execution: &Execution) -> Self {
        Self::Nothing(execution.snapshot.seq)
    }

    /// Returns a refusal as a [`Denial`], and any other error as it is.
    pub(super) fn denied(action: &'static str, target: &str, error: Error) -> Result<Self> {
        if error.kind() != ErrorKind::PermissionDenied {
            return Err(error);
        }
        Ok(Self::Denied(Denial { action, target: target.to_owned(), error }))
    }
}

impl Change {
    /// Returns an empty change, planned on the snapshot of `execution`.
    pub(super) fn new(execution: &Execution) -> Self {
        Self { set: execution.write_set(), rows: 0, audit: Vec::new(), segments: None, follow_up: None }
    }

    /// Adds an action to the audit log.
    pub(super) fn note(
        &mut self,
        action: &str,
        target: &str,
        details: Option<Value>,
        subject: Option<UserId>,
    ) {
        let (action, target) = (action.to_owned(), target.to_owned());
        self.audit.push(AuditNote { action, target, details, subject });
    }
}

impl From<Change> for Effect {
    fn from(change: Change) -> Self {
        Self::Change(Box::new(change))
    }
}
