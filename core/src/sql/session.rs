//! A session: an authenticated user and a current namespace. Everything a user does goes through one.
//!
//! Invariant: the layer that authenticated sets the principal when it creates the session; no statement
//! changes it. Each statement checks that the user still exists, and takes the role from its snapshot.

mod answer;
mod options;
mod prepared;

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::common::ScalarValue;
use parking_lot::Mutex;

pub use self::answer::Appending;
use self::answer::{on_engine, run_to_answer};
pub use self::prepared::Prepared;
use super::engine::Engine;
use super::execution::{Execution, Origin, TableVisibility};
use super::handlers;
use super::hot::KnownStatement;
use super::kept::KeptStatements;
use super::limits::stack::deep;
use super::plan::description::Description;
use super::result::{Affected, Outcome, Params};
use super::run::Request;
use super::text::cursor::QualifiedName;
use super::text::parse::parse;
use super::text::statement::Statement;
use crate::access::Principal;
use crate::app_context::AppContext;
use crate::error::{Error, Result};
use crate::ids::SessionId;
use crate::live_query::{SubscribeRequest, Subscription};
use crate::schema_registry::{NAMESPACE_PUBLIC, TableDefinition, TableKind, TableSchemas};
use crate::workload::{Call, SessionInfo, SessionOrigin};

/// Longer texts are not cached: they are bulk loads, which do not repeat.
const STATEMENT_KEPT_BYTES_MAX: usize = 16 << 10;

/// A user's connection to the database. Cloning is cheap, and clones share the current namespace.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
    /// In place of the current namespace.
    namespace: Option<Arc<str>>,
    /// The call of the client that the statements belong to.
    call: Option<Call>,
}

struct Inner {
    ctx: Arc<AppContext>,
    engine: Arc<Engine>,
    principal: Principal,
    info: Arc<SessionInfo>,
    statements: Mutex<KeptStatements>,
}

impl Session {
    pub(crate) fn new(
        ctx: Arc<AppContext>,
        engine: Arc<Engine>,
        principal: Principal,
        origin: SessionOrigin,
    ) -> Self {
        let info = ctx.sessions.open(&principal, origin, NAMESPACE_PUBLIC);
        let inner = Inner { ctx, engine, principal, info, statements: Mutex::default() };
        Self { inner: Arc::new(inner), namespace: None, call: None }
    }

    /// Returns the number of the session, as in `system.sessions`.
    pub fn id(&self) -> SessionId {
        self.inner.info.id()
    }

    /// Returns the user that the session acts for.
    pub fn principal(&self) -> &Principal {
        &self.inner.principal
    }

    /// Returns the namespace of unqualified table names.
    pub fn namespace(&self) -> Arc<str> {
        self.origin().namespace()
    }

    /// Changes the namespace of unqualified table names.
    ///
    /// # Errors
    /// 3F000 when it does not exist.
    pub fn set_namespace(&self, namespace: &str) -> Result<()> {
        self.view()?.set_namespace(namespace)
    }

    /// Returns the same session with another namespace of unqualified table names.
    #[must_use]
    pub fn in_namespace(&self, namespace: &str) -> Self {
        Self { namespace: Some(Arc::from(namespace)), ..self.clone() }
    }

    /// Returns the same session for the statements of a call, which end with it.
    #[must_use]
    pub fn in_call(&self, call: &Call) -> Self {
        Self { call: Some(call.clone()), ..self.clone() }
    }

