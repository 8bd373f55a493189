//! Runs what a session asks for: the one place that commits, retries, audits and answers.
//!
//! Each attempt takes a snapshot, asks a handler for the [`Effect`], and commits it. When another commit came
//! first, the statement is planned again on a fresh snapshot. The statement's time is taken once, before the
//! first attempt, and its password is hashed once. Handlers run on the engine, when it is the statement's
//! turn, except those with a small amount of work. Turns and commits are awaited on the caller's threads.
//!
//! Invariants: no other module of `sql` commits. A statement that waits for a commit holds no slot.

use std::sync::Arc;

use datafusion::common::ScalarValue;
use tracing::{debug, warn};

use super::effect::{AuditNote, Change, Denial, Effect};
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
use crate::workload::{Slot, StatementControl, StatementState};

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
    let mut slot = None;
    loop {
        match effect(&mut execution, &request, &mut slot).await? {
            Effect::Rows(rows) => return Ok(Outcome::Rows(rows.in_slot(slot))),
            Effect::Subscription(subscription) => return Ok(Outcome::Subscription(subscription)),
            Effect::Nothing(seq) => return Ok(Outcome::Affected(Affected { rows: 0, seq })),
            Effect::Denied(denial) => attempts.deny(&execution, denial).await?,
            // Hashing takes long, and rights may change meanwhile: the next snapshot decides.
            Effect::NewPassword(password) => {
                execution.password_hash = Some(execution.engine.passwords.hash(&password).await?);
            }
            Effect::Change(change) => {
                if let Some(outcome) = attempts.commit(&execution, *change).await? {
                    return Ok(outcome);
                }
            }
        }
        execution = execution.refreshed()?;
    }
}

/// Returns the effect of a request. Small work is done on the caller's thread, everything else on the engine,
/// in the slot of the statement. Afterwards the statement holds it only to return rows.
async fn effect(execution: &mut Execution, request: &Request, slot: &mut Option<Slot>) -> Result<Effect> {
    if let Some(effect) = effect_on_caller(execution, request).await? {
        return Ok(effect);
    }
    let ctx = Arc::clone(execution.ctx());
    let held = match slot.take() {
        Some(mut slot) => {
            slot.take_back().await?;
            slot
        }
        None => ctx.admission.enter(&execution.control).await?,
    };
    execution.control.set_state(StatementState::Planning);
    // The wait may have been long.
    *execution = execution.refreshed()?;
    let (owned, request) = (execution.clone(), request.clone());
    let work = Deep::new(async move { effect_on_engine(&owned, &request).await });
    let in_slot = async move { work.await.map(|effect| (effect, held)) };
    let (effect, mut held) = ctx.engine_threads.run(&execution.control, in_slot).await?;
    if !matches!(effect, Effect::Rows(_)) {
        held.give_back();
    }
    *slot = Some(held);
    Ok(effect)
}

/// Returns the effect of a request with a small amount of work.
async fn effect_on_caller(execution: &Execution, request: &Request) -> Result<Option<Effect>> {
    let Request::Statement(statement, params) = request else { return Ok(None) };
    // What needs no plan needs no deep stack either.
    if statement.shape.is_small(params)
        && let Some(effect) = statement.shape.effect(execution, params).await?
    {
        return Ok(Some(effect));
    }
    if handlers::is_quick(&statement.parsed.statement) {
        return Deep::new(handlers::effect(execution, &statement.parsed, params)).await.map(Some);
    }
    Ok(None)
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
    control: Arc<StatementControl>,
    left: usize,
    turn: Option<RetryTurn>,
}

impl Attempts {
    fn new(execution: &Execution) -> Self {
        let (ctx, engine) = (Arc::clone(execution.ctx()), Arc::clone(&execution.engine));
        let control = Arc::clone(&execution.control);
        Self { left: ctx.config.conflict_retries_max, ctx, engine, control, turn: None }
    }

    /// Commits a change with its audit rows, and does what follows. `None` means that the statement must be
    /// planned again.
    async fn commit(&mut self, execution: &Execution, change: Change) -> Result<Option<Outcome>> {
        let Change { mut set, rows, audit, segments, mut follow_up } = change;
        failpoint::planned(|| match set.tables.first() {
            Some(write) => write.table.qualified_name(),
            None => audit.first().map(|note| note.target.clone()).unwrap_or_default(),
        });
        for note in &audit {
            set.tables.push(audit_row(execution, note)?);
        }
        self.control.set_state(StatementState::Committing);
        let receipt = match segments {
            Some((insert, objects)) => self.commit_segments(insert, set, objects).await,
            None => self.commit_set(set).await,
        };
        // Work can be ended while the store refuses writes: it may be the reason.
        if receipt.as_ref().is_err_and(refuses_writes)
            && let Some(end) = follow_up.take_if(|follow_up| follow_up.ends_work())
        {
            handlers::follow_up(&self.ctx, end, execution.snapshot.seq).await?;
        }
        let Some(receipt) = receipt? else { return Ok(None) };
        let Some(follow_up) = follow_up else {
            return Ok(Some(Outcome::Affected(Affected { rows, seq: receipt.seq })));
        };
        tokio::select! {
            biased;
            outcome = handlers::follow_up(&self.ctx, follow_up, receipt.seq) => outcome.map(Some),
            error = self.control.stop_error() => Err(error),
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
        let table = set.tables.first().map(|table| table.table.id);
        let dropped = dropped_tables(&set);
        match self.ctx.committer.commit_unless(set, self.control.stop_error()).await {
            Ok(receipt) => {
                for table in dropped {
                    self.ctx.schema_registry.invalidate(table);
                }
                Ok(Some(receipt))
            }
            Err(error) => {
                self.use_attempt(error)?;
                if let (None, Some(table)) = (&self.turn, table) {
                    self.control.set_state(StatementState::Retrying);
                    self.turn = tokio::select! {
                        biased;
                        error = self.control.stop_error() => return Err(error),
                        turn = self.engine.retry_queues.take(table) => turn,
                    };
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
        let (committer, control) = (Arc::clone(&self.ctx.committer), Arc::clone(&self.control));
        let mut left = self.left;
        let objects = objects.keep();
        // The task outlives a caller that stops waiting: no object may be removed while a commit may name it.
        let committed = tokio::spawn(async move {
            loop {
                let outcome = committer.commit_unless(set.clone(), control.stop_error()).await;
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

/// Whether an error says that the store takes no writes now.
fn refuses_writes(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::ResourceExhausted)
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
