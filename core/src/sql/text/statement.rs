//! Parsed statements as plain data.
//!
//! Invariant: `Debug` prints no password.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use datafusion::sql::sqlparser::ast;

use super::alter_table::AlterTable;
use super::create_table::CreateTable;
use super::cursor::QualifiedName;
use super::parameters::ParameterNames;
use crate::access::Role;
use crate::live_query::SubscribeRequest;
use crate::maintenance::BackupUrl;
use crate::sql::settings::{SetValue, Setting, TimeSetting};

/// A statement that passed the guard and the parser.
#[derive(Clone)]
pub(crate) struct Parsed {
    pub(crate) sql: Arc<str>,
    pub(crate) statement: Statement,
    pub(crate) parameters: ParameterNames,
    /// The text names `_seq`, so tables show it (never in wildcards).
    pub(crate) names_seq: bool,
    /// The statement has expressions, so it may have parameters. A statement without them may contain a
    /// password, so its text is not cached.
    pub(crate) has_expressions: bool,
}

impl fmt::Debug for Parsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parsed").field("statement", &self.statement).finish_non_exhaustive()
    }
}

/// A parsed statement.
#[derive(Clone, Debug)]
pub(crate) enum Statement {
    Query(Box<ast::Query>),
    Explain(Box<ast::Statement>),
    Insert(Box<Insert>),
    Update(Box<Update>),
    Delete(Box<Delete>),
    CreateNamespace { name: String, if_not_exists: bool },
    DropNamespace { name: String, if_exists: bool, cascade: bool },
    CreateTable(Box<CreateTable>),
    AlterTable(Box<AlterTable>),
    DropTable { names: Vec<QualifiedName>, if_exists: bool },
    CreateUser(CreateUser),
    AlterUser { name: String, change: UserChange },
    DropUser { name: String, if_exists: bool },
    CreateStorage(CreateStorage),
    AlterStorage { name: String, options: StorageOptions },
    DropStorage { name: String, if_exists: bool },
    CheckStorage { name: String },
    Use { namespace: String },
    Set(SetValue),
    ResetAll,
    Show(Show),
    Describe { table: QualifiedName },
    KillQuery { id: String },
    KillSession { id: String },
    KillLiveQuery { id: String },
    KillJob { id: String },
    Maintain(MaintenanceKind, MaintenanceTarget),
    Backup(BackupUrl),
    ShowManifest { table: QualifiedName },
    Subscribe(Box<Subscribe>),
}

impl Statement {
    /// Returns what the statement is, in SQL words.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Query(_) => "SELECT",
            Self::Explain(_) => "EXPLAIN",
            Self::Insert(_) => "INSERT",
            Self::Update(_) => "UPDATE",
            Self::Delete(_) => "DELETE",
            Self::CreateNamespace { .. } => "CREATE NAMESPACE",
            Self::DropNamespace { .. } => "DROP NAMESPACE",
            Self::CreateTable(_) => "CREATE TABLE",
            Self::AlterTable(_) => "ALTER TABLE",
            Self::DropTable { .. } => "DROP TABLE",
            Self::CreateUser(_) => "CREATE USER",
            Self::AlterUser { .. } => "ALTER USER",
            Self::DropUser { .. } => "DROP USER",
            Self::CreateStorage(_) => "CREATE STORAGE",
            Self::AlterStorage { .. } => "ALTER STORAGE",
            Self::DropStorage { .. } => "DROP STORAGE",
            Self::CheckStorage { .. } => "STORAGE CHECK",
            Self::Use { .. } => "USE",
            Self::Set(_) => "SET",
            Self::ResetAll => "RESET",
            Self::Show(_) | Self::ShowManifest { .. } => "SHOW",
            Self::Describe { .. } => "DESCRIBE",
            Self::KillQuery { .. }
            | Self::KillSession { .. }
            | Self::KillLiveQuery { .. }
            | Self::KillJob { .. } => "KILL",
            Self::Maintain(MaintenanceKind::Flush, _) => "FLUSH",
            Self::Maintain(MaintenanceKind::Compact, _) => "STORAGE COMPACT",
            Self::Backup(_) => "BACKUP",
            Self::Subscribe(_) => "SUBSCRIBE",
        }
    }

    /// Whether the text may contain a password.
    pub(crate) fn has_secret(&self) -> bool {
        matches!(self, Self::CreateUser(_) | Self::AlterUser { .. })
    }
}

/// `INSERT INTO table (columns) source`.
#[derive(Clone, Debug)]
pub(crate) struct Insert {
    pub(crate) table: QualifiedName,
    /// Empty for the table's first columns.
    pub(crate) columns: Vec<String>,
    /// `None` for DEFAULT VALUES.
    pub(crate) source: Option<Box<ast::Query>>,
}

/// `UPDATE table SET assignments WHERE selection`.
#[derive(Clone, Debug)]
pub(crate) struct Update {
    pub(crate) table: ast::TableWithJoins,
    pub(crate) assignments: Vec<ast::Assignment>,
    pub(crate) selection: Option<ast::Expr>,
}

/// `DELETE FROM table WHERE selection`.
#[derive(Clone, Debug)]
pub(crate) struct Delete {
    pub(crate) table: ast::TableWithJoins,
    pub(crate) selection: Option<ast::Expr>,
}

/// `CREATE USER`.
#[derive(Clone)]
pub(crate) struct CreateUser {
    pub(crate) name: String,
    pub(crate) if_not_exists: bool,
    pub(crate) password: String,
    pub(crate) role: Role,
    pub(crate) email: Option<String>,
}

/// A change by `ALTER USER`.
#[derive(Clone)]
pub(crate) enum UserChange {
    Password(String),
    Role(Role),
    Email(String),
    /// A setting; `None` removes it.
    Setting(TimeSetting, Option<u64>),
}

// A derived `Debug` would print the password, and a log line might then have one.
impl std::fmt::Debug for CreateUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreateUser")
            .field("name", &self.name)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for UserChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Password(_) => f.write_str("Password"),
            Self::Role(role) => f.debug_tuple("Role").field(role).finish(),
            Self::Email(email) => f.debug_tuple("Email").field(email).finish(),
            Self::Setting(setting, value) => f.debug_tuple("Setting").field(setting).field(value).finish(),
        }
    }
}

/// The subject of `SHOW`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Show {
    Namespaces,
    /// Tables of one namespace, or of all.
    Tables(Option<String>),
    Users,
    Storages,
    Jobs,
    LiveQueries,
    Stats,
    Queries,
    Sessions,
    SearchPath,
    Setting(Setting),
}

/// `SUBSCRIBE TO (SELECT ...) [WITH (...)]`.
#[derive(Clone, Debug)]
pub(crate) struct Subscribe {
    pub(crate) query: Box<ast::Query>,
    /// The request of the options; `sql` is the query's text, `params` is empty.
    pub(crate) request: SubscribeRequest,
}

/// The maintenance that a statement asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MaintenanceKind {
    /// Moves hot rows to cold segments.
    Flush,
    /// Compacts segments.
    Compact,
}

/// The tables to flush or compact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MaintenanceTarget {
    /// One table.
    Table(QualifiedName),
    /// The tables of one namespace, or all.
    All(Option<String>),
}

/// The options of a storage in WITH or SET, by name.
pub(crate) type StorageOptions = BTreeMap<String, String>;

/// `CREATE STORAGE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CreateStorage {
    pub(crate) name: String,
    pub(crate) if_not_exists: bool,
    pub(crate) options: StorageOptions,
}
