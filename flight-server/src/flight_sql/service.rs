//! The Flight RPCs. Each method identifies the caller and the request and passes them on.
//!
//! Invariant: each method's work runs inside `answered`, so errors and panics become statuses of `status.rs`.

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
use futures::{StreamExt, stream};
use kalamdb_core::{Error, ErrorKind, Result, SqlState};
use prost::Message;
use tonic::{Code, Request, Response, Status, Streaming};

use super::actions::{command, malformed, no_transaction};
use super::budget::Charge;
use super::handshake::HandshakeStream;
use super::statement::{DataStream, unknown_ticket};
use super::update::Done;
use super::{Caller, FlightState, actions, answered, put_seq};

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
        answered(self.state.handshake(headers, extensions.get(), messages)).await
    }

    async fn list_flights(&self, request: Request<Criteria>) -> Answer<Self::ListFlightsStream> {
        answered(async {
            let caller = self.state.caller(request.extensions())?;
            let flights = self.state.list_flights(&caller)?;
            Ok(Response::new(stream::iter(flights.into_iter().map(Ok)).boxed()))
        })
        .await
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Answer<FlightInfo> {
        answered(async {
            let caller = self.state.caller(request.extensions())?;
            self.state.info(&caller, request.into_inner()).await
        })
        .await
    }

    async fn poll_flight_info(&self, request: Request<FlightDescriptor>) -> Answer<PollInfo> {
        answered(async {
            let caller = self.state.caller(request.extensions())?;
            let (headers, info, _) = self.state.info(&caller, request.into_inner()).await?.into_parts();
            // The ticket is ready at once, so the first poll is the last one: it returns no descriptor.
            let expiration_time = info.endpoint.first().and_then(|endpoint| endpoint.expiration_time);
            let poll =
                PollInfo { info: Some(info), flight_descriptor: None, progress: Some(1.0), expiration_time };
            Ok(Response::from_parts(headers, poll, Default::default()))
        })
        .await
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Answer<SchemaResult> {
        answered(async {
            let caller = self.state.caller(request.extensions())?;
            let schema = self.state.schema(&caller, request.get_ref()).await?;
            Ok(Response::new(SchemaResult { schema }))
        })
        .await
    }

    async fn do_get(&self, request: Request<Ticket>) -> Answer<DataStream> {
        answered(async {
            let caller = self.state.caller(request.extensions())?;
            self.state.data(&caller, &request.into_inner().ticket).await
        })
        .await
    }

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Answer<Self::DoPutStream> {
        answered(async {
            let caller = self.state.caller(request.extensions())?;
            let (app_metadata, done) = self.state.put(&caller, request.into_inner()).await?;
            let mut response = Response::new(stream::iter([Ok(PutResult { app_metadata })]).boxed());
            if let Some(done) = done {
                put_seq(response.metadata_mut(), done.seq);
            }
            Ok(response)
        })
        .await
    }

    async fn do_exchange(&self, _request: Request<Streaming<FlightData>>) -> Answer<DataStream> {
        answered(async {
            Err(Error::unsupported("DoExchange")
                .hint("subscribe with SUBSCRIBE TO and DoGet, or with kalamdb.live.v1.LiveQuery"))
        })
        .await
    }

    async fn do_action(&self, request: Request<Action>) -> Answer<Self::DoActionStream> {
        answered(async {
            let caller = self.state.caller(request.extensions())?;
            let bodies = self.state.act(&caller, request.into_inner()).await?;
            let results = bodies.into_iter().map(|body| Ok(arrow_flight::Result { body }));
            Ok(Response::new(stream::iter(results.collect::<Vec<_>>()).boxed()))
        })
        .await
    }

    async fn list_actions(&self, _request: Request<Empty>) -> Answer<Self::ListActionsStream> {
        Ok(Response::new(stream::iter(actions::list().into_iter().map(Ok)).boxed()))
    }
}

impl FlightState {
    async fn info(&self, caller: &Caller, descriptor: FlightDescriptor) -> Result<Response<FlightInfo>> {
        if descriptor.r#type() == DescriptorType::Path {
            let sql = path_query(&descriptor)?;
            return self.statement_info(caller, descriptor, &sql).await;
        }
        match command(&descriptor.cmd)? {
            Command::CommandStatementQuery(query) => {
                no_transaction(query.transaction_id.as_ref())?;
                self.statement_info(caller, descriptor, &query.query).await
            }
            Command::CommandPreparedStatementQuery(query) => {
                let entry = self.prepared.get(caller.user(), &query.prepared_statement_handle)?;
                self.prepared_info(caller, descriptor, entry.prepared, entry.bound).await
            }
            other => self.metadata_info(descriptor, &other).map(Response::new),
        }
    }

    /// Returns the schema that GetFlightInfo would return, without running anything.
    async fn schema(&self, caller: &Caller, descriptor: &FlightDescriptor) -> Result<Bytes> {
        if descriptor.r#type() == DescriptorType::Path {
            let prepared = caller.session.prepare(&path_query(descriptor)?).await?;
            return Ok(self.result_schema(&prepared)?.ipc());
        }
        match command(&descriptor.cmd)? {
            Command::CommandStatementQuery(query) => {
                no_transaction(query.transaction_id.as_ref())?;
                let prepared = caller.session.prepare(&query.query).await?;
                Ok(self.result_schema(&prepared)?.ipc())
            }
            Command::CommandPreparedStatementQuery(query) => {
                let entry = self.prepared.get(caller.user(), &query.prepared_statement_handle)?;
                Ok(self.result_schema(&entry.prepared)?.ipc())
            }
            other => Ok(self.metadata_schema(&other)?.ipc()),
        }
    }

    async fn data(&self, caller: &Caller, ticket: &Bytes) -> Result<Response<DataStream>> {
        // A ticket is either sealed by us or a metadata command, which contains nothing to protect.
        let any = Any::decode(ticket.clone()).map_err(|_| unknown_ticket())?;
        match Command::try_from(any).map_err(|_| unknown_ticket())? {
            Command::TicketStatementQuery(ticket) => {
                self.statement_data(caller, &ticket.statement_handle).await
            }
            other => self.metadata_data(caller, other),
        }
    }

    /// Answers a DoPut: returns the metadata of its only result, and what was written, if anything.
    async fn put(&self, caller: &Caller, messages: Streaming<FlightData>) -> Result<(Bytes, Option<Done>)> {
        let mut inbound = self.inbound(caller, messages)?;
        let Some(first) = inbound.first().await? else {
            // Some drivers send no message when they ingest a table or a reader without rows.
            return Ok((DoPutUpdateResult { record_count: 0 }.encode_to_vec().into(), None));
        };
        let descriptor = first.flight_descriptor.as_ref().ok_or_else(no_descriptor)?;
        let done = match command(&descriptor.cmd)? {
            Command::CommandStatementUpdate(update) => {
                no_transaction(update.transaction_id.as_ref())?;
                inbound.drain().await?;
                super::update::done(caller.session.execute(&update.query, ()).await?).await?
            }
            Command::CommandPreparedStatementUpdate(update) => {
                self.update_prepared(caller, &update.prepared_statement_handle, &mut inbound).await?
            }
            Command::CommandPreparedStatementQuery(query) => {
                return Ok((self.bind(caller, query.prepared_statement_handle, &mut inbound).await?, None));
            }
            Command::CommandStatementIngest(ingest) => self.ingest(caller, ingest, &mut inbound).await?,
            Command::CommandStatementSubstraitPlan(_) => return Err(no_substrait()),
            other => return Err(malformed(&format!("{} is no command of DoPut", other.type_url()))),
        };
        let result = DoPutUpdateResult { record_count: done.rows };
        Ok((result.encode_to_vec().into(), Some(done)))
    }
}

