//! A thin Flight client: one HTTP/2 connection, only the RPCs that are measured, nothing decoded twice.
//!
//! The floor is called by the same client with the same bytes, so the client's cost is in both figures.

use std::net::SocketAddr;

use arrow::array::RecordBatch;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::{
    ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult, Any,
    CommandPreparedStatementQuery, CommandPreparedStatementUpdate, CommandStatementIngest,
    CommandStatementQuery, CommandStatementUpdate, DoPutUpdateResult, ProstMessageExt,
    TableDefinitionOptions, TableExistsOption, TableNotExistOption,
};
use arrow_flight::utils::batches_to_flight_data;
use arrow_flight::{Action, FlightData, FlightDescriptor, HandshakeRequest};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::TryStreamExt;
use prost::Message;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{IntoRequest, Request};

use crate::Result;

/// Returns the value of an `authorization` header.
pub(crate) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

/// Opens one connection.
pub(crate) async fn channel(address: SocketAddr) -> Result<Channel> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true).connect().await?)
}

#[derive(Clone)]
pub(crate) struct Wire {
    client: FlightServiceClient<Channel>,
    authorization: MetadataValue<Ascii>,
}

impl Wire {
    /// Connects and exchanges the password for a token, as the common drivers do.
    pub(crate) async fn connect(address: SocketAddr, user: &str, password: &str) -> Result<Self> {
        let mut client =
            FlightServiceClient::new(channel(address).await?).max_decoding_message_size(64 << 20);
        let mut request = Request::new(futures::stream::iter([HandshakeRequest::default()]));
        request.metadata_mut().insert("authorization", basic(user, password).parse()?);
        let response = client.handshake(request).await?;
        let authorization =
            response.metadata().get("authorization").ok_or("the handshake returned no token")?.clone();
        Ok(Self { client, authorization })
    }

    fn request<T>(&self, message: impl IntoRequest<T>) -> Request<T> {
        let mut request = message.into_request();
        request.metadata_mut().insert("authorization", self.authorization.clone());
        request
    }

    /// Prepares a statement and returns its handle.
    pub(crate) async fn prepare(&mut self, sql: &str) -> Result<Bytes> {
        let command = ActionCreatePreparedStatementRequest { query: sql.to_owned(), transaction_id: None };
        let action = Action::new("CreatePreparedStatement", command.as_any().encode_to_vec());
        let request = self.request(action);
        let mut replies = self.client.do_action(request).await?.into_inner();
        let reply = replies.message().await?.ok_or("no reply to CreatePreparedStatement")?;
        let any = Any::decode(&*reply.body)?;
        let result: ActionCreatePreparedStatementResult =
            any.unpack()?.ok_or("the reply is not an ActionCreatePreparedStatementResult")?;
        Ok(result.prepared_statement_handle)
    }

    /// Runs GetFlightInfo, then DoGet of each endpoint; returns the number of messages with a body.
    pub(crate) async fn query(&mut self, command: &Bytes) -> Result<usize> {
        let request = self.request(FlightDescriptor::new_cmd(command.clone()));
        let info = self.client.get_flight_info(request).await?.into_inner();
        let mut messages = 0;
        for endpoint in info.endpoint {
            let ticket = endpoint.ticket.ok_or("an endpoint has no ticket")?;
            let request = self.request(ticket);
            let mut stream = self.client.do_get(request).await?.into_inner();
            while let Some(data) = stream.message().await? {
                messages += usize::from(!data.data_body.is_empty());
            }
        }
        Ok(messages)
    }

    /// Runs a query as [`Wire::query`] does and decodes its rows.
    pub(crate) async fn rows(&mut self, command: &Bytes) -> Result<Vec<RecordBatch>> {
        let mut batches = Vec::new();
        self.each_batch(command, |batch| batches.push(batch)).await?;
        Ok(batches)
    }

    /// Runs a query as [`Wire::rows`] does without keeping the rows; returns their number.
    pub(crate) async fn count(&mut self, command: &Bytes) -> Result<usize> {
        let mut rows = 0;
        self.each_batch(command, |batch| rows += batch.num_rows()).await?;
        Ok(rows)
    }

