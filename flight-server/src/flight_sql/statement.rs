//! Queries: GetFlightInfo makes a ticket, DoGet runs it.
//!
//! GetFlightInfo runs nothing except updates (see `update`). The ticket contains everything needed to run the
//! query, except parameters that are too large. The server also keeps the prepared query for the DoGet that
//! normally follows at once.
//!
//! Invariants: the batches of a DoGet have exactly the schema of its FlightInfo, or the DoGet fails; dropping
//! the stream drops the query.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use arrow_flight::sql::{ProstMessageExt, TicketStatementQuery};
use arrow_flight::{FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, Ticket};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, stream};
use kalamdb_core::{Error, ErrorKind, Outcome, Prepared, Result, RowStream, Seq, SqlState, StatementKind};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status};
use tracing::Instrument;

use super::encode::{BatchEncoder, WireSchema};
use super::queries::{RunningGuard, Started};
use super::sessions::Bound;
use super::ticket::{QueryId, StatementTicket, TicketBody, schema_hash};
use super::{Caller, FlightState, SEQ_KEY, live, put_seq, sessions, update};
use crate::status::{deadline_passed, from_core};

/// Long enough to hand partitions to other processes, short enough to limit the use of a lost ticket.
const TICKET_LIFETIME_US: i64 = 5 * 60 * 1_000_000;
/// Larger parameters do not travel in a ticket; DoGet can then run only the query that the server kept.
const TICKET_PARAMETER_BYTES_MAX: usize = 1 << 20;

/// Messages that are sent without a task if they are ready at once.
const READY_MESSAGES_MAX: usize = 4;
/// Messages produced ahead of the reader; beyond this the query waits.
const MESSAGES_AHEAD_MAX: usize = 2;

/// The messages of a DoGet.
pub(crate) type DataStream = BoxStream<'static, std::result::Result<FlightData, Status>>;

impl FlightState {
    /// Returns the FlightInfo of a statement given as text.
    pub(super) async fn statement_info(
        &self,
        caller: &Caller,
        descriptor: FlightDescriptor,
        sql: &str,
    ) -> Result<Response<FlightInfo>> {
        let prepared = caller.session.prepare(sql).await?;
        self.prepared_info(caller, descriptor, prepared, Arc::default()).await
    }

    /// Returns the FlightInfo of a prepared statement and its parameters. An update runs here, once.
    pub(super) async fn prepared_info(
        &self,
        caller: &Caller,
        descriptor: FlightDescriptor,
        prepared: Prepared,
        bound: Arc<Bound>,
    ) -> Result<Response<FlightInfo>> {
        match prepared.kind() {
            StatementKind::Update => {
                let done = update::run_bound(&prepared, &bound).await?;
                self.update_info(caller, descriptor, done)
            }
            StatementKind::Query | StatementKind::Subscribe => {
                self.query_info(caller, descriptor, prepared, bound)
            }
        }
    }

    fn query_info(
        &self,
        caller: &Caller,
        descriptor: FlightDescriptor,
        prepared: Prepared,
        bound: Arc<Bound>,
    ) -> Result<Response<FlightInfo>> {
        let prepared = prepared.with_values(bound.params())?;
        let schema = self.result_schema(&prepared)?;
        let query = QueryId::random();
        let fits = bound.frames().len() <= TICKET_PARAMETER_BYTES_MAX;
        let schema_hash = schema_hash(&schema.ipc());
        let ticket = match fits {
            true => TicketBody::Statement {
                schema_hash,
                namespace: caller.session.namespace().to_string(),
                sql: prepared.sql().to_owned(),
                parameters: bound.frames().clone(),
            },
            false => TicketBody::KeptAside { schema_hash },
        };
        let info = FlightInfo {
            schema: schema.ipc(),
            flight_descriptor: Some(descriptor),
            endpoint: vec![self.endpoint(caller, query, ticket)],
            total_records: -1,
            total_bytes: -1,
            ordered: false,
            app_metadata: query_metadata(query, None, None),
        };
        let expires_at = self.ticket_expiry();
        let kept = self.started.put(query, caller.user(), Started { prepared, bound, schema }, expires_at);
        // A query that is not kept is planned again from its ticket, if the ticket has its parameters.
        if kept || fits { Ok(Response::new(info)) } else { Err(sessions::too_much()) }
    }

