//! The floor: a Flight server on the same tonic that answers the same RPCs from constants.
//!
//! It reads its input, returns what the client expects, and does nothing in between: it checks no tokens,
//! reads no SQL and stores nothing. The ticket `live` is an endless stream with one message for each DoPut.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::sql::{ActionCreatePreparedStatementResult, DoPutUpdateResult, ProstMessageExt};
use arrow_flight::utils::batches_to_flight_data;
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo,
    HandshakeRequest, HandshakeResponse, PollInfo, PutResult, SchemaResult, Ticket,
};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use prost::Message;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use crate::Result;
use crate::load::Load;
use crate::report::Samples;
use crate::wire::Wire;

/// Messages a live reader may lag behind before it gets an error; the benchmark reads each one before the
/// next is sent.
const LIVE_MESSAGES_MAX: usize = 64;

/// The ticket of the endless stream.
pub(crate) const LIVE: &[u8] = b"live";

/// The answers to queries.
#[derive(Clone, Default)]
struct Constants {
    info: FlightInfo,
    data: Vec<FlightData>,
}

pub(crate) struct Floor {
    runtime: Runtime,
    address: SocketAddr,
    constants: Arc<RwLock<Constants>>,
}

impl Floor {
    pub(crate) fn start() -> Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let constants = Arc::new(RwLock::new(Constants::default()));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let service = FloorService {
            constants: Arc::clone(&constants),
            live: broadcast::Sender::new(LIVE_MESSAGES_MAX),
        };
        let service = FlightServiceServer::new(service).max_decoding_message_size(64 << 20);
        // TCP_NODELAY in the server's settings does not apply to sockets accepted elsewhere.
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        runtime.spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        Ok(Self { runtime, address, constants })
    }

    /// Sets the answer to queries: the row the database would return.
    pub(crate) fn answer_with(&self, batch: &RecordBatch) -> Result<()> {
        let data = batches_to_flight_data(&batch.schema(), vec![batch.clone()])?;
        let info = FlightInfo::new()
            .try_with_schema(&batch.schema())?
            .with_endpoint(FlightEndpoint::new().with_ticket(Ticket::new("constant")));
        *self.constants.write().unwrap_or_else(PoisonError::into_inner) = Constants { info, data };
        Ok(())
    }

    pub(crate) async fn connect(&self) -> Result<Wire> {
        Wire::connect(self.address, "nobody", "nothing").await
    }

    pub(crate) fn stop(self) {
        self.runtime.shutdown_background();
    }
}

struct FloorService {
    constants: Arc<RwLock<Constants>>,
    live: broadcast::Sender<FlightData>,
}

impl FloorService {
    fn constants(&self) -> RwLockReadGuard<'_, Constants> {
        self.constants.read().unwrap_or_else(PoisonError::into_inner)
    }
}

type Reply<T> = std::result::Result<Response<T>, Status>;
type ReplyStream<T> = BoxStream<'static, std::result::Result<T, Status>>;

#[tonic::async_trait]
impl FlightService for FloorService {
    type HandshakeStream = ReplyStream<HandshakeResponse>;
    type ListFlightsStream = ReplyStream<FlightInfo>;
    type DoGetStream = ReplyStream<FlightData>;
    type DoPutStream = ReplyStream<PutResult>;
    type DoActionStream = ReplyStream<arrow_flight::Result>;
    type ListActionsStream = ReplyStream<ActionType>;
    type DoExchangeStream = ReplyStream<FlightData>;

    async fn handshake(&self, _: Request<Streaming<HandshakeRequest>>) -> Reply<Self::HandshakeStream> {
        let mut response = Response::new(stream::iter([Ok(HandshakeResponse::default())]).boxed());
        let token = "Bearer floor".parse().map_err(|_| Status::internal("not a header value"))?;
        response.metadata_mut().insert("authorization", token);
        Ok(response)
    }

    async fn get_flight_info(&self, _: Request<FlightDescriptor>) -> Reply<FlightInfo> {
        Ok(Response::new(self.constants().info.clone()))
    }