    fn origin(&self) -> Origin<'_> {
        let Inner { ctx, engine, principal, info, .. } = &*self.inner;
        let (namespace, call) = (self.namespace.as_ref(), self.call.as_ref());
        Origin { ctx, engine, session: info, principal, namespace, call }
    }

    /// Begins a statement.
    fn begin(&self, kind: &'static str, text: Option<Arc<str>>) -> Result<Execution> {
        Execution::begin(&self.origin(), kind, text)
    }

    /// Begins to run a statement that is parsed.
    fn begin_known(&self, known: &KnownStatement) -> Result<Execution> {
        let statement = &known.parsed.statement;
        self.begin(statement.kind(), shown(known))
    }

    /// Returns a view of the database, as of now, for what is no statement.
    pub(super) fn view(&self) -> Result<Execution> {
        Execution::view(&self.origin())
    }

    /// Runs one statement.
    ///
    /// # Examples
    /// ```
    /// use datafusion::arrow::array::AsArray;
    /// use datafusion::arrow::datatypes::Int64Type;
    /// use kalamdb_core::{Database, ScalarValue};
    ///
    /// # #[tokio::main]
    /// # async fn main() -> kalamdb_core::Result<()> {
    /// # let database = Database::open_in_memory().await?;
    /// # let session = database.session_for("root")?;
    /// # session.execute("CREATE TABLE points (id BIGINT PRIMARY KEY, x BIGINT)", ()).await?;
    /// let params = vec![ScalarValue::from(1_i64), ScalarValue::from(20_i64)];
    /// let written = session.execute("INSERT INTO points VALUES ($1, $2)", params).await?.affected()?;
    /// assert_eq!(written.rows, 1);
    /// let named = vec![("id".to_owned(), ScalarValue::from(1_i64))];
    /// let rows = session.execute("SELECT x FROM points WHERE id = :id", named).await?.rows()?;
    /// let batches = rows.collect().await?;
    /// assert_eq!(batches[0].column(0).as_primitive::<Int64Type>().value(0), 20);
    /// # database.shutdown().await
    /// # }
    /// ```
    ///
    /// # Errors
    /// Any error of a statement; each says what is wrong and how to go on.
    pub async fn execute(&self, sql: &str, params: impl Into<Params>) -> Result<Outcome> {
        let params = params.into();
        let statement = self.statement(sql).await?;
        let params = statement.parsed.parameters.values(params)?;
        let execution = self.begin_known(&statement)?;
        run_to_answer(execution, Request::Statement(statement, Arc::from([params]))).await
    }

    /// Parses a statement and determines its parameters and result, without running it.
    ///
    /// # Examples
    /// ```
    /// use kalamdb_core::{Database, ScalarValue, StatementKind};
    ///
    /// # #[tokio::main]
    /// # async fn main() -> kalamdb_core::Result<()> {
    /// # let database = Database::open_in_memory().await?;
    /// # let session = database.session_for("root")?;
    /// # session.execute("CREATE TABLE points (id BIGINT PRIMARY KEY, x BIGINT)", ()).await?;
    /// let select = session.prepare("SELECT x FROM points WHERE id = $1").await?;
    /// assert_eq!(select.kind(), StatementKind::Query);
    /// assert_eq!(select.parameters().len(), 1);
    /// for id in 1..=3_i64 {
    ///     let rows = select.execute(vec![ScalarValue::from(id)]).await?.rows()?;
    ///     assert_eq!(rows.schema.field(0).name(), "x");
    /// }
    /// # database.shutdown().await
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Session::execute`], for errors that are known before a statement runs.
    pub async fn prepare(&self, sql: &str) -> Result<Prepared> {
        let statement = self.statement(sql).await?;
        let description = self.describe(&statement, None).await?;
        Ok(Prepared::new(self.clone(), statement, description))
    }

    /// Starts a live query.
    ///
    /// # Examples
    /// ```
    /// use futures::StreamExt;
    /// use kalamdb_core::{Database, FrameBody, SubscribeRequest};
    ///
    /// # #[tokio::main]
    /// # async fn main() -> kalamdb_core::Result<()> {
    /// # let database = Database::open_in_memory().await?;
    /// # let session = database.session_for("root")?;
    /// # session.execute("CREATE TABLE points (id BIGINT PRIMARY KEY, x BIGINT)", ()).await?;
    /// let request = SubscribeRequest::new("SELECT id, x FROM points WHERE x > 10");
    /// let mut frames = session.subscribe(request).await?;
    /// session.execute("INSERT INTO points VALUES (1, 5), (2, 15)", ()).await?;
    /// while let Some(frame) = frames.next().await {
    ///     if let FrameBody::Delta(changed) = &frame?.body {
    ///         assert_eq!(changed.rows, 1);
    ///         break;
    ///     }
    /// }
    /// drop(frames); // ends the live query
    /// # database.shutdown().await
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Session::execute`], and 0A000 for a query that cannot be kept up to date.
    pub async fn subscribe(&self, request: SubscribeRequest) -> Result<Subscription> {
        let execution = self.begin("SUBSCRIBE", Some(Arc::from(request.sql.as_str())))?;
        on_engine(execution, move |execution| {
            let parsed = parse(&request.sql, &execution.ctx().config)?;
            let Statement::Query(query) = &parsed.statement else {
                return Err(Error::unsupported("a live query of anything but a SELECT"));
            };
            let params = parsed.parameters.values(Params::Positional(request.params.clone()))?;
            let visibility = TableVisibility { names_seq: parsed.names_seq, target: None };
            handlers::subscribe::start(execution, query, visibility, &params, &request)
        })
        .await
    }

    /// Appends rows to a table in one commit. Columns are matched by name and cast; others get defaults.
    ///
    /// # Examples
    /// ```
    /// use std::sync::Arc;
    ///
    /// use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch};
    /// use kalamdb_core::Database;
    ///
    /// # #[tokio::main]
    /// # async fn main() -> kalamdb_core::Result<()> {
    /// # let database = Database::open_in_memory().await?;
    /// # let session = database.session_for("root")?;
    /// # session.execute("CREATE TABLE points (id BIGINT PRIMARY KEY, x BIGINT)", ()).await?;
    /// let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(1..=1_000));
    /// let batch = RecordBatch::try_from_iter([("id", ids)])?;
    /// let written = session.append(None, "points", vec![batch]).await?;
    /// assert_eq!(written.rows, 1_000);
    /// # database.shutdown().await
    /// # }
    /// ```
    ///
    /// # Errors
    /// 42P01, 42703, 42501 for the table and its columns; 22xxx, 23xxx for the rows; 54000 for too many rows.
    pub async fn append(
        &self,
        namespace: Option<&str>,
        table: &str,
        batches: Vec<RecordBatch>,
    ) -> Result<Affected> {
        self.begin_append(namespace, table)?.finish(batches).await
    }

    /// Begins to append rows to a table before there are any, so that no client sends them in vain.
    ///
    /// # Errors
    /// 42P01 or 3F000 when it does not exist, 42501 when the principal may not write it.
    pub fn begin_append(&self, namespace: Option<&str>, table: &str) -> Result<Appending> {
        let table = table_name(namespace, table);
        let text = match &table.namespace {
            Some(namespace) => format!("append to {namespace}.{}", table.name),
            None => format!("append to {}", table.name),
        };
        let execution = self.begin("APPEND", Some(Arc::from(text)))?;
        execution.writable(&table)?;
        Ok(Appending::new(self.clone(), &execution, table))
    }

    /// Returns the tables that the principal may read, ordered by namespace and name.
    ///
    /// # Errors
    /// 28000 when the user no longer exists.
    pub fn tables(&self) -> Result<Vec<TableInfo>> {
        let execution = self.view()?;
        let tables = execution.readable_tables();
        Ok(tables
            .map(|definition| TableInfo::new(self.inner.ctx.schema_registry.schemas(definition)))
            .collect())
    }

    /// Returns the namespaces that the principal may see, ordered by name.
    ///
    /// # Errors
    /// 28000 when the user no longer exists.
    pub fn namespaces(&self) -> Result<Vec<Arc<str>>> {
        Ok(self.view()?.readable_namespaces())
    }

    /// Describes a statement, for these values if there are any.
    async fn describe(
        &self,
        statement: &Arc<KnownStatement>,
        values: Option<Vec<ScalarValue>>,
    ) -> Result<Description> {
        let execution = self.begin("PREPARE", shown(statement))?;
        if handlers::is_quick(&statement.parsed.statement) {
            return handlers::describe(&execution, &statement.parsed, values.as_deref());
        }
        let statement = Arc::clone(statement);
        on_engine(execution, move |execution| {
            handlers::describe(execution, &statement.parsed, values.as_deref())
        })
        .await
    }

    /// Returns the statement of a text. Long texts are parsed on the engine.
    async fn statement(&self, sql: &str) -> Result<Arc<KnownStatement>> {
        if let Some(known) = self.inner.statements.lock().get(sql) {
            return Ok(known);
        }
        if sql.len() > STATEMENT_KEPT_BYTES_MAX {
            let sql = sql.to_owned();
            // Only the parser knows whether the text has a password.
            let execution = self.begin("PARSE", None)?;
            return on_engine(execution, move |execution| {
                let parsed = parse(&sql, &execution.ctx().config)?;
                Ok(Arc::new(KnownStatement::new(parsed)))
            })
            .await;
        }
        let parsed = deep(|| parse(sql, &self.inner.ctx.config))?;
        // Only statements with expressions repeat often. Others can have a password.
        let keep = parsed.has_expressions;
        let known = Arc::new(KnownStatement::new(parsed));
        if keep {
            let memory = self.inner.ctx.memory.users().user(self.inner.principal.user_id);
            self.inner.statements.lock().keep(&known, &memory);
        }
        Ok(known)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("user", &self.inner.principal.username).finish_non_exhaustive()
    }
}

