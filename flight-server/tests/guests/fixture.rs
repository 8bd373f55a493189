//! The server under test, with two users and their tables.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::client::FlightSqlServiceClient;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use crate::promises::Promise;
use crate::report::Report;
use crate::server::{Client, Log, PASSWORD, Server};

/// The user of the guests.
pub(crate) const GUEST: &str = "guest";
/// The other user.
pub(crate) const BYSTANDER: &str = "bystander";
/// Rows of the bystander in `app.notes`, with the ids from 1.
pub(crate) const NOTES: u64 = 1_000;
/// The manual's limit for a server's shutdown.
const END_MAX: Duration = Duration::from_secs(10);

pub(crate) type FlightClient = FlightSqlServiceClient<Channel>;

/// A server that runs until the fixture is dropped.
pub(crate) struct Fixture {
    pub(crate) server: Server,
    /// Host and port of health over HTTP.
    pub(crate) http: String,
    /// An administrator.
    pub(crate) root: Client,
    _folder: TempDir,
}

impl Fixture {
    pub(crate) async fn start(settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut command = Command::new(env!("CARGO_BIN_EXE_kalamdb"));
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--data-dir"])
            .arg(folder.path())
            .args(["--log-level", "info"])
            .env("KALAMDB_ROOT_PASSWORD", PASSWORD)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for (name, value) in settings {
            command.arg("--set").arg(format!("{name}={value}"));
        }
        let server = Server::spawn(command).await.expect("start the server");
        let http = http_address(&server.log).await;
        let token = server.log_in().await;
        let root = server.client(&token).await;
        let mut fixture = Self { server, http, root, _folder: folder };
        fixture.prepare().await;
        fixture
    }

    async fn prepare(&mut self) {
        let notes = "CREATE USER TABLE app.notes (id BIGINT PRIMARY KEY, body TEXT)";
        for sql in ["CREATE NAMESPACE app", notes] {
            self.root.run(sql).await.expect(sql);
        }
        for name in [GUEST, BYSTANDER] {
            self.add_user(name).await;
        }
        let rows: Vec<String> = (1..=NOTES).map(|id| format!("({id}, 'note {id}')")).collect();
        let sql = format!("INSERT INTO app.notes VALUES {}", rows.join(", "));
        let mut bystander = self.user(BYSTANDER).await;
        bystander.execute_update(sql, None).await.expect("the bystander's notes");
    }

    pub(crate) async fn add_user(&mut self, name: &str) {
        let sql = format!("CREATE USER '{name}' WITH PASSWORD '{}' ROLE user", password_of(name));
        self.root.run(&sql).await.expect("create a user");
    }

    /// Returns a client of a user, on a connection of its own.
    pub(crate) async fn user(&self, name: &str) -> FlightClient {
        let token = log_in(&self.server.address, name).await.expect("log in");
        client(&self.server.address, &token).await.expect("connect")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.server.id()
    }

    /// Ends the server, and checks how it ends and what it has logged.
    pub(crate) async fn stop(self, report: &mut Report) {
        let log = self.server.log.clone();
        let asked = Instant::now();
        self.server.stop().await;
        report.within(Promise::Alive, "from SIGTERM to the exit with 0", asked.elapsed(), END_MAX);
        let mut lines = log.lines();
        lines.retain(|line| line.contains("ERROR") || line.contains("panicked"));
        report.check(
            Promise::Alive,
            lines.is_empty(),
            format!("{} errors in the log {lines:?}", lines.len()),
        );
    }
}

pub(crate) fn password_of(name: &str) -> String {
    format!("password-of-{name}")
}

/// Opens a connection.
pub(crate) async fn connect(address: &str) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("address");
    endpoint.tcp_nodelay(true).connect().await.map_err(|error| format!("connect: {error:?}"))
}

/// Opens a connection, logs in on it, and returns the token.
pub(crate) async fn log_in(address: &str, name: &str) -> Result<String, String> {
    let mut client = FlightSqlServiceClient::new(connect(address).await?);
    client.handshake(name, &password_of(name)).await.map_err(|error| error.to_string())?;
    client.token().cloned().ok_or_else(|| "a login without a token".to_owned())
}

/// Returns a client on a connection of its own.
pub(crate) async fn client(address: &str, token: &str) -> Result<FlightClient, String> {
    let inner = FlightServiceClient::new(connect(address).await?).max_decoding_message_size(256 << 20);
    let mut client = FlightSqlServiceClient::new_from_inner(inner);
    client.set_token(token.to_owned());
    Ok(client)
}

/// Returns the address of health and metrics from the server's log.
async fn http_address(log: &Log) -> String {
    let listening = |line: &String| {
        let (_, rest) = line.split_once("http_address=")?;
        rest.split_whitespace().next().map(str::to_owned)
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(address) = log.lines().iter().find_map(listening) {
            return address;
        }
        assert!(Instant::now() < deadline, "the HTTP address is logged");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
