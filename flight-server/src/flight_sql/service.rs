//! The Flight RPCs. Each method identifies the caller and the request and passes them on.
//!
//! Invariant: each method's work runs inside `catch_panics`, so errors and panics become statuses of
//! `status.rs`.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use arrow_flight::flight_descriptor::DescriptorType;
use arrow_flight::flight_service_server::FlightService;
use arrow_flight::sql::{Any, Command, DoPutUpdateResult};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest,
    PollInfo, PutResult, SchemaResult, Ticket,
};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, stream};
use kalamdb_core::{Error, Result};
use prost::Message;
use tonic::{Request, Response, Status, Streaming};

use super::handshake::{self, HandshakeStream};
use super::inbound::Inbound;
use super::state::{Caller, FlightState};
use super::ticket::unknown_ticket;
use super::update::{WriteOutcome, write_outcome};
use super::wire::{DataStream, command, malformed, no_substrait, no_transaction, put_seq};
use super::{actions, ingest, metadata, prepared, session_options, statement};
use crate::auth::SET_COOKIE;
use crate::status::from_core;

type Answer<T> = std::result::Result<Response<T>, Status>;
type Messages<T> = BoxStream<'static, std::result::Result<T, Status>>;

/// The Flight service over a database.
pub(crate) struct FlightSqlService {
    state: Arc<FlightState>,
}

impl FlightSqlService {
    pub(crate) fn new(state: Arc<FlightState>) -> Self {
        Self { state }
    }
}

#[tonic::async_trait]
impl FlightService for FlightSqlService {
    type HandshakeStream = HandshakeStream;
    type ListFlightsStream = Messages<FlightInfo>;
    type DoGetStream = DataStream;
    type DoPutStream = Messages<PutResult>;
    type DoExchangeStream = DataStream;
    type DoActionStream = Messages<arrow_flight::Result>;
    type ListActionsStream = Messages<ActionType>;

    async fn handshake(&self, request: Request<Streaming<HandshakeRequest>>) -> Answer<HandshakeStream> {
        let (headers, extensions, messages) = request.into_parts();
        let authenticator = &self.state.authenticator;
        catch_panics(handshake::log_in(authenticator, headers, extensions.get(), messages)).await
    }

    async fn list_flights(&self, request: Request<Criteria>) -> Answer<Self::ListFlightsStream> {
        catch_panics(async {
            let caller = self.state.caller(request.extensions())?;
            let flights = metadata::flights(&caller.session)?;
            Ok(Response::new(stream::iter(flights.into_iter().map(Ok)).boxed()))
        })
        .await
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Answer<FlightInfo> {
        catch_panics(async {
            let caller = self.state.caller(request.extensions())?;
            info(&self.state, &caller, request.into_inner()).await
        })
        .await
    }

    async fn poll_flight_info(&self, request: Request<FlightDescriptor>) -> Answer<PollInfo> {
        catch_panics(async {
            let caller = self.state.caller(request.extensions())?;
            let (headers, info, _) = info(&self.state, &caller, request.into_inner()).await?.into_parts();
            // The ticket is ready at once, so the first poll is the last one: it returns no descriptor.
            let expiration_time = info.endpoint.first().and_then(|endpoint| endpoint.expiration_time);
            let poll =
                PollInfo { info: Some(info), flight_descriptor: None, progress: Some(1.0), expiration_time };
            Ok(Response::from_parts(headers, poll, Default::default()))
        })
        .await
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Answer<SchemaResult> {
        catch_panics(async {
            let caller = self.state.caller(request.extensions())?;
            let schema = schema(&self.state, &caller, request.get_ref()).await?;
            Ok(Response::new(SchemaResult { schema }))
        })
        .await
    }

    async fn do_get(&self, request: Request<Ticket>) -> Answer<DataStream> {
        catch_panics(async {
            let caller = self.state.caller(request.extensions())?;
            data(&self.state, &caller, &request.into_inner().ticket).await
        })
        .await
    }

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Answer<Self::DoPutStream> {
        catch_panics(async {
            let caller = self.state.caller(request.extensions())?;
            let (app_metadata, written) = put(&self.state, &caller, request.into_inner()).await?;
            let mut response = Response::new(stream::iter([Ok(PutResult { app_metadata })]).boxed());
            if let Some(written) = written {
                put_seq(response.metadata_mut(), written.seq);
            }
            Ok(response)
        })
        .await
    }

    async fn do_exchange(&self, _request: Request<Streaming<FlightData>>) -> Answer<DataStream> {
        catch_panics(async {
            Err(Error::unsupported("DoExchange")
                .hint("subscribe with SUBSCRIBE TO and DoGet, or with kalamdb.live.v1.LiveQuery"))
        })
        .await
    }

    async fn do_action(&self, request: Request<Action>) -> Answer<Self::DoActionStream> {
        catch_panics(async {
            let caller = self.state.caller(request.extensions())?;
            let action = request.into_inner();
            let is_set = action.r#type == session_options::SET;
            let bodies = actions::run(&self.state, &caller, action).await?;
            let results = bodies.into_iter().map(|body| Ok(arrow_flight::Result { body }));
            let mut response = Response::new(stream::iter(results.collect::<Vec<_>>()).boxed());
            if is_set
                && !caller.identity.has_named_session()
                && let Some(cookie) = session_options::name(&self.state, &caller)?
            {
                response.metadata_mut().insert(SET_COOKIE, cookie);
            }
            Ok(response)
        })
        .await
    }

    async fn list_actions(&self, _request: Request<Empty>) -> Answer<Self::ListActionsStream> {
        Ok(Response::new(stream::iter(actions::list().into_iter().map(Ok)).boxed()))
    }
}

/// Runs a handler. Its error becomes a status, and so does a panic, which must end one request but not the
/// connection's other streams.
async fn catch_panics<T>(work: impl Future<Output = Result<T>>) -> std::result::Result<T, Status> {
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(result) => result.map_err(from_core),
        Err(_) => Err(from_core(Error::internal("the request could not be completed"))),
    }
}

async fn info(
    state: &FlightState,
    caller: &Caller,
    descriptor: FlightDescriptor,
) -> Result<Response<FlightInfo>> {
    if descriptor.r#type() == DescriptorType::Path {
        let sql = path_query(&descriptor)?;
        return statement::text_info(state, caller, descriptor, &sql).await;
    }
    match command(&descriptor.cmd)? {
        Command::CommandStatementQuery(query) => {
            no_transaction(query.transaction_id.as_ref())?;
            statement::text_info(state, caller, descriptor, &query.query).await
        }
        Command::CommandPreparedStatementQuery(query) => {
            let entry = state.prepared.get(&caller.session, &query.prepared_statement_handle)?;
            statement::prepared_info(state, caller, descriptor, entry).await
        }
        other => metadata::info(&state.encodings, descriptor, &other).map(Response::new),
    }
}

