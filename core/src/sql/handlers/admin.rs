//! USE and KILL LIVE QUERY.

use super::{denied, write_down};
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::SubscriptionId;
use crate::sql::result::{Affected, Outcome};
use crate::sql::session::Session;

pub(in crate::sql) fn use_namespace(session: &Session, namespace: &str) -> Result<Outcome> {
    session.set_namespace(namespace)?;
    Ok(Outcome::Affected(Affected { rows: 0, seq: session.ctx().committer.seq() }))
}

/// Ends a live query. Users end their own, administrators any; to other users it does not exist.
pub(in crate::sql) async fn kill_live_query(session: &Session, id: &str) -> Result<Outcome> {
    let execution = session.begin()?;
    let unknown = || {
        Error::new(
            ErrorKind::NotFound,
            SqlState::UNDEFINED_OBJECT,
            format!("live query \"{id}\" does not exist"),
        )
        .hint("SELECT live_id FROM system.live_queries lists them")
    };
    let number = SubscriptionId(id.trim().parse().map_err(|_| unknown())?);
    let live_queries = &session.ctx().live_queries;
    let owner = live_queries.owner(number).ok_or_else(unknown)?;
    if owner != execution.principal.user_id && !execution.principal.may_administer() {
        let refused = Error::permission_denied(format!("permission denied to kill live query \"{id}\""));
        // The audit log records the attempt; the error does not reveal that the live query exists.
        denied(&execution, "KILL LIVE QUERY", id, refused).await;
        return Err(unknown());
    }
    let receipt = write_down(&execution, "KILL LIVE QUERY", id, Some(owner)).await?;
    live_queries.kill(number)?;
    Ok(Outcome::Affected(Affected { rows: 0, seq: receipt.seq }))
}
