//! SetSessionOptions, GetSessionOptions, CloseSession: the options of a session that drivers see.
//!
//! `catalog` accepts only the one catalog; `schema` is the namespace for unqualified names; the others are
//! the settings of SET.
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
use crate::sessions::{OpenSession, Sessions};

/// The action that sets options.
pub(super) const SET: &str = "SetSessionOptions";
const DEFAULT_NAMESPACE: &str = "public";
/// The options that are settings of SET. A time can also be an integer, in milliseconds.
const TIMES: [&str; 2] = ["statement_timeout", "idle_session_timeout"];
const APPLICATION: &str = "application_name";

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
pub(super) fn get(session: &Session) -> Result<Bytes> {
    let mut options = vec![("catalog", CATALOG.to_owned()), ("schema", session.namespace().to_string())];
    options.extend(session.options()?);
    let text = |value| SessionOptionValue { option_value: Some(OptionValue::String(value)) };
    let session_options = options.into_iter().map(|(name, value)| (name.to_owned(), text(value))).collect();
    Ok(GetSessionOptionsResult { session_options }.encode_to_vec().into())
}

/// Gives the session of a caller a name, and returns the cookie that tells it to the client; `None` if the
/// user has too many sessions.
pub(super) fn name(state: &FlightState, caller: &Caller) -> Result<Option<MetadataValue<Ascii>>> {
    state.sessions.name(&caller.session).map(|name| state.authenticator.session_cookie(name)).transpose()
}

/// Ends the session of a caller.
pub(super) fn close(sessions: &Sessions, session: &OpenSession) -> Bytes {
    sessions.close(session);
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
        Some(OptionValue::Int64(number)) if TIMES.contains(&name) => Some(number.to_string()),
        Some(_) if matches!(name, "catalog" | "schema" | APPLICATION) || TIMES.contains(&name) => {
            return Err(SessionOptionErrorValue::InvalidValue);
        }
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
        name if name == APPLICATION || TIMES.contains(&name) => {
            session.set_option(name, text.as_deref()).map_err(|_| SessionOptionErrorValue::InvalidValue)
        }
        _ => Err(SessionOptionErrorValue::InvalidName),
    }
}
