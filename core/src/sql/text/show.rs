//! The grammar of SHOW.
//!
//! ```text
//! SHOW NAMESPACES | SHOW TABLES [IN [NAMESPACE] namespace] | SHOW COLUMNS FROM [namespace.]table
//! SHOW USERS | SHOW STORAGES | SHOW JOBS | SHOW LIVE QUERIES | SHOW STATS | SHOW QUERIES | SHOW SESSIONS
//! SHOW search_path | SHOW setting
//! SHOW MANIFEST FOR [namespace.]table
//! ```

use super::cursor::Cursor;
use super::statement::{Show, Statement};
use crate::error::Result;
use crate::sql::settings::Setting;

/// Parses the part after SHOW.
pub(super) fn parse(cursor: &mut Cursor<'_>) -> Result<Statement> {
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
    } else if cursor.keyword("QUERIES") {
        Show::Queries
    } else if cursor.keyword("SESSIONS") {
        Show::Sessions
    } else if cursor.keyword("SEARCH_PATH") {
        Show::SearchPath
    } else if let Some(setting) = Setting::ALL.into_iter().find(|setting| cursor.keyword(setting.name())) {
        Show::Setting(setting)
    } else {
        return Err(cursor.unexpected(
            "NAMESPACES, TABLES, COLUMNS, USERS, STORAGES, JOBS, QUERIES, SESSIONS, LIVE QUERIES, \
             MANIFEST FOR, STATS, search_path or a setting",
        ));
    };
    Ok(Statement::Show(show))
}
