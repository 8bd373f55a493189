//! The grammar of SET and RESET.
//!
//! ```text
//! SET [SESSION | LOCAL] setting {= | TO} {value | DEFAULT}      RESET setting | RESET ALL
//! SET [SESSION | LOCAL] {search_path {= | TO} | NAMESPACE [= | TO] | SCHEMA [= | TO]} namespace
//! ```

use datafusion::sql::sqlparser::tokenizer::Token;

use super::cursor::Cursor;
use super::statement::Statement;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::schema_registry::NAMESPACE_PUBLIC;
use crate::sql::settings::{SetValue, Setting, TimeSetting};

/// Words after SET that are no setting of ours but mean something in PostgreSQL or in SQL.
const UNSUPPORTED: [&str; 7] =
    ["timezone", "time", "transaction", "characteristics", "constraints", "role", "names"];

/// Parses the part after SET.
pub(super) fn set(cursor: &mut Cursor<'_>) -> Result<Statement> {
    let _ = cursor.keyword("SESSION") || cursor.keyword("LOCAL");
    if cursor.keyword("NAMESPACE") || cursor.keyword("SCHEMA") {
        let _ = cursor.token(&Token::Eq) || cursor.keyword("TO");
        return Ok(Statement::Use { namespace: cursor.string_or_name("namespace")? });
    }
    if cursor.keyword("SEARCH_PATH") {
        assign(cursor)?;
        let namespace = cursor.string_or_name("namespace")?;
        if cursor.peek() == Some(&Token::Comma) {
            return Err(Error::unsupported("a search_path of several namespaces"));
        }
        return Ok(Statement::Use { namespace });
    }
    let setting = setting(cursor, "SET")?;
    Ok(Statement::Set(value(cursor, setting)?))
}

/// Parses the part after RESET.
pub(super) fn reset(cursor: &mut Cursor<'_>) -> Result<Statement> {
    if cursor.keyword("ALL") {
        return Ok(Statement::ResetAll);
    }
    if cursor.keyword("SEARCH_PATH") {
        return Ok(Statement::Use { namespace: NAMESPACE_PUBLIC.to_owned() });
    }
    Ok(Statement::Set(setting(cursor, "RESET")?.value(None)?))
}

/// Parses the rest of `SET setting`.
fn value(cursor: &mut Cursor<'_>, setting: Setting) -> Result<SetValue> {
    assign(cursor)?;
    if cursor.keyword("DEFAULT") {
        return setting.value(None);
    }
    let sign = if cursor.token(&Token::Minus) { "-" } else { "" };
    let text = cursor.value(&format!("the value of setting \"{}\"", setting.name()))?;
    setting.value(Some(&format!("{sign}{text}")))
}

/// Parses `setting {= | TO} {time | DEFAULT}` if a setting with a time comes next; `None` for the default.
pub(super) fn time(cursor: &mut Cursor<'_>) -> Result<Option<(TimeSetting, Option<u64>)>> {
    let Some(setting) = time_name(cursor) else { return Ok(None) };
    match value(cursor, Setting::Time(setting))? {
        SetValue::Time(setting, ms) => Ok(Some((setting, ms))),
        SetValue::ApplicationName(_) => Ok(None),
    }
}

/// Takes the name of a setting with a time, if it comes next.
pub(super) fn time_name(cursor: &mut Cursor<'_>) -> Option<TimeSetting> {
    TimeSetting::ALL.into_iter().find(|setting| cursor.keyword(setting.name()))
}

fn assign(cursor: &mut Cursor<'_>) -> Result<()> {
    if cursor.token(&Token::Eq) { Ok(()) } else { cursor.expect_keyword("TO") }
}

fn setting(cursor: &mut Cursor<'_>, statement: &str) -> Result<Setting> {
    let name = cursor.value("the name of a setting")?;
    if let Some(setting) = Setting::parse(&name) {
        return Ok(setting);
    }
    if UNSUPPORTED.iter().any(|word| name.eq_ignore_ascii_case(word)) {
        return Err(Error::unsupported(format!("{statement} {name}")));
    }
    Err(Error::new(
        ErrorKind::NotFound,
        SqlState::UNDEFINED_OBJECT,
        format!("setting \"{name}\" does not exist"),
    )
    .hint("settings are search_path, statement_timeout, idle_session_timeout and application_name"))
}
