//! The one error type of the core: a coarse kind that tells the caller what to do, an SQLSTATE, a message
//! that names the object, and a hint with the remedy.
//!
//! Invariant: no code decides by an error's text. An error passes through DataFusion as
//! `DataFusionError::External` and is recovered by downcast.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use datafusion::arrow::error::ArrowError;
use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;
use parquet::errors::ParquetError;

/// The core's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The statement is wrong: change its text.
    InvalidSql,
    /// A value, parameter or option is wrong: change it.
    InvalidArgument,
    /// The named object does not exist.
    NotFound,
    /// The named object, or a row with this key, exists already.
    AlreadyExists,
    /// Another commit came first: try again.
    Conflict,
    /// The caller is not known: log in.
    Unauthenticated,
    /// The caller is known but lacks the permission.
    PermissionDenied,
    /// The feature does not exist here.
    Unsupported,
    /// A limit was reached: ask for less, or raise the limit.
    ResourceExhausted,
    /// The caller gave up, or somebody cancelled the work.
    Cancelled,
    /// The database cannot serve this now: wait and try again.
    Unavailable,
    /// Stored bytes are damaged: restore them.
    Corruption,
    /// A defect of the database.
    Internal,
}

/// An SQLSTATE: five characters, PostgreSQL's code if it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SqlState(pub &'static str);

#[expect(missing_docs, reason = "the names are those of PostgreSQL's conditions")]
impl SqlState {
    pub const CONNECTION_EXCEPTION: Self = Self("08000");
    pub const OUTCOME_UNKNOWN: Self = Self("08007");
    pub const FEATURE_NOT_SUPPORTED: Self = Self("0A000");
    pub const CARDINALITY_VIOLATION: Self = Self("21000");
    pub const STRING_TOO_LONG: Self = Self("22001");
    pub const NUMERIC_OUT_OF_RANGE: Self = Self("22003");
    pub const INVALID_ESCAPE: Self = Self("22019");
    pub const INVALID_ESCAPE_SEQUENCE: Self = Self("22025");
    pub const DATETIME_OVERFLOW: Self = Self("22008");
    pub const INVALID_DATETIME: Self = Self("22007");
    pub const DIVISION_BY_ZERO: Self = Self("22012");
    pub const INVALID_PARAMETER_VALUE: Self = Self("22023");
    pub const INVALID_WINDOW_FRAME: Self = Self("22013");
    pub const INVALID_REGULAR_EXPRESSION: Self = Self("2201B");
    pub const DATA_EXCEPTION: Self = Self("22000");
    pub const INVALID_TEXT_REPRESENTATION: Self = Self("22P02");
    pub const NOT_NULL_VIOLATION: Self = Self("23502");
    pub const UNIQUE_VIOLATION: Self = Self("23505");
    pub const CHECK_VIOLATION: Self = Self("23514");
    pub const INVALID_CURSOR: Self = Self("24000");
    pub const NO_ACTIVE_TRANSACTION: Self = Self("25P01");
    pub const INVALID_STATEMENT_NAME: Self = Self("26000");
    pub const INVALID_AUTHORIZATION: Self = Self("28000");
    pub const INVALID_PASSWORD: Self = Self("28P01");
    pub const DEPENDENT_OBJECTS_EXIST: Self = Self("2BP01");
    pub const INVALID_SCHEMA_NAME: Self = Self("3F000");
    pub const SERIALIZATION_FAILURE: Self = Self("40001");
    pub const SYNTAX_ERROR: Self = Self("42601");
    pub const INVALID_NAME: Self = Self("42602");
    pub const INSUFFICIENT_PRIVILEGE: Self = Self("42501");
    pub const NAME_TOO_LONG: Self = Self("42622");
    pub const RESERVED_NAME: Self = Self("42939");
    pub const DUPLICATE_COLUMN: Self = Self("42701");
    pub const AMBIGUOUS_COLUMN: Self = Self("42702");
    pub const UNDEFINED_COLUMN: Self = Self("42703");
    pub const UNDEFINED_OBJECT: Self = Self("42704");
    pub const DUPLICATE_OBJECT: Self = Self("42710");
    pub const DATATYPE_MISMATCH: Self = Self("42804");
    pub const CANNOT_COERCE: Self = Self("42846");
    pub const WRONG_OBJECT_TYPE: Self = Self("42809");
    pub const UNDEFINED_FUNCTION: Self = Self("42883");
    pub const UNDEFINED_TABLE: Self = Self("42P01");
    pub const UNDEFINED_PARAMETER: Self = Self("42P02");
    pub const DUPLICATE_SCHEMA: Self = Self("42P06");
    pub const DUPLICATE_TABLE: Self = Self("42P07");
    pub const INVALID_TABLE_DEFINITION: Self = Self("42P16");
    pub const WINDOWING: Self = Self("42P20");
    pub const INSUFFICIENT_RESOURCES: Self = Self("53000");
    pub const DISK_FULL: Self = Self("53100");
    pub const OUT_OF_MEMORY: Self = Self("53200");
    pub const TOO_MANY: Self = Self("53300");
    pub const LIMIT_EXCEEDED: Self = Self("53400");
    pub const PROGRAM_LIMIT_EXCEEDED: Self = Self("54000");
    pub const STATEMENT_TOO_COMPLEX: Self = Self("54001");
    pub const OBJECT_NOT_IN_STATE: Self = Self("55000");
    pub const OBJECT_IN_USE: Self = Self("55006");
    pub const QUERY_CANCELED: Self = Self("57014");
    pub const SHUTTING_DOWN: Self = Self("57P01");
    pub const IDLE_SESSION_TIMEOUT: Self = Self("57P05");
    pub const IO_ERROR: Self = Self("58030");
    pub const DATA_CORRUPTED: Self = Self("XX001");
    pub const INTERNAL: Self = Self("XX000");
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// An error of the database, as users see it.
///
/// `Display` prints `[SQLSTATE] message (hint)` and never the source, which may hold paths. Reports for
/// operators walk `source()`.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    sqlstate: SqlState,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// Creates an error. The message is lowercase, has no full stop and puts object names in double quotes.
    pub fn new(kind: ErrorKind, sqlstate: SqlState, message: impl Into<String>) -> Self {
        Self { kind, sqlstate, message: message.into(), hint: None, source: None }
    }

