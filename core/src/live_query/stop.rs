//! Why a subscription ends, and whether a change of the catalog ends it.
//!
//! Invariant: a subscription ends when its table is dropped or gets other columns, when its user can no
//! longer read the table, and when its user is dropped or gets another role or password.

use std::sync::Arc;

use super::frame::CloseReason;
use super::plan::LiveQueryPlan;
use crate::access::Principal;
use crate::error::{Error, Result};
use crate::ids::UserId;
use crate::schema_registry::Catalog;

/// The reason why a subscription must end.
#[derive(Clone, Debug)]
pub(super) struct Stop {
    pub(super) reason: CloseReason,
    pub(super) message: String,
    /// The error that follows the last frame.
    pub(super) failure: Option<Arc<Error>>,
}

impl Stop {
    pub(super) fn new(reason: CloseReason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), failure: None }
    }

    pub(super) fn failed(error: &Arc<Error>) -> Self {
        Self { reason: CloseReason::Failed, message: error.to_string(), failure: Some(Arc::clone(error)) }
    }

    /// Whether ready frames are delivered first.
    pub(super) fn drains(&self) -> bool {
        match self.reason {
            CloseReason::TableDropped
            | CloseReason::SchemaChanged
            | CloseReason::Failed
            | CloseReason::Completed => true,
            CloseReason::Killed
            | CloseReason::UserDropped
            | CloseReason::AccessChanged
            | CloseReason::Shutdown => false,
        }
    }
}

/// A subscriber, as of the start of its subscription.
#[derive(Clone, Debug)]
pub(super) struct Subscriber {
    pub(super) principal: Principal,
    /// The generation of the user's password and role; `None` for the database itself, which is not a user.
    auth_generation: Option<u32>,
}

impl Subscriber {
    pub(super) fn as_of(principal: &Principal, catalog: &Catalog) -> Self {
        let auth_generation = catalog.user(principal.user_id).map(|user| user.auth_generation);
        Self { principal: principal.clone(), auth_generation }
    }
}

/// Checks that the table and the user of a subscription are unchanged. Otherwise it returns how the
/// subscription ends.
pub(super) fn check_current(
    plan: &LiveQueryPlan,
    subscriber: &Subscriber,
    catalog: &Catalog,
) -> Result<(), Stop> {
    let planned = &plan.table.definition;
    let name = planned.qualified_name();
    let Some(definition) = catalog.table_by_id(planned.id) else {
        return Err(Stop::new(CloseReason::TableDropped, format!("table \"{name}\" was dropped")));
    };
    if definition.version != planned.version {
        return Err(Stop::new(CloseReason::SchemaChanged, format!("table \"{name}\" was altered")));
    }
    let Subscriber { principal, auth_generation } = subscriber;
    if principal.user_id == UserId::SYSTEM {
        return Ok(());
    }
    if !definition.is_readable_by(principal) {
        let message = format!("the access level of table \"{name}\" was changed");
        return Err(Stop::new(CloseReason::AccessChanged, message));
    }
    let changed = |what: &str| {
        let message = format!("the {what} of user \"{}\" was changed", principal.username);
        Err(Stop::new(CloseReason::AccessChanged, message))
    };
    match catalog.user(principal.user_id) {
        None => {
            Err(Stop::new(CloseReason::UserDropped, format!("user \"{}\" was dropped", principal.username)))
        }
        Some(user) if user.role != principal.role => changed("role"),
        Some(user) if Some(user.auth_generation) != *auth_generation => changed("password"),
        Some(_) => Ok(()),
    }
}

/// Returns the error for a live query whose table or user changed since it was planned.
pub(super) fn cannot_begin(stop: &Stop) -> Error {
    Error::conflict(format!("the live query cannot begin: {}", stop.message))
}

/// Returns one stream's copy of an error that ends several streams.
pub(super) fn repeated(error: &Arc<Error>) -> Error {
    let own = Error::new(error.kind(), error.sqlstate(), error.message()).source(Arc::clone(error));
    match error.hint_text() {
        Some(hint) => own.hint(hint),
        None => own,
    }
}
