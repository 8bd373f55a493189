//! Queries: GetFlightInfo makes a ticket, DoGet runs it.
//!
//! GetFlightInfo runs nothing except updates (see `update`). The ticket contains everything needed to run the
//! query, except parameters that are too large. The server also keeps the prepared query for the DoGet that
//! normally follows at once.
//!
//! Invariant: the batches of a DoGet have exactly the schema of its FlightInfo, or the DoGet fails.

use std::sync::Arc;

use arrow_flight::sql::{ProstMessageExt, TicketStatementQuery};
use arrow_flight::{FlightDescriptor, FlightEndpoint, FlightInfo, Ticket};
use bytes::Bytes;
use futures::{FutureExt, StreamExt, stream};
use kalamdb_core::{Error, ErrorKind, Outcome, Prepared, Result, RowStream, Seq, SqlState, StatementKind};
use prost::Message;
use tonic::Response;

use super::delivery::{Messages, Until, deliver};
use super::encode::{BatchEncoder, WireSchema};
use super::handles::{Handle, PreparedEntry};
use super::live;
use super::parameters::Bound;
use super::queries::PlannedQuery;
use super::state::{Caller, FlightState};
use super::ticket::{QueryId, StatementTicket, TicketBody, schema_hash, unknown_ticket};
use super::update::{self, WriteOutcome};
use super::wire::{DataStream, SEQ_KEY, put_seq};
use crate::seal::SealKey;

/// Long enough to hand partitions to other processes, short enough to limit the use of a lost ticket.
const TICKET_LIFETIME_US: i64 = 5 * 60 * 1_000_000;
/// Larger parameters do not travel in a ticket; DoGet can then run only the query that the server kept.
const TICKET_PARAMETER_BYTES_MAX: usize = 1 << 20;

/// Returns the FlightInfo of a statement given as text.
pub(super) async fn text_info(
    state: &FlightState,
    caller: &Caller,
    descriptor: FlightDescriptor,
    sql: &str,
) -> Result<Response<FlightInfo>> {
    let prepared = caller.session.prepare(sql).await?;
    info(state, caller, descriptor, prepared, (Arc::default(), None)).await
}

/// Returns the FlightInfo of a prepared statement and its parameters.
pub(super) async fn prepared_info(
    state: &FlightState,
    caller: &Caller,
    descriptor: FlightDescriptor,
    entry: PreparedEntry,
) -> Result<Response<FlightInfo>> {
    let prepared = entry.prepared.in_call(&caller.call);
    info(state, caller, descriptor, prepared, (entry.bound, Some(entry.handle))).await
}

/// Returns the FlightInfo of a statement with its parameters, and its handle if it has one. An update runs
/// here, once.
async fn info(
    state: &FlightState,
    caller: &Caller,
    descriptor: FlightDescriptor,
    prepared: Prepared,
    (bound, handle): (Arc<Bound>, Option<Handle>),
) -> Result<Response<FlightInfo>> {
    match prepared.kind() {
        StatementKind::Update => {
            let _running = state.running.enter(caller.running(None, handle));
            let written = update::run_bound(&prepared, &bound).await?;
            Ok(update_info(state, caller, descriptor, written))
        }
        StatementKind::Query | StatementKind::Subscribe => {
            query_info(state, caller, descriptor, prepared, (bound, handle)).await
        }
    }
}

async fn query_info(
    state: &FlightState,
    caller: &Caller,
    descriptor: FlightDescriptor,
    prepared: Prepared,
    (bound, handle): (Arc<Bound>, Option<Handle>),
) -> Result<Response<FlightInfo>> {
    let prepared = prepared.with_values(bound.params()).await?;
    let schema = result_schema(state, &prepared);
    let fits = bound.messages().len() <= TICKET_PARAMETER_BYTES_MAX;
    let schema_hash = schema_hash(&schema.ipc());
    let body = match fits {
        true => TicketBody::Statement {
            schema_hash,
            namespace: caller.session.namespace().to_string(),
            sql: prepared.sql().to_owned(),
            parameters: bound.messages().clone(),
            handle,
        },
        false => TicketBody::ServerHeld { schema_hash },
    };
    let ticket = new_ticket(state, caller, body);
    let info = FlightInfo {
        schema: schema.ipc(),
        flight_descriptor: Some(descriptor),
        endpoint: vec![endpoint(&state.ticket_key, &ticket)],
        total_records: -1,
        total_bytes: -1,
        ordered: false,
        app_metadata: query_metadata(ticket.query, None, None),
    };
    let planned = PlannedQuery { prepared, bound, schema, handle };
    match state.planned.put(ticket.query, caller.user(), planned, ticket.expires_at) {
        Err(limit) if !fits => Err(limit.into()),
        // A query that is not kept is planned again from its ticket, which has its parameters.
        Ok(()) | Err(_) => Ok(Response::new(info)),
    }
}

