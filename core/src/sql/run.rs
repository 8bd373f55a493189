//! Runs what a session asks for: the one place that commits, retries, audits and answers.
//!
//! Each attempt takes a snapshot, asks a handler for the [`Effect`], and commits it. When another commit came
//! first, the statement is planned again on a fresh snapshot. The statement's time is taken once, before the
//! first attempt. Handlers run on the engine, except those with a small amount of work. Commits are awaited
//! on the caller's threads.
//!
//! Invariant: no other module of `sql` commits.

use std::sync::Arc;

use datafusion::common::ScalarValue;
use tracing::{debug, warn};

use super::effect::{AuditNote, Change, Denial, Effect, FollowUp};
use super::engine::Engine;
use super::execution::Execution;
use super::handlers;
use super::handlers::insert::Append;
use super::hot::KnownStatement;
use super::limits::stack::Deep;
use super::result::{Affected, Outcome};
use super::retry_queue::RetryTurn;
use crate::app_context::AppContext;
use crate::commit::{ColdWrite, LargeInsert, Receipt, TableWrite, WriteSet};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::schema_registry::CatalogChange;
use crate::segments::PendingObjects;
use crate::system_tables::audit::{self, AuditEntry};

/// What a session asks for.
#[derive(Clone)]
pub(super) enum Request {
    /// A statement, once per row of parameters; all of it is one commit.
    Statement(Arc<KnownStatement>, Arc<[Vec<ScalarValue>]>),
    /// Rows that are appended to a table.
    Append(Arc<Append>),
}

/// Runs a request.
pub(super) async fn run(mut execution: Execution, request: Request) -> Result<Outcome> {
    let mut attempts = Attempts::new(&execution);
    loop {
        match effect(&execution, &request).await? {
            Effect::Rows(rows) => return Ok(Outcome::Rows(rows)),
            Effect::Subscription(subscription) => return Ok(Outcome::Subscription(subscription)),
            Effect::Nothing(seq) => return Ok(Outcome::Affected(Affected { rows: 0, seq })),
            Effect::Denied(denial) => attempts.deny(&execution, denial).await?,
            Effect::Change(change) => {
                if let Some(outcome) = attempts.commit(&execution, *change).await? {
                    return Ok(outcome);
                }
            }
        }
        execution = execution.refreshed()?;
    }
}

/// Returns the effect of a request. Small work is done on the caller's thread, everything else on the engine.
async fn effect(execution: &Execution, request: &Request) -> Result<Effect> {
    if let Request::Statement(statement, params) = request {
        // What needs no plan needs no deep stack either.
        if statement.shape.is_small(params)
            && let Some(effect) = statement.shape.effect(execution, params).await?
        {
            return Ok(effect);
        }
        if handlers::is_quick(&statement.parsed.statement) {
            return Deep::new(handlers::effect(execution, &statement.parsed, params)).await;
        }
    }
    let (owned, request) = (execution.clone(), request.clone());
    let work = Deep::new(async move { effect_on_engine(&owned, &request).await });
    execution.ctx().engine_threads.run(&execution.control, work).await
}

async fn effect_on_engine(execution: &Execution, request: &Request) -> Result<Effect> {
    match request {
        Request::Statement(statement, params) => {
            if !statement.shape.is_small(params)
                && let Some(effect) = statement.shape.effect(execution, params).await?
            {
                return Ok(effect);
            }
            handlers::effect(execution, &statement.parsed, params).await
        }
        Request::Append(append) => handlers::insert::append(execution, append).await,
    }
}

/// The attempts of one statement.
///
/// After its first conflict a statement queues behind other retrying writers of that table: together they
/// would only invalidate each other's plans.
struct Attempts {
    ctx: Arc<AppContext>,
    engine: Arc<Engine>,
    left: usize,
    turn: Option<RetryTurn>,
}

impl Attempts {
    fn new(execution: &Execution) -> Self {
        let (ctx, engine) = (Arc::clone(execution.ctx()), Arc::clone(&execution.engine));
        Self { left: ctx.config.conflict_retries_max, ctx, engine, turn: None }
    }

