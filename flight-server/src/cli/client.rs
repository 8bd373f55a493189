//! A connection to a server for the commands that need one: address, credentials and error texts.

use std::path::PathBuf;
use std::time::Duration;

use arrow_flight::HandshakeRequest;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::client::FlightSqlServiceClient;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use clap::Args;
use kalamdb_proto::live::v1::live_query_client::LiveQueryClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use super::Failure;
use super::serve::{ROOT_PASSWORD_FILE, read_password};

/// Time limit for connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that is silent this long gets a keep-alive ping.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// The largest message accepted from a server.
const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// Where the server is and who calls.
#[derive(Debug, Args)]
pub(super) struct ConnectArgs {
    /// The server: grpc://HOST:PORT, or grpc+tls://HOST:PORT
    #[arg(long, env = "KALAMDB_URL", default_value = "grpc://127.0.0.1:8815")]
    url: String,
    /// The user; its password is KALAMDB_PASSWORD or, for root, in DATA_DIR/root-password
    #[arg(long, env = "KALAMDB_USER", default_value = "root")]
    user: String,
    /// The server's data directory, which has root's password
    #[arg(long, value_name = "DIR", env = "KALAMDB_DATA_DIR", default_value = "./kalamdb-data")]
    data_dir: PathBuf,
    /// PEM certificate of the CA that signed the server's certificate, for grpc+tls
    #[arg(long, value_name = "FILE", env = "KALAMDB_TLS_CA")]
    tls_ca: Option<PathBuf>,
}

/// Adds the token to every call.
#[derive(Clone)]
pub(super) struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// A channel whose calls carry the token.
pub(super) type AuthorizedChannel = InterceptedService<Channel, Bearer>;

/// An authenticated connection.
pub(super) struct Connection {
    channel: Channel,
    bearer: Bearer,
}

impl ConnectArgs {
    /// Connects and logs in.
    pub(super) async fn connect(&self) -> Result<Connection, Failure> {
        let password = self.password()?;
        let channel = self.endpoint()?.connect().await.map_err(|error| {
            format!("cannot reach the server at \"{}\": {}", self.url, super::describe(&error))
        })?;
        let bearer = log_in(channel.clone(), &self.user, &password).await?;
        Ok(Connection { channel, bearer })
    }

    fn password(&self) -> Result<String, Failure> {
        if let Ok(password) = std::env::var("KALAMDB_PASSWORD") {
            return Ok(password);
        }
        let path = self.data_dir.join(ROOT_PASSWORD_FILE);
        match read_password(&path) {
            Some(password) if self.user == "root" => Ok(password),
            _ if self.user == "root" => Err(format!(
                "no password: set KALAMDB_PASSWORD, or set --data-dir to the folder of {ROOT_PASSWORD_FILE}"
            )
            .into()),
            _ => Err(format!("no password for user \"{}\": set KALAMDB_PASSWORD", self.user).into()),
        }
    }

    fn endpoint(&self) -> Result<Endpoint, Failure> {
        let (scheme, address) = self.url.split_once("://").unwrap_or(("grpc", &self.url));
        let tls = match scheme {
            "grpc" | "grpc+tcp" | "http" => false,
            "grpc+tls" | "https" => true,
            _ => {
                return Err(
                    format!("url \"{}\": write grpc://HOST:PORT or grpc+tls://HOST:PORT", self.url).into()
                );
            }
        };
        let uri = format!("{}://{address}", if tls { "https" } else { "http" });
        let mut endpoint = Endpoint::from_shared(uri)
            .map_err(|error| format!("url \"{}\": {error}", self.url))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        if tls {
            let mut config = ClientTlsConfig::new();
            if let Some(path) = &self.tls_ca {
                let pem = std::fs::read(path)
                    .map_err(|error| format!("cannot read \"{}\": {error}", path.display()))?;
                config = config.ca_certificate(Certificate::from_pem(pem));
            }
            endpoint = endpoint.tls_config(config)?;
        }
        Ok(endpoint)
    }
}

impl Connection {
    /// Returns a Flight SQL client.
    pub(super) fn flight_sql(&self) -> FlightSqlServiceClient<AuthorizedChannel> {
        let channel = InterceptedService::new(self.channel.clone(), self.bearer.clone());
        let flight = FlightServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        FlightSqlServiceClient::new_from_inner(flight)
    }

    /// Returns a live query client.
    pub(super) fn live_query(&self) -> LiveQueryClient<AuthorizedChannel> {
        let channel = InterceptedService::new(self.channel.clone(), self.bearer.clone());
        LiveQueryClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }
}

async fn log_in(channel: Channel, user: &str, password: &str) -> Result<Bearer, Failure> {
    let basic = BASE64_STANDARD.encode(format!("{user}:{password}"));
    let hello = HandshakeRequest { protocol_version: 0, payload: bytes::Bytes::new() };
    let mut request = Request::new(futures::stream::iter([hello]));
    request.metadata_mut().insert("authorization", format!("Basic {basic}").parse()?);
    let answer = FlightServiceClient::new(channel)
        .handshake(request)
        .await
        .map_err(|status| explain_status(&status))?;
    let token = answer.metadata().get("authorization").cloned().ok_or("the server returned no token")?;
    Ok(Bearer(token))
}

/// Extracts the server's message from an error, without the client libraries' wrapping.
pub(super) fn explain(error: FlightError) -> Failure {
    match error {
        FlightError::Tonic(status) => explain_status(&status),
        other => other.into(),
    }
}

/// Formats a status for people.
pub(super) fn explain_status(status: &Status) -> Failure {
    if status.message().is_empty() {
        return format!("the call failed: {}", status.code()).into();
    }
    status.message().to_owned().into()
}
