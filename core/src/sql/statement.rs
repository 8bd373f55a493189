//! Parses statements: with the database's own grammar where PostgreSQL has none, else with the SQL parser.
//!
//! Invariant: nothing is parsed and ignored: a clause without effect and an unsupported statement are 0A000
//! errors that name it. Only BACKUP and storages name places outside the data, and BACKUP overwrites nothing.

use std::sync::Arc;
use std::time::Duration;

use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use super::cursor::{Cursor, QualifiedName, parser, qualified, syntax};
use super::dialect::BoundedDialect;
use super::parameters::{self, ParameterNames};
use super::storage_statement::{CreateStorage, MoveKind, MoveTarget, StorageOptions};
use super::workarounds::syntax;
use super::{alter_table, clauses, create_table, guard, keywords, storage_statement};
use crate::access::Role;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::ids::Seq;
use crate::live_query::{SnapshotMode, SubscribeRequest, SubscribeStart, token_from_text};
use crate::maintenance::BackupUrl;

pub(crate) use super::alter_table::AlterTable;
pub(crate) use super::create_table::CreateTable;

/// A parsed statement.
#[derive(Clone, Debug)]
pub(crate) enum Statement {
    Query(Box<ast::Query>),
    Explain(Box<ast::Statement>),
    Insert(Box<ast::Insert>),
    Update(Box<ast::Update>),
    Delete(Box<ast::Delete>),
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
    Show(Show),
    Describe { table: QualifiedName },
    KillLiveQuery { id: String },
    KillJob { id: String },
    Move(MoveKind, MoveTarget),
    Backup(BackupUrl),
    ShowManifest { table: QualifiedName },
    Subscribe(Box<Subscribe>),
}

impl Statement {
    /// Refuses clauses without effect, and rewrites syntax that the planner does not understand.
    fn check_and_rewrite(&mut self) -> Result<()> {
        fn both(statement: &mut (impl ast::Visit + ast::VisitMut)) -> Result<()> {
            clauses::check(statement)?;
            syntax::rewrite(statement)
        }
        match self {
            Self::Query(query) => both(&mut **query),
            Self::Explain(statement) => both(&mut **statement),
            Self::Insert(insert) => both(&mut **insert),
            Self::Update(update) => both(&mut **update),
            Self::Delete(delete) => both(&mut **delete),
            Self::Subscribe(subscribe) => both(&mut *subscribe.query),
            _ => Ok(()),
        }
    }
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
}

// `Debug` never prints a password, so that no log line has one.
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
    SearchPath,
}

/// `SUBSCRIBE TO (SELECT ...) [WITH (...)]`.
#[derive(Clone, Debug)]
pub(crate) struct Subscribe {
    pub(crate) query: Box<ast::Query>,
    /// The request of the options; `sql` is the query's text, `params` is empty.
    pub(crate) request: SubscribeRequest,
}

/// A statement that passed the guard and the parser.
#[derive(Clone, Debug)]
pub(crate) struct Parsed {
    pub(crate) sql: Arc<str>,
    pub(crate) statement: Statement,
    pub(crate) parameters: ParameterNames,
    /// The text names `_seq`, so tables show it (never in wildcards).
    pub(crate) names_seq: bool,
}

/// Parses one statement.
///
/// # Errors
/// 42601 for text that cannot be parsed, 54000 and 54001 from the guard, 0A000 for an unsupported statement.
pub(crate) fn parse(sql: &str, config: &Config) -> Result<Parsed> {
    let mut tokens = guard::tokenize(sql, config)?;
    let parameters = parameters::number(&mut tokens, config.parameters_max)?;
    drop_empty_parentheses(&mut tokens);
    let names_seq = tokens.iter().any(|token| is_seq(&token.token));
    let mut statement = match own_grammar(&tokens)? {
        Some(statement) => statement,
        None => foreign_grammar(&tokens)?,
    };
    statement.check_and_rewrite()?;
    if parameters.count > 0 && !takes_parameters(&statement) {
        return Err(
            Error::syntax("this statement takes no parameters").hint("write the values into the text")
        );
    }
    Ok(Parsed { sql: Arc::from(sql), statement, parameters, names_seq })
}