    async fn do_get(&self, request: Request<Ticket>) -> Reply<Self::DoGetStream> {
        if request.into_inner().ticket.as_ref() == LIVE {
            let live = BroadcastStream::new(self.live.subscribe())
                .map(|data| data.map_err(|lag| Status::data_loss(lag.to_string())));
            return Ok(Response::new(live.boxed()));
        }
        let data: Vec<_> = self.constants().data.iter().cloned().map(Ok).collect();
        Ok(Response::new(stream::iter(data).boxed()))
    }

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Reply<Self::DoPutStream> {
        let mut messages = request.into_inner();
        while messages.message().await?.is_some() {}
        if self.live.receiver_count() > 0 {
            let data = self.constants().data.last().cloned().unwrap_or_default();
            // A send without listeners is not an error.
            drop(self.live.send(data));
        }
        let result = DoPutUpdateResult { record_count: 1 };
        Ok(Response::new(
            stream::iter([Ok(PutResult { app_metadata: result.encode_to_vec().into() })]).boxed(),
        ))
    }

    async fn do_action(&self, _: Request<Action>) -> Reply<Self::DoActionStream> {
        let result = ActionCreatePreparedStatementResult {
            prepared_statement_handle: Bytes::from_static(b"constant"),
            ..Default::default()
        };
        let body = result.as_any().encode_to_vec();
        Ok(Response::new(stream::iter([Ok(arrow_flight::Result { body: body.into() })]).boxed()))
    }

    async fn list_flights(&self, _: Request<Criteria>) -> Reply<Self::ListFlightsStream> {
        Err(Status::unimplemented("the floor lists no flights"))
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Reply<PollInfo> {
        Err(Status::unimplemented("the floor is not polled"))
    }

    async fn get_schema(&self, _: Request<FlightDescriptor>) -> Reply<SchemaResult> {
        Err(Status::unimplemented("the floor has no schemas"))
    }

    async fn list_actions(&self, _: Request<Empty>) -> Reply<Self::ListActionsStream> {
        Err(Status::unimplemented("the floor lists no actions"))
    }

    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> Reply<Self::DoExchangeStream> {
        Err(Status::unimplemented("the floor exchanges nothing"))
    }
}

/// Measures a synced write of the file system: one small append and fdatasync, repeated.
pub(crate) fn fdatasync(folder: &Path, length: Duration) -> Result<Samples> {
    let mut file = OpenOptions::new().create(true).append(true).open(folder.join("fdatasync"))?;
    let mut samples = Samples::default();
    let begin = Instant::now();
    while begin.elapsed() < length {
        let start = Instant::now();
        file.write_all(&[0x5a; 256])?;
        file.sync_data()?;
        samples.push(start.elapsed());
    }
    Ok(samples)
}

/// Measures RocksDB alone: `threads` threads, each syncing every small write.
pub(crate) fn rocksdb_synced(folder: &Path, threads: u64, length: Duration) -> Result<Load> {
    let database = rocksdb::DB::open_default(folder.join(format!("rocksdb-{threads}")))?;
    let begin = Instant::now();
    let samples = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..threads)
            .map(|thread| {
                let database = &database;
                scope.spawn(move || {
                    let mut options = rocksdb::WriteOptions::default();
                    options.set_sync(true);
                    let (mut samples, mut key) = (Samples::default(), thread << 40);
                    while begin.elapsed() < length {
                        let start = Instant::now();
                        database.put_opt(key.to_be_bytes(), [0x5a; 64], &options)?;
                        samples.push(start.elapsed());
                        key += 1;
                    }
                    Ok::<_, rocksdb::Error>(samples)
                })
            })
            .collect();
        writers
            .into_iter()
            .map(|writer| {
                writer.join().map_err(|_| "a writer panicked".into()).and_then(|samples| Ok(samples?))
            })
            .collect::<Result<Vec<_>>>()
    })?;
    let mut load = Load::default();
    for samples in samples {
        load.samples.append(samples);
    }
    load.rates.push(load.samples.len() as f64 / begin.elapsed().as_secs_f64());
    Ok(load)
}
