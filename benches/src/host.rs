//! The database and its Flight SQL server on their own runtime, on a free port and in a temporary directory.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use kalamdb_core::{Config, Database};
use kalamdb_server::config::{ServerConfig, Sources};
use kalamdb_server::server::Server;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::Result;
use crate::wire::Wire;

const ROOT_PASSWORD: &str = "bench-password";

/// Planning needs deep stacks; the server binary uses the same size.
const STACK_BYTES: usize = 16 << 20;

pub(crate) struct Kalam {
    runtime: Runtime,
    database: Database,
    address: SocketAddr,
    folder: TempDir,
    shutdown: CancellationToken,
    serving: JoinHandle<std::result::Result<(), String>>,
}

impl Kalam {
    pub(crate) fn start() -> Result<Self> {
        Self::start_with(|_| {})
    }

    /// Starts a database with changed settings.
    pub(crate) fn start_with(choose: impl FnOnce(&mut Config)) -> Result<Self> {
        // Beside the binary: a temporary directory may be in memory, where a sync costs nothing.
        let binary = std::env::current_exe()?;
        let place = binary.parent().ok_or("the binary has no directory")?;
        let folder = tempfile::Builder::new().prefix("kalamdb-bench-").tempdir_in(place)?;
        let mut settings = ServerConfig::load(&Sources::default())?;
        settings.core = Config {
            root_password: Some(ROOT_PASSWORD.to_owned()),
            ..Config::at(folder.path().join("data"))
        };
        choose(&mut settings.core);
        settings.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        settings.http_listen = None;
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_stack_size(STACK_BYTES)
            .enable_all()
            .build()?;
        let shutdown = CancellationToken::new();
        let (database, server) = runtime.block_on(async {
            let database = Database::open(settings.core.clone()).await?;
            let server = Server::bind(database.clone(), &settings).await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>((database, server))
        })?;
        let address = server.local_addr();
        let token = shutdown.clone();
        let serving =
            runtime.spawn(async move { server.serve(token).await.map_err(|error| error.to_string()) });
        Ok(Self { runtime, database, address, folder, shutdown, serving })
    }

    /// Returns the embedded database behind the server.
    pub(crate) fn database(&self) -> &Database {
        &self.database
    }

    /// Returns a directory on the data directory's file system.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Opens a new connection, logged in as root.
    pub(crate) async fn connect(&self) -> Result<Wire> {
        Wire::connect(self.address, "root", ROOT_PASSWORD).await
    }

    pub(crate) fn authorization() -> String {
        crate::wire::basic("root", ROOT_PASSWORD)
    }

    /// Runs statements in the embedded database.
    pub(crate) async fn execute(&self, statements: &[&str]) -> Result<()> {
        let session = self.database.session_for("root")?;
        for sql in statements {
            session.execute(sql, ()).await?;
        }
        Ok(())
    }

    /// Flushes a table and waits for the job.
    pub(crate) async fn flush(&self, namespace: &str, table: &str) -> Result<()> {
        let context = self.database.context();
        let snapshot = context.committer.snapshot();
        let table = snapshot.catalog.table(namespace, table).ok_or("the table does not exist")?;
        let job = context.jobs.flush(table).await?;
        context.jobs.wait(&job).await;
        Ok(())
    }

    /// Returns the files of a table's segments.
    pub(crate) fn segments(&self, namespace: &str, table: &str) -> Result<Vec<PathBuf>> {
        let snapshot = self.database.context().committer.snapshot();
        let table = snapshot.catalog.table(namespace, table).ok_or("the table does not exist")?;
        let folder = self.folder.path().join("data").join("segments");
        Ok(snapshot.cold.segments(table.id).iter().map(|segment| folder.join(&segment.path)).collect())
    }

    pub(crate) fn stop(self) -> Result<()> {
        self.shutdown.cancel();
        self.runtime.block_on(self.serving)??;
        self.runtime.block_on(self.database.shutdown())?;
        Ok(())
    }
}