/// Drops the parentheses of `CURRENT_USER()`, which standard SQL and the SQL parser write without them.
fn drop_empty_parentheses(tokens: &mut Vec<TokenWithSpan>) {
    const BARE: [&str; 4] = ["current_user", "session_user", "user", "current_catalog"];
    let is_bare = |token: &TokenWithSpan| {
        matches!(&token.token, Token::Word(word)
            if word.quote_style.is_none() && BARE.iter().any(|bare| word.value.eq_ignore_ascii_case(bare)))
    };
    let empty: Vec<usize> = tokens
        .windows(3)
        .enumerate()
        .filter(|(_, window)| match window {
            [name, open, close] => {
                is_bare(name) && open.token == Token::LParen && close.token == Token::RParen
            }
            _ => false,
        })
        .map(|(index, _)| index + 1)
        .collect();
    for index in empty.into_iter().rev() {
        tokens.drain(index..index + 2);
    }
}

fn is_seq(token: &Token) -> bool {
    let Token::Word(word) = token else { return false };
    word.value == "_seq" || (word.quote_style.is_none() && word.value.eq_ignore_ascii_case("_seq"))
}

fn takes_parameters(statement: &Statement) -> bool {
    matches!(
        statement,
        Statement::Query(_)
            | Statement::Explain(_)
            | Statement::Insert(_)
            | Statement::Update(_)
            | Statement::Delete(_)
            | Statement::Subscribe(_)
    )
}

/// Parses a statement of the database's own grammar; `None` for any other.
fn own_grammar(tokens: &[TokenWithSpan]) -> Result<Option<Statement>> {
    let mut cursor = Cursor::new(tokens);
    let statement = if cursor.keyword("CREATE") {
        create(&mut cursor, tokens)?
    } else if cursor.keyword("DROP") {
        drop(&mut cursor, tokens)?
    } else if cursor.keywords(&["ALTER", "TABLE"]) {
        Statement::AlterTable(Box::new(alter_table::parse(&mut cursor)?))
    } else if cursor.keywords(&["ALTER", "USER"]) {
        alter_user(&mut cursor)?
    } else if cursor.keywords(&["ALTER", "STORAGE"]) {
        storage_statement::alter(&mut cursor)?
    } else if cursor.keyword("USE") {
        let _ = cursor.keyword("NAMESPACE") || cursor.keyword("SCHEMA");
        Statement::Use { namespace: cursor.string_or_name("namespace")? }
    } else if cursor.keyword("SET") {
        set(&mut cursor)?
    } else if cursor.keyword("SHOW") {
        show(&mut cursor)?
    } else if cursor.keyword("DESCRIBE") || cursor.keyword("DESC") {
        cursor.keyword("TABLE");
        Statement::Describe { table: cursor.qualified_name("table")? }
    } else if cursor.keyword("KILL") {
        if cursor.keyword("JOB") {
            Statement::KillJob { id: cursor.value("the id of a job")? }
        } else if cursor.keywords(&["LIVE", "QUERY"]) {
            Statement::KillLiveQuery { id: cursor.value("the id of a live query")? }
        } else {
            return Err(Error::unsupported("KILL of anything but a LIVE QUERY or a JOB"));
        }
    } else if cursor.keyword("SUBSCRIBE") {
        subscribe(&mut cursor)?
    } else if let Some(statement) = storage_statement::parse(&mut cursor)? {
        statement
    } else {
        return match unsupported(tokens) {
            Some(feature) => Err(Error::unsupported(feature)),
            None => Ok(None),
        };
    };
    cursor.expect_end()?;
    Ok(Some(statement))
}