    /// Adds the remedy.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the cause, which only operators see.
    #[must_use]
    pub fn source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Returns what the caller can do.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns the SQLSTATE.
    pub fn sqlstate(&self) -> SqlState {
        self.sqlstate
    }

    /// Returns the message alone, without SQLSTATE and hint.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns the hint, if there is one.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// A syntax error (42601).
    pub fn syntax(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidSql, SqlState::SYNTAX_ERROR, message)
    }

    /// A wrong value (22023).
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, SqlState::INVALID_PARAMETER_VALUE, message)
    }

    /// A feature that does not exist (0A000); the message names it.
    pub fn unsupported(feature: impl fmt::Display) -> Self {
        Self::new(
            ErrorKind::Unsupported,
            SqlState::FEATURE_NOT_SUPPORTED,
            format!("{feature} is not supported"),
        )
    }

    /// A missing table (42P01), e.g. `table "app.notes" does not exist`.
    pub fn table_not_found(name: impl fmt::Display) -> Self {
        Self::new(ErrorKind::NotFound, SqlState::UNDEFINED_TABLE, format!("table \"{name}\" does not exist"))
            .hint("SHOW TABLES lists the tables you can read")
    }

    /// A missing namespace (3F000).
    pub fn namespace_not_found(name: impl fmt::Display) -> Self {
        Self::new(
            ErrorKind::NotFound,
            SqlState::INVALID_SCHEMA_NAME,
            format!("namespace \"{name}\" does not exist"),
        )
        .hint(format!("create it with CREATE NAMESPACE {name}"))
    }

    /// A user that no longer exists (28000).
    pub fn user_not_found(name: impl fmt::Display) -> Self {
        Self::new(
            ErrorKind::Unauthenticated,
            SqlState::INVALID_AUTHORIZATION,
            format!("user \"{name}\" no longer exists"),
        )
        .hint("log in again")
    }

    /// A missing permission (42501).
    pub fn permission_denied(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::PermissionDenied, SqlState::INSUFFICIENT_PRIVILEGE, message)
    }

    /// Another commit came first (40001).
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, SqlState::SERIALIZATION_FAILURE, message)
            .hint("run the statement again")
    }

    /// A limit of memory (53200); the message names it.
    pub fn out_of_memory(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::ResourceExhausted, SqlState::OUT_OF_MEMORY, message)
            .hint("ask for less at a time, close unused statements, or raise the limit")
    }

    /// Stored bytes are damaged (XX001).
    pub fn corruption(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corruption, SqlState::DATA_CORRUPTED, message)
    }

    /// A defect of the database (XX000).
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, SqlState::INTERNAL, message)
    }

    /// The database is closing (57P01).
    pub fn shutting_down() -> Self {
        Self::new(ErrorKind::Unavailable, SqlState::SHUTTING_DOWN, "the database is shutting down")
            .hint("reconnect once it is back")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.sqlstate, self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

impl From<Error> for DataFusionError {
    fn from(error: Error) -> Self {
        DataFusionError::External(Box::new(error))
    }
}

impl From<DataFusionError> for Error {
    fn from(error: DataFusionError) -> Self {
        match error {
            DataFusionError::External(inner) => match inner.downcast::<Error>() {
                Ok(ours) => *ours,
                Err(other) => match other.downcast::<DataFusionError>() {
                    Ok(nested) => (*nested).into(),
                    Err(other) => Error::internal("the query failed").source(other),
                },
            },
            DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => (*inner).into(),
            DataFusionError::Shared(inner) => from_shared(&inner),
            DataFusionError::ArrowError(inner, _) => (*inner).into(),
            DataFusionError::IoError(inner) => {
                let other = |inner: io::Error| Error::internal("the query failed").source(inner);
                inner.downcast::<Error>().unwrap_or_else(other)
            }
            DataFusionError::ParquetError(inner) => (*inner).into(),
            DataFusionError::SQL(inner, _) => Error::syntax(inner.to_string()),
            DataFusionError::Plan(message) => {
                Error::new(ErrorKind::InvalidSql, SqlState::SYNTAX_ERROR, client_text(plan_reason(&message)))
            }
            DataFusionError::SchemaError(inner, _) => from_schema_error(&inner),
            DataFusionError::NotImplemented(feature) => {
                Error::new(ErrorKind::Unsupported, SqlState::FEATURE_NOT_SUPPORTED, client_text(&feature))
            }
            DataFusionError::ResourcesExhausted(message) => Error::out_of_memory(client_text(&message)),
            DataFusionError::Execution(message) => {
                Error::new(ErrorKind::InvalidArgument, SqlState::DATA_EXCEPTION, client_text(&message))
            }
            DataFusionError::Collection(errors) => {
                errors.into_iter().next().map_or_else(|| Error::internal("the query failed"), Into::into)
            }
            other => Error::internal("the query failed").source(other),
        }
    }
}

/// Returns the part of a planning error that is for users. For arguments that fit no signature, DataFusion
/// puts its own attempts and a request to report them in front.
fn plan_reason(message: &str) -> &str {
    message.rsplit_once("apache/datafusion/issues. ").map_or(message, |(_, reason)| reason)
}

/// Converts an error that several readers of one stream share. It cannot be moved out, so only its text is
/// kept.
fn from_shared(error: &DataFusionError) -> Error {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(ours) = ours(current) {
            return Error {
                kind: ours.kind,
                sqlstate: ours.sqlstate,
                message: ours.message.clone(),
                hint: ours.hint.clone(),
                source: None,
            };
        }
        match current.downcast_ref::<DataFusionError>() {
            Some(DataFusionError::ResourcesExhausted(message)) => {
                return DataFusionError::ResourcesExhausted(message.clone()).into();
            }
            Some(DataFusionError::Execution(message)) => {
                return DataFusionError::Execution(message.clone()).into();
            }
            Some(DataFusionError::Plan(message)) => return DataFusionError::Plan(message.clone()).into(),
            Some(DataFusionError::NotImplemented(message)) => {
                return DataFusionError::NotImplemented(message.clone()).into();
            }
            _ => {}
        }
        if let Some(arrow) = current.downcast_ref::<ArrowError>()
            && !matches!(arrow, ArrowError::ExternalError(_))
        {
            return from_arrow(arrow);
        }
        cause = current.source();
    }
    Error::internal("the query failed").source(error.to_string())
}

