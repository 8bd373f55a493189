//! Rules for names. The parser folds names to lower case; this module checks them as they will be stored.
//!
//! Invariant: every name in the catalog was checked here, so messages can print it in double quotes.

use crate::error::{Error, ErrorKind, Result, SqlState};

/// Namespaces that nobody may create.
pub const RESERVED_NAMESPACES: [&str; 4] = ["system", "information_schema", "pg_catalog", "kalam"];

const NAME_BYTES_MAX: usize = 63;

/// Checks a name of `kind` ("table", "namespace", "user", …).
///
/// # Errors
/// 42602 for an empty name, a control character or a space at either end, 42622 for more than 63 bytes.
pub fn validate_name(kind: &str, name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(invalid_name(format!("the name of a {kind} is empty")));
    }
    if name.len() > NAME_BYTES_MAX {
        let shown: String = name.chars().take(20).collect();
        return Err(Error::new(
            ErrorKind::InvalidSql,
            SqlState::NAME_TOO_LONG,
            format!("{kind} name \"{shown}…\" is {} bytes long", name.len()),
        )
        .hint(format!("names have at most {NAME_BYTES_MAX} bytes")));
    }
    if name.chars().any(char::is_control) {
        return Err(invalid_name(format!("{kind} name {name:?} contains a control character")));
    }
    if name.trim() != name {
        return Err(invalid_name(format!("{kind} name \"{name}\" begins or ends with a space")));
    }
    Ok(())
}

/// Checks a column's name.
///
/// # Errors
/// As [`validate_name`], and 42602 for a name that begins with `_`.
pub fn validate_column_name(name: &str) -> Result<()> {
    validate_name("column", name)?;
    if name.starts_with('_') {
        return Err(invalid_name(format!("column name \"{name}\" begins with an underscore"))
            .hint("such names are reserved, for instance \"_seq\""));
    }
    Ok(())
}

/// Checks the name of a namespace to be created.
///
/// # Errors
/// As [`validate_name`], and 42939 for a reserved name.
pub fn validate_new_namespace(name: &str) -> Result<()> {
    validate_name("namespace", name)?;
    if RESERVED_NAMESPACES.contains(&name) {
        return Err(Error::new(
            ErrorKind::InvalidSql,
            SqlState::RESERVED_NAME,
            format!("namespace name \"{name}\" is reserved"),
        )
        .hint(format!("reserved names are {}", RESERVED_NAMESPACES.join(", "))));
    }
    Ok(())
}

fn invalid_name(message: String) -> Error {
    Error::new(ErrorKind::InvalidSql, SqlState::INVALID_NAME, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_judged_as_stored() {
        let check = |result: Result<()>, expected: Option<SqlState>| {
            assert_eq!(result.as_ref().err().map(Error::sqlstate), expected, "{result:?}");
        };
        check(validate_name("table", "notes"), None);
        check(validate_name("table", "Mixed Case"), None);
        check(validate_name("table", "größe"), None);
        check(validate_name("table", &"n".repeat(63)), None);
        check(validate_name("table", &"n".repeat(64)), Some(SqlState::NAME_TOO_LONG));
        check(validate_name("table", &"ö".repeat(32)), Some(SqlState::NAME_TOO_LONG));
        check(validate_name("table", ""), Some(SqlState::INVALID_NAME));
        check(validate_name("table", "a\nb"), Some(SqlState::INVALID_NAME));
        check(validate_name("table", " a"), Some(SqlState::INVALID_NAME));
        check(validate_column_name("_seq"), Some(SqlState::INVALID_NAME));
        check(validate_column_name("seq_"), None);
        check(validate_new_namespace("system"), Some(SqlState::RESERVED_NAME));
        check(validate_new_namespace("kalam"), Some(SqlState::RESERVED_NAME));
        check(validate_new_namespace("app"), None);
    }
}
