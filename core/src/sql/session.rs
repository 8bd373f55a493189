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
use parking_lot::{Mutex, RwLock};

use super::engine::Engine;
use super::execution::Execution;
use super::hot::Shape;
use super::parameters::ParameterTypes;
use super::parameters::{self, Use};
use super::result::{Affected, Outcome, Params, ResultSchema};
use super::stack::Deep;
use super::statement::{Parsed, Statement, parse};
use super::{handlers, planner};
use crate::access::Principal;
use crate::app_context::AppContext;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::live_query::{SubscribeRequest, Subscription};
use crate::schema_registry::{NAMESPACE_PUBLIC, TableDefinition, TableKind, TableSchemas};

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
    namespace: RwLock<Arc<str>>,
    statements: Mutex<KeptStatements>,
}

#[derive(Default)]
struct KeptStatements {
    by_text: HashMap<Arc<str>, Arc<KnownStatement>>,
    /// The bytes of all texts.
    bytes: usize,
}

/// A parsed statement, as a session caches it.
pub(crate) struct KnownStatement {
    pub(crate) parsed: Parsed,
    /// The shape that skips planning, if the statement has one.
    pub(crate) shape: Shape,
}

impl Session {
    pub(crate) fn new(ctx: Arc<AppContext>, engine: Arc<Engine>, principal: Principal) -> Self {
        let namespace = RwLock::new(Arc::from(NAMESPACE_PUBLIC));
        Self { inner: Arc::new(Inner { ctx, engine, principal, namespace, statements: Mutex::default() }) }
    }

    /// Returns the user that the session acts for.
    pub fn principal(&self) -> &Principal {
        &self.inner.principal
    }

    /// Returns the namespace of unqualified table names.
    pub fn namespace(&self) -> Arc<str> {
        Arc::clone(&self.inner.namespace.read())
    }

    /// Changes the namespace of unqualified table names.
    ///
    /// # Errors
    /// 3F000 when it does not exist.
    pub fn set_namespace(&self, namespace: &str) -> Result<()> {
        let execution = self.begin()?;
        let known = execution.snapshot.catalog.namespace(namespace).map(|record| Arc::clone(&record.name));
        let name = match known {
            Some(name) => name,
            None if namespace == super::INFORMATION_SCHEMA => Arc::from(namespace),
            None => return Err(Error::namespace_not_found(namespace)),
        };
        *self.inner.namespace.write() = name;
        Ok(())
    }

    pub(crate) fn ctx(&self) -> &Arc<AppContext> {
        &self.inner.ctx
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.inner.engine
    }

    /// Returns a statement's view of the database, as of now.
    ///
    /// # Errors
    /// 28000 when the user no longer exists.
    pub(crate) fn begin(&self) -> Result<Execution> {
        let snapshot = self.inner.ctx.committer.snapshot();
        let Some(user) = snapshot.catalog.user(self.inner.principal.user_id) else {
            return Err(user_is_gone(&self.inner.principal));
        };
        let principal = Principal { role: user.role, ..self.inner.principal.clone() };
        let now_us = self.inner.ctx.clock.now_us();
        Ok(Execution { session: self.clone(), snapshot, principal, namespace: self.namespace(), now_us })
    }

    /// Runs one statement.
    ///
    /// # Errors
    /// Any error of a statement; each says what is wrong and how to go on.
    pub async fn execute(&self, sql: &str, params: impl Into<Params>) -> Result<Outcome> {
        let statement = self.statement(sql)?;
        let params = statement.parsed.parameters.values(params.into())?;
        self.run(&statement, params).await
    }

    pub(crate) async fn run(
        &self,
        statement: &Arc<KnownStatement>,
        params: Vec<ScalarValue>,
    ) -> Result<Outcome> {
        if let Some(outcome) = statement.shape.try_run(self, &params).await? {
            return Ok(outcome);
        }
        Deep::new(super::execute(self, &statement.parsed, params)).await
    }

    /// Parses a statement and determines its parameters and result, without running it.
    ///
    /// # Errors
    /// As [`Session::execute`], for errors that are known before a statement runs.
    pub async fn prepare(&self, sql: &str) -> Result<Prepared> {
        let statement = self.statement(sql)?;
        let description = Deep::new(async { planner::describe(&self.begin()?, &statement.parsed) }).await?;
        Ok(Prepared { session: self.clone(), statement, description: Arc::new(description) })
    }

    /// Starts a live query.
    ///
    /// # Errors
    /// As [`Session::execute`], and 0A000 for a query that cannot be kept up to date.
    pub async fn subscribe(&self, request: SubscribeRequest) -> Result<Subscription> {
        Deep::new(handlers::subscribe::subscribe(self, request)).await
    }