fn create(cursor: &mut Cursor<'_>, tokens: &[TokenWithSpan]) -> Result<Statement> {
    if cursor.keyword("NAMESPACE") || cursor.keyword("SCHEMA") {
        let if_not_exists = cursor.keywords(&["IF", "NOT", "EXISTS"]);
        let name = keywords::name(cursor, "namespace")?;
        return Ok(Statement::CreateNamespace { name, if_not_exists });
    }
    if let Some(kind) = create_table::kind(cursor) {
        return Ok(Statement::CreateTable(Box::new(create_table::parse(cursor, kind)?)));
    }
    if cursor.keyword("USER") {
        return create_user(cursor);
    }
    if cursor.keyword("STORAGE") {
        return storage_statement::create(cursor);
    }
    Err(Error::unsupported(leading_words(tokens, 2)))
}

fn drop(cursor: &mut Cursor<'_>, tokens: &[TokenWithSpan]) -> Result<Statement> {
    if cursor.keyword("NAMESPACE") || cursor.keyword("SCHEMA") {
        let if_exists = cursor.keywords(&["IF", "EXISTS"]);
        let name = cursor.name("namespace")?;
        let cascade = cursor.keyword("CASCADE");
        if !cascade {
            cursor.keyword("RESTRICT");
        }
        return Ok(Statement::DropNamespace { name, if_exists, cascade });
    }
    if create_table::kind(cursor).is_some() {
        let if_exists = cursor.keywords(&["IF", "EXISTS"]);
        let mut names = vec![cursor.qualified_name("table")?];
        while cursor.token(&Token::Comma) {
            names.push(cursor.qualified_name("table")?);
        }
        // Nothing depends on a table, so both words mean the same.
        let _ = cursor.keyword("CASCADE") || cursor.keyword("RESTRICT");
        return Ok(Statement::DropTable { names, if_exists });
    }
    if cursor.keyword("USER") {
        let if_exists = cursor.keywords(&["IF", "EXISTS"]);
        return Ok(Statement::DropUser { name: cursor.string_or_name("user")?, if_exists });
    }
    if cursor.keyword("STORAGE") {
        return storage_statement::drop(cursor);
    }
    Err(Error::unsupported(leading_words(tokens, 2)))
}

fn create_user(cursor: &mut Cursor<'_>) -> Result<Statement> {
    let if_not_exists = cursor.keywords(&["IF", "NOT", "EXISTS"]);
    let name = cursor.string_or_name("user")?;
    cursor.keyword("WITH");
    if cursor.keyword("OAUTH") || cursor.keyword("INTERNAL") {
        return Err(Error::unsupported("CREATE USER without a password"));
    }
    cursor.expect_keyword("PASSWORD")?;
    let password = cursor.string("a password")?;
    let (mut role, mut email) = (None, None);
    loop {
        if role.is_none() && cursor.keyword("ROLE") {
            role = Some(Role::parse(&cursor.string_or_name("role")?)?);
        } else if email.is_none() && cursor.keyword("EMAIL") {
            email = Some(cursor.string("an e-mail address")?);
        } else {
            break;
        }
    }
    let role = role.unwrap_or(Role::User);
    Ok(Statement::CreateUser(CreateUser { name, if_not_exists, password, role, email }))
}

fn alter_user(cursor: &mut Cursor<'_>) -> Result<Statement> {
    let name = cursor.string_or_name("user")?;
    cursor.expect_keyword("SET")?;
    let change = if cursor.keyword("PASSWORD") {
        UserChange::Password(cursor.string("a password")?)
    } else if cursor.keyword("ROLE") {
        UserChange::Role(Role::parse(&cursor.string_or_name("role")?)?)
    } else if cursor.keyword("EMAIL") {
        UserChange::Email(cursor.string("an e-mail address")?)
    } else {
        return Err(cursor.unexpected("PASSWORD, ROLE or EMAIL"));
    };
    Ok(Statement::AlterUser { name, change })
}

