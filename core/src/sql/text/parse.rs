//! Parses statements: with the database's own grammar where PostgreSQL has none, else with the SQL parser.
//!
//! Invariant: nothing is parsed and ignored: a clause without effect and an unsupported statement are 0A000
//! errors that name it. Only BACKUP and storages name places outside the data, and BACKUP overwrites nothing.

use std::sync::Arc;

use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use super::cursor::Cursor;
use super::dialect::{BoundedDialect, parser};
use super::statement::{Parsed, Statement};
use super::{
    alter_table, clauses, create_table, guard, keywords, parameters, settings, show, storages, subscribe,
    users, writes,
};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::sql::syntax_tree::syntax_error;
use crate::sql::workarounds::syntax;

/// Parses one statement.
///
/// # Errors
/// 42601 for text that cannot be parsed, 54000 and 54001 from the guard, 0A000 for an unsupported statement.
pub(crate) fn parse(sql: &str, config: &Config) -> Result<Parsed> {
    let mut tokens = guard::tokenize(sql, config)?;
    let parameters = parameters::number(&mut tokens, config.parameters_max)?;
    drop_empty_parentheses(&mut tokens);
    let names_seq = tokens.iter().any(|token| is_seq(&token.token));
    let mut statement = match parse_own(&tokens)? {
        Some(statement) => statement,
        None => parse_with_sqlparser(&tokens)?,
    };
    let has_expressions = check_and_rewrite(&mut statement)?;
    if parameters.count > 0 && !has_expressions {
        return Err(
            Error::syntax("this statement takes no parameters").hint("write the values into the statement")
        );
    }
    Ok(Parsed { sql: Arc::from(sql), statement, parameters, names_seq, has_expressions })
}

/// Refuses clauses without effect, and rewrites syntax that the planner does not understand. Returns whether
/// the statement has expressions.
fn check_and_rewrite(statement: &mut Statement) -> Result<bool> {
    fn both(part: &mut (impl ast::Visit + ast::VisitMut)) -> Result<()> {
        clauses::check(part)?;
        syntax::rewrite(part)
    }
    match statement {
        Statement::Query(query) => both(&mut **query)?,
        Statement::Explain(statement) => both(&mut **statement)?,
        Statement::Insert(insert) => both(&mut insert.source)?,
        Statement::Update(update) => {
            both(&mut update.table)?;
            both(&mut update.assignments)?;
            both(&mut update.selection)?;
        }
        Statement::Delete(delete) => {
            both(&mut delete.table)?;
            both(&mut delete.selection)?;
        }
        Statement::Subscribe(subscribe) => both(&mut *subscribe.query)?,
        Statement::CreateNamespace { .. }
        | Statement::DropNamespace { .. }
        | Statement::CreateTable(_)
        | Statement::AlterTable(_)
        | Statement::DropTable { .. }
        | Statement::CreateUser(_)
        | Statement::AlterUser { .. }
        | Statement::DropUser { .. }
        | Statement::CreateStorage(_)
        | Statement::AlterStorage { .. }
        | Statement::DropStorage { .. }
        | Statement::CheckStorage { .. }
        | Statement::Use { .. }
        | Statement::Set(_)
        | Statement::ResetAll
        | Statement::Show(_)
        | Statement::Describe { .. }
        | Statement::KillQuery { .. }
        | Statement::KillSession { .. }
        | Statement::KillLiveQuery { .. }
        | Statement::KillJob { .. }
        | Statement::Maintain(..)
        | Statement::Backup(_)
        | Statement::ShowManifest { .. } => return Ok(false),
    }
    Ok(true)
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

/// Parses a statement of the database's own grammar; `None` for any other.
fn parse_own(tokens: &[TokenWithSpan]) -> Result<Option<Statement>> {
    let mut cursor = Cursor::new(tokens);
    let statement = if cursor.keyword("CREATE") {
        create(&mut cursor, tokens)?
    } else if cursor.keyword("DROP") {
        drop(&mut cursor, tokens)?
    } else if cursor.keywords(&["ALTER", "TABLE"]) {
        Statement::AlterTable(Box::new(alter_table::parse(&mut cursor)?))
    } else if cursor.keywords(&["ALTER", "USER"]) {
        users::alter(&mut cursor)?
    } else if cursor.keywords(&["ALTER", "STORAGE"]) {
        storages::alter(&mut cursor)?
    } else if cursor.keyword("USE") {
        let _ = cursor.keyword("NAMESPACE") || cursor.keyword("SCHEMA");
        Statement::Use { namespace: cursor.string_or_name("namespace")? }
    } else if cursor.keyword("SET") {
        settings::set(&mut cursor)?
    } else if cursor.keyword("RESET") {
        settings::reset(&mut cursor)?
    } else if cursor.keyword("SHOW") {
        show::parse(&mut cursor)?
    } else if cursor.keyword("DESCRIBE") || cursor.keyword("DESC") {
        cursor.keyword("TABLE");
        Statement::Describe { table: cursor.qualified_name("table")? }
    } else if cursor.keyword("KILL") {
        kill(&mut cursor)?
    } else if cursor.keyword("SUBSCRIBE") {
        subscribe::parse(&mut cursor)?
    } else if let Some(statement) = storages::parse(&mut cursor)? {
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

fn kill(cursor: &mut Cursor<'_>) -> Result<Statement> {
    if cursor.keyword("QUERY") {
        return Ok(Statement::KillQuery { id: cursor.value("the id of a query")? });
    }
    if cursor.keyword("SESSION") {
        return Ok(Statement::KillSession { id: cursor.value("the id of a session")? });
    }
    if cursor.keywords(&["LIVE", "QUERY"]) {
        return Ok(Statement::KillLiveQuery { id: cursor.value("the id of a live query")? });
    }
    if cursor.keyword("JOB") {
        return Ok(Statement::KillJob { id: cursor.value("the id of a job")? });
    }
    Err(Error::unsupported("KILL of anything but a QUERY, a SESSION, a LIVE QUERY or a JOB"))
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
        return users::create(cursor);
    }
    if cursor.keyword("STORAGE") {
        return storages::create(cursor);
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
        return users::drop(cursor);
    }
    if cursor.keyword("STORAGE") {
        return storages::drop(cursor);
    }
    Err(Error::unsupported(leading_words(tokens, 2)))
}

/// Parses a statement with the SQL parser.
fn parse_with_sqlparser(tokens: &[TokenWithSpan]) -> Result<Statement> {
    let dialect = BoundedDialect::new(tokens);
    let mut parser = parser(tokens, &dialect);
    let statement = parser.parse_statement().map_err(syntax_error)?;
    if parser.peek_token().token != Token::EOF {
        let found = parser.peek_token();
        return Err(Error::syntax(format!(
            "unexpected {found} at line {}, column {}",
            found.span.start.line, found.span.start.column
        )));
    }
    match statement {
        ast::Statement::Query(query) => query_or_write(query),
        ast::Statement::Insert(insert) => Ok(Statement::Insert(Box::new(writes::insert(insert)?))),
        ast::Statement::Update(update) => Ok(Statement::Update(Box::new(writes::update(update)?))),
        ast::Statement::Delete(delete) => Ok(Statement::Delete(Box::new(writes::delete(delete)?))),
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
        | ast::SetExpr::Merge(_) => Err(Error::unsupported("WITH before INSERT, UPDATE, DELETE or MERGE")),
        _ => Ok(Statement::Query(query)),
    }
}

/// Returns the name of a statement whose first words show that the database lacks it.
fn unsupported(tokens: &[TokenWithSpan]) -> Option<String> {
    const FEATURES: [(&[&str], &str); 29] = [
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
