//! Statements that write, on every path: DoPut, or the query path of drivers that use no other.
//!
//! Invariant: a statement runs once, in the first call that executes it (DoPut or GetFlightInfo); its ticket
//! only repeats the count.

use futures::StreamExt;
use kalamdb_core::{Affected, Outcome, Params, Prepared, Result, ScalarValue, Seq, StatementKind};

use super::parameters::Bound;

/// The row count of a statement and the seq of its commit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriteOutcome {
    /// Rows written; -1 when the statement was a query, whose rows are not counted.
    pub(crate) rows: i64,
    pub(crate) seq: Seq,
}

impl From<Affected> for WriteOutcome {
    fn from(affected: Affected) -> Self {
        Self { rows: i64::try_from(affected.rows).unwrap_or(i64::MAX), seq: affected.seq }
    }
}

/// Runs a prepared statement with its bound parameters: one row, or several rows as one commit.
pub(crate) async fn run_bound(prepared: &Prepared, bound: &Bound) -> Result<WriteOutcome> {
    match bound.rows()? {
        Some(rows) => run_rows(prepared, rows).await,
        None => write_outcome(prepared.execute(()).await?).await,
    }
}

/// Runs a prepared statement once for each row of parameters.
pub(crate) async fn run_rows(prepared: &Prepared, mut rows: Vec<Vec<ScalarValue>>) -> Result<WriteOutcome> {
    if prepared.kind() == StatementKind::Update && rows.len() != 1 {
        return Ok(prepared.execute_batch(rows).await?.into());
    }
    let params = rows.pop().map_or(Params::None, Params::Positional);
    write_outcome(prepared.execute(params).await?).await
}

/// Converts an outcome for a caller that wants a count.
pub(crate) async fn write_outcome(outcome: Outcome) -> Result<WriteOutcome> {
    match outcome {
        Outcome::Affected(affected) => Ok(affected.into()),
        // `executeUpdate("SELECT ...")`: run it to the end for its errors; the rows cannot be returned.
        Outcome::Rows(mut rows) => {
            let seq = rows.seq;
            while let Some(batch) = rows.next().await {
                batch?;
            }
            Ok(WriteOutcome { rows: -1, seq })
        }
        Outcome::Subscription(_) => Err(kalamdb_core::Error::unsupported("SUBSCRIBE TO as an update")
            .hint("fetch it as a query: GetFlightInfo, then DoGet")),
    }
}
