//! The embedding API: open a database, authenticate, get a session.
//!
//! ```
//! use kalamdb_core::{Database, Outcome};
//!
//! # #[tokio::main]
//! # async fn main() -> kalamdb_core::Result<()> {
//! let database = Database::open_in_memory().await?;
//! let session = database.session_for("root")?;
//! session.execute("CREATE NAMESPACE app", ()).await?;
//! session.execute("CREATE USER TABLE app.notes (id BIGINT PRIMARY KEY, body TEXT)", ()).await?;
//! session.execute("INSERT INTO app.notes VALUES (1, 'milk'), (2, 'bread')", ()).await?;
//! let rows = session.execute("SELECT count(*) FROM app.notes", ()).await?.rows()?;
//! let batches = rows.collect().await?;
//! assert_eq!(batches[0].num_rows(), 1);
//! database.shutdown().await
//! # }
//! ```
//!
//! Invariant: a [`Session`] exists only for an existing user, and that user alone decides what it may see.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use tokio::time::Instant;

use crate::access::{Principal, Role};
use crate::app_context::AppContext;
use crate::clock::{Clock, SystemClock};
use crate::commit::WriteSet;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::failpoint;
use crate::ids::{DatabaseId, NodeId, Seq, UserId};
use crate::schema_registry::{CatalogChange, RegistryCounters, UserRecord};
use crate::sql::Engine;
use crate::sql::Session;
use crate::sql::password::{self, Passwords, login_failed};
use crate::workload::SessionOrigin;

/// The user created with the database.
const ROOT: &str = "root";

/// An open database. Clones are cheap and share the same database.
#[derive(Clone)]
pub struct Database {
    inner: Arc<Inner>,
}

struct Inner {
    ctx: Arc<AppContext>,
    engine: Arc<Engine>,
    passwords: Arc<Passwords>,
    generated_root_password: Option<String>,
}

impl Database {
    /// Opens the database in `config.data_dir`, or creates it. Must be called within a tokio runtime.
    ///
    /// # Examples
    /// ```
    /// use kalamdb_core::{Config, Database};
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let folder = tempfile::tempdir()?;
    /// let config = Config::at(folder.path().join("data"));
    /// let database = Database::open(config.clone()).await?;
    /// let password = database.generated_root_password().expect("the database is new").to_owned();
    /// database.shutdown().await?;
    /// drop(database); // The directory is free when the last handle is gone.
    ///
    /// let database = Database::open(config).await?;
    /// assert_eq!(database.generated_root_password(), None);
    /// database.authenticate("root", &password).await?;
    /// # database.shutdown().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// An invalid setting; a data directory that is in use, not writable, damaged or of a newer format.
    pub async fn open(config: Config) -> Result<Self> {
        Self::open_with_clock(config, Arc::new(SystemClock)).await
    }

    /// Opens an in-memory database. Its data is gone when it is closed.
    ///
    /// # Examples
    /// ```
    /// use kalamdb_core::Database;
    ///
    /// # #[tokio::main]
    /// # async fn main() -> kalamdb_core::Result<()> {
    /// let database = Database::open_in_memory().await?;
    /// let session = database.session_for("root")?;
    /// session.execute("CREATE TABLE points (id BIGINT PRIMARY KEY, x BIGINT)", ()).await?;
    /// database.shutdown().await
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Database::open`].
    pub async fn open_in_memory() -> Result<Self> {
        Self::open(Config::in_memory()).await
    }

    /// Opens a database that takes its time from `clock`.
    ///
    /// # Errors
    /// As [`Database::open`].
    pub async fn open_with_clock(config: Config, clock: Arc<dyn Clock>) -> Result<Self> {
        let ctx = AppContext::open(config, clock).await?;
        let engine = Arc::new(Engine::new(&ctx)?);
        let passwords = Arc::clone(&engine.passwords);
        let generated_root_password = create_root(&ctx, &passwords).await?;
        Ok(Self { inner: Arc::new(Inner { ctx, engine, passwords, generated_root_password }) })
    }

    /// Returns the user with that name if the password is right.
    ///
    /// # Examples
    /// ```
    /// use kalamdb_core::Database;
    ///
    /// # #[tokio::main]
    /// # async fn main() -> kalamdb_core::Result<()> {
    /// # let database = Database::open_in_memory().await?;
    /// let root = database.session_for("root")?;
    /// root.execute("CREATE USER 'ann' WITH PASSWORD 'correct horse battery'", ()).await?;
    /// let principal = database.authenticate("ann", "correct horse battery").await?;
    /// let session = database.session(&principal);
    /// assert_eq!(&*session.principal().username, "ann");
    /// assert!(database.authenticate("ann", "a guess").await.is_err());
    /// # database.shutdown().await
    /// # }
    /// ```
    ///
    /// # Errors
    /// 28P01. The message is the same for a wrong name and a wrong password.
    pub async fn authenticate(&self, username: &str, password: &str) -> Result<Principal> {
        let snapshot = self.inner.ctx.committer.snapshot();
        let user = snapshot.catalog.user_by_name(username);
        let hash = user.and_then(|user| user.password_hash.clone());
        match (self.inner.passwords.verify(password, hash).await?, user) {
            (true, Some(user)) => Ok(user.principal()),
            _ => Err(login_failed()),
        }
    }

    /// Returns the number of passwords that are checked at the same time.
    pub fn passwords_at_once(&self) -> usize {
        password::threads()
    }

    /// Returns the current principal of a user.
    ///
    /// # Errors
    /// 28000 when the user no longer exists.
    pub fn principal(&self, user: UserId) -> Result<Principal> {
        Ok(self.user(user)?.principal())
    }