/// The messages of a DoPut. The first carries the descriptor and, from some clients, a schema.
///
/// The bytes it delivered stay charged until it is dropped, so keep it as long as the data.
pub(crate) struct Inbound {
    messages: Streaming<FlightData>,
    message_bytes_max: usize,
    first: Option<FlightData>,
    bytes: usize,
    held: Charge,
}

impl FlightState {
    fn inbound(&self, caller: &Caller, messages: Streaming<FlightData>) -> Result<Inbound> {
        let held = self.inbound.charge(caller.user(), 0).map_err(|_| too_much_inbound())?;
        let message_bytes_max = self.message_bytes_max;
        Ok(Inbound { messages, message_bytes_max, first: None, bytes: 0, held })
    }
}

impl Inbound {
    /// Returns the first message, which `next` returns again; `None` when the stream is empty.
    async fn first(&mut self) -> Result<Option<FlightData>> {
        let first = self.next().await?;
        self.first.clone_from(&first);
        Ok(first)
    }

    /// Returns the next message, or `None` at the end.
    ///
    /// # Errors
    /// 08000 for a malformed message, 54000 for one over the limit, 53200 when all clients together have sent
    /// too much, 57014 when the client disconnected.
    pub(crate) async fn next(&mut self) -> Result<Option<FlightData>> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        let Some(message) = self.read().await? else { return Ok(None) };
        // Headers count too: a dictionary or an empty batch may have only a header.
        let bytes = message.data_header.len() + message.data_body.len();
        self.held.grow(bytes).map_err(|_| too_much_inbound())?;
        self.bytes = self.bytes.saturating_add(bytes);
        Ok(Some(message))
    }

    /// Returns the bytes of all messages so far, headers and bodies.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    async fn read(&mut self) -> Result<Option<FlightData>> {
        self.messages.message().await.map_err(|status| match status.code() {
            Code::OutOfRange | Code::ResourceExhausted => Error::new(
                ErrorKind::ResourceExhausted,
                SqlState::PROGRAM_LIMIT_EXCEEDED,
                format!("a message is larger than {} bytes", self.message_bytes_max),
            )
            .hint("send smaller batches"),
            // The transport's code for a malformed message; if the connection broke, nobody reads this error.
            Code::Internal => malformed("a message of the stream is no FlightData").source(status),
            _ => Error::new(ErrorKind::Cancelled, SqlState::QUERY_CANCELED, "the client's stream broke off")
                .source(status),
        })
    }

    /// Reads and drops the rest; some clients treat an answer before the end of their stream as an error.
    async fn drain(&mut self) -> Result<()> {
        self.first = None;
        while self.read().await?.is_some() {}
        Ok(())
    }
}

fn too_much_inbound() -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        SqlState::OUT_OF_MEMORY,
        "all clients together send more rows and parameters than the server holds",
    )
    .hint("try again when other loads have ended, send less at once, or raise inbound_bytes_max")
}

/// Returns `SELECT * FROM` the table that a path descriptor names: `[table]` or `[namespace, table]`.
fn path_query(descriptor: &FlightDescriptor) -> Result<String> {
    let quoted = |name: &String| format!("\"{}\"", name.replace('"', "\"\""));
    match descriptor.path.as_slice() {
        [table] => Ok(format!("SELECT * FROM {}", quoted(table))),
        [namespace, table] => Ok(format!("SELECT * FROM {}.{}", quoted(namespace), quoted(table))),
        _ => Err(malformed("a path names a table, or a namespace and a table")),
    }
}

pub(super) fn no_substrait() -> Error {
    Error::unsupported("a Substrait plan").hint("send SQL")
}

fn no_descriptor() -> Error {
    malformed("the first message of DoPut carries no descriptor")
}