/// Returns the text of a statement as others may see it.
fn shown(known: &KnownStatement) -> Option<Arc<str>> {
    (!known.parsed.statement.has_secret()).then(|| Arc::clone(&known.parsed.sql))
}

fn table_name(namespace: Option<&str>, table: &str) -> QualifiedName {
    QualifiedName { namespace: namespace.map(str::to_owned), name: table.to_owned() }
}

/// A table as a principal sees it.
#[derive(Clone, Debug)]
pub struct TableInfo {
    /// The namespace's name.
    pub namespace: Arc<str>,
    /// The table's name.
    pub name: Arc<str>,
    /// Its definition.
    pub definition: Arc<TableDefinition>,
    /// Its memoized schemas.
    pub schemas: Arc<TableSchemas>,
}

impl TableInfo {
    fn new(schemas: Arc<TableSchemas>) -> Self {
        let definition = Arc::clone(&schemas.definition);
        Self {
            namespace: Arc::clone(&definition.namespace),
            name: Arc::clone(&definition.name),
            definition,
            schemas,
        }
    }

    /// Returns the names of the key columns, in key order.
    pub fn primary_key(&self) -> Vec<&str> {
        self.definition.key_columns().map(|column| &*column.name).collect()
    }

    /// Returns `TABLE` or `SYSTEM TABLE`.
    pub fn table_type(&self) -> &'static str {
        if self.definition.kind == TableKind::System { "SYSTEM TABLE" } else { "TABLE" }
    }
}