    /// Commits a change with its audit rows, and does what follows. `None` means that the statement must be
    /// planned again.
    async fn commit(&mut self, execution: &Execution, change: Change) -> Result<Option<Outcome>> {
        let Change { mut set, rows, audit, segments, follow_up } = change;
        for note in &audit {
            set.tables.push(audit_row(execution, note)?);
        }
        let receipt = match segments {
            Some((insert, objects)) => self.commit_segments(insert, set, objects).await,
            None => self.commit_set(set).await,
        };
        // A job can be ended while the store refuses writes.
        if let (Err(error), Some(FollowUp::CancelJob(job))) = (&receipt, &follow_up)
            && error.kind() == ErrorKind::Unavailable
        {
            self.ctx.jobs.cancel(job)?;
        }
        let Some(receipt) = receipt? else { return Ok(None) };
        match follow_up {
            Some(follow_up) => handlers::follow_up(&self.ctx, follow_up, receipt.seq).await.map(Some),
            None => Ok(Some(Outcome::Affected(Affected { rows, seq: receipt.seq }))),
        }
    }

    /// Commits the audit row of a refusal, then returns the refusal as an error, also if the row cannot be
    /// written: the refusal must not depend on what the user may not know. `Ok` means that the statement must
    /// be planned again.
    async fn deny(&mut self, execution: &Execution, denial: Denial) -> Result<()> {
        let mut change = Change::new(execution);
        change.note(&format!("{} DENIED", denial.action), &denial.target, None, None);
        // Only the audit log conflicts here, which uses up no attempt of the statement.
        self.left += 1;
        match self.commit(execution, change).await {
            Ok(Some(_)) => Err(denial.error),
            Ok(None) => Ok(()),
            Err(error) => {
                warn!(%error, action = denial.action, "a refusal could not be audited");
                Err(denial.error)
            }
        }
    }

    async fn commit_set(&mut self, set: WriteSet) -> Result<Option<Receipt>> {
        let first = set.tables.first();
        failpoint::planned(|| first.map(|table| table.table.qualified_name()).unwrap_or_default());
        let table = first.map(|table| table.table.id);
        let dropped = dropped_tables(&set);
        match self.ctx.committer.commit(set).await {
            Ok(receipt) => {
                for table in dropped {
                    self.ctx.schema_registry.invalidate(table);
                }
                Ok(Some(receipt))
            }
            Err(error) => {
                self.use_attempt(error)?;
                if let (None, Some(table)) = (&self.turn, table) {
                    self.turn = self.engine.retry_queues.take(table).await;
                }
                Ok(None)
            }
        }
    }

    /// Commits a large INSERT with its `objects`. After a conflict the set is tried again, its keys
    /// checked anew, while the table's definition is unchanged. `None` means that the statement must be
    /// planned again.
    async fn commit_segments(
        &mut self,
        insert: LargeInsert,
        set: WriteSet,
        objects: PendingObjects,
    ) -> Result<Option<Receipt>> {
        let table = Arc::clone(&insert.table);
        let set = WriteSet { cold: Some(ColdWrite::LargeInsert(insert)), ..set };
        let committer = Arc::clone(&self.ctx.committer);
        let mut left = self.left;
        let objects = objects.keep();
        // The task outlives a caller that stops waiting: no object may be removed while a commit may name it.
        let committed = tokio::spawn(async move {
            loop {
                let outcome = committer.commit(set.clone()).await;
                let is_conflict = outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::Conflict);
                let is_same = committer.snapshot().catalog.table_by_id(table.id).is_some_and(|current| {
                    (current.version, current.revision) == (table.version, table.revision)
                });
                if is_conflict && is_same && left > 0 {
                    left -= 1;
                    continue;
                }
                objects.settle(&outcome);
                return (outcome, left);
            }
        });
        let (outcome, left) = committed.await.map_err(|_| Error::internal("the commit task failed"))?;
        self.left = left;
        match outcome {
            Ok(receipt) => Ok(Some(receipt)),
            Err(error) => self.use_attempt(error).map(|()| None),
        }
    }

    /// Uses up an attempt after a conflict; returns any other error, or the conflict when none is left.
    fn use_attempt(&mut self, error: Error) -> Result<()> {
        if error.kind() != ErrorKind::Conflict || self.left == 0 {
            return Err(error);
        }
        self.left -= 1;
        debug!(left = self.left, "another commit came first; the statement runs again");
        Ok(())
    }
}

fn dropped_tables(set: &WriteSet) -> Vec<crate::ids::TableId> {
    let changes = set.catalog.iter();
    changes
        .filter_map(|change| match change {
            CatalogChange::DropTable(table) => Some(*table),
            _ => None,
        })
        .collect()
}

fn audit_row(execution: &Execution, note: &AuditNote) -> Result<TableWrite> {
    let ctx = execution.ctx();
    let entry = AuditEntry {
        actor: &execution.principal,
        action: &note.action,
        target: &note.target,
        details: note.details.clone(),
        subject: note.subject,
    };
    audit::write(&entry, &execution.snapshot, &ctx.schema_registry, &ctx.node_id, execution.now_us)
}
