//! USE and KILL LIVE QUERY.

use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::SubscriptionId;
use crate::sql::effect::{Change, Denial, Effect, FollowUp};
use crate::sql::execution::Execution;

/// Changes the namespace of the session.
pub(in crate::sql) fn use_namespace(execution: &Execution, namespace: &str) -> Result<Effect> {
    execution.set_namespace(namespace)?;
    Ok(Effect::nothing(execution))
}

/// Ends a live query. Users end their own, administrators any; to other users it does not exist.
pub(in crate::sql) fn kill_live_query(execution: &Execution, id: &str) -> Result<Effect> {
    const ACTION: &str = "KILL LIVE QUERY";
    let unknown = || {
        Error::new(
            ErrorKind::NotFound,
            SqlState::UNDEFINED_OBJECT,
            format!("live query \"{id}\" does not exist"),
        )
        .hint("SELECT live_id FROM system.live_queries lists them")
    };
    let number = SubscriptionId(id.trim().parse().map_err(|_| unknown())?);
    let owner = execution.ctx().live_queries.owner(number).ok_or_else(unknown)?;
    if owner != execution.principal.user_id && !execution.principal.may_administer() {
        // The audit log records the attempt; the error does not reveal that the live query exists.
        return Ok(Effect::Denied(Denial { action: ACTION, target: id.to_owned(), error: unknown() }));
    }
    let mut change = Change::new(execution);
    change.note(ACTION, id, None, Some(owner));
    change.follow_up = Some(FollowUp::KillLiveQuery(number));
    Ok(change.into())
}