/// `SET search_path = x`, `SET search_path TO x`, `SET NAMESPACE x`, `SET SCHEMA x`.
fn set(cursor: &mut Cursor<'_>) -> Result<Statement> {
    let _ = cursor.keyword("SESSION") || cursor.keyword("LOCAL");
    if cursor.keyword("NAMESPACE") || cursor.keyword("SCHEMA") {
        let _ = cursor.token(&Token::Eq) || cursor.keyword("TO");
        return Ok(Statement::Use { namespace: cursor.string_or_name("namespace")? });
    }
    if cursor.keyword("SEARCH_PATH") {
        if !cursor.token(&Token::Eq) {
            cursor.expect_keyword("TO")?;
        }
        let namespace = cursor.string_or_name("namespace")?;
        if cursor.peek() == Some(&Token::Comma) {
            return Err(Error::unsupported("a search_path of several namespaces"));
        }
        return Ok(Statement::Use { namespace });
    }
    let name = cursor.value("the name of a setting").unwrap_or_default();
    Err(Error::unsupported(format!("SET {name}")).hint("SET search_path = namespace is there"))
}

fn show(cursor: &mut Cursor<'_>) -> Result<Statement> {
    if cursor.keywords(&["MANIFEST", "FOR"]) {
        return Ok(Statement::ShowManifest { table: cursor.qualified_name("table")? });
    }
    let show = if cursor.keyword("NAMESPACES") || cursor.keyword("SCHEMAS") {
        Show::Namespaces
    } else if cursor.keyword("TABLES") {
        let namespace = if cursor.keyword("IN") || cursor.keyword("FROM") {
            cursor.keyword("NAMESPACE");
            Some(cursor.name("namespace")?)
        } else {
            None
        };
        Show::Tables(namespace)
    } else if cursor.keyword("COLUMNS") {
        if !cursor.keyword("FROM") {
            cursor.expect_keyword("IN")?;
        }
        return Ok(Statement::Describe { table: cursor.qualified_name("table")? });
    } else if cursor.keyword("USERS") {
        Show::Users
    } else if cursor.keyword("STORAGES") {
        Show::Storages
    } else if cursor.keyword("JOBS") {
        Show::Jobs
    } else if cursor.keywords(&["LIVE", "QUERIES"]) {
        Show::LiveQueries
    } else if cursor.keyword("STATS") {
        Show::Stats
    } else if cursor.keyword("SEARCH_PATH") {
        Show::SearchPath
    } else {
        return Err(cursor.unexpected(
            "NAMESPACES, TABLES, COLUMNS, USERS, STORAGES, JOBS, LIVE QUERIES, MANIFEST FOR, STATS or search_path",
        ));
    };
    Ok(Statement::Show(show))
}

fn subscribe(cursor: &mut Cursor<'_>) -> Result<Statement> {
    cursor.expect_keyword("TO")?;
    let Some(len) = cursor.group_len() else {
        return Err(cursor.unexpected("a SELECT in parentheses"));
    };
    let inner = cursor.rest().get(1..len - 1).unwrap_or_default();
    let dialect = BoundedDialect::new(inner);
    let mut parser = parser(inner, &dialect);
    let query = parser.parse_query().map_err(syntax)?;
    if parser.peek_token().token != Token::EOF {
        return Err(Error::syntax(format!("unexpected {} in the query of SUBSCRIBE", parser.peek_token())));
    }
    cursor.skip(len);
    let mut request = SubscribeRequest::new(query.to_string());
    if cursor.keyword("WITH") {
        for (name, value) in cursor.options()? {
            subscribe_option(&mut request, &name, &value)?;
        }
    }
    Ok(Statement::Subscribe(Box::new(Subscribe { query, request })))
}

