//! SetSessionOptions, GetSessionOptions, CloseSession: the options of a session that drivers see.
//!
//! `catalog` accepts only the one catalog; `schema` is the namespace for unqualified names.
//!
//! Invariant: an unknown option is refused by name, never stored and ignored.

use std::collections::HashMap;

use bytes::Bytes;
use kalamdb_core::{Result, Session};
use prost::Message;
use tonic::metadata::{Ascii, MetadataValue};

use super::messages::{
    CloseSessionResult, CloseSessionStatus, GetSessionOptionsResult, OptionValue, SessionOptionError,
    SessionOptionErrorValue, SessionOptionValue, SetSessionOptionsRequest, SetSessionOptionsResult,
};
use super::state::{Caller, FlightState};
use super::wire::{CATALOG, decode};
use crate::auth::Identity;
use crate::sessions::Sessions;

/// The action that sets options.
pub(super) const SET: &str = "SetSessionOptions";
const DEFAULT_NAMESPACE: &str = "public";

/// Sets options of a session and returns an error for each refused one.
pub(super) fn set(session: &Session, body: &Bytes) -> Result<Bytes> {
    let request: SetSessionOptionsRequest = decode(body)?;
    let mut errors = HashMap::new();
    for (name, value) in request.session_options {
        if let Err(error) = set_option(session, &name, value.option_value) {
            errors.insert(name, SessionOptionError { value: error as i32 });
        }
    }
    Ok(SetSessionOptionsResult { errors }.encode_to_vec().into())
}

/// Returns the options of a session.
pub(super) fn get(session: &Session) -> Bytes {
    let text = |value: &str| SessionOptionValue { option_value: Some(OptionValue::String(value.to_owned())) };
    let session_options = HashMap::from([
        ("catalog".to_owned(), text(CATALOG)),
        ("schema".to_owned(), text(&session.namespace())),
    ]);
    GetSessionOptionsResult { session_options }.encode_to_vec().into()
}

/// Gives the session of a caller a name, and returns the cookie that tells it to the client.
pub(super) fn name(state: &FlightState, caller: &Caller) -> Result<MetadataValue<Ascii>> {
    state.authenticator.session_cookie(state.sessions.name(&caller.session))
}

/// Ends the session of a caller.
pub(super) fn close(sessions: &Sessions, identity: &Identity) -> Bytes {
    sessions.close(identity);
    CloseSessionResult { status: CloseSessionStatus::Closed as i32 }.encode_to_vec().into()
}

fn set_option(
    session: &Session,
    name: &str,
    value: Option<OptionValue>,
) -> std::result::Result<(), SessionOptionErrorValue> {
    let text = match value {
        None => None,
        Some(OptionValue::String(text)) => Some(text),
        Some(_) if matches!(name, "catalog" | "schema") => return Err(SessionOptionErrorValue::InvalidValue),
        Some(_) => return Err(SessionOptionErrorValue::InvalidName),
    };
    match name {
        "catalog" => match text.as_deref() {
            None | Some(CATALOG) => Ok(()),
            Some(_) => Err(SessionOptionErrorValue::InvalidValue),
        },
        "schema" => session
            .set_namespace(text.as_deref().unwrap_or(DEFAULT_NAMESPACE))
            .map_err(|_| SessionOptionErrorValue::InvalidValue),
        _ => Err(SessionOptionErrorValue::InvalidName),
    }
}
