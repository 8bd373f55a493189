//! CREATE USER, ALTER USER and DROP USER.
//!
//! Invariants: nobody grants or revokes a role above their own; no audit row has a password; a changed
//! password or role raises the generation, which voids the user's tokens. No handler hashes a password.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;

use crate::access::Role;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::ids::UserId;
use crate::schema_registry::{CatalogChange, UserRecord, validate_name};
use crate::sql::effect::{Change, Effect};
use crate::sql::execution::Execution;
use crate::sql::text::statement::{CreateUser, UserChange};

pub(in crate::sql) fn create(execution: &Execution, user: &CreateUser) -> Result<Effect> {
    validate_name("user", &user.name)?;
    if let Err(error) = may_manage(execution, user.role, &format!("create user \"{}\"", user.name)) {
        return Effect::denied("CREATE USER", &user.name, error);
    }
    if execution.password_hash.is_none() {
        return Ok(Effect::NewPassword(user.password.clone()));
    }
    let catalog = &execution.snapshot.catalog;
    if catalog.user_by_name(&user.name).is_some() {
        if user.if_not_exists {
            return Ok(Effect::nothing(execution));
        }
        return Err(Error::new(
            ErrorKind::AlreadyExists,
            SqlState::DUPLICATE_OBJECT,
            format!("user \"{}\" already exists", user.name),
        ));
    }
    let now = execution.now_us;
    let id = catalog.next_user_id();
    let mut change = Change::new(execution);
    change.set.catalog.push(CatalogChange::PutUser(UserRecord {
        id,
        username: Arc::from(user.name.as_str()),
        revision: 1,
        password_hash: execution.password_hash.clone(),
        role: user.role,
        email: user.email.clone(),
        created_at: now,
        updated_at: now,
        last_login_at: None,
        auth_generation: 1,
        settings: BTreeMap::new(),
    }));
    let details = json!({ "role": user.role.name() });
    change.note("CREATE USER", &user.name, Some(details), Some(id));
    Ok(change.into())
}

pub(in crate::sql) fn alter(execution: &Execution, name: &str, wanted: &UserChange) -> Result<Effect> {
    if let Err(error) = may_alter(execution, name, wanted) {
        return Effect::denied("ALTER USER", name, error);
    }
    if let (UserChange::Password(password), None) = (wanted, &execution.password_hash) {
        return Ok(Effect::NewPassword(password.clone()));
    }
    let mut user = UserRecord::clone(find(execution, name)?);
    let details = match wanted {
        UserChange::Password(_) => {
            user.password_hash.clone_from(&execution.password_hash);
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
        UserChange::Setting(setting, ms) => {
            match ms {
                Some(ms) => user.settings.insert(setting.name().to_owned(), ms.to_string()),
                None => user.settings.remove(setting.name()),
            };
            json!({ "changed": setting.name(), "to_ms": ms })
        }
    };
    user.updated_at = execution.now_us;
    user.revision += 1;
    let subject = user.id;
    let mut change = Change::new(execution);
    change.set.catalog.push(CatalogChange::PutUser(user));
    change.note("ALTER USER", name, Some(details), Some(subject));
    Ok(change.into())
}

pub(in crate::sql) fn drop(execution: &Execution, name: &str, if_exists: bool) -> Result<Effect> {
    let role = execution.snapshot.catalog.user_by_name(name).map_or(Role::User, |user| user.role);
    if let Err(error) = may_manage(execution, role, &format!("drop user \"{name}\"")) {
        return Effect::denied("DROP USER", name, error);
    }
    let user = match find(execution, name) {
        Ok(user) => user,
        Err(_) if if_exists => return Ok(Effect::nothing(execution)),
        Err(error) => return Err(error),
    };
    if user.id == UserId::ROOT {
        return Err(
            Error::permission_denied("permission denied to drop user \"root\"").hint("root always exists")
        );
    }
    if user.id == execution.principal.user_id {
        return Err(Error::permission_denied(format!("permission denied to drop user \"{name}\""))
            .hint("users cannot drop themselves"));
    }
    let mut change = Change::new(execution);
    change.note("DROP USER", name, None, Some(user.id));
    change.set.catalog.push(CatalogChange::DropUser(user.id));
    Ok(change.into())
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
        UserChange::Password(_) | UserChange::Email(_) | UserChange::Setting(..) => Ok(()),
    }
}