    fn update_info(
        &self,
        caller: &Caller,
        descriptor: FlightDescriptor,
        done: update::Done,
    ) -> Result<Response<FlightInfo>> {
        let query = QueryId::random();
        let ticket = TicketBody::UpdateDone { rows: done.rows, seq: done.seq };
        let info = FlightInfo {
            schema: self.no_columns.ipc(),
            flight_descriptor: Some(descriptor),
            endpoint: vec![self.endpoint(caller, query, ticket)],
            // Drivers show this as the statement's row count.
            total_records: done.rows,
            total_bytes: -1,
            ordered: false,
            app_metadata: query_metadata(query, Some(done.seq), Some(done.rows)),
        };
        let mut response = Response::new(info);
        put_seq(response.metadata_mut(), done.seq);
        Ok(response)
    }

    /// Returns the schema of a statement's result, the same for all calls.
    pub(super) fn result_schema(&self, prepared: &Prepared) -> Result<WireSchema> {
        match prepared.schema() {
            Some(result) => WireSchema::of(&result.schema, result.ipc.as_ref(), &self.encodings),
            None => Ok(self.no_columns.clone()),
        }
    }

    fn endpoint(&self, caller: &Caller, query: QueryId, body: TicketBody) -> FlightEndpoint {
        let expires_at = self.ticket_expiry();
        self.seal_endpoint(&StatementTicket { owner: caller.user(), expires_at, query, body })
    }

    /// Returns the expiry of a ticket made now.
    fn ticket_expiry(&self) -> i64 {
        self.clock.now_us().saturating_add(TICKET_LIFETIME_US)
    }

    fn seal_endpoint(&self, ticket: &StatementTicket) -> FlightEndpoint {
        let statement_handle = ticket.seal(&self.ticket_key);
        let command = TicketStatementQuery { statement_handle }.as_any();
        FlightEndpoint {
            ticket: Some(Ticket { ticket: command.encode_to_vec().into() }),
            // No location means "the same connection", which every driver understands.
            location: Vec::new(),
            // A time would promise that the ticket can be used again until then.
            expiration_time: match ticket.body {
                TicketBody::Statement { .. } | TicketBody::UpdateDone { .. } => {
                    Some(timestamp(ticket.expires_at))
                }
                TicketBody::KeptAside { .. } => None,
            },
            app_metadata: Bytes::new(),
        }
    }

    /// Gives a ticket of the caller a new lifetime.
    pub(super) fn renew(&self, caller: &Caller, sealed: &Bytes) -> Result<FlightEndpoint> {
        let mut ticket = self.open_ticket(caller, sealed)?;
        ticket.expires_at = self.ticket_expiry();
        self.started.renew(ticket.query, ticket.expires_at);
        Ok(self.seal_endpoint(&ticket))
    }

    pub(super) fn open_ticket(&self, caller: &Caller, sealed: &Bytes) -> Result<StatementTicket> {
        StatementTicket::open(sealed, &self.ticket_key, caller.user(), self.clock.now_us())
            .ok_or_else(unknown_ticket)
    }

    /// Answers a statement's ticket.
    pub(super) async fn statement_data(
        &self,
        caller: &Caller,
        sealed: &Bytes,
    ) -> Result<Response<DataStream>> {
        let ticket = self.open_ticket(caller, sealed)?;
        match ticket.body {
            TicketBody::UpdateDone { rows, seq } => {
                let metadata = query_metadata(ticket.query, Some(seq), Some(rows));
                let message = self.no_columns.message(metadata);
                let mut response = Response::new(stream::iter([Ok(message)]).boxed());
                put_seq(response.metadata_mut(), seq);
                Ok(response)
            }
            TicketBody::Statement { schema_hash: advertised, namespace, sql, parameters } => {
                let started = match self.started.take(ticket.query) {
                    Some(started) => started,
                    None => self.start_again(caller, &namespace, &sql, parameters).await?,
                };
                self.run_advertised(caller, ticket.query, started, advertised).await
            }
            TicketBody::KeptAside { schema_hash: advertised } => {
                let started = self.started.take(ticket.query).ok_or_else(no_longer_kept)?;
                self.run_advertised(caller, ticket.query, started, advertised).await
            }
        }
    }

