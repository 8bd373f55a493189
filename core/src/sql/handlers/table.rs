//! CREATE TABLE, ALTER TABLE and DROP TABLE.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{Attempts, audit_row, denied, nothing_to_do, storages};
use crate::access::Role;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::schema_registry::{
    CatalogChange, NAMESPACE_SYSTEM, RESERVED_NAMESPACES, ScopeKind, TableDefinition, TableKind, TableOptions,
};
use crate::sql::cursor::QualifiedName;
use crate::sql::execution::Execution;
use crate::sql::result::Outcome;
use crate::sql::session::Session;
use crate::sql::statement::{AlterTable, CreateTable};

pub(in crate::sql) async fn create(session: &Session, table: &CreateTable) -> Result<Outcome> {
    let mut attempts = Attempts::new(session);
    loop {
        let execution = session.begin()?;
        let namespace = execution.namespace_of(&table.name).to_owned();
        let full_name = format!("{namespace}.{}", table.name.name);
        if let Err(error) = may_create(&execution, table, &full_name) {
            return Err(denied(&execution, "CREATE TABLE", &full_name, error).await);
        }
        let catalog = &execution.snapshot.catalog;
        if catalog.namespace(&namespace).is_none() && !RESERVED_NAMESPACES.contains(&namespace.as_str()) {
            return Err(Error::namespace_not_found(&namespace));
        }
        if RESERVED_NAMESPACES.contains(&namespace.as_str()) {
            return Err(Error::permission_denied(format!(
                "permission denied to create table \"{full_name}\""
            ))
            .hint(format!("namespace \"{namespace}\" belongs to the database")));
        }
        if catalog.table(&namespace, &table.name.name).is_some() {
            if table.if_not_exists {
                return Ok(nothing_to_do(&execution));
            }
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                SqlState::DUPLICATE_TABLE,
                format!("table \"{full_name}\" exists already"),
            )
            .hint("add IF NOT EXISTS, or drop it first"));
        }
        storages::find(&execution, &table.options.storage_id)?;
        let flush_policy = table.flush_policy.unwrap_or(execution.ctx().flush_policy);
        let definition = TableDefinition::create(
            catalog.next_table_id(),
            Arc::from(namespace.as_str()),
            Arc::from(table.name.name.as_str()),
            table.kind,
            table.columns.clone(),
            &table.primary_key,
            TableOptions { flush_policy, ..table.options.clone() },
            execution.principal.user_id,
            execution.now_us,
        )?;
        let details = json!({ "type": table.kind.name(), "columns": table.columns.len() });
        let mut set = execution.write_set();
        set.tables.push(audit_row(&execution, "CREATE TABLE", &full_name, Some(details), None)?);
        set.catalog.push(CatalogChange::PutTable(definition));
        if let Some(affected) = attempts.commit(set, 0).await? {
            return Ok(Outcome::Affected(affected));
        }
    }
}

fn may_create(execution: &Execution, table: &CreateTable, full_name: &str) -> Result<()> {
    let allowed = match table.options.scope {
        ScopeKind::User => execution.principal.may_create_table(),
        ScopeKind::Shared => execution.principal.may_create_shared(),
    };
    if allowed {
        return Ok(());
    }
    Err(Error::permission_denied(format!("permission denied to create table \"{full_name}\"")).hint(
        "tables whose rows are shared are created by the roles service, dba and system; CREATE USER TABLE is for everybody",
    ))
}

pub(in crate::sql) async fn alter(session: &Session, statement: &AlterTable) -> Result<Outcome> {
    let mut attempts = Attempts::new(session);
    loop {
        let execution = session.begin()?;
        let table = match execution.find(&statement.name) {
            Ok(table) => table,
            Err(error) if statement.if_exists && error.kind() == ErrorKind::NotFound => {
                return Ok(nothing_to_do(&execution));
            }
            Err(error) => return Err(error),
        };
        let full_name = table.qualified_name();
        if let Err(error) = may_alter(&execution, table) {
            return Err(denied(&execution, "ALTER TABLE", &full_name, error).await);
        }
        let mut options = table.options.clone();
        for change in &statement.changes {
            change.apply(table.kind, &mut options)?;
        }
        if options == table.options {
            return Ok(nothing_to_do(&execution));
        }
        let definition = table.with_options(execution.now_us, options)?;
        let values = statement
            .changes
            .iter()
            .map(|change| (change.name().to_owned(), Value::String(change.value(&definition.options))));
        let details = json!({ "options": values.collect::<Map<_, _>>() });
        let mut set = execution.write_set();
        set.tables.push(audit_row(&execution, "ALTER TABLE", &full_name, Some(details), None)?);
        set.catalog.push(CatalogChange::PutTable(definition));
        if let Some(affected) = attempts.commit(set, 0).await? {
            return Ok(Outcome::Affected(affected));
        }
    }
}

/// Options affect all users of a table, so a principal with the role user may alter only tables it created.
fn may_alter(execution: &Execution, table: &TableDefinition) -> Result<()> {
    let principal = &execution.principal;
    let refused = || {
        Error::permission_denied(format!("permission denied to alter table \"{}\"", table.qualified_name()))
    };
    let allowed = match (table.kind, table.options.scope) {
        (TableKind::System, _) => return Err(refused().hint("system tables belong to the database")),
        (_, ScopeKind::Shared) => principal.may_write_shared(table.options.access_level),
        (_, ScopeKind::User) => principal.role >= Role::Service || table.created_by == principal.user_id,
    };
    if allowed {
        return Ok(());
    }
    Err(refused().hint("tables are altered by who created them and may write them, and by the role dba"))
}

pub(in crate::sql) async fn drop(
    session: &Session,
    names: &[QualifiedName],
    if_exists: bool,
) -> Result<Outcome> {
    let mut attempts = Attempts::new(session);
    loop {
        let execution = session.begin()?;
        let mut set = execution.write_set();
        let mut dropped = Vec::new();
        for name in names {
            let full_name = format!("{}.{}", execution.namespace_of(name), name.name);
            if let Err(error) = may_drop(&execution, &full_name) {
                return Err(denied(&execution, "DROP TABLE", &full_name, error).await);
            }
            let table = match execution.find(name) {
                Ok(table) => table,
                Err(error) if if_exists && error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if table.kind == TableKind::System || &*table.namespace == NAMESPACE_SYSTEM {
                return Err(Error::permission_denied(format!(
                    "permission denied to drop table \"{full_name}\""
                ))
                .hint("system tables always exist"));
            }
            set.catalog.push(CatalogChange::DropTable(table.id));
            set.tables.push(audit_row(&execution, "DROP TABLE", &full_name, None, None)?);
            dropped.push(table.id);
        }
        if dropped.is_empty() {
            return Ok(nothing_to_do(&execution));
        }
        if let Some(affected) = attempts.commit(set, 0).await? {
            for table in dropped {
                session.ctx().schema_registry.invalidate(table);
            }
            return Ok(Outcome::Affected(affected));
        }
    }
}

fn may_drop(execution: &Execution, full_name: &str) -> Result<()> {
    if execution.principal.may_administer() {
        return Ok(());
    }
    Err(Error::permission_denied(format!("permission denied to drop table \"{full_name}\""))
        .hint("tables are dropped by the roles dba and system"))
}
