//! The server under test, and a client that shows headers, tickets, schemas and statuses.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::util::pretty::pretty_format_batches;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::{CommandStatementQuery, CommandStatementUpdate, DoPutUpdateResult, ProstMessageExt};
use arrow_flight::{Action, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, Ticket};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use kalamdb_core::{Config, Database};
use kalamdb_server::config::{ServerConfig, Sources};
use kalamdb_server::server::{FlightMonitor, Server};
use prost::Message;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

pub(crate) const ROOT_PASSWORD: &str = "root-password";

/// A server that runs until the fixture is shut down.
pub(crate) struct Fixture {
    pub(crate) database: Database,
    pub(crate) monitor: FlightMonitor,
    url: String,
    shutdown: CancellationToken,
    serving: JoinHandle<()>,
}

impl Fixture {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts a server with the given settings.
    pub(crate) async fn start_with(settings: &[(&str, &str)]) -> Self {
        let config = Config { root_password: Some(ROOT_PASSWORD.to_owned()), ..Config::in_memory() };
        let database = Database::open(config).await.expect("open a database in memory");
        Self::over(database, settings).await
    }

    /// Starts a server on an open database.
    pub(crate) async fn over(database: Database, settings: &[(&str, &str)]) -> Self {
        let own = [("listen", "127.0.0.1:0"), ("http_listen", "off")];
        let flags = own.iter().chain(settings).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let sources = Sources { flags: flags.collect(), ..Sources::default() };
        let config = ServerConfig::load(&sources).expect("settings");
        let server = Server::bind(database.clone(), &config).await.expect("bind");
        let url = format!("http://{}", server.local_addr());
        let monitor = server.monitor();
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        let serving = tokio::spawn(async move { server.serve(token).await.expect("serve") });
        Self { database, monitor, url, shutdown, serving }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Opens a connection without credentials.
    pub(crate) async fn stranger(&self) -> Client {
        let channel = Channel::from_shared(self.url.clone()).expect("url").connect().await.expect("connect");
        let inner = FlightServiceClient::new(channel).max_decoding_message_size(64 << 20);
        Client { inner, authorization: None, headers: Vec::new() }
    }

    /// Opens a connection that logs in as root by Handshake.
    pub(crate) async fn root(&self) -> Client {
        self.login("root", ROOT_PASSWORD).await
    }

    pub(crate) async fn login(&self, username: &str, password: &str) -> Client {
        let mut client = self.stranger().await;
        let token = client.handshake(username, password).await.expect("handshake");
        client.authorize(&token);
        client
    }

    /// Creates a user and logs in.
    pub(crate) async fn user(&self, username: &str) -> Client {
        let sql = format!("CREATE USER {username} WITH PASSWORD 'password-of-{username}' ROLE user");
        self.root().await.update(&sql).await.expect("create user");
        self.login(username, &format!("password-of-{username}")).await
    }

    /// Shuts the server down and waits for its end.
    pub(crate) async fn shut_down(self) -> Database {
        self.shutdown.cancel();
        self.serving.await.expect("the server ended without a panic");
        self.database
    }
}

/// A Flight client.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) inner: FlightServiceClient<Channel>,
    authorization: Option<MetadataValue<Ascii>>,
    /// Further headers of every call.
    headers: Vec<(&'static str, MetadataValue<Ascii>)>,
}

impl Client {
    pub(crate) fn authorize(&mut self, authorization: &str) {
        self.authorization = Some(authorization.parse().expect("header value"));
    }

    /// Sends a header with every call from now on.
    pub(crate) fn send_always(&mut self, name: &'static str, value: &str) {
        self.headers.push((name, value.parse().expect("header value")));
    }

    pub(crate) fn authorization(&self) -> String {
        self.authorization.as_ref().and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    }

    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        for (name, value) in &self.headers {
            request.metadata_mut().insert(*name, value.clone());
        }
        request
    }

    /// Logs in and returns the `authorization` header for later calls.
    pub(crate) async fn handshake(&mut self, username: &str, password: &str) -> Result<String, Status> {
        let mut request = Request::new(stream::iter([HandshakeRequest::default()]));
        request
            .metadata_mut()
            .insert("authorization", basic(username, password).parse().expect("header value"));
        let response = self.inner.handshake(request).await?;
        let header = response.metadata().get("authorization").expect("authorization in headers").clone();
        let mut messages = response.into_inner();
        while messages.message().await?.is_some() {}
        let trailers = messages.trailers().await?.unwrap_or_default();
        assert_eq!(trailers.get("authorization"), Some(&header), "the token is in the trailers too");
        Ok(header.to_str().expect("ascii").to_owned())
    }

    pub(crate) async fn info(
        &mut self,
        command: &impl ProstMessageExt,
    ) -> Result<Response<FlightInfo>, Status> {
        let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
        self.inner.get_flight_info(self.request(descriptor)).await
    }

    pub(crate) async fn schema_of(&mut self, command: &impl ProstMessageExt) -> Result<Bytes, Status> {
        let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
        Ok(self.inner.get_schema(self.request(descriptor)).await?.into_inner().schema)
    }

    pub(crate) async fn open(&mut self, ticket: Ticket) -> Result<Response<Streaming<FlightData>>, Status> {
        self.inner.do_get(self.request(ticket)).await
    }

