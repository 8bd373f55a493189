//! A session: an authenticated user and a current namespace. Everything a user does goes through one.
//!
//! Invariant: the layer that authenticated sets the principal when it creates the session; no statement
//! changes it. Each statement checks that the user still exists, and takes the role from its snapshot.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::FieldRef;
use datafusion::common::ScalarValue;
use parking_lot::Mutex;

use super::engine::Engine;
use super::execution::{Execution, Settings, TableVisibility};
use super::handlers;
use super::handlers::insert::Append;
use super::hot::KnownStatement;
use super::limits::stack::deep;
use super::plan::description::{Description, StatementKind};
use super::plan::parameter_types::fitting;
use super::plan::planner;
use super::result::{Affected, Outcome, Params, ResultSchema};
use super::run::{Request, run};
use super::text::cursor::QualifiedName;
use super::text::parse::parse;
use super::text::statement::Statement;
use crate::access::Principal;
use crate::app_context::AppContext;
use crate::error::{Error, Result};
use crate::live_query::{SubscribeRequest, Subscription};
use crate::schema_registry::{TableDefinition, TableKind, TableSchemas};

/// The most parsed statements that a session caches, and the most bytes of their texts. A full cache is
/// emptied: a session repeats few texts or none.
const STATEMENTS_KEPT_MAX: usize = 256;
const STATEMENTS_KEPT_BYTES_MAX: usize = 256 << 10;
/// Longer texts are not cached: they are bulk loads, which do not repeat.
const STATEMENT_KEPT_BYTES_MAX: usize = 16 << 10;

/// A user's connection to the database. Cloning is cheap, and clones share the current namespace.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

struct Inner {
    ctx: Arc<AppContext>,
    engine: Arc<Engine>,
    principal: Principal,
    settings: Arc<Settings>,
    statements: Mutex<KeptStatements>,
}

#[derive(Default)]
struct KeptStatements {
    by_text: HashMap<Arc<str>, Arc<KnownStatement>>,
    /// The bytes of all texts.
    bytes: usize,
}

impl Session {
    pub(crate) fn new(ctx: Arc<AppContext>, engine: Arc<Engine>, principal: Principal) -> Self {
        let settings = Arc::default();
        Self { inner: Arc::new(Inner { ctx, engine, principal, settings, statements: Mutex::default() }) }
    }

    /// Returns the user that the session acts for.
    pub fn principal(&self) -> &Principal {
        &self.inner.principal
    }

    /// Returns the namespace of unqualified table names.
    pub fn namespace(&self) -> Arc<str> {
        self.inner.settings.namespace()
    }

    /// Changes the namespace of unqualified table names.
    ///
    /// # Errors
    /// 3F000 when it does not exist.
    pub fn set_namespace(&self, namespace: &str) -> Result<()> {
        self.begin()?.set_namespace(namespace)
    }

    /// Returns a statement's view of the database, as of now.
    ///
    /// # Errors
    /// 28000 when the user no longer exists.
    pub(crate) fn begin(&self) -> Result<Execution> {
        let Inner { ctx, engine, principal, settings, .. } = &*self.inner;
        Execution::begin(ctx, engine, principal, settings)
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
        run(self.begin()?, Request::Statement(statement, Arc::from([params]))).await
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
        let description = Arc::new(self.describe(&statement, None).await?);
        Ok(Prepared { session: self.clone(), statement, description })
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
        self.on_engine(move |execution| {
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
        let table = table_name(namespace, table);
        run(self.begin()?, Request::Append(Arc::new(Append { table, batches }))).await?.affected()
    }

    /// Checks that rows can be appended to a table, so that no client sends them in vain.
    ///
    /// # Errors
    /// 42P01 or 3F000 when it does not exist, 42501 when the principal may not write it.
    pub fn check_append(&self, namespace: Option<&str>, table: &str) -> Result<()> {
        self.begin()?.writable(&table_name(namespace, table)).map(|_| ())
    }

    /// Returns the tables that the principal may read, ordered by namespace and name.
    ///
    /// # Errors
    /// 28000 when the user no longer exists.
    pub fn tables(&self) -> Result<Vec<TableInfo>> {
        let execution = self.begin()?;
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
        Ok(self.begin()?.readable_namespaces())
    }

    /// Runs `work` on the engine, with enough stack, on the database as of now.
    async fn on_engine<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Execution) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let execution = self.begin()?;
        let control = Arc::clone(&execution.control);
        let work = async move { deep(|| work(&execution)) };
        self.inner.ctx.engine_threads.run(&control, work).await
    }

    /// Describes a statement, for these values if there are any.
    async fn describe(
        &self,
        statement: &Arc<KnownStatement>,
        values: Option<Vec<ScalarValue>>,
    ) -> Result<Description> {
        let statement = Arc::clone(statement);
        self.on_engine(move |execution| handlers::describe(execution, &statement.parsed, values.as_deref()))
            .await
    }

