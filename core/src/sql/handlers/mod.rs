//! What each statement does: plain functions over a session, one file per family.
//!
//! Invariant: all changes of a statement are one commit, and its audit row is part of it.

pub(super) mod admin;
pub(super) mod insert;
pub(super) mod namespace;
mod pieces;
pub(super) mod query;
pub(super) mod rows;
pub(super) mod show;
pub(super) mod storage;
pub(super) mod storages;
pub(super) mod subscribe;
pub(super) mod table;
pub(super) mod update_delete;
pub(super) mod user;

use std::sync::Arc;

use serde_json::Value;
use tracing::debug;

use super::execution::Execution;
use super::result::{Affected, Outcome};
use super::session::Session;
use super::turns::Turn;
use crate::commit::{ColdWrite, LargeInsert, Receipt, TableWrite, WriteSet};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::ids::UserId;
use crate::system_tables::audit::{self, AuditEntry};
use crate::tables::flush::Files;

/// Runs a statement again, on a fresh snapshot, when another commit came first.
///
/// After its first conflict a statement queues behind other retrying writers of that table: together they
/// would only invalidate each other's plans.
pub(super) struct Attempts<'a> {
    session: &'a Session,
    left: usize,
    turn: Option<Turn>,
}

impl<'a> Attempts<'a> {
    pub(super) fn new(session: &'a Session) -> Self {
        Self { session, left: session.ctx().config.conflict_retries_max, turn: None }
    }

    /// Commits; `None` means that the statement must be planned again.
    pub(super) async fn commit(&mut self, set: WriteSet, rows: u64) -> Result<Option<Affected>> {
        let first = set.tables.first();
        failpoint::planned(|| first.map(|table| table.table.qualified_name()).unwrap_or_default());
        let table = first.map(|table| table.table.id);
        match self.session.ctx().committer.commit(set).await {
            Ok(receipt) => Ok(Some(Affected { rows, seq: receipt.seq })),
            Err(error) => {
                self.lost(error)?;
                if let (None, Some(table)) = (&self.turn, table) {
                    self.turn = self.session.engine().turns.take(table).await;
                }
                Ok(None)
            }
        }
    }

    /// Commits a large INSERT with the objects `files`. After a conflict the set is tried again, its keys
    /// checked anew, while the table's definition is unchanged. `None` means that the statement must be
    /// planned again.
    pub(super) async fn commit_large(
        &mut self,
        insert: LargeInsert,
        set: WriteSet,
        files: Files,
    ) -> Result<Option<Affected>> {
        let (rows, table) = (insert.rows(), Arc::clone(&insert.table));
        let set = WriteSet { cold: Some(ColdWrite::LargeInsert(insert)), ..set };
        let committer = Arc::clone(&self.session.ctx().committer);
        let mut left = self.left;
        let files = files.keep();
        // The task outlives a caller that stops waiting: no object may be removed while a commit may name it.
        let committed = tokio::spawn(async move {
            loop {
                let outcome = committer.commit(set.clone()).await;
                let is_lost = outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::Conflict);
                let is_same = committer.snapshot().catalog.table_by_id(table.id).is_some_and(|current| {
                    (current.version, current.revision) == (table.version, table.revision)
                });
                if is_lost && is_same && left > 0 {
                    left -= 1;
                    continue;
                }
                files.settle(&outcome);
                return (outcome, left);
            }
        });
        let (outcome, left) = committed.await.map_err(|_| Error::internal("a commit broke down"))?;
        self.left = left;
        match outcome {
            Ok(receipt) => Ok(Some(Affected { rows, seq: receipt.seq })),
            Err(error) => self.lost(error).map(|()| None),
        }
    }

    /// Uses up an attempt after a conflict; returns any other error, or the conflict when none is left.
    fn lost(&mut self, error: Error) -> Result<()> {
        if error.kind() != ErrorKind::Conflict || self.left == 0 {
            return Err(error);
        }
        self.left -= 1;
        debug!(left = self.left, "another commit came first, the statement is run again");
        Ok(())
    }
}

/// Returns the audit row of a statement's action.
pub(super) fn audit_row(
    execution: &Execution,
    action: &str,
    target: &str,
    details: Option<Value>,
    subject: Option<UserId>,
) -> Result<TableWrite> {
    let ctx = execution.ctx();
    let entry = AuditEntry { actor: &execution.principal, action, target, details, subject };
    audit::write(&entry, &execution.snapshot, &ctx.schema_registry, &ctx.node_id, execution.now_us)
}

/// Writes an audit row for a refused statement and returns the refusal, or the failure to write the row.
/// Other errors are returned as they are.
pub(super) async fn denied(execution: &Execution, action: &str, target: &str, error: Error) -> Error {
    if error.kind() != ErrorKind::PermissionDenied {
        return error;
    }
    match write_down(execution, &format!("{action} DENIED"), target, None).await {
        Ok(_) => error,
        Err(failure) => failure,
    }
}

/// Commits an audit row by itself; retries when a flush of the audit log came first.
pub(super) async fn write_down(
    execution: &Execution,
    action: &str,
    target: &str,
    subject: Option<UserId>,
) -> Result<Receipt> {
    loop {
        let mut set = execution.write_set();
        set.tables.push(audit_row(execution, action, target, None, subject)?);
        match execution.ctx().committer.commit(set).await {
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            outcome => return outcome,
        }
    }
}

/// Returns the result of a statement that had nothing to do.
pub(super) fn nothing_to_do(execution: &Execution) -> Outcome {
    Outcome::Affected(Affected { rows: 0, seq: execution.snapshot.seq })
}