/// Returns our error, if this is one or that of a writer that failed with one.
fn ours<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Error> {
    let io = match error.downcast_ref::<ArrowError>() {
        Some(ArrowError::IoError(_, io)) => Some(io),
        _ => error.downcast_ref::<io::Error>(),
    };
    error.downcast_ref::<Error>().or_else(|| io?.get_ref()?.downcast_ref::<Error>())
}

fn from_schema_error(error: &SchemaError) -> Error {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let error = Error::new(
                ErrorKind::NotFound,
                SqlState::UNDEFINED_COLUMN,
                format!("column \"{}\" does not exist", field.flat_name()),
            );
            if valid_fields.is_empty() {
                return error;
            }
            let names: Vec<_> = valid_fields.iter().take(12).map(|field| field.name().to_string()).collect();
            error.hint(format!("columns are: {}", names.join(", ")))
        }
        SchemaError::AmbiguousReference { field } => Error::new(
            ErrorKind::InvalidSql,
            SqlState::AMBIGUOUS_COLUMN,
            format!("column \"{}\" is ambiguous", field.flat_name()),
        )
        .hint("qualify it with its table"),
        SchemaError::DuplicateQualifiedField { name, .. }
        | SchemaError::DuplicateUnqualifiedField { name } => Error::new(
            ErrorKind::InvalidSql,
            SqlState::DUPLICATE_COLUMN,
            format!("column \"{name}\" appears more than once"),
        )
        .hint("give each column its own alias"),
    }
}