fn subscribe_option(request: &mut SubscribeRequest, name: &str, value: &str) -> Result<()> {
    let wrong = |hint: &str| Error::invalid(format!("option \"{name}\" cannot be \"{value}\"")).hint(hint);
    let number = || value.parse::<u64>().map_err(|_| wrong("it is a whole number"));
    let size = || value.parse::<usize>().map_err(|_| wrong("it is a whole number"));
    match name {
        "snapshot" => {
            request.snapshot = match value.to_ascii_lowercase().as_str() {
                "include" | "true" => SnapshotMode::Include,
                "skip" | "false" => SnapshotMode::Skip,
                "only" => SnapshotMode::Only,
                _ => return Err(wrong("it is include, skip or only")),
            };
        }
        "resume_token" => {
            let token = token_from_text(value).map_err(|_| wrong("it is a token from a frame, in base64"))?;
            request.start = SubscribeStart::Token(token);
        }
        "after_seq" => request.start = SubscribeStart::AfterSeq(Seq(number()?)),
        "up_to_seq" => request.up_to_seq = Some(Seq(number()?)),
        "max_rows" => request.max_rows = size()?,
        "max_bytes" => request.max_bytes = size()?,
        "heartbeat_ms" => request.heartbeat = Duration::from_millis(number()?),
        "label" => value.clone_into(&mut request.label),
        _ => {
            return Err(Error::invalid(format!("SUBSCRIBE has no option \"{name}\"")).hint(
                "options are snapshot, resume_token, after_seq, up_to_seq, max_rows, max_bytes, heartbeat_ms and label",
            ));
        }
    }
    Ok(())
}

/// Parses a statement with the SQL parser.
fn foreign_grammar(tokens: &[TokenWithSpan]) -> Result<Statement> {
    let dialect = BoundedDialect::new(tokens.len());
    let mut parser = parser(tokens, &dialect);
    let statement = parser.parse_statement().map_err(syntax)?;
    if parser.peek_token().token != Token::EOF {
        let found = parser.peek_token();
        return Err(Error::syntax(format!(
            "unexpected {found} at line {}, column {}",
            found.span.start.line, found.span.start.column
        )));
    }
    match statement {
        ast::Statement::Query(query) => query_or_write(query),
        ast::Statement::Insert(insert) => Ok(Statement::Insert(Box::new(check_insert(insert)?))),
        ast::Statement::Update(update) => Ok(Statement::Update(Box::new(check_update(update)?))),
        ast::Statement::Delete(delete) => Ok(Statement::Delete(Box::new(check_delete(delete)?))),
        ast::Statement::Explain { .. } => explain(statement),
        _ => Err(Error::unsupported(leading_words(tokens, 2))),
    }
}

fn explain(statement: ast::Statement) -> Result<Statement> {
    match &statement {
        ast::Statement::Explain { statement: inner, .. } if matches!(**inner, ast::Statement::Query(_)) => {
            Ok(Statement::Explain(Box::new(statement)))
        }
        _ => Err(Error::unsupported("EXPLAIN of anything but a query")),
    }
}

/// Refuses `WITH x AS (...) INSERT ...`, which the parser reads as a query.
fn query_or_write(query: Box<ast::Query>) -> Result<Statement> {
    match *query.body {
        ast::SetExpr::Insert(_)
        | ast::SetExpr::Update(_)
        | ast::SetExpr::Delete(_)
        | ast::SetExpr::Merge(_) => Err(Error::unsupported("WITH in front of a write")),
        _ => Ok(Statement::Query(query)),
    }
}

fn check_insert(insert: ast::Insert) -> Result<ast::Insert> {
    let refuse = |condition: bool, feature: &str| {
        if condition { Err(Error::unsupported(feature)) } else { Ok(()) }
    };
    refuse(insert.on.is_some() || insert.or.is_some() || insert.ignore, "INSERT ... ON CONFLICT")?;
    refuse(insert.returning.is_some() || insert.output.is_some(), "RETURNING")?;
    refuse(insert.overwrite || insert.replace_into, "INSERT OVERWRITE and REPLACE")?;
    refuse(
        insert.table_alias.is_some() || insert.insert_alias.is_some(),
        "an alias for the table of INSERT",
    )?;
    refuse(!insert.assignments.is_empty(), "INSERT ... SET")?;
    refuse(insert.partitioned.is_some() || !insert.after_columns.is_empty(), "INSERT ... PARTITION")?;
    refuse(
        insert.settings.is_some()
            || insert.format_clause.is_some()
            || insert.multi_table_insert_type.is_some()
            || insert.priority.is_some(),
        "this form of INSERT",
    )?;
    Ok(insert)
}

