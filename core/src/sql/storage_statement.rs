//! The grammar of statements about where rows are: FLUSH, STORAGE FLUSH, SHOW MANIFEST, KILL JOB.
//!
//! ```text
//! FLUSH TABLE [namespace.]table                STORAGE FLUSH TABLE [namespace.]table
//! FLUSH ALL TABLES [IN [NAMESPACE] namespace]  STORAGE FLUSH ALL [IN [NAMESPACE] namespace]
//! ```

use super::cursor::{Cursor, QualifiedName};
use super::statement::Statement;
use crate::error::{Error, Result};

/// Which tables a FLUSH flushes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FlushTarget {
    /// One.
    Table(QualifiedName),
    /// Those of one namespace, or all.
    All(Option<String>),
}

/// What follows FLUSH or STORAGE.
pub(super) fn parse(cursor: &mut Cursor<'_>) -> Result<Option<Statement>> {
    if cursor.keyword("STORAGE") {
        if !cursor.keyword("FLUSH") {
            return Err(Error::unsupported("STORAGE with anything but FLUSH"));
        }
    } else if !cursor.keyword("FLUSH") {
        return Ok(None);
    }
    if cursor.keyword("TABLE") {
        return Ok(Some(Statement::Flush(FlushTarget::Table(cursor.qualified_name("table")?))));
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
    Ok(Some(Statement::Flush(FlushTarget::All(namespace))))
}
