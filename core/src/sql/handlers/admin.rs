//! USE, SET, and the KILL of live queries, statements and sessions.
//!
//! Invariant: users end what is their own, administrators end all; to other users it does not exist.

use std::fmt;

use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::{QueryId, SessionId, SubscriptionId, UserId};
use crate::sql::effect::{Change, Denial, Effect, FollowUp};
use crate::sql::execution::Execution;
use crate::sql::settings::SetValue;

/// Changes the namespace of the session.
pub(in crate::sql) fn use_namespace(execution: &Execution, namespace: &str) -> Result<Effect> {
    execution.set_namespace(namespace)?;
    Ok(Effect::nothing(execution))
}

/// Changes a setting of the session.
pub(in crate::sql) fn set(execution: &Execution, value: &SetValue) -> Effect {
    execution.set(value);
    Effect::nothing(execution)
}

/// Gives all settings of the session their defaults.
pub(in crate::sql) fn reset_all(execution: &Execution) -> Effect {
    execution.reset_all();
    Effect::nothing(execution)
}

/// Ends a statement.
pub(in crate::sql) fn kill_query(execution: &Execution, id: &str) -> Result<Effect> {
    let number = number(id).map(QueryId);
    let control = number.and_then(|number| execution.ctx().statements.get(number));
    let owner = control.map(|control| control.user());
    kill(execution, id, owner.zip(number.map(FollowUp::KillQuery)), &QUERY)
}

/// Ends a session.
pub(in crate::sql) fn kill_session(execution: &Execution, id: &str) -> Result<Effect> {
    let number = number(id).map(SessionId);
    let session = number.and_then(|number| execution.ctx().sessions.get(number));
    let owner = session.map(|session| session.user());
    kill(execution, id, owner.zip(number.map(FollowUp::KillSession)), &SESSION)
}

/// Ends a live query.
pub(in crate::sql) fn kill_live_query(execution: &Execution, id: &str) -> Result<Effect> {
    let number = number(id).map(SubscriptionId);
    let owner = number.and_then(|number| execution.ctx().live_queries.owner(number));
    kill(execution, id, owner.zip(number.map(FollowUp::KillLiveQuery)), &LIVE_QUERY)
}

fn number(id: &str) -> Option<u64> {
    id.trim().parse().ok()
}

/// What KILL ends.
struct Target {
    action: &'static str,
    noun: &'static str,
    lists_them: &'static str,
}

const QUERY: Target = Target { action: "KILL QUERY", noun: "query", lists_them: "SHOW QUERIES lists them" };
const SESSION: Target =
    Target { action: "KILL SESSION", noun: "session", lists_them: "SHOW SESSIONS lists them" };
const LIVE_QUERY: Target = Target {
    action: "KILL LIVE QUERY",
    noun: "live query",
    lists_them: "SELECT live_id FROM system.live_queries lists them",
};

impl Target {
    fn unknown(&self, id: impl fmt::Display) -> Error {
        let message = format!("{} \"{id}\" does not exist", self.noun);
        Error::new(ErrorKind::NotFound, SqlState::UNDEFINED_OBJECT, message).hint(self.lists_them)
    }
}

/// Ends what `found` names, with its owner, if the principal may.
fn kill(
    execution: &Execution,
    id: &str,
    found: Option<(UserId, FollowUp)>,
    target: &Target,
) -> Result<Effect> {
    let Some((owner, follow_up)) = found else { return Err(target.unknown(id)) };
    if owner != execution.principal.user_id && !execution.principal.may_administer() {
        // The audit log records the attempt; the error does not reveal that it exists.
        let error = target.unknown(id);
        return Ok(Effect::Denied(Denial { action: target.action, target: id.to_owned(), error }));
    }
    let mut change = Change::new(execution);
    change.note(target.action, id, None, Some(owner));
    change.follow_up = Some(follow_up);
    Ok(change.into())
}
