//! The grammar of statements about storages, of FLUSH and COMPACT, and of BACKUP.
//!
//! ```text
//! CREATE STORAGE [IF NOT EXISTS] id WITH (URL='...', ...)     ALTER STORAGE id SET (NAME='...', ...)
//! DROP STORAGE [IF EXISTS] id                                 STORAGE CHECK id
//! FLUSH TABLE [namespace.]table                STORAGE FLUSH TABLE [namespace.]table
//! FLUSH ALL TABLES [IN [NAMESPACE] namespace]  STORAGE FLUSH ALL [IN [NAMESPACE] namespace]
//!                                              STORAGE COMPACT TABLE [namespace.]table
//!                                              STORAGE COMPACT ALL [IN [NAMESPACE] namespace]
//! BACKUP DATABASE TO 'url'
//! ```

use super::cursor::Cursor;
use super::statement::{CreateStorage, MaintenanceKind, MaintenanceTarget, Statement};
use crate::error::{Error, Result};
use crate::maintenance::BackupUrl;

/// Parses the part after CREATE STORAGE.
pub(super) fn create(cursor: &mut Cursor<'_>) -> Result<Statement> {
    let if_not_exists = cursor.keywords(&["IF", "NOT", "EXISTS"]);
    let name = cursor.name("storage")?;
    cursor.expect_keyword("WITH")?;
    let options = cursor.options()?.into_iter().collect();
    Ok(Statement::CreateStorage(CreateStorage { name, if_not_exists, options }))
}

/// Parses the part after ALTER STORAGE.
pub(super) fn alter(cursor: &mut Cursor<'_>) -> Result<Statement> {
    let name = cursor.name("storage")?;
    cursor.expect_keyword("SET")?;
    Ok(Statement::AlterStorage { name, options: cursor.options()?.into_iter().collect() })
}

/// Parses the part after DROP STORAGE.
pub(super) fn drop(cursor: &mut Cursor<'_>) -> Result<Statement> {
    let if_exists = cursor.keywords(&["IF", "EXISTS"]);
    Ok(Statement::DropStorage { name: cursor.name("storage")?, if_exists })
}

/// Parses a statement that begins with FLUSH, STORAGE or BACKUP; `None` for any other.
pub(super) fn parse(cursor: &mut Cursor<'_>) -> Result<Option<Statement>> {
    if cursor.keyword("BACKUP") {
        return backup(cursor).map(Some);
    }
    let kind = if cursor.keyword("STORAGE") {
        if cursor.keyword("FLUSH") {
            MaintenanceKind::Flush
        } else if cursor.keyword("COMPACT") {
            MaintenanceKind::Compact
        } else if cursor.keyword("CHECK") {
            return Ok(Some(Statement::CheckStorage { name: cursor.name("storage")? }));
        } else {
            return Err(Error::unsupported("STORAGE other than FLUSH, COMPACT or CHECK"));
        }
    } else if cursor.keyword("FLUSH") {
        MaintenanceKind::Flush
    } else {
        return Ok(None);
    };
    if cursor.keyword("TABLE") {
        return Ok(Some(Statement::Maintain(
            kind,
            MaintenanceTarget::Table(cursor.qualified_name("table")?),
        )));
    }
    if !cursor.keyword("ALL") {
        return Err(cursor.unexpected("TABLE or ALL"));
    }
    cursor.keyword("TABLES");
    let namespace = if cursor.keyword("IN") {
        cursor.keyword("NAMESPACE");
        Some(cursor.name("namespace")?)
    } else {
        None
    };
    Ok(Some(Statement::Maintain(kind, MaintenanceTarget::All(namespace))))
}

fn backup(cursor: &mut Cursor<'_>) -> Result<Statement> {
    cursor.expect_keyword("DATABASE")?;
    cursor.expect_keyword("TO")?;
    // The error does not show the text found instead: it may be a URL with credentials.
    let url =
        cursor.string("a url").map_err(|_| Error::syntax("expected the url of a backup in single quotes"))?;
    Ok(Statement::Backup(BackupUrl::parse(&url)?))
}
