//! Arrow Flight SQL: the protocol between drivers (JDBC, ADBC, ODBC, pyarrow) and the database.
//!
//! | file | its one job |
//! |---|---|
//! | `service` | the Flight RPCs; passes each on to the file that answers it |
//! | `statement` | queries: FlightInfo, tickets, and the streams of DoGet |
//! | `update` | statements that write, on every path: each runs exactly once |
//! | `prepared` | prepared statements and their bound parameters |
//! | `ingest` | bulk loading |
//! | `live` | `SUBSCRIBE TO` as an endless DoGet |
//! | `metadata`, `sql_info`, `type_info` | catalogs, tables, keys, server capabilities, types |
//! | `actions`, `session_options`, `handshake` | DoAction, the options of a session, logging in |
//! | `sessions`, `queries`, `budget` | state: sessions, prepared statements, running queries, all bounded |
//! | `ticket`, `encode`, `decode`, `messages` | bytes |
//!
//! The dispatcher is our own, because arrow-flight's `FlightSqlService` fixes GetSchema, PollFlightInfo and
//! sessions as unimplemented; protobufs, encoders and metadata builders are arrow-flight's.
//!
//! Invariant: everything that a client names (ticket, handle, query) is looked up with the caller's user id.
//! Another user's entry gives the same error as one that never existed.

mod actions;
mod budget;
mod decode;
mod encode;
mod handshake;
mod ingest;
mod live;
mod messages;
mod metadata;
mod prepared;
mod queries;
mod service;
mod session_options;
mod sessions;
mod sql_info;
mod statement;
mod ticket;
mod type_info;
mod update;

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::datatypes::Schema;
use futures::FutureExt;
use kalamdb_core::clock::{Clock, SystemClock};
use kalamdb_core::ids::UserId;
use kalamdb_core::{Database, Error, Result, Seq, Session};
use tokio_util::sync::CancellationToken;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::{Extensions, Status};

pub(crate) use self::decode::decode_params;
pub(crate) use self::service::FlightSqlService;

use self::budget::Budget;
use self::encode::{SchemaEncodings, WireSchema};
use self::queries::{RunningQueries, StartedQueries};
use self::sessions::{PreparedStatements, Sessions};
use crate::auth::{Authenticator, Deadline, Identity};
use crate::config::ServerConfig;
use crate::seal::SealKey;
use crate::status::from_core;

/// The only catalog name in metadata.
const CATALOG: &str = "kalam";
/// Header, trailer and JSON key for the seq of a read or a commit.
const SEQ_KEY: &str = "kalamdb-seq";

/// Maximum bytes of prepared statements, their parameters and queries between GetFlightInfo and DoGet, in
/// total and per user.
const KEPT_BYTES_MAX: usize = 1 << 30;
const KEPT_BYTES_PER_USER_MAX: usize = 256 << 20;
/// How often idle entries are removed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// Everything the Flight service shares between calls.
pub(crate) struct FlightState {
    database: Database,
    authenticator: Arc<Authenticator>,
    ticket_key: SealKey,
    clock: Arc<dyn Clock>,
    sessions: Sessions,
    prepared: PreparedStatements,
    started: StartedQueries,
    running: Arc<RunningQueries>,
    encodings: SchemaEncodings,
    /// The result schema of an update, for callers that request a result.
    no_columns: WireSchema,
    /// The largest message that the transport accepts.
    message_bytes_max: usize,
    /// Incoming rows and parameters.
    inbound: Arc<Budget>,
    /// Ends endless streams when the server shuts down.
    shutdown: CancellationToken,
}

impl FlightState {
    pub(crate) fn new(
        database: Database,
        authenticator: Arc<Authenticator>,
        config: &ServerConfig,
        shutdown: CancellationToken,
    ) -> Result<Self> {
        let encodings = SchemaEncodings::default();
        let kept = Budget::new(KEPT_BYTES_MAX, KEPT_BYTES_PER_USER_MAX);
        Ok(Self {
            no_columns: WireSchema::of(&Arc::new(Schema::empty()), None, &encodings)?,
            ticket_key: SealKey::derive(database.secret(), "ticket"),
            clock: Arc::new(SystemClock),
            sessions: Sessions::default(),
            prepared: PreparedStatements::new(Arc::clone(&kept)),
            started: StartedQueries::new(kept),
            running: Arc::default(),
            encodings,
            database,
            authenticator,
            message_bytes_max: config.message_bytes_max,
            inbound: Budget::new(config.inbound_bytes_max, config.inbound_bytes_max),
            shutdown,
        })
    }

    /// Returns the number of encoded result schemas and of running queries.
    pub(crate) fn counters(&self) -> (u64, usize) {
        (self.encodings.count(), self.running.len())
    }

    /// Removes idle entries while it is polled.
    pub(crate) async fn sweep(&self) -> Infallible {
        let mut interval = tokio::time::interval(SWEEP_INTERVAL);
        loop {
            interval.tick().await;
            let now = Instant::now();
            self.prepared.sweep(now);
            self.sessions.sweep(now);
            self.started.sweep(self.clock.now_us());
        }
    }

    /// Identifies the caller from the extensions that the auth layer added.
    fn caller(&self, extensions: &Extensions) -> Result<Caller> {
        // The layer passes no other request on; reaching a handler without it is a defect of the router.
        let identity = extensions.get::<Identity>().ok_or_else(crate::auth::missing)?;
        Ok(Caller {
            session: self.sessions.resolve(&self.database, identity),
            identity: identity.clone(),
            deadline: extensions.get::<Deadline>().map(|deadline| deadline.0),
        })
    }
}

/// The caller, its session and its deadline.
struct Caller {
    identity: Identity,
    session: Session,
    deadline: Option<Instant>,
}

impl Caller {
    fn user(&self) -> UserId {
        self.identity.principal.user_id
    }
}

/// Runs a handler. Its error becomes a status, and so does a panic, which must end one request but not the
/// connection's other streams.
async fn answered<T>(work: impl Future<Output = Result<T>>) -> std::result::Result<T, Status> {
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(result) => result.map_err(from_core),
        Err(_) => Err(from_core(Error::internal("the request could not be completed"))),
    }
}

/// Writes the seq of a result or commit into the response headers.
fn put_seq(headers: &mut MetadataMap, seq: Seq) {
    if let Ok(value) = MetadataValue::<Ascii>::try_from(seq.to_string()) {
        headers.insert(SEQ_KEY, value);
    }
}
