//! A session: who asks, and in which namespace. Everything a user does goes through one.
//!
//! Invariant: the principal is fixed when the session is made, by the layer that authenticated; no statement changes it. Each
//! statement checks that the user still exists and takes the role from the snapshot it reads.

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

/// Statements a session keeps in parsed form, and the bytes of their texts. When it is full it is emptied: a session repeats few
/// texts or none.
const STATEMENTS_KEPT_MAX: usize = 256;
const STATEMENTS_KEPT_BYTES_MAX: usize = 256 << 10;
/// Longer texts are not kept: they are loads, and not repeated.
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
    /// Of all texts.
    bytes: usize,
}

/// A statement in the forms a session keeps.
pub(crate) struct KnownStatement {
    pub(crate) parsed: Parsed,
    /// The shape that skips planning, once it is known whether there is one.
    pub(crate) shape: Shape,
}

impl Session {
    pub(crate) fn new(ctx: Arc<AppContext>, engine: Arc<Engine>, principal: Principal) -> Self {
        let namespace = RwLock::new(Arc::from(NAMESPACE_PUBLIC));
        Self { inner: Arc::new(Inner { ctx, engine, principal, namespace, statements: Mutex::default() }) }
    }

    /// Who asks.
    pub fn principal(&self) -> &Principal {
        &self.inner.principal
    }

    /// The namespace of unqualified table names.
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

    /// A statement's view of the database, as of now.
    ///
    /// # Errors
    /// 28000 when the user does not exist any more.
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
    /// Everything that can be wrong with a statement; each error says what and how to go on.
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

    /// Reads a statement and finds out what it takes and gives, without any effect.
    ///
    /// # Errors
    /// As [`Session::execute`], as far as they can be known before running.
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

    /// Appends rows to a table in one commit. Columns are matched by name and cast; those that are missing get their
    /// defaults.
    ///
    /// # Errors
    /// 42P01, 42703, 42501 for the table and its columns; 22xxx, 23xxx for the rows; 54000 for too many.
    pub async fn append(
        &self,
        namespace: Option<&str>,
        table: &str,
        batches: Vec<RecordBatch>,
    ) -> Result<Affected> {
        Deep::new(handlers::insert::append(self, namespace, table, batches)).await
    }

    /// Whether rows can be appended to a table, so that nobody sends them in vain.
    ///
    /// # Errors
    /// 42P01, 3F000 when it does not exist, 42501 when the principal may not write it.
    pub fn check_append(&self, namespace: Option<&str>, table: &str) -> Result<()> {
        handlers::insert::check_append(self, namespace, table)
    }

    /// The tables the principal may read, by namespace and name.
    ///
    /// # Errors
    /// 28000 when the user does not exist any more.
    pub fn tables(&self) -> Result<Vec<TableInfo>> {
        let execution = self.begin()?;
        let tables = execution.readable_tables();
        Ok(tables
            .map(|definition| TableInfo::new(self.inner.ctx.schema_registry.schemas(definition)))
            .collect())
    }

    /// The namespaces the principal may look into, by name.
    ///
    /// # Errors
    /// 28000 when the user does not exist any more.
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

/// What kind of result a statement has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StatementKind {
    /// Rows.
    Query,
    /// A count.
    Update,
    /// Frames without an end.
    Subscribe,
}

/// What is known of a statement before it runs.
#[derive(Clone, Debug)]
pub(crate) struct Description {
    pub(crate) kind: StatementKind,
    pub(crate) schema: Option<ResultSchema>,
    /// One for each parameter, typed so that every driver can set it.
    pub(crate) parameters: Vec<FieldRef>,
    /// The types the plan of a query has its parameters in.
    pub(crate) types: ParameterTypes,
    /// What they are for.
    pub(crate) uses: HashMap<String, Use>,
}

/// A statement that was read and described, to be run with values.
#[derive(Clone)]
pub struct Prepared {
    session: Session,
    statement: Arc<KnownStatement>,
    description: Arc<Description>,
}

impl Prepared {
    /// The text.
    pub fn sql(&self) -> &str {
        &self.statement.parsed.sql
    }

    /// What it gives.
    pub fn kind(&self) -> StatementKind {
        self.description.kind
    }

    /// The schema of the rows, for queries and live queries.
    pub fn schema(&self) -> Option<&ResultSchema> {
        self.description.schema.as_ref()
    }

    /// The parameters `$1 .. $n`, or the names of `:name`: nullable, of types every driver can set.
    pub fn parameters(&self) -> &[FieldRef] {
        &self.description.parameters
    }

    /// The session it belongs to.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The statement as it is with these values: some make the columns of a query another type, as 1.5 beside an integer does.
    ///
    /// # Errors
    /// As [`Session::prepare`], and 42P02 unless exactly the statement's parameters are given.
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

    /// Runs it.
    ///
    /// # Errors
    /// As [`Session::execute`], and 0A000 when the result no longer has the schema that was announced.
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

    /// Runs a write once for each row of values, all of it in one commit.
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

    /// The names of the key columns, in key order.
    pub fn primary_key(&self) -> Vec<&str> {
        self.definition.key_columns().map(|column| &*column.name).collect()
    }

    /// `TABLE` or `SYSTEM TABLE`.
    pub fn table_type(&self) -> &'static str {
        if self.definition.kind == TableKind::System { "SYSTEM TABLE" } else { "TABLE" }
    }
}

/// The name a parameter is announced under.
pub(crate) fn parameter_name(parsed: &Parsed, index: usize) -> String {
    parsed.parameters.names.get(index).cloned().unwrap_or_else(|| format!("${}", index + 1))
}

/// The announced parameters of a statement, by the types its plan needs.
pub(crate) fn announce(parsed: &Parsed, planned: &ParameterTypes) -> Vec<FieldRef> {
    (0..parsed.parameters.count)
        .map(|index| {
            let ty = planned.get(&format!("${}", index + 1)).and_then(Option::as_ref);
            parameters::announced(parameter_name(parsed, index), ty)
        })
        .collect()
}