fn check_update(update: ast::Update) -> Result<ast::Update> {
    let refuse = |condition: bool, feature: &str| {
        if condition { Err(Error::unsupported(feature)) } else { Ok(()) }
    };
    refuse(update.from.is_some() || !update.table.joins.is_empty(), "UPDATE ... FROM")?;
    refuse(update.returning.is_some() || update.output.is_some(), "RETURNING")?;
    refuse(update.or.is_some(), "UPDATE OR ...")?;
    refuse(update.limit.is_some() || !update.order_by.is_empty(), "UPDATE ... ORDER BY ... LIMIT")?;
    Ok(update)
}

fn check_delete(delete: ast::Delete) -> Result<ast::Delete> {
    let refuse = |condition: bool, feature: &str| {
        if condition { Err(Error::unsupported(feature)) } else { Ok(()) }
    };
    refuse(delete.using.is_some() || !delete.tables.is_empty(), "DELETE ... USING")?;
    refuse(delete.returning.is_some() || delete.output.is_some(), "RETURNING")?;
    refuse(delete.limit.is_some() || !delete.order_by.is_empty(), "DELETE ... ORDER BY ... LIMIT")?;
    Ok(delete)
}

/// Returns the name of a statement whose first words show that the database lacks it.
fn unsupported(tokens: &[TokenWithSpan]) -> Option<String> {
    const FEATURES: [(&[&str], &str); 30] = [
        (&["ALTER", "NAMESPACE"], "ALTER NAMESPACE"),
        (&["ALTER"], ""),
        (&["BEGIN"], "BEGIN"),
        (&["START", "TRANSACTION"], "START TRANSACTION"),
        (&["COMMIT"], "COMMIT"),
        (&["ROLLBACK"], "ROLLBACK"),
        (&["SAVEPOINT"], "SAVEPOINT"),
        (&["RELEASE"], "RELEASE SAVEPOINT"),
        (&["MERGE"], "MERGE"),
        (&["TRUNCATE"], "TRUNCATE"),
        (&["COPY"], "COPY"),
        (&["GRANT"], "GRANT"),
        (&["REVOKE"], "REVOKE"),
        (&["EXECUTE", "AS"], "EXECUTE AS USER"),
        (&["EXECUTE"], "EXECUTE"),
        (&["PREPARE"], "PREPARE"),
        (&["DEALLOCATE"], "DEALLOCATE"),
        (&["RESTORE"], "RESTORE"),
        (&["EXPORT"], "EXPORT"),
        (&["REPLACE"], "REPLACE"),
        (&["RESET"], "RESET"),
        (&["DECLARE"], "DECLARE"),
        (&["FETCH"], "FETCH"),
        (&["CALL"], "CALL"),
        (&["LISTEN"], "LISTEN"),
        (&["NOTIFY"], "NOTIFY"),
        (&["VACUUM"], "VACUUM"),
        (&["ANALYZE"], "ANALYZE"),
        (&["COMMENT"], "COMMENT"),
        (&["LOCK"], "LOCK"),
    ];
    FEATURES.iter().find_map(|(words, name)| {
        let found = Cursor::new(tokens).keywords(words);
        found.then(|| if name.is_empty() { leading_words(tokens, 2) } else { (*name).to_owned() })
    })
}

fn leading_words(tokens: &[TokenWithSpan], count: usize) -> String {
    let words: Vec<_> = tokens
        .iter()
        .take(count)
        .map_while(|token| match &token.token {
            Token::Word(word) => Some(word.value.to_uppercase()),
            _ => None,
        })
        .collect();
    if words.is_empty() { "this statement".to_owned() } else { words.join(" ") }
}

/// Returns the table that an INSERT names.
pub(crate) fn insert_target(insert: &ast::Insert) -> Result<QualifiedName> {
    match &insert.table {
        ast::TableObject::TableName(name) => qualified(name, "table"),
        _ => Err(Error::unsupported("INSERT into anything but a table")),
    }
}
