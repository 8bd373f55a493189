//! The gRPC server: one listener, one router, every service behind the auth layer.
//!
//! Invariants: everything that a client can open, send or make the server hold has a limit; `serve` returns
//! within the drain time after its token fires, whatever clients do.

use std::error::Error as StdError;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arrow_flight::flight_service_server::FlightServiceServer;
use kalamdb_core::Database;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Identity, ServerTlsConfig};
use tonic_health::ServingStatus;
use tracing::info;

use crate::auth::{AuthLayer, Authenticator};
use crate::config::ServerConfig;
use crate::connection::{self, ConnectionLimits};
use crate::flight_sql::{FlightSqlService, FlightState};
use crate::health;
use crate::offload::Offloaded;
use crate::probe::{Health, Probe};
use crate::sessions::Sessions;

/// An error before or while serving.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// Concurrent calls per connection, including live queries.
const STREAMS_PER_CONNECTION_MAX: u32 = 256;
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Limits against reset floods: streams that a client reset before they were accepted, and streams that ended
/// in a local error.
const PENDING_RESETS_MAX: usize = 20;
const LOCAL_RESETS_MAX: usize = 1_024;
/// How much a client may send ahead after its login; large enough for a bulk load to fill the line.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Larger HTTP/2 frames than the default of 16 KiB. A frame is read whole, also before a login, where
/// `anonymous_read_bytes_max` limits what is read.
const FRAME_BYTES_MAX: u32 = 32 << 10;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The last part of the drain time, in which clients of statements that still run are told why they end.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Counters of the Flight service: past work and current load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlightCounters {
    /// Encoded result schemas that are not a table's; a table's schema is memoized and not counted.
    pub schema_encodings: u64,
    /// Queries whose DoGet is open.
    pub running_queries: usize,
}

/// Reads the counters of a server, also while it serves.
#[derive(Clone)]
pub struct FlightMonitor {
    state: Arc<FlightState>,
}

impl FlightMonitor {
    /// Returns the current counters.
    pub fn counters(&self) -> FlightCounters {
        let (schema_encodings, running_queries) = self.state.counters();
        FlightCounters { schema_encodings, running_queries }
    }
}

/// A server that has bound its port but does not serve yet.
pub struct Server {
    listener: TcpListener,
    local_addr: SocketAddr,
    database: Database,
    authenticator: Arc<Authenticator>,
    sessions: Arc<Sessions>,
    state: Arc<FlightState>,
    /// Ends endless streams; fired after the caller's token.
    closing: CancellationToken,
    connection_limits: ConnectionLimits,
    tls: Option<ServerTlsConfig>,
    reflection: bool,
    message_bytes_max: usize,
    drain: Duration,
    /// The runtime for calls.
    runtime: Handle,
    probe: Probe,
}

impl Server {
    /// Binds the port.
    ///
    /// # Errors
    /// When the address cannot be bound or the TLS files cannot be read.
    pub async fn bind(database: Database, config: &ServerConfig) -> Result<Self, BoxError> {
        let listener = TcpListener::bind(config.listen)
            .await
            .map_err(|error| format!("cannot listen on {}: {error}", config.listen))?;
        let local_addr = listener.local_addr()?;
        let closing = CancellationToken::new();
        let authenticator = Arc::new(Authenticator::new(database.clone(), config));
        let sessions = Arc::new(Sessions::new(config.connections_per_user_max));
        let state = FlightState::new(
            database.clone(),
            Arc::clone(&authenticator),
            Arc::clone(&sessions),
            config,
            closing.clone(),
        );
        Ok(Self {
            listener,
            local_addr,
            database,
            authenticator,
            sessions,
            state: Arc::new(state),
            closing,
            connection_limits: ConnectionLimits::from(config),
            tls: tls(config).await?,
            reflection: config.reflection,
            message_bytes_max: config.message_bytes_max,
            drain: Duration::from_millis(config.drain_ms),
            runtime: Handle::current(),
            probe: Probe::new(),
        })
    }

