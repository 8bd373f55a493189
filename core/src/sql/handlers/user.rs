//! CREATE USER, ALTER USER and DROP USER.
//!
//! Invariants: nobody grants or revokes a role above their own; no audit row has a password; a changed
//! password or role raises the generation, which voids the user's tokens.

use std::sync::Arc;

use serde_json::json;

use super::{Attempts, audit_row, denied, nothing_to_do};
use crate::access::Role;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::UserId;
use crate::schema_registry::{CatalogChange, UserRecord, validate_name};
use crate::sql::execution::Execution;
use crate::sql::result::Outcome;
use crate::sql::session::Session;
use crate::sql::statement::{CreateUser, UserChange};

pub(in crate::sql) async fn create(session: &Session, user: &CreateUser) -> Result<Outcome> {
    validate_name("user", &user.name)?;
    let execution = session.begin()?;
    if let Err(error) = may_manage(&execution, user.role, &format!("create user \"{}\"", user.name)) {
        return Err(denied(&execution, "CREATE USER", &user.name, error).await);
    }
    let password_hash = session.engine().passwords.hash(&user.password).await?;
    let mut attempts = Attempts::new(session);
    loop {
        let execution = session.begin()?;
        may_manage(&execution, user.role, &format!("create user \"{}\"", user.name))?;
        let catalog = &execution.snapshot.catalog;
        if catalog.user_by_name(&user.name).is_some() {
            if user.if_not_exists {
                return Ok(nothing_to_do(&execution));
            }
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                SqlState::DUPLICATE_OBJECT,
                format!("user \"{}\" exists already", user.name),
            ));
        }
        let now = execution.now_us;
        let id = catalog.next_user_id();
        let mut set = execution.write_set();
        set.catalog.push(CatalogChange::PutUser(UserRecord {
            id,
            username: Arc::from(user.name.as_str()),
            revision: 1,
            password_hash: Some(password_hash.clone()),
            role: user.role,
            email: user.email.clone(),
            created_at: now,
            updated_at: now,
            last_login_at: None,
            auth_generation: 1,
        }));
        let details = json!({ "role": user.role.name() });
        set.tables.push(audit_row(&execution, "CREATE USER", &user.name, Some(details), Some(id))?);
        if let Some(affected) = attempts.commit(set, 0).await? {
            return Ok(Outcome::Affected(affected));
        }
    }
}

pub(in crate::sql) async fn alter(session: &Session, name: &str, change: &UserChange) -> Result<Outcome> {
    let execution = session.begin()?;
    if let Err(error) = may_alter(&execution, name, change) {
        return Err(denied(&execution, "ALTER USER", name, error).await);
    }
    let password_hash = match change {
        UserChange::Password(password) => Some(session.engine().passwords.hash(password).await?),
        UserChange::Role(_) | UserChange::Email(_) => None,
    };
    let mut attempts = Attempts::new(session);
    loop {
        let execution = session.begin()?;
        may_alter(&execution, name, change)?;
        let mut user = UserRecord::clone(find(&execution, name)?);
        let details = match change {
            UserChange::Password(_) => {
                user.password_hash.clone_from(&password_hash);
                user.auth_generation += 1;
                json!({ "changed": "password" })
            }
            UserChange::Role(role) => {
                let details = json!({ "changed": "role", "from": user.role.name(), "to": role.name() });
                if user.role != *role {
                    user.auth_generation += 1;
                }
                user.role = *role;
                details
            }
            UserChange::Email(email) => {
                user.email = Some(email.clone());
                json!({ "changed": "email" })
            }
        };
        user.updated_at = execution.now_us;
        user.revision += 1;
        let subject = user.id;
        let mut set = execution.write_set();
        set.catalog.push(CatalogChange::PutUser(user));
        set.tables.push(audit_row(&execution, "ALTER USER", name, Some(details), Some(subject))?);
        if let Some(affected) = attempts.commit(set, 0).await? {
            return Ok(Outcome::Affected(affected));
        }
    }
}

pub(in crate::sql) async fn drop(session: &Session, name: &str, if_exists: bool) -> Result<Outcome> {
    let mut attempts = Attempts::new(session);
    loop {
        let execution = session.begin()?;
        let role = execution.snapshot.catalog.user_by_name(name).map_or(Role::User, |user| user.role);
        if let Err(error) = may_manage(&execution, role, &format!("drop user \"{name}\"")) {
            return Err(denied(&execution, "DROP USER", name, error).await);
        }
        let user = match find(&execution, name) {
            Ok(user) => user,
            Err(_) if if_exists => return Ok(nothing_to_do(&execution)),
            Err(error) => return Err(error),
        };
        if user.id == UserId::ROOT {
            return Err(Error::permission_denied("permission denied to drop user \"root\"")
                .hint("root always exists"));
        }
        if user.id == execution.principal.user_id {
            return Err(Error::permission_denied(format!("permission denied to drop user \"{name}\""))
                .hint("nobody drops themselves"));
        }
        let mut set = execution.write_set();
        set.tables.push(audit_row(&execution, "DROP USER", name, None, Some(user.id))?);
        set.catalog.push(CatalogChange::DropUser(user.id));
        if let Some(affected) = attempts.commit(set, 0).await? {
            return Ok(Outcome::Affected(affected));
        }
    }
}

fn find<'a>(execution: &'a Execution, name: &str) -> Result<&'a Arc<UserRecord>> {
    execution.snapshot.catalog.user_by_name(name).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, SqlState::UNDEFINED_OBJECT, format!("user \"{name}\" does not exist"))
            .hint("SHOW USERS lists them")
    })
}

/// Administrators manage users, up to their own role.
fn may_manage(execution: &Execution, role: Role, action: &str) -> Result<()> {
    execution.principal.require(Role::Dba, action)?;
    execution.principal.require(role, format_args!("{action} of role {role}"))
}

/// Users may change their own password; everything else needs an administrator.
fn may_alter(execution: &Execution, name: &str, change: &UserChange) -> Result<()> {
    let is_self = *execution.principal.username == *name;
    if is_self && matches!(change, UserChange::Password(_)) {
        return Ok(());
    }
    let action = format!("alter user \"{name}\"");
    execution.principal.require(Role::Dba, &action)?;
    let user = find(execution, name)?;
    may_manage(execution, user.role, &action)?;
    match change {
        UserChange::Role(_) if user.id == UserId::ROOT => {
            Err(Error::permission_denied("permission denied to change the role of user \"root\""))
        }
        UserChange::Role(role) => may_manage(execution, *role, &action),
        UserChange::Password(_) | UserChange::Email(_) => Ok(()),
    }
}