    /// Returns the statement of a text. Long texts are parsed on the engine.
    async fn statement(&self, sql: &str) -> Result<Arc<KnownStatement>> {
        if let Some(known) = self.inner.statements.lock().by_text.get(sql) {
            return Ok(Arc::clone(known));
        }
        if sql.len() > STATEMENT_KEPT_BYTES_MAX {
            let sql = sql.to_owned();
            return self
                .on_engine(move |execution| {
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
            let mut statements = self.inner.statements.lock();
            let full = statements.by_text.len() >= STATEMENTS_KEPT_MAX
                || statements.bytes + sql.len() > STATEMENTS_KEPT_BYTES_MAX;
            if full {
                *statements = KeptStatements::default();
            }
            if statements.by_text.insert(Arc::clone(&known.parsed.sql), Arc::clone(&known)).is_none() {
                statements.bytes += sql.len();
            }
        }
        Ok(known)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("user", &self.inner.principal.username).finish_non_exhaustive()
    }
}

fn table_name(namespace: Option<&str>, table: &str) -> QualifiedName {
    QualifiedName { namespace: namespace.map(str::to_owned), name: table.to_owned() }
}

/// A parsed and described statement, to run with values.
#[derive(Clone)]
pub struct Prepared {
    session: Session,
    statement: Arc<KnownStatement>,
    description: Arc<Description>,
}

impl Prepared {
    /// Returns the text.
    pub fn sql(&self) -> &str {
        &self.statement.parsed.sql
    }

    /// Returns the kind of its result.
    pub fn kind(&self) -> StatementKind {
        self.description.kind
    }

    /// Returns the schema of the rows, for queries and live queries.
    pub fn schema(&self) -> Option<&ResultSchema> {
        self.description.schema.as_ref()
    }

    /// Returns the parameters, `$1 .. $n` or the names of `:name`: nullable, of types every driver can set.
    pub fn parameters(&self) -> &[FieldRef] {
        &self.description.parameters
    }

    /// Returns the session it belongs to.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Returns the statement described for these values: 1.5 beside an integer can change a column's type.
    ///
    /// # Errors
    /// As [`Session::prepare`], and 42P02 unless exactly the statement's parameters have values.
    pub async fn with_values(&self, params: impl Into<Params>) -> Result<Self> {
        let params = self.statement.parsed.parameters.values(params.into())?;
        let mut fits = true;
        for (index, value) in params.iter().enumerate() {
            let name = format!("${}", index + 1);
            if let Some(Some(ty)) = self.description.types.get(&name) {
                let used = self.description.uses.get(&name).copied();
                fits &= fitting(value, ty, used)?.is_some();
            }
        }
        if fits {
            return Ok(self.clone());
        }
        let description = self.session.describe(&self.statement, Some(params)).await?;
        Ok(Self { description: Arc::new(description), ..self.clone() })
    }

    /// Runs the statement.
    ///
    /// # Errors
    /// As [`Session::execute`], and 0A000 when the result no longer has the announced schema.
    pub async fn execute(&self, params: impl Into<Params>) -> Result<Outcome> {
        let params = self.statement.parsed.parameters.values(params.into())?;
        let request = Request::Statement(Arc::clone(&self.statement), Arc::from([params]));
        let outcome = run(self.session.begin()?, request).await?;
        if let (Outcome::Rows(rows), Some(announced)) = (&outcome, &self.description.schema)
            && !planner::same_columns(&rows.schema, &announced.schema)
        {
            return Err(
                Error::unsupported("a prepared statement whose result changed").hint("prepare it again")
            );
        }
        Ok(outcome)
    }

    /// Runs a write once per row of values, in one commit.
    ///
    /// # Examples
    /// ```
    /// use kalamdb_core::{Database, ScalarValue};
    ///
    /// # #[tokio::main]
    /// # async fn main() -> kalamdb_core::Result<()> {
    /// # let database = Database::open_in_memory().await?;
    /// # let session = database.session_for("root")?;
    /// # session.execute("CREATE TABLE points (id BIGINT PRIMARY KEY, x BIGINT)", ()).await?;
    /// let insert = session.prepare("INSERT INTO points VALUES ($1, $2)").await?;
    /// let rows = (1..=3_i64).map(|id| vec![ScalarValue::from(id), ScalarValue::from(10 * id)]).collect();
    /// let written = insert.execute_batch(rows).await?;
    /// assert_eq!(written.rows, 3);
    /// # database.shutdown().await
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Prepared::execute`]; 22023 for anything but INSERT, UPDATE and DELETE.
    pub async fn execute_batch(&self, rows: Vec<Vec<ScalarValue>>) -> Result<Affected> {
        let names = &self.statement.parsed.parameters;
        let rows =
            rows.into_iter().map(|row| names.values(Params::Positional(row))).collect::<Result<Vec<_>>>()?;
        if !self.description.takes_rows {
            return Err(Error::invalid("only INSERT, UPDATE and DELETE take several rows of parameters"));
        }
        let request = Request::Statement(Arc::clone(&self.statement), rows.into());
        run(self.session.begin()?, request).await?.affected()
    }
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared")
            .field("sql", &self.sql())
            .field("kind", &self.kind())
            .finish_non_exhaustive()
    }
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