    /// Fetches everything from the only endpoint.
    pub(crate) async fn fetch(&mut self, info: &FlightInfo) -> Result<Fetched, Status> {
        let response = self.open(only_ticket(info)).await?;
        let seq = seq_of(response.metadata());
        let messages: Vec<FlightData> = response.into_inner().try_collect().await?;
        let header = messages.first().map(|message| message.data_header.clone()).unwrap_or_default();
        let metadata = messages.iter().map(|message| message.app_metadata.clone()).collect();
        let mut decoder =
            FlightRecordBatchStream::new_from_flight_data(stream::iter(messages.into_iter().map(Ok)));
        let mut batches = Vec::new();
        while let Some(batch) = decoder.next().await {
            batches.push(batch.expect("a readable batch"));
        }
        let schema = decoder.schema().cloned().unwrap_or_else(|| Arc::new(Schema::empty()));
        Ok(Fetched { schema, batches, seq, header, metadata })
    }

    pub(crate) async fn query(&mut self, sql: &str) -> Result<Fetched, Status> {
        let info = self.info(&statement(sql)).await?.into_inner();
        self.fetch(&info).await
    }

    /// Runs a statement with DoPut, without Arrow data, as Go's driver does.
    pub(crate) async fn update(&mut self, sql: &str) -> Result<i64, Status> {
        let command = CommandStatementUpdate { query: sql.to_owned(), transaction_id: None };
        let message = FlightData { flight_descriptor: Some(descriptor(&command)), ..FlightData::default() };
        Ok(self.put(vec![message]).await?.0)
    }

    /// Sends any messages with DoPut; returns the count and the seq.
    pub(crate) async fn put(&mut self, messages: Vec<FlightData>) -> Result<(i64, Option<u64>), Status> {
        let (metadata, seq) = self.put_raw(messages).await?;
        let result = DoPutUpdateResult::decode(metadata).expect("DoPutUpdateResult");
        Ok((result.record_count, seq))
    }

    pub(crate) async fn put_raw(
        &mut self,
        messages: Vec<FlightData>,
    ) -> Result<(Bytes, Option<u64>), Status> {
        let response = self.inner.do_put(self.request(stream::iter(messages))).await?;
        let seq = seq_of(response.metadata());
        let result = response.into_inner().message().await?.expect("a PutResult");
        Ok((result.app_metadata, seq))
    }

    /// Runs DoAction with an unwrapped body; returns the bodies of the results.
    pub(crate) async fn run_action(&mut self, action: &str, body: Vec<u8>) -> Result<Vec<Bytes>, Status> {
        let action = Action { r#type: action.to_owned(), body: body.into() };
        let results = self.inner.do_action(self.request(action)).await?.into_inner();
        results.map_ok(|result| result.body).try_collect().await
    }
}

/// A result as received.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) schema: SchemaRef,
    pub(crate) batches: Vec<RecordBatch>,
    pub(crate) seq: Option<u64>,
    /// The flatbuffer of the schema message.
    pub(crate) header: Bytes,
    /// The `app_metadata` of each message.
    pub(crate) metadata: Vec<Bytes>,
}

impl Fetched {
    pub(crate) fn rows(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }

    /// Returns the rows as lines of the form `a|b|c`.
    pub(crate) fn lines(&self) -> Vec<String> {
        let table = pretty_format_batches(&self.batches).expect("printable").to_string();
        let rows = table.lines().filter(|line| line.starts_with('|')).skip(1);
        rows.map(|line| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>().join("|"))
            .collect()
    }
}

pub(crate) fn statement(sql: &str) -> CommandStatementQuery {
    CommandStatementQuery { query: sql.to_owned(), transaction_id: None }
}

pub(crate) fn descriptor(command: &impl ProstMessageExt) -> FlightDescriptor {
    FlightDescriptor::new_cmd(command.as_any().encode_to_vec())
}

pub(crate) fn only_ticket(info: &FlightInfo) -> Ticket {
    let [endpoint] = info.endpoint.as_slice() else {
        panic!("one endpoint, not {}", info.endpoint.len());
    };
    assert!(endpoint.location.is_empty(), "no location: the connection that asked");
    endpoint.ticket.clone().expect("a ticket")
}

/// Returns a descriptor, a schema and batches, as drivers send them with DoPut.
pub(crate) async fn put_messages(
    command: &impl ProstMessageExt,
    batches: Vec<RecordBatch>,
) -> Vec<FlightData> {
    let schema = batches.first().expect("a batch").schema();
    FlightDataEncoderBuilder::new()
        .with_schema(schema)
        .with_flight_descriptor(Some(descriptor(command)))
        .build(stream::iter(batches.into_iter().map(Ok)))
        .try_collect()
        .await
        .expect("encoded")
}

pub(crate) fn any<M: ProstMessageExt>(message: &M) -> Vec<u8> {
    message.as_any().encode_to_vec()
}

pub(crate) fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{username}:{password}")))
}

pub(crate) fn seq_of(headers: &tonic::metadata::MetadataMap) -> Option<u64> {
    headers.get("kalamdb-seq")?.to_str().ok()?.parse().ok()
}

/// Waits until `condition` holds; after 10 s fails with `what`.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "{what} within 10 s");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