impl From<ParquetError> for Error {
    fn from(error: ParquetError) -> Self {
        match error {
            ParquetError::External(inner) => match inner.downcast::<Error>() {
                Ok(ours) => *ours,
                Err(other) => Error::internal("a segment could not be read").source(other),
            },
            other => Error::corruption("a segment is damaged").source(other),
        }
    }
}

impl From<ArrowError> for Error {
    fn from(error: ArrowError) -> Self {
        let inner = match error {
            ArrowError::ExternalError(inner) => inner,
            ArrowError::IoError(text, inner) => {
                let other = |inner: io::Error| from_arrow(&ArrowError::IoError(text, inner));
                return inner.downcast::<Error>().unwrap_or_else(other);
            }
            other => return from_arrow(&other),
        };
        match inner.downcast::<Error>() {
            Ok(ours) => *ours,
            Err(other) => match other.downcast::<DataFusionError>() {
                Ok(nested) => (*nested).into(),
                Err(other) => Error::internal("the query failed").source(other),
            },
        }
    }
}

/// Converts an error that Arrow itself raised.
fn from_arrow(error: &ArrowError) -> Error {
    let (kind, sqlstate) = match error {
        ArrowError::DivideByZero => (ErrorKind::InvalidArgument, SqlState::DIVISION_BY_ZERO),
        ArrowError::ArithmeticOverflow(_) => (ErrorKind::InvalidArgument, SqlState::NUMERIC_OUT_OF_RANGE),
        ArrowError::CastError(_) | ArrowError::ParseError(_) => {
            (ErrorKind::InvalidArgument, SqlState::INVALID_TEXT_REPRESENTATION)
        }
        ArrowError::MemoryError(_) => (ErrorKind::ResourceExhausted, SqlState::OUT_OF_MEMORY),
        ArrowError::NotYetImplemented(_) => (ErrorKind::Unsupported, SqlState::FEATURE_NOT_SUPPORTED),
        _ => (ErrorKind::InvalidArgument, SqlState::DATA_EXCEPTION),
    };
    Error::new(kind, sqlstate, client_text(&error.to_string()))
}

/// Adapts another library's message to our style and drops its advice to report bugs.
fn client_text(text: &str) -> String {
    let text = text.split("\nThis issue was likely caused by a bug").next().unwrap_or(text);
    let text = text.strip_prefix("Internal error: ").unwrap_or(text).trim_end_matches('.');
    let mut chars = text.chars();
    match chars.next() {
        Some(first) if !chars.clone().next().is_some_and(char::is_uppercase) => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn ours_survives_a_journey_through_datafusion() {
        let error = Error::table_not_found("app.notes");
        let back: Error = DataFusionError::from(error).context("while planning").into();
        assert_eq!(back.sqlstate(), SqlState::UNDEFINED_TABLE);
        assert_eq!(
            back.to_string(),
            "[42P01] table \"app.notes\" does not exist (SHOW TABLES lists the tables you can read)"
        );
    }

    #[test]
    fn ours_survives_a_writer_of_rows() {
        let spilled = || ArrowError::from(io::Error::other(Error::out_of_memory("no room")));
        let own: Error = DataFusionError::from(spilled()).into();
        let shared: Error = DataFusionError::Shared(Arc::new(spilled().into())).into();
        for error in [own, shared, spilled().into()] {
            assert_eq!((error.sqlstate(), error.message()), (SqlState::OUT_OF_MEMORY, "no room"));
        }
    }
}