    /// Prepares a statement from its ticket alone.
    async fn start_again(
        &self,
        caller: &Caller,
        namespace: &str,
        sql: &str,
        parameters: Bytes,
    ) -> Result<Started> {
        // Use another session, so that the caller's namespace does not change.
        let session = self.database.session(&caller.identity.principal);
        session.set_namespace(namespace)?;
        let prepared = session.prepare(sql).await?;
        if prepared.kind() == StatementKind::Update {
            // Only queries get such tickets, so the text has changed its meaning.
            return Err(unknown_ticket());
        }
        let bound = super::prepared::bound_of_frames(parameters)?;
        let prepared = prepared.with_values(bound.params())?;
        let schema = self.result_schema(&prepared)?;
        Ok(Started { prepared, bound: Arc::new(bound), schema })
    }

    /// Runs a query whose columns must still have the hash `advertised`.
    async fn run_advertised(
        &self,
        caller: &Caller,
        query: QueryId,
        started: Started,
        advertised: u64,
    ) -> Result<Response<DataStream>> {
        if schema_hash(&started.schema.ipc()) != advertised {
            return Err(schema_changed());
        }
        let guard = self.running.enter(query, caller.user());
        let outcome = tokio::select! {
            outcome = started.prepared.execute(started.bound.params()) => outcome?,
            () = guard.token().cancelled() => return Err(cancelled()),
        };
        match outcome {
            Outcome::Rows(rows) => {
                let seq = rows.seq;
                let messages = rows_to_messages(rows, started.schema, query);
                let messages = self.bounded(messages, guard, caller, Endless::No);
                let mut response = Response::new(messages);
                put_seq(response.metadata_mut(), seq);
                Ok(response)
            }
            Outcome::Subscription(subscription) => {
                let messages = live::messages(subscription, started.schema);
                Ok(Response::new(self.bounded(messages, guard, caller, Endless::Yes)))
            }
            Outcome::Affected(_) => Err(Error::internal("a query gave a count")),
        }
    }

    /// Runs a stream in a task beside its reader. A slow reader must not keep a query alive after it was
    /// cancelled, after the caller's deadline or, if it is endless, after a shutdown.
    fn bounded(
        &self,
        mut messages: Messages,
        guard: RunningGuard,
        caller: &Caller,
        endless: Endless,
    ) -> DataStream {
        // Messages that are ready at once (for a point query, all of them) need no task.
        let mut ready = Vec::new();
        while ready.len() < READY_MESSAGES_MAX {
            match messages.next().now_or_never() {
                Some(Some(message)) => ready.push(message.map_err(from_core)),
                Some(None) => return stream::iter(ready).boxed(),
                None => break,
            }
        }
        let stop = self.stop(guard.token().clone(), caller, endless);
        let (sender, receiver) = mpsc::channel(MESSAGES_AHEAD_MAX);
        let work = async move {
            let last = pump(messages, stop, &sender).await;
            // The query is gone by now; only its status may still wait for the reader.
            drop(guard);
            if let Some(status) = last {
                let _reader_is_gone = sender.send(Err(status)).await;
            }
        };
        // The response owns the channel: dropping the response closes it and ends the task.
        tokio::spawn(work.in_current_span());
        stream::iter(ready).chain(ReceiverStream::new(receiver)).boxed()
    }

    /// Waits for an event that ends a stream early; returns the stream's status.
    fn stop(&self, cancelled_by_owner: CancellationToken, caller: &Caller, endless: Endless) -> Stop {
        let shutdown = self.shutdown.clone();
        let deadline = caller.deadline.map(tokio::time::Instant::from_std);
        let stop = async move {
            let at_deadline = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            let going_down = async {
                match endless {
                    Endless::Yes => shutdown.cancelled().await,
                    Endless::No => std::future::pending().await,
                }
            };
            tokio::select! {
                () = cancelled_by_owner.cancelled() => from_core(cancelled()),
                () = at_deadline => deadline_passed(),
                () = going_down => from_core(Error::shutting_down()),
            }
        };
        Box::pin(stop)
    }
}

