//! The grammar of the statements that move rows: FLUSH, STORAGE FLUSH and STORAGE COMPACT.
//!
//! ```text
//! FLUSH TABLE [namespace.]table                STORAGE FLUSH TABLE [namespace.]table
//! FLUSH ALL TABLES [IN [NAMESPACE] namespace]  STORAGE FLUSH ALL [IN [NAMESPACE] namespace]
//!                                              STORAGE COMPACT TABLE [namespace.]table
//!                                              STORAGE COMPACT ALL [IN [NAMESPACE] namespace]
//! ```

use super::cursor::{Cursor, QualifiedName};
use super::statement::Statement;
use crate::error::{Error, Result};

/// What is done to tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MoveKind {
    /// Hot rows become cold.
    Flush,
    /// Segments are merged.
    Compact,
}

/// Which tables it is done to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MoveTarget {
    /// One.
    Table(QualifiedName),
    /// Those of one namespace, or all.
    All(Option<String>),
}

/// What follows FLUSH or STORAGE.
pub(super) fn parse(cursor: &mut Cursor<'_>) -> Result<Option<Statement>> {
    let kind = if cursor.keyword("STORAGE") {
        if cursor.keyword("FLUSH") {
            MoveKind::Flush
        } else if cursor.keyword("COMPACT") {
            MoveKind::Compact
        } else {
            return Err(Error::unsupported("STORAGE with anything but FLUSH or COMPACT"));
        }
    } else if cursor.keyword("FLUSH") {
        MoveKind::Flush
    } else {
        return Ok(None);
    };
    if cursor.keyword("TABLE") {
        return Ok(Some(Statement::Move(kind, MoveTarget::Table(cursor.qualified_name("table")?))));
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
    Ok(Some(Statement::Move(kind, MoveTarget::All(namespace))))
}