fn update_info(
    state: &FlightState,
    caller: &Caller,
    descriptor: FlightDescriptor,
    written: WriteOutcome,
) -> Response<FlightInfo> {
    let ticket = new_ticket(state, caller, TicketBody::UpdateDone { rows: written.rows, seq: written.seq });
    let info = FlightInfo {
        schema: state.no_columns.ipc(),
        flight_descriptor: Some(descriptor),
        endpoint: vec![endpoint(&state.ticket_key, &ticket)],
        // Drivers show this as the statement's row count.
        total_records: written.rows,
        total_bytes: -1,
        ordered: false,
        app_metadata: query_metadata(ticket.query, Some(written.seq), Some(written.rows)),
    };
    let mut response = Response::new(info);
    put_seq(response.metadata_mut(), written.seq);
    response
}

/// Returns the schema of a statement's result, the same for all calls.
pub(super) fn result_schema(state: &FlightState, prepared: &Prepared) -> WireSchema {
    match prepared.schema() {
        Some(result) => WireSchema::of(&result.schema, result.ipc.as_ref(), &state.encodings),
        None => state.no_columns.clone(),
    }
}

/// Makes a ticket of the caller for a new query.
fn new_ticket(state: &FlightState, caller: &Caller, body: TicketBody) -> StatementTicket {
    let expires_at = ticket_expiry(state);
    StatementTicket { owner: caller.user(), expires_at, query: QueryId::random(), body }
}

/// Returns the expiry of a ticket made now.
fn ticket_expiry(state: &FlightState) -> i64 {
    state.clock.now_us().saturating_add(TICKET_LIFETIME_US)
}

fn endpoint(key: &SealKey, ticket: &StatementTicket) -> FlightEndpoint {
    let command = TicketStatementQuery { statement_handle: ticket.seal(key) }.as_any();
    FlightEndpoint {
        ticket: Some(Ticket { ticket: command.encode_to_vec().into() }),
        // No location means "the same connection", which every driver understands.
        location: Vec::new(),
        // A time would promise that the ticket can be used again until then.
        expiration_time: match ticket.body {
            TicketBody::Statement { .. } | TicketBody::UpdateDone { .. } => {
                Some(timestamp(ticket.expires_at))
            }
            TicketBody::ServerHeld { .. } => None,
        },
        app_metadata: Bytes::new(),
    }
}

/// Gives a ticket of the caller a new lifetime.
pub(super) fn renew(state: &FlightState, caller: &Caller, sealed: &Bytes) -> Result<FlightEndpoint> {
    let mut ticket = open_ticket(state, caller, sealed)?;
    ticket.expires_at = ticket_expiry(state);
    state.planned.renew(ticket.query, ticket.expires_at);
    Ok(endpoint(&state.ticket_key, &ticket))
}

/// Opens a ticket of the caller.
pub(super) fn open_ticket(state: &FlightState, caller: &Caller, sealed: &Bytes) -> Result<StatementTicket> {
    StatementTicket::open(sealed, &state.ticket_key, caller.user(), state.clock.now_us())
        .ok_or_else(unknown_ticket)
}

