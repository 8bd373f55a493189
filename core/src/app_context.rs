//! The parts that live as long as the database is open. They are built once, in order.
//!
//! Invariant: [`AppContext::open`] sets the fields and nothing changes them later. Inner parts receive only
//! the fields they need; only the statement layer receives the whole context.

use std::path::Path;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::info;

use crate::clock::Clock;
use crate::commit::{CommitFeed, Committer};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::failpoint;
use crate::ids::NodeId;
use crate::jobs::{JobManager, JobParts};
use crate::live_query::{LiveQueryManager, LiveQueryParts};
use crate::platform;
use crate::schema_registry::{Catalog, FlushPolicy, SchemaRegistry};
use crate::storage::blocking;
use crate::workload::{
    Admission, EngineThreads, Memory, SessionEnd, SessionInfo, Sessions, Spill, StatementControl, Statements,
    Watchdog, remove_spilled,
};

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
    /// Decides which statements run on them.
    pub admission: Arc<Admission>,
    /// Decides which of them write many rows to files.
    pub(crate) large_writes: Arc<Admission>,
    /// Ends statements that do not let go of their threads.
    _watchdog: Watchdog,
    /// The open sessions.
    pub(crate) sessions: Sessions,
    /// The running statements.
    pub(crate) statements: Arc<Statements>,
    /// The memory of users and statements.
    pub memory: Arc<Memory>,
    /// The files of statements.
    pub spill: Arc<Spill>,
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
    /// The task that follows the changes of users.
    users: Mutex<JoinSet<()>>,
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
                        remove_spilled(dir)?;
                        stored_secret(&dir.join(SECRET_FILE))?
                    }
                    None => rand::random(),
                };
                Ok((committer, secret))
            })
            .await?
        };
        let engine_threads = EngineThreads::start(&config)?;
        let admission = Admission::new(&config);
        let watchdog = Watchdog::start(&config, &engine_threads, &admission)?;
        let (memory, spill) = (Arc::new(Memory::new(&config)), Spill::new(&config));
        let statements = Arc::new(Statements::new(&config, Arc::clone(&clock)));
        let mut users = JoinSet::new();
        users.spawn(follow_users(committer.commits(), Arc::downgrade(&committer), Arc::clone(&statements)));
        let schema_registry = Arc::new(SchemaRegistry::new());
        let live_queries = LiveQueryManager::start(LiveQueryParts {
            committer: Arc::clone(&committer),
            clock: Arc::clone(&clock),
            secret,
            engine_threads: Arc::clone(&engine_threads),
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
            admission,
            large_writes: Admission::of_large_writes(),
            _watchdog: watchdog,
            sessions: Sessions::new(Arc::clone(&clock)),
            statements,
            memory,
            spill,
            clock,
            secret,
            committer,
            schema_registry,
            live_queries,
            jobs,
            started_at,
            users: Mutex::new(users),
        }))
    }

    /// Runs work of a statement on the engine, once it is its turn.
    ///
    /// # Errors
    /// Those of the work; 53300 when too many statements wait; the reason when the statement must stop.
    pub(crate) async fn run_in_turn<T: Send + 'static>(
        &self,
        control: &Arc<StatementControl>,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let slot = self.admission.enter(control).await?;
        let work = async move {
            let result = work.await;
            // The slot is free before the caller goes on.
            drop(slot);
            result
        };
        self.engine_threads.run(control, work).await
    }

    /// Ends a session with its statements and live queries, unless it has ended.
    pub(crate) fn end_session(&self, session: &SessionInfo, end: SessionEnd) {
        if session.end(end) {
            self.statements.stop_session(session.id(), end.reason());
            self.live_queries.end_session(session.id(), end.message());
        }
    }

    /// Ends live queries, then background jobs, the committer and statements. Jobs flush until `flush_until`
    /// at most.
    ///
    /// # Errors
    /// When committed data cannot be synced to disk.
    pub async fn shutdown(&self, flush_until: Instant) -> Result<()> {
        self.live_queries.shutdown().await;
        let mut users = std::mem::take(&mut *self.users.lock());
        users.shutdown().await;
        self.jobs.shutdown(flush_until).await;
        let committed = self.committer.shutdown().await;
        self.statements.close();
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

/// Tells the statements of users to stop who are dropped or get another password or role.
async fn follow_users(commits: CommitFeed, committer: Weak<Committer>, statements: Arc<Statements>) {
    let mut heads = commits.watch();
    let mut known: Option<Arc<Catalog>> = None;
    while heads.changed().await.is_ok() {
        let Some(committer) = committer.upgrade() else { return };
        let catalog = Arc::clone(&committer.snapshot().catalog);
        // A commit without changes of the catalog keeps it.
        if !known.as_ref().is_some_and(|known| Arc::ptr_eq(known, &catalog)) {
            statements.stop_logged_out(|user| catalog.user(user).map(|user| user.auth_generation));
            known = Some(catalog);
        }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::database::Database;

    #[tokio::test]
    async fn the_shutdown_does_not_wait_for_a_step_that_never_pauses() {
        let database = Database::open_in_memory().await.unwrap();
        let threads = &database.context().engine_threads;
        let (begins, began) = tokio::sync::oneshot::channel();
        let (ends, end) = std::sync::mpsc::channel::<()>();
        let stuck = threads.spawn(&StatementControl::new(&Config::in_memory()), async move {
            let _told = begins.send(());
            let _ended = end.recv();
            Ok(())
        });
        began.await.unwrap();
        let closed = tokio::time::timeout(Duration::from_secs(60), database.shutdown()).await;
        closed.expect("the shutdown ends").unwrap();
        drop((ends, stuck));
    }
}
