//! `kalamdb serve`: opens the database, listens, and shuts down in order on request.
//!
//! Invariant: `listening on ADDR` is printed once calls are accepted, and is the only line on stdout.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use kalamdb_core::Database;
use kalamdb_core::storage::DataDirectory;
use rand::Rng;
use rand::distr::Alphanumeric;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Failure, platform, runtime, runtime_of};
use crate::config::{ServerConfig, Sources};
use crate::server::Server;
use crate::{http, logging};

/// The file in the data directory with root's password.
pub(super) const ROOT_PASSWORD_FILE: &str = "root-password";
/// A file that exists once a data directory holds a database.
const FORMAT_FILE: &str = "FORMAT";
/// Time limit for open HTTP calls at shutdown.
const HTTP_DRAIN: Duration = Duration::from_secs(1);
/// Tables may be flushed until this long after the shutdown request, so that open calls and flushes together
/// take less than 10 s.
const FLUSH_DRAIN: Duration = Duration::from_millis(9_500);
/// Letters and digits of a generated password: 143 bits.
const PASSWORD_CHARS: usize = 24;

/// Settings of the server. Each also has an environment variable (KALAMDB_NODE_ID, ...) and a name in the
/// TOML file (node_id = ...); a flag overrides the environment, which overrides the file.
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// TOML file with settings [env: KALAMDB_CONFIG]
    #[arg(long, value_name = "FILE", env = "KALAMDB_CONFIG", hide_env = true)]
    config: Option<PathBuf>,
    /// The data directory [env: KALAMDB_DATA_DIR] [default: ./kalamdb-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Address of Flight SQL and live queries; port 0 picks a free port
    /// [env: KALAMDB_LISTEN] [default: 127.0.0.1:8815]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Address of health and metrics over HTTP, or "off" [env: KALAMDB_HTTP_LISTEN] [default: 127.0.0.1:8816]
    #[arg(long, value_name = "ADDR")]
    http_listen: Option<String>,
    /// Name of this process in logs, jobs and audit rows: letters, digits, hyphens
    /// [env: KALAMDB_NODE_ID] [default: node-1]
    #[arg(long, value_name = "ID")]
    node_id: Option<String>,
    /// PEM certificate chain of the gRPC port [env: KALAMDB_TLS_CERT]
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<String>,
    /// PEM private key of the gRPC port [env: KALAMDB_TLS_KEY]
    #[arg(long, value_name = "FILE")]
    tls_key: Option<String>,
    /// Allows plain text on addresses that other machines can reach [env: KALAMDB_INSECURE]
    #[arg(long)]
    insecure: bool,
    /// Log level: error, warn, info, debug, trace, or a filter; RUST_LOG overrides it
    /// [env: KALAMDB_LOG_LEVEL] [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Format of log lines: text or json [env: KALAMDB_LOG_FORMAT] [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Any other setting, e.g. --set row_bytes_max=1048576
    #[arg(long = "set", value_name = "NAME=VALUE")]
    settings: Vec<String>,
}

impl ServeArgs {
    fn sources(&self) -> Result<Sources, Failure> {
        let own = [
            ("data_dir", &self.data_dir),
            ("listen", &self.listen),
            ("http_listen", &self.http_listen),
            ("node_id", &self.node_id),
            ("tls_cert", &self.tls_cert),
            ("tls_key", &self.tls_key),
            ("log_level", &self.log_level),
            ("log_format", &self.log_format),
        ];
        let mut flags = Vec::new();
        for setting in &self.settings {
            let (name, value) =
                setting.split_once('=').ok_or_else(|| format!("--set \"{setting}\": write NAME=VALUE"))?;
            flags.push((name.to_owned(), value.to_owned()));
        }
        flags.extend(own.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?))));
        if self.insecure {
            flags.push(("insecure".to_owned(), "true".to_owned()));
        }
        // A variable that is not Unicode cannot be ours.
        let env = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Ok(Sources { file: self.config.clone(), env, flags })
    }
}