    async fn each_batch(&mut self, command: &Bytes, mut take: impl FnMut(RecordBatch)) -> Result<()> {
        let request = self.request(FlightDescriptor::new_cmd(command.clone()));
        let info = self.client.get_flight_info(request).await?.into_inner();
        for endpoint in info.endpoint {
            let ticket = endpoint.ticket.ok_or("an endpoint has no ticket")?;
            let request = self.request(ticket);
            let stream = self.client.do_get(request).await?.into_inner();
            let stream = stream.map_err(|status| FlightError::Tonic(Box::new(status)));
            let mut batches = FlightRecordBatchStream::new_from_flight_data(stream);
            while let Some(batch) = batches.try_next().await? {
                take(batch);
            }
        }
        Ok(())
    }

    /// Runs a statement that is not a query; returns the number of affected rows.
    pub(crate) async fn update_text(&mut self, sql: &str) -> Result<i64> {
        let command = CommandStatementUpdate { query: sql.to_owned(), transaction_id: None };
        let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
        self.update(vec![FlightData { flight_descriptor: Some(descriptor), ..FlightData::default() }]).await
    }

    /// Sends messages with DoPut; the first one carries the descriptor. Returns the metadata of the replies.
    pub(crate) async fn put(&mut self, messages: Vec<FlightData>) -> Result<Vec<Bytes>> {
        let mut request = Request::new(futures::stream::iter(messages));
        request.metadata_mut().insert("authorization", self.authorization.clone());
        let mut replies = self.client.do_put(request).await?.into_inner();
        let mut metadata = Vec::new();
        while let Some(reply) = replies.message().await? {
            metadata.push(reply.app_metadata);
        }
        Ok(metadata)
    }

    /// Runs an update or an ingest with DoPut; returns the number of affected rows.
    pub(crate) async fn update(&mut self, messages: Vec<FlightData>) -> Result<i64> {
        let replies = self.put(messages).await?;
        let reply = replies.first().ok_or("no reply to DoPut")?;
        Ok(DoPutUpdateResult::decode(reply.clone())?.record_count)
    }

    /// Opens the stream of one ticket, which may be endless.
    pub(crate) async fn stream(&mut self, ticket: Bytes) -> Result<tonic::Streaming<FlightData>> {
        let request = self.request(arrow_flight::Ticket { ticket });
        Ok(self.client.do_get(request).await?.into_inner())
    }
}

/// Returns the command of an ad hoc query.
pub(crate) fn ad_hoc(sql: &str) -> Bytes {
    CommandStatementQuery { query: sql.to_owned(), transaction_id: None }.as_any().encode_to_vec().into()
}

/// Returns the command of a prepared query: the descriptor of GetFlightInfo and of the DoPut that binds
/// parameters.
pub(crate) fn prepared_query(handle: &Bytes) -> Bytes {
    CommandPreparedStatementQuery { prepared_statement_handle: handle.clone() }
        .as_any()
        .encode_to_vec()
        .into()
}

/// Returns the command of a prepared update.
pub(crate) fn prepared_update(handle: &Bytes) -> Bytes {
    CommandPreparedStatementUpdate { prepared_statement_handle: handle.clone() }
        .as_any()
        .encode_to_vec()
        .into()
}

/// Returns the command of a bulk ingest that appends to a table.
pub(crate) fn ingest(namespace: &str, table: &str) -> Bytes {
    let command = CommandStatementIngest {
        table_definition_options: Some(TableDefinitionOptions {
            if_not_exist: TableNotExistOption::Fail.into(),
            if_exists: TableExistsOption::Append.into(),
        }),
        table: table.to_owned(),
        schema: Some(namespace.to_owned()),
        ..Default::default()
    };
    command.as_any().encode_to_vec().into()
}

/// Returns a schema message and batches as a DoPut under `command`.
pub(crate) fn put_messages(command: &Bytes, batches: Vec<RecordBatch>) -> Result<Vec<FlightData>> {
    let schema = batches.first().ok_or("there is no batch to put")?.schema();
    let mut messages = batches_to_flight_data(&schema, batches)?;
    if let Some(first) = messages.first_mut() {
        first.flight_descriptor = Some(FlightDescriptor::new_cmd(command.clone()));
    }
    Ok(messages)
}

/// Returns the resident memory of a process (`self` is this one) in bytes; 0 where the platform does not
/// report it.
pub(crate) fn resident_bytes(process: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().unwrap_or_default();
    kib * 1_024
}