    /// Returns the bound address, with the chosen port if port 0 was configured.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Runs calls on `runtime`, so that connections and signals do not wait for queries. By default calls run
    /// on the runtime that called [`Server::bind`].
    #[must_use]
    pub fn calls_on(self, runtime: Handle) -> Self {
        Self { runtime, ..self }
    }

    /// Returns a reader of the counters.
    pub fn monitor(&self) -> FlightMonitor {
        FlightMonitor { state: Arc::clone(&self.state) }
    }

    /// Returns the server's health, which is checked while it serves.
    pub fn health(&self) -> Health {
        self.probe.health()
    }

    /// Serves until `shutdown` fires, then gives open calls the drain time to end.
    ///
    /// # Errors
    /// When the whole transport fails; a failed connection does not end the server.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), BoxError> {
        let (reporter, health_service) = tonic_health::server::health_reporter();
        health::set(&reporter, ServingStatus::Serving).await;
        let health = health::follow(reporter, self.probe.health(), shutdown.clone());
        let database = self.database.clone();
        let calls = self.runtime.clone();
        let flight = FlightServiceServer::new(FlightSqlService::new(Arc::clone(&self.state)))
            .max_decoding_message_size(self.message_bytes_max)
            .max_encoding_message_size(usize::MAX);
        let live = crate::live::service(self.database, self.sessions, self.closing.clone());
        let reflection = if self.reflection { Some(reflection()?) } else { None };

        let mut builder = tonic::transport::Server::builder();
        if let Some(tls) = self.tls {
            builder = builder.tls_config(tls)?;
        }
        let router = limited(builder)
            .layer(AuthLayer::new(self.authenticator))
            .add_service(Offloaded::new(flight, self.runtime.clone()))
            .add_service(Offloaded::new(live, self.runtime))
            .add_service(health_service)
            .add_optional_service(reflection);

        let incoming = connection::accept(self.listener, self.connection_limits);
        let stop = {
            let shutdown = shutdown.clone();
            async move { shutdown.cancelled().await }
        };
        let serving = router.serve_with_incoming_shutdown(incoming, stop);
        let closing = self.closing;
        let drain = self.drain;
        let ending = database.clone();
        let drained = async move {
            shutdown.cancelled().await;
            info!(drain_ms = drain.as_millis(), "draining open calls");
            closing.cancel();
            tokio::time::sleep(drain.saturating_sub(LAST_WORDS)).await;
            ending.end_statements();
            tokio::time::sleep(drain.min(LAST_WORDS)).await;
        };
        tokio::select! {
            result = serving => Ok(result?),
            () = drained => {
                info!("drain time expired; closing open calls");
                Ok(())
            }
            never = self.state.sweep() => match never {},
            never = health => match never {},
            never = self.probe.run(&database, &calls) => match never {},
        }
    }
}

fn limited(builder: tonic::transport::Server) -> tonic::transport::Server {
    builder
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
        .http2_max_local_error_reset_streams(Some(LOCAL_RESETS_MAX))
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
}

async fn tls(config: &ServerConfig) -> Result<Option<ServerTlsConfig>, BoxError> {
    let Some(tls) = &config.tls else { return Ok(None) };
    let read = async |path: &std::path::Path| {
        tokio::fs::read(path).await.map_err(|error| format!("cannot read \"{}\": {error}", path.display()))
    };
    let identity = Identity::from_pem(read(&tls.cert).await?, read(&tls.key).await?);
    Ok(Some(ServerTlsConfig::new().identity(identity).timeout(TLS_HANDSHAKE_TIMEOUT)))
}

/// Reflects the live service and health; arrow-flight ships no descriptors of Flight itself.
fn reflection() -> Result<
    tonic_reflection::server::v1::ServerReflectionServer<impl tonic_reflection::server::v1::ServerReflection>,
    BoxError,
> {
    Ok(tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(kalamdb_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?)
}
