//! DoAction: prepared statements, cancelling, renewing, sessions, and the refusal of transactions.
//!
//! Flight SQL's actions wrap their bodies in `Any`; Flight's (CancelFlightInfo, RenewFlightEndpoint,
//! sessions) do not.
//!
//! Invariant: an unknown action is refused by name; no action is accepted and ignored.

use arrow_flight::sql::{
    ActionBeginSavepointRequest, ActionBeginTransactionRequest, ActionCancelQueryRequest,
    ActionCancelQueryResult, ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest,
    ActionCreatePreparedSubstraitPlanRequest, ActionEndSavepointRequest, ActionEndTransactionRequest, Any,
    ProstMessageExt, TicketStatementQuery,
};
use arrow_flight::{
    Action, ActionType, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightInfo,
    RenewFlightEndpointRequest,
};
use bytes::Bytes;
use kalamdb_core::{Error, Result};
use prost::Message;

use super::messages::CreatePreparedStatementResult;
use super::state::{Caller, FlightState};
use super::ticket::unknown_ticket;
use super::wire::{decode, malformed};
use super::{prepared, session_options, statement};

/// The actions, with their descriptions for `list_actions`.
const ACTIONS: [(&str, &str); 8] = [
    ("CreatePreparedStatement", "Prepares a statement: Any(ActionCreatePreparedStatementRequest)."),
    (
        "ClosePreparedStatement",
        "Closes a prepared statement and ends its queries: Any(ActionClosePreparedStatementRequest).",
    ),
    (
        "CancelQuery",
        "Cancels a running query: Any(ActionCancelQueryRequest). Deprecated: use CancelFlightInfo.",
    ),
    ("CancelFlightInfo", "Cancels a running query: CancelFlightInfoRequest."),
    ("RenewFlightEndpoint", "Renews a ticket: RenewFlightEndpointRequest."),
    ("SetSessionOptions", "Sets options of the session: SetSessionOptionsRequest."),
    ("GetSessionOptions", "Returns the options of the session: GetSessionOptionsRequest."),
    ("CloseSession", "Ends the session, what it runs and its prepared statements: CloseSessionRequest."),
];

/// Lists the actions.
pub(super) fn list() -> Vec<ActionType> {
    ACTIONS
        .iter()
        .map(|(name, description)| ActionType {
            r#type: (*name).to_owned(),
            description: (*description).to_owned(),
        })
        .collect()
}

/// Runs an action and returns the bodies of its results.
pub(super) async fn run(state: &FlightState, caller: &Caller, action: Action) -> Result<Vec<Bytes>> {
    let body = action.body;
    match action.r#type.as_str() {
        "CreatePreparedStatement" => {
            let request: ActionCreatePreparedStatementRequest = unpack(&body)?;
            let result = prepared::create(state, caller, request).await?;
            let value = Bytes::from(result.encode_to_vec());
            let any = Any { type_url: CreatePreparedStatementResult::TYPE_URL.to_owned(), value };
            Ok(vec![any.encode_to_vec().into()])
        }
        "ClosePreparedStatement" => {
            let request: ActionClosePreparedStatementRequest = unpack(&body)?;
            let handle = &request.prepared_statement_handle;
            state.prepared.close(&caller.session, handle);
            state.running.end_handle(handle, caller.session.id());
            Ok(Vec::new())
        }
        "CancelQuery" => {
            let request: ActionCancelQueryRequest = unpack(&body)?;
            let status = cancel(state, caller, decode::<FlightInfo>(&request.info)?)?;
            // Both enumerations have the same numbers.
            let result = ActionCancelQueryResult { result: status as i32 };
            Ok(vec![result.as_any().encode_to_vec().into()])
        }
        "CancelFlightInfo" => {
            let request: CancelFlightInfoRequest = decode(&body)?;
            let info = request.info.ok_or_else(|| malformed("CancelFlightInfoRequest has no info"))?;
            let status = cancel(state, caller, info)?;
            Ok(vec![CancelFlightInfoResult { status: status as i32 }.encode_to_vec().into()])
        }
        "RenewFlightEndpoint" => {
            let request: RenewFlightEndpointRequest = decode(&body)?;
            let ticket = request.endpoint.and_then(|endpoint| endpoint.ticket);
            let ticket = ticket.ok_or_else(|| malformed("RenewFlightEndpointRequest has no ticket"))?;
            let endpoint = statement::renew(state, caller, &statement_handle(&ticket.ticket)?)?;
            Ok(vec![endpoint.encode_to_vec().into()])
        }
        session_options::SET => Ok(vec![session_options::set(&caller.session, &body)?]),
        "GetSessionOptions" => Ok(vec![session_options::get(&caller.session)?]),
        "CloseSession" => {
            state.prepared.close_session(&caller.session);
            Ok(vec![session_options::close(&state.sessions, &caller.session)])
        }
        other => Err(refuse(other, &body)),
    }
}

fn cancel(state: &FlightState, caller: &Caller, info: FlightInfo) -> Result<CancelStatus> {
    let mut status = CancelStatus::NotCancellable;
    let mut tickets = 0;
    for ticket in info.endpoint.into_iter().filter_map(|endpoint| endpoint.ticket) {
        tickets += 1;
        let ticket = statement::open_ticket(state, caller, &statement_handle(&ticket.ticket)?)?;
        let waiting = state.planned.take(ticket.query).is_some();
        if state.running.cancel(ticket.query, caller.user()) || waiting {
            status = CancelStatus::Cancelled;
        }
    }
    if tickets == 0 {
        return Err(unknown_ticket());
    }
    Ok(status)
}

/// Returns the sealed part of a statement's ticket.
///
/// # Errors
/// The same error as for an unknown ticket, when the ticket is not a statement's.
fn statement_handle(ticket: &Bytes) -> Result<Bytes> {
    let unknown = |_| unknown_ticket();
    let any = Any::decode(ticket.clone()).map_err(unknown)?;
    if !any.is::<TicketStatementQuery>() {
        return Err(unknown_ticket());
    }
    Ok(TicketStatementQuery::decode(any.value).map_err(unknown)?.statement_handle)
}

fn refuse(action: &str, body: &Bytes) -> Error {
    // A malformed body is the caller's mistake, even for an unsupported action.
    let readable = match action {
        "BeginTransaction" => unpack::<ActionBeginTransactionRequest>(body).map(|_| ()),
        "EndTransaction" => unpack::<ActionEndTransactionRequest>(body).map(|_| ()),
        "BeginSavepoint" => unpack::<ActionBeginSavepointRequest>(body).map(|_| ()),
        "EndSavepoint" => unpack::<ActionEndSavepointRequest>(body).map(|_| ()),
        "CreatePreparedSubstraitPlan" => unpack::<ActionCreatePreparedSubstraitPlanRequest>(body).map(|_| ()),
        _ => return Error::unsupported(format!("action \"{action}\"")).hint("ListActions lists the actions"),
    };
    match (readable, action) {
        (Err(error), _) => error,
        (Ok(()), "CreatePreparedSubstraitPlan") => {
            Error::unsupported("action \"CreatePreparedSubstraitPlan\"").hint("send SQL")
        }
        (Ok(()), _) => Error::unsupported(format!("action \"{action}\""))
            .hint("every statement is a transaction of its own; turn autocommit on"),
    }
}

/// Decodes an `Any` that contains the message `M`.
fn unpack<M: ProstMessageExt>(body: &Bytes) -> Result<M> {
    let any: Any = decode(body)?;
    if !any.is::<M>() {
        return Err(malformed("the action's body has the wrong type"));
    }
    decode(&any.value)
}
