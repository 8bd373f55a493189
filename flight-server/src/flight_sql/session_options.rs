//! SetSessionOptions, GetSessionOptions, CloseSession: the options of a session that drivers see.
//!
//! `catalog` accepts only the one catalog; `schema` is the namespace for unqualified names.
//!
//! Invariant: an unknown option is refused by name, never stored and ignored.

use std::collections::HashMap;

use bytes::Bytes;
use kalamdb_core::Result;
use prost::Message;

use super::actions::decode;
use super::messages::{
    CloseSessionResult, CloseSessionStatus, GetSessionOptionsResult, OptionValue, SessionOptionError,
    SessionOptionErrorValue, SessionOptionValue, SetSessionOptionsRequest, SetSessionOptionsResult,
};
use super::{CATALOG, Caller, FlightState};

const DEFAULT_NAMESPACE: &str = "public";

impl FlightState {
    pub(super) fn set_session_options(&self, caller: &Caller, body: &Bytes) -> Result<Vec<Bytes>> {
        let request: SetSessionOptionsRequest = decode(body)?;
        let mut errors = HashMap::new();
        for (name, value) in request.session_options {
            if let Err(error) = set(caller, &name, value.option_value) {
                errors.insert(name, SessionOptionError { value: error as i32 });
            }
        }
        Ok(vec![SetSessionOptionsResult { errors }.encode_to_vec().into()])
    }

    pub(super) fn get_session_options(&self, caller: &Caller) -> Result<Vec<Bytes>> {
        let text =
            |value: &str| SessionOptionValue { option_value: Some(OptionValue::String(value.to_owned())) };
        let session_options = HashMap::from([
            ("catalog".to_owned(), text(CATALOG)),
            ("schema".to_owned(), text(&caller.session.namespace())),
        ]);
        Ok(vec![GetSessionOptionsResult { session_options }.encode_to_vec().into()])
    }

    pub(super) fn close_session(&self, caller: &Caller) -> Vec<Bytes> {
        self.prepared.close_session(&caller.identity);
        self.sessions.close(&caller.identity);
        vec![CloseSessionResult { status: CloseSessionStatus::Closed as i32 }.encode_to_vec().into()]
    }
}

fn set(
    caller: &Caller,
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
        "schema" => caller
            .session
            .set_namespace(text.as_deref().unwrap_or(DEFAULT_NAMESPACE))
            .map_err(|_| SessionOptionErrorValue::InvalidValue),
        _ => Err(SessionOptionErrorValue::InvalidName),
    }
}