    /// Appends rows to a table in one commit. Columns are matched by name and cast; others get defaults.
    ///
    /// # Errors
    /// 42P01, 42703, 42501 for the table and its columns; 22xxx, 23xxx for the rows; 54000 for too many rows.
    pub async fn append(
        &self,
        namespace: Option<&str>,
        table: &str,
        batches: Vec<RecordBatch>,
    ) -> Result<Affected> {
        Deep::new(handlers::insert::append(self, namespace, table, batches)).await
    }

    /// Checks that rows can be appended to a table, so that no client sends them in vain.
    ///
    /// # Errors
    /// 42P01 or 3F000 when it does not exist, 42501 when the principal may not write it.
    pub fn check_append(&self, namespace: Option<&str>, table: &str) -> Result<()> {
        handlers::insert::check_append(self, namespace, table)
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

    fn statement(&self, sql: &str) -> Result<Arc<KnownStatement>> {
        if let Some(known) = self.inner.statements.lock().by_text.get(sql) {
            return Ok(Arc::clone(known));
        }
        let parsed = super::stack::deep(|| parse(sql, &self.inner.ctx.config))?;
        let keep = sql.len() <= STATEMENT_KEPT_BYTES_MAX
            && !matches!(parsed.statement, Statement::CreateUser(_) | Statement::AlterUser { .. });
        let known = Arc::new(KnownStatement { shape: Shape::of(&parsed), parsed });
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

pub(crate) fn user_is_gone(principal: &Principal) -> Error {
    Error::new(
        ErrorKind::Unauthenticated,
        SqlState::INVALID_AUTHORIZATION,
        format!("user \"{}\" does not exist any more", principal.username),
    )
    .hint("log in again")
}

/// The kind of a statement's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StatementKind {
    /// Rows.
    Query,
    /// A count.
    Update,
    /// An endless stream of frames.
    Subscribe,
}

/// The description of a statement before it runs.
#[derive(Clone, Debug)]
pub(crate) struct Description {
    pub(crate) kind: StatementKind,
    pub(crate) schema: Option<ResultSchema>,
    /// One field per parameter, of a type that every driver can set.
    pub(crate) parameters: Vec<FieldRef>,
    /// The types of the parameters in the plan of a query.
    pub(crate) types: ParameterTypes,
    /// The uses of the parameters.
    pub(crate) uses: HashMap<String, Use>,
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
    pub fn with_values(&self, params: impl Into<Params>) -> Result<Self> {
        let params = self.statement.parsed.parameters.values(params.into())?;
        let mut fits = true;
        for (index, value) in params.iter().enumerate() {
            let name = format!("${}", index + 1);
            if let Some(Some(ty)) = self.description.types.get(&name) {
                let used = self.description.uses.get(&name).copied();
                fits &= parameters::fitting(value, ty, used)?.is_some();
            }
        }
        if fits {
            return Ok(self.clone());
        }
        let describe = || planner::bound_schema(&self.session.begin()?, &self.statement.parsed, &params);
        let schema = super::stack::deep(describe)?;
        let description = Description { schema, ..Description::clone(&self.description) };
        Ok(Self { description: Arc::new(description), ..self.clone() })
    }

    /// Runs the statement.
    ///
    /// # Errors
    /// As [`Session::execute`], and 0A000 when the result no longer has the announced schema.
    pub async fn execute(&self, params: impl Into<Params>) -> Result<Outcome> {
        let params = self.statement.parsed.parameters.values(params.into())?;
        let outcome = self.session.run(&self.statement, params).await?;
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
    /// # Errors
    /// As [`Prepared::execute`]; 22023 for anything but INSERT, UPDATE and DELETE.
    pub async fn execute_batch(&self, rows: Vec<Vec<ScalarValue>>) -> Result<Affected> {
        let names = &self.statement.parsed.parameters;
        let rows =
            rows.into_iter().map(|row| names.values(Params::Positional(row))).collect::<Result<Vec<_>>>()?;
        if let Some(affected) = self.statement.shape.try_run_batch(&self.session, &rows).await? {
            return Ok(affected);
        }
        Deep::new(super::execute_batch(&self.session, &self.statement.parsed, rows)).await
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

/// Returns the name of a parameter as clients see it.
pub(crate) fn parameter_name(parsed: &Parsed, index: usize) -> String {
    parsed.parameters.names.get(index).cloned().unwrap_or_else(|| format!("${}", index + 1))
}

/// Returns the parameters of a statement as clients see them; `planned` are the types in its plan.
pub(crate) fn announce(parsed: &Parsed, planned: &ParameterTypes) -> Vec<FieldRef> {
    (0..parsed.parameters.count)
        .map(|index| {
            let ty = planned.get(&format!("${}", index + 1)).and_then(Option::as_ref);
            parameters::announced(parameter_name(parsed, index), ty)
        })
        .collect()
}
