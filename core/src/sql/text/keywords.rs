//! Words that are names only in double quotes.
//!
//! They are PostgreSQL's reserved words, including those it allows as function or type names:
//! <https://www.postgresql.org/docs/15/sql-keywords-appendix.html>. Without quotes such a name could be
//! created but not read: `user` would mean the current user, `order` would begin a clause.

use datafusion::sql::sqlparser::tokenizer::{Token, Word};

use super::cursor::{Cursor, QualifiedName};
use crate::error::{Error, Result};

/// Sorted, for a binary search.
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

/// Takes the name of something to create, as [`Cursor::name`] does.
///
/// # Errors
/// 42601 for a reserved word without quotes.
pub(super) fn name(cursor: &mut Cursor<'_>, kind: &str) -> Result<String> {
    check_next(cursor, kind)?;
    cursor.name(kind)
}

/// Takes the name of a table, as [`Cursor::qualified_name`] does. After a period every word is a name.
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

/// Refuses an unquoted reserved word.
///
/// # Errors
/// 42601 for a reserved word.
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