/// Serves until the process is asked to end.
pub(super) fn run(args: &ServeArgs) -> Result<(), Failure> {
    let config = ServerConfig::load(&args.sources()?)?;
    logging::start(&config.core.node_id()?, &config.log_level, config.log_format)?;
    match platform::raise_open_files() {
        Ok(open_files_max) => info!(open_files_max, "raised the limit of open files"),
        Err(error) => warn!(%error, "could not raise the limit of open files"),
    }
    let runtime = runtime()?;
    let calls = runtime_of("kalam-call")?;
    let served = runtime.block_on(serve(config, calls.handle()));
    // Neither a client's open connection nor a running query may keep the process alive. Connections end
    // first: a query whose tasks are gone can look complete, and no client may receive such a result.
    runtime.shutdown_timeout(Duration::from_millis(200));
    calls.shutdown_background();
    served
}

async fn serve(mut config: ServerConfig, calls: &Handle) -> Result<(), Failure> {
    kalamdb_core::failpoint::configure_from_environment()?;
    let made_up = prepare_root_password(&mut config)?;
    let database = Database::open(config.core.clone()).await?;
    if let (Some(password), Some(data_dir)) = (made_up, &config.core.data_dir) {
        let path = data_dir.join(ROOT_PASSWORD_FILE);
        eprintln!("created user root with the password {password} (saved in {})", path.display());
    }
    let mut termination = platform::Termination::listen()?;
    let shutdown = CancellationToken::new();
    let server = Server::bind(database.clone(), &config).await?.calls_on(calls.clone());
    let address = server.local_addr();
    let http = match config.http_listen {
        Some(listen) => {
            Some(http::HttpServer::bind(listen, database.clone(), server.health(), shutdown.clone()).await?)
        }
        None => None,
    };
    let http_address = http.as_ref().map(http::HttpServer::local_addr);
    let mut serving = tokio::spawn(server.serve(shutdown.clone()));
    let http = http.map(|server| tokio::spawn(server.serve()));
    announce(address, http_address)?;

    let ended = tokio::select! {
        asked = termination.asked() => {
            asked?;
            None
        }
        ended = &mut serving => Some(ended),
    };
    info!(drain_ms = config.drain_ms, "shutting down");
    let flush_until = tokio::time::Instant::now() + FLUSH_DRAIN;
    shutdown.cancel();
    let served = match ended {
        Some(ended) => ended?,
        None => match tokio::time::timeout(Duration::from_millis(config.drain_ms), &mut serving).await {
            Ok(ended) => ended?,
            Err(_) => {
                warn!(drain_ms = config.drain_ms, "drain time expired; aborting open calls");
                serving.abort();
                Ok(())
            }
        },
    };
    if let Some(http) = http {
        // A scraper that keeps its connection open must not delay the shutdown.
        if let Ok(ended) = tokio::time::timeout(HTTP_DRAIN, http).await {
            ended??;
        }
    }
    database.shutdown_by(flush_until).await?;
    info!("shut down");
    served
}

fn announce(address: SocketAddr, http: Option<SocketAddr>) -> Result<(), Failure> {
    use std::io::Write;
    info!(%address, http_address = http.map(tracing::field::display), "listening");
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "listening on {address}")?;
    stdout.flush()?;
    Ok(())
}

/// Sets root's password before the database exists, so that no crash leaves a database with an unknown
/// password. Returns the password if it was generated now.
fn prepare_root_password(config: &mut ServerConfig) -> Result<Option<String>, Failure> {
    let Some(data_dir) = &config.core.data_dir else { return Ok(None) };
    if config.core.root_password.is_some() {
        return Ok(None);
    }
    let path = data_dir.join(ROOT_PASSWORD_FILE);
    if let Some(password) = read_password(&path) {
        // The core uses it only while root does not exist, for example after an interrupted first start.
        config.core.root_password = Some(password);
        return Ok(None);
    }
    if data_dir.join(FORMAT_FILE).exists() {
        return Ok(None);
    }
    DataDirectory::create(data_dir)
        .map_err(|error| format!("cannot create the data directory \"{}\": {error}", data_dir.display()))?;
    let password: String =
        rand::rng().sample_iter(Alphanumeric).take(PASSWORD_CHARS).map(char::from).collect();
    platform::write_secret(&path, &password)
        .map_err(|error| format!("cannot write to the data directory \"{}\": {error}", data_dir.display()))?;
    config.core.root_password = Some(password.clone());
    Ok(Some(password))
}

/// Returns the password in `path`, if the file exists and is not empty.
pub(super) fn read_password(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let password = text.trim();
    (!password.is_empty()).then(|| password.to_owned())
}
