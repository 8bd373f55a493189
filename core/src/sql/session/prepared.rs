//! A prepared statement: parsed and described once, run with values.
//!
//! Invariant: it runs in the session that prepared it, with the namespace and the rights of that session.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::datatypes::FieldRef;
use datafusion::common::ScalarValue;

use super::Session;
use super::answer::run_to_answer;
use crate::error::{Error, Result};
use crate::sql::hot::KnownStatement;
use crate::sql::plan::description::{Description, StatementKind};
use crate::sql::plan::parameter_types::fitting;
use crate::sql::plan::planner;
use crate::sql::result::{Affected, Outcome, Params, ResultSchema};
use crate::sql::run::Request;
use crate::workload::{Call, SessionHold};

/// A parsed and described statement, to run with values.
#[derive(Clone)]
pub struct Prepared {
    session: Session,
    statement: Arc<KnownStatement>,
    description: Arc<Description>,
    _counted: Arc<SessionHold>,
}

impl Prepared {
    pub(super) fn new(session: Session, statement: Arc<KnownStatement>, description: Description) -> Self {
        let bytes = statement.size() + description.size();
        let counted = Arc::new(session.inner.info.hold_prepared(bytes));
        Self { session, statement, description: Arc::new(description), _counted: counted }
    }

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

    /// Returns the memory that the statement takes, in bytes.
    pub fn size(&self) -> usize {
        self.statement.size() + self.description.size()
    }

    /// Returns the session it belongs to.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Returns the same statement for a call of the client, which it ends with.
    #[must_use]
    pub fn in_call(&self, call: &Call) -> Self {
        Self { session: self.session.in_call(call), ..self.clone() }
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
        let outcome = run_to_answer(self.session.begin_known(&self.statement)?, request).await?;
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
        run_to_answer(self.session.begin_known(&self.statement)?, request).await?.affected()
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
