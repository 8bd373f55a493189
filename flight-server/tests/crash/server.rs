//! The real program as a child process, and a Flight SQL client for it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow_flight::error::FlightError;
use arrow_flight::sql::client::FlightSqlServiceClient;
use futures::TryStreamExt;
use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};

pub(crate) const PASSWORD: &str = "crash-test-password";
/// How long a server may take for its first line before the test gives up.
const GIVE_UP: Duration = Duration::from_secs(60);

/// Background work runs often, so that crashes hit it; INSERTs of several rows become segments at once.
const EAGER: [(&str, &str); 5] = [
    ("KALAMDB_FLUSH_CHECK_INTERVAL_MS", "10"),
    ("KALAMDB_EXPIRY_INTERVAL_MS", "50"),
    ("KALAMDB_TRIM_INTERVAL_MS", "200"),
    ("KALAMDB_CHANGE_LOG_BYTES_MAX", "65536"),
    ("KALAMDB_LARGE_INSERT_BYTES", "500"),
];

/// A running server. Dropping it kills it.
pub(crate) struct Server {
    child: Child,
    /// Host and port of Flight SQL.
    pub(crate) address: String,
    /// The server's stderr so far.
    pub(crate) log: Log,
    /// Reads the server's stderr to the end.
    following: Option<JoinHandle<()>>,
    /// Time from the process's start to `listening`.
    pub(crate) ready_in: Duration,
}

/// Returns the command of the program on a free port.
pub(crate) fn command(data_dir: &Path) -> Command {
    command_on(data_dir, "127.0.0.1:0")
}

pub(crate) fn command_on(data_dir: &Path, address: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kalamdb"));
    command
        .args(["serve", "--http-listen", "off", "--log-level", "warn", "--listen", address, "--data-dir"])
        .arg(data_dir)
        .env("KALAMDB_ROOT_PASSWORD", PASSWORD)
        .envs(EAGER)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

impl Server {
    /// Starts the server and waits until it listens.
    pub(crate) async fn start(data_dir: &Path) -> Self {
        match Self::try_start(data_dir).await {
            Ok(server) => server,
            Err(said) => panic!("the server did not start: {said}"),
        }
    }

    /// Starts a server, or returns the stderr of a server that ended instead.
    pub(crate) async fn try_start(data_dir: &Path) -> Result<Self, String> {
        Self::spawn(command(data_dir)).await
    }

    /// Returns the stderr of a server that ends instead of serving.
    pub(crate) async fn try_start_of(command: Command) -> String {
        match Self::spawn(command).await {
            Ok(_) => panic!("the server started"),
            Err(said) => said,
        }
    }

    /// Starts a server with a command of the caller's choice, like `try_start`.
    pub(crate) async fn spawn(mut command: Command) -> Result<Self, String> {
        let started = Instant::now();
        let mut child = command.spawn().expect("start the server");
        let stdout = child.stdout.take().expect("stdout");
        // Read from the start: a server with much output must not wait for a reader.
        let log = Log::default();
        let following = log.follow(child.stderr.take().expect("stderr"));
        let first_line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).map(|_| line)
        });
        let line = tokio::time::timeout(GIVE_UP, first_line).await;
        let ready_in = started.elapsed();
        let line =
            line.expect("the server says something in time").expect("reader").expect("stdout is readable");
        match line.trim().strip_prefix("listening on ") {
            Some(address) => {
                Ok(Self { child, address: address.to_owned(), following: Some(following), ready_in, log })
            }
            None => {
                following.join().expect("stderr is readable");
                let said = log.lines().join("\n");
                let status = child.wait().expect("the server ended");
                assert!(!status.success(), "a server that refuses must not exit with 0: {said}");
                Err(said)
            }
        }
    }

    /// Returns the process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Runs `kill -9` and waits until the process is gone.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("kill the server");
        self.child.wait().expect("the server is gone");
    }

    /// Waits until the process ends and returns its stderr; `None` if it lives longer than `within`.
    pub(crate) async fn ended(&mut self, within: Duration) -> Option<Vec<String>> {
        let deadline = Instant::now() + within;
        while self.child.try_wait().expect("the server's state").is_none() {
            if Instant::now() > deadline {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if let Some(following) = self.following.take() {
            following.join().expect("stderr is readable");
        }
        Some(self.log.lines())
    }

    /// Sends SIGTERM; the server must exit by itself with 0.
    pub(crate) async fn stop(mut self) {
        let status = Command::new("kill").arg(self.id().to_string()).status().expect("run kill");
        assert!(status.success(), "SIGTERM was not delivered");
        let deadline = Instant::now() + GIVE_UP;
        let status = loop {
            match self.child.try_wait().expect("the server's state") {
                Some(status) => break status,
                None => assert!(Instant::now() < deadline, "the server did not end after SIGTERM"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        assert!(status.success(), "after SIGTERM the server ended with {status}");
    }

    pub(crate) async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).expect("address");
        endpoint.tcp_nodelay(true).connect().await.expect("connect")
    }

    /// Logs in as root and returns a bearer token.
    pub(crate) async fn log_in(&self) -> String {
        let mut client = FlightSqlServiceClient::new(self.channel().await);
        client.handshake("root", PASSWORD).await.expect("log in");
        client.token().cloned().expect("a token")
    }

    pub(crate) async fn client(&self, token: &str) -> Client {
        Client::on(self.channel().await, token)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both calls fail if the process is gone, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server's stderr lines, which the test's output also shows.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn follow(&self, stderr: ChildStderr) -> JoinHandle<()> {
        let lines = Arc::clone(&self.0);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                eprintln!("server: {line}");
                lines.lock().push(line);
            }
        })
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().clone()
    }
}

/// An authenticated client.
pub(crate) struct Client(FlightSqlServiceClient<Channel>);

impl Client {
    pub(crate) fn on(channel: Channel, token: &str) -> Self {
        let mut client = FlightSqlServiceClient::new(channel);
        client.set_token(token.to_owned());
        Self(client)
    }

    /// Runs a statement that returns no rows; returns the number of changed rows.
    pub(crate) async fn run(&mut self, sql: &str) -> Result<i64, FlightError> {
        self.0.execute_update(sql.to_owned(), None).await
    }

    /// Runs a query.
    pub(crate) async fn query(&mut self, sql: &str) -> Result<Vec<RecordBatch>, FlightError> {
        let info = self.0.execute(sql.to_owned(), None).await?;
        let mut batches = Vec::new();
        for ticket in info.endpoint.into_iter().filter_map(|endpoint| endpoint.ticket) {
            let rows = self.0.do_get(ticket).await?;
            batches.extend(rows.try_collect::<Vec<_>>().await?);
        }
        Ok(batches)
    }
}
