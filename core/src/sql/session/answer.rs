//! The way of a statement from its beginning to its answer.
//!
//! Invariant: a statement whose caller leaves before there is an answer is told to stop; one that has its
//! answer is over, except for rows that are still to be made, and for threads that do not know yet that they
//! must stop.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;

use super::Session;
use crate::error::{Error, Result};
use crate::sql::execution::Execution;
use crate::sql::handlers::insert::Append;
use crate::sql::limits::stack::deep;
use crate::sql::result::{Affected, Outcome};
use crate::sql::run::{Request, run};
use crate::sql::text::cursor::QualifiedName;
use crate::workload::{StatementControl, StatementEnd, StopReason};

/// Runs `work` of a statement on the engine, when it is its turn, with enough stack. The statement is over
/// afterwards.
pub(super) async fn on_engine<T: Send + 'static>(
    execution: Execution,
    work: impl FnOnce(&Execution) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (ctx, owner) = (Arc::clone(execution.ctx()), Owner::of(&execution));
    let in_turn = async move {
        // The wait may have been long.
        let execution = execution.refreshed()?;
        deep(|| work(&execution))
    };
    let result = ctx.run_in_turn(&owner.control, in_turn).await;
    owner.end(if result.is_ok() { StatementEnd::Completed } else { StatementEnd::Failed });
    result
}

/// Runs a request until there is an answer. Rows that are still to be made end their statement themselves.
pub(super) async fn run_to_answer(execution: Execution, request: Request) -> Result<Outcome> {
    let owner = Owner::of(&execution);
    let outcome = run(execution, request).await;
    owner.take(&outcome);
    outcome
}

/// The one that waits for the answer of a statement; without it the statement stops.
struct Owner {
    control: Arc<StatementControl>,
    has_answer: bool,
}

impl Owner {
    fn of(execution: &Execution) -> Self {
        Self { control: Arc::clone(&execution.control), has_answer: false }
    }

    /// Takes the answer.
    fn take(mut self, outcome: &Result<Outcome>) {
        match outcome {
            Ok(Outcome::Rows(rows)) if rows.are_to_be_made() => self.has_answer = true,
            Ok(Outcome::Affected(affected)) => {
                self.control.add_rows(usize::try_from(affected.rows).unwrap_or(usize::MAX));
                self.end(StatementEnd::Completed);
            }
            Ok(Outcome::Rows(_) | Outcome::Subscription(_)) => self.end(StatementEnd::Completed),
            Err(_) => self.end(StatementEnd::Failed),
        }
    }

    /// Records that the statement is over.
    fn end(mut self, end: StatementEnd) {
        self.has_answer = true;
        self.control.end(end);
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if !self.has_answer {
            self.control.stop(StopReason::ClientGone);
        }
    }
}

/// Rows that are being sent to a table.
pub struct Appending {
    session: Session,
    table: QualifiedName,
    owner: Owner,
}

impl Appending {
    pub(super) fn new(session: Session, execution: &Execution, table: QualifiedName) -> Self {
        Self { session, table, owner: Owner::of(execution) }
    }

    /// Waits until the statement must end, and returns its error.
    pub fn stopped(&self) -> impl Future<Output = Error> + Send + use<> {
        self.owner.control.stop_error()
    }

    /// Appends the rows in one commit, as [`Session::append`].
    ///
    /// # Errors
    /// As [`Session::append`].
    pub async fn finish(self, batches: Vec<RecordBatch>) -> Result<Affected> {
        let Self { session, table, owner } = self;
        let control = Arc::clone(&owner.control);
        let outcome = async {
            control.check()?;
            // The rows took their time, and the table may have changed since the beginning.
            let execution = Execution::resume(&session.origin(), Arc::clone(&control))?;
            run(execution, Request::Append(Arc::new(Append { table, batches }))).await
        };
        let outcome = outcome.await;
        owner.take(&outcome);
        outcome?.affected()
    }
}

impl fmt::Debug for Appending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Appending").field("table", &self.table).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;
    use crate::database::Database;
    use crate::error::SqlState;

    #[tokio::test]
    async fn a_stopped_statement_is_listed_until_its_thread_is_free() {
        let database = Database::open_in_memory().await.unwrap();
        let root = database.session_for("root").unwrap();
        let statements = &database.context().statements;
        let execution = root.begin("SELECT", None).unwrap();
        let id = execution.control.id();
        let (begins, began) = oneshot::channel();
        let (ends, end) = std::sync::mpsc::channel::<()>();
        let planned = on_engine(execution, move |_| {
            let _told = begins.send(());
            // A step that never pauses.
            let _ended = end.recv();
            Ok(())
        });
        let stops = async {
            began.await.unwrap();
            statements.get(id).unwrap().stop(StopReason::QueryKilled);
        };
        let (answer, ()) = tokio::join!(planned, stops);
        assert_eq!(answer.unwrap_err().sqlstate(), SqlState::QUERY_CANCELED);
        assert!(statements.get(id).is_some(), "a thread works for it");
        drop(ends);
        while statements.get(id).is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        database.shutdown().await.unwrap();
    }
}