/// Answers a statement's ticket.
pub(super) async fn data(
    state: &FlightState,
    caller: &Caller,
    sealed: &Bytes,
) -> Result<Response<DataStream>> {
    let ticket = open_ticket(state, caller, sealed)?;
    match ticket.body {
        TicketBody::UpdateDone { rows, seq } => {
            let metadata = query_metadata(ticket.query, Some(seq), Some(rows));
            let message = state.no_columns.message(metadata);
            let mut response = Response::new(stream::iter([Ok(message)]).boxed());
            put_seq(response.metadata_mut(), seq);
            Ok(response)
        }
        TicketBody::Statement { schema_hash: advertised, namespace, sql, parameters, handle } => {
            let planned = match state.planned.take(ticket.query) {
                Some(planned) => planned,
                None => {
                    let _running = state.running.enter(caller.running(Some(ticket.query), handle));
                    let (prepared, bound) = plan_again(caller, &namespace, &sql, parameters).await?;
                    let schema = result_schema(state, &prepared);
                    PlannedQuery { prepared, bound: Arc::new(bound), schema, handle }
                }
            };
            run_advertised(state, caller, ticket.query, planned, advertised).await
        }
        TicketBody::ServerHeld { schema_hash: advertised } => {
            let planned = state.planned.take(ticket.query).ok_or_else(no_longer_held)?;
            run_advertised(state, caller, ticket.query, planned, advertised).await
        }
    }
}

/// Plans a query from its ticket alone.
async fn plan_again(
    caller: &Caller,
    namespace: &str,
    sql: &str,
    parameters: Bytes,
) -> Result<(Prepared, Bound)> {
    // The caller's namespace may have changed since, and does not change here.
    let prepared = caller.session.in_namespace(namespace).prepare(sql).await?;
    if prepared.kind() == StatementKind::Update {
        // Only queries get such tickets, so the text has changed its meaning.
        return Err(unknown_ticket());
    }
    let bound = Bound::of_messages(parameters)?;
    Ok((prepared.with_values(bound.params()).await?, bound))
}

/// Runs a query whose columns must still have the hash `advertised`.
async fn run_advertised(
    state: &FlightState,
    caller: &Caller,
    query: QueryId,
    planned: PlannedQuery,
    advertised: u64,
) -> Result<Response<DataStream>> {
    if schema_hash(&planned.schema.ipc()) != advertised {
        return Err(schema_changed());
    }
    let guard = state.running.enter(caller.running(Some(query), planned.handle));
    let call_ended = caller.call.ended();
    let prepared = planned.prepared.in_call(&caller.call);
    match prepared.execute(planned.bound.params()).await? {
        Outcome::Rows(rows) => {
            let (seq, stopped) = (rows.seq, rows.stopped());
            let ended = async move {
                tokio::select! {
                    biased;
                    error = stopped => error,
                    error = call_ended => error,
                }
            };
            let messages = rows_to_messages(rows, planned.schema, query);
            let until = Until { ended: ended.boxed(), deadline: caller.deadline, shutdown: None };
            let mut response = Response::new(deliver(messages, guard, until));
            put_seq(response.metadata_mut(), seq);
            Ok(response)
        }
        Outcome::Subscription(subscription) => {
            let messages = live::messages(subscription, planned.schema);
            let shutdown = Some(state.shutdown.clone());
            let until = Until { ended: call_ended.boxed(), deadline: caller.deadline, shutdown };
            Ok(Response::new(deliver(messages, guard, until)))
        }
        Outcome::Affected(_) => Err(Error::internal("a query returned a row count")),
    }
}

/// Returns the schema message, then every batch, encoded where the query runs. The first two messages carry
/// the seq: some clients show the metadata of the schema message, others that of a batch.
fn rows_to_messages(rows: RowStream, schema: WireSchema, query: QueryId) -> Messages {
    let metadata = query_metadata(query, Some(rows.seq), None);
    let first = schema.message(metadata.clone());
    let mut encoder = BatchEncoder::new(schema);
    let mut metadata = Some(metadata);
    let batches = rows.encoded(move |batch| {
        let mut messages = encoder.encode(batch)?;
        if let Some(message) = messages.first_mut() {
            message.app_metadata = metadata.take().unwrap_or_default();
        }
        Ok(messages)
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

fn timestamp(micros: i64) -> prost_types::Timestamp {
    let nanos = i32::try_from(micros.rem_euclid(1_000_000) * 1_000).unwrap_or_default();
    prost_types::Timestamp { seconds: micros.div_euclid(1_000_000), nanos }
}

fn no_longer_held() -> Error {
    Error::new(
        ErrorKind::NotFound,
        SqlState::INVALID_CURSOR,
        "the server no longer has the query's parameters",
    )
    .hint("run it again: its parameters are too large for a ticket, so its ticket works for one DoGet only")
}

fn schema_changed() -> Error {
    Error::conflict("the columns of the result changed after the query was prepared")
}
