//! Statements that write, wherever they come from: DoPut, or the query path of drivers that know no other.
//!
//! Invariant: a statement runs where it is named for the first time (DoPut or GetFlightInfo), once; its ticket only repeats
//! the count.

use futures::StreamExt;
use kalamdb_core::{Affected, Outcome, Params, Prepared, Result, ScalarValue, Seq, StatementKind};

use super::sessions::Bound;

/// What a statement did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    /// Rows written; -1 when the statement was a query, whose rows nobody counted.
    pub(crate) rows: i64,
    pub(crate) seq: Seq,
}

impl From<Affected> for Done {
    fn from(affected: Affected) -> Self {
        Self { rows: i64::try_from(affected.rows).unwrap_or(i64::MAX), seq: affected.seq }
    }
}

/// Runs a prepared statement with what is bound to it: one row of parameters, or many, which are one commit.
pub(crate) async fn run_bound(prepared: &Prepared, bound: &Bound) -> Result<Done> {
    match bound.rows()? {
        Some(rows) => run_rows(prepared, rows).await,
        None => done(prepared.execute(()).await?).await,
    }
}

/// Runs a prepared statement once for each row of parameters.
pub(crate) async fn run_rows(prepared: &Prepared, mut rows: Vec<Vec<ScalarValue>>) -> Result<Done> {
    if prepared.kind() == StatementKind::Update && rows.len() != 1 {
        return Ok(prepared.execute_batch(rows).await?.into());
    }
    let params = rows.pop().map_or(Params::None, Params::Positional);
    done(prepared.execute(params).await?).await
}

/// What an outcome amounts to for a caller who wants a count.
pub(crate) async fn done(outcome: Outcome) -> Result<Done> {
    match outcome {
        Outcome::Affected(affected) => Ok(affected.into()),
        // `executeUpdate("SELECT ...")`: run to its end, for its errors; the rows have no way back.
        Outcome::Rows(mut rows) => {
            let seq = rows.seq;
            while let Some(batch) = rows.next().await {
                batch?;
            }
            Ok(Done { rows: -1, seq })
        }
        Outcome::Subscription(_) => Err(kalamdb_core::Error::unsupported("SUBSCRIBE TO as an update")
            .hint("fetch it as a query: GetFlightInfo, then DoGet")),
    }
}
