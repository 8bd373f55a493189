//! The grammar of statements about users.
//!
//! ```text
//! CREATE USER [IF NOT EXISTS] name [WITH] PASSWORD 'password' [ROLE role] [EMAIL 'address']
//! ALTER USER name SET PASSWORD 'password' | SET ROLE role | SET EMAIL 'address'
//! ALTER USER name SET setting {= | TO} {time | DEFAULT} | RESET setting
//! DROP USER [IF EXISTS] name
//! ```

use super::cursor::Cursor;
use super::settings;
use super::statement::{CreateUser, Statement, UserChange};
use crate::access::Role;
use crate::error::{Error, Result};

/// The settings that users can have, for messages.
const TIMES: &str = "statement_timeout or idle_session_timeout";

/// Parses the part after CREATE USER.
pub(super) fn create(cursor: &mut Cursor<'_>) -> Result<Statement> {
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

/// Parses the part after ALTER USER.
pub(super) fn alter(cursor: &mut Cursor<'_>) -> Result<Statement> {
    let name = cursor.string_or_name("user")?;
    if cursor.keyword("RESET") {
        let setting = settings::time_name(cursor).ok_or_else(|| cursor.unexpected(TIMES))?;
        return Ok(Statement::AlterUser { name, change: UserChange::Setting(setting, None) });
    }
    cursor.expect_keyword("SET")?;
    let change = if cursor.keyword("PASSWORD") {
        UserChange::Password(cursor.string("a password")?)
    } else if cursor.keyword("ROLE") {
        UserChange::Role(Role::parse(&cursor.string_or_name("role")?)?)
    } else if cursor.keyword("EMAIL") {
        UserChange::Email(cursor.string("an e-mail address")?)
    } else if let Some((setting, ms)) = settings::time(cursor)? {
        UserChange::Setting(setting, ms)
    } else {
        return Err(cursor.unexpected(&format!("PASSWORD, ROLE, EMAIL, {TIMES}")));
    };
    Ok(Statement::AlterUser { name, change })
}

/// Parses the part after DROP USER.
pub(super) fn drop(cursor: &mut Cursor<'_>) -> Result<Statement> {
    let if_exists = cursor.keywords(&["IF", "EXISTS"]);
    Ok(Statement::DropUser { name: cursor.string_or_name("user")?, if_exists })
}
