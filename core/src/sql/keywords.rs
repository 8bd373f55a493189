//! Words that are names only in double quotes.
//!
//! They are those that PostgreSQL reserves, also the ones it takes for functions and types:
//! <https://www.postgresql.org/docs/15/sql-keywords-appendix.html>. Without quotes such a name could be created and then not be read:
//! `user` would be the name of who asks, `order` the beginning of a clause.

use datafusion::sql::sqlparser::tokenizer::{Token, Word};

use super::cursor::{Cursor, QualifiedName};
use crate::error::{Error, Result};

/// In order.
const RESERVED: [&str; 100] = [
    "all",
    "analyse",
    "analyze",
    "and",
    "any",
    "array",
    "as",
    "asc",
    "asymmetric",
    "authorization",
    "binary",
    "both",
    "case",
    "cast",
    "check",
    "collate",
    "collation",
    "column",
    "concurrently",
    "constraint",
    "create",
    "cross",
    "current_catalog",
    "current_date",
    "current_role",
    "current_schema",
    "current_time",
    "current_timestamp",
    "current_user",
    "default",
    "deferrable",
    "desc",
    "distinct",
    "do",
    "else",
    "end",
    "except",
    "false",
    "fetch",
    "for",
    "foreign",
    "freeze",
    "from",
    "full",
    "grant",
    "group",
    "having",
    "ilike",
    "in",
    "initially",
    "inner",
    "intersect",
    "into",
    "is",
    "isnull",
    "join",
    "lateral",
    "leading",
    "left",
    "like",
    "limit",
    "localtime",
    "localtimestamp",
    "natural",
    "not",
    "notnull",
    "null",
    "offset",
    "on",
    "only",
    "or",
    "order",
    "outer",
    "overlaps",
    "placing",
    "primary",
    "references",
    "returning",
    "right",
    "select",
    "session_user",
    "similar",
    "some",
    "symmetric",
    "table",
    "tablesample",
    "then",
    "to",
    "trailing",
    "true",
    "union",
    "unique",
    "user",
    "using",
    "variadic",
    "verbose",
    "when",
    "where",
    "window",
    "with",
];

/// A name that a statement creates, as [`Cursor::name`].
///
/// # Errors
/// 42601 for a reserved word without quotes.
pub(super) fn name(cursor: &mut Cursor<'_>, kind: &str) -> Result<String> {
    check_next(cursor, kind)?;
    cursor.name(kind)
}

/// The name of a table that a statement creates or alters, as [`Cursor::qualified_name`]. Behind a point every word is a name.
///
/// # Errors
/// 42601 for a reserved word without quotes.
pub(super) fn qualified_name(cursor: &mut Cursor<'_>, kind: &str) -> Result<QualifiedName> {
    check_next(cursor, kind)?;
    cursor.qualified_name(kind)
}

fn check_next(cursor: &Cursor<'_>, kind: &str) -> Result<()> {
    match cursor.peek() {
        Some(Token::Word(Word { value, quote_style: None, .. })) => check(kind, value),
        _ => Ok(()),
    }
}

/// Refuses a word that is not quoted and reserved.
///
/// # Errors
/// 42601.
pub(super) fn check(kind: &str, word: &str) -> Result<()> {
    let word = word.to_ascii_lowercase();
    if RESERVED.binary_search(&word.as_str()).is_err() {
        return Ok(());
    }
    Err(Error::syntax(format!("\"{word}\" is a reserved word, not the name of a {kind}"))
        .hint(format!("write it in double quotes, here and wherever it is named: \"{word}\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_in_order() {
        assert!(RESERVED.is_sorted());
        assert!(check("column", "User").is_err());
        assert!(check("column", "zone").is_ok());
    }
}
