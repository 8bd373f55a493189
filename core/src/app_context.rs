//! The parts that live as long as the database is open. They are built once, in order.
//!
//! Invariant: [`AppContext::open`] sets the fields and nothing changes them later. Inner parts receive only
//! the fields they need; only the statement layer receives the whole context.

use std::path::Path;
use std::sync::Arc;

use tokio::time::Instant;
use tracing::info;

use crate::clock::Clock;
use crate::commit::Committer;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::failpoint;
use crate::ids::NodeId;
use crate::jobs::{JobManager, JobParts};
use crate::live_query::{LiveQueryManager, LiveQueryParts};
use crate::platform;
use crate::schema_registry::{FlushPolicy, SchemaRegistry};
use crate::storage::blocking;
use crate::workload::{EngineThreads, empty_spill};

/// The file in the data directory that holds [`AppContext::secret`].
const SECRET_FILE: &str = "secret";

/// The parts of an open database.
pub struct AppContext {
    /// The name of this process, from the settings. Every log line, job and audit row carries it.
    pub node_id: NodeId,
    /// The settings the database was opened with.
    pub config: Config,
    /// The flush policy of tables created without `FLUSH_POLICY`.
    pub flush_policy: FlushPolicy,
    /// The threads that plan and run statements.
    pub engine_threads: Arc<EngineThreads>,
    /// The source of wall-clock time.
    pub clock: Arc<dyn Clock>,
    /// The key that seals tokens. It is created with the database and never shown.
    pub secret: [u8; 32],
    /// Orders and writes commits.
    pub committer: Arc<Committer>,
    /// The memoized schemas.
    pub schema_registry: Arc<SchemaRegistry>,
    /// The live queries.
    pub live_queries: Arc<LiveQueryManager>,
    /// The background work.
    pub jobs: Arc<JobManager>,
    /// When the database was opened, in microseconds UTC.
    pub started_at: i64,
}

impl AppContext {
    /// Opens the store, then starts live queries and jobs. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// An invalid setting; a data directory that is in use, not writable, damaged or of a newer format.
    pub async fn open(config: Config, clock: Arc<dyn Clock>) -> Result<Arc<Self>> {
        config.validate()?;
        let node_id = config.node_id()?;
        let flush_policy = FlushPolicy::parse(&config.flush_policy)?;
        let started_at = clock.now_us();
        let (committer, secret) = {
            let (config, clock) = (config.clone(), Arc::clone(&clock));
            blocking(move || {
                let committer = Committer::open_config(&config, clock)?;
                let secret = match &config.data_dir {
                    Some(dir) => {
                        empty_spill(dir)?;
                        stored_secret(&dir.join(SECRET_FILE))?
                    }
                    None => rand::random(),
                };
                Ok((committer, secret))
            })
            .await?
        };
        let engine_threads = EngineThreads::start(&config)?;
        let schema_registry = Arc::new(SchemaRegistry::new());
        let live_queries = LiveQueryManager::start(LiveQueryParts {
            committer: Arc::clone(&committer),
            clock: Arc::clone(&clock),
            secret,
            config: &config,
        });
        let jobs = JobManager::start(JobParts {
            committer: Arc::clone(&committer),
            registry: Arc::clone(&schema_registry),
            clock: Arc::clone(&clock),
            node_id: node_id.clone(),
            config: &config,
        })
        .await;
        let (database, seq) = (committer.database_id(), committer.seq().0);
        info!(node = %node_id, %database, seq, "database opened");
        Ok(Arc::new(Self {
            node_id,
            config,
            flush_policy,
            engine_threads,
            clock,
            secret,
            committer,
            schema_registry,
            live_queries,
            jobs,
            started_at,
        }))
    }

    /// Ends live queries, then background jobs, the committer and statements. Jobs flush until `flush_until`
    /// at most.
    ///
    /// # Errors
    /// When committed data cannot be synced to disk.
    pub async fn shutdown(&self, flush_until: Instant) -> Result<()> {
        self.live_queries.shutdown().await;
        self.jobs.shutdown(flush_until).await;
        let committed = self.committer.shutdown().await;
        let threads = Arc::clone(&self.engine_threads);
        let ended = blocking(move || {
            threads.shutdown();
            Ok(())
        })
        .await;
        committed.and(ended)?;
        info!(node = %self.node_id, "database closed");
        Ok(())
    }
}

/// Reads the secret or creates it. The store's lock keeps other processes out meanwhile.
fn stored_secret(path: &Path) -> Result<[u8; 32]> {
    let failed = |error: std::io::Error| {
        Error::new(
            ErrorKind::Unavailable,
            SqlState::IO_ERROR,
            "the secret in the data directory cannot be read or created",
        )
        .hint("check that the data directory is writable")
        .source(error)
    };
    match std::fs::read(path) {
        Ok(bytes) => <[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| {
            Error::corruption("the secret in the data directory is damaged")
                .hint("restore it, or remove it to invalidate all tokens")
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let secret: [u8; 32] = rand::random();
            // Atomic: the file is written and synced beside its final name, then renamed.
            let fresh = path.with_extension("new");
            platform::write_private(&fresh, &secret).map_err(failed)?;
            failpoint::step("open::secret")?;
            let moved = std::fs::rename(&fresh, path).and_then(|()| match path.parent() {
                Some(parent) => platform::sync_folder(parent),
                None => Ok(()),
            });
            moved.map_err(failed)?;
            Ok(secret)
        }
        Err(error) => Err(failed(error)),
    }
}