/// Returns the schema that GetFlightInfo would return, without running anything.
async fn schema(state: &FlightState, caller: &Caller, descriptor: &FlightDescriptor) -> Result<Bytes> {
    if descriptor.r#type() == DescriptorType::Path {
        let prepared = caller.session.prepare(&path_query(descriptor)?).await?;
        return Ok(statement::result_schema(state, &prepared).ipc());
    }
    match command(&descriptor.cmd)? {
        Command::CommandStatementQuery(query) => {
            no_transaction(query.transaction_id.as_ref())?;
            let prepared = caller.session.prepare(&query.query).await?;
            Ok(statement::result_schema(state, &prepared).ipc())
        }
        Command::CommandPreparedStatementQuery(query) => {
            let entry = state.prepared.get(&caller.session, &query.prepared_statement_handle)?;
            Ok(statement::result_schema(state, &entry.prepared).ipc())
        }
        other => Ok(metadata::wire_schema(&state.encodings, &other)?.ipc()),
    }
}

async fn data(state: &FlightState, caller: &Caller, ticket: &Bytes) -> Result<Response<DataStream>> {
    // A ticket is either sealed by us or a metadata command, which contains nothing to protect.
    let any = Any::decode(ticket.clone()).map_err(|_| unknown_ticket())?;
    match Command::try_from(any).map_err(|_| unknown_ticket())? {
        Command::TicketStatementQuery(ticket) => {
            statement::data(state, caller, &ticket.statement_handle).await
        }
        other => metadata::data(&state.encodings, &caller.session, other),
    }
}

/// Answers a DoPut: returns the metadata of its only result, and what was written, if anything.
async fn put(
    state: &FlightState,
    caller: &Caller,
    messages: Streaming<FlightData>,
) -> Result<(Bytes, Option<WriteOutcome>)> {
    let session = &caller.session;
    let (bytes_max, budget) = (state.message_bytes_max, &state.inbound_budget);
    let mut inbound = Inbound::new(messages, bytes_max, budget, caller.user())?;
    let Some(first) = inbound.first().await? else {
        // Some drivers send no message when they ingest a table or a reader without rows.
        return Ok((DoPutUpdateResult { record_count: 0 }.encode_to_vec().into(), None));
    };
    let descriptor = first.flight_descriptor.as_ref().ok_or_else(no_descriptor)?;
    let written = match command(&descriptor.cmd)? {
        Command::CommandStatementUpdate(update) => {
            no_transaction(update.transaction_id.as_ref())?;
            inbound.drain().await?;
            write_outcome(session.execute(&update.query, ()).await?).await?
        }
        Command::CommandPreparedStatementUpdate(update) => {
            let handle = update.prepared_statement_handle;
            prepared::update(state, caller, &handle, &mut inbound).await?
        }
        Command::CommandPreparedStatementQuery(query) => {
            let handle = query.prepared_statement_handle;
            return Ok((prepared::bind(&state.prepared, session, handle, &mut inbound).await?, None));
        }
        Command::CommandStatementIngest(request) => {
            ingest::ingest(session, state.database.config(), request, &mut inbound).await?
        }
        Command::CommandStatementSubstraitPlan(_) => return Err(no_substrait()),
        other => return Err(malformed(&format!("\"{}\" is not a DoPut command", other.type_url()))),
    };
    let result = DoPutUpdateResult { record_count: written.rows };
    Ok((result.encode_to_vec().into(), Some(written)))
}

/// Returns `SELECT * FROM` the table that a path descriptor names: `[table]` or `[namespace, table]`.
fn path_query(descriptor: &FlightDescriptor) -> Result<String> {
    let quoted = |name: &String| format!("\"{}\"", name.replace('"', "\"\""));
    match descriptor.path.as_slice() {
        [table] => Ok(format!("SELECT * FROM {}", quoted(table))),
        [namespace, table] => Ok(format!("SELECT * FROM {}.{}", quoted(namespace), quoted(table))),
        _ => Err(malformed("a path must name a table, or a namespace and a table")),
    }
}

fn no_descriptor() -> Error {
    malformed("the first message of DoPut has no descriptor")
}