type Messages = BoxStream<'static, Result<FlightData>>;
type Stop = std::pin::Pin<Box<dyn Future<Output = Status> + Send>>;

/// Sends messages to the reader until they end, the reader is gone, or the stream is stopped. Returns the
/// final status unless the stream ended normally; the query is dropped on return.
async fn pump(
    messages: Messages,
    mut stop: Stop,
    sender: &mpsc::Sender<std::result::Result<FlightData, Status>>,
) -> Option<Status> {
    let mut messages = AssertUnwindSafe(messages).catch_unwind();
    loop {
        let place = tokio::select! {
            biased;
            status = &mut stop => return Some(status),
            place = sender.reserve() => place.ok()?,
        };
        let message = tokio::select! {
            biased;
            status = &mut stop => return Some(status),
            () = sender.closed() => return None,
            message = messages.next() => message?,
        };
        match message {
            Ok(Ok(data)) => place.send(Ok(data)),
            Ok(Err(error)) => return Some(from_core(error)),
            Err(_) => return Some(from_core(Error::internal("the query could not be completed"))),
        }
    }
}

/// Whether a stream never ends by itself.
enum Endless {
    Yes,
    No,
}

/// Returns the schema message, then every batch. The first two messages carry the seq: some clients show the
/// metadata of the schema message, others that of a batch.
fn rows_to_messages(
    rows: RowStream,
    schema: WireSchema,
    query: QueryId,
) -> BoxStream<'static, Result<FlightData>> {
    let metadata = query_metadata(query, Some(rows.seq), None);
    let first = schema.message(metadata.clone());
    let mut encoder = BatchEncoder::new(schema);
    let mut metadata = Some(metadata);
    let batches = rows.flat_map(move |batch| {
        let messages = match batch.and_then(|batch| encoder.encode(batch)) {
            Ok(mut messages) => {
                if let Some(message) = messages.first_mut() {
                    message.app_metadata = metadata.take().unwrap_or_default();
                }
                messages.into_iter().map(Ok).collect()
            }
            Err(error) => vec![Err(error)],
        };
        stream::iter(messages)
    });
    stream::iter([Ok(first)]).chain(batches).boxed()
}

/// Returns `{"query_id":"…","kalamdb-seq":7,"rows":1}`.
fn query_metadata(query: QueryId, seq: Option<Seq>, rows: Option<i64>) -> Bytes {
    let mut json = serde_json::Map::new();
    json.insert("query_id".to_owned(), query.to_string().into());
    if let Some(seq) = seq {
        json.insert(SEQ_KEY.to_owned(), seq.0.into());
    }
    if let Some(rows) = rows {
        json.insert("rows".to_owned(), rows.into());
    }
    serde_json::Value::Object(json).to_string().into()
}

pub(super) fn timestamp(micros: i64) -> prost_types::Timestamp {
    let nanos = i32::try_from(micros.rem_euclid(1_000_000) * 1_000).unwrap_or_default();
    prost_types::Timestamp { seconds: micros.div_euclid(1_000_000), nanos }
}

pub(super) fn unknown_ticket() -> Error {
    Error::new(ErrorKind::NotFound, SqlState::INVALID_CURSOR, "the ticket does not exist or has expired")
        .hint("run the query again: GetFlightInfo answers a new ticket")
}

fn no_longer_kept() -> Error {
    Error::new(
        ErrorKind::NotFound,
        SqlState::INVALID_CURSOR,
        "the parameters of the query are no longer kept",
    )
    .hint("run it again: they are too large for its ticket, which is good for one DoGet")
}

fn schema_changed() -> Error {
    Error::conflict("the columns of the result changed after the query was prepared")
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, SqlState::QUERY_CANCELED, "the query was cancelled")
}