    /// Returns a number that grows when the user's password or role changes. Tokens made under another number
    /// are void.
    ///
    /// # Errors
    /// 28000 when the user no longer exists.
    pub fn auth_generation(&self, user: UserId) -> Result<u32> {
        Ok(self.user(user)?.auth_generation)
    }

    fn user(&self, id: UserId) -> Result<Arc<UserRecord>> {
        let snapshot = self.inner.ctx.committer.snapshot();
        snapshot.catalog.user(id).map(Arc::clone).ok_or_else(|| Error::user_not_found(id))
    }

    /// Opens a session for an authenticated user.
    pub fn session(&self, principal: &Principal) -> Session {
        self.session_from(principal, SessionOrigin::default())
    }

    /// Opens a session for an authenticated user, from where `origin` says; `system.sessions` shows it.
    pub fn session_from(&self, principal: &Principal, origin: SessionOrigin) -> Session {
        let (ctx, engine) = (Arc::clone(&self.inner.ctx), Arc::clone(&self.inner.engine));
        Session::new(ctx, engine, principal.clone(), origin)
    }

    /// Opens a session for a user without a password, for embedders that authenticate users themselves.
    ///
    /// # Errors
    /// 28P01 when there is no such user.
    pub fn session_for(&self, username: &str) -> Result<Session> {
        let snapshot = self.inner.ctx.committer.snapshot();
        match snapshot.catalog.user_by_name(username) {
            Some(user) => Ok(self.session(&user.principal())),
            None => Err(login_failed()),
        }
    }

    /// Returns random bytes that are created with the database and never change, for signing tokens and
    /// tickets. Mix a purpose into each key.
    pub fn secret(&self) -> &[u8; 32] {
        &self.inner.ctx.secret
    }

    /// Returns `root`'s generated password, if this call to `open` created the database and no password was
    /// configured.
    pub fn generated_root_password(&self) -> Option<&str> {
        self.inner.generated_root_password.as_deref()
    }

    /// Returns the name of this process.
    pub fn node_id(&self) -> &NodeId {
        &self.inner.ctx.node_id
    }

    /// Returns the settings the database was opened with.
    pub fn config(&self) -> &Config {
        &self.inner.ctx.config
    }

    /// Returns the identity of the data.
    pub fn id(&self) -> DatabaseId {
        self.inner.ctx.committer.database_id()
    }

    /// Returns the last commit that can be read.
    pub fn seq(&self) -> Seq {
        self.inner.ctx.committer.seq()
    }

    /// Waits until commit `seq` can be read.
    ///
    /// # Errors
    /// 57P01 when the database is closed first.
    pub async fn wait_for(&self, seq: Seq) -> Result<()> {
        if self.seq() >= seq {
            return Ok(());
        }
        let mut published = self.inner.ctx.committer.commits().watch();
        published.wait_for(|reached| *reached >= seq).await.map(|_| ()).map_err(|_| Error::shutting_down())
    }

    /// Returns the counters of the schema registry.
    pub fn registry_counters(&self) -> RegistryCounters {
        self.inner.ctx.schema_registry.counters()
    }

    /// Returns the database's parts, for servers that expose more of them.
    pub fn context(&self) -> &Arc<AppContext> {
        &self.inner.ctx
    }

    /// Tells all running statements to stop: they end with 57P01. For servers that shut down, before their
    /// connections close.
    pub fn end_statements(&self) {
        self.inner.ctx.statements.stop_all();
    }

    /// Ends live queries and background jobs, commits waiting writes and closes the store. Tables with many
    /// hot rows are flushed first, for at most `shutdown_flush_ms`.
    ///
    /// # Errors
    /// When committed data cannot be synced to disk.
    pub async fn shutdown(&self) -> Result<()> {
        let setting = Duration::from_millis(self.inner.ctx.config.shutdown_flush_ms);
        self.shutdown_by(Instant::now() + setting).await
    }

    /// Like [`Database::shutdown`], but flushes until `flush_until` at the latest.
    ///
    /// # Errors
    /// As [`Database::shutdown`].
    pub async fn shutdown_by(&self, flush_until: Instant) -> Result<()> {
        self.inner.ctx.shutdown(flush_until).await
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("id", &self.id()).field("seq", &self.seq()).finish_non_exhaustive()
    }
}

/// Creates `root` in a new database and returns its password if it was generated here.
async fn create_root(ctx: &AppContext, passwords: &Passwords) -> Result<Option<String>> {
    let snapshot = ctx.committer.snapshot();
    if snapshot.catalog.header().next_user_id != UserId::ROOT {
        return Ok(None);
    }
    let generated = match &ctx.config.root_password {
        Some(_) => None,
        None => Some(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(rand::random::<[u8; 18]>())),
    };
    let password = ctx.config.root_password.as_deref().or(generated.as_deref()).unwrap_or_default();
    let now = ctx.clock.now_us();
    let root = UserRecord {
        id: UserId::ROOT,
        username: Arc::from(ROOT),
        revision: 1,
        password_hash: Some(passwords.hash(password).await?),
        role: Role::System,
        email: None,
        created_at: now,
        updated_at: now,
        last_login_at: None,
        auth_generation: 1,
        settings: BTreeMap::new(),
    };
    let mut set = WriteSet::new(UserId::SYSTEM, snapshot.seq);
    set.catalog.push(CatalogChange::PutUser(root));
    failpoint::step("open::root")?;
    ctx.committer.commit(set).await?;
    Ok(generated)
}
