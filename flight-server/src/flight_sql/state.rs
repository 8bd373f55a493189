//! What the calls of the Flight service share, and the caller of one call.
//!
//! Invariant: everything that is kept for clients has a limit, and idle entries go while `sweep` is polled.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::datatypes::Schema;
use kalamdb_core::clock::{Clock, SystemClock};
use kalamdb_core::{Call, Database, Result, UserId};
use tokio_util::sync::CancellationToken;
use tonic::Extensions;

use super::budget::Budget;
use super::encode::{SchemaEncodings, WireSchema};
use super::handles::{Handle, PreparedStatements};
use super::queries::{PlannedQueries, RunningCall, RunningCalls};
use super::ticket::QueryId;
use crate::auth::{Authenticator, Deadline, Identity};
use crate::config::ServerConfig;
use crate::seal::SealKey;
use crate::sessions::{OpenSession, Sessions};

/// How often idle entries are removed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);
/// How often sessions are looked at that must end.
const SESSIONS_INTERVAL: Duration = Duration::from_secs(1);

/// Everything the Flight service shares between calls.
pub(crate) struct FlightState {
    pub(super) database: Database,
    pub(super) authenticator: Arc<Authenticator>,
    pub(super) ticket_key: SealKey,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) sessions: Arc<Sessions>,
    pub(super) prepared: PreparedStatements,
    pub(super) planned: PlannedQueries,
    pub(super) running: Arc<RunningCalls>,
    pub(super) encodings: SchemaEncodings,
    /// The result schema of an update, for callers that request a result.
    pub(super) no_columns: WireSchema,
    /// The largest message that the transport accepts.
    pub(super) message_bytes_max: usize,
    /// The limit of incoming rows and parameters.
    pub(super) inbound_budget: Arc<Budget>,
    /// Ends endless streams when the server shuts down.
    pub(super) shutdown: CancellationToken,
}

impl FlightState {
    /// Creates the state of a server that has no clients yet.
    pub(crate) fn new(
        database: Database,
        authenticator: Arc<Authenticator>,
        sessions: Arc<Sessions>,
        config: &ServerConfig,
        shutdown: CancellationToken,
    ) -> Self {
        let encodings = SchemaEncodings::default();
        let memory = Arc::clone(&database.context().memory);
        let kept = Budget::of_prepared(&memory);
        Self {
            no_columns: WireSchema::of(&Arc::new(Schema::empty()), None, &encodings),
            ticket_key: SealKey::derive(database.secret(), "ticket"),
            clock: Arc::new(SystemClock),
            sessions,
            prepared: PreparedStatements::new(Arc::clone(&kept)),
            planned: PlannedQueries::new(kept),
            running: Arc::default(),
            encodings,
            database,
            authenticator,
            message_bytes_max: config.message_bytes_max,
            inbound_budget: Budget::of_inbound(&memory, config.inbound_bytes_max),
            shutdown,
        }
    }

    /// Returns the number of encoded result schemas and of running queries.
    pub(crate) fn counters(&self) -> (u64, usize) {
        (self.encodings.count(), self.running.queries())
    }

    /// Removes idle entries while it is polled.
    pub(crate) async fn sweep(&self) -> Infallible {
        let mut sessions = tokio::time::interval(SESSIONS_INTERVAL);
        let mut entries = tokio::time::interval(SWEEP_INTERVAL);
        loop {
            tokio::select! {
                _ = sessions.tick() => self.sessions.sweep(Instant::now()),
                _ = entries.tick() => {
                    self.prepared.sweep(Instant::now());
                    self.planned.sweep(self.clock.now_us());
                }
            }
        }
    }

    /// Identifies the caller from the extensions that the auth layer added.
    pub(super) fn caller(&self, extensions: &Extensions) -> Result<Caller> {
        // The layer passes no other request on; reaching a handler without it is a defect of the router.
        let identity = extensions.get::<Identity>().ok_or_else(crate::auth::missing)?;
        let call = identity.call();
        Ok(Caller {
            session: self.sessions.resolve(&self.database, identity)?.in_call(&call),
            call,
            identity: identity.clone(),
            deadline: extensions.get::<Deadline>().map(|deadline| deadline.0),
        })
    }
}

/// The caller, its session, its call and its deadline.
pub(super) struct Caller {
    pub(super) identity: Identity,
    pub(super) session: OpenSession,
    /// Ends the statements of this request.
    pub(super) call: Call,
    pub(super) deadline: Option<Instant>,
}

impl Caller {
    /// Returns what others need to end the call: it runs this query or the statement of this handle.
    pub(super) fn running(&self, query: Option<QueryId>, handle: Option<Handle>) -> RunningCall {
        let (owner, session, call) = (self.user(), self.session.id(), self.call.clone());
        RunningCall { owner, session, query, handle, call }
    }

    /// Returns the caller's user.
    pub(super) fn user(&self) -> UserId {
        self.identity.principal.user_id
    }
}
